"""Clean outputs of the rules agents on one synthetic company, with all that was known, for tests that damage one field."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

import numpy as np
from market_factory import AS_OF, make_bars, make_filing, make_news, make_request, make_snapshot

from agents.policies.rules import RulesFundamental, RulesNews, RulesStrategist, RulesTechnical
from evaluation.ground_truth import GroundTruth
from utils.schema import AgentOutput, Filing, MarketSnapshot, NewsItem, PortfolioState

NEWS = (
    ("shares surge after record profit and a strong outlook", 3.0),
    ("analysts upgrade the company on strong growth of its services", 9.0),
    ("company beats estimates and raises its outlook for the year", 20.0),
)
PORTFOLIO = PortfolioState(100_000.0, 60_000.0, {"MSFT": 0.1})
_QUARTER_ENDS = ((3, 31), (6, 30), (9, 30), (12, 31))


@dataclass(frozen=True)
class World:
    """A snapshot, the four outputs on it, and what they are held against."""

    snapshot: MarketSnapshot
    outputs: dict[str, AgentOutput]
    truth: GroundTruth

    def raw(self, agent: str) -> dict[str, Any]:
        """The fields of an output as JSON would hold them, to be changed at will."""
        return copy.deepcopy(self.outputs[agent].model_dump(mode="json"))


def quarterly_filings(
    quarters: int = 17, growth: float = 0.03, pe_now: float = 14.0, seed: int = 0, **last: float
) -> tuple[Filing, ...]:
    """Return filings of consecutive quarters up to March 2014; `last` overrides figures of the newest."""
    rng = np.random.default_rng(seed)
    ends = [
        date(year, *end) for year in range(2009, 2015) for end in _QUARTER_ENDS if date(year, *end) < date(2014, 4, 1)
    ]
    filings = []
    for i, end in enumerate(ends[-quarters:]):
        revenue = 4e9 * (1 + growth) ** i
        metrics = {
            "eps": round(1.5 * (1 + growth) ** i, 2),
            "revenue": round(revenue),
            "net_income": round(0.2 * revenue),
            "pe_ratio": round(pe_now * (1 + 0.35 * (i < quarters - 1) + 0.05 * rng.random()), 2),
            "debt_to_equity": round(0.4 + 0.02 * rng.random(), 3),
            "current_ratio": round(1.6 + 0.1 * rng.random(), 3),
            "interest_cover": round(9 + rng.random(), 2),
        }
        filings.append(make_filing(metrics | (last if end == ends[-1] else {}), end))
    return tuple(filings)


def articles(symbol: str = "AAPL") -> tuple[NewsItem, ...]:
    """Three good articles of the last day, tagged with the symbol."""
    return tuple(make_news(text, hours, symbol, tickers=(symbol,)) for text, hours in NEWS)


def build_world(snapshot: MarketSnapshot, portfolio: PortfolioState = PORTFOLIO) -> World:
    """Let the rules agents decide on a snapshot."""
    request = make_request(snapshot)
    juniors: Mapping[str, Any] = {"news": RulesNews(), "technical": RulesTechnical(), "fundamental": RulesFundamental()}
    outputs = {name: policy.decide_many([request])[0] for name, policy in juniors.items()}
    asked = make_request(snapshot, outputs, portfolio)
    decided = RulesStrategist().decide_many([asked])[0]
    truth = GroundTruth(
        snapshot=snapshot,
        agent_outputs=outputs,
        portfolio=portfolio,
        market_open=False,
        sectors={"AAPL": "technology", "IBM": "technology", "XOM": "energy"},
    )
    return World(snapshot, {**outputs, "strategist": decided}, truth)


@cache
def world() -> World:
    """Return the world of a rising share with good news and sound filings: all four agents buy."""
    snapshot = make_snapshot(make_bars(seed=49, drift=0.001), news=articles(), filings=quarterly_filings())
    return build_world(snapshot)


def put(raw: dict[str, Any], pointer: str, value: Any) -> dict[str, Any]:
    """Return the fields with another value at a pointer; `...` takes the field out."""
    *way, last = pointer.split("/")[1:]
    node: Any = raw
    for part in way:
        node = node[int(part)] if isinstance(node, list) else node[part]
    key: Any = int(last) if isinstance(node, list) else last
    if value is ...:
        del node[key]
    else:
        node[key] = value
    return raw


__all__ = ["AS_OF", "PORTFOLIO", "World", "articles", "build_world", "put", "quarterly_filings", "world"]
