"""Faults of what the fundamental analyst makes of figures: multiples, targets, praise of weak ratios, peers that are none.

Listed in `registry`. A multiple that is wrong rests on parts that are right.
"""

from __future__ import annotations

from typing import Any

from evaluation.fault_injection.drawing import (
    MARGIN,
    by_factor,
    digits_swapped,
    evidence_of,
    log_uniform,
    rounded,
)
from evaluation.fault_injection.fundamental_figures import HIGH_LEVERAGE, misstated
from evaluation.fault_injection.model import Case, Mutant, operators
from utils.json_pointer import join

MULTIPLE_TOLERANCE = 0.02
HIGHEST_PE = 1000.0
TARGET_FACTOR = 5.0
MULTIPLES = ("pe_ratio", "ps_ratio", "pb_ratio")


def _target_far_above(case: Case) -> Mutant | None:
    return _target(case, rounded(TARGET_FACTOR * log_uniform(case.rng, MARGIN, 20.0) * _price(case)))


def _target_of_a_split_ago(case: Case) -> Mutant | None:
    """Forget that the shares were split."""
    target = case.output["price_target"]
    return None if not target else _target(case, rounded(target * case.rng.choice((7.0, 10.0, 20.0))))


def _target_negative(case: Case) -> Mutant | None:
    return _target(case, -rounded(_price(case) * case.rng.uniform(0.05, 1.0)))


def _target(case: Case, value: float) -> Mutant | None:
    price = _price(case)
    if not price or 0 < value < TARGET_FACTOR * MARGIN * price:
        return None
    return case.mutant("/price_target", {"/price_target": value}, consequences=("invalid_value",))


def _multiple_off_its_parts(case: Case) -> Mutant | None:
    """Divide price by earnings, and get it wrong."""
    names = [
        str(e["id"]).rpartition(":")[2]
        for _, e in evidence_of(case.output, "derived")
        if str(e["id"]).endswith(MULTIPLES)
    ]
    if not names:
        return None
    right = case.output["key_metrics"][names[0]]
    drawn = case.rng.choice(
        (by_factor(case.rng, right, MULTIPLE_TOLERANCE, 4.0), digits_swapped(case.rng, right), 1 / right)
    )
    return misstated(case, names[0], drawn, MULTIPLE_TOLERANCE, ("calculation_error",))


def _multiple_absurd(case: Case) -> Mutant | None:
    if "pe_ratio" not in case.output["key_metrics"]:
        return None
    wrong = rounded(log_uniform(case.rng, HIGHEST_PE * MARGIN, 5e4))
    return misstated(case, "pe_ratio", wrong, MULTIPLE_TOLERANCE, ("calculation_error",))


def _loss_makes_a_multiple(case: Case) -> Mutant | None:
    """Divide the price by a loss and report the quotient."""
    eps, price = case.output["key_metrics"].get("eps", 0.0), _price(case)
    if eps >= 0 or not price or "pe_ratio" in case.output["key_metrics"]:
        return None
    value = rounded(price / eps)
    model = next((e for _, e in evidence_of(case.output, "filing") if str(e["id"]).endswith(":eps")), None)
    if model is None:
        return None
    item = {**model, "id": "derived:pe_ratio", "kind": "derived", "value": value, "unit": "ratio", "source": "filings"}
    changes = {"/key_metrics/pe_ratio": value, "/evidence/-": item}
    return case.mutant("/key_metrics/pe_ratio", changes, consequences=("hallucination",))


def _thin_liquidity_praised(case: Case) -> Mutant | None:
    value = case.output["key_metrics"].get("current_ratio", 9.0)
    return None if value >= 1 / 1.01 else _praised(case, "current_ratio", "current ratio", value)


def _leverage_praised(case: Case) -> Mutant | None:
    value = case.output["key_metrics"].get("debt_to_equity", 0.0)
    return None if value <= HIGH_LEVERAGE * 1.01 else _praised(case, "debt_to_equity", "debt to equity", value)


def _praised(case: Case, name: str, words: str, value: float) -> Mutant | None:
    """Count a weak ratio among the strengths, by its name or in words."""
    called = case.rng.choice((name, words, words.capitalize()))
    text = case.rng.choice(("solid {} of {}", "comfortable {} at {}", "healthy {} ({})")).format(called, f"{value:.3g}")
    strengths = case.output["key_strengths"]
    pointer = join(
        "key_strengths", case.rng.randrange(len(strengths)) if strengths and case.rng.random() < 0.3 else len(strengths)
    )
    return case.mutant(pointer, {pointer: text}, same=("/key_strengths", f"/key_metrics/{name}"))


def _peer_of_another_sector(case: Case) -> Mutant | None:
    """Compare with a company of another sector, truly labelled."""
    found, own = _peer_item(case), case.truth.sectors.get(case.output["symbol"])
    others = sorted(name for name, sector in case.truth.sectors.items() if sector != own)
    if found is None or not others:
        return None
    other = case.rng.choice(others)
    return _peer(case, found, {"tickers": [other], "sector": case.truth.sectors[other], "id": f"peer:{other}:pe_ratio"})


def _peer_under_a_false_sector(case: Case) -> Mutant | None:
    """Claim one's own sector for a company of another."""
    found, own = _peer_item(case), case.truth.sectors.get(case.output["symbol"])
    others = sorted(name for name, sector in case.truth.sectors.items() if sector != own)
    if found is None or not others:
        return None
    other = case.rng.choice(others)
    return _peer(case, found, {"tickers": [other], "id": f"peer:{other}:pe_ratio"})


def _second_peer_of_another_sector(case: Case) -> Mutant | None:
    found, own = _peer_item(case), case.truth.sectors.get(case.output["symbol"])
    others = sorted(name for name, sector in case.truth.sectors.items() if sector != own)
    if found is None or not others:
        return None
    other, index = case.rng.choice(others), len(case.output["evidence"])
    item = {**found[1], "tickers": [other], "sector": case.truth.sectors[other], "id": f"peer:{other}:pe_ratio"}
    pointer = join("evidence", index)
    same = (pointer, f"{pointer}/tickers", f"{pointer}/id")
    return case.mutant(f"{pointer}/sector", {pointer: item}, same=same)


def _peer(case: Case, found: tuple[int, dict[str, Any]], changes: dict[str, Any]) -> Mutant:
    pointer = join("evidence", found[0])
    same = (pointer, f"{pointer}/tickers", f"{pointer}/id")
    return case.mutant(f"{pointer}/sector", {join("evidence", found[0], k): v for k, v in changes.items()}, same=same)


def _peer_item(case: Case) -> tuple[int, dict[str, Any]] | None:
    return next(evidence_of(case.output, "peer"), None)


def _price(case: Case) -> float:
    """Return the newest close in USD, 0 where there is none."""
    return (case.truth.snapshot.price or 0.0) if case.truth.snapshot is not None else 0.0


OPERATORS = (
    *operators(
        "valuation_calculation_error",
        "fundamental",
        _target_far_above,
        _target_of_a_split_ago,
        _target_negative,
        _multiple_off_its_parts,
        _multiple_absurd,
    ),
    *operators(
        "financial_ratio_misinterpretation",
        "fundamental",
        _loss_makes_a_multiple,
        _thin_liquidity_praised,
        _leverage_praised,
    ),
    *operators(
        "sector_comparison_invalid",
        "fundamental",
        _peer_of_another_sector,
        _peer_under_a_false_sector,
        _second_peer_of_another_sector,
    ),
)
