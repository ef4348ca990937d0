"""Claims that nothing supports, for every agent: figures whose evidence is gone, sums and percentages from nowhere.

Listed in `registry`. An invented number is like no other that the output, its inputs or the facts hold.
"""

from __future__ import annotations

from typing import Any

from evaluation.fault_injection.drawing import (
    evidence_of,
    log_uniform,
    numbers_in,
    rounded,
    unlike,
)
from evaluation.fault_injection.model import ALL_AGENTS, Case, Mutant, operators
from utils.json_pointer import join

TEXT_TOLERANCE = 0.01


def _evidence_dropped(case: Case) -> Mutant | None:
    """State an indicator or metric for which no evidence is given any more."""
    field = "indicators" if "indicators" in case.output else "key_metrics"
    named = [
        (i, str(e["id"]).rpartition(":")[2])
        for i, e in evidence_of(case.output)
        if str(e["id"]).rpartition(":")[2] in case.output.get(field, {})
    ]
    if not named or len(case.output["evidence"]) < 4:
        return None
    _, name = case.rng.choice(named)
    kept = [e for e in case.output["evidence"] if str(e["id"]).rpartition(":")[2] != name]
    pointer = join(field, name)
    return case.mutant(pointer, {"/evidence": kept}, consequences=("missing_data",), mend=("/evidence",))


def _figure_from_nowhere(case: Case) -> Mutant | None:
    """Add a metric that nothing supports and no filing states."""
    name, low, high = case.rng.choice(
        (("dividend_yield", 0.004, 0.07), ("free_cash_flow_margin", 0.02, 0.35), ("peg_ratio", 0.4, 4.0))
    )
    if name in case.output.get("key_metrics", {}):
        return None
    value = unlike(case.rng, lambda: rounded(case.rng.uniform(low, high)), _known(case), TEXT_TOLERANCE)
    pointer = join("key_metrics", name)
    return (
        None if value is None else case.mutant(pointer, {pointer: value}, consequences=("valuation_calculation_error",))
    )


def _invented_percentage(case: Case) -> Mutant | None:
    sentence = case.rng.choice(
        (
            "Institutional ownership stands at {}%.",
            "Short interest has fallen to {}% of the float.",
            "Margins rose by {}%.",
        )
    )
    return _told(case, sentence, lambda: round(case.rng.uniform(2.0, 95.0), 1))


def _invented_sum(case: Case) -> Mutant | None:
    sentence = case.rng.choice(
        ("Fair value is put at ${}.", "Peers trade at an average of {} USD.", "Buybacks reach ${}.")
    )
    return _told(case, sentence, lambda: round(log_uniform(case.rng, 3.0, 4000.0), 2))


def _told(case: Case, sentence: str, draw: Any) -> Mutant | None:
    """Add a sentence with a number and its unit that stands nowhere else."""
    reasoning = case.output.get("reasoning") or ""
    value = unlike(case.rng, draw, _known(case), TEXT_TOLERANCE)
    if value is None or len(reasoning) < 50:
        return None
    return case.mutant("/reasoning", {"/reasoning": f"{reasoning} {sentence.format(value)}"})


def _known(case: Case) -> set[float]:
    """Return every number that the output, the juniors' outputs, the filings and the newest bars hold."""
    known = set(numbers_in({key: value for key, value in case.output.items() if key != "as_of"}))
    for other in case.truth.agent_outputs.values():
        known |= set(numbers_in(other.model_dump(mode="json")))
    if case.truth.snapshot is not None:
        known |= {value for filing in case.truth.snapshot.filings for value in filing.metrics.values()}
        known |= {float(value) for value in case.truth.snapshot.bars.close[-5:]}
    return known


OPERATORS = (
    *operators("unsupported_claim", "technical fundamental", _evidence_dropped),
    *operators("unsupported_claim", "fundamental", _figure_from_nowhere),
    *operators("unsupported_claim", ALL_AGENTS, _invented_percentage, _invented_sum),
)
