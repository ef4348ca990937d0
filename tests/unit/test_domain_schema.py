"""An output is valid or it does not exist; an abstention is no vote; whatever a model writes, the parser answers."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from output_factory import AS_OF, OUTPUTS, fundamental_output, news_output, strategist_output, technical_output
from pydantic import ValidationError

from utils.schema import (
    AGENT_TYPES,
    OUTPUT_MODELS,
    RECOMMENDATIONS,
    AgentOutput,
    NewsOutput,
    StrategistOutput,
    TechnicalOutput,
    direction,
    parse_output,
)


def test_the_sides_of_recommendations() -> None:
    assert {name: direction(name) for name in RECOMMENDATIONS} == {
        "strong_buy": 1, "buy": 1, "hold": 0, "sell": -1, "strong_sell": -1,
    }  # fmt: skip


def test_an_abstention_is_no_vote_whatever_else_it_says() -> None:
    output = NewsOutput(symbol="AAPL", as_of=AS_OF, recommendation="strong_buy", confidence=0.9, abstained=True)
    assert (output.abstained, output.recommendation, output.confidence) == (True, "hold", 0.0)


@pytest.mark.parametrize("truth", [1, 1.0, "true", "True", "yes", "on", "1"])
def test_an_abstention_that_is_nearly_true_does_not_pass_as_a_vote(truth) -> None:
    with pytest.raises(ValidationError, match="abstained"):
        NewsOutput(symbol="AAPL", as_of=AS_OF, recommendation="strong_buy", confidence=0.9, abstained=truth)


def test_an_abstention_may_leave_out_what_an_opinion_must_say() -> None:
    output = TechnicalOutput.model_validate(
        {"symbol": "AAPL", "as_of": AS_OF, "abstained": True, "abstain_reason": "31 bars"}
    )
    assert (output.recommendation, output.confidence, output.current_price) == ("hold", 0.0, None)


def test_a_technical_opinion_needs_a_price() -> None:
    with pytest.raises(ValidationError, match="current_price"):
        technical_output(current_price=None)


@pytest.mark.parametrize("make", OUTPUTS.values(), ids=list(OUTPUTS))
def test_every_output_survives_json(make) -> None:
    output = make()
    assert type(output).model_validate_json(output.model_dump_json()) == output
    assert parse_output(output.model_dump_json()) == (output, [])
    assert parse_output(output.model_dump(mode="json")) == (output, [])
    assert parse_output(output)[0] is output


BAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "confidence above one": (news_output, {"confidence": 1.01}),
    "confidence below zero": (news_output, {"confidence": -0.01}),
    "confidence not a number": (news_output, {"confidence": math.nan}),
    "p_correct above one": (news_output, {"p_correct": 1.5}),
    "signal above one": (news_output, {"signals": {"x": 1.5}}),
    "reasoning too long": (news_output, {"reasoning": "x" * 4001}),
    "an unknown recommendation": (news_output, {"recommendation": "accumulate"}),
    "an empty symbol": (news_output, {"symbol": ""}),
    "a negative latency": (news_output, {"latency_s": -1}),
    "a negative cost": (news_output, {"cost_usd": -0.01}),
    "an unknown field": (news_output, {"mood": "good"}),
    "a sentiment beyond two": (news_output, {"sentiment_score": 2.1}),
    "an unknown horizon": (news_output, {"time_horizon": "soon"}),
    "a price of zero": (technical_output, {"current_price": 0}),
    "an infinite indicator": (technical_output, {"indicators": {"rsi_14": math.inf}}),
    "a negative support": (technical_output, {"support_levels": (-1.0,)}),
    "an unknown trend": (technical_output, {"trend": "up"}),
    "a health above one": (fundamental_output, {"financial_health": 1.2}),
    "a target of zero": (fundamental_output, {"price_target": 0}),
    "a size above one": (strategist_output, {"position_size": 1.2}),
    "a negative stop": (strategist_output, {"stop_loss": -5}),
    "a negative ratio": (strategist_output, {"risk_reward_ratio": -1}),
    "an infinite expectation": (strategist_output, {"expected_return": math.inf}),
}


@pytest.mark.parametrize(("make", "change"), BAD.values(), ids=[name.replace(" ", "_") for name in BAD])
def test_what_is_out_of_range_does_not_become_an_output(make, change) -> None:
    with pytest.raises(ValidationError):
        make(**change)
    raw = {**make().model_dump(), **change}
    output, findings = parse_output(raw)
    assert output is None
    assert [f.pointer.split("/")[1] for f in findings if f.category == "invalid_value"] == [next(iter(change))]


def test_an_output_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        strategist_output().confidence = 0.1


def raw_technical(**changes: Any) -> dict[str, Any]:
    return {**technical_output().model_dump(mode="json"), **changes}


COERCED: dict[str, tuple[dict[str, Any], str, Any]] = {
    "percent": ({"confidence": "85 %"}, "confidence", 0.85),
    "percent without a blank": ({"confidence": "85%"}, "confidence", 0.85),
    "of a hundred": ({"confidence": "85/100"}, "confidence", 0.85),
    "numeric string": ({"confidence": "0.85"}, "confidence", 0.85),
    "bullish": ({"recommendation": "Bullish"}, "recommendation", "buy"),
    "bearish": ({"recommendation": "bearish"}, "recommendation", "sell"),
    "neutral": ({"signal": "neutral"}, "signal", "hold"),
    "a single support": ({"support_levels": 95.0}, "support_levels", (95.0,)),
    "supports as strings": ({"support_levels": ["95", "93.5"]}, "support_levels", (95.0, 93.5)),
    "RSI": ({"indicators": {"RSI": "61.4"}}, "indicators", {"rsi_14": 61.4}),
    "control characters": ({"reasoning": "a\x07b"}, "reasoning", "ab"),
    "a time without a zone": ({"as_of": "2014-06-03T20:00:00"}, "as_of", datetime(2014, 6, 3, 20, tzinfo=UTC)),
}


@pytest.mark.parametrize(
    ("change", "field", "value"), COERCED.values(), ids=[name.replace(" ", "_") for name in COERCED]
)
def test_a_coercion_gives_the_value_and_a_formatting_finding(change, field, value) -> None:
    output, findings = parse_output(raw_technical(**change))
    assert output is not None
    assert getattr(output, field) == value
    assert findings
    assert {finding.category for finding in findings} == {"formatting_error"}
    assert all(finding.pointer.startswith(f"/{field}") for finding in findings)


def test_keys_by_another_name_are_read_and_noted() -> None:
    raw = fundamental_output().model_dump(mode="json")
    raw["decision"] = raw.pop("recommendation")
    raw["metrics"] = {"PE": 12.5, **raw.pop("key_metrics")}
    del raw["metrics"]["pe_ratio"]
    output, findings = parse_output(raw, "fundamental")
    assert output is not None
    assert output.recommendation == "buy"
    assert output.key_metrics["pe_ratio"] == 12.5  # type: ignore[attr-defined]
    assert {f.pointer for f in findings} == {"/decision", "/metrics", "/key_metrics/PE"}


def test_a_support_level_by_its_singular_name_is_read() -> None:
    raw = raw_technical()
    del raw["support_levels"]
    output, findings = parse_output({**raw, "support_level": 95})
    assert isinstance(output, TechnicalOutput)
    assert output.support_levels == (95.0,)
    assert {f.category for f in findings} == {"formatting_error"}


def test_an_event_given_as_a_string_is_split_at_its_source() -> None:
    raw = news_output().model_dump(mode="json")
    output, findings = parse_output({**raw, "key_events": ["Apple beats estimates (source: Reuters)"]})
    assert isinstance(output, NewsOutput)
    assert (output.key_events[0].headline, output.key_events[0].source) == ("Apple beats estimates", "Reuters")
    assert [f.pointer for f in findings] == ["/key_events/0"]


def test_the_agent_type_may_come_from_the_caller_or_the_content() -> None:
    raw = strategist_output().model_dump(mode="json")
    del raw["agent_type"]
    assert isinstance(parse_output(raw, "strategist")[0], StrategistOutput)
    output, findings = parse_output(raw)
    assert output is None
    assert [(f.category, f.pointer) for f in findings] == [("missing_field", "/agent_type")]
    output, findings = parse_output({**raw, "agent_type": "oracle"})
    assert output is None
    assert [(f.category, f.pointer) for f in findings] == [("invalid_value", "/agent_type")]


@pytest.mark.parametrize("name", ["symbol", "as_of", "recommendation", "confidence"])
def test_a_missing_field_is_a_finding_that_points_at_it(name) -> None:
    raw = raw_technical()
    del raw[name]
    output, findings = parse_output(raw)
    assert output is None
    assert [(f.category, f.pointer) for f in findings] == [("missing_field", f"/{name}")]


def test_a_key_that_stands_twice_is_a_finding() -> None:
    text = news_output().model_dump_json()
    output, findings = parse_output('{"confidence": 0.1, ' + text[1:])
    assert output is not None
    assert output.confidence == 0.66
    assert [(f.category, f.pointer) for f in findings] == [("formatting_error", "/confidence")]


@pytest.mark.parametrize(
    "raw", ["", "not json", "[1, 2]", "null", "3", b"\xff\xfe", None, 3, [], object(), "[" * 100_000]
)
def test_what_holds_no_object_is_an_invalid_value(raw) -> None:
    output, findings = parse_output(raw, "news")
    assert output is None
    assert [f.category for f in findings] == ["invalid_value"]


@pytest.mark.parametrize("name", ["recommendation", "confidence", "trend"])
def test_a_null_is_a_missing_field(name: str) -> None:
    output, findings = parse_output(raw_technical(**{name: None}))
    assert output is None
    assert [(f.category, f.pointer) for f in findings] == [("missing_field", f"/{name}")]


def test_an_opinion_without_a_price_lacks_the_price() -> None:
    output, findings = parse_output(raw_technical(current_price=None))
    assert output is None
    assert [(f.category, f.pointer) for f in findings] == [("missing_field", "/current_price")]


def test_a_fault_within_a_union_is_one_finding_at_the_value_itself() -> None:
    raw = raw_technical()
    raw["evidence"][2]["value"] = [1]
    _, findings = parse_output(raw)
    assert [(f.category, f.pointer) for f in findings] == [("invalid_value", "/evidence/2/value")]


def test_times_without_a_zone_are_found_where_they_stand() -> None:
    raw = news_output().model_dump(mode="json")
    raw["key_events"][1]["published_at"] = "2014-06-03T11:00"
    raw["evidence"][0]["available_at"] = "2014-06-03 17:00:00"
    output, findings = parse_output(raw)
    assert output is not None
    assert {f.pointer for f in findings} == {"/key_events/1/published_at", "/evidence/0/available_at"}
    assert output.evidence[0].available_at == datetime(2014, 6, 3, 17, tzinfo=UTC)


def test_a_key_that_stands_twice_deep_inside_is_found_where_it_stands() -> None:
    text = technical_output().model_dump_json().replace('"rsi_14":', '"rsi_14": 1.0, "rsi_14":')
    _, findings = parse_output(text)
    assert [(f.category, f.pointer) for f in findings] == [("formatting_error", "/indicators/rsi_14")]


SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=30)
    | st.sampled_from(["85 %", "nan", "1e999", "bullish", "\ud800", "\x00", "9" * 400 + "%", "2014-01-01", "2014-01-01T00:00:00Z"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=10,
)
NAMES = sorted(
    {name for model in OUTPUT_MODELS.values() for name in model.model_fields} | {"decision", "metrics", "RSI"}
)
DAMAGE = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=4)


@settings(max_examples=400)
@given(kind=st.sampled_from(list(OUTPUTS)), damage=DAMAGE)
@example(kind="news", damage={"confidence": 10**400})
@example(kind="news", damage={"abstained": 1, "recommendation": "buy"})
@example(kind="technical", damage={"indicators": {"RSI": "\ud800"}})
@example(kind="news", damage={"key_events": ["\ud800 source: x"]})
def test_a_damaged_output_is_an_output_or_none_and_never_an_exception(kind, damage) -> None:
    output, findings = parse_output({**OUTPUTS[kind]().model_dump(mode="json"), **damage}, kind)
    assert (output is not None) or findings
    assert all(f.category in ("formatting_error", "missing_field", "invalid_value") for f in findings)
    assert output is None or output.abstained is False or (output.recommendation, output.confidence) == ("hold", 0.0)


@settings(max_examples=200)
@given(VALUES, st.none() | st.sampled_from(AGENT_TYPES) | st.text(max_size=5))
def test_any_value_at_all_is_answered(raw, kind) -> None:
    output, findings = parse_output(raw, kind)
    assert output is None or isinstance(output, AgentOutput)
    assert output is not None or findings


@settings(max_examples=200)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_at_all_is_answered(raw) -> None:
    output, findings = parse_output(raw, "news")
    assert output is None
    assert findings


def test_times_are_kept_in_their_instant_whatever_the_zone() -> None:
    raw = {**raw_technical(), "as_of": "2014-06-03T16:00:00-04:00"}
    output, _ = parse_output(json.dumps(raw))
    assert output is not None
    assert output.as_of == datetime(2014, 6, 3, 20, tzinfo=UTC)
