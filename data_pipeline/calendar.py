"""The sessions of one exchange over an explicit range: when they open and close, and which comes next.

Built once by a feed and shared with the store and the broker; after construction every question is a dictionary or
array look-up. It never guesses: a date outside the range that was asked for is a `ConfigError`, not an extrapolation.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left, bisect_right
from datetime import UTC, date, datetime, timedelta

from utils.errors import ConfigError, nearest

_PAD_BEFORE = timedelta(days=15)
_PADS_AFTER = (timedelta(days=400), timedelta(days=60), timedelta(days=0))
"""Room for outcome horizons beyond the end; calendars of lunar holidays are recorded less far, hence the fall-backs."""


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
        opens, closes = _load(name, start, end)
        self._sessions: list[date] = [day for day, _ in opens]
        self._opens = dict(opens)
        self._closes = dict(closes)
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


def _load(name: str, start: date, end: date) -> tuple[list[tuple[date, datetime]], list[tuple[date, datetime]]]:
    """Return (session, opening) and (session, close) pairs, ascending."""
    with warnings.catch_warnings():
        # exchange_calendars warns of pandas' future on import and on use; nothing that a user could act upon
        warnings.simplefilter("ignore")
        import exchange_calendars

        known = exchange_calendars.get_calendar_names()
        if name not in known:
            raise ConfigError(f"feed.calendar: there is no exchange calendar {name!r}{nearest(name, known)}")
        fault = ""
        attempts = [(start - _PAD_BEFORE, end + pad) for pad in _PADS_AFTER]
        for first, last in [*attempts, (start, end)]:
            try:
                calendar = exchange_calendars.get_calendar(name, start=first.isoformat(), end=last.isoformat())
            except ValueError as error:
                fault = str(error)
                continue
            days = [stamp.date() for stamp in calendar.sessions]
            opens = [_utc(nanos) for nanos in calendar.opens_nanos.tolist()]
            closes = [_utc(nanos) for nanos in calendar.closes_nanos.tolist()]
            return list(zip(days, opens, strict=True)), list(zip(days, closes, strict=True))
    raise ConfigError(f"feed.calendar: {name} does not cover {start} to {end}: {' '.join(fault.split())}")


def _utc(nanos: int) -> datetime:
    return datetime.fromtimestamp(nanos // 1_000_000_000, UTC)
