"""One training at a time below a data directory, whichever process wants it: the daemon's loop or a command line beside it.

A lock on a file, which ends with its process: a training that the database calls running is at work only while somebody holds it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY = "another process is training below {}; one training runs at a time"


@contextmanager
def alone(data_dir: Path) -> Iterator[bool]:
    """Hold the right to train for as long as the context lasts; False where another process has it."""
    folder = data_dir / "training"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
