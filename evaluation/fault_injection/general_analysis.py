"""Faults of analysis that every agent can make: thin work, bad sums, misused indicators, horizons without their evidence.

Listed in `registry`. A wrong sum stays where it was alone in half of the cases and is repeated by evidence and text in the
other half.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evaluation.fault_injection.drawing import (
    beyond,
    by_factor,
    carried_along,
    curt_text,
    digits_swapped,
    rounded,
)
from evaluation.fault_injection.model import Case, Mutant, operators
from utils.json_pointer import join
from utils.schema import direction

LEAST_INDICATORS = 3
DERIVED_TOLERANCE = 0.01
DERIVED = ("profit_margin", "revenue_growth", "earnings_growth")
LONG_WINDOW = 200
SHORT_WINDOWS = frozenset("rsi_14 sma_20 stoch_k stoch_d bb_upper bb_lower atr_14 mfi_14 adx_14 ema_12".split())
"""Indicators on windows of at most 20 bars."""
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


OPERATORS = (
    *operators("incomplete_analysis", "technical fundamental strategist", _reasoning_cut),
    *operators("incomplete_analysis", "technical", _few_indicators),
    *operators("incomplete_analysis", "strategist", _no_key_factors),
    *operators(
        "calculation_error",
        "fundamental",
        _derived_off,
        _derived_misread,
        _derived_sign_lost,
        _derived_percent_as_fraction,
    ),
    *operators(
        "indicator_misuse",
        "technical",
        _indicator_nobody_knows,
        _indicator_nobody_knows_cited,
        _window_longer_than_history,
    ),
    *operators(
        "timeframe_mismatch", "strategist", _short_term_on_filings, _intraday_on_filings, _long_term_on_short_windows
    ),
)
