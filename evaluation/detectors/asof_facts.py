"""What the market data known at a decision say, computed once and shared by the detectors of all its outputs.

A detector asks for the price, an indicator, a filed figure or an article and gets what an honest agent would have found,
by the same functions that the agents use. Nothing here knows of outputs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from datetime import date, datetime
from functools import cached_property
from typing import NamedTuple

import numpy as np

from data_pipeline import indicators as indicator_module
from data_pipeline.article_selection import usable_articles
from data_pipeline.chart import BREAKOUT_BARS, find_patterns
from data_pipeline.filing_figures import UNITS as FILING_UNITS
from data_pipeline.filing_figures import FilingFigures, read_filings
from data_pipeline.indicators import MIN_BARS, WINDOWS, compute_indicators
from data_pipeline.rounding import figure, price_figure
from data_pipeline.sentiment import score_text
from utils.schema import Filing, MarketSnapshot, NewsItem
from utils.schema.market import FloatArray

LEVEL_TOLERANCE = 0.01
MULTIPLE_TOLERANCE = 0.02
QUARTERS = 4
CACHED_SNAPSHOTS = 256
"""Decisions in flight at once: all symbols of a session."""

THREE_YEARS_DAYS = (1065, 1125)


class Citable(NamedTuple):
    """A fact that evidence can cite, with the unit and time it has.

    `event_time` is an instant for articles and filings, the date of the newest bar for what rests on bars.
    """

    kind: str
    value: float | str
    unit: str
    event_time: datetime | date
    floor: float


class AsOfFacts:
    """Facts of one snapshot, each computed when it is first asked for."""

    def __init__(self, snapshot: MarketSnapshot) -> None:
        self.snapshot = snapshot
        self._filings_with: dict[str, list[Filing]] = {}

    @cached_property
    def price(self) -> float | None:
        """The newest close, USD, rounded as agents state it; None without a bar."""
        bars = self.snapshot.bars
        return price_figure(float(bars.close[-1])) if len(bars) else None

    @cached_property
    def last_session(self) -> date | None:
        """The date of the newest bar, None without a bar."""
        bars = self.snapshot.bars
        return bars.sessions[-1].astype(object) if len(bars) else None

    @cached_property
    def indicators(self) -> dict[str, float] | None:
        """Indicators of the newest bar, None where there are too few bars to recompute them."""
        bars = self.snapshot.bars
        return compute_indicators(bars) if len(bars) >= MIN_BARS else None

    @cached_property
    def computable(self) -> frozenset[str]:
        """Names of the indicators for which there are enough bars."""
        count = len(self.snapshot.bars)
        return frozenset(name for name, window in WINDOWS.items() if count >= window)

    @cached_property
    def patterns(self) -> frozenset[str] | None:
        """Patterns that their detectors find at the newest bar, None for too few bars."""
        bars = self.snapshot.bars
        return frozenset(find_patterns(bars)) if len(bars) > BREAKOUT_BARS else None

    @cached_property
    def atr(self) -> float | None:
        """ATR, USD; None where it is unknown or 0."""
        return (self.indicators or {}).get("atr_14") or None

    @cached_property
    def participation(self) -> float | None:
        """The newest volume over the mean of 20 bars, None where fewer are known or nothing was traded."""
        bars = self.snapshot.bars
        return indicator_module.participation(bars) if len(bars) >= indicator_module.VOLUME_BARS else None

    @cached_property
    def _extremes(self) -> FloatArray:
        bars = self.snapshot.bars
        return np.sort(np.concatenate([bars.low, bars.high]))

    def nearest_extreme(self, level: float) -> float | None:
        """Return the high or low of a bar that is nearest to a price, None without a bar."""
        place = int(np.searchsorted(self._extremes, level))
        around: list[float] = self._extremes[max(0, place - 1) : place + 1].tolist()
        return min(around, key=lambda value: abs(value - level), default=None)

    @cached_property
    def articles(self) -> list[NewsItem]:
        """The articles that say something about the symbol."""
        snapshot = self.snapshot
        return usable_articles(snapshot.news, snapshot.symbol, snapshot.as_of)

    @cached_property
    def mean_sentiment(self) -> float | None:
        """Mean of the articles' sentiment -1..1, None without an article."""
        articles = self.articles
        return sum(score_text(item.text) for item in articles) / len(articles) if articles else None

    @cached_property
    def news_by_id(self) -> dict[str, NewsItem]:
        """All known articles, usable or not."""
        return {item.item_id: item for item in self.snapshot.news}

    @cached_property
    def filed(self) -> FilingFigures | None:
        """The newest figures, None where no recent filing is understood."""
        snapshot = self.snapshot
        price = None if snapshot.stale else self.price
        return read_filings(snapshot.filings, snapshot.as_of, snapshot.bars, price)

    @cached_property
    def valuation_lean(self) -> float:
        """Median of the multiple's past over its present, minus 1: above 0 where the share is cheap, 0 where unknown."""
        filed = self.filed
        if filed is None or filed.multiple_median is None or not filed.multiple_now:
            return 0.0
        return filed.multiple_median / filed.multiple_now - 1

    def filed_value(self, *names: str) -> float | None:
        """Return the first of several figures that is known, filed or derived."""
        return self.filed.value(*names) if self.filed else None

    @cached_property
    def leverage(self) -> float | None:
        """Debt over equity: filed, else from total debt and equity of the newest filing that has both."""
        value = self.filed_value("debt_to_equity")
        if value is not None:
            return value
        for filing in reversed(self.snapshot.filings):
            debt = filing.metrics.get("total_debt")
            equity = filing.metrics.get("total_equity") or filing.metrics.get("shareholders_equity")
            if debt is not None and equity:
                return debt / equity
        return None

    def filings_with(self, name: str) -> list[Filing]:
        """Return the filings that state a metric, oldest period first."""
        found = self._filings_with.get(name)
        if found is None:
            found = sorted((f for f in self.snapshot.filings if name in f.metrics), key=lambda f: f.period_end)
            self._filings_with[name] = found
        return found

    def multiples(self, name: str) -> list[float]:
        """Return what a multiple can honestly be: as filed, moved with the price since, or the price over earnings."""
        found: list[float] = []
        if self.filed is not None:
            if (stated := self.filed.value(name)) is not None:
                found.append(stated)
            if self.filed.multiple == name and self.filed.multiple_now is not None:
                found.append(self.filed.multiple_now)
        if name == "pe_ratio" and self.price:
            found += price_over_earnings(self.price, [filing.metrics["eps"] for filing in self.filings_with("eps")])
        return found

    def yearly_growth(self, name: str) -> float | None:
        """Return the compound yearly growth of a metric over three years, None where the filings do not reach back."""
        filings = self.filings_with(name)
        for old in reversed(filings):
            days = (filings[-1].period_end - old.period_end).days
            if THREE_YEARS_DAYS[0] <= days <= THREE_YEARS_DAYS[1]:
                first, last = old.metrics[name], filings[-1].metrics[name]
                return float((last / first) ** (1 / 3) - 1) if first > 0 and last > 0 else None
        return None

    def citable(self, evidence_id: str) -> Citable | None:
        """Return the fact that agents cite under an id, None where nothing known has it."""
        if evidence_id.startswith(("bar:", "ind:")):
            return self._bar_facts.get(evidence_id)
        article = self.news_by_id.get(evidence_id)
        if article is not None:
            return Citable("news", article.text, "text", article.event_time, 0.0)
        return self._filed_facts.get(evidence_id)

    def citable_numbers(self, *, bars: bool, filings: bool) -> list[float]:
        """Return the figures of bars, of filings, or of both that can be cited."""
        facts = [*(self._bar_facts.values() if bars else ()), *(self._filed_facts.values() if filings else ())]
        return [fact.value for fact in facts if isinstance(fact.value, float)]

    @cached_property
    def _bar_facts(self) -> dict[str, Citable]:
        bars = self.snapshot.bars
        found: dict[str, Citable] = {}
        if self.last_session is not None and self.price is not None:
            day = self.last_session
            cents = 1e-5 * self.price
            found["bar:close"] = Citable("price", self.price, "USD", day, cents)
            for name in ("open", "high", "low"):
                value = price_figure(float(getattr(bars, name)[-1]))
                found[f"bar:{name}"] = Citable("price", value, "USD", day, cents)
            found["bar:volume"] = Citable("volume", float(bars.volume[-1]), "shares", day, 0.5)
            for name, value in (self.indicators or {}).items():
                unit = indicator_module.UNITS[name]
                found[f"ind:{name}"] = Citable("indicator", value, unit, day, cents if unit == "USD" else 1e-6)
        return found

    @cached_property
    def _filed_facts(self) -> dict[str, Citable]:
        found: dict[str, Citable] = {}
        for filing in self.snapshot.filings:
            for name, value in filing.metrics.items():
                if math.isfinite(value):
                    unit = FILING_UNITS.get(name, "")
                    fact = Citable("filing", float(value), unit, filing.event_time, 1e-6)
                    found[f"{filing.filing_id}:{name}"] = fact
        if self.filed:
            for name, item in self.filed.figures.items():
                if item.filing is None:
                    unit = FILING_UNITS[name]
                    found[item.evidence_id] = Citable("derived", figure(item.value), unit, item.event_time, 1e-6)
        return found

    def by_name(self, name: str) -> Citable | None:
        """Return the fact that a bare name means: the close, an indicator, or a figure of the filings."""
        if name in ("price", "close", "current_price"):
            return self.citable("bar:close")
        if name in WINDOWS:
            return self.citable(f"ind:{name}")
        known = self.filed.figures.get(name) if self.filed else None
        return self.citable(known.evidence_id) if known else None


def price_over_earnings(price: float, earnings: Sequence[float]) -> list[float]:
    """Return the P/E ratios that earnings a share, oldest first, allow: of a year, of a quarter times four, of four quarters."""
    found = []
    if earnings and earnings[-1] > 0:
        found += [price / earnings[-1], price / (QUARTERS * earnings[-1])]
    if len(earnings) >= QUARTERS and sum(earnings[-QUARTERS:]) > 0:
        found.append(price / sum(earnings[-QUARTERS:]))
    return found


class FactsCache:
    """The facts of the last snapshots, so that the outputs of one decision share them."""

    def __init__(self, size: int = CACHED_SNAPSHOTS) -> None:
        self._size = size
        self._facts: OrderedDict[str, AsOfFacts] = OrderedDict()

    def of(self, snapshot: MarketSnapshot | None) -> AsOfFacts | None:
        """Return the facts of a snapshot, None without one."""
        if snapshot is None:
            return None
        facts = self._facts.get(snapshot.content_hash)
        # a hash that somebody set by hand must not pass one snapshot off as another
        if facts is None or facts.snapshot is not snapshot:
            facts = self._facts[snapshot.content_hash] = AsOfFacts(snapshot)
            while len(self._facts) > self._size:
                self._facts.popitem(last=False)
        return facts
