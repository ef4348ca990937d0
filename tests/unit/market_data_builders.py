"""Builders of small replay folders and bars for the tests of the market data path."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from utils.schema import Bar, MarketUpdate, NewsItem

HEADER = "Date,Open,High,Low,Close,Adj Close,Volume"


def price_line(day: str, close: float = 100.0, adjusted: float | None = None, volume: float = 1000) -> str:
    adjusted = close if adjusted is None else adjusted
    return f"{day},{close:.2f},{close + 1:.2f},{close - 1:.2f},{close:.2f},{adjusted:.6f},{volume:.0f}"


def write_prices(folder: Path, symbol: str, lines: Iterable[str], header: str = HEADER) -> Path:
    path = folder / "prices" / f"{symbol}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def news_record(at: str, text: str = "beats estimates", symbol: str = "AAA") -> dict[str, Any]:
    return {"published_at": at, "symbol": symbol, "text": text}


def write_news(folder: Path, symbol: str, records: Sequence[dict[str, Any] | str], compress: bool = False) -> Path:
    path = folder / "news" / (f"{symbol}.jsonl.gz" if compress else f"{symbol}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if compress else data)
    return path


def write_filings(folder: Path, symbol: str, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "fundamentals" / f"{symbol}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def make_bar(
    number: int, close: float, *, symbol: str = "AAA", volume: float = 1000.0, factor: float | None = 1.0
) -> Bar:
    """Return the bar of the `number`-th day from 2014-01-01, weekends and all: the store does not mind."""
    day = date(2014, 1, 1) + timedelta(days=number)
    closed = datetime(day.year, day.month, day.day, 21, tzinfo=UTC)
    opened = closed - timedelta(hours=6, minutes=30)
    return Bar(
        symbol, day, opened, closed, closed, close * 0.99, close * 1.02, close * 0.98, close, volume, factor, 1e-6
    )


def bar_update(bar: Bar) -> MarketUpdate:
    return MarketUpdate(bar.symbol, "bar", bar, bar.event_time, bar.available_at, "test")


def news_update(
    at: datetime, text: str = "beats estimates", symbol: str = "AAA", item_id: str | None = None
) -> MarketUpdate:
    item = NewsItem(item_id or f"{at.timestamp():.0f}", symbol, text, at, at, "test")
    return MarketUpdate(symbol, "news", item, at, at, "test")
