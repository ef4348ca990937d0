"""Whether the database is known to be away, and when it is asked again.

So that an outage costs one call the time-out of the connection and not each. Used by the spooled database; knows no SQL.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from utils.errors import LibraryUnavailable
from utils.patience import FIRST_PAUSE_S, LONGEST_PAUSE_S


class Outage:
    """The memory of an outage: asked for again after 0.1 s, doubling to 5 s.

    Parameters
    ----------
    clock : callable
        Seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._pause_s = FIRST_PAUSE_S
        self._next_probe = 0.0

    @property
    def known(self) -> bool:
        """Whether the database was away when it was last asked."""
        return self._reason is not None

    def began(self, reason: str) -> bool:
        """Note that a call found the database away; return whether that is news: several calls at once are one finding."""
        with self._lock:
            news = self._reason is None
            if news:
                self._note(reason)
            return news

    def probe_failed(self, reason: str) -> None:
        """Note that it is away still; the next probe waits twice as long."""
        with self._lock:
            self._note(reason)

    def ask_now(self) -> None:
        """Make the next probe due, for somebody has just done something about it."""
        self._next_probe = 0.0

    def answered(self) -> None:
        """Note that there is a connection again; calls need not be turned away."""
        self._reason = None

    def ended(self) -> bool:
        """Note that all is well again; return whether there was an outage."""
        with self._lock:
            was = self._pause_s != FIRST_PAUSE_S
            self._reason = None
            self._pause_s = FIRST_PAUSE_S
            return was

    def check_due(self) -> None:
        """Let a probe pass if it is due.

        Raises
        ------
        LibraryUnavailable
            If the database is known to be away and it is too early to ask again.
        """
        left = self._next_probe - self._clock()
        if self.known and left > 0:
            raise self.as_error(left)

    def as_error(self, left_s: float = 0.0) -> LibraryUnavailable:
        """Return the fault that says what was found."""
        when = f"; it is asked again in {left_s:.1f} s" if left_s > 0 else ""
        return LibraryUnavailable(f"{self._reason or 'the database is away'}{when}")

    def _note(self, reason: str) -> None:
        self._reason = reason
        self._next_probe = self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
