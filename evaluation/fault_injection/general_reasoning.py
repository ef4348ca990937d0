"""Faults of reasoning and judgement that every agent can make: contradiction, thin analysis, false confidence, bad sums.

Listed in `registry`. Where a rule sets two fields against each other and nothing tells which is wrong, both are right
answers; the field that was damaged is the named one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evaluation.fault_injection.drawing import (
    MARGIN,
    beyond,
    by_factor,
    carried_along,
    curt_text,
    digits_swapped,
    log_uniform,
    opposite,
    rounded,
    side_of,
)
from evaluation.fault_injection.model import Case, Mutant, operators
from evaluation.fault_injection.pointers import join
from utils.schema import direction

LEAST_RISK_LETTERS = 20
LEAST_INDICATORS = 3
CLEAR_SENTIMENT = 0.5
DERIVED_TOLERANCE = 0.01
DERIVED = ("profit_margin", "revenue_growth", "earnings_growth")
LONG_WINDOW = 200
SHORT_WINDOWS = frozenset("rsi_14 sma_20 stoch_k stoch_d bb_upper bb_lower atr_14 mfi_14 adx_14 ema_12".split())
"""Indicators on windows of at most 20 bars."""

_CURT_RISKS = ("", "None.", "Low.", "n/a", "Moderate risk.", "Usual risks.")
_UNKNOWN_INDICATORS = (
    "rsi_99",
    "supertrend_10",
    "trix_15",
    "vortex_14",
    "alpha_momentum",
    "sma_37",
    "macd_histogram_x",
)


def _reasoning_cut(case: Case) -> Mutant | None:
    return case.mutant("/reasoning", {"/reasoning": curt_text(case.rng, str(case.output.get("reasoning") or ""))})


def _few_indicators(case: Case) -> Mutant | None:
    indicators = case.output["indicators"]
    if len(indicators) < LEAST_INDICATORS:
        return None
    names = case.rng.sample(sorted(indicators), case.rng.randrange(LEAST_INDICATORS))
    return case.mutant("/indicators", {"/indicators": {name: indicators[name] for name in names}})


def _no_key_factors(case: Case) -> Mutant | None:
    sides = {direction(o.recommendation) for o in case.truth.agent_outputs.values() if not o.abstained}
    if {1, -1} <= sides or not case.output["key_factors"]:
        return None
    return case.mutant("/key_factors", {"/key_factors": []})


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
    stop, take = case.output["stop_loss"], case.output["take_profit"]
    if not side_of(case.output) or stop is None or take is None:
        return None
    return case.mutant("/risk_assessment", {"/risk_assessment": f"stop {stop}, take {take}, 1:2, 5"})


def _derived_off(case: Case) -> Mutant | None:
    return _derived(case, lambda value: by_factor(case.rng, value, DERIVED_TOLERANCE, 1.5))


def _derived_misread(case: Case) -> Mutant | None:
    return _derived(case, lambda value: digits_swapped(case.rng, value))


def _derived_sign_lost(case: Case) -> Mutant | None:
    return _derived(case, lambda value: -value)


def _derived_percent_as_fraction(case: Case) -> Mutant | None:
    return _derived(case, lambda value: value * case.rng.choice((100.0, 0.01)))


def _derived(case: Case, wrong: Any) -> Mutant | None:
    """Return the output with a margin or growth that its parts do not give."""
    derived = {str(e["id"]).rpartition(":")[2] for e in case.output["evidence"] if e.get("kind") == "derived"}
    names = [n for n in DERIVED if n in derived and abs(case.output["key_metrics"].get(n, 0.0)) > 1e-4]
    if not names:
        return None
    name = case.rng.choice(names)
    right = case.output["key_metrics"][name]
    value = wrong(right)
    if value is None or not beyond(rounded(value), right, DERIVED_TOLERANCE) or abs(value - right) < 1e-4:
        return None
    pointer = join("key_metrics", name)
    changes, broken = carried_along(case.rng, case.output, name, right, rounded(value))
    same = tuple(place for place in changes if place.endswith("/value"))
    broken = (*broken, "growth_projection_unrealistic")
    return case.mutant(pointer, {pointer: rounded(value), **changes}, same=same, consequences=broken)


def _indicator_nobody_knows(case: Case) -> Mutant | None:
    return _unknown_indicator(case, with_evidence=False)


def _indicator_nobody_knows_cited(case: Case) -> Mutant | None:
    return _unknown_indicator(case, with_evidence=True)


def _unknown_indicator(case: Case, *, with_evidence: bool) -> Mutant | None:
    name = case.rng.choice(_UNKNOWN_INDICATORS)
    value = round(case.rng.uniform(0.1, 90.0), 3)
    pointer = join("indicators", name)
    changes: dict[str, Any] = {pointer: value}
    model = next((e for e in case.output["evidence"] if e["kind"] == "indicator"), None)
    if name in case.output["indicators"] or model is None:
        return None
    if with_evidence:
        changes["/evidence/-"] = {**model, "id": f"ind:{name}", "value": value, "unit": "index"}
    broken = ("hallucination", "unsupported_claim", "data_inaccuracy")
    return case.mutant(pointer, changes, consequences=broken)


def _window_longer_than_history(case: Case) -> Mutant | None:
    """Average over the bars there are and call it the long average."""
    snapshot = case.truth.snapshot
    if snapshot is None or "sma_200" in case.output["indicators"] or len(snapshot.bars) >= LONG_WINDOW:
        return None
    value = rounded(float(snapshot.bars.close.mean()) * case.rng.choice((1.0, 1.0, case.rng.uniform(0.9, 1.1))))
    model = next((e for e in case.output["evidence"] if e["kind"] == "indicator"), None)
    if model is None:
        return None
    item = {**model, "id": "ind:sma_200", "value": value, "unit": "USD"}
    return case.mutant(
        "/indicators/sma_200", {"/indicators/sma_200": value, "/evidence/-": item},
        consequences=("hallucination", "unsupported_claim", "data_inaccuracy", "indicator_calculation_error"),
    )  # fmt: skip


def _short_term_on_filings(case: Case) -> Mutant | None:
    return _horizon(case, "filing", {"/time_horizon": "short_term"})


def _intraday_on_filings(case: Case) -> Mutant | None:
    """An intraday trade on filings, while the exchange is open so that nothing else is wrong with it."""
    found = _horizon(case, "filing", {"/time_horizon": "intraday"})
    return None if found is None else replace(found, truth=replace(case.truth, market_open=True))


def _long_term_on_short_windows(case: Case) -> Mutant | None:
    return _horizon(case, "indicator", {"/time_horizon": "long_term"})


def _horizon(case: Case, kind: str, changes: dict[str, Any]) -> Mutant | None:
    """Keep the evidence of one kind alone, beside a horizon that it says nothing of."""
    kept = [item for item in case.output["evidence"] if item["kind"] == kind]
    if kind == "indicator":
        kept = [item for item in kept if str(item["id"]).rpartition(":")[2] in SHORT_WINDOWS]
    if len(kept) < 2:
        return None
    broken = ("take_profit_unrealistic",)
    return case.mutant("/time_horizon", {"/evidence": kept, **changes}, same=("/evidence",), consequences=broken)


_JUNIORS = "news technical fundamental"
OPERATORS = (
    *operators("incomplete_analysis", "technical fundamental strategist", _reasoning_cut),
    *operators("incomplete_analysis", "technical", _few_indicators),
    *operators("incomplete_analysis", "strategist", _no_key_factors),
    *operators("contradictory", _JUNIORS, _recommendation_turned, _view_turned),
    *operators("contradictory", f"{_JUNIORS} strategist", _abstained_with_a_side),
    *operators("contradictory", "strategist", _abstained_with_a_size),
    *operators("wrong_recommendation", "strategist", _return_of_the_other_sign, _return_sign_lost),
    *operators("wrong_recommendation", _JUNIORS, _against_the_known_call),
    *operators("inappropriate_confidence", "news strategist", _certain_on_one_item),
    *operators("inappropriate_confidence", "strategist", _position_without_conviction, _confidence_decimal_slip),
    *operators("missing_risk_assessment", "strategist", _risk_left_out, _risk_in_a_word, _risk_in_figures),
    *operators(
        "calculation_error", "fundamental",
        _derived_off, _derived_misread, _derived_sign_lost, _derived_percent_as_fraction,
    ),
    *operators(
        "indicator_misuse", "technical",
        _indicator_nobody_knows, _indicator_nobody_knows_cited, _window_longer_than_history,
    ),
    *operators(
        "timeframe_mismatch", "strategist", _short_term_on_filings, _intraday_on_filings, _long_term_on_short_windows
    ),
)  # fmt: skip
