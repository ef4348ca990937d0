"""The fundamental analyst by rules: valuation against the company's own history, growth, margins and leverage.

Called through `agents.junior.fundamental_agent` for every symbol at every decision. It reads filings known at that time
and the price; without a recent filing it has no opinion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from agents.base_agent import abstain
from agents.policies.base import PolicyRequest
from agents.policies.rules.figures import bar_evidence, written
from data_pipeline.filing_figures import UNITS, Figure, FilingFigures, read_filings
from data_pipeline.rounding import clip, figure, price_figure
from utils.schema import AgentOutput, AgentType, FundamentalOutput

WEIGHTS = {"valuation": 0.45, "growth": 0.25, "profitability": 0.15, "leverage": 0.15}
"""Of the votes in the score; the weights of those that cannot be cast go to the others."""

SIDE_SCORE = 0.2
STRONG_SCORE = 0.6
MIN_VOTES = 2
CHEAP, DEAR = 0.85, 1.15
"""Present multiple over the median of its past, below and above which a share is under- and overvalued."""

MAX_TARGET_MOVE = 0.4
"""Largest distance of the price target from the price: a multiple seldom returns all the way within a year."""

LEAST_CONFIDENCE, MOST_CONFIDENCE = 0.5, 0.8
FRESH_DAYS, STALE_DAYS = 45.0, 400.0
HIGH_LEVERAGE = 2.0
LEVERED_HEALTH = 0.6
"""Most that financial health can be where debt exceeds twice the equity."""

_CONTRADICTIONS = {(1, "overvalued"), (-1, "undervalued")}
_WORDS = {
    "pe_ratio": "price/earnings",
    "ps_ratio": "price/sales",
    "pb_ratio": "price/book",
}


class RulesFundamental:
    """A `Policy` of filed figures."""

    agent_type: AgentType = "fundamental"
    name = "rules"
    reads_experiences = False
    waits = False
    prompt_hash: str | None = None

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request; without a recent filing that is understood the answer is an abstention."""
        return [self._decide(request) for request in requests]

    def _decide(self, request: PolicyRequest) -> AgentOutput:
        snapshot = request.snapshot
        if not snapshot.filings:
            return abstain(self.agent_type, snapshot.symbol, snapshot.as_of, "no filing is known", self.name)
        price = None if snapshot.stale or snapshot.price is None else price_figure(snapshot.price)
        known = read_filings(snapshot.filings, snapshot.as_of, snapshot.bars, price)
        if known is None:
            reason = "no filing of the last 400 days holds a figure that is understood"
            return abstain(self.agent_type, snapshot.symbol, snapshot.as_of, reason, self.name)
        votes = _votes(known)
        valuation = _valuation(known)
        score = sum(WEIGHTS[name] * vote for name, vote in votes.items()) / sum(
            WEIGHTS[name] for name in votes or WEIGHTS
        )
        side = 0
        if len(votes) >= MIN_VOTES and abs(score) >= SIDE_SCORE:
            side = 1 if score > 0 else -1
        if (side, valuation) in _CONTRADICTIONS:
            side = 0
        word = ("sell", "hold", "buy")[side + 1]
        health = _health(known)
        strengths, risks = _findings(known, valuation)
        return FundamentalOutput.model_validate(
            {
                "symbol": snapshot.symbol,
                "as_of": snapshot.as_of,
                "recommendation": f"strong_{word}" if side and abs(score) >= STRONG_SCORE else word,
                "confidence": figure(_confidence(side, score, len(votes), known.newest.available_at, snapshot.as_of)),
                "reasoning": _reasoning(word, valuation, known, health, votes),
                "signals": votes,
                "evidence": _evidence(known, price, snapshot.as_of),
                "policy": self.name,
                "valuation": valuation,
                "financial_health": health,
                "growth_quality": _growth_quality(known),
                "key_metrics": {name: item.value for name, item in known.figures.items()},
                "key_strengths": strengths,
                "key_risks": risks,
                "price_target": _target(known, price),
            }
        )


def _ratio(known: FilingFigures) -> float | None:
    """Return the present multiple over the median of its past within 0.001..1000, None where either is unknown."""
    if known.multiple_now is None or known.multiple_median is None:
        return None
    return clip(known.multiple_now / known.multiple_median, 1e-3, 1e3)


def _valuation(known: FilingFigures) -> str:
    ratio = _ratio(known)
    if ratio is None or CHEAP <= ratio <= DEAR:
        return "fairly_valued"
    return "undervalued" if ratio < CHEAP else "overvalued"


def _votes(known: FilingFigures) -> dict[str, float]:
    """Return the votes -1..1 that the figures allow."""
    votes: dict[str, float] = {}
    ratio = _ratio(known)
    if ratio is not None:
        votes["valuation"] = figure(clip(-math.log(ratio) / math.log(1.5)))
    growth = known.value("revenue_growth", "earnings_growth")
    if growth is not None:
        votes["growth"] = figure(math.tanh((growth - 0.05) / 0.15))
    margin = known.value("profit_margin", "operating_margin")
    if margin is not None:
        votes["profitability"] = figure(math.tanh((margin - 0.08) / 0.12))
    debt = known.value("debt_to_equity")
    if debt is not None:
        # negative equity is the worst leverage there is
        votes["leverage"] = figure(math.tanh((1.0 - debt) / 1.0)) if debt >= 0 else -1.0
    return votes


def _health(known: FilingFigures) -> float:
    """Return 0..1 from debt, liquidity, interest cover and margin; 0.5 where nothing is known."""
    debt, cover = known.value("debt_to_equity"), known.value("interest_cover", "interest_coverage")
    current, margin = known.value("current_ratio"), known.value("profit_margin", "operating_margin")
    health = 0.5
    if debt is not None:
        health += 0.2 * math.tanh(1.0 - debt) if debt >= 0 else -0.3
    if current is not None:
        health += 0.1 * clip(current - 1.2)
    if cover is not None:
        health += 0.15 * clip((cover - 3) / 3)
    if margin is not None:
        health += 0.15 * math.tanh((margin - 0.05) / 0.1)
    levered = debt is not None and (debt > HIGH_LEVERAGE or debt < 0)
    return figure(clip(health, 0.0, LEVERED_HEALTH if levered else 1.0))


def _growth_quality(known: FilingFigures) -> float:
    """Return 0..1: growth, worth more where a margin is earned on it; 0.5 where no growth is known."""
    growth = known.value("revenue_growth", "earnings_growth")
    if growth is None:
        return 0.5
    margin = known.value("profit_margin", "operating_margin")
    quality = 0.5 + 0.4 * math.tanh(growth / 0.2)
    if margin is not None:
        quality += 0.1 * math.tanh(margin / 0.1)
    return figure(clip(quality, 0.0, 1.0))


def _confidence(side: int, score: float, votes: int, filed: datetime, as_of: datetime) -> float:
    """Return the conviction from the score, from how many votes were cast, and from the age of the newest filing."""
    age_days = (as_of - filed).total_seconds() / 86400
    freshness = 1 - clip((age_days - FRESH_DAYS) / (STALE_DAYS - FRESH_DAYS), 0.0, 1.0)
    ground = (votes / len(WEIGHTS)) * (0.5 + 0.5 * freshness)
    if not side:
        return LEAST_CONFIDENCE + 0.15 * ground * (1 - min(1.0, abs(score) / SIDE_SCORE))
    strength = clip((abs(score) - SIDE_SCORE) / (STRONG_SCORE + 0.2 - SIDE_SCORE), 0.0, 1.0)
    return LEAST_CONFIDENCE + (MOST_CONFIDENCE - LEAST_CONFIDENCE) * ground * (0.2 + 0.8 * strength)


def _target(known: FilingFigures, price: float | None) -> float | None:
    """Return the price at which the multiple would be back at its median, within `MAX_TARGET_MOVE`."""
    ratio = _ratio(known)
    if ratio is None or price is None:
        return None
    return price_figure(price * clip(1 / ratio, 1 - MAX_TARGET_MOVE, 1 + MAX_TARGET_MOVE))


def _findings(known: FilingFigures, valuation: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return strengths and risks, each resting on a figure."""
    strengths, risks = [], list(known.notes)
    if valuation == "undervalued":
        strengths.append(f"{_WORDS[str(known.multiple)]} below its own history")
    elif valuation == "overvalued":
        risks.append(f"{_WORDS[str(known.multiple)]} above its own history")
    for value, good, bad, strong, weak in (
        (known.value("revenue_growth", "earnings_growth"), 0.1, 0.0, "growing business", "shrinking business"),
        (known.value("profit_margin", "operating_margin"), 0.15, 0.0, "high margin", "losses"),
        (
            known.value("interest_cover", "interest_coverage"),
            6.0,
            1.5,
            "interest well covered",
            "interest hardly covered",
        ),
        (known.value("current_ratio"), 1.5, 1.0, "liquid balance sheet", "short-term debts exceed liquid means"),
    ):
        if value is not None and value >= good:
            strengths.append(strong)
        elif value is not None and value < bad:
            risks.append(weak)
    debt = known.value("debt_to_equity")
    if debt is not None and 0 <= debt <= 0.5:
        strengths.append("little debt")
    elif debt is not None and (debt > HIGH_LEVERAGE or debt < 0):
        risks.append("high leverage")
    return tuple(strengths), tuple(risks)


def _evidence(known: FilingFigures, price: float | None, as_of: datetime) -> list[dict[str, Any]]:
    """Return one item for each figure and each part of a computed one, and the price where it was used."""
    evidence = [_filed(item) for item in (*known.figures.values(), *known.parts)]
    if price is not None and known.multiple is not None:
        evidence.append(bar_evidence("bar:close", "price", price, "USD", as_of))
    return evidence


def _filed(item: Figure) -> dict[str, Any]:
    return {
        "id": item.evidence_id,
        "kind": "filing" if item.filing else "derived",
        "value": item.value,
        "unit": UNITS[item.name],
        "event_time": item.event_time,
        "available_at": item.available_at,
        "source": item.filing.source if item.filing else "filings",
    }


def _reasoning(word: str, valuation: str, known: FilingFigures, health: float, votes: dict[str, float]) -> str:
    """Say what the figures say; every number in it stands in the evidence or in a field of the output."""
    cited = [
        f"{_WORDS.get(name, name.replace('_', ' '))} {written(known.figures[name].value)}"
        for name in UNITS
        if name in known.figures and UNITS[name] != "USD"
    ]
    basis = "against its own history" if _ratio(known) is not None else "for want of a longer history of its multiple"
    leaning = [f"{name} {'+' if vote > 0 else '-'}" for name, vote in votes.items() if abs(vote) > 0.1]
    return (
        f"The share is {valuation.replace('_', ' ')} {basis}. Filed figures: {', '.join(cited) or 'earnings and revenue only'}. "
        f"Financial health {written(health)}. Votes: {', '.join(leaning) or 'all near zero'}. Recommendation {word}."
    )
