"""What a market tells: bars, news items, filings, corporate actions, and the snapshot of them that a decision may see.

Plain frozen dataclasses, because they are made by the hundred thousand and validated once, where a feed parses them.
Every record says when it happened (`event_time`) and when it could first be known (`available_at`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Bar:
    """One session of one symbol, prices in USD as they were quoted that day.

    `adj_factor` is the day-on-day move of the adjusted close divided by that of the close: 1 on an ordinary day, the
    split ratio on the day of a split, 1/(1 - dividend/prior close) on an ex-dividend day (None where the feed has no
    adjusted close). `factor_tolerance` is the rounding error that the printed digits leave in it.
    """

    symbol: str
    session: date
    open_time: datetime
    event_time: datetime
    available_at: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float
    adj_factor: float | None = None
    factor_tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class NewsItem:
    """A dated text about a symbol. `item_id` is derived from its content; `text` is untrusted."""

    item_id: str
    symbol: str
    text: str
    event_time: datetime
    available_at: datetime
    source: str
    tickers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Filing:
    """A dated set of company figures: `metrics` maps a name to a number (ratios as fractions, money in USD)."""

    filing_id: str
    symbol: str
    period_end: date
    event_time: datetime
    available_at: datetime
    metrics: Mapping[str, float]
    source: str


@dataclass(frozen=True, slots=True)
class CorporateAction:
    """A split (`value` = new shares for one old) or a cash dividend (`value` = USD a share before it)."""

    symbol: str
    session: date
    kind: Literal["split", "dividend"]
    value: float
    available_at: datetime


@dataclass(frozen=True, slots=True)
class MarketUpdate:
    """One thing that a feed delivers. `sequence` orders what one source sends; `ingested_at` is when we took it in."""

    symbol: str
    update_type: Literal["trade", "quote", "aggregate", "bar", "news", "filing"]
    data: Bar | NewsItem | Filing
    event_time: datetime
    available_at: datetime
    source: str
    sequence: int = 0
    ingested_at: datetime | None = None

    @property
    def timestamp(self) -> datetime:
        """The time of the event."""
        return self.event_time


@dataclass(frozen=True, slots=True)
class Instant:
    """Everything that became available up to `at` since the instant before, in order of `available_at`.

    `decide` says that a decision is due now (the close of a session, with the default cadence).
    """

    at: datetime
    session: date
    updates: tuple[MarketUpdate, ...]
    decide: bool = True


FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BarWindow:
    """The last bars of a symbol as parallel arrays of shape (n,), oldest first, in the share units of the newest bar.

    `sessions` are datetime64[D]; `volume` counts shares. The arrays are read-only.
    """

    sessions: NDArray[np.datetime64]
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray

    def __len__(self) -> int:
        return len(self.close)


@dataclass(frozen=True, slots=True)
class RegimeInputs:
    """What the regime is decided on, all free of scale.

    Attributes
    ----------
    volatility : float
        Percentile rank 0..1 of the EWM volatility in the trailing 252 bars; 0.5 where `flags` says it is unknown.
    trend_strength : float
        tanh(τ/2), -1..1.
    news_impact : float
        0..1; 0 where there is no news source.
    daily_volatility : float
        Standard deviation of the last 20 daily log returns (fraction a day), 0 where unknown.
    flags : tuple of str
        Names of inputs that hold their default for want of data.
    """

    volatility: float
    trend_strength: float
    news_impact: float
    daily_volatility: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MarketSnapshot:
    """All that may be known of one symbol at `as_of`; nothing in it became available later.

    `stale` says that the newest bar is not of the present session. `content_hash` covers every field, so that it can
    serve as cache key and audit record.
    """

    symbol: str
    as_of: datetime
    session: date
    bars: BarWindow
    news: tuple[NewsItem, ...]
    filings: tuple[Filing, ...]
    inputs: RegimeInputs
    stale: bool
    content_hash: str

    @property
    def price(self) -> float | None:
        """The newest close in USD, None where there is no bar."""
        return float(self.bars.close[-1]) if len(self.bars) else None
