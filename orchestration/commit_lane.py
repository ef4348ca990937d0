"""The commits of the trading cycle, one behind the other, beside the decisions on the next instant.

While the database works on one instant, the next may be decided: at most one commit is open. A commit that fails for
good fails whoever hands over the next one or flushes, so that nothing is ever decided on two instants that are not durable.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.cycle import CycleBatch
from utils.clock import isoformat
from utils.patience import patiently


class CommitLane:
    """Commits batches in the order in which they come.

    Parameters
    ----------
    library : ExperienceLibraryPostgres

    Attributes
    ----------
    stop : threading.Event
        Once set, a commit that finds the database away is given up; until then it is tried again. Whoever runs the cycle
        puts its own in.
    """

    def __init__(self, library: ExperienceLibraryPostgres) -> None:
        self._library = library
        self.stop = threading.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commits")
        self._open: Future[None] | None = None

    def submit(self, batch: CycleBatch) -> None:
        """Hand a batch over once the one before is durable.

        Raises
        ------
        LibraryUnavailable
            If the commit before was given up; nothing of it, nor of this one, is stored.
        """
        self.flush()
        self._open = self._worker.submit(self._commit, batch)

    def flush(self) -> None:
        """Wait until everything handed over is durable; raises what `submit` raises."""
        commit, self._open = self._open, None
        if commit is not None:
            commit.result()

    def close(self) -> None:
        """Let an open commit end, and the thread with it; idempotent."""
        self._worker.shutdown()

    def _commit(self, batch: CycleBatch) -> None:
        patiently(
            f"the commit of {isoformat(batch.as_of)}",
            lambda: self._library.commit_cycle(batch),
            pause=self.stop.wait,
            stopping=self.stop.is_set,
            revive=self._library.revive,
        )
