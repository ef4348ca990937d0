"""The validator says one thing in place of many, and the strategist counts nobody twice."""

from __future__ import annotations

from typing import Any

import pytest
from market_factory import make_request, make_snapshot
from opinion_factory import opinion, silent
from output_factory import fundamental_output, news_output, technical_output

from agents.policies.rules import RulesStrategist
from agents.policies.rules.validator import RulesValidator
from agents.validator_agent import ValidatorAgent
from utils.errors import DataUnavailable
from utils.schema import RegimeInputs, ValidatorOutput, parse_output

CALM = RegimeInputs(0.4, 0.0, 0.0, 0.01)


def validated(outputs: dict[str, Any], state: Any = None) -> ValidatorOutput:
    output = ValidatorAgent(RulesValidator()).analyze(outputs, state)
    assert isinstance(output, ValidatorOutput)
    return output


def test_a_conflict_is_resolved_and_recorded_with_what_every_strategy_says() -> None:
    output = validated({"news": opinion("buy", 0.8), "technical": opinion("sell", 0.6)}, CALM)
    assert (output.recommendation, output.confidence) == ("buy", pytest.approx(0.8 / 1.4, abs=1e-4))
    assert output.replaces == ("news", "technical")
    (resolved,) = output.resolutions
    assert (resolved.strategy, resolved.rule_strategy, resolved.chosen_by) == (
        "confidence_weighted", "confidence_weighted", "rule",
    )  # fmt: skip
    assert len(resolved.alternatives) == 5


def test_the_gravest_conflict_decides_and_the_others_are_kept() -> None:
    outputs = {"a": opinion("buy", 0.9, {"x": -0.9}), "b": opinion("sell", 0.1, {"x": 0.9})}
    output = validated(outputs, CALM)
    assert [item.conflict_type for item in output.resolutions] == [
        "opposite_recommendations", "signal_conflict", "confidence_disagreement",
    ]  # fmt: skip
    assert output.recommendation == output.resolutions[0].recommendation


def test_it_is_never_surer_than_the_surest_it_speaks_for() -> None:
    outputs = {"a": opinion("buy", 0.8), "b": opinion("buy", 0.1), "c": opinion("buy", 0.05)}
    output = validated(outputs, CALM)
    assert output.resolutions[0].confidence == 1.0
    assert output.confidence == 0.8


def test_without_a_conflict_doubt_is_not_turned_into_conviction() -> None:
    output = validated({"news": opinion("buy", 0.45), "technical": opinion("hold", 0.55)}, CALM)
    assert (output.recommendation, output.confidence) == ("hold", pytest.approx(0.55 * 0.55, abs=1e-4))
    assert output.resolutions == ()


def test_abstentions_are_nothing_to_validate() -> None:
    assert validated({"news": silent()}).abstained
    with pytest.raises(DataUnavailable):
        ValidatorAgent(RulesValidator()).analyze({})


def test_its_output_survives_being_stored() -> None:
    output = validated({"news": opinion("buy", 0.8), "technical": opinion("sell", 0.6)}, CALM)
    restored, findings = parse_output(output.model_dump_json())
    assert (restored, findings) == (output, [])


def test_the_strategist_takes_its_view_in_place_of_those_it_replaces() -> None:
    analysts = {
        "news": news_output(recommendation="sell", confidence=0.8),
        "technical": technical_output(confidence=0.6),
    }
    snapshot = make_snapshot(inputs=CALM)
    alone = RulesStrategist().decide_many([make_request(snapshot, analysts)])[0]
    validator = validated(analysts, snapshot)
    together = RulesStrategist().decide_many([make_request(snapshot, {**analysts, "validator": validator})])[0]
    assert alone.signals["consensus"] != together.signals["consensus"]
    side = {"sell": -0.7, "hold": 0.0, "buy": 0.7}[validator.recommendation]
    assert together.signals["consensus"] == pytest.approx(side)
    assert "resolved by the validator" in " ".join(together.key_factors)  # type: ignore[attr-defined]
    assert {"news", "technical", "validator"} <= set(together.signals)


def test_who_is_not_replaced_keeps_his_vote() -> None:
    analysts = {
        "news": news_output(recommendation="sell", confidence=0.6), "technical": technical_output(confidence=0.6),
        "fundamental": fundamental_output(recommendation="strong_buy", confidence=0.6),
    }  # fmt: skip
    validator = ValidatorOutput(
        symbol="AAPL",
        as_of=analysts["news"].as_of,
        recommendation="hold",
        confidence=0.6,
        replaces=("news", "technical"),
    )
    snapshot = make_snapshot(inputs=CALM)
    decided = RulesStrategist().decide_many([make_request(snapshot, {**analysts, "validator": validator})])[0]
    assert decided.signals["consensus"] == pytest.approx(0.5 / (0.2 + 0.9 + 0.5), abs=1e-4)


def test_an_abstaining_validator_changes_nothing() -> None:
    analysts = {"news": news_output(confidence=0.6), "technical": technical_output(confidence=0.6)}
    snapshot = make_snapshot(inputs=CALM)
    quiet = ValidatorOutput(
        symbol="AAPL",
        as_of=snapshot.as_of,
        recommendation="hold",
        confidence=0.0,
        abstained=True,
        abstain_reason="none",
    )
    policy = RulesStrategist()
    with_it = policy.decide_many([make_request(snapshot, {**analysts, "validator": quiet})])
    assert with_it == policy.decide_many([make_request(snapshot, analysts)])
