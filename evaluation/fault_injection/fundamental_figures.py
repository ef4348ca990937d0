"""Faults of the figures that the fundamental analyst states: earnings, leverage and growth that no filing bears out.

Listed in `registry`. A wrong figure stays where it was alone in half of the cases and is repeated by evidence and text in
the other half; what would follow from it is left as it was.
"""

from __future__ import annotations

from typing import Any

from evaluation.fault_injection.drawing import (
    MARGIN,
    beyond,
    by_factor,
    carried_along,
    digits_swapped,
    evidence_of,
    log_uniform,
    rounded,
)
from evaluation.fault_injection.model import ABSENT, Case, Mutant, operators
from utils.json_pointer import join

EARNINGS_TOLERANCE = 0.01
LEVERAGE_TOLERANCE = 0.05
GROWTH_LIMIT, GROWTH_FACTOR, COLLAPSE = 0.5, 3.0, -0.9
SOUND_HEALTH, HIGH_LEVERAGE, THIN_COVER = 0.7, 2.0, 1.5
KEY_METRICS = ("pe_ratio", "revenue_growth", "profit_margin", "debt_to_equity")
EARNINGS = ("eps", "revenue", "net_income")
_DEPENDENT = (
    "calculation_error",
    "valuation_calculation_error",
    "growth_projection_unrealistic",
    "debt_analysis_error",
)


def _earnings_off(case: Case) -> Mutant | None:
    return _earnings(case, lambda value: by_factor(case.rng, value, EARNINGS_TOLERANCE, 2.0))


def _earnings_in_thousands(case: Case) -> Mutant | None:
    return _earnings(case, lambda value: value * case.rng.choice((1e-3, 1e3, 1e-6)))


def _earnings_misread(case: Case) -> Mutant | None:
    return _earnings(case, lambda value: digits_swapped(case.rng, value))


def _earnings_sign_lost(case: Case) -> Mutant | None:
    return _earnings(case, lambda value: -value, ("eps", "net_income"))


def _earnings_of_another_company(case: Case) -> Mutant | None:
    other = case.peer.output["key_metrics"] if case.peer is not None else {}
    name = case.rng.choice(EARNINGS)
    return _earnings(case, lambda value: other.get(name), (name,))


def _earnings(case: Case, wrong: Any, names: tuple[str, ...] = EARNINGS) -> Mutant | None:
    """State a figure that stands in no filing known at the time, not even an older one."""
    stated = [name for name in names if name in case.output["key_metrics"]]
    if not stated or case.truth.snapshot is None:
        return None
    name = case.rng.choice(stated)
    value = wrong(case.output["key_metrics"][name])
    filed = [f.metrics[name] for f in case.truth.snapshot.filings if name in f.metrics]
    if value is None or any(not beyond(rounded(value), figure, EARNINGS_TOLERANCE) for figure in filed):
        return None
    return misstated(case, name, rounded(value), EARNINGS_TOLERANCE, _DEPENDENT)


def _leverage_off(case: Case) -> Mutant | None:
    return _leverage(case, lambda value: by_factor(case.rng, value, LEVERAGE_TOLERANCE, 4.0))


def _leverage_in_percent(case: Case) -> Mutant | None:
    return _leverage(case, lambda value: value * 100.0)


def _leverage_inverted(case: Case) -> Mutant | None:
    return _leverage(case, lambda value: 1 / value)


def _leverage_to_capital(case: Case) -> Mutant | None:
    """Divide debt by debt and equity together."""
    return _leverage(case, lambda value: value / (1 + value))


def _leverage(case: Case, wrong: Any) -> Mutant | None:
    right = case.output["key_metrics"].get("debt_to_equity", 0.0)
    if right <= 0.01:
        return None
    broken = ("financial_ratio_misinterpretation", "calculation_error")
    return misstated(case, "debt_to_equity", rounded(wrong(right)), LEVERAGE_TOLERANCE, broken)


def _debt_overlooked(case: Case) -> Mutant | None:
    """Call a company sound that owes more than twice its equity and hardly earns its interest."""
    metrics = case.output["key_metrics"]
    if metrics.get("debt_to_equity", 0.0) <= HIGH_LEVERAGE or metrics.get("interest_cover", 9.0) >= THIN_COVER:
        return None
    wrong = round(case.rng.uniform(SOUND_HEALTH + 0.02, 0.99), 3)
    return case.mutant("/financial_health", {"/financial_health": wrong}, same=("/key_metrics/debt_to_equity",))


def _growth_dreamt(case: Case) -> Mutant | None:
    return _growth(case, lambda limit: limit * log_uniform(case.rng, MARGIN, 8.0))


def _growth_in_percent(case: Case) -> Mutant | None:
    """Write 12.5 for 12.5 %."""
    names = [
        name for name in ("revenue_growth", "earnings_growth") if abs(case.output["key_metrics"].get(name, 0.0)) > 0.02
    ]
    return None if not names else _growth(case, lambda limit: 100 * abs(case.output["key_metrics"][names[0]]), names)


def _growth_collapsed(case: Case) -> Mutant | None:
    return _growth(case, lambda limit: -case.rng.uniform(0.92, 1.0))


def _growth(case: Case, wrong: Any, names: list[str] | None = None) -> Mutant | None:
    names = names or [name for name in ("revenue_growth", "earnings_growth") if name in case.output["key_metrics"]]
    if not names:
        return None
    name = case.rng.choice(names)
    limit = max(GROWTH_LIMIT, GROWTH_FACTOR * _fastest_growth(case))
    value = rounded(wrong(limit))
    if COLLAPSE / 1.01 <= value < limit * MARGIN:
        return None
    return misstated(case, name, value, EARNINGS_TOLERANCE, ("calculation_error",))


def _fastest_growth(case: Case) -> float:
    """Return the highest growth a year between any two filings, which bounds every way to reckon three years' growth."""
    snapshot, fastest = case.truth.snapshot, 0.0
    for name in ("revenue", "eps", "net_income"):
        known = [(f.period_end, f.metrics[name]) for f in (snapshot.filings if snapshot else ()) if name in f.metrics]
        for position, (ended, value) in enumerate(known):
            for later, after in known[position + 1 :]:
                years = (later - ended).days / 365.25
                if years > 0.9 and value > 0 and after > 0:
                    fastest = max(fastest, (after / value) ** (1 / years) - 1)
    return fastest


def _metrics_left_out(case: Case) -> Mutant | None:
    return case.mutant("/key_metrics", {"/key_metrics": {}}) if case.output["key_metrics"] else None


def _filed_metric_left_out(case: Case) -> Mutant | None:
    return _left_out(case, with_evidence=True)


def _filed_metric_not_used(case: Case) -> Mutant | None:
    """Cite a filed figure and do not carry it into the metrics."""
    return _left_out(case, with_evidence=False)


def _left_out(case: Case, *, with_evidence: bool) -> Mutant | None:
    filed = {str(e["id"]).rpartition(":")[2] for _, e in evidence_of(case.output, "filing")}
    names = [name for name in KEY_METRICS if name in case.output["key_metrics"] and name in filed]
    if not names:
        return None
    name = case.rng.choice(names)
    pointer = join("key_metrics", name)
    changes: dict[str, Any] = {pointer: ABSENT}
    if with_evidence:
        kept = [e for e in case.output["evidence"] if str(e["id"]).rpartition(":")[2] != name]
        changes["/evidence"] = kept
    return case.mutant(pointer, changes, same=("/key_metrics",))


def misstated(case: Case, name: str, value: float | None, tolerance: float, broken: tuple[str, ...]) -> Mutant | None:
    """Return the output with one metric off by more than its rule tolerates."""
    right = case.output["key_metrics"].get(name)
    if right is None or value is None or not beyond(rounded(value), right, tolerance):
        return None
    value = rounded(value)
    pointer = join("key_metrics", name)
    changes, also = carried_along(case.rng, case.output, name, right, value)
    same = tuple(place for place in changes if place.endswith("/value"))
    return case.mutant(pointer, {pointer: value, **changes}, same=same, consequences=(*broken, *also))


OPERATORS = (
    *operators(
        "earnings_hallucination",
        "fundamental",
        _earnings_off,
        _earnings_in_thousands,
        _earnings_misread,
        _earnings_sign_lost,
        _earnings_of_another_company,
    ),
    *operators(
        "debt_analysis_error",
        "fundamental",
        _leverage_off,
        _leverage_in_percent,
        _leverage_inverted,
        _leverage_to_capital,
        _debt_overlooked,
    ),
    *operators("growth_projection_unrealistic", "fundamental", _growth_dreamt, _growth_in_percent, _growth_collapsed),
    *operators("missing_key_metric", "fundamental", _metrics_left_out, _filed_metric_left_out, _filed_metric_not_used),
)
