"""Faults of judgement that every agent can make: contradiction, the wrong side, false confidence, risk left out.

Listed in `registry`. Where a rule sets two fields against each other and nothing tells which is wrong, both are right
answers; the field that was damaged is the named one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evaluation.fault_injection.drawing import (
    MARGIN,
    log_uniform,
    opposite,
    rounded,
    side_of,
)
from evaluation.fault_injection.model import Case, Mutant, operators
from utils.schema import direction

CLEAR_SENTIMENT = 0.5
_CURT_RISKS = ("", "None.", "Low.", "n/a", "Moderate risk.", "Usual risks.")


def _recommendation_turned(case: Case) -> Mutant | None:
    """Recommend the opposite of one's own signal, valuation or sentiment."""
    output = case.output
    rsi = output.get("indicators", {}).get("rsi_14", 50.0)
    side = side_of(output)
    against = _own_view(output)
    if not side or against != side or not 30 <= rsi <= 70:
        return None
    return case.mutant("/recommendation", {"/recommendation": opposite(output["recommendation"])}, same=_views(output))


def _view_turned(case: Case) -> Mutant | None:
    """State a signal or valuation opposite to one's own recommendation."""
    output, side = case.output, side_of(case.output)
    if not side:
        return None
    if "signal" in output:
        wrong: dict[str, Any] = {"/signal": "sell" if side > 0 else "buy"}
    elif "valuation" in output:
        wrong = {"/valuation": "overvalued" if side > 0 else "undervalued"}
    else:
        return None
    pointer = next(iter(wrong))
    return case.mutant(pointer, wrong, same=("/recommendation",))


def _abstained_with_a_side(case: Case) -> Mutant | None:
    if not side_of(case.output):
        return None
    changes: dict[str, Any] = {
        "/abstained": True, "/confidence": 0.0, "/abstain_reason": "the data do not suffice for a view"
    }  # fmt: skip
    if "position_size" in case.output:
        changes["/position_size"] = 0.0
    same = ("/recommendation", "/position_size")
    return case.mutant("/abstained", changes, same=same, consequences=("missing_data", "inappropriate_confidence"))


def _abstained_with_a_size(case: Case) -> Mutant | None:
    size = case.output["position_size"]
    if size <= 0:
        return None
    changes = {
        "/abstained": True, "/confidence": 0.0, "/recommendation": "hold", "/abstain_reason": "no conviction after review"
    }  # fmt: skip
    return case.mutant(
        "/abstained", changes, same=("/position_size", "/recommendation"), consequences=("position_size_inappropriate",)
    )


def _own_view(output: dict[str, Any]) -> int:
    if "signal" in output:
        return direction(output["signal"])
    if "valuation" in output:
        return {"undervalued": 1, "overvalued": -1}.get(output["valuation"], 0)
    score = output.get("sentiment_score", 0.0)
    return 0 if abs(score) <= CLEAR_SENTIMENT * 1.02 else (1 if score > 0 else -1)


def _views(output: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"/{name}" for name in ("signal", "valuation", "sentiment_score") if name in output)


def _return_of_the_other_sign(case: Case) -> Mutant | None:
    side = side_of(case.output)
    if not side:
        return None
    wrong = -side * round(log_uniform(case.rng, 0.0005, 0.4), 4)
    return case.mutant("/expected_return", {"/expected_return": wrong}, same=("/recommendation",))


def _return_sign_lost(case: Case) -> Mutant | None:
    """State the trade's return where the instrument's is asked for."""
    side, expected = side_of(case.output), case.output["expected_return"]
    if not side or abs(expected) < 1e-5:
        return None
    wrong = rounded(-expected)
    return case.mutant("/expected_return", {"/expected_return": wrong}, same=("/recommendation",))


def _against_the_known_call(case: Case) -> Mutant | None:
    """Take the other side consistently, where the right call is known."""
    output, side = case.output, side_of(case.output)
    rsi = output.get("indicators", {}).get("rsi_14", 50.0)
    allowed = (
        "signal" in output
        or output.get("valuation") == "fairly_valued"
        or abs(output.get("sentiment_score", 9.0)) < CLEAR_SENTIMENT / MARGIN
    )
    if not side or not allowed or not 30 <= rsi <= 70:
        return None
    wrong = opposite(output["recommendation"])
    changes: dict[str, Any] = {"/recommendation": wrong}
    if "signal" in output:
        changes["/signal"] = wrong.removeprefix("strong_")
    truth = replace(case.truth, recommendation=output["recommendation"])
    return case.mutant("/recommendation", changes, truth=truth)


def _certain_on_one_item(case: Case) -> Mutant | None:
    """Be almost sure on a single piece of evidence."""
    evidence = case.output["evidence"]
    if len(evidence) > 1 and case.output["agent_type"] != "strategist":
        return None
    wrong = round(case.rng.uniform(0.91, 1.0), 3)
    return case.mutant("/confidence", {"/confidence": wrong, "/evidence": evidence[:1]}, same=("/evidence",))


def _position_without_conviction(case: Case) -> Mutant | None:
    if not side_of(case.output) or case.output["position_size"] <= 0:
        return None
    wrong = round(case.rng.uniform(0.02, 0.5 / MARGIN), 3)
    return case.mutant("/confidence", {"/confidence": wrong}, same=("/position_size",))


def _confidence_decimal_slip(case: Case) -> Mutant | None:
    if not side_of(case.output) or case.output["position_size"] <= 0:
        return None
    wrong = round(case.output["confidence"] / case.rng.choice((10, 100)), 6)
    return case.mutant("/confidence", {"/confidence": wrong}, same=("/position_size",))


def _risk_left_out(case: Case) -> Mutant | None:
    return case.mutant("/risk_assessment", {"/risk_assessment": ""}) if side_of(case.output) else None


def _risk_in_a_word(case: Case) -> Mutant | None:
    text = case.rng.choice(_CURT_RISKS[1:])
    return case.mutant("/risk_assessment", {"/risk_assessment": text}) if side_of(case.output) else None


def _risk_in_figures(case: Case) -> Mutant | None:
    """Give numbers where words are asked for."""
    stop, take = case.output.get("stop_loss"), case.output.get("take_profit")
    if not side_of(case.output) or stop is None or take is None:
        return None
    return case.mutant("/risk_assessment", {"/risk_assessment": f"stop {stop}, take {take}, 1:2, 5"})


_JUNIORS = "news technical fundamental"


OPERATORS = (
    *operators("contradictory", _JUNIORS, _recommendation_turned, _view_turned),
    *operators("contradictory", f"{_JUNIORS} strategist", _abstained_with_a_side),
    *operators("contradictory", "strategist", _abstained_with_a_size),
    *operators("wrong_recommendation", "strategist", _return_of_the_other_sign, _return_sign_lost),
    *operators("wrong_recommendation", _JUNIORS, _against_the_known_call),
    *operators("inappropriate_confidence", "news strategist", _certain_on_one_item),
    *operators("inappropriate_confidence", "strategist", _position_without_conviction, _confidence_decimal_slip),
    *operators("missing_risk_assessment", "strategist", _risk_left_out, _risk_in_a_word, _risk_in_figures),
)
