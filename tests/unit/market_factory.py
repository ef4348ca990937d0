"""Synthetic market data for tests: seeded walks, trends, snapshots, news items and filings, all small and dated."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np

from agents.policies.base import PolicyRequest
from data_pipeline.features import regime_inputs
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import AgentOutput, BarWindow, Filing, MarketSnapshot, NewsItem, PortfolioState, RegimeInputs
from utils.schema.market import FloatArray

AS_OF = datetime(2014, 6, 2, 20, 0, tzinfo=UTC)
DETECTOR = MarketRegimeDetector()


def window(
    close: FloatArray,
    *,
    open: FloatArray | None = None,
    high: FloatArray | None = None,
    low: FloatArray | None = None,
    volume: FloatArray | None = None,
) -> BarWindow:
    """Return a read-only window that ends on the day of `AS_OF`, one weekday a bar; what is not given is derived."""
    close = np.ascontiguousarray(close, dtype=np.float64)
    size = len(close)
    opened = np.concatenate([close[:1], close[:-1]]) if open is None else open
    high = np.maximum(opened, close) if high is None else high
    low = np.minimum(opened, close) if low is None else low
    volume = np.full(size, 1e6) if volume is None else volume
    sessions = np.busday_offset(np.datetime64(AS_OF.date()), np.arange(1 - size, 1), roll="backward")
    arrays = [np.ascontiguousarray(values, dtype=np.float64) for values in (opened, high, low, close, volume)]
    for values in (*arrays, sessions):
        values.setflags(write=False)
    return BarWindow(sessions, *arrays)


def make_bars(n: int = 300, drift: float = 0.0, vol: float = 0.015, seed: int = 0, price: float = 100.0) -> BarWindow:
    """Return a geometric random walk.

    Parameters
    ----------
    n : int
        Bars.
    drift, vol : float
        Mean and standard deviation of the daily log return.
    price : float
        The first close, USD.
    """
    rng = np.random.default_rng(seed)
    close = price * np.exp(np.cumsum(rng.normal(drift, vol, n)))
    opened = np.concatenate([close[:1], close[:-1]]) * np.exp(rng.normal(0, vol / 4, n))
    high = np.maximum(opened, close) * np.exp(np.abs(rng.normal(0, vol / 2, n)))
    low = np.minimum(opened, close) * np.exp(-np.abs(rng.normal(0, vol / 2, n)))
    return window(close, open=opened, high=high, low=low, volume=rng.lognormal(14, 0.3, n))


def make_news(
    text: str, hours_old: float = 1.0, symbol: str = "AAPL", tickers: Sequence[str] = (), source: str = "wire"
) -> NewsItem:
    """Return a news item published `hours_old` hours before `AS_OF`."""
    published = AS_OF - timedelta(hours=hours_old)
    item_id = hashlib.sha256(f"{symbol}|{published.isoformat()}|{text}".encode()).hexdigest()[:16]
    return NewsItem(item_id, symbol, text, published, published, source, tuple(tickers))


def make_filing(metrics: Mapping[str, float], period_end: date, symbol: str = "AAPL") -> Filing:
    """Return a filing published 30 days after the end of its period."""
    filed = datetime(period_end.year, period_end.month, period_end.day, 21, tzinfo=UTC) + timedelta(days=30)
    return Filing(f"{symbol}-{period_end.isoformat()}", symbol, period_end, filed, filed, dict(metrics), "10-Q")


def make_snapshot(
    bars: BarWindow | None = None,
    *,
    symbol: str = "AAPL",
    news: Sequence[NewsItem] = (),
    filings: Sequence[Filing] = (),
    inputs: RegimeInputs | None = None,
    stale: bool = False,
    as_of: datetime = AS_OF,
) -> MarketSnapshot:
    """Return a snapshot; regime inputs are computed from the bars unless given."""
    bars = make_bars() if bars is None else bars
    inputs = regime_inputs(bars) if inputs is None else inputs
    digest = hashlib.sha256(
        bars.close.tobytes() + repr((symbol, news, filings, inputs, stale, as_of)).encode()
    ).hexdigest()
    return MarketSnapshot(symbol, as_of, as_of.date(), bars, tuple(news), tuple(filings), inputs, stale, digest)


def make_request(
    snapshot: MarketSnapshot | None = None,
    agent_outputs: Mapping[str, AgentOutput] | None = None,
    portfolio: PortfolioState | None = None,
) -> PolicyRequest:
    """Return a request on a snapshot with the regime of its inputs."""
    snapshot = make_snapshot() if snapshot is None else snapshot
    return PolicyRequest(snapshot, DETECTOR.detect_regime(snapshot.inputs), dict(agent_outputs or {}), portfolio)
