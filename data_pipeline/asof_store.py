"""The only way to read market data: what was known at t, and nothing else, whatever has been loaded since.

One thread adds what a feed delivers, any number of threads read through `AsOfView`. A view cuts every series at
`available_at` <= t by position, so that a snapshot of the past is the same before and after the future has been loaded.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from datetime import date, datetime, timedelta

from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.features import news_activity, regime_inputs
from data_pipeline.symbol_series import EMPTY_WINDOW, SymbolSeries
from utils.clock import ensure_utc, isoformat
from utils.schema import Bar, BarWindow, CorporateAction, Filing, MarketSnapshot, MarketUpdate, NewsItem, RegimeInputs

NEWS_LOOKBACK = timedelta(days=7)
DEFAULT_LOOKBACK_BARS = 300


class AsOfStore:
    """Market data of all symbols, readable as of any instant.

    Parameters
    ----------
    calendar : ExchangeCalendar
        For whoever reads and needs sessions; the store itself keeps to what the records say.
    lookback : int
        Bars in a snapshot.
    """

    def __init__(self, calendar: ExchangeCalendar, lookback: int = DEFAULT_LOOKBACK_BARS) -> None:
        if lookback < 1:
            raise ValueError(f"lookback must be at least 1 bar, got {lookback}")
        self.calendar = calendar
        self.lookback = lookback
        self._series: dict[str, SymbolSeries] = {}

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of which anything has been added, sorted."""
        return tuple(sorted(self._series))

    @property
    def latest_instant(self) -> datetime | None:
        """The newest `available_at` of anything added, None while there is nothing."""
        return max((series.watermark for series in list(self._series.values()) if series.watermark), default=None)

    def add(self, update: MarketUpdate) -> None:
        """Take in one update.

        Raises
        ------
        FeedDataError
            If it became available before something that its symbol already has, or its bar's session is not newer: to
            insert it would change what was known at an instant that may have been read. Also for a kind of update that
            is no bar, news item or filing.
        """
        series = self._series.get(update.symbol)
        if series is None:
            series = SymbolSeries(update.symbol)
            series.add(update)
            self._series[update.symbol] = series
        else:
            series.add(update)

    def as_of(self, t: datetime) -> AsOfView:
        """Return a view of what was available at `t`, in UTC."""
        return AsOfView(self, ensure_utc(t))

    def series(self, symbol: str) -> SymbolSeries | None:
        """Return the raw series of a symbol. For `AsOfView` alone: it is not cut at any time."""
        return self._series.get(symbol)


class AsOfView:
    """What was known at one instant. Cheap to make and to throw away; safe to use while another thread adds."""

    __slots__ = ("_store", "at")

    def __init__(self, store: AsOfStore, at: datetime) -> None:
        self._store = store
        self.at = at

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of which anything was known, sorted."""
        series = ((symbol, self._store.series(symbol)) for symbol in self._store.symbols)
        return tuple(symbol for symbol, known in series if known and known.latest(self.at))

    @property
    def latest_instant(self) -> datetime | None:
        """The newest `available_at` of anything known, None where there was nothing."""
        instants = (known.latest(self.at) for name in self._store.symbols if (known := self._store.series(name)))
        return max((instant for instant in instants if instant), default=None)

    def bars(self, symbol: str, n: int) -> BarWindow:
        """Return the last `n` bars in the share units of the newest one; fewer, down to none, where there are fewer."""
        series = self._store.series(symbol)
        return series.window(series.bar_count(self.at), n) if series else EMPTY_WINDOW

    def last_bar(self, symbol: str) -> Bar | None:
        """Return the newest bar with prices as quoted, None where there is none."""
        series = self._store.series(symbol)
        count = series.bar_count(self.at) if series else 0
        return series.bars[count - 1] if series and count else None

    def bar(self, symbol: str, session: date) -> Bar | None:
        """Return the bar of a session with prices as quoted, None where there is none."""
        series = self._store.series(symbol)
        position = series.bar_position.get(session) if series else None
        if series is None or position is None or series.bars[position].available_at > self.at:
            return None
        return series.bars[position]

    def news(self, symbol: str, lookback: timedelta = NEWS_LOOKBACK, limit: int | None = None) -> tuple[NewsItem, ...]:
        """Return the news of (t - lookback, t], oldest first; of more than `limit` the newest."""
        series = self._store.series(symbol)
        if series is None:
            return ()
        end = bisect_right(series.news_times, self.at)
        start = bisect_right(series.news_times, self.at - lookback, 0, end)
        if limit is not None:
            start = max(start, end - limit)
        return tuple(series.news[start:end])

    def filings(self, symbol: str) -> tuple[Filing, ...]:
        """Return all filings, oldest first."""
        series = self._store.series(symbol)
        return tuple(series.filings[: bisect_right(series.filing_times, self.at)]) if series else ()

    def actions(self, symbol: str, after: date) -> tuple[CorporateAction, ...]:
        """Return the corporate actions of sessions later than `after`, in the order in which to book them."""
        series = self._store.series(symbol)
        if series is None:
            return ()
        end = bisect_right(series.action_times, self.at)
        start = bisect_right(series.action_sessions, after, 0, end)
        return tuple(series.actions[start:end])

    def snapshot(self, symbol: str, session: date) -> MarketSnapshot:
        """Return all that may be known of a symbol at t.

        Parameters
        ----------
        symbol : str
            May be one of which nothing is known: the snapshot is then empty and stale.
        session : date
            The present session; the snapshot is stale if the newest bar is of another.
        """
        series = self._store.series(symbol)
        count = series.bar_count(self.at) if series else 0
        window = series.window(count, self._store.lookback) if series else EMPTY_WINDOW
        news, filings = self.news(symbol), self.filings(symbol)
        activity = news_activity(series.news, series.news_times, self.at) if series else None
        inputs = regime_inputs(window, activity)
        stale = series is None or count == 0 or series.bars[count - 1].session != session
        digest = _content_hash(symbol, self.at, session, window, news, filings, inputs, stale)
        return MarketSnapshot(symbol, self.at, session, window, news, filings, inputs, stale, digest)


def _content_hash(
    symbol: str,
    at: datetime,
    session: date,
    window: BarWindow,
    news: tuple[NewsItem, ...],
    filings: tuple[Filing, ...],
    inputs: RegimeInputs,
    stale: bool,
) -> str:
    """Return the SHA-256 over every field of a snapshot; news and filings count by their content-derived identities."""
    head = "\x1f".join(
        (symbol, isoformat(at), session.isoformat(), str(stale), str(len(window)), *inputs.flags, "",
         *[item.item_id for item in news], "", *[filing.filing_id for filing in filings])
    )  # fmt: skip
    digest = hashlib.sha256(head.encode())
    digest.update(
        struct.pack("<4d", inputs.volatility, inputs.trend_strength, inputs.news_impact, inputs.daily_volatility)
    )
    digest.update(window.sessions.view("int64").data)
    for values in (window.open, window.high, window.low, window.close, window.volume):
        digest.update(values.data)
    return digest.hexdigest()
