"""What a news agent's output can get wrong about its articles: sentiment, events, sources, companies, age.

An event is held against the article it cites as it was known at the decision; without a snapshot, against the output's
own evidence.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from data_pipeline.rounding import figure
from data_pipeline.sentiment import score_text
from evaluation.detectors.case import Case, letters
from evaluation.detectors.evidence import ARTICLE_KINDS, CLOCK_SLACK, jaccard, quotes
from utils.schema import Evidence, KeyEvent

LEAST_LETTERS = 50
CLEAR_SCORE = 0.5
"""|score| from which on its sign must be that of the words."""

MAX_FROM_MEAN = 1.0
"""Largest distance of the score from twice the articles' mean, on -2..2."""

STRONG_SCORE = 1.5
LEAST_JACCARD = 0.5
HORIZON_DAYS = {"intraday": 3, "short_term": 3, "medium_term": 10, "long_term": 30}
"""Age of the youngest event up to which it speaks for a horizon."""

_ROUNDING = 1e-6
_IMPACT = {"bullish": 1, "bearish": -1, "neutral": 0}
_NO_SOURCE = frozenset(("", "unknown", "n/a", "na", "none", "null", "-", "?"))
_SECONDS_A_DAY = 86_400


def sentiment_miscalculation(case: Case) -> None:
    """Report a score that the articles do not bear out, and leave the articles' score for the rules that follow."""
    score = case.output.sentiment_score
    mean = case.facts.mean_sentiment if case.facts else None
    whole = mean is not None
    if mean is None:
        mean = _cited_mean(case)
    if mean is None:
        case.skip("sentiment_miscalculation", "no article is known")
        return
    right = figure(2 * mean)
    against = abs(score) > CLEAR_SCORE + _ROUNDING and score * mean < 0
    if not against and not (whole and abs(score - 2 * mean) > MAX_FROM_MEAN + _ROUNDING):
        return
    case.scratch["sentiment"] = right
    how = "stands against the balance of the words" if against else "is far from the articles' mean"
    case.report(
        "sentiment_miscalculation", "/sentiment_score", f"the score {score:.4g} {how}, {right:.4g}",
        found=score, expected=right, corrected=right,
    )  # fmt: skip


def _cited_mean(case: Case) -> float | None:
    """Return the mean sentiment of what the output itself cites, None where that says nothing."""
    texts = [item.value for item in case.output.evidence if isinstance(item.value, str)]
    if "key_events" not in case.broken:
        texts = texts or [event.headline for event in case.output.key_events]
    scores = [value for value in map(score_text, texts) if value]
    return sum(scores) / len(scores) if scores else None


def wrong_event_impact(case: Case) -> None:
    """Report a strong score without events, and an impact against the score."""
    output = case.output
    score = case.scratch.get("sentiment", output.sentiment_score)
    if abs(score) > STRONG_SCORE and "key_events" not in case.broken and not output.key_events:
        text = f"a score of {score:.4g} rests on no event"
        case.report("wrong_event_impact", "/key_events", text, found="no event", expected="the events behind the score")
    if "price_impact" in case.broken or _IMPACT[output.price_impact] * score >= 0:
        return
    text = f"a {output.price_impact} impact stands against the score {score:.4g}"
    if "sentiment" in case.scratch and abs(score) <= CLEAR_SCORE:
        return  # the articles say too little to blame more than the score
    if _witnesses(case) * score < 0:
        # recommendation, signal and articles bear the impact out, so it is the score that has the wrong sign
        case.report("wrong_event_impact", "/sentiment_score", text, found=score, expected=-score, corrected=-score)
    else:
        right = "bullish" if score > 0 else "bearish"
        case.report(
            "wrong_event_impact", "/price_impact", text, found=output.price_impact, expected=right, corrected=right
        )


def _witnesses(case: Case) -> int:
    """Return how many of recommendation, sentiment signal and articles are good, less how many are bad."""
    mean = case.facts.mean_sentiment if case.facts else None
    signal = 0.0 if "signals" in case.broken else case.output.signals.get("sentiment", 0.0)
    said = (0 if "recommendation" in case.broken else case.side, signal, mean or 0.0)
    return sum((value > 0) - (value < 0) for value in said)


def news_hallucination(case: Case) -> None:
    """Report events without an article: an unknown id, or a headline that shares too few words with it."""
    cited = _articles_cited(case)
    for i, event in enumerate(case.output.key_events):
        text = _article_text(case, event, cited)
        if text is None:
            if not event.evidence_id and case.facts is None and not cited:
                case.skip("news_hallucination", "no article is known to hold the events against")
                continue
            if not event.evidence_id and _told(case, event, cited):
                continue
            case.report(
                "news_hallucination", f"/key_events/{i}/evidence_id", f"no known article has the id {event.evidence_id!r}",
                found=event.evidence_id, expected="the id of a known article", headline=event.headline,
            )  # fmt: skip
        elif text and jaccard(event.headline, text) < LEAST_JACCARD and not quotes(event.headline, text):
            case.report(
                "news_hallucination", f"/key_events/{i}/headline", "the cited article tells something else",
                found=event.headline, expected=text, corrected=text,
            )  # fmt: skip


def _articles_cited(case: Case) -> dict[str, Evidence]:
    """Return the articles in the output's evidence by id."""
    if "evidence" in case.broken:
        return {}
    return {item.id: item for item in case.output.evidence if item.kind in ARTICLE_KINDS or isinstance(item.value, str)}


def _article_text(case: Case, event: KeyEvent, cited: dict[str, Evidence]) -> str | None:
    """Return the text of the article that an event cites, empty where it is known without text, None if unknown."""
    if case.facts is not None:
        article = case.facts.news_by_id.get(event.evidence_id)
        return article.text if article else None
    item = cited.get(event.evidence_id)
    if item is None:
        return None
    return item.value if isinstance(item.value, str) else ""


def _told(case: Case, event: KeyEvent, cited: dict[str, Evidence]) -> bool:
    """Return whether any known article tells what an event without an id says."""
    if case.facts is not None:
        texts = [article.text for article in case.facts.snapshot.news]
    else:
        texts = [item.value for item in cited.values() if isinstance(item.value, str)]
    return any(jaccard(event.headline, text) >= LEAST_JACCARD for text in texts)


def conflating_companies(case: Case) -> None:
    """Report events whose article is tagged with other symbols only."""
    symbol = case.output.symbol
    positions = {} if "evidence" in case.broken else {item.id: i for i, item in enumerate(case.output.evidence)}
    for i, event in enumerate(case.output.key_events):
        article = case.facts.news_by_id.get(event.evidence_id) if case.facts else None
        known = article.tickers if article else ()
        position = positions.get(event.evidence_id)
        stated = (case.output.evidence[position].tickers or ()) if position is not None else ()
        if known and symbol not in known:
            _other_company(case, f"/key_events/{i}/evidence_id", known)
        elif stated and symbol not in stated:
            if article is None:
                _other_company(case, f"/key_events/{i}/evidence_id", stated)
            else:
                # the article itself is no other company's, so its tags were changed
                _other_company(case, f"/evidence/{position}/tickers", stated, known or None)


def _other_company(case: Case, at: str, tags: tuple[str, ...], corrected: Any = None) -> None:
    symbol = case.output.symbol
    text = f"the event's article is tagged {', '.join(tags)}, not {symbol}"
    if not case.found_at(at):
        case.report("conflating_companies", at, text, found=", ".join(tags), expected=symbol, corrected=corrected)


def missing_source(case: Case) -> None:
    """Report events that name no source."""
    for i, event in enumerate(case.output.key_events):
        if event.source.strip().lower() in _NO_SOURCE:
            article = case.facts.news_by_id.get(event.evidence_id) if case.facts else None
            right = article.source if article and article.source else _cited_source(case, event)
            case.report(
                "missing_source", f"/key_events/{i}/source", "the event names no source",
                found=event.source, expected=right or "the article's source", corrected=right,
            )  # fmt: skip


def _cited_source(case: Case, event: KeyEvent) -> str | None:
    if "evidence" in case.broken:
        return None
    return next((item.source for item in case.output.evidence if item.id == event.evidence_id and item.source), None)


def sentiment_justification_missing(case: Case) -> None:
    """Report news reasoning that is too short to say anything."""
    if not letters(case.output.reasoning, LEAST_LETTERS):
        count = sum(map(str.isalpha, case.output.reasoning))
        case.report(
            "sentiment_justification_missing", "/reasoning", f"the sentiment is explained in {count} letters",
            found=count, expected=f"at least {LEAST_LETTERS} letters",
        )  # fmt: skip


def outdated_news(case: Case) -> None:
    """Report a horizon for which even the youngest event is too old."""
    events, horizon = case.output.key_events, case.output.time_horizon
    if not events:
        return
    times = [
        event.published_at if event.published_at.tzinfo else event.published_at.replace(tzinfo=UTC) for event in events
    ]
    newest = max(range(len(times)), key=times.__getitem__)
    days = (case.output.as_of - times[newest]).total_seconds() / _SECONDS_A_DAY
    limit = HORIZON_DAYS[horizon]
    if days <= limit:
        return
    true_time = _true_time(case, events[newest])
    text = f"the youngest event is {days:.1f} days old, a {horizon} horizon needs one of at most {limit} days"
    if true_time is not None and abs(true_time - times[newest]) <= CLOCK_SLACK:
        longer = next((name for name, bound in HORIZON_DAYS.items() if days <= bound), None)
        case.report(
            "outdated_news", "/time_horizon", text, found=horizon,
            expected=longer or "younger events", corrected=longer, days=days,
        )  # fmt: skip
    else:
        case.report(
            "outdated_news", f"/key_events/{newest}/published_at", text, found=times[newest].isoformat(),
            expected=f"at most {limit} days before the decision", corrected=true_time, days=days,
        )  # fmt: skip


def _true_time(case: Case, event: KeyEvent) -> datetime | None:
    article = case.facts.news_by_id.get(event.evidence_id) if case.facts else None
    return article.event_time if article else None
