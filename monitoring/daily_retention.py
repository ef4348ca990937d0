"""Retention in the daemon: once a day of its Clock, on the learning thread, after what is learnt of that day.

Built by the orchestrator where the configuration asks for it. In a replay the next instant waits for it as for the
learning, so that a removal happens at the same place of every repetition; live it happens beside the decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.retention import RetentionPolicy
from utils.clock import ensure_utc
from utils.logs import logger
from utils.settings import RetentionSettings


class DailyRetention:
    """Applies the configured policy to the library's own run.

    Parameters
    ----------
    library : ExperienceLibraryPostgres
    settings : RetentionSettings
        Where it is not enabled, `check` does nothing.
    """

    def __init__(self, library: ExperienceLibraryPostgres, settings: RetentionSettings) -> None:
        self._library = library
        self._enabled = settings.enabled
        self._policy = RetentionPolicy.from_settings(settings)
        self._done: date | None = None
        self.stopped: Callable[[], bool] = lambda: False

    def after(self, learn: Callable[[datetime], None]) -> Callable[[datetime], None]:
        """Return what learns of an instant and then checks, for one thread to do in turn."""

        def both(at: datetime) -> None:
            learn(at)
            self.check(at)

        return both

    def check(self, at: datetime) -> None:
        """Remove what is old enough as of an instant, at the first instant of each UTC day.

        A start, or a failure in the middle, does the day again: what is gone is not there to be removed twice.

        Raises
        ------
        LibraryUnavailable
            If the database is away; the day is not done then.
        """
        day = ensure_utc(at).date()
        if not self._enabled or day == self._done:
            return
        report = self._library.apply_retention(self._policy, as_of=at, stopped=self.stopped)
        if report.removed:
            counts = ", ".join(f"{number} by {reason}" for reason, number in sorted(report.removed.items()))
            ending = "" if report.finished else "; stopped before the end, the next start goes on"
            logger.info("retention of %s: removed %d experiences (%s)%s", day, report.removed.total(), counts, ending)
        if report.finished:
            self._done = day
