"""Upkeep of the library by the daemon: once a day of its Clock, on the learning thread, after what is learnt of that day.

Retention where the configuration asks for it, and the vector index once it pays. In a replay the next instant waits for
it as for the learning, so that a removal happens at the same place of every repetition, and no index is built, for
nothing there may depend on one; live it happens beside the decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.retention import RetentionPolicy
from utils.clock import ensure_utc
from utils.logs import logger
from utils.setting_sections import RetentionSettings


class DailyUpkeep:
    """Applies the configured retention to the library's own run, and builds its index.

    Parameters
    ----------
    library : ExperienceLibraryPostgres
    settings : RetentionSettings
        Where it is not enabled, nothing is removed.
    ungraded_agents : sequence of str
        Whose opinions no judge will ever see, so that they need not wait for one.
    """

    def __init__(
        self, library: ExperienceLibraryPostgres, settings: RetentionSettings, ungraded_agents: Sequence[str] = ()
    ) -> None:
        self._library = library
        self._enabled = settings.enabled
        self._policy = replace(RetentionPolicy.from_settings(settings), ungraded_agents=tuple(ungraded_agents))
        self._done: date | None = None
        self.stopped: Callable[[], bool] = lambda: False

    def after(self, learn: Callable[[datetime], None]) -> Callable[[datetime], None]:
        """Return what learns of an instant and then checks, for one thread to do in turn."""

        def both(at: datetime) -> None:
            learn(at)
            self.check(at)

        return both

    def check(self, at: datetime) -> None:
        """Remove what is old enough as of an instant, then index what is left, at the first instant of each UTC day.

        A start, or a failure in the middle, does the day again: what is gone is not there to be removed twice.

        Raises
        ------
        LibraryUnavailable
            If the database is away; the day is not done then.
        """
        day = ensure_utc(at).date()
        if day == self._done:
            return
        if self._enabled and not self._retain(day, at):
            return
        if not self._library.exact_search and self._library.maintain():
            logger.info("the experience library has a vector index from now on")
        self._done = day

    def _retain(self, day: date, at: datetime) -> bool:
        """Apply the policy; return whether it came to its end."""
        report = self._library.apply_retention(self._policy, as_of=at, stopped=self.stopped)
        if report.removed:
            counts = ", ".join(f"{number} by {reason}" for reason, number in sorted(report.removed.items()))
            ending = "" if report.finished else "; stopped before the end, the next start goes on"
            logger.info("retention of %s: removed %d experiences (%s)%s", day, report.removed.total(), counts, ending)
        return report.finished
