"""The series of one symbol as the as-of store keeps them: append-only, indexed by the time of availability.

Only `asof_store` uses it. One thread appends while others read: a row is complete before the count that makes it visible
is raised, and readers take the count before they take the arrays.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import date, datetime

import numpy as np
from numpy.typing import NDArray

from data_pipeline.corporate_actions import actions_of
from utils.errors import FeedDataError
from utils.schema import Bar, BarWindow, CorporateAction, Filing, MarketUpdate, NewsItem

_FIRST_CAPACITY = 256
_PRICES = slice(0, 4)
_VOLUME = 4


class _Buffers:
    """One generation of growing arrays with read-only faces, whose slices are read-only too.

    `values` has shape (5, capacity): open, high, low, close, volume.
    """

    __slots__ = ("capacity", "close", "high", "low", "open", "read", "sessions", "sessions_read", "values", "volume")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.sessions: NDArray[np.datetime64] = np.zeros(capacity, dtype="datetime64[D]")
        self.values = np.zeros((5, capacity))
        self.sessions_read = self.sessions.view()
        self.sessions_read.flags.writeable = False
        self.read = self.values.view()
        self.read.flags.writeable = False
        self.open, self.high, self.low, self.close, self.volume = self.read

    def grown(self) -> _Buffers:
        """Return buffers of twice the capacity with the same rows."""
        larger = _Buffers(self.capacity * 2)
        larger.sessions[: self.capacity] = self.sessions
        larger.values[:, : self.capacity] = self.values
        return larger


class SymbolSeries:
    """Bars, news, filings and corporate actions of one symbol, each ascending in `available_at`.

    The lists are for reading by position below a count that `bisect` finds for t. `watermark` is the newest
    `available_at` of anything added.
    """

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.watermark: datetime | None = None
        self.bars: list[Bar] = []
        self.bar_times: list[datetime] = []
        self.bar_position: dict[date, int] = {}
        self.news: list[NewsItem] = []
        self.news_times: list[datetime] = []
        self.filings: list[Filing] = []
        self.filing_times: list[datetime] = []
        self.actions: list[CorporateAction] = []
        self.action_times: list[datetime] = []
        self.action_sessions: list[date] = []
        self._splits: list[tuple[int, float]] = []
        self._buffers = _Buffers(_FIRST_CAPACITY)

    def add(self, update: MarketUpdate) -> None:
        """Append one update; see `AsOfStore.add` for what is refused."""
        if self.watermark is not None and update.available_at < self.watermark:
            raise FeedDataError(
                f"{self.symbol}: a {update.update_type} available at {update.available_at.isoformat()} "
                f"comes after one available at {self.watermark.isoformat()}"
            )
        # payload before its time: a reader finds positions by the times
        match update.data:
            case Bar() as bar if update.update_type == "bar":
                self._add_bar(bar)
            case NewsItem() as item:
                self.news.append(item)
                self.news_times.append(update.available_at)
            case Filing() as filing:
                self.filings.append(filing)
                self.filing_times.append(update.available_at)
            case _:
                raise FeedDataError(
                    f"{self.symbol}: the store keeps bars, news and filings, not a {update.update_type}"
                )
        self.watermark = update.available_at

    def bar_count(self, t: datetime) -> int:
        """Return how many bars were available at `t`."""
        times = self.bar_times
        count = len(times)
        if count and times[count - 1] <= t:
            return count
        return bisect_right(times, t, 0, count)

    def latest(self, t: datetime) -> datetime | None:
        """Return the newest time of availability up to `t`, None where there is none."""
        known = []
        for times in (self.bar_times, self.news_times, self.filing_times):
            position = bisect_right(times, t)
            if position:
                known.append(times[position - 1])
        return max(known, default=None)

    def window(self, count: int, n: int) -> BarWindow:
        """Return the `n` bars before position `count` in the share units of the last of them.

        Views of the store's own arrays where no split falls into the window, else copies.
        """
        buffers = self._buffers
        rows = slice(max(0, count - n), count)
        splits = [entry for entry in self._splits if rows.start < entry[0] < count] if self._splits else []
        if not splits:
            return BarWindow(
                buffers.sessions_read[rows], buffers.open[rows], buffers.high[rows], buffers.low[rows],
                buffers.close[rows], buffers.volume[rows],
            )  # fmt: skip
        values = buffers.read[:, rows].copy()
        for position, ratio in splits:
            values[_PRICES, : position - rows.start] /= ratio
            values[_VOLUME, : position - rows.start] *= ratio
        values.flags.writeable = False
        return BarWindow(buffers.sessions_read[rows], *values)

    def _add_bar(self, bar: Bar) -> None:
        position = len(self.bars)
        prior = self.bars[-1] if position else None
        if prior is not None and bar.session <= prior.session:
            raise FeedDataError(f"{self.symbol}: the bar of {bar.session} comes after that of {prior.session}")
        if position == self._buffers.capacity:
            self._buffers = self._buffers.grown()
        self._buffers.sessions[position] = np.datetime64(bar.session, "D")
        self._buffers.values[:, position] = (bar.open, bar.high, bar.low, bar.close, bar.volume)
        for action in actions_of(bar, prior.close if prior else None):
            if action.kind == "split":
                self._splits.append((position, action.value))
            self.actions.append(action)
            self.action_sessions.append(action.session)
            self.action_times.append(action.available_at)
        self.bars.append(bar)
        self.bar_position[bar.session] = position
        self.bar_times.append(bar.available_at)


EMPTY_WINDOW = SymbolSeries("").window(0, 0)
"""The window of a symbol without bars."""
