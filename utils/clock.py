"""One clock for everything.

Live components hold a `WallClock`, a replay a `VirtualClock` that moves to the next instant only when the work of the
present one is done. Nothing else in the project asks the operating system what time it is for a decision, an interval
or a record.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol


class Clock(Protocol):
    """Tells the time. `now` never goes backwards and is always in UTC; it never raises."""

    def now(self) -> datetime:
        """Return the present instant as an aware UTC datetime."""
        ...


class WallClock:
    """The operating system's clock, held at its last value while the system sets it back."""

    def __init__(self) -> None:
        self._last = datetime.now(UTC)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the present instant."""
        with self._lock:
            self._last = max(self._last, datetime.now(UTC))
            return self._last


class VirtualClock:
    """A clock that stands still until `advance_to` moves it."""

    def __init__(self, start: datetime) -> None:
        self._now = ensure_utc(start)

    def now(self) -> datetime:
        """Return the instant that the replay has reached."""
        return self._now

    def advance_to(self, instant: datetime) -> None:
        """Move forward.

        Raises
        ------
        ValueError
            If `instant` lies before the present one: a replay never goes back.
        """
        instant = ensure_utc(instant)
        if instant < self._now:
            raise ValueError(f"the clock stands at {self._now.isoformat()} and cannot go back to {instant.isoformat()}")
        self._now = instant


def ensure_utc(instant: datetime) -> datetime:
    """Return `instant` in UTC.

    Raises
    ------
    ValueError
        If it has no time zone: a naive time is a guess, and a guess is a look-ahead waiting to happen.
    """
    if instant.tzinfo is None:
        raise ValueError(f"{instant.isoformat()} has no time zone; give an aware datetime, for example in UTC")
    return instant.astimezone(UTC)


def isoformat(instant: datetime) -> str:
    """Return an instant in the one textual form the project uses: ``2014-01-02T21:00:00Z``, fractions where there are."""
    return _utc_text(ensure_utc(instant))


@lru_cache(maxsize=4096)
def _utc_text(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")
