"""A decision as a local model states it: compact JSON, the schema that generation keeps to, and the strict way back.

What is written here as a training example is read here as an answer. A decision cites what the state says, so that a model
that does not read its state is caught; anything that is not exactly a decision is none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from agents.policies.local.states import CITED, FIELDS, LANGUAGE, state_values
from agents.policies.prompting import PROMPTS
from utils.hashing import sha256_hex
from utils.schema import RECOMMENDATIONS

PROMPT_VERSION = "v2"
"""Of the files ``prompts/local/<agent>_<version>.txt``; a changed prompt is a new file, so that old hashes keep their text."""

CONFIDENCES = tuple(round(i / 10, 1) for i in range(11))
"""What a decision can state; finer steps are noise to a small model."""

_FENCE = "```"


@dataclass(frozen=True, slots=True)
class ParsedDecision:
    """A decision as a model stated it: `confidence` 0..1, `evidence` maps names of the state to cited words."""

    recommendation: str
    confidence: float
    evidence: Mapping[str, str]


class Decided(Protocol):
    """What a training example is made from; a stored trajectory is one."""

    @property
    def agent_type(self) -> str:
        """One of `LOCAL_AGENTS`."""
        ...

    @property
    def agent_inputs(self) -> Mapping[str, Any]:
        """With the state as `recorded_state` wrote it."""
        ...

    @property
    def recommendation(self) -> str | None:
        """One of the five recommendations."""
        ...

    @property
    def confidence(self) -> float:
        """0..1."""
        ...


@cache
def decision_schema(agent_type: str) -> dict[str, Any]:
    """Return the JSON schema of an agent's decision: what it cites can only be what a state could say."""
    first, second = (
        f"{name}:({'|'.join(map(re.escape, FIELDS[agent_type][name].words()))})" for name in CITED[agent_type]
    )
    return {
        "type": "object",
        "properties": {
            "recommendation": {"enum": list(RECOMMENDATIONS)},
            "confidence": {"enum": list(CONFIDENCES)},
            "evidence": {"type": "string", "pattern": f"^({first}( {second})?|{second})?$"},
        },
        "required": ["recommendation", "confidence", "evidence"],
        "additionalProperties": False,
    }


def cited_evidence(agent_type: str, state_text: str) -> str:
    """Return the words of a state that a truthful decision on it cites: ``rsi:60 trend:up``; empty where it has none."""
    stated = state_values(state_text)
    return " ".join(f"{name}:{stated[name]}" for name in CITED[agent_type] if name in stated)


def encode_decision(recommendation: str, confidence: float, evidence: str) -> str:
    """Write a decision as compact JSON, confidence to one decimal; `evidence` is copied from the state.

    Raises
    ------
    ValueError
        If the recommendation is none of the five or the confidence is outside 0..1.
    """
    if recommendation not in RECOMMENDATIONS:
        raise ValueError(f"{recommendation!r} is none of {', '.join(RECOMMENDATIONS)}")
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence {confidence!r} is outside 0..1")
    decision = {"recommendation": recommendation, "confidence": round(float(confidence), 1), "evidence": evidence}
    return json.dumps(decision, separators=(",", ":"), allow_nan=False)


def parse_decision(text: str) -> ParsedDecision | None:
    """Read what a model wrote: the JSON object alone, or inside one code fence; anything else is None, never a guess."""
    text = text.strip()
    if text.startswith(_FENCE) and text.endswith(_FENCE):
        text = text.removeprefix(_FENCE).removesuffix(_FENCE).removeprefix("json")
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.keys() != {"recommendation", "confidence", "evidence"}:
        return None
    recommendation, confidence, evidence = data["recommendation"], data["confidence"], data["evidence"]
    if recommendation not in RECOMMENDATIONS or not _is_number(confidence) or not 0 <= confidence <= 1:
        return None
    if not isinstance(evidence, str):
        return None
    words = [word.partition(":") for word in evidence.split(" ")] if evidence else []
    if not all(name and value for name, _, value in words) or len({name for name, *_ in words}) < len(words):
        return None
    return ParsedDecision(recommendation, float(confidence), {name: value for name, _, value in words})


def is_grounded(state_text: str, decision: ParsedDecision) -> bool:
    """Return whether the decision cites evidence and all of it says what the state says."""
    stated = state_values(state_text)
    return bool(decision.evidence) and all(stated.get(name) == cited for name, cited in decision.evidence.items())


def recorded_state(state_text: str) -> dict[str, Any]:
    """Return a state as it is stored with a trajectory."""
    return {"language": LANGUAGE, "text": state_text}


def stored_state(agent_inputs: Mapping[str, Any]) -> str | None:
    """Return the state that a trajectory was decided on, None if it holds none of the present language."""
    state = agent_inputs.get("state")
    if not isinstance(state, Mapping) or state.get("language") != LANGUAGE:
        return None
    return str(state["text"])


@cache
def prompt_text(agent_type: str) -> str:
    """Return an agent's system prompt."""
    return (PROMPTS / "local" / f"{agent_type}_{PROMPT_VERSION}.txt").read_text(encoding="utf-8").strip()


@cache
def prompt_hash(agent_type: str) -> str:
    """Return the SHA-256 of an agent's system prompt, which stands in whatever was trained or decided with it."""
    return sha256_hex(prompt_text(agent_type))


def prompt_messages(agent_type: str, state_text: str) -> list[dict[str, str]]:
    """Return the conversation that asks an agent for a decision on a state."""
    return [{"role": "system", "content": prompt_text(agent_type)}, {"role": "user", "content": state_text}]


def example_messages(decided: Decided) -> list[dict[str, str]]:
    """Return the conversation of a training example: the state, and the decision that was taken, truthfully cited.

    Raises
    ------
    ValueError
        If there is no valid recommendation to learn, or no state of the present language to learn it on.
    """
    state_text = stored_state(decided.agent_inputs)
    if state_text is None:
        raise ValueError("no state of the present language was stored with it")
    agent_type = decided.agent_type
    answer = encode_decision(str(decided.recommendation), decided.confidence, cited_evidence(agent_type, state_text))
    return [*prompt_messages(agent_type, state_text), {"role": "assistant", "content": answer}]


def stated_experiences(conversations: Iterable[Sequence[Mapping[str, str]]]) -> float:
    """Return the share of conversations whose state shows past experiences; 0 of none."""
    shown = ["past" in state_values(message["content"]) for messages in conversations for message in messages if message["role"] == "user"]  # fmt: skip
    return sum(shown) / len(shown) if shown else 0.0


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
