"""Faults of the news analyst's tone: a miscounted score, an impact against it, a verdict without its reason.

Listed in `registry`. A wrong score is followed by impact and side, as somebody who believed it would have done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_pipeline.sentiment import score_text
from data_pipeline.sentiment_lexicon import NEGATORS
from evaluation.fault_injection.drawing import (
    MARGIN,
    articles_about,
    cited_as,
    curt_text,
    event_of,
    log_uniform,
    opposite,
    side_of,
)
from evaluation.fault_injection.model import Case, Mutant, operators

BALANCE_SCORE = 0.5
MEAN_DISTANCE = 1.0
EVENTLESS_SCORE = 1.5

_DENIED_GOOD = (
    "the company did not beat estimates and reports no growth",
    "no record profits, no upgrade, and the outlook is not strong",
    "margins did not improve and sales were not strong this quarter",
)
_DENIED_BAD = (
    "no losses this quarter and no lawsuit, the company said",
    "the board sees no decline in sales and no weak demand",
    "there was no fraud and no profit warning, auditors confirm",
)


def _score_turned(case: Case) -> Mutant | None:
    """Count the words with the wrong sign, and follow that throughout."""
    score = case.output["sentiment_score"]
    size = min(2.0, max(abs(score), BALANCE_SCORE * MARGIN) * case.rng.uniform(1.0, 1.5))
    return _scored(case, -math.copysign(size, score)) if score else None


def _negation_missed(case: Case) -> Mutant | None:
    """Read two articles that deny good or bad news as if they told it, the feed holding no others."""
    snapshot = case.truth.snapshot
    if snapshot is None or len(snapshot.news) < 2:
        return None
    told, tone = case.rng.choice(((_DENIED_GOOD, 1), (_DENIED_BAD, -1)))
    texts = case.rng.sample(told, 2)
    kept = snapshot.news[-2:]
    news = tuple(replace(item, text=text, tickers=()) for item, text in zip(kept, texts, strict=True))
    facts = replace(case.truth, snapshot=replace(snapshot, news=news))
    events = [event_of(item) for item in news]
    blind = 2 * sum(score_text(" ".join(w for w in text.split() if w not in NEGATORS)) for text in texts) / 2
    cited = {"/key_events": events, "/evidence": [cited_as(item) for item in news], "/time_horizon": "medium_term"}
    word = "buy" if tone > 0 else "sell"
    changes = {**cited, "/recommendation": word, "/signals": {"sentiment": tone * 0.5}}
    planted = Case(case.category, {**case.output, "key_events": events}, facts, case.rng, case.peer)
    return _scored(planted, blind, changes)


def _score_saturated(case: Case) -> Mutant | None:
    """Take a scale of -10..10 for -2..2, so that every lean is extreme."""
    score = case.output["sentiment_score"]
    return _scored(case, math.copysign(case.rng.choice((2.0, 1.9, 1.75)), score)) if score else None


def _loudest_article_alone(case: Case) -> Mutant | None:
    """Score the one most extreme article in place of all."""
    scores = [2 * score_text(item.text) for item in articles_about(case.output, case.truth)]
    return _scored(case, max(scores, key=abs)) if scores else None


def _score_drifted(case: Case) -> Mutant | None:
    """Move the score away from the mean by more than one."""
    means = _means(case)
    if not means:
        return None
    direction = case.rng.choice((-1, 1))
    edge = max(means) if direction > 0 else min(means)
    return _scored(case, edge + direction * log_uniform(case.rng, MEAN_DISTANCE * MARGIN, 3.0))


def _scored(case: Case, score: float, more: Mapping[str, Any] | None = None) -> Mutant | None:
    """Return the output with another score, its impact and side following it, if the score breaks the rule."""
    score = round(max(-2.0, min(2.0, score)), 3)
    means = _means(case)
    if not means or not _miscounted(score, means):
        return None
    changes: dict[str, Any] = {"/sentiment_score": score, "/price_impact": _impact(score), **(more or {})}
    if more is None and side_of(case.output) * score < 0:
        changes["/recommendation"] = opposite(case.output["recommendation"])
    if abs(score) > EVENTLESS_SCORE and not case.output["key_events"]:
        return None
    # impact and side follow the wrong score and are as wrong as it
    return case.mutant("/sentiment_score", changes, consequences=("wrong_event_impact", "contradictory"))


def _miscounted(score: float, means: Sequence[float]) -> bool:
    """Return whether the rule is broken under every reading of which articles count."""
    if all(abs(score - mean) >= MEAN_DISTANCE * MARGIN for mean in means):
        return True
    return abs(score) >= BALANCE_SCORE * MARGIN and all(abs(mean) > 0.1 and score * mean < 0 for mean in means)


def _means(case: Case) -> list[float]:
    """Return the plain means on the scale -2..2: of all articles, of those each text once, of those cited."""
    news = articles_about(case.output, case.truth)
    cited = {event["evidence_id"] for event in case.output["key_events"]}
    texts = [[i.text for i in news], list({i.text for i in news}), [i.text for i in news if i.item_id in cited]]
    return [2 * sum(map(score_text, group)) / len(group) for group in texts if group]


def _impact(score: float) -> str:
    return "neutral" if abs(score) < 0.25 else "bullish" if score > 0 else "bearish"


def _justification_empty(case: Case) -> Mutant | None:
    return case.mutant("/reasoning", {"/reasoning": ""})


def _justification_curt(case: Case) -> Mutant | None:
    text = curt_text(case.rng, str(case.output.get("reasoning") or ""))
    return case.mutant("/reasoning", {"/reasoning": text}) if text else None


def _justification_without_words(case: Case) -> Mutant | None:
    """Give a tally in place of a reason: long enough, but hardly a letter in it."""
    marks = " ".join(case.rng.choice(("+", "-", "0", "++", "--")) for _ in range(case.rng.randrange(30, 60)))
    return case.mutant("/reasoning", {"/reasoning": f"tally: {marks}"})


def _impact_turned(case: Case) -> Mutant | None:
    score = case.output["sentiment_score"]
    if abs(score) < BALANCE_SCORE:
        return None
    wrong = "bearish" if score > 0 else "bullish"
    return case.mutant("/price_impact", {"/price_impact": wrong}, same=("/sentiment_score",))


def _impact_turned_on_a_lean(case: Case) -> Mutant | None:
    score = case.output["sentiment_score"]
    if not 0.25 * MARGIN <= abs(score) < BALANCE_SCORE:
        return None
    wrong = "bearish" if score > 0 else "bullish"
    return case.mutant("/price_impact", {"/price_impact": wrong}, same=("/sentiment_score",))


def _extreme_without_events(case: Case) -> Mutant | None:
    """Be as sure of the tone as can be, and name no event."""
    means = _means(case)
    if not means or min(map(abs, means)) < 0.7 or len({mean > 0 for mean in means}) > 1:
        return None
    top = min(2.0, min(map(abs, means)) + MEAN_DISTANCE / MARGIN)
    if top < EVENTLESS_SCORE * 1.03:
        return None
    score = math.copysign(round(case.rng.uniform(EVENTLESS_SCORE * 1.02, top), 3), means[0])
    if side_of(case.output) * score < 0:
        return None
    changes = {"/key_events": [], "/sentiment_score": score, "/price_impact": _impact(score)}
    return case.mutant("/key_events", changes, same=("/sentiment_score",))


OPERATORS = (
    *operators(
        "sentiment_miscalculation", "news",
        _score_turned, _negation_missed, _score_saturated, _loudest_article_alone, _score_drifted,
    ),
    *operators(
        "sentiment_justification_missing", "news",
        _justification_empty, _justification_curt, _justification_without_words,
    ),
    *operators("wrong_event_impact", "news", _impact_turned, _impact_turned_on_a_lean, _extreme_without_events),
)  # fmt: skip
