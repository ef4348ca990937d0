"""What the filings known at t say: the newest figure of each kind, what follows from them, and the multiples' own history.

Called by the fundamental rules policy and by whoever holds an output against the filings. Every figure keeps the filing it stands in, or the parts it was computed from; a
figure that neither is filed nor follows from filed ones does not exist here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np

from data_pipeline.rounding import figure
from utils.schema import BarWindow, Filing

MAX_AGE = timedelta(days=400)
"""Older filings say nothing of the company's present state; a yearly report stays valid until the next is due."""

YEAR_DAYS = (350, 380)
"""Days between the ends of two periods that are compared year on year."""

MIN_HISTORY = 3
MAX_HISTORY = 12
MAX_PE = 1000.0
MAX_DERIVED = 100.0
"""Largest margin or growth that is computed: a hundredfold says only that the base was near zero."""

MULTIPLES = ("pe_ratio", "ps_ratio", "pb_ratio")
"""In the order in which they are trusted to say whether a share is dear."""

UNITS = {
    "pe_ratio": "ratio",
    "ps_ratio": "ratio",
    "pb_ratio": "ratio",
    "revenue_growth": "fraction",
    "earnings_growth": "fraction",
    "profit_margin": "fraction",
    "operating_margin": "fraction",
    "return_on_equity": "fraction",
    "debt_to_equity": "ratio",
    "current_ratio": "ratio",
    "interest_cover": "ratio",
    "interest_coverage": "ratio",
    "eps": "USD",
    "revenue": "USD",
    "net_income": "USD",
}
"""Metrics that are understood, with their units; others in a filing are left alone."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it stands. `filing` is None for one that was computed from others."""

    name: str
    value: float
    filing: Filing | None
    event_time: datetime
    available_at: datetime

    @property
    def evidence_id(self) -> str:
        """The filing and the metric's name, or ``derived:`` and the name."""
        return f"{self.filing.filing_id}:{self.name}" if self.filing else f"derived:{self.name}"


@dataclass(frozen=True, slots=True)
class FilingFigures:
    """The newest figure of each kind, those that support derived ones, and the age of the newest filing."""

    newest: Filing
    figures: dict[str, Figure]
    parts: tuple[Figure, ...] = ()
    multiple: str | None = None
    multiple_now: float | None = None
    multiple_median: float | None = None
    notes: tuple[str, ...] = ()

    def value(self, *names: str) -> float | None:
        """Return the first figure there is of several names, None without any."""
        return next((self.figures[name].value for name in names if name in self.figures), None)


def read_filings(
    filings: Sequence[Filing], as_of: datetime, bars: BarWindow, price: float | None
) -> FilingFigures | None:
    """Return what the filings say, None where none is recent or understood.

    Parameters
    ----------
    filings : sequence of Filing
        Known at `as_of`, in any order.
    bars : BarWindow
        For the price on the day of a filing, in the share units of today.
    price : float or None
        The present one, USD; None where it is unknown or stale.
    """
    known = sorted(filings, key=lambda filing: (filing.period_end, filing.available_at, filing.filing_id))
    if not known or as_of - max(filing.available_at for filing in known) > MAX_AGE:
        return None
    newest = known[-1]
    figures: dict[str, Figure] = {}
    for filing in known:
        if newest.period_end - filing.period_end <= MAX_AGE:
            for name, value in filing.metrics.items():
                if name in UNITS and math.isfinite(value):
                    figures[name] = _stated(filing, name, value)
    notes = []
    pe_ratio = figures.get("pe_ratio")
    if pe_ratio is not None and not 0 < pe_ratio.value <= MAX_PE:
        del figures["pe_ratio"]
        notes.append("earnings are too small or negative for a price/earnings ratio to mean anything")
    parts = _derive(figures, known)
    if not figures:
        return None
    multiple, now, median = _multiple(figures, known, bars, price)
    return FilingFigures(newest, figures, parts, multiple, now, median, tuple(notes))


def _stated(filing: Filing, name: str, value: float) -> Figure:
    return Figure(name, float(value), filing, filing.event_time, filing.available_at)


def _derive(figures: dict[str, Figure], known: Sequence[Filing]) -> tuple[Figure, ...]:
    """Add margin and growth where they follow from one filing, or from two that lie a year apart; return the parts."""
    parts: list[Figure] = []
    revenue, income = figures.get("revenue"), figures.get("net_income")
    if "profit_margin" not in figures and revenue and income and revenue.filing is income.filing and revenue.value > 0:
        margin = income.value / revenue.value
        if abs(margin) <= MAX_DERIVED:
            figures["profit_margin"] = _derived("profit_margin", margin, revenue)
    for growth, source in (("revenue_growth", "revenue"), ("earnings_growth", "eps")):
        newest = figures.get(source)
        if growth in figures or newest is None or newest.filing is None:
            continue
        before = _year_before(known, newest.filing.period_end, source)
        if before is not None and before.metrics[source] > 0:
            change = newest.value / before.metrics[source] - 1
            if abs(change) <= MAX_DERIVED:
                figures[growth] = _derived(growth, change, newest)
                parts.append(_stated(before, source, before.metrics[source]))
    return tuple(parts)


def _derived(name: str, value: float, newest_part: Figure) -> Figure:
    return Figure(name, figure(value), None, newest_part.event_time, newest_part.available_at)


def _year_before(known: Sequence[Filing], period_end: date, name: str) -> Filing | None:
    for filing in reversed(known):
        if YEAR_DAYS[0] <= (period_end - filing.period_end).days <= YEAR_DAYS[1] and name in filing.metrics:
            return filing
    return None


def _multiple(
    figures: dict[str, Figure], known: Sequence[Filing], bars: BarWindow, price: float | None
) -> tuple[str | None, float | None, float | None]:
    """Return the best multiple there is, its present size, and the median of its own past (None below three values).

    A filed multiple is as old as its filing; today's is that times the move of the price since.
    """
    for name in MULTIPLES:
        filed = figures.get(name)
        if filed is None or filed.filing is None or filed.value <= 0:
            continue
        past = [f.metrics[name] for f in known if f is not filed.filing and f.metrics.get(name, 0.0) > 0][-MAX_HISTORY:]
        if name == "pe_ratio":
            past = [value for value in past if value <= MAX_PE]
        now = filed.value * _move_since(filed.available_at.date(), bars, price)
        return name, now, statistics.median(past) if len(past) >= MIN_HISTORY else None
    return None, None, None


def _move_since(day: date, bars: BarWindow, price: float | None) -> float:
    """Return today's price over that of the last session up to `day`, 1 where either is unknown."""
    if price is None or not len(bars):
        return 1.0
    position = int(np.searchsorted(bars.sessions, np.datetime64(day), side="right")) - 1
    return price / float(bars.close[position]) if position >= 0 else 1.0
