"""Faults of the news analyst's events: old or invented ones, other companies' articles, lost sources.

Listed in `registry`. An event as a whole, its headline and its reference name an invented event equally.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from evaluation.fault_injection.drawing import MARGIN, articles_about, cited_as, event_of, time_text
from evaluation.fault_injection.model import ABSENT, Case, Mutant, operators
from utils.json_pointer import join
from utils.schema import NewsItem

LEAST_OVERLAP = 0.5
HORIZON_DAYS = {"short_term": 3.0, "medium_term": 10.0, "long_term": 30.0}

_RUMOURS = (
    "Rival said to prepare an offer for the whole company at twice the market price",
    "Whistleblower alleges fabricated invoices at the largest overseas unit",
    "Chief financial officer resigns without notice amid audit dispute",
    "Government contract worth billions awarded, officials confirm overnight",
    "Production halted at main plant after fire, output guidance withdrawn",
)


def _old_articles(case: Case) -> Mutant | None:
    """Found a short-term view on articles older than three days, rightly cited."""
    return _older(case, "short_term")


def _old_articles_intraday(case: Case) -> Mutant | None:
    return _older(case, "intraday")


def _older(case: Case, horizon: str) -> Mutant | None:
    as_of = _time(case.output["as_of"])
    limit = timedelta(days=HORIZON_DAYS["short_term"], hours=2)
    old = [
        i
        for i in articles_about(case.output, case.truth)
        if as_of - i.event_time > limit and i.text.isprintable() and len(i.text) < 280
    ]
    if not old:
        return None
    chosen = case.rng.sample(old, min(len(old), case.rng.randrange(1, 4)))
    changes = {
        "/key_events": [event_of(item) for item in chosen],
        "/evidence": [cited_as(item) for item in chosen],
        "/time_horizon": horizon,
    }
    return case.mutant("/key_events", changes, same=_ages(len(chosen)), consequences=("sentiment_miscalculation",))


def _stale_feed(case: Case) -> Mutant | None:
    """Let the whole feed stop long ago: every article is older, and the longer horizon does not help."""
    horizon = case.rng.choice(("medium_term", "long_term"))
    events = case.output["key_events"]
    if case.truth.snapshot is None or not events:
        return None
    days = HORIZON_DAYS[horizon] * case.rng.uniform(MARGIN, 3.0)
    moved = {
        item.item_id: replace(
            item,
            event_time=item.event_time - timedelta(days=days),
            available_at=item.available_at - timedelta(days=days),
        )
        for item in case.truth.snapshot.news
    }
    if any(event["evidence_id"] not in moved for event in events):
        return None
    changes: dict[str, Any] = {"/time_horizon": horizon}
    for index, event in enumerate(events):
        changes[join("key_events", index, "published_at")] = time_text(moved[event["evidence_id"]].event_time)
    for index, item in enumerate(case.output["evidence"]):
        if item["id"] in moved:
            changes[join("evidence", index, "event_time")] = time_text(moved[item["id"]].event_time)
            changes[join("evidence", index, "available_at")] = time_text(moved[item["id"]].available_at)
    snapshot = replace(case.truth.snapshot, news=tuple(moved[i.item_id] for i in case.truth.snapshot.news))
    same = _ages(len(events))
    return case.mutant("/key_events", changes, same=same, truth=replace(case.truth, snapshot=snapshot))


def _ages(count: int) -> tuple[str, ...]:
    places = [join("key_events", i) for i in range(count)]
    return ("/time_horizon", *places, *(f"{place}/published_at" for place in places))


def _event_from_nowhere(case: Case) -> Mutant | None:
    """Report an event of which there is no article at all."""
    events = case.output["key_events"]
    pointer = join("key_events", len(events))
    event = {
        "headline": case.rng.choice(_RUMOURS),
        "source": case.rng.choice(("wire", "newspaper", "sources close to the company")),
        "published_at": case.output["as_of"],
        "evidence_id": f"{case.rng.getrandbits(64):016x}",
    }
    return case.mutant(pointer, {pointer: event}, same=_event_names(pointer), consequences=("hallucination",))


def _headline_invented(case: Case) -> Mutant | None:
    return _headlined(case, lambda headline: case.rng.choice(_RUMOURS))


def _headline_embellished(case: Case) -> Mutant | None:
    """Keep a few words of the article and tell another story around them."""

    def told(headline: str) -> str:
        words = headline.split()
        start = case.rng.randrange(max(1, len(words) - 3))
        return f"{' '.join(words[start : start + 3])}: {case.rng.choice(_RUMOURS).lower()}"

    return _headlined(case, told)


def _headlined(case: Case, told: Any) -> Mutant | None:
    events = case.output["key_events"]
    if not events:
        return None
    index = case.rng.randrange(len(events))
    headline = told(events[index]["headline"])
    if any(_overlap(headline, item.text) >= LEAST_OVERLAP / MARGIN for item in articles_about(case.output, case.truth)):
        return None
    pointer = join("key_events", index, "headline")
    return case.mutant(pointer, {pointer: headline}, same=_event_names(join("key_events", index)))


def _reference_broken(case: Case) -> Mutant | None:
    """Refer to an article that nobody has."""
    events = case.output["key_events"]
    if not events:
        return None
    index = case.rng.randrange(len(events))
    known = {item.item_id for item in articles_about(case.output, case.truth)}
    wrong = case.rng.choice((f"{case.rng.getrandbits(64):016x}", "n1", "article-3", events[index]["evidence_id"][::-1]))
    if wrong in known:
        return None
    pointer = join("key_events", index, "evidence_id")
    return case.mutant(
        pointer, {pointer: wrong}, same=_event_names(join("key_events", index)), consequences=("hallucination",)
    )


def _source_empty(case: Case) -> Mutant | None:
    return _sourced(case, "")


def _source_blank(case: Case) -> Mutant | None:
    return _sourced(case, case.rng.choice((" ", "  ", "\t")))


def _source_null(case: Case) -> Mutant | None:
    return _sourced(case, None)


def _source_absent(case: Case) -> Mutant | None:
    return _sourced(case, ABSENT)


def _sourced(case: Case, source: Any) -> Mutant | None:
    events = case.output["key_events"]
    if not events:
        return None
    index = case.rng.randrange(len(events))
    pointer = join("key_events", index, "source")
    same = (join("key_events", index),)
    return case.mutant(pointer, {pointer: source}, same=same, consequences=("missing_field", "invalid_value"))


def _foreign_article_added(case: Case) -> Mutant | None:
    found = _foreign(case)
    if found is None:
        return None
    index = len(case.output["key_events"])
    return _conflated(case, found, index, len(case.output["evidence"]))


def _foreign_article_in_place(case: Case) -> Mutant | None:
    found, events = _foreign(case), case.output["key_events"]
    if found is None or not events:
        return None
    index = case.rng.randrange(len(events))
    own = [i for i, e in enumerate(case.output["evidence"]) if e["id"] == events[index]["evidence_id"]]
    return _conflated(case, found, index, own[0]) if own else None


def _article_of_a_namesake(case: Case) -> Mutant | None:
    """Let an article of the feed tag another company alone, and cite it as before."""
    events, snapshot = case.output["key_events"], case.truth.snapshot
    if not events or snapshot is None:
        return None
    index = case.rng.randrange(len(events))
    own = [i for i, e in enumerate(case.output["evidence"]) if e["id"] == events[index]["evidence_id"]]
    item = next((i for i in snapshot.news if i.item_id == events[index]["evidence_id"]), None)
    other = case.rng.choice(("ZTS", "XOM", "HBAN", "PGR"))
    if item is None or not own or other == case.output["symbol"]:
        return None
    retagged = replace(item, tickers=(other,))
    truth = replace(
        case.truth, snapshot=replace(snapshot, news=tuple(retagged if i is item else i for i in snapshot.news))
    )
    pointer = join("key_events", index)
    place = join("evidence", own[0])
    same = (*_event_names(pointer), place, f"{place}/tickers")
    return case.mutant(
        pointer,
        {f"{place}/tickers": [other]},
        same=same,
        truth=truth,
        consequences=("hallucination", "sentiment_miscalculation"),
    )


def _foreign(case: Case) -> NewsItem | None:
    """Return an article about the peer alone, as a mixed-up feed would deliver it."""
    if case.peer is None or case.peer.truth.snapshot is None or case.truth.snapshot is None:
        return None
    as_of = _time(case.output["as_of"])
    young = timedelta(days=HORIZON_DAYS["short_term"])
    articles = [
        item
        for item in case.peer.truth.snapshot.news
        if item.available_at <= as_of
        and as_of - item.event_time < young
        and item.text.isprintable()
        and case.output["symbol"] not in item.tickers
    ]
    if not articles:
        return None
    item = case.rng.choice(articles)
    return replace(item, symbol=case.output["symbol"], tickers=item.tickers or (case.peer.output["symbol"],))


def _conflated(case: Case, item: NewsItem, index: int, place: int) -> Mutant | None:
    """Return the output that cites the peer's article as an event, the article being in the symbol's feed."""
    snapshot = case.truth.snapshot
    if snapshot is None:
        return None
    pointer = join("key_events", index)
    evidence = join("evidence", place)
    truth = replace(case.truth, snapshot=replace(snapshot, news=(*snapshot.news, item)))
    same = (*_event_names(pointer), evidence, f"{evidence}/tickers")
    changes = {pointer: event_of(item), evidence: cited_as(item)}
    return case.mutant(pointer, changes, same=same, truth=truth, consequences=("hallucination",))


def _overlap(some: str, other: str) -> float:
    """Return the Jaccard index of two texts' words."""
    a, b = set(some.lower().split()), set(other.lower().split())
    return len(a & b) / len(a | b) if a | b else 1.0


def _event_names(event: str) -> tuple[str, ...]:
    return event, f"{event}/evidence_id", f"{event}/headline"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


OPERATORS = (
    *operators("outdated_news", "news", _old_articles, _old_articles_intraday, _stale_feed),
    *operators(
        "news_hallucination", "news",
        _event_from_nowhere, _headline_invented, _headline_embellished, _reference_broken,
    ),
    *operators("missing_source", "news", _source_empty, _source_blank, _source_null, _source_absent),
    *operators(
        "conflating_companies", "news", _foreign_article_added, _foreign_article_in_place, _article_of_a_namesake
    ),
)  # fmt: skip
