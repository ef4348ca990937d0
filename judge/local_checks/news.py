"""Checks of a news agent's output: sentiment against the texts, impact against sentiment, events against evidence."""

from __future__ import annotations

import re

from data_pipeline.sentiment import score_text
from judge.local_checks.facts import (
    Facts,
    Rule,
    calibrated_by_signals,
    evidence_is_as_of,
    ramp,
    reasoning_rules,
    sign,
)

_TOKEN = re.compile(r"[a-z']+")
_TEXTS_READ = 20
_EVENTS_READ = 15
_HORIZON_DAYS = {"intraday": 3, "short_term": 3, "medium_term": 10, "long_term": 30}
_MILD = 0.25
_CLEAR = 0.5


def sentiment_matches_texts(facts: Facts) -> float | None:
    """The score, on -1..1, has the sign of the texts' mean and does not exaggerate it.

    The evidence usually holds the weightiest of many texts, so a score that is milder than theirs is no fault.
    """
    texts = facts.texts[:_TEXTS_READ] or [event.headline for event in facts.output.key_events]
    sentiments = [value for value in map(score_text, texts) if value]
    if not sentiments:
        return None
    heard = sum(sentiments) / len(sentiments)
    score = facts.output.sentiment_score / 2
    if sign(heard, _MILD) * sign(score, 0.05) < 0:
        return 0.0
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


def impact_follows_sentiment(facts: Facts) -> float:
    """Bullish with a positive score, bearish with a negative one, neutral near zero."""
    impact = {"bullish": 1, "bearish": -1, "neutral": 0}[facts.output.price_impact]
    score = facts.output.sentiment_score
    if impact == 0:
        return ramp(abs(score), 1.2, _CLEAR)
    return ramp(impact * score, -0.1, 0.2)


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


def horizon_fits_age(facts: Facts) -> float | None:
    """The newest event is young enough for the horizon."""
    dates = [event.published_at for event in facts.output.key_events if event.published_at.tzinfo is not None]
    if not dates:
        return None
    days = (facts.output.as_of - max(dates)).total_seconds() / 86_400
    limit = _HORIZON_DAYS[facts.output.time_horizon]
    return ramp(days, 2 * limit, limit)


def events_named(facts: Facts) -> float:
    """There are events, and none is named twice."""
    events = facts.output.key_events
    return len({event.headline for event in events}) / len(events) if events else 0.0


def events_have_sources(facts: Facts) -> float | None:
    """Share of the events that name their source."""
    events = facts.output.key_events
    return sum(bool(event.source.strip()) for event in events) / len(events) if events else None


def events_are_past(facts: Facts) -> float | None:
    """No event is from after the decision or without a time zone."""
    as_of = facts.output.as_of
    events = facts.output.key_events
    if not events:
        return None
    return float(all(e.published_at.tzinfo is not None and e.published_at <= as_of for e in events))


def events_match_evidence(facts: Facts) -> float | None:
    """Share of the events whose evidence exists and says the same: half of the headline's words stand in it."""
    events = facts.output.key_events[:_EVENTS_READ]
    if not events:
        return None
    evidence = {item.id: item.value for item in facts.output.evidence}
    found = 0
    for event in events:
        if event.evidence_id not in evidence:
            continue
        text = evidence[event.evidence_id]
        if not isinstance(text, str):
            found += 1
            continue
        headline = set(_TOKEN.findall(event.headline.lower()))
        found += 2 * len(headline.intersection(_TOKEN.findall(text.lower()))) >= len(headline)
    return found / len(events)


def conviction_fits(facts: Facts) -> float:
    """Conviction against number and agreement of the texts."""
    votes = [max(-1.0, min(1.0, facts.output.sentiment_score / 2))] * max(1, min(10, len(facts.output.evidence)))
    return calibrated_by_signals(facts, votes if facts.output.evidence else [])


RULES: dict[str, tuple[Rule, ...]] = {
    "Sentiment Accuracy": (
        Rule(sentiment_matches_texts, 0.5, "the sentiment score disagrees with the words of the texts"),
        Rule(sentiment_matches_signals, 0.2, "the sentiment score disagrees with the agent's own signals"),
        Rule(sentiment_rests_on_texts, 0.3, "the sentiment rests on no text"),
    ),
    "Reasoning Quality": reasoning_rules(),
    "Price Impact Assessment": (
        Rule(impact_follows_sentiment, 0.4, "the price impact does not follow from the sentiment"),
        Rule(side_follows_impact, 0.3, "the recommendation does not follow from the price impact"),
        Rule(risks_named, 0.15, "no risk is named, or one twice"),
        Rule(horizon_fits_age, 0.15, "the news is too old for the horizon"),
    ),
    "Key Events Identification": (
        Rule(events_named, 0.25, "no event is named, or one twice"),
        Rule(events_have_sources, 0.2, "an event has no source"),
        Rule(events_are_past, 0.2, "an event is from after the decision, or its time has no zone"),
        Rule(events_match_evidence, 0.25, "an event matches no evidence"),
        Rule(evidence_is_as_of, 0.1, "evidence is from after the decision"),
    ),
    "Confidence Calibration": (
        Rule(conviction_fits, 1.0, "conviction does not fit breadth and agreement of the texts"),
    ),
}
"""Dimension of the rubric to its rules."""
