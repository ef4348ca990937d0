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
from evaluation.fault_injection.pointers import differing, overlap
from evaluation.fault_injection.scores import F1, Rate, Share
from evaluation.ground_truth import GroundTruth
from tests.integration.generated_history import generate
from utils.json_pointer import get, put
from utils.schema import parse_output

SEED = 5
SYMBOLS = ("BBB", "CCC", "NNN", "VVV", "OOO", "YYY", "LLL", "TTT")
"""Their generated companies file in every style, and every sector has two of them."""

EACH = [
    pytest.param(operator, id=f"{operator.category}-{operator.name}") for c in CATEGORIES for operator in OPERATORS[c]
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Sound outputs on a generated history of a few symbols with news."""
    history = generate(11, SYMBOLS, date(2012, 1, 3), date(2013, 2, 28), edge=0.004)
    folder = history.write(tmp_path_factory.mktemp("history"))
    return list(clean_outputs(folder, SEED, 0.15))


def mutants(operator: Operator, samples: list[Sample], wanted: int = 8) -> list[tuple[Sample, Mutant]]:
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
    found = mutants(operator, samples, 3)
    for sample, _ in found:
        before = copy.deepcopy(sample.output)
        drawn = [
            operator.apply(sample.agent_type, sample.output, sample.truth, random.Random(3), sample.peer)
            for _ in range(2)
        ]
        assert repr(drawn[0]) == repr(drawn[1])
        assert sample.output == before


@pytest.mark.parametrize("operator", EACH)
def test_a_repair_puts_back_what_stood_where_the_fault_is_named(operator: Operator, samples: list[Sample]) -> None:
    for sample, mutant in mutants(operator, samples, 3):
        repaired = mutant.repaired()
        assert all(get(repaired, place) == original for place, original in mutant.restore.items())
        assert get(repaired, mutant.pointer) == get(sample.output, mutant.pointer)


def test_no_operator_touches_an_abstention(samples: list[Sample]) -> None:
    abstained = next(sample for sample in samples if sample.output["abstained"])
    rng = random.Random(SEED)
    mutated = [
        o.apply(abstained.agent_type, abstained.output, abstained.truth, rng) for c in CATEGORIES for o in OPERATORS[c]
    ]
    assert set(mutated) == {None}


# the rules' thresholds, computed here from the facts alone


def test_a_second_operator_may_not_undo_the_first(samples: list[Sample]) -> None:
    rng = random.Random(SEED)
    pairs = [faults for sample in samples for faults in [damage(sample, {}, rng)] if len(faults) == 2]
    assert len(pairs) > 30
    for first, second in pairs:
        assert first.category != second.category
        assert get(second.output, first.pointer) == get(first.output, first.pointer)
        assert not overlap({first.pointer}, {second.pointer})


def test_miscalculated_indicators_are_more_than_five_percent_off(samples: list[Sample]) -> None:
    for sample, mutant in all_mutants("indicator_calculation_error", samples):
        name = mutant.pointer.rpartition("/")[2]
        wrong, right = mutant.output["indicators"][name], sample.output["indicators"][name]
        assert abs(wrong - right) > 0.05 * abs(right)
        assert not (mutant.output["recommendation"].endswith("buy") and mutant.output["indicators"]["rsi_14"] > 70)


def test_a_stale_average_is_that_of_an_earlier_day(samples: list[Sample]) -> None:
    found = [
        (sample, mutant)
        for sample, mutant in mutants(named("indicator_calculation_error", "of_earlier_bar"), samples, 60)
        if mutant.pointer == "/indicators/sma_20"
    ]
    assert found
    for sample, mutant in found:
        assert sample.truth.snapshot is not None
        close = sample.truth.snapshot.bars.close
        averages = np.convolve(close, np.ones(20) / 20, "valid")[:-1]
        assert np.min(np.abs(averages - mutant.output["indicators"]["sma_20"])) < 1e-3


def test_evidence_is_inaccurate_beyond_half_a_percent(samples: list[Sample]) -> None:
    numeric = [pair for pair in all_mutants("data_inaccuracy", samples) if not isinstance(pair[1].original, str)]
    assert {mutant.sub_code for _, mutant in numeric} == {"units", "currency", "split", "stale", None}
    assert all(abs(get(m.output, m.pointer) - m.original) > 0.005 * abs(m.original) for _, m in numeric)


def test_later_evidence_became_available_after_the_decision(samples: list[Sample]) -> None:
    later = [m for _, m in all_mutants("hallucination", samples) if m.sub_code == "look_ahead"]
    assert later
    for mutant in later:
        assert datetime.fromisoformat(get(mutant.output, mutant.pointer)) > datetime.fromisoformat(
            mutant.output["as_of"]
        )


def test_miscounted_sentiment_breaks_the_rule_for_the_articles_of_the_facts(samples: list[Sample]) -> None:
    for _, mutant in all_mutants("sentiment_miscalculation", samples):
        assert mutant.truth.snapshot is not None
        scores = [score_text(item.text) for item in mutant.truth.snapshot.news]
        mean, score = 2 * sum(scores) / len(scores), mutant.output["sentiment_score"]
        assert abs(score - mean) > 1.0 or (abs(score) > 0.5 and score * mean < 0)


def test_targets_are_on_the_wrong_side_or_out_of_reach(samples: list[Sample]) -> None:
    for _, mutant in all_mutants("take_profit_unrealistic", samples):
        assert mutant.truth.snapshot is not None
        side = 1 if mutant.output["recommendation"].endswith("buy") else -1
        move = side * (mutant.output["take_profit"] / mutant.output["entry_target"] - 1)
        assert move < 0 or move > 4 * mutant.truth.snapshot.inputs.daily_volatility * math.sqrt(5)


def test_a_moved_price_leaves_the_ratio_consistent(samples: list[Sample]) -> None:
    for category in ("take_profit_unrealistic", "timing_inappropriate"):
        for _, mutant in all_mutants(category, samples):
            entry, stop, take = (mutant.output[name] for name in ("entry_target", "stop_loss", "take_profit"))
            assert mutant.output["risk_reward_ratio"] == pytest.approx(abs(take - entry) / abs(entry - stop), rel=0.01)


def test_ratios_are_off_by_more_than_five_percent(samples: list[Sample]) -> None:
    wrong = [m for _, m in all_mutants("risk_reward_miscalculation", samples) if m.pointer == "/risk_reward_ratio"]
    assert wrong
    for mutant in wrong:
        entry, stop, take = (mutant.output[name] for name in ("entry_target", "stop_loss", "take_profit"))
        right = abs(take - entry) / abs(entry - stop)
        assert abs(mutant.output["risk_reward_ratio"] - right) > 0.05 * right


def test_earnings_stand_in_no_filing(samples: list[Sample]) -> None:
    for _, mutant in all_mutants("earnings_hallucination", samples):
        assert mutant.truth.snapshot is not None
        name = mutant.pointer.rpartition("/")[2]
        filed = [f.metrics[name] for f in mutant.truth.snapshot.filings if name in f.metrics]
        assert all(abs(mutant.output["key_metrics"][name] - value) > 0.01 * abs(value) for value in filed)


def test_invented_levels_are_near_no_extreme(samples: list[Sample]) -> None:
    for name in ("support_invented", "resistance_invented"):
        for _, mutant in mutants(named("support_resistance_hallucination", name), samples):
            assert mutant.truth.snapshot is not None
            level, bars = get(mutant.output, mutant.pointer), mutant.truth.snapshot.bars
            extremes = np.concatenate([bars.low, bars.high])
            assert np.min(np.abs(extremes / level - 1)) > 0.01


def test_cited_events_are_all_older_than_the_horizon_allows(samples: list[Sample]) -> None:
    days = {"intraday": 3, "short_term": 3, "medium_term": 10, "long_term": 30}
    for _, mutant in all_mutants("outdated_news", samples):
        now = datetime.fromisoformat(mutant.output["as_of"])
        ages = [(now - datetime.fromisoformat(e["published_at"])).days for e in mutant.output["key_events"]]
        assert min(ages) >= days[mutant.output["time_horizon"]]


def test_a_conflict_is_left_unresolved_only_where_firm_analysts_disagree(samples: list[Sample]) -> None:
    for _, mutant in all_mutants("conflicting_signals_unresolved", samples):
        firm = {o.recommendation[-3:] for o in mutant.truth.agent_outputs.values() if o.confidence >= 0.5}
        assert {"buy", "ell"} <= firm
        assert not any("conflict" in text for text in mutant.output["key_factors"])


# the harness


@dataclass(frozen=True)
class Found:
    """What a hand-made detector reports."""

    category: str
    location: str
    sub_code: str | None = None


def always(*findings: Found) -> Callable[[str, dict[str, Any], GroundTruth], list[Found]]:
    return lambda agent_type, output, truth: list(findings)


def stop_looker(agent_type: str, output: dict[str, Any], truth: GroundTruth) -> list[Found]:
    """Find a lost stop, which is easy, and point to it."""
    side = output.get("recommendation") in ("buy", "strong_buy", "sell", "strong_sell")
    lost = agent_type == "strategist" and side and output.get("stop_loss") is None and not output.get("abstained")
    return [Found("stop_loss_missing", "/stop_loss")] if lost else []


def test_a_perfect_detector_of_one_category_has_full_marks_there_and_none_elsewhere(samples: list[Sample]) -> None:
    measured = evaluate(stop_looker, samples, SEED, 20)
    score = measured.categories["stop_loss_missing"]
    assert score.n >= 10
    assert (score.found, score.joint, score.false_alarms) == (score.n, score.n, 0)
    assert (score.f1.value, score.pointer.value, score.joint_accuracy.value) == (1.0, 1.0, 1.0)
    assert (score.repaired, score.silenced) == (score.n, score.n)
    others = [other for name, other in measured.categories.items() if name != "stop_loss_missing"]
    assert sum(other.found for other in others) == 0
    assert measured.false_alarms.total == 0


def test_a_finding_elsewhere_counts_for_the_category_and_not_for_the_pointer(samples: list[Sample]) -> None:
    def misplaced(agent_type: str, output: dict[str, Any], truth: GroundTruth) -> Iterable[Found]:
        return [Found(found.category, "/take_profit") for found in stop_looker(agent_type, output, truth)]

    score = evaluate(misplaced, samples, SEED, 20).categories["stop_loss_missing"]
    assert (score.recall.value, score.joint) == (1.0, 0)
    assert score.instead == {"pointer /take_profit": score.n}
    assert score.repaired == 0


def test_a_detector_that_always_alarms_is_charged_for_every_sound_output(samples: list[Sample]) -> None:
    measured = evaluate(always(Found("stop_loss_missing", "/stop_loss"), Found("outdated_news", "")), samples, SEED, 20)
    score = measured.categories["stop_loss_missing"]
    assert measured.false_alarms.value == 2.0
    assert measured.alarmed.value == 1.0
    assert score.recall.value == 1.0
    assert score.precision.value < 0.2
    # its alarm is still there when the stop is
    assert (score.repaired, score.silenced) == (score.n, 0)


def test_a_silent_detector_misses_everything_and_alarms_nobody(samples: list[Sample]) -> None:
    measured = evaluate(always(), samples, SEED, 20)
    assert measured.joint_accuracy.hits == 0
    assert measured.joint_accuracy.n == measured.damaged + measured.two_faults
    assert measured.false_alarms.total == 0
    assert all(set(score.instead) <= {"nothing"} for score in measured.categories.values())


def test_shares_of_untouched_and_of_doubly_damaged_outputs_are_as_stated(samples: list[Sample]) -> None:
    opinions = [sample for sample in samples if not sample.output["abstained"]]
    measured = evaluate(always(), opinions, SEED, 20)
    assert measured.clean + measured.damaged == len(opinions)
    assert 0.25 < measured.clean / len(opinions) < 0.35
    assert 0.1 < measured.two_faults / measured.damaged < 0.35


def test_equal_seeds_measure_equally_and_others_do_not(samples: list[Sample]) -> None:
    first, second, third = (evaluate(stop_looker, samples[:300], seed, 5) for seed in (1, 1, 2))
    assert first == second
    assert first != third


def test_abstentions_do_not_dilute_the_false_alarms(samples: list[Sample]) -> None:
    abstentions = [sample for sample in samples if sample.output["abstained"]]
    measured = evaluate(always(), abstentions, SEED)
    assert measured.clean == 0
    assert measured.clean_by_label == {"news, abstained": [0, len(abstentions)]}


def test_what_needs_a_judge_is_named_and_never_scored(samples: list[Sample]) -> None:
    measured = evaluate(always(Found("logical_fallacy", "/reasoning")), samples[:100], SEED)
    assert "logical_fallacy" not in measured.categories
    assert set(JUDGE_ONLY) < set(measured.needs_a_model)


def test_wilson_bounds_are_those_of_the_literature() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20
    assert [round(bound, 4) for bound in (Share(81, 263).low, Share(81, 263).high)] == [0.2553, 0.3662]
    assert [round(bound, 4) for bound in (Share(15, 148).low, Share(15, 148).high)] == [0.0624, 0.1605]
    assert [round(bound, 4) for bound in (Share(0, 20).low, Share(0, 20).high)] == [0.0, 0.1611]
    assert math.isnan(Share(0, 0).value)


def test_f1_is_that_of_its_counts() -> None:
    f1 = F1(Share(40, 40 + 5 + 10))
    assert f1.value == pytest.approx(2 * 40 / (2 * 40 + 5 + 10))
    assert 0 < f1.low < f1.value < f1.high < 1


def test_the_rate_of_no_alarm_keeps_an_upper_bound() -> None:
    assert Rate(0, 0, 500).high == pytest.approx(0.00738, abs=1e-5)
    assert Rate(10, 10, 500).low < 0.02 < Rate(10, 10, 500).high


# pointers


def test_places_are_read_set_and_removed() -> None:
    document = {"a": [{"b/c": 1}], "d": None}
    assert get(document, "/a/0/b~1c") == 1
    assert get(document, "/a/1") is ABSENT
    put(document, "/a/-", 2)
    put(document, "/d", ABSENT)
    assert document == {"a": [{"b/c": 1}, 2]}


def test_differences_are_named_at_their_place() -> None:
    before = {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": [1]}
    after = {"a": {"x": 1, "y": 3, "z": 4}, "b": [1, 5], "c": [1, 2]}
    assert list(differing(before, after)) == ["/a/y", "/a/z", "/b/1", "/c"]
