"""The codec of state and decision: free of scale, exact on the way back, and strict with what a model writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.policies.state_text import (
    DECISION_SCHEMA,
    cited_evidence,
    encode_decision,
    example_messages,
    is_grounded,
    parse_decision,
    prompt_hash,
    prompt_messages,
    state_values,
    technical_state_text,
)
from utils.hashing import sha256_hex
from utils.schema import RECOMMENDATIONS, TechnicalOutput

INDICATORS = {
    "rsi_14": 62.3,
    "macd": 1.2,
    "macd_signal": 0.8,
    "sma_20": 99.0,
    "sma_50": 97.0,
    "stoch_k": 75.0,
    "mfi_14": 54.0,
    "adx_14": 24.0,
    "bb_upper": 104.0,
    "bb_lower": 95.0,
    "atr_14": 2.0,
}
STATE = {"indicators": INDICATORS, "current_price": 101.0, "trend": "uptrend"}
PRICES = ("macd", "macd_signal", "sma_20", "sma_50", "bb_upper", "bb_lower", "atr_14")
TEXT = "rsi:60 macd:+2 sma20:+1.0 sma50:+2 stoch:75 mfi:55 adx:25 bb:0.7 vol:2.0 trend:up"


def test_state_text_says_what_its_documentation_says() -> None:
    assert technical_state_text(STATE) == TEXT


@given(st.floats(0.01, 1000))
def test_state_text_does_not_depend_on_the_price_scale(factor: float) -> None:
    # 0.7 of the band and 2.0 % of volatility lie well inside their bins, so rounding in the product cannot flip one.
    scaled = {name: value * factor if name in PRICES else value for name, value in INDICATORS.items()}
    assert technical_state_text({**STATE, "indicators": scaled, "current_price": 101.0 * factor}) == TEXT


def test_an_agents_output_and_its_stored_state_give_the_same_text() -> None:
    output = TechnicalOutput(
        symbol="AAPL",
        as_of=datetime(2014, 1, 2, 21, tzinfo=UTC),
        recommendation="buy",
        confidence=0.6,
        trend="uptrend",
        indicators=INDICATORS,
        current_price=101.0,
    )
    assert technical_state_text(output) == technical_state_text(json.loads(json.dumps(STATE)))


def test_what_is_missing_is_unknown_and_is_not_cited() -> None:
    text = technical_state_text({"indicators": {"rsi_14": 50, "macd": None, "atr_14": 0.0}, "current_price": 10})
    assert text == "rsi:50 macd:na sma20:na sma50:na stoch:na mfi:na adx:na bb:na vol:na trend:na"
    assert cited_evidence(text) == {"rsi": 50}
    assert state_values(technical_state_text({})) == {}


@given(
    st.dictionaries(st.sampled_from(sorted(INDICATORS)), st.floats() | st.none() | st.integers() | st.text(max_size=3)),
    st.floats() | st.none(),
)
def test_state_text_is_total_and_keeps_its_form(indicators: dict[str, object], price: float | None) -> None:
    words = technical_state_text({"indicators": indicators, "current_price": price, "trend": "sideways"}).split()
    assert [word.split(":")[0] for word in words] == [word.split(":")[0] for word in TEXT.split()]
    assert all(len(word.split(":")[1]) <= 4 for word in words)
    assert not any(word.endswith((":-0", ":-0.0", "nan", "inf")) for word in words)


@given(st.sampled_from(RECOMMENDATIONS), st.floats(0, 1))
def test_a_decision_survives_the_round_trip_to_one_decimal(recommendation: str, confidence: float) -> None:
    decision = parse_decision(encode_decision(recommendation, confidence, cited_evidence(TEXT)))
    assert decision is not None
    assert decision.recommendation == recommendation
    assert abs(decision.confidence - confidence) <= 0.05 + 1e-9
    assert is_grounded(TEXT, decision)


def test_an_encoded_decision_is_the_documented_json() -> None:
    assert encode_decision("buy", 0.71, {"rsi": 60, "trend": "up"}) == (
        '{"recommendation":"buy","confidence":0.7,"evidence":{"rsi":60,"trend":"up"}}'
    )


@pytest.mark.parametrize(("recommendation", "confidence"), [("long", 0.5), ("buy", 1.2), ("buy", float("nan"))])
def test_an_impossible_decision_is_not_encoded(recommendation: str, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"none of|outside"):
        encode_decision(recommendation, confidence, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "buy",
        "[]",
        '{"recommendation":"buy","confidence":0.7}',
        '{"recommendation":"long","confidence":0.7,"evidence":{}}',
        '{"recommendation":["buy"],"confidence":0.7,"evidence":{}}',
        '{"recommendation":"buy","confidence":1.7,"evidence":{}}',
        '{"recommendation":"buy","confidence":true,"evidence":{}}',
        '{"recommendation":"buy","confidence":"0.7","evidence":{}}',
        '{"recommendation":"buy","confidence":NaN,"evidence":{}}',
        '{"recommendation":"buy","confidence":1' + "0" * 400 + ',"evidence":{}}',
        '{"recommendation":"buy","confidence":0.7,"evidence":{"rsi":[60]}}',
        '{"recommendation":"buy","recommendation":"sell","confidence":0.7,"evidence":{}}',
        '{"recommendation":"buy","confidence":0.7,"evidence":{}} and more',
        '{"recommendation":"buy","confidence":0.7,"evidence":{},"size":1}',
        "[" * 100_000,
    ],
)
def test_what_is_not_exactly_a_decision_is_none(text: str) -> None:
    assert parse_decision(text) is None


def test_a_fenced_decision_is_read() -> None:
    body = encode_decision("sell", 0.5, {"rsi": 60})
    assert parse_decision(f"```json\n{body}\n```\n") == parse_decision(body) is not None


@pytest.mark.parametrize(
    "evidence", [{}, {"rsi": 62}, {"rsi": 60, "trend": "down"}, {"volume": 3}, {"rsi": "60"}, {"trend": 1}]
)
def test_a_decision_that_cites_nothing_or_something_else_is_not_grounded(evidence: dict[str, float | str]) -> None:
    decision = parse_decision(encode_decision("buy", 0.7, evidence))
    assert decision is not None
    assert not is_grounded(TEXT, decision)


def test_a_training_example_is_the_question_of_inference_and_its_answer() -> None:
    class Decided:
        market_state = STATE
        recommendation = "buy"
        confidence = 0.71

    messages = example_messages(Decided())
    assert messages[:2] == prompt_messages(TEXT)
    assert messages[2]["role"] == "assistant"
    decision = parse_decision(messages[2]["content"])
    assert decision is not None
    assert decision.recommendation == "buy"
    assert is_grounded(TEXT, decision)


def test_the_schema_and_the_prompt_name_the_same_recommendations() -> None:
    system = prompt_messages(TEXT)[0]["content"]
    assert all(name in system for name in DECISION_SCHEMA["properties"]["recommendation"]["enum"])
    assert prompt_hash() == sha256_hex(system)
