"""Writes the question to a judging model: the rubric as instructions, the agent's output as data that cannot instruct.

`LLMJudge` calls it; templates stand in ``judge/prompts``. It asks nobody, and it never shows an outcome or who made the
output.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

from judge.base import JudgeRequest
from judge.rubrics import Rubric
from utils.clock import isoformat
from utils.llm.base import ChatMessage
from utils.llm.untrusted import capped, token, visible
from utils.schema import AgentOutput

LONGEST_TEXT = 600
"""Characters of any text but the reasoning that are shown; headlines and risks are shorter."""

LONGEST_REASONING = 4000
MOST_ITEMS = 40
"""Entries of a list or a map that are shown."""

MOST_DATA_CHARS = 24_000
"""Characters of data in one question; beyond it long lists are cut further, visibly."""

_LEAST_ITEMS = 5
_DEEPEST = 6
_TEMPLATES = Path(__file__).resolve().parent / "prompts"
_NAMES = ("system.md", "user.md")
_WITHHELD = {"policy", "p_correct", "latency_s", "cost_usd", "abstained", "abstain_reason"}
"""Fields that judges are not shown: who thought, at what price, and what past outcomes say of it."""

_SHOWN_OF_OTHERS = ("recommendation", "confidence")
_SLUG = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A question with what its answer is checked by.

    Attributes
    ----------
    messages : tuple of ChatMessage
        A system and a user message.
    schema : dict
        JSON schema of the answer.
    verdict_id : str
        Stands in the system message only; the answer must carry it.
    criteria : dict of str to str
        Key in the answer to dimension of the rubric.
    """

    messages: tuple[ChatMessage, ...]
    schema: dict[str, Any]
    verdict_id: str
    criteria: dict[str, str]


def judge_prompt(request: JudgeRequest, key: bytes) -> JudgePrompt:
    """Return the question for one output.

    Parameters
    ----------
    request : JudgeRequest
    key : bytes
        Secret from which boundary and verdict id are derived together with the content; equal keys and requests give
        equal bytes.
    """
    templates, rubric = _templates(), request.rubric
    rubric_text, data = _rubric_text(rubric), _data(request)
    content = "\0".join((templates["system.md"], request.agent_type, rubric_text, data))
    boundary, verdict_id = (f"{name}-{token(key, name, content)}" for name in ("data", "verdict"))
    system = Template(templates["system.md"]).substitute(
        agent_type=request.agent_type, rubric=rubric_text, verdict_id=verdict_id
    )
    user = Template(templates["user.md"]).substitute(boundary=boundary, data=data)
    criteria = {_SLUG.sub("_", name.lower()).strip("_"): name for name in rubric.weights}
    messages = (ChatMessage("system", system.strip()), ChatMessage("user", user.strip()))
    return JudgePrompt(messages, _schema(tuple(criteria)), verdict_id, criteria)


@functools.cache
def prompt_hash() -> str:
    """Return the SHA-256 of the templates: grades made with other words are not compared blindly."""
    digest = hashlib.sha256()
    for name, text in _templates().items():
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()


@functools.cache
def _templates() -> dict[str, str]:
    return {name: (_TEMPLATES / name).read_text(encoding="utf-8") for name in _NAMES}


def _rubric_text(rubric: Rubric) -> str:
    lines = []
    for dimension in rubric.dimensions:
        lines.append(f"- {dimension.name} (weight {dimension.weight:g}): {dimension.description}")
        lines += [f"    {band}: {words}" for band, words in dimension.levels.items()]
    return "\n".join(lines)


def _data(request: JudgeRequest) -> str:
    """Return the output and what was known beside it as JSON text without an invisible character."""
    items = MOST_ITEMS
    while True:
        text = _dumped(request, items)
        if len(text) <= MOST_DATA_CHARS or items <= _LEAST_ITEMS:
            return capped(text, MOST_DATA_CHARS)
        items = max(_LEAST_ITEMS, items // 2)


def _dumped(request: JudgeRequest, items: int) -> str:
    output = request.output.model_dump(mode="json", exclude=_WITHHELD, exclude_none=True)
    output["evidence"] = [
        {name: value for name, value in item.items() if value != ""} for item in output.get("evidence", ())
    ]
    known = request.known()
    others = known.pop("agent_outputs", None) or {}
    beside = {name: value for name, value in known.items() if value is not None}
    if others:
        beside["agent_outputs"] = {
            name: {"abstained": True}
            if other.abstained
            else {field: getattr(other, field) for field in _SHOWN_OF_OTHERS}
            for name, other in others.items()
        }
    shown = {"output": _shown(output, items), "known_at_the_time": _shown(beside, items)}
    # JSON text holds line ends and quotes of a string escaped; what is left invisible is escaped here
    return visible(json.dumps(shown, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _shown(value: Any, items: int, name: str = "", depth: int = 0) -> Any:
    """Return a value as JSON can hold it, cut visibly where it is long, large or deep."""
    if depth > _DEEPEST:
        return "[cut: nested too deep]"
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else str(value)
    if isinstance(value, str):
        return capped(value, LONGEST_REASONING if name == "reasoning" else LONGEST_TEXT)
    if isinstance(value, datetime):
        return isoformat(value)
    if isinstance(value, AgentOutput):
        return _shown(value.model_dump(mode="json", exclude=_WITHHELD, exclude_none=True), items, name, depth)
    if isinstance(value, Mapping):
        pairs = list(value.items())
        shown = {
            capped(str(key), LONGEST_TEXT): _shown(item, items, str(key), depth + 1) for key, item in pairs[:items]
        }
        if len(pairs) > items:
            shown["[cut]"] = f"{len(pairs) - items} more entries"
        return shown
    if isinstance(value, Sequence):
        listed = [_shown(item, items, name, depth + 1) for item in value[:items]]
        return [*listed, f"[cut: {len(value) - items} more entries]"] if len(value) > items else listed
    return capped(str(value), LONGEST_TEXT)


@functools.lru_cache(maxsize=64)
def _schema(criteria: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of an answer; the verdict id is any text there, or the schema would give it away."""
    score = {"type": "number", "minimum": 0, "maximum": 100}
    texts = {"type": "array", "items": {"type": "string"}}
    properties = {
        "verdict_id": {"type": "string", "description": "the verdict id of the system message"},
        "reasoning": {"type": "string"},
        "criteria": _strict(dict.fromkeys(criteria, score)),
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "strengths": texts,
        "weaknesses": texts,
        "suggestions": texts,
    }
    return _strict(properties)


def _strict(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
