"""Runs a detector over sound and damaged outputs and counts what it finds.

Called by the benchmark and by tests with any callable as the detector; streams the outputs it is given and keeps none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evaluation.fault_injection.model import Mutant, Sample
from evaluation.fault_injection.pointers import differing, overlap
from evaluation.fault_injection.registry import CATEGORIES, JUDGE_ONLY, JUDGE_PARTS, OPERATORS, STRUCTURAL
from evaluation.fault_injection.scores import CategoryScore, TaxonomyMeasurement
from evaluation.ground_truth import GroundTruth

__all__ = ["CategoryScore", "Detect", "TaxonomyMeasurement", "damage", "evaluate"]

UNTOUCHED = 0.3
"""Share of the outputs that stay sound."""

TWO_FAULTS = 0.3
"""Share of the damaged outputs that get a second fault, where one fits."""

_VERDICT = (
    "/recommendation", "/signal", "/valuation", "/sentiment_score", "/price_impact", "/expected_return", "/abstained",
    "/confidence",
)  # fmt: skip
"""Fields that speak of one thing: two faults among them would be one contradiction, or would cancel."""

_LEVELS = ("/entry_target", "/stop_loss", "/take_profit", "/risk_reward_ratio")
"""Fields that are checked against each other: a second fault among them would hide the first."""

_TRIES = 12


class Finding(Protocol):
    """What a detector reports."""

    @property
    def category(self) -> Any:
        """The category, a string or an enum of strings."""
        ...

    @property
    def location(self) -> str:
        """A JSON pointer."""
        ...


Detect = Callable[[str, dict[str, Any], GroundTruth], Iterable[Finding]]
"""Looks at an output of an agent type beside its facts; must not change them."""


@dataclass(frozen=True, slots=True)
class _Reported:
    category: str
    pointer: str
    sub_code: str | None


def evaluate(
    detect: Detect, samples: Iterable[Sample], seed: int = 42, mutants_per_category: int = 50
) -> TaxonomyMeasurement:
    """Measure a detector.

    Parameters
    ----------
    detect : callable
        (agent type, output, facts) to findings.
    samples : iterable of Sample
        Sound outputs; read to the end, so that the faults spread over all of the history.
    seed : int
        Equal seeds and samples give equal damage.
    mutants_per_category : int
        Faults wanted of each category: one that has fewer goes first wherever it applies. Where too few outputs allow
        them, `n` says so.
    """
    rng = random.Random(seed)
    measured = TaxonomyMeasurement({name: CategoryScore() for name in CATEGORIES}, {**JUDGE_ONLY, **JUDGE_PARTS})
    for sample in samples:
        faults: list[Mutant] = []
        if rng.random() >= UNTOUCHED:
            counts = {name: min(score.n, mutants_per_category) for name, score in measured.categories.items()}
            faults = damage(sample, counts, rng)
        if faults:
            _count_damaged(measured, detect, sample, faults)
        else:
            _count_clean(measured, sample, _reported(detect, sample.agent_type, sample.output, sample.truth))
    return measured


def damage(sample: Sample, counts: dict[str, int], rng: random.Random) -> list[Mutant]:
    """Return one fault, or two that do not meet, the last one with the output that has both; none where none applies.

    The rarest categories come first, so that what few outputs allow is planted where they do.
    """
    first = _planted(sample, CATEGORIES, counts, rng, None)
    if first is None:
        return []
    if first.category in STRUCTURAL or rng.random() >= TWO_FAULTS:
        return [first]
    others = [name for name in CATEGORIES if name not in STRUCTURAL and name != first.category]
    second = _planted(sample, others, {}, rng, first)
    return [first] if second is None else [first, second]


def _planted(
    sample: Sample, names: Sequence[str], counts: dict[str, int], rng: random.Random, beside: Mutant | None
) -> Mutant | None:
    """Return a fault of one of the categories, or None if none of those tried applies."""
    names = [name for name in names if any(sample.agent_type in o.agents for o in OPERATORS[name])]
    rng.shuffle(names)
    names.sort(key=lambda name: counts.get(name, 0))
    output, truth = (sample.output, sample.truth) if beside is None else (beside.output, beside.truth)
    for name in names[: _TRIES if beside is not None else None]:
        operators = list(OPERATORS[name])
        rng.shuffle(operators)
        for operator in operators:
            mutant = operator.apply(sample.agent_type, output, truth, rng, sample.peer)
            if mutant is not None and (beside is None or _apart(sample, beside, mutant)):
                return mutant
    return None


def _apart(sample: Sample, first: Mutant, second: Mutant) -> bool:
    """Return whether two faults leave each other's places, verdicts, levels, facts and categories alone."""
    if first.truth is not sample.truth or second.truth is not first.truth:
        return False
    ours = set(differing(sample.output, first.output)) | first.accepted
    theirs = set(differing(first.output, second.output)) | second.accepted
    if "/abstained" in ours | theirs or overlap(ours, theirs):
        # whoever abstains has nothing else to be wrong about
        return False
    if any(overlap(ours, group) and overlap(theirs, group) for group in (_VERDICT, _LEVELS)):
        return False
    return second.category not in first.consequences and first.category not in second.consequences


def _reported(detect: Detect, agent_type: str, output: dict[str, Any], truth: GroundTruth) -> list[_Reported]:
    return [
        _Reported(
            str(getattr(finding.category, "value", finding.category)),
            finding.location,
            getattr(finding, "sub_code", None),
        )
        for finding in detect(agent_type, output, truth)
    ]


def _count_clean(measured: TaxonomyMeasurement, sample: Sample, findings: Sequence[_Reported]) -> None:
    label = ", ".join((sample.agent_type, *sample.labels, *(("abstained",) if sample.output.get("abstained") else ())))
    seen = measured.clean_by_label.setdefault(label, [0, 0])
    seen[0] += bool(findings)
    seen[1] += 1
    _count_false(measured, {finding.category for finding in findings})
    if sample.output.get("abstained"):
        # an abstention says next to nothing: counted among the rest, it would dilute the false alarms
        return
    measured.clean += 1
    measured.clean_alarms += len(findings)
    measured.clean_squares += len(findings) ** 2
    measured.clean_alarmed += bool(findings)
    for finding in findings:
        if finding.category in measured.categories:
            measured.categories[finding.category].on_clean += 1


def _count_damaged(measured: TaxonomyMeasurement, detect: Detect, sample: Sample, faults: list[Mutant]) -> None:
    measured.damaged += 1
    measured.two_faults += len(faults) == 2
    final = faults[-1]
    findings = _reported(detect, sample.agent_type, final.output, final.truth)
    for fault in faults:
        _count_fault(measured, sample, fault, findings, faults)
        hits = [f for f in findings if f.category == fault.category and f.pointer in fault.accepted]
        if hits:
            _count_repair(measured.categories[fault.category], detect, sample, fault, final)
    explained = {fault.category for fault in faults}.union(*(fault.consequences for fault in faults))
    _count_false(measured, {finding.category for finding in findings} - explained)


def _count_fault(
    measured: TaxonomyMeasurement,
    sample: Sample,
    fault: Mutant,
    findings: Sequence[_Reported],
    faults: Sequence[Mutant],
) -> None:
    score = measured.categories[fault.category]
    score.n += 1
    named = [finding for finding in findings if finding.category == fault.category]
    hits = [finding for finding in named if finding.pointer in fault.accepted]
    score.found += bool(named)
    score.joint += bool(hits)
    tally = score.operators.setdefault(fault.operator, [0, 0])
    tally[0] += bool(hits)
    tally[1] += 1
    if hits and fault.sub_code is not None:
        score.sub_codes += 1
        score.sub_codes_right += any(finding.sub_code == fault.sub_code for finding in hits)
    if hits:
        return
    if named:
        score.instead.update({f"pointer {finding.pointer or '(whole)'}" for finding in named})
        return
    planted = {other.category for other in faults}
    others = {finding.category for finding in findings} - planted
    score.instead.update(others or {"nothing"})


def _count_repair(score: CategoryScore, detect: Detect, sample: Sample, fault: Mutant, final: Mutant) -> None:
    """Put the originals back into the output with all its faults, the facts too, and see whether the finding is gone."""
    score.repaired += 1
    findings = _reported(detect, sample.agent_type, fault.repaired(final.output), sample.truth)
    score.silenced += not any(f.category == fault.category and f.pointer in fault.accepted for f in findings)


def _count_false(measured: TaxonomyMeasurement, categories: set[str]) -> None:
    for category in categories:
        if category in measured.categories:
            measured.categories[category].false_alarms += 1
