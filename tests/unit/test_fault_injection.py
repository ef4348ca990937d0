"""Fault operators break exactly the rule that they name, and the harness counts what a detector finds of them."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import pytest

from benchmarks.clean_outputs import ENRICHED, GENERATED, clean_outputs
from data_pipeline.sentiment import score_text
from evaluation.fault_injection import ABSENT, CATEGORIES, JUDGE_ONLY, OPERATORS, Mutant, Operator, Sample, evaluate
from evaluation.fault_injection.harness import damage
from evaluation.fault_injection.pointers import differing, get, overlap, put
from evaluation.fault_injection.scores import F1, Rate, Share
from evaluation.ground_truth import GroundTruth
from tests.integration.generated_history import generate
from utils.schema import parse_output

SEED = 5
EACH = [
    pytest.param(operator, id=f"{operator.category}-{operator.name}") for c in CATEGORIES for operator in OPERATORS[c]
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Sound outputs on a generated history of a few symbols with news."""
    history = generate(11, ("AAA", "BBB", "CCC", "DDD", "EEE", "FFF"), date(2012, 1, 3), date(2013, 6, 28), edge=0.004)
    folder = history.write(tmp_path_factory.mktemp("history"))
    return list(clean_outputs(folder, SEED, 0.25))


def mutants(operator: Operator, samples: list[Sample], wanted: int = 12) -> list[tuple[Sample, Mutant]]:
    """Return the operator's mutants of the first samples it applies to."""
    rng = random.Random(SEED)
    found = []
    for sample in samples:
        mutant = operator.apply(sample.agent_type, sample.output, sample.truth, rng, sample.peer)
        if mutant is not None:
            found.append((sample, mutant))
            if len(found) == wanted:
                break
    return found


def named(category: str, name: str) -> Operator:
    return next(operator for operator in OPERATORS[category] if operator.name == name)


def all_mutants(category: str, samples: list[Sample], wanted: int = 12) -> list[tuple[Sample, Mutant]]:
    return [pair for operator in OPERATORS[category] for pair in mutants(operator, samples, wanted)]


# the operators


def test_every_category_that_code_decides_has_at_least_three_operators() -> None:
    assert len(CATEGORIES) == 43
    assert not set(CATEGORIES) & set(JUDGE_ONLY)
    assert min(len(operators) for operators in OPERATORS.values()) >= 3


def test_names_of_a_categorys_operators_differ() -> None:
    assert all(len({o.name for o in operators}) == len(operators) for operators in OPERATORS.values())


def test_sound_outputs_parse_without_findings(samples: list[Sample]) -> None:
    assert len(samples) > 500
    for sample in samples:
        output, findings = parse_output(sample.output)
        assert output is not None
        assert findings == []


def test_sound_outputs_say_what_is_generated_and_what_is_enriched(samples: list[Sample]) -> None:
    opinions = [s for s in samples if s.agent_type == "fundamental"]
    assert all(GENERATED in sample.labels for sample in opinions)
    peers = [s for s in opinions if any(e["kind"] == "peer" for e in s.output["evidence"])]
    assert peers
    assert all(ENRICHED in sample.labels for sample in peers)


def test_filings_of_a_sample_were_known_at_its_time(samples: list[Sample]) -> None:
    facts = [sample.truth.snapshot for sample in samples]
    assert all(f.available_at <= s.as_of for s in facts if s is not None for f in s.filings)


@pytest.mark.parametrize("operator", EACH)
def test_an_operator_applies_and_differs_at_its_pointer(operator: Operator, samples: list[Sample]) -> None:
    found = mutants(operator, samples)
    assert found
    for sample, mutant in found:
        changed = set(differing(sample.output, mutant.output))
        in_facts = mutant.truth is not sample.truth
        assert overlap(changed, mutant.accepted) or in_facts or mutant.category == "unsupported_claim"
        assert changed
        assert mutant.category == operator.category
        assert get(sample.output, mutant.pointer) == mutant.original or mutant.original is ABSENT


@pytest.mark.parametrize("operator", EACH)
def test_an_operator_leaves_the_sound_output_alone_and_repeats_itself(
    operator: Operator, samples: list[Sample]
) -> None:
    before = copy.deepcopy([sample.output for sample in samples])
    first = [mutant.output for _, mutant in mutants(operator, samples, 4)]
    second = [mutant.output for _, mutant in mutants(operator, samples, 4)]
    assert repr(first) == repr(second)
    assert repr(before) == repr([sample.output for sample in samples])


def test_no_operator_touches_an_abstention(samples: list[Sample]) -> None:
    abstained = next(sample for sample in samples if sample.output["abstained"])
    rng = random.Random(SEED)
    mutated = [
        o.apply(abstained.agent_type, abstained.output, abstained.truth, rng) for c in CATEGORIES for o in OPERATORS[c]
    ]
    assert set(mutated) == {None}
