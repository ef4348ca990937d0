"""One symbol's daily prices from the lines of a CSV file (``Date,Open,High,Low,Close,Adj Close,Volume``).

The replay feed calls it for every symbol. It believes nothing that it has not checked and looks at no line after the one
it parses, so that a longer file never changes what a shorter one said.
"""

from __future__ import annotations

import csv
import math
from datetime import date, datetime

from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.corporate_actions import as_prior_close_factor
from data_pipeline.feeds.rejections import MalformedRecordError, shown
from utils.schema import Bar

COLUMNS = ("Date", "Open", "High", "Low", "Close", "Adj Close", "Volume")

MIN_DECIMALS = 2
"""US shares are quoted in cents; a writer that prints 27.5 means 27.50."""

_MAX_DECIMALS = 15


class BarParser:
    """Turns the lines of one price file into bars, in order.

    Parameters
    ----------
    symbol : str
        Of the bars.
    header : str
        First line of the file; more columns than `COLUMNS`, in any order, are allowed.
    calendar : ExchangeCalendar
        Gives the time at which a session's bar became available: its close.
    now : datetime
        A bar whose session closes later is refused.
    ex_close_factors : bool
        The adjusted close follows f = 1 + D/C in place of f = 1 / (1 - D/P); see `as_prior_close_factor`.

    Raises
    ------
    MalformedRecordError
        If the header lacks a column.
    """

    def __init__(
        self, symbol: str, header: str, calendar: ExchangeCalendar, now: datetime, *, ex_close_factors: bool = False
    ) -> None:
        names = [name.strip().lower() for name in _fields(header.lstrip("\ufeff"))]
        missing = [column for column in COLUMNS if column.lower() not in names]
        if missing:
            raise MalformedRecordError(
                "columns", f"the header lacks {', '.join(missing)}; expected {','.join(COLUMNS)}"
            )
        self._places = tuple(names.index(column.lower()) for column in COLUMNS)
        self._width = len(names)
        self._symbol = symbol
        self._calendar = calendar
        self._now = now
        self._ex_close_factors = ex_close_factors
        self._last_session: date | None = None
        self._last_close = self._last_adjusted = math.nan
        self._close_decimals = self._adjusted_decimals = MIN_DECIMALS

    def parse(self, line: str) -> Bar:
        """Return the bar of a line.

        Raises
        ------
        MalformedRecordError
            If anything in it is wrong; the parser then stands as if the line had not been there.
        """
        fields = _fields(line)
        if len(fields) != self._width:
            raise MalformedRecordError(
                "columns", f"{len(fields)} fields where the header has {self._width}: {shown(line)}"
            )
        day, *texts = (fields[place] for place in self._places)
        session = self._session(day)
        values = _numbers(texts, line)
        open_, high, low, close, adjusted, volume = values
        if volume < 0:
            raise MalformedRecordError("volume", f"negative volume: {shown(line)}")
        if min(open_, high, low, close, adjusted) <= 0:
            raise MalformedRecordError("price", f"a price is zero or negative: {shown(line)}")
        close_decimals = max(self._close_decimals, _decimals(texts[3]))
        low, high = _range(open_, high, low, close, 10.0**-close_decimals, line)
        self._close_decimals = close_decimals
        self._adjusted_decimals = max(self._adjusted_decimals, _decimals(texts[4]))
        factor, tolerance = self._factor(close, adjusted)
        self._last_session, self._last_close, self._last_adjusted = session, close, adjusted
        closed_at = self._calendar.close_time(session)
        return Bar(
            self._symbol, session, self._calendar.open_time(session), closed_at, closed_at,
            open_, high, low, close, volume, factor, tolerance,
        )  # fmt: skip

    def _session(self, text: str) -> date:
        text = text.strip()
        try:
            session = date.fromisoformat(text)
        except ValueError:
            raise MalformedRecordError("date", f"{shown(text)} is not a date of the form 2014-01-31") from None
        if len(text) != 10:
            raise MalformedRecordError("date", f"{shown(text)} is not a date of the form 2014-01-31")
        if session > self._now.date():
            raise MalformedRecordError("future_date", f"{session} lies in the future")
        if not self._calendar.is_session(session):
            raise MalformedRecordError("not_a_session", f"{self._calendar.name} did not trade on {session}")
        if self._calendar.close_time(session) > self._now:
            raise MalformedRecordError("future_date", f"the session of {session} has not closed yet")
        if self._last_session is not None and session <= self._last_session:
            if session == self._last_session:
                raise MalformedRecordError("duplicate_date", f"{session} stands twice")
            raise MalformedRecordError("descending_date", f"{session} stands after {self._last_session}")
        return session

    def _factor(self, close: float, adjusted: float) -> tuple[float | None, float]:
        """Return the day's adjustment factor and the error that half a unit of each last printed digit leaves in it."""
        if self._last_session is None:
            return None, 0.0
        factor = (adjusted / self._last_adjusted) / (close / self._last_close)
        half_close = 0.5 * 10.0**-self._close_decimals
        half_adjusted = 0.5 * 10.0**-self._adjusted_decimals
        relative = half_close * (1 / close + 1 / self._last_close)
        relative += half_adjusted * (1 / adjusted + 1 / self._last_adjusted)
        tolerance = factor * relative
        if self._ex_close_factors:
            factor = as_prior_close_factor(factor, close, self._last_close, tolerance)
        return factor, tolerance


def _fields(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise MalformedRecordError("columns", f"{error}: {shown(line)}") from None


def _numbers(texts: list[str], line: str) -> list[float]:
    try:
        values = [float(text) for text in texts]
    except ValueError:
        raise MalformedRecordError("not_a_number", f"a field is not a number: {shown(line)}") from None
    # float() reads "1_000" as Python does; no price file means that
    if "_" in line or not all(map(math.isfinite, values)):
        raise MalformedRecordError("not_a_number", f"a field is not a finite number: {shown(line)}")
    return values


def _range(open_: float, high: float, low: float, close: float, unit: float, line: str) -> tuple[float, float]:
    """Return low and high, widened by what rounding to the last printed digit can account for."""
    if high < low:
        raise MalformedRecordError("high_below_low", f"the high lies below the low: {shown(line)}")
    slack = unit * (1 + 1e-9) + 1e-9 * high
    if max(open_, close) > high + slack or min(open_, close) < low - slack:
        raise MalformedRecordError("outside_range", f"open or close lies outside low to high: {shown(line)}")
    return min(low, open_, close), max(high, open_, close)


def _decimals(text: str) -> int:
    point = text.find(".")
    if point < 0 or "e" in text or "E" in text:
        return 0
    return min(len(text.rstrip()) - point - 1, _MAX_DECIMALS)
