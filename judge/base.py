"""The seam between the panel and any judge: what a judge is asked, what it answers, and how it fails.

The consensus hands a `JudgeRequest` to every `Judge` and combines the `JudgeScore`s. A request never carries an
outcome: judging happens at decision time.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from evaluation.error_taxonomy import ErrorReport
from evaluation.ground_truth import GroundTruth
from judge.rubrics import Rubric
from utils.errors import JudgeError, LookAheadError
from utils.schema import AgentOutput, PortfolioState, parse_output

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
        What was known when the output was made, each key optional: ``truth`` (a `GroundTruth` without the right call),
        ``report`` (the `ErrorReport` on this output), ``price`` (USD), ``daily_volatility`` (fraction), ``portfolio``
        ({equity, cash, weights}) and ``agent_outputs`` ({name: AgentOutput}). The last four follow from ``truth`` where
        they are not given. Other keys are shown to judges that read, under their names.

    Raises
    ------
    LookAheadError
        If the context holds a key that names an outcome, or its truth the right call.
    JudgeError
        If ``truth`` or ``report`` are of another type, or the report is on another agent's output.
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
        truth, report = self.context.get("truth"), self.context.get("report")
        if truth is not None and not isinstance(truth, GroundTruth):
            raise JudgeError(f"invalid: context.truth must be a GroundTruth, not {type(truth).__name__}")
        if truth is not None and truth.recommendation is not None:
            raise LookAheadError("a judge must not know the right call; remove recommendation from context.truth")
        if report is not None and not isinstance(report, ErrorReport):
            raise JudgeError(f"invalid: context.report must be an ErrorReport, not {type(report).__name__}")
        if report is not None and report.agent_type != self.agent_type:
            raise JudgeError(f"invalid: context.report is on a {report.agent_type} output, not a {self.agent_type} one")

    def truth(self) -> GroundTruth:
        """Return what the output can be held against: the context's truth, else what its other keys say."""
        truth = self.context.get("truth")
        if truth is not None:
            return truth
        book = self.context.get("portfolio")
        portfolio = PortfolioState(book["equity"], book["cash"], book.get("weights") or {}) if book else None
        return GroundTruth(agent_outputs=self.context.get("agent_outputs") or {}, portfolio=portfolio)

    def known(self) -> dict[str, Any]:
        """Return the context with price, daily_volatility, portfolio and agent_outputs filled in from the truth."""
        known = {name: value for name, value in self.context.items() if name not in ("truth", "report")}
        truth = self.context.get("truth")
        if truth is None:
            return known
        if truth.snapshot is not None:
            known.setdefault("price", truth.snapshot.price)
            known.setdefault("daily_volatility", truth.snapshot.inputs.daily_volatility)
        if truth.portfolio is not None:
            book = truth.portfolio
            known.setdefault("portfolio", {"equity": book.equity, "cash": book.cash, "weights": dict(book.weights)})
        known.setdefault("agent_outputs", truth.agent_outputs)
        return known


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
    cost_usd : float
        What the grade cost; 0 for local judges and answers from a cache.
    tokens : int
        Read and written by a model, as its provider counts them; 0 for code.

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
    cost_usd: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        check_range(self.judge_id, "score", self.score, 100)
        check_range(self.judge_id, "confidence", self.confidence, 1)
        for name, value in self.criteria_scores.items():
            check_range(self.judge_id, name, value, 100)


class Judge(Protocol):
    """Grades one output against a rubric.

    Failure contract: a judge that cannot grade (no key, time-out, refusal, malformed answer, an output that abstained)
    raises `JudgeError` with the reason; it never invents a score and never returns a default. It keeps its own deadline
    below the panel's. Calls may run at the same time.

    Attributes
    ----------
    judge_id : str
        Unique within a panel; weights and statistics follow it.
    """

    judge_id: str

    def grade(self, request: JudgeRequest) -> JudgeScore:
        """Return the grade, with a criteria score for every dimension of the rubric."""
        ...


@runtime_checkable
class WaitingJudge(Protocol):
    """A judge that waits for a server: it can begin a grade without blocking and without a thread.

    The failure contract is that of `Judge`, out of the future. Cancelling the future ends the call.
    """

    judge_id: str

    def begin(self, request: JudgeRequest, deadline_s: float, account: str) -> Future[JudgeScore]:
        """Return at once with a future of the grade.

        Parameters
        ----------
        request : JudgeRequest
        deadline_s : float
            Wall seconds until the future holds a grade or a fault.
        account : str
            The identity of the decision that pays for it.
        """
        ...


def check_range(judge_id: str, name: str, value: Any, top: float) -> None:
    """Raise JudgeError unless `value` is a finite number of 0..`top`; a bool is none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= top:  # NaN fails it too; isfinite cannot take a whole number of 400 digits
        # a model may have nested it as deep as it likes
        shown = f"{value!r}"[:40] if number or isinstance(value, (str, bool)) else type(value).__name__
        raise JudgeError(f"malformed: {judge_id} gave {name} {shown}, which is not within 0..{top}")


def readable_output(agent_type: str, raw: AgentOutput | Mapping[str, Any] | str) -> AgentOutput:
    """Return an output that a judge could grade.

    Raises
    ------
    JudgeError
        If it is no valid output of the agent (``invalid: ...``) or abstained (``abstained: ...``).
    """
    content = raw if isinstance(raw, (AgentOutput, str)) else dict(raw)
    output, findings = parse_output(content, agent_type)
    if output is None:
        faults = "; ".join(f"{finding.pointer}: {finding.description}" for finding in findings)
        raise JudgeError(f"invalid: the output cannot be read: {faults[:300]}")
    if output.agent_type != agent_type:
        raise JudgeError(f"invalid: the output is a {output.agent_type} agent's, not a {agent_type} agent's")
    if output.abstained:
        raise JudgeError("abstained: an abstention has no reasoning to grade")
    return output
