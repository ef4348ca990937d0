"""Checks the answer of a judging model and computes the grade: the model gives parts, the total is ours.

`LLMJudge` calls it. Nothing is clamped, guessed or filled in: an answer that is not exactly what was asked for is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from judge.base import JudgeScore, check_range
from judge.prompting import JudgePrompt
from judge.rubrics import Rubric
from utils.errors import JudgeError
from utils.llm.base import ChatAnswer
from utils.llm.untrusted import capped, visible

_LONGEST_TEXT = 2000
"""Characters kept of a model's explanation; it is asked for 120 words."""

_MOST_POINTS = 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grade with what a person wants to read beside it."""

    score: JudgeScore
    strengths: tuple[str, ...]
    weaknesses: tuple[str, ...]
    suggestions: tuple[str, ...]
    answer: ChatAnswer


def verdict_of(judge_id: str, answer: ChatAnswer, prompt: JudgePrompt, rubric: Rubric) -> Verdict:
    """Return what an answer says.

    Raises
    ------
    JudgeError
        ``malformed: ...`` where something is missing, surplus, of a wrong type or out of range; ``injected: ...`` where
        the answer does not carry the verdict id, so that it may have been copied from what was to be graded. It tells
        what was spent.
    """
    tokens = answer.input_tokens + answer.output_tokens
    try:
        verdict = _checked(judge_id, answer, prompt, rubric)
    except JudgeError as fault:
        raise JudgeError(str(fault), cost_usd=answer.cost_usd, tokens=tokens) from None
    return replace(verdict, score=replace(verdict.score, cost_usd=answer.cost_usd, tokens=tokens))


def _checked(judge_id: str, answer: ChatAnswer, prompt: JudgePrompt, rubric: Rubric) -> Verdict:
    content = answer.content
    _same_keys(judge_id, "the answer", content, prompt.schema["properties"])
    if not isinstance(content["verdict_id"], str):
        raise JudgeError(f"malformed: {judge_id} gave a verdict_id that is no text")
    if content["verdict_id"].strip() != prompt.verdict_id:
        raise JudgeError(
            f"injected: the answer of {judge_id} does not carry the id of its question; it may stem from the text that "
            "was to be graded"
        )
    given = content["criteria"]
    _same_keys(judge_id, "criteria", given, prompt.criteria)
    criteria: dict[str, float] = {}
    for key, name in prompt.criteria.items():
        check_range(judge_id, name, given[key], 100)
        criteria[name] = float(given[key])
    check_range(judge_id, "confidence", content["confidence"], 1)
    if not isinstance(content["reasoning"], str) or not content["reasoning"].strip():
        raise JudgeError(f"malformed: {judge_id} gave no reasoning")
    strengths, weaknesses, suggestions = (
        _points(judge_id, name, content[name]) for name in ("strengths", "weaknesses", "suggestions")
    )
    # weights sum to 1 within rounding only
    total = min(100.0, sum(weight * criteria[name] for name, weight in rubric.weights.items()))
    score = JudgeScore(judge_id, total, float(content["confidence"]), _text(content["reasoning"]), criteria)
    return Verdict(score, strengths, weaknesses, suggestions, answer)


def _same_keys(judge_id: str, where: str, given: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(given, Mapping):
        raise JudgeError(f"malformed: {judge_id} gave {where} as {type(given).__name__}, not as an object")
    if missing := sorted(wanted.keys() - given.keys()):
        raise JudgeError(f"malformed: {judge_id} left {', '.join(missing)} out of {where}")
    if extra := sorted(visible(str(key)[:40]) for key in given.keys() - wanted.keys()):
        raise JudgeError(f"malformed: {judge_id} added {', '.join(extra[:5])} to {where}")


def _points(judge_id: str, name: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(p, str) for p in given):
        raise JudgeError(f"malformed: {judge_id} gave {name} that are no list of texts")
    return tuple(_text(point) for point in given[:_MOST_POINTS])


def _text(text: str) -> str:
    """Return a model's text on one line, without invisible characters and of bounded length."""
    return visible(capped(" ".join(text.split()), _LONGEST_TEXT))
