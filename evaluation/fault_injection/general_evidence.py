"""Faults of what an output rests on, for every agent: invented, later, inaccurate or missing evidence.

Listed in `registry`. Where a rule speaks of an evidence item as a whole, the item, its id and its availability name the
fault equally.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from evaluation.fault_injection.drawing import (
    MARGIN,
    beyond,
    by_factor,
    digits_swapped,
    evidence_of,
    log_uniform,
    rounded,
)
from evaluation.fault_injection.model import ALL_AGENTS, Case, Mutant, operators
from evaluation.fault_injection.stale_indicators import indicator_value
from utils.json_pointer import join

EVIDENCE_TOLERANCE = 0.005
INDICATOR_TOLERANCE = 0.05
"""Evidence that states an indicator is damaged beyond the indicators' own tolerance."""
LATEST_DAYS = 90.0
_RATES = (0.72, 0.88, 1.12, 1.39, 6.17, 103.5, 112.0)
"""Foreign currency a dollar, and dollars a unit of it; none is near a usual split or a slip of units."""
_SPLITS = (2.0, 3.0, 4.0, 7.0, 1.5, 20.0)
_HEADLINES = (
    "Regulators open an inquiry into accounting at the group, sources say",
    "Board is said to weigh a takeover offer at a large premium",
    "Supplier report points to doubled orders for the coming quarter",
    "Chief executive to step down at short notice, report says",
)


def _invented_item(case: Case) -> Mutant | None:
    items = case.output.get("evidence") or []
    if not items:
        return None
    item = dict(case.rng.choice(items))
    token = f"{case.rng.getrandbits(64):016x}"
    if item.get("kind") == "news":
        item |= {"id": token, "value": case.rng.choice(_HEADLINES), "source": case.rng.choice(("wire", "desk note"))}
    elif item.get("kind") in ("filing", "derived"):
        item |= {"id": f"{token}:free_cash_flow", "kind": "filing", "value": _round_sum(case.rng), "unit": "USD"}
    else:
        item |= {"id": f"report:{token}", "kind": "report", "value": _round_sum(case.rng), "source": "broker report"}
    pointer = join("evidence", len(items))
    return case.mutant(pointer, {pointer: item}, same=_names(pointer))


def _unknown_document(case: Case) -> Mutant | None:
    """Cite a true figure by the id of a filing or article that does not exist."""
    chosen = _chosen(case, "filing") or (_chosen(case, "news") if not case.output.get("key_events") else None)
    if chosen is None:
        return None
    index, item = chosen
    invented = f"{case.rng.getrandbits(64):016x}"
    known, colon, name = str(item["id"]).partition(":")
    if invented == known:
        return None
    pointer = join("evidence", index, "id")
    return case.mutant(
        pointer, {pointer: f"{invented}{colon}{name}"}, same=_names(join("evidence", index)),
        consequences=("unsupported_claim", "missing_data"),
    )  # fmt: skip


def _revised_later(case: Case) -> Mutant | None:
    return _later(case, ("available_at",))


def _of_tomorrow(case: Case) -> Mutant | None:
    return _later(case, ("event_time", "available_at"))


def _later(case: Case, fields: Iterable[str]) -> Mutant | None:
    chosen = _chosen(case)
    if chosen is None:
        return None
    as_of = datetime.fromisoformat(case.output["as_of"])
    later = as_of + timedelta(days=log_uniform(case.rng, 1 / 24, LATEST_DAYS))
    pointer = join("evidence", chosen[0], "available_at")
    changes = {join("evidence", chosen[0], name): later.isoformat().replace("+00:00", "Z") for name in fields}
    same = {*_names(join("evidence", chosen[0])), join("evidence", chosen[0], "event_time")}
    return case.mutant(pointer, changes, same=same, sub_code="look_ahead", consequences=("missing_data",))


def _units(case: Case) -> Mutant | None:
    scale = case.rng.choice((100.0, 0.01, 1000.0, 0.001, 1e6))
    return _scaled(case, scale, "units")


def _currency(case: Case) -> Mutant | None:
    return _scaled(case, case.rng.choice(_RATES), "currency", units=("USD",))


def _split(case: Case) -> Mutant | None:
    factor = case.rng.choice(_SPLITS)
    per_share = [(i, e) for i, e in evidence_of(case.output, "price", "indicator") if e.get("unit") == "USD"]
    per_share += [(i, e) for i, e in evidence_of(case.output, "filing") if str(e["id"]).endswith(":eps")]
    return _revalued(case, per_share, lambda item: item["value"] * case.rng.choice((factor, 1 / factor)), "split")


def _stale(case: Case) -> Mutant | None:
    """Take the value of an earlier bar or filing."""
    bars_ago = int(log_uniform(case.rng, 1, 120))

    def earlier(item: dict[str, Any]) -> float | None:
        snapshot = case.truth.snapshot
        if snapshot is None:
            return None
        name = str(item["id"]).rpartition(":")[2]
        if item["kind"] == "price":
            return float(snapshot.bars.close[-1 - bars_ago]) if len(snapshot.bars) > bars_ago else None
        if item["kind"] == "indicator":
            return indicator_value(snapshot.bars, name, bars_ago)
        past = [f.metrics[name] for f in snapshot.filings[:-1] if name in f.metrics]
        return case.rng.choice(past) if past else None

    return _revalued(case, evidence_of(case.output, "price", "indicator", "filing"), earlier, "stale")


def _misread(case: Case) -> Mutant | None:
    """Copy a figure with two digits exchanged, or somewhat off."""

    def wrong(item: dict[str, Any]) -> float | None:
        if case.rng.random() < 0.5:
            return digits_swapped(case.rng, item["value"])
        return by_factor(case.rng, item["value"], _tolerance(item), 1.6)

    return _revalued(case, evidence_of(case.output, "price", "indicator", "filing"), wrong, None)


def _misquoted(case: Case) -> Mutant | None:
    """Quote under an article's id what it does not say."""
    chosen = _chosen(case, "news")
    if chosen is None:
        return None
    pointer = join("evidence", chosen[0], "value")
    return case.mutant(
        pointer, {pointer: case.rng.choice(_HEADLINES)}, same=(join("evidence", chosen[0]),),
        consequences=("hallucination",),
    )  # fmt: skip


def _scaled(case: Case, scale: float, sub_code: str, units: tuple[str, ...] = ()) -> Mutant | None:
    items = [e for e in evidence_of(case.output, "price", "indicator", "filing") if not units or e[1]["unit"] in units]
    return _revalued(case, items, lambda item: item["value"] * scale, sub_code)


def _revalued(
    case: Case, items: Iterable[tuple[int, dict[str, Any]]], wrong: Any, sub_code: str | None
) -> Mutant | None:
    """Return the output with one numeric evidence value replaced by a wrong one."""
    numeric = [(i, e) for i, e in items if isinstance(e.get("value"), int | float) and e["value"]]
    if not numeric:
        return None
    index, item = case.rng.choice(numeric)
    value = wrong(item)
    if value is None or not beyond(rounded(value), item["value"], _tolerance(item)):
        return None
    pointer = join("evidence", index, "value")
    return case.mutant(
        pointer, {pointer: rounded(value)}, same=(join("evidence", index),), sub_code=sub_code,
        consequences=("unsupported_claim", "hallucination"),
    )  # fmt: skip


def _technical_evidence_lost(case: Case) -> Mutant | None:
    return _evidence_lost(case, "indicator", {})


def _filing_evidence_lost(case: Case) -> Mutant | None:
    return _evidence_lost(case, "filing", {})


def _articles_lost(case: Case) -> Mutant | None:
    if abs(case.output["sentiment_score"]) > 1.5 / MARGIN:
        return None
    return _evidence_lost(case, "news", {"/key_events": []})


def _evidence_lost(case: Case, kind: str, more: dict[str, Any]) -> Mutant | None:
    kinds = (kind, "derived") if kind == "filing" else (kind,)
    kept = [item for item in case.output.get("evidence") or [] if item.get("kind") not in kinds]
    if len(kept) == len(case.output.get("evidence") or []):
        return None
    if case.rng.random() < 0.5 or kind == "indicator":
        kept = []
    lost = ("unsupported_claim", "calculation_error", "earnings_hallucination")
    return case.mutant("/evidence", {"/evidence": kept, **more}, consequences=lost)


def _chosen(case: Case, *kinds: str) -> tuple[int, dict[str, Any]] | None:
    items = list(evidence_of(case.output, *kinds))
    return case.rng.choice(items) if items else None


def _names(item: str) -> tuple[str, ...]:
    return item, f"{item}/id", f"{item}/available_at"


def _tolerance(item: dict[str, Any]) -> float:
    return INDICATOR_TOLERANCE if item["kind"] == "indicator" else EVIDENCE_TOLERANCE


def _round_sum(rng: random.Random) -> float:
    return rounded(log_uniform(rng, 0.5, 5e9))


OPERATORS = (
    *operators("hallucination", ALL_AGENTS, _invented_item, _revised_later, _of_tomorrow),
    *operators("hallucination", "fundamental strategist", _unknown_document),
    *operators("data_inaccuracy", "technical fundamental strategist", _units, _currency, _split, _stale, _misread),
    *operators("data_inaccuracy", "news strategist", _misquoted),
    *operators("missing_data", "technical", _technical_evidence_lost),
    *operators("missing_data", "fundamental", _filing_evidence_lost),
    *operators("missing_data", "news", _articles_lost),
)
