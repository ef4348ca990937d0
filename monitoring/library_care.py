"""The daemon's care for its experience library: counts it, drains what waits for it, starts it again while it is away.

Called once a second by the supervision. It owns no thread, and decides nothing about orders or models.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from data_pipeline.experience_library_postgres import DRAIN_PATIENCE_S, ExperienceLibraryPostgres
from utils.errors import ComponentStartError, LibraryUnavailable
from utils.logs import logger

_COUNT_EVERY_S = 10.0


class LibraryCare:
    """Looks after one library.

    Parameters
    ----------
    library : ExperienceLibraryPostgres
    on_change : callable
        Told why the database is away when it has gone, None when it has come back.

    Attributes
    ----------
    size, dead_letters : int or None
        Trajectories, and operations of the spool that were refused for good; None while the database is away.
    """

    def __init__(self, library: ExperienceLibraryPostgres, on_change: Callable[[str | None], None]) -> None:
        self.library = library
        self.size: int | None = None
        self.dead_letters: int | None = None
        self._on_change = on_change
        self._counted_at = -_COUNT_EVERY_S
        self._away = False

    def count(self) -> None:
        """Count anew, at most every ten seconds, and not while a spool waits: to read would be to drain it to its end."""
        spool = self.library.spool
        if time.monotonic() - self._counted_at < _COUNT_EVERY_S or (spool is not None and spool.operations):
            return
        try:
            self.size, self.dead_letters = self.library.count_trajectories(), self.library.count_dead_letters()
            self._counted_at = time.monotonic()
        except LibraryUnavailable:  # `tend` tells of it, once
            self.size = self.dead_letters = None

    def tend(self) -> None:
        """Drain; while the database is away, start ours again; tell of a change."""
        try:
            self.library.drain(DRAIN_PATIENCE_S)
        except LibraryUnavailable:
            try:
                self.library.revive()
            except ComponentStartError as error:
                logger.warning("%s", error)
        away = self.library.away
        if self._away != (away is not None):
            self._away = away is not None
            self._counted_at = -_COUNT_EVERY_S
            self._on_change(away)
