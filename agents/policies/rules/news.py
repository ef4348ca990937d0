"""The news analyst by rules: age-weighted lexicon sentiment of the recent articles, with the events behind it.

Called through `agents.junior.news_agent` for every symbol at every decision. It reads texts as data: whatever an article
says, it can only be counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from agents.base_agent import abstain
from agents.policies.base import PolicyRequest
from data_pipeline.article_selection import headline, usable_articles
from data_pipeline.rounding import clip, figure
from data_pipeline.sentiment import score_text
from utils.schema import AgentOutput, AgentType, NewsItem, NewsOutput

HALF_LIFE_S = 24 * 3600.0
MAX_EVENTS = 3
SHORT_TERM = timedelta(days=3)
"""Age beyond which no event speaks for a short horizon."""

SIDE_SCORE = 0.25
"""Least |score| of a side, on the scale -2..2."""

STRONG_SCORE = 1.0
STRONG_Z = 3.0
"""Least |mean| of a strong call; out of reach of a single article."""

LEAST_Z = 1.0
"""Least |mean| of a side in standard errors: a lean within the noise of the articles is none."""

PRIOR_VARIANCE = 0.15
"""Of one article's sentiment; keeps a handful of equal articles from looking certain."""

LEAST_CONFIDENCE, MOST_CONFIDENCE = 0.5, 0.85
NEUTRAL_BALANCE = 0.5
"""Largest |score| that may stand against the plain mean of the articles."""

MAX_FROM_MEAN = 0.95
"""Largest distance of the score from twice the plain mean: age weights shade the mean, they do not replace it."""


@dataclass(frozen=True, slots=True)
class _Read:
    """One article with its sentiment -1..1 and its weight 0..1 by age."""

    item: NewsItem
    score: float
    weight: float


@dataclass(frozen=True, slots=True)
class _Tally:
    """All articles together: `score` -2..2, `z` in standard errors, the rest 0..1."""

    score: float
    z: float
    amount: float
    agreement: float
    freshness: float


class RulesNews:
    """A `Policy` of weighted sentiment.

    Notes
    -----
    score = 2·Σwᵢsᵢ / Σwᵢ with wᵢ = 0.5^(age/24 h). A side needs |score| ≥ `SIDE_SCORE` and a mean of at least one
    standard error, √((s² + prior)/n_eff) with Kish's effective number n_eff = (Σw)²/Σw² (Survey Sampling, 1965).
    """

    agent_type: AgentType = "news"
    name = "rules"
    reads_experiences = False
    waits = False
    prompt_hash: str | None = None

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request; without a usable article the answer is an abstention."""
        return [self._decide(request) for request in requests]

    def _decide(self, request: PolicyRequest) -> AgentOutput:
        snapshot = request.snapshot
        reads = _read(snapshot.news, snapshot.symbol, snapshot.as_of)
        if not reads:
            reason = "no usable article about the symbol"
            return abstain(self.agent_type, snapshot.symbol, snapshot.as_of, reason, self.name)
        tally = _tally(reads)
        side = 0
        if abs(tally.score) >= SIDE_SCORE and abs(tally.z) >= LEAST_Z:
            side = 1 if tally.score > 0 else -1
        strong = side and abs(tally.score) >= STRONG_SCORE and abs(tally.z) >= STRONG_Z
        word = ("sell", "hold", "buy")[side + 1]
        events, fresh = _events(reads, tally.score, snapshot.as_of)
        return NewsOutput.model_validate(
            {
                "symbol": snapshot.symbol,
                "as_of": snapshot.as_of,
                "recommendation": f"strong_{word}" if strong else word,
                "confidence": figure(_confidence(side, tally)),
                "reasoning": _reasoning(word, tally, len(reads), events),
                "signals": {"sentiment": figure(math.tanh(1.5 * tally.score)), "agreement": _signed_agreement(tally)},
                "evidence": [article_evidence(read.item, quoted) for read, quoted in events],
                "policy": self.name,
                "sentiment_score": tally.score,
                "price_impact": _impact(tally.score),
                "time_horizon": "short_term" if fresh else "medium_term",
                "key_events": [
                    {
                        "headline": quoted,
                        "source": read.item.source or "unnamed source",
                        "published_at": read.item.event_time,
                        "evidence_id": read.item.item_id,
                    }
                    for read, quoted in events
                ],
                "risk_factors": _risks(tally, reads, fresh),
            }
        )


def _read(news: Sequence[NewsItem], symbol: str, as_of: datetime) -> list[_Read]:
    """Return the usable articles, newest first, with their sentiment and weight."""
    return [
        _Read(
            item,
            score_text(item.text),
            0.5 ** (max(0.0, (as_of - item.event_time).total_seconds()) / HALF_LIFE_S),
        )
        for item in usable_articles(news, symbol, as_of)
    ]


def _tally(reads: Sequence[_Read]) -> _Tally:
    total = squares = weighted = absolute = spread = plain = newest = 0.0
    for read in reads:
        weight, score = read.weight, read.score
        total += weight
        squares += weight * weight
        weighted += weight * score
        absolute += weight * abs(score)
        spread += weight * score * score
        plain += score
        newest = max(newest, weight)
    mean, plain = weighted / total, plain / len(reads)
    effective = total * total / squares
    variance = max(0.0, spread / total - mean * mean)
    score = 2 * mean
    if score * plain < 0:
        score = clip(score, -NEUTRAL_BALANCE, NEUTRAL_BALANCE)
    score = clip(score, 2 * plain - MAX_FROM_MEAN, 2 * plain + MAX_FROM_MEAN)
    return _Tally(
        figure(clip(score, -2.0, 2.0)),
        mean / math.sqrt((variance + PRIOR_VARIANCE) / effective),
        effective / (effective + 4),
        abs(weighted) / absolute if absolute > 0 else 0.0,
        newest,
    )


def _confidence(side: int, tally: _Tally) -> float:
    """Return the conviction: in a side from amount, agreement, freshness and size; in a hold from amount and discord."""
    if not side:
        return LEAST_CONFIDENCE + 0.2 * tally.amount * (1 - min(1.0, abs(tally.score)))
    quality = 0.35 * tally.amount + 0.45 * tally.agreement + 0.2 * tally.freshness
    strength = 0.15 + 0.85 * min(1.0, abs(tally.score) / STRONG_SCORE)
    return LEAST_CONFIDENCE + (MOST_CONFIDENCE - LEAST_CONFIDENCE) * quality * strength


def _impact(score: float) -> str:
    if abs(score) < SIDE_SCORE:
        return "neutral"
    return "bullish" if score > 0 else "bearish"


def _signed_agreement(tally: _Tally) -> float:
    return figure(math.copysign(tally.agreement * tally.amount, tally.score)) if tally.score else 0.0


def _events(reads: Sequence[_Read], score: float, as_of: datetime) -> tuple[list[tuple[_Read, str]], bool]:
    """Return the articles that weigh most on the score's side, and whether they are young enough for a short horizon."""
    young = [read for read in reads if as_of - read.item.event_time <= SHORT_TERM]
    leading = sorted(young or reads, key=lambda read: (-read.weight * read.score * score, -read.weight))
    chosen = [read for read in leading[:MAX_EVENTS] if read.score * score > 0] or leading[:1]
    return [(read, headline(read.item.text)) for read in chosen], bool(young)


def article_evidence(item: NewsItem, quoted: str) -> dict[str, Any]:
    """Return the fields of an `Evidence` that is an article, with the headline that it is quoted by."""
    return {
        "id": item.item_id,
        "kind": "news",
        "value": quoted,
        "unit": "text",
        "event_time": item.event_time,
        "available_at": item.available_at,
        "source": item.source or "unnamed source",
        "tickers": item.tickers or None,
    }


def _risks(tally: _Tally, reads: Sequence[_Read], fresh: bool) -> tuple[str, ...]:
    risks = []
    if any(read.score * tally.score < 0 for read in reads):
        risks.append("part of the articles points the other way")
    if len(reads) < 3:
        risks.append("the sentiment rests on very few articles")
    if not fresh:
        risks.append("no article is younger than three days; the news may be in the price")
    return tuple(risks)


def _reasoning(word: str, tally: _Tally, count: int, events: Sequence[tuple[_Read, str]]) -> str:
    """Say how the articles sound and how much they agree; counts are words, since they stand in no evidence."""
    amount = "one article" if count == 1 else "a few articles" if count < 6 else "many articles"
    tone = "positive" if tally.score > 0 else "negative" if tally.score < 0 else "neutral"
    harmony = "mostly agree" if tally.agreement > 0.6 else "disagree" if tally.agreement > 0.2 else "cancel out"
    if count == 1:
        harmony = "stands alone"
    source = events[0][0].item.source or "an unnamed source"
    verdict = "the lean is within the noise" if word == "hold" and tally.score else "the verdict follows the tone"
    return (
        f"Age-weighted sentiment of the recent news is {tone} at {tally.score:.3g} from {amount} that {harmony}; "
        f"the weightiest comes from {source}. Recommendation {word}: {verdict}."
    )
