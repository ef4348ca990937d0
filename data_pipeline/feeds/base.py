"""The seam between the product and any source of market data.

A feed hands over history first, then instants in order of time. It parses and validates at its own border: what comes
out is a typed record with `event_time` and `available_at`, or it was rejected and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal, Protocol

from data_pipeline.calendar import ExchangeCalendar
from utils.schema import Instant, MarketUpdate


class MarketFeed(Protocol):
    """A source of market data for a fixed set of symbols.

    Failure contract: a malformed record is skipped, counted in `rejected` by reason and logged with its place; a symbol
    without data is empty, not an error; a setting that cannot work (no folder, unknown symbol) raises `ConfigError` in
    the constructor; a lost connection is repaired inside and never surfaces as an exception.

    Attributes
    ----------
    name : str
        For people, for example ``replay:sample``.
    mode : {"live", "replay", "simulated"}
        Results of a simulated feed are never called performance.
    symbols : tuple of str
        Sorted and unique.
    total_instants : int or None
        How many instants `instants` yields from the start, None for a live feed.
    rejected : dict of str to int
        Number of rejected records by reason.
    calendar : ExchangeCalendar
        The exchange whose sessions the instants follow.
    """

    name: str
    mode: Literal["live", "replay", "simulated"]
    symbols: tuple[str, ...]
    total_instants: int | None
    rejected: dict[str, int]
    calendar: ExchangeCalendar

    def history(self) -> Iterator[MarketUpdate]:
        """Yield what was available before the first instant, in order of `available_at`, for warming up."""
        ...

    def instants(self, after: datetime | None = None) -> Iterator[Instant]:
        """Yield the instants in order of time; blocks until the next one, ends when the feed has ended.

        A replay begins at its start all the same, but does not wait before instants up to `after`: they were lived once. A
        live feed has none of them.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Return what identifies the data: feed name, period, and a content hash of every file behind it."""
        ...

    def close(self) -> None:
        """Stop `instants` and release connections; idempotent, may be called from another thread."""
        ...
