"""One training at a time below a data directory, whichever process wants it: the daemon's loop or a command line beside it.

A lock on a file, which ends with its process: a training that the database calls running is at work only while somebody holds it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import TrainingBlocked

BUSY = "another process is training below {}; one training runs at a time"


@contextmanager
def alone(data_dir: Path) -> Iterator[bool]:
    """Hold the right to train for as long as the context lasts; False where another process has it.

    Raises
    ------
    TrainingBlocked
        If the lock cannot be opened: the folder belongs to another user, or the disk is full.
    """
    path = data_dir / "training" / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("ab")
    except OSError as error:
        raise TrainingBlocked(f"{error}; let the user who trains write below {path.parent}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
