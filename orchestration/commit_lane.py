"""The commits of the trading cycle, one behind the other, beside the decisions on the next instant.

While the database works on one instant, the next may be decided: at most one commit is open. A commit that fails for
good fails the lane: whoever hands over the next batch or flushes is told, and nothing is ever stored on top of a gap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.cycle import CycleBatch
from utils.clock import isoformat
from utils.patience import patiently


class CommitLane:
    """Commits batches in the order in which they come; used by one thread.

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
        self._open: _Commit | None = None
        self.stop = threading.Event()

    def submit(self, batch: CycleBatch) -> None:
        """Hand a batch over once the one before is durable.

        Raises
        ------
        LibraryUnavailable
            If the commit before was given up: it may be stored if its answer was lost, this one is not. Whatever else
            that commit failed with is raised as it is.
        """
        self.flush()
        self._open = _Commit(lambda: self._commit(batch))
        self._open.start()

    def flush(self) -> None:
        """Wait until everything handed over is durable; raises what `submit` raises, now and ever after."""
        if (error := self._outcome()) is not None:
            raise error

    def close(self) -> bool:
        """Wait for the open commit; return whether everything handed over is durable."""
        return self._outcome() is None

    def _outcome(self) -> BaseException | None:
        """Wait for the open commit; return what it failed with."""
        if self._open is None:
            return None
        self._open.join()
        return self._open.error

    def _commit(self, batch: CycleBatch) -> None:
        patiently(
            f"the commit of {isoformat(batch.as_of)}",
            lambda: self._library.commit_cycle(batch),
            self.stop,
            self._library.revive,
        )


class _Commit(threading.Thread):
    """One commit and how it ended. A daemon: a database that never answers must not keep the process from its end."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="commit", daemon=True)
        self.error: BaseException | None = None
        self._work = work

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # kept whole for whoever hands over the next one
            self.error = error
