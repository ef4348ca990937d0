"""The sessions of one exchange over an explicit range: when they open and close, and which comes next.

Built once by a feed and shared with the store and the broker; after construction every question is a dictionary or
array look-up. It never guesses: a date outside the range that was asked for is a `ConfigError`, not an extrapolation.
"""

from __future__ import annotations

import json
import subprocess
import sys
from bisect import bisect_left, bisect_right
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, nearest

_PAD_BEFORE = timedelta(days=15)
_PADS_AFTER = (timedelta(days=400), timedelta(days=60), timedelta(days=0))
"""Room for outcome horizons beyond the end; calendars of lunar holidays are recorded less far, hence the fall-backs."""

_Session = tuple[date, datetime, datetime]
"""A session with its opening and its close."""


class ExchangeCalendar:
    """The trading sessions of an exchange.

    Parameters
    ----------
    name : str
        A name of the package exchange_calendars, for example ``XNYS``.
    start, end : date
        First and last date that must be covered; some room is added on both sides where the exchange's records allow.

    Raises
    ------
    ConfigError
        If there is no such calendar, or if it does not cover the range.
    """

    def __init__(self, name: str = "XNYS", *, start: date, end: date) -> None:
        if end < start:
            raise ConfigError(f"calendar {name}: the end {end} lies before the start {start}")
        self.name = name
        loaded = _load(name, start, end)
        self._sessions: list[date] = [day for day, _, _ in loaded]
        self._opens = {day: opening for day, opening, _ in loaded}
        self._closes = {day: closing for day, _, closing in loaded}
        self._position = {day: index for index, day in enumerate(self._sessions)}

    @property
    def first(self) -> date:
        """The first session of the covered range."""
        return self._sessions[0]

    @property
    def last(self) -> date:
        """The last session of the covered range."""
        return self._sessions[-1]

    def is_session(self, day: date) -> bool:
        """Return whether the exchange trades on `day`."""
        return day in self._position

    def sessions(self, start: date, end: date) -> list[date]:
        """Return the sessions from `start` to `end`, both included where they are sessions."""
        return self._sessions[bisect_left(self._sessions, start) : bisect_right(self._sessions, end)]

    def open_time(self, session: date) -> datetime:
        """Return the opening auction of a session in UTC."""
        return self._opens[self._checked(session)]

    def close_time(self, session: date) -> datetime:
        """Return the close of a session in UTC; half days close early."""
        return self._closes[self._checked(session)]

    def is_open(self, at: datetime) -> bool:
        """Return whether the exchange trades at an instant; at the very close it no longer does."""
        day = at.date()
        return self.is_session(day) and self.open_time(day) <= at < self.close_time(day)

    def next_session(self, session: date, n: int = 1) -> date:
        """Return the n-th session after a date, which need not be a session itself.

        Raises
        ------
        ConfigError
            If it lies outside the covered range.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return self._at(bisect_right(self._sessions, session) + n - 1, session, n)

    def previous(self, session: date, n: int = 1) -> date:
        """Return the n-th session before a date, which need not be a session itself.

        Raises
        ------
        ConfigError
            If it lies outside the covered range.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return self._at(bisect_left(self._sessions, session) - n, session, -n)

    def _at(self, index: int, session: date, steps: int) -> date:
        if not 0 <= index < len(self._sessions):
            raise ConfigError(
                f"calendar {self.name}: {session} {steps:+d} sessions lies outside {self.first} to {self.last}; "
                "build the calendar with a wider start and end"
            )
        return self._sessions[index]

    def _checked(self, session: date) -> date:
        if session not in self._position:
            raise ConfigError(
                f"calendar {self.name}: {session} is not a session (covered: {self.first} to {self.last})"
            )
        return session


def _load(name: str, start: date, end: date) -> list[_Session]:
    """Return the sessions, ascending, with as much room after the end as the exchange's records allow."""
    fault = ""
    for first, last in [*((start - _PAD_BEFORE, end + pad) for pad in _PADS_AFTER), (start, end)]:
        answer = _ask(name, first, last)
        if "known" in answer:
            raise ConfigError(f"feed.calendar: there is no exchange calendar {name!r}{nearest(name, answer['known'])}")
        if "sessions" in answer:
            return [
                (date.fromisoformat(day), datetime.fromtimestamp(opening, UTC), datetime.fromtimestamp(closing, UTC))
                for day, opening, closing in answer["sessions"]
            ]
        fault = answer["fault"]
    raise ConfigError(f"feed.calendar: {name} does not cover {start} to {end}: {' '.join(fault.split())}")


@lru_cache(maxsize=32)
def _ask(name: str, first: date, last: date) -> dict[str, Any]:
    """Ask exchange_calendars in a process of its own; see `data_pipeline.exchange_sessions`."""
    script = Path(__file__).with_name("exchange_sessions.py")
    # -P: the script's folder must not come before the standard library, whose calendar ours would hide
    command = [sys.executable, "-P", str(script), name, first.isoformat(), last.isoformat()]
    child = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if child.returncode != 0:
        last_line = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"feed.calendar: exchange_calendars cannot be used: {last_line}; is it installed?")
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer
