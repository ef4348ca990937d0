"""A training child's line to its launcher: progress as JSON lines on standard output, SIGTERM in, an exit status out.

`main` is the whole life of a child of any objective. Knows no trainer and imports no model library.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeVar

from pydantic import ValidationError

from training.job import TrainingJob
from training.launcher import BLOCKED, die_with_parent
from utils.artifacts import ArtifactCorrupt
from utils.errors import ProviderError, TrainingBlocked, TrainingFailed
from utils.logs import configure_logging, logger

STOPPED = 143
"""Exit status after SIGTERM, as a shell would report it; there is no result file then."""


class StopRequested(Exception):
    """SIGTERM arrived; unwinds to `main`, which exits with `STOPPED`."""


@dataclass(slots=True)
class Session:
    """The child's line to its launcher: progress out, the request to stop in."""

    out: TextIO
    stop: bool = False
    started: float = field(default_factory=time.monotonic)

    def report(self, stage: str, step: int, steps: int, loss: float | None = None, **figures: Any) -> None:
        """Report a step with the stage's own figures; a stop that was asked meanwhile is left to the caller."""
        event = {"event": "progress", "stage": stage, "step": step, "steps": steps, "loss": loss, **figures}
        if is_main_process():
            self.out.write(json.dumps(event) + "\n")
            self.out.flush()

    def progress(self, stage: str, step: int, steps: int, loss: float | None = None) -> None:
        """Report a step, then stop here if that was asked."""
        self.report(stage, step, steps, loss)
        self.check()

    def check(self) -> None:
        """Raise `StopRequested` if SIGTERM has arrived."""
        if self.stop:
            raise StopRequested


def is_main_process() -> bool:
    """Return whether this is the process that writes files; of several under accelerate one does."""
    return os.environ.get("RANK", "0") == "0"


J = TypeVar("J", bound=TrainingJob)


def main(kind: type[J], run: Callable[[J, Session], object], arguments: Sequence[str] | None = None) -> int:
    """Run the job in the file named by the only argument and return the exit status."""
    die_with_parent()
    # Libraries print to standard output as they please; the launcher reads JSON lines there and nothing else.
    session = Session(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)

    def on_terminate(number: int, frame: FrameType | None) -> None:
        session.stop = True

    signal.signal(signal.SIGTERM, on_terminate)
    configure_logging()
    (path,) = sys.argv[1:] if arguments is None else arguments
    try:
        job = kind.model_validate_json(Path(path).read_bytes())
    except (OSError, ValidationError) as error:
        logger.error("the job file %s cannot be used: %s", path, error)
        return 2
    try:
        (job.output_dir / "result.json").unlink(missing_ok=True)
        run(job, session)
    except StopRequested:
        logger.info("stopped on request")
        return STOPPED
    except TrainingBlocked as error:
        logger.error("%s", error)
        return BLOCKED
    except (TrainingFailed, ProviderError, ArtifactCorrupt) as error:
        logger.error("%s", error)
        return 1
    return 0
