"""The seam between the panel and any judge: what a judge is asked, what it answers, and how it fails.

The consensus hands a `JudgeRequest` to every `Judge` and combines the `JudgeScore`s. A request never carries an
outcome: judging happens at decision time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from judge.rubrics import Rubric
from utils.errors import JudgeError, LookAheadError
from utils.schema import AgentOutput

OUTCOME_KEYS = frozenset(
    ("outcome", "outcomes", "actual_return", "benchmark_return", "reward", "success", "matured_at", "ground_truth")
)
"""Keys of a context that would tell a judge how the decision turned out."""


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One output to grade.

    Attributes
    ----------
    agent_type : str
        Whose output it is.
    output : AgentOutput
        Untrusted: a language model may have written every text in it.
    rubric : Rubric
        What it is graded on.
    context : mapping
        What was known when the output was made. The local judge reads ``price`` (USD), ``daily_volatility`` (fraction),
        ``portfolio`` ({equity, cash, weights}) and ``agent_outputs`` ({name: AgentOutput}), each optional.

    Raises
    ------
    LookAheadError
        If the context holds a key that names an outcome.
    """

    agent_type: str
    output: AgentOutput
    rubric: Rubric
    context: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        leaked = OUTCOME_KEYS.intersection(self.context)
        if leaked:
            raise LookAheadError(
                f"a judge must not know the outcome; remove {', '.join(sorted(leaked))} from the context"
            )


@dataclass(frozen=True, slots=True)
class JudgeScore:
    """One judge's grade.

    Attributes
    ----------
    score : float
        0..100.
    confidence : float
        0..1, how sure the judge is of its grade.
    reasoning : str
        Why, in words for people.
    criteria_scores : dict of str to float
        0..100 for each dimension of the rubric.

    Raises
    ------
    JudgeError
        If a number is out of range or not finite: such a grade counts as none.
    """

    judge_id: str
    score: float
    confidence: float
    reasoning: str
    criteria_scores: dict[str, float]

    def __post_init__(self) -> None:
        _check_range(self.judge_id, "score", self.score, 100)
        _check_range(self.judge_id, "confidence", self.confidence, 1)
        for name, value in self.criteria_scores.items():
            _check_range(self.judge_id, name, value, 100)


class Judge(Protocol):
    """Grades one output against a rubric.

    Failure contract: a judge that cannot grade (no key, time-out, refusal, malformed answer, an output that abstained)
    raises `JudgeError` with the reason; it never invents a score and never returns a default. It keeps its own deadline
    below the panel's. Two calls may run at the same time.

    Attributes
    ----------
    judge_id : str
        Unique within a panel; weights and statistics follow it.
    """

    judge_id: str

    def grade(self, request: JudgeRequest) -> JudgeScore:
        """Return the grade, with a criteria score for every dimension of the rubric."""
        ...


def _check_range(judge_id: str, name: str, value: float, top: float) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= top:
        raise JudgeError(f"malformed: {judge_id} gave {name} {value!r}, which is not within 0..{top}")
