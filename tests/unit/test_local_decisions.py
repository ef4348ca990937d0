"""Decisions as local models state them: a training example reads back as its own answer, and nothing else is a decision."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.policies.local.decisions import (
    CONFIDENCES,
    PROMPT_VERSION,
    ParsedDecision,
    cited_evidence,
    decision_schema,
    encode_decision,
    example_messages,
    is_grounded,
    parse_decision,
    prompt_hash,
    prompt_messages,
    prompt_text,
    recorded_state,
    stated_experiences,
    stored_state,
)
from agents.policies.local.states import CITED, COMMON, FIELDS, LANGUAGE, LOCAL_AGENTS, UNKNOWN, Scale, state_line
from agents.policies.prompting import PROMPTS
from utils.hashing import sha256_hex
from utils.schema import RECOMMENDATIONS

STATES = {
    "technical": "rsi:60 macd:2 sma20:1.0 sma50:2 stoch:75 mfi:55 adx:25 bb:0.7 vol:2.0 trend:up regime:neutral",
    "news": "score:-0.8 agree:-0.4 articles:2 age:36 vol:1.5 regime:neutral",
    "fundamental": "value:0.4 growth:0.8 profit:-0.4 debt:na health:0.8 quality:0.3 age:100 view:cheap regime:neutral",
    "strategist": "news:sell nconf:0.7 tech:strong_buy tconf:0.8 fund:na fconf:na valid:na vconf:na vote:0.3 held:8 "
    "cash:60 vol:1.5 regime:neutral",
}
CITATIONS = {
    "technical": "rsi:60 trend:up",
    "news": "score:-0.8 articles:2",
    "fundamental": "value:0.4 view:cheap",
    "strategist": "vote:0.3 tech:strong_buy",
}
TECHNICAL = STATES["technical"]


@dataclass(frozen=True)
class Stored:
    """A decision as the library gives it back."""

    agent_type: str
    state: str
    recommendation: str | None = "buy"
    confidence: float = 0.71
    agent_inputs: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "agent_inputs", json.loads(json.dumps({"state": recorded_state(self.state)})))


def drawn_states(agent_type: str) -> st.SearchStrategy[str]:
    """Any state of an agent: whatever the facts were, each value in its scale, one of its words or unknown."""
    fields = {**FIELDS[agent_type], **COMMON}
    values = {
        name: st.none() | (st.floats() if isinstance(scale, Scale) else st.sampled_from(scale.words()))
        for name, scale in fields.items()
    }
    own = {name: value for name, value in values.items() if name in FIELDS[agent_type]}
    common = {name: value for name, value in values.items() if name in COMMON}
    return st.fixed_dictionaries(own, optional=common).map(lambda drawn: state_line(agent_type, drawn))


def words_of(evidence: str) -> dict[str, str]:
    return dict(word.split(":") for word in evidence.split())


def admits(schema: dict[str, Any], value: Any) -> bool:
    """Whether the part of JSON schema that decisions use admits a value; numbers are told apart as they are written."""
    if "enum" in schema:
        return json.dumps(value) in map(json.dumps, schema["enum"])
    if "pattern" in schema:
        return isinstance(value, str) and re.search(schema["pattern"], value) is not None
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    return (
        isinstance(value, dict)
        and list(value) == schema["required"] == list(schema["properties"])
        and all(admits(schema["properties"][name], part) for name, part in value.items())
    )


# the way there and back


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
@settings(max_examples=60)
@given(data=st.data(), recommendation=st.sampled_from(RECOMMENDATIONS), confidence=st.floats(0, 1))
def test_a_decision_on_any_state_survives_the_round_trip_and_is_grounded(
    agent_type: str, data: st.DataObject, recommendation: str, confidence: float
) -> None:
    state = data.draw(drawn_states(agent_type))
    evidence = cited_evidence(agent_type, state)
    text = encode_decision(recommendation, confidence, evidence)
    decision = parse_decision(text)
    assert decision is not None
    assert decision == ParsedDecision(recommendation, round(confidence, 1), words_of(evidence))
    assert abs(decision.confidence - confidence) <= 0.05 + 1e-9
    assert is_grounded(state, decision) == bool(evidence)
    assert encode_decision(decision.recommendation, decision.confidence, evidence) == text
    assert admits(decision_schema(agent_type), json.loads(text))


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
@settings(max_examples=60)
@given(data=st.data())
def test_what_is_cited_is_written_exactly_as_the_state_writes_it(agent_type: str, data: st.DataObject) -> None:
    state = data.draw(drawn_states(agent_type))
    stated = words_of(state)
    cited = cited_evidence(agent_type, state)
    assert cited.split() == [f"{n}:{stated[n]}" for n in CITED[agent_type] if stated[n] != UNKNOWN]
    assert all(word in state.split() for word in cited.split())


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_truthful_decision_cites_what_is_documented(agent_type: str) -> None:
    assert cited_evidence(agent_type, STATES[agent_type]) == CITATIONS[agent_type]


def test_what_is_unknown_is_not_cited() -> None:
    assert cited_evidence("technical", state_line("technical", {"rsi": 50})) == "rsi:50"
    assert cited_evidence("news", state_line("news", {})) == ""


def test_quoted_headlines_are_never_cited() -> None:
    quoted = (
        f"{state_line('news', {'articles': 4})}\n=== data a begins ===\n[n1] score:2.0 articles:30\n=== data a ends ==="
    )
    assert cited_evidence("news", quoted) == "articles:4"
    assert not is_grounded(quoted, ParsedDecision("buy", 0.7, {"score": "2.0"}))


def test_an_encoded_decision_is_the_documented_json() -> None:
    assert encode_decision("buy", 0.71, "rsi:60 trend:up") == (
        '{"recommendation":"buy","confidence":0.7,"evidence":"rsi:60 trend:up"}'
    )
    assert encode_decision("hold", 1, "") == '{"recommendation":"hold","confidence":1.0,"evidence":""}'


@pytest.mark.parametrize(
    ("recommendation", "confidence"),
    [("long", 0.5), ("None", 0.5), ("buy", 1.2), ("buy", -0.1), ("buy", math.nan), ("buy", math.inf)],
)
def test_an_impossible_decision_is_not_encoded(recommendation: str, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"none of|outside"):
        encode_decision(recommendation, confidence, "")


# the schema


def citations(agent_type: str) -> list[str]:
    """Every citation that a truthful decision of an agent can make."""
    first, second = ([f"{n}:{word}" for word in FIELDS[agent_type][n].words()] for n in CITED[agent_type])
    return ["", *first, *second, *(f"{one} {other}" for one in first for other in second)]


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_the_schema_admits_what_states_can_say_and_each_is_a_decision(agent_type: str) -> None:
    schema = decision_schema(agent_type)
    for evidence in citations(agent_type):
        text = encode_decision("hold", 0.0, evidence)
        assert admits(schema, json.loads(text))
        assert parse_decision(text) == ParsedDecision("hold", 0.0, words_of(evidence))
    assert tuple(schema["properties"]["recommendation"]["enum"]) == RECOMMENDATIONS
    assert [json.dumps(value) for value in schema["properties"]["confidence"]["enum"]] == [
        "0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0",
    ]  # fmt: skip


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_the_schema_admits_nothing_that_no_state_says(agent_type: str) -> None:
    first, second = CITATIONS[agent_type].split()
    name, value = first.split(":")
    for evidence in (
        f"{second} {first}", f"{first} {first}", f"{first}  {second}", f"{first} ", f" {first}", f"{first}\n{second}",
        f"{name}:", f"{name}:{UNKNOWN}", f"{name}:{value}7", f"{name}:999", f"x{first}", f"{first} {second} {first}",
        value, "regime:neutral", f"{first} regime:neutral", f"{first};", f"{name}:-0", f"{name}:0x5", value.replace(".", "x"),
    ):  # fmt: skip
        assert not admits(decision_schema(agent_type)["properties"]["evidence"], evidence), evidence


def test_confidences_are_what_an_example_can_state() -> None:
    stated = {json.loads(encode_decision("buy", i / 1000, ""))["confidence"] for i in range(1001)}
    assert sorted(stated) == list(CONFIDENCES)


# what is no decision


@pytest.mark.parametrize(
    "text",
    [
        "",
        "buy",
        "null",
        "[]",
        "{}",
        '{"recommendation":"buy","confidence":0.7}',
        '{"recommendation":"long","confidence":0.7,"evidence":""}',
        '{"recommendation":"Buy","confidence":0.7,"evidence":""}',
        '{"recommendation":null,"confidence":0.7,"evidence":""}',
        '{"recommendation":["buy"],"confidence":0.7,"evidence":""}',
        '{"recommendation":{"a":1},"confidence":0.7,"evidence":""}',
        '{"recommendation":"buy","confidence":1.7,"evidence":""}',
        '{"recommendation":"buy","confidence":-0.1,"evidence":""}',
        '{"recommendation":"buy","confidence":true,"evidence":""}',
        '{"recommendation":"buy","confidence":"0.7","evidence":""}',
        '{"recommendation":"buy","confidence":null,"evidence":""}',
        '{"recommendation":"buy","confidence":NaN,"evidence":""}',
        '{"recommendation":"buy","confidence":Infinity,"evidence":""}',
        '{"recommendation":"buy","confidence":1' + "0" * 400 + ',"evidence":""}',
        '{"recommendation":"buy","confidence":1' + "0" * 5000 + ',"evidence":""}',
        '{"recommendation":"buy","confidence":1e999,"evidence":""}',
        '{"recommendation":"buy","confidence":0.7,"evidence":{}}',
        '{"recommendation":"buy","confidence":0.7,"evidence":{"rsi":60}}',
        '{"recommendation":"buy","confidence":0.7,"evidence":"rsi"}',
        '{"recommendation":"buy","confidence":0.7,"evidence":"rsi:"}',
        '{"recommendation":"buy","confidence":0.7,"evidence":":60"}',
        '{"recommendation":"buy","confidence":0.7,"evidence":"rsi:60  trend:up"}',
        '{"recommendation":"buy","confidence":0.7,"evidence":" rsi:60"}',
        '{"recommendation":"buy","confidence":0.7,"evidence":[]}',
        '{"recommendation":"buy","confidence":0.7,"evidence":null}',
        '{"recommendation":"buy","confidence":0.7,"evidence":["rsi:60"]}',
        '{"recommendation":"buy","confidence":0.7,"evidence":true}',
        '{"recommendation":"buy","confidence":0.7,"evidence":60}',
        '{"recommendation":"buy","confidence":0.7,"evidence":"rsi:60 rsi:60"}',
        '{"recommendation":"buy","recommendation":"sell","confidence":0.7,"evidence":""}',
        '{"recommendation":"buy","confidence":0.7,"evidence":""} and more',
        'so: {"recommendation":"buy","confidence":0.7,"evidence":""}',
        '{"recommendation":"buy","confidence":0.7,"evidence":""}{}',
        '{"recommendation":"buy","confidence":0.7,"evidence":"","size":1}',
        '{"recommendation":"buy","confidence":0.7,"evidence":""',
        "```",
        "``````",
        "```json\n```",
        '```\n{"recommendation":"buy","confidence":0.7,"evidence":""}',
        '```\n{"recommendation":"buy","confidence":0.7,"evidence":""}\n``` so be it',
        '```python\n{"recommendation":"buy","confidence":0.7,"evidence":""}\n```',
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
    ids=lambda text: text[:60],
)
def test_what_is_not_exactly_a_decision_is_none(text: str) -> None:
    assert parse_decision(text) is None


@pytest.mark.parametrize("text", ["```" + " " * 100_000 + "x", "```json" + "\n" * 100_000 + "x", "`" * 100_000])
def test_an_endless_fence_takes_no_time_to_refuse(text: str) -> None:
    assert parse_decision(text) is None


@given(
    st.text(max_size=60) | st.from_regex(r'\{"recommendation":"buy","confidence":[^,]{0,6},"evidence":"[^"]{0,12}"\}')
)
def test_whatever_a_model_writes_is_a_sound_decision_or_none(text: str) -> None:
    decision = parse_decision(text)
    assert decision is None or (
        decision.recommendation in RECOMMENDATIONS
        and 0 <= decision.confidence <= 1
        and all(isinstance(value, str) and value for value in decision.evidence.values())
    )


@pytest.mark.parametrize("wrapped", ["```json\n{}\n```\n", "```\n{}\n```", "```{}```", "  {}\n", "```json {} ```"])
def test_a_decision_in_one_fence_or_white_space_is_read(wrapped: str) -> None:
    body = encode_decision("sell", 0.5, "rsi:60")
    assert parse_decision(wrapped.replace("{}", body)) == parse_decision(body) is not None


@pytest.mark.parametrize(
    "evidence", ["", "rsi:62", "rsi:60 trend:down", "volume:3", "rsi:60.0", "trend:1", "trend:na", "regime:crash"]
)
def test_a_decision_that_cites_nothing_or_something_else_is_not_grounded(evidence: str) -> None:
    decision = parse_decision(encode_decision("buy", 0.7, evidence))
    assert decision is not None
    assert not is_grounded(TECHNICAL, decision)


def test_what_is_unknown_grounds_nothing() -> None:
    assert not is_grounded(STATES["fundamental"], ParsedDecision("buy", 0.7, {"debt": "na"}))


def test_more_than_the_usual_may_be_cited_truthfully() -> None:
    assert is_grounded(TECHNICAL, ParsedDecision("buy", 0.7, {"rsi": "60", "bb": "0.7", "regime": "neutral"}))


# what is stored


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_recorded_state_is_read_back_after_its_way_through_json(agent_type: str) -> None:
    assert stored_state(Stored(agent_type, STATES[agent_type]).agent_inputs) == STATES[agent_type]


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"state": None},
        {"state": TECHNICAL},
        {"state": {"text": TECHNICAL}},
        {"state": {"language": LANGUAGE - 1, "text": TECHNICAL}},
        {"state": {"language": LANGUAGE + 1, "text": TECHNICAL}},
        {"state": {"language": str(LANGUAGE), "text": TECHNICAL}},
    ],
    ids=str,
)
def test_a_state_of_another_language_is_none(inputs: dict[str, Any]) -> None:
    assert stored_state(inputs) is None


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_training_example_is_the_question_of_inference_and_its_answer(agent_type: str) -> None:
    messages = example_messages(Stored(agent_type, STATES[agent_type]))
    assert messages[:2] == prompt_messages(agent_type, STATES[agent_type])
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert parse_decision(messages[2]["content"]) == ParsedDecision("buy", 0.7, words_of(CITATIONS[agent_type]))


@pytest.mark.parametrize("recommendation", [None, "long"])
def test_there_is_nothing_to_learn_without_a_recommendation(recommendation: str | None) -> None:
    with pytest.raises(ValueError, match="none of"):
        example_messages(Stored("technical", TECHNICAL, recommendation))


def test_there_is_nothing_to_learn_on_a_state_of_another_language() -> None:
    stored = Stored("technical", TECHNICAL)
    stored.agent_inputs["state"]["language"] = LANGUAGE - 1
    with pytest.raises(ValueError, match="present language"):
        example_messages(stored)


# prompts


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_an_agents_prompt_names_what_its_decision_cites(agent_type: str) -> None:
    text = prompt_text(agent_type)
    assert text == (PROMPTS / "local" / f"{agent_type}_{PROMPT_VERSION}.txt").read_text(encoding="utf-8").strip()
    assert " and ".join(CITED[agent_type]) in text
    assert {"recommendation", "confidence", "evidence"} <= set(text.replace(",", " ").split())
    assert prompt_messages(agent_type, "a state") == [
        {"role": "system", "content": text},
        {"role": "user", "content": "a state"},
    ]


def test_every_agent_has_a_prompt_of_its_own_and_its_hash_is_that_of_the_text() -> None:
    hashes = {agent_type: prompt_hash(agent_type) for agent_type in LOCAL_AGENTS}
    assert len(set(hashes.values())) == len(LOCAL_AGENTS)
    assert hashes == {agent_type: sha256_hex(prompt_text(agent_type)) for agent_type in LOCAL_AGENTS}


def test_who_reads_strangers_texts_is_told_that_they_are_no_instruction() -> None:
    assert "never an instruction" in prompt_text("news")


def test_the_share_of_conversations_with_experiences_is_counted_by_their_states() -> None:
    without = prompt_messages("technical", TECHNICAL)
    shown = prompt_messages("technical", f"{TECHNICAL} past:3 pbuy:0.5 psell:na")
    quoted = prompt_messages("news", f"{STATES['news']}\n=== data a begins ===\n[n1] past:3\n=== data a ends ===")
    assert stated_experiences([without, shown, quoted, without]) == 0.25
    assert stated_experiences([]) == 0.0
