"""Sound outputs of the project's own agents on real history, a stream of them with the facts each was made on.

The taxonomy benchmark and the tests of fault injection read it. Bars and news are those of a replay folder or of the
bundled sample, filings are generated, peers and present multiples are added as a richer agent would; labels say which.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from agents.base_agent import narrowed
from agents.policies.base import PolicyRequest
from agents.policies.rules import RulesFundamental, RulesNews, RulesStrategist, RulesTechnical
from benchmarks.generated_filings import GeneratedCompany, sector_of
from data_pipeline.feeds.replay import SAMPLE, ReplayFeed
from evaluation.fault_injection import Sample
from evaluation.ground_truth import GroundTruth
from orchestration.history_walk import walk
from utils.clock import isoformat
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import AgentOutput, AgentType, MarketSnapshot, PortfolioState

LEAST_BARS = 55
GENERATED, ENRICHED = "generated filings", "enriched"
SAMPLE_PERIOD = (date(2008, 1, 2), date(2013, 2, 28))
"""Of the bundled sample: crisis, recovery and calm."""

_POLICIES = {"news": RulesNews(), "technical": RulesTechnical(), "fundamental": RulesFundamental()}
_STRATEGIST = RulesStrategist()
_DETECTOR = MarketRegimeDetector()


@dataclass(frozen=True)
class Made:
    """The outputs on one symbol at one instant, and what they were made on."""

    snapshot: MarketSnapshot
    outputs: dict[AgentType, AgentOutput]
    portfolio: PortfolioState


def clean_outputs(
    replay_dir: str | Path | None = None, seed: int = 42, share: float = 0.05, symbols: tuple[str, ...] | None = None
) -> Iterator[Sample]:
    """Yield sound outputs, session by session, until the history ends.

    Parameters
    ----------
    replay_dir : path, optional
        A replay folder; None takes the bundled sample.
    seed : int
        Of the draws of symbols, portfolios and additions.
    share : float
        Of all symbols and sessions, 0..1.
    symbols : tuple of str, optional
        All that the folder holds by default.
    """
    rng = random.Random(seed)
    period = SAMPLE_PERIOD if replay_dir is None else (None, None)
    feed = ReplayFeed(replay_dir or SAMPLE, symbols, *period)
    companies: dict[str, GeneratedCompany] = {}
    sectors = {symbol: sector_of(symbol) for symbol in feed.symbols}
    last: dict[str, list[Sample]] = {}
    for close in walk(feed):
        for symbol in close.view.symbols:
            bar = close.view.last_bar(symbol)
            if bar is None:
                continue
            if symbol not in companies:
                companies[symbol] = GeneratedCompany(symbol, bar.session, bar.close)
            company = companies[symbol]
            while company.due < close.session:
                company.file(bar.close)
            if rng.random() >= share:
                continue
            snapshot = close.view.snapshot(symbol, close.session)
            if len(snapshot.bars) >= LEAST_BARS:
                filings = tuple(filing for filing in company.filings if filing.available_at <= close.at)
                snapshot = narrowed(snapshot, GENERATED, filings=filings)
                made = _made(snapshot, _portfolio(rng, symbol, sorted(sectors)))
                for sample in _samples(made, sectors, rng):
                    yield _with_peer(sample, last)


def _made(snapshot: MarketSnapshot, portfolio: PortfolioState) -> Made:
    regime = _DETECTOR.detect_regime(snapshot.inputs)
    request = PolicyRequest(snapshot, regime)
    outputs: dict[Any, AgentOutput] = {name: policy.decide_many([request])[0] for name, policy in _POLICIES.items()}
    asked = PolicyRequest(snapshot, regime, dict(outputs), portfolio)
    return Made(snapshot, {**outputs, "strategist": _STRATEGIST.decide_many([asked])[0]}, portfolio)


def _portfolio(rng: random.Random, symbol: str, symbols: list[str]) -> PortfolioState:
    """Return a book that is empty, holds the symbol, or is nearly full, holding it or not."""
    kind = rng.choice(("empty", "holding", "full", "full without it"))
    weights: dict[str, float] = {}
    if kind != "empty":
        cash = rng.uniform(0.3, 0.7) if kind == "holding" else rng.uniform(0.005, 0.03)
        if kind != "full without it":
            weights[symbol] = round(rng.uniform(0.02, 0.08), 4)
        others = [name for name in symbols if name != symbol] or ["OTHER"]
        rest = 1 - cash - sum(weights.values())
        for name in rng.sample(others, min(len(others), 10)):
            weights[name] = round(rest / min(len(others), 10), 4)
    return PortfolioState(100_000.0, round(100_000.0 * (1 - sum(weights.values())), 2), weights)


def _samples(made: Made, sectors: dict[str, str], rng: random.Random) -> Iterator[Sample]:
    """Yield the four outputs, the strategist's with those it was given; fundamental ones at times enriched."""
    juniors = {name: output for name, output in made.outputs.items() if name != "strategist"}
    for name, output in made.outputs.items():
        truth = GroundTruth(
            made.snapshot,
            juniors if name == "strategist" else {},
            (),
            made.portfolio,
            False,
            {},
            sectors,
        )
        labels = (GENERATED,) if name in ("fundamental", "strategist") else ()
        dumped = output.model_dump(mode="json")
        if name == "fundamental" and not output.abstained and rng.random() < 0.6:
            dumped, labels = _enriched(dumped, made.snapshot, sectors, rng), (GENERATED, ENRICHED)
        yield Sample(name, dumped, truth, labels)


def _enriched(
    output: dict[str, Any], snapshot: MarketSnapshot, sectors: dict[str, str], rng: random.Random
) -> dict[str, Any]:
    """Add what a richer analyst would: today's price over filed earnings, and a peer of the same sector.

    The rules state a multiple only where one is filed, and never compare with peers.
    """
    output = {**output, "key_metrics": dict(output["key_metrics"]), "evidence": list(output["evidence"])}
    eps, price = output["key_metrics"].get("eps", 0.0), snapshot.price
    at = isoformat(snapshot.as_of)
    blank = {"bar_interval": None, "sector": None, "tickers": None, "event_time": at, "available_at": at}
    if eps > 0 and price and "pe_ratio" not in output["key_metrics"]:
        value = round(price / eps, 4)
        output["key_metrics"]["pe_ratio"] = value
        output["evidence"] += [
            {
                "id": "derived:pe_ratio",
                "kind": "derived",
                "value": value,
                "unit": "ratio",
                "source": "filings",
                **blank,
            },
        ]
        if not any(item["id"] == "bar:close" for item in output["evidence"]):
            close = {"id": "bar:close", "kind": "price", "value": round(price, 4), "unit": "USD", "source": "bars"}
            output["evidence"].append({**blank, **close, "bar_interval": "1d"})
    own = sectors[snapshot.symbol]
    peers = sorted(name for name, sector in sectors.items() if sector == own and name != snapshot.symbol)
    if peers:
        peer = rng.choice(peers)
        item = {"id": f"peer:{peer}:pe_ratio", "kind": "peer", "value": round(rng.uniform(9, 30), 2), "unit": "ratio"}
        output["evidence"].append({**blank, **item, "source": "peer group", "sector": own, "tickers": [peer]})
    return output


def _with_peer(sample: Sample, last: dict[str, list[Sample]]) -> Sample:
    """Return the sample with the last one of another symbol of its kind; two are kept for each kind."""
    kept = last.setdefault(sample.agent_type, [])
    peer = next((other for other in reversed(kept) if other.output["symbol"] != sample.output["symbol"]), None)
    if not sample.output["abstained"]:
        kept.append(sample)
        del kept[:-2]
    return Sample(sample.agent_type, sample.output, sample.truth, sample.labels, peer)
