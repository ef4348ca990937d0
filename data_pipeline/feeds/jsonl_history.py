"""News and filings of one symbol from JSON lines, each line one dated record.

The replay feed calls it for every line. Text is untrusted: it is cleaned of what breaks databases and terminals, cut to
a bounded length, and otherwise left as it is.
"""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import date, datetime
from functools import lru_cache
from typing import Any

from data_pipeline.feeds.rejections import MalformedRecordError, shown
from utils.clock import ensure_utc
from utils.hashing import canonical_json, sha256_hex
from utils.schema import Filing, NewsItem

MAX_TEXT_CHARACTERS = 20_000
"""Longer texts are cut: an article is shorter, and a reader's cost must be bounded."""

DEFAULT_SOURCE = "replay"

# NUL and lone surrogates are refused by PostgreSQL and by UTF-8; the other control characters garble logs and prompts
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]+")
_CASHTAG = re.compile(r"\$ ?([a-z]{1,5}(?:[.\-][a-z]{1,2})?)(?![a-z0-9])", re.IGNORECASE)


def parse_news(line: str, symbol: str, now: datetime) -> NewsItem:
    """Return the news item of a line ``{"published_at", "symbol", "text"[, "source"]}``.

    Raises
    ------
    MalformedRecordError
        If the line is no JSON object, has no time with a zone, lies in the future, is of another symbol or empty.
    """
    record = _object(line)
    published = _instant(record, "published_at", now)
    named = record.get("symbol", symbol)
    if not isinstance(named, str) or named.upper() != symbol:
        raise MalformedRecordError("symbol", f"the record is of {shown(str(named))}, the file of {symbol}")
    raw = record.get("text")
    text = sanitise(raw) if isinstance(raw, str) else ""
    if not text:
        raise MalformedRecordError("text", "the record has no text")
    source = record.get("source")
    return NewsItem(
        item_id=sha256_hex(f"{symbol}\x1f{published.isoformat()}\x1f{text}")[:16],
        symbol=symbol,
        text=text,
        event_time=published,
        available_at=published,
        source=sanitise(source) or DEFAULT_SOURCE if isinstance(source, str) else DEFAULT_SOURCE,
        tickers=cashtags(text),
    )


def parse_filing(line: str, symbol: str, now: datetime) -> Filing:
    """Return the filing of a line ``{"filed_at", "period_end", "metrics": {name: number}}``.

    Raises
    ------
    MalformedRecordError
        If the line is no JSON object, has no filing time with a zone, lies in the future, reports on a period that had
        not ended, or holds a metric that is not a finite number.
    """
    record = _object(line)
    filed = _instant(record, "filed_at", now)
    ended = record.get("period_end")
    try:
        period_end = date.fromisoformat(ended if isinstance(ended, str) else "")
    except ValueError:
        raise MalformedRecordError("undated", f"period_end {shown(str(ended))} is not a date") from None
    if period_end > filed.date():
        raise MalformedRecordError("period_end", f"filed on {filed.date()} for a period that ends on {period_end}")
    metrics = _metrics(record.get("metrics"))
    source = record.get("source")
    return Filing(
        filing_id=sha256_hex(f"{symbol}\x1f{filed.isoformat()}\x1f{period_end}\x1f{canonical_json(metrics)}")[:16],
        symbol=symbol,
        period_end=period_end,
        event_time=filed,
        available_at=filed,
        metrics=metrics,
        source=sanitise(source) or DEFAULT_SOURCE if isinstance(source, str) else DEFAULT_SOURCE,
    )


def sanitise(text: str) -> str:
    """Return `text` without NUL, lone surrogates and control characters, trimmed and cut to `MAX_TEXT_CHARACTERS`."""
    return _UNSAFE.sub(" ", text[:MAX_TEXT_CHARACTERS]).strip()


def cashtags(text: str) -> tuple[str, ...]:
    """Return the tickers marked by a dollar sign, ``$MSFT`` or tokenised ``$ msft``, upper-cased, in order, once each."""
    return _tickers(tuple(_CASHTAG.findall(text))) if "$" in text else ()


@lru_cache(maxsize=4096)
def _tickers(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tickers of tags; a history names few sets of them again and again, and keeps each once."""
    return tuple(dict.fromkeys(sys.intern(tag.upper()) for tag in tags))


def _object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise MalformedRecordError("not_json", f"not a line of JSON: {shown(line)}") from None
    if not isinstance(record, dict):
        raise MalformedRecordError("not_json", f"not a JSON object: {shown(line)}")
    return record


def _instant(record: dict[str, Any], key: str, now: datetime) -> datetime:
    text = record.get(key)
    try:
        instant = ensure_utc(datetime.fromisoformat(text if isinstance(text, str) else ""))
    except (ValueError, OverflowError):
        raise MalformedRecordError("undated", f"{key} {shown(str(text))} is not a time with a time zone") from None
    if instant > now:
        raise MalformedRecordError("future_date", f"{key} {shown(str(text))} lies in the future")
    return instant


def _metrics(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not value:
        raise MalformedRecordError("metrics", "metrics must map names to numbers")
    metrics = {}
    for name, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or abs(number) > 1e300:
            raise MalformedRecordError("metrics", f"metric {shown(name)} is {shown(str(number))}, not a number")
        if not math.isfinite(number):
            raise MalformedRecordError("metrics", f"metric {shown(name)} is not finite")
        metrics[sanitise(name)] = float(number)
    return metrics
