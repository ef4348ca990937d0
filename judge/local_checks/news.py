"""How well a news agent works beyond being free of errors: measure, consistency, distinct events, fitting conviction."""

from __future__ import annotations

from data_pipeline.sentiment import score_text
from judge.local_checks.facts import (
    Facts,
    Rule,
    calibrated_by_signals,
    ramp,
    reasoning_rules,
)

_TEXTS_READ = 20
_CLEAR = 0.5


def sentiment_not_exaggerated(facts: Facts) -> float | None:
    """The score, on -1..1, is not stronger than the mean of the texts.

    The evidence usually holds the weightiest of many texts, so a score that is milder than theirs is no fault.
    """
    if facts.reports("sentiment_miscalculation"):
        return None
    texts = facts.texts[:_TEXTS_READ] or [event.headline for event in facts.output.key_events]
    sentiments = [value for value in map(score_text, texts) if value]
    if not sentiments:
        return None
    heard = sum(sentiments) / len(sentiments)
    score = facts.output.sentiment_score / 2
    beyond = abs(score) - abs(heard) if score * heard > 0 else abs(score - heard)
    return ramp(beyond, 0.6, 0.25)


def sentiment_matches_signals(facts: Facts) -> float | None:
    """The score agrees with the agent's own signals, which may stretch the scale."""
    signals = facts.output.signals
    if not signals:
        return None
    stated = signals.get("sentiment")
    if stated is None:
        stated = sum(signals.values()) / len(signals)
    return ramp(abs(facts.output.sentiment_score / 2 - stated), 1.0, 0.5)


def sentiment_rests_on_texts(facts: Facts) -> float:
    """A clear score needs something that was read."""
    if facts.output.evidence or facts.output.key_events:
        return 1.0
    return ramp(abs(facts.output.sentiment_score), 1.0, 0.0)


def neutral_near_zero(facts: Facts) -> float | None:
    """Neutral with a score near zero only."""
    if facts.output.price_impact != "neutral" or facts.reports("wrong_event_impact"):
        return None
    return ramp(abs(facts.output.sentiment_score), 1.2, _CLEAR)


def side_follows_impact(facts: Facts) -> float:
    """The recommendation does not go against the impact; a hold is half a follower."""
    impact = {"bullish": 1, "bearish": -1, "neutral": 0}[facts.output.price_impact]
    if impact == facts.side:
        return 1.0
    return 0.0 if impact * facts.side < 0 else 0.5


def risks_named(facts: Facts) -> float:
    """At least one risk is named, and none twice."""
    risks = facts.output.risk_factors
    return len(set(risks)) / len(risks) if risks else 0.0


def events_named(facts: Facts) -> float:
    """There are events, and none is named twice."""
    events = facts.output.key_events
    return len({event.headline for event in events}) / len(events) if events else 0.0


def conviction_fits(facts: Facts) -> float:
    """Conviction against number and agreement of the texts."""
    votes = [max(-1.0, min(1.0, facts.output.sentiment_score / 2))] * max(1, min(10, len(facts.output.evidence)))
    return calibrated_by_signals(facts, votes if facts.output.evidence else [])


RULES: dict[str, tuple[Rule, ...]] = {
    "Sentiment Accuracy": (
        Rule(sentiment_not_exaggerated, 0.4, "the sentiment score is stronger than the words of the texts"),
        Rule(sentiment_matches_signals, 0.25, "the sentiment score disagrees with the agent's own signals"),
        Rule(sentiment_rests_on_texts, 0.35, "the sentiment rests on no text"),
    ),
    "Reasoning Quality": reasoning_rules(),
    "Price Impact Assessment": (
        Rule(side_follows_impact, 0.5, "the recommendation does not follow from the price impact"),
        Rule(neutral_near_zero, 0.3, "a clear sentiment is called neutral"),
        Rule(risks_named, 0.2, "no risk is named, or one twice"),
    ),
    "Key Events Identification": (Rule(events_named, 1.0, "no event is named, or one twice"),),
    "Confidence Calibration": (
        Rule(conviction_fits, 1.0, "conviction does not fit breadth and agreement of the texts"),
    ),
}
"""Dimension of the rubric to its rules."""
