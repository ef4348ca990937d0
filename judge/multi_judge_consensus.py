"""The panel: asks every judge, leaves out those that fail, and combines the rest into one grade.

The judging thread calls `MultiJudgeConsensus.evaluate_many` when decisions have been taken, before their outcomes exist.
It never gives a failed judge a default score, below quorum there is no score at all, and what the guard flags no judge
is shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

from judge.base import Judge, JudgeRequest, JudgeScore, WaitingJudge, readable_output
from judge.calibration import ScoreCalibration
from judge.combining import METHODS, Combined, Vote, combine
from judge.consensus_result import ConsensusResult, EvaluationItem
from judge.panel import ChatModelSource, seats_of
from judge.reliability import ReliabilityWindow
from judge.robustness_guard import GuardVerdict, RobustnessGuard
from judge.rubrics import Rubric, load_rubric
from utils.errors import ConfigError, JudgeError
from utils.schema import AgentOutput

__all__ = ["ConsensusResult", "EvaluationItem", "MultiJudgeConsensus"]

DEFAULT_QUORUM = 2
IN_FLIGHT = 16
"""Items that one caller has open at once, each with a call to every hosted judge."""

_NOT_SEATED = ("auth:", "budget:")
"""Reasons that take a judge off the quorum: it has no key, or may not be paid."""

_BUDGET = "budget"

_LONGEST_LEAD_S, _LEAD_SHARE = 0.25, 0.1
"""By how much a judge's deadline comes before the panel's: one that is late can still say so, and what it has cost."""


@dataclass(slots=True)
class _Inquiry:
    """One item while its judges are being asked."""

    request: JudgeRequest
    screened: GuardVerdict
    started: float
    deadline: float
    futures: dict[str, Future[JudgeScore]] = field(default_factory=dict)
    scores: dict[str, JudgeScore] = field(default_factory=dict)
    faults: dict[str, JudgeError] = field(default_factory=dict)

    def is_complete(self) -> bool:
        return all(future.done() for future in self.futures.values())


class MultiJudgeConsensus:
    """A panel of judges. Its methods may be called from several threads at the same time.

    Parameters
    ----------
    judge_configs : sequence of mapping
        {id, model, weight 1.0, provider?, agents?}; without provider the model's name decides. Model ``local`` is the judge
        that is code, ``local:<folder>`` a language model on this machine. A judge with agents grades their opinions alone.
    consensus_method : str
        weighted_average, majority_vote, median, min, max or calibrated.
    disagreement_threshold : float
        Points between the highest and the lowest grade above which the median counts.
    deadline_s : float
        Wall seconds for the whole panel, an item.
    quorum : int, optional
        Grades that are needed; 2 where None. A judge without a key, beyond the budget or of other agents does not count,
        and a single judge that does is its own quorum.
    judges : sequence of Judge or WaitingJudge
        Ready judges. One whose id stands in `judge_configs` takes its weight from there; the others weigh 1.
    calibrations : mapping of str to ScoreCalibration
        Curves by judge id for the method ``calibrated``; judges without one make it fall back to weighted_average.
    chat_models : ChatModelSource, optional
        Where hosted judges get their models, which its owner closes. Without it each gets one by the key in its
        environment variable, and the panel closes them.
    prompt_key : bytes, optional
        Given by replays, see `LLMJudge`.

    Raises
    ------
    ConfigError
        On an impossible judge, a doubled id, a quorum beyond the panel, a deadline that is not positive.
    ValueError
        On an unknown method.
    """

    def __init__(
        self,
        judge_configs: Sequence[Mapping[str, Any]],
        consensus_method: str = "weighted_average",
        disagreement_threshold: float = 20.0,
        *,
        deadline_s: float = 20.0,
        quorum: int | None = None,
        judges: Sequence[Judge | WaitingJudge] = (),
        calibrations: Mapping[str, ScoreCalibration] | None = None,
        chat_models: ChatModelSource | None = None,
        prompt_key: bytes | None = None,
    ) -> None:
        if consensus_method not in METHODS:
            raise ValueError(f"consensus method {consensus_method!r} is none of {', '.join(METHODS)}")
        if not deadline_s > 0:
            raise ConfigError(f"judge.deadline_s: must be positive seconds, not {deadline_s!r}")
        if not disagreement_threshold >= 0:
            raise ConfigError(f"judge.disagreement_threshold: must be 0 or more points, not {disagreement_threshold!r}")
        self._seats, self._owned = seats_of(judge_configs, judges, chat_models, prompt_key)
        self._weights = {seat.judge_id: seat.weight for seat in self._seats}
        # code answers last: servers think while it computes
        self._asking_order = sorted(self._seats, key=lambda seat: seat.is_instant)
        self._method = consensus_method
        self._threshold = disagreement_threshold
        self._deadline_s = deadline_s
        self._quorum = _quorum(quorum, len(self._seats))
        self._calibrations = dict(calibrations or {})
        self._rubrics: dict[str, Rubric] = {}
        self._reliability = ReliabilityWindow(self.judge_ids)
        self._guard = RobustnessGuard()
        self._closed = False

    @property
    def judge_ids(self) -> tuple[str, ...]:
        """The judges of the panel, in order."""
        return tuple(seat.judge_id for seat in self._seats)

    def judges_of(self, agent_type: str) -> tuple[str, ...]:
        """Return the judges that grade opinions of an agent, in order."""
        return tuple(seat.judge_id for seat in self._seats if seat.grades(agent_type))

    def set_calibrations(self, calibrations: Mapping[str, ScoreCalibration]) -> None:
        """Take other curves for the method ``calibrated``, from the next conclusion on."""
        self._calibrations = dict(calibrations)

    def evaluate(
        self,
        agent_type: str,
        agent_output: AgentOutput | Mapping[str, Any] | str,
        rubric_path: str,
        context: Mapping[str, Any] | None = None,
        *,
        account: str = "",
    ) -> ConsensusResult:
        """Grade one output; parameters as in `EvaluationItem`, faults as in `evaluate_many`."""
        return self.evaluate_many([EvaluationItem(agent_type, agent_output, rubric_path, context or {}, account)])[0]

    def evaluate_many(self, items: Sequence[EvaluationItem], *, in_flight: int = IN_FLIGHT) -> list[ConsensusResult]:
        """Grade many outputs, several at a time.

        Parameters
        ----------
        items : sequence of EvaluationItem
        in_flight : int
            Items open at once, at least 1; each has the deadline of its own, from its own start.

        Returns
        -------
        list of ConsensusResult
            In the order of the items, as agreement and effective votes are taken, whatever is finished first.

        Raises
        ------
        JudgeError
            If an output abstained, is no valid output of the agent, or has no judge on this panel: none could ever grade it,
            so it does not stay pending. Then nobody has been asked, as with the two below.
        LookAheadError
            If a context tells the outcome.
        ConfigError
            If a rubric is wrong or belongs to another agent.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        if self._closed:
            raise JudgeError("closed: the panel has been closed")
        requests = [self._request(item) for item in items]
        results: list[ConsensusResult] = []
        open_: dict[int, _Inquiry] = {}
        finished: dict[int, _Inquiry] = {}
        events: SimpleQueue[int] = SimpleQueue()
        begun = 0
        try:
            while len(results) < len(requests):
                while begun < len(requests) and len(open_) < in_flight:
                    open_[begun] = self._begun(requests[begun], items[begun].account, begun, events)
                    begun += 1
                now = time.monotonic()
                for index in [i for i, inquiry in open_.items() if inquiry.is_complete() or inquiry.deadline <= now]:
                    finished[index] = inquiry = open_.pop(index)
                    self._gather(inquiry)
                while len(results) in finished:
                    results.append(self._concluded(finished.pop(len(results))))
                if open_ and (begun == len(requests) or len(open_) == in_flight):
                    try:
                        events.get(timeout=max(0.0, min(i.deadline for i in open_.values()) - time.monotonic()))
                    except Empty:
                        continue  # a deadline has passed
        finally:
            for inquiry in open_.values():
                for future in inquiry.futures.values():
                    future.cancel()
        return results

    def close(self) -> None:
        """Release the threads and the models that the panel made; idempotent. Calls in flight end by their deadlines."""
        self._closed = True
        for seat in self._seats:
            if seat.pool is not None:
                seat.pool.shutdown(wait=False, cancel_futures=True)
        for model in self._owned:
            model.close()

    def _request(self, item: EvaluationItem) -> JudgeRequest:
        if not self.judges_of(item.agent_type):
            raise JudgeError(f"unassigned: no judge of this panel grades opinions of the {item.agent_type} agent")
        output = readable_output(item.agent_type, item.output)
        return JudgeRequest(item.agent_type, output, self._rubric(item.agent_type, item.rubric_path), item.context)

    def _rubric(self, agent_type: str, path: str) -> Rubric:
        rubric = self._rubrics.get(path)
        if rubric is None:
            rubric = self._rubrics[path] = load_rubric(path)
        if rubric.agent_type != agent_type:
            raise ConfigError(
                f"{path}: this rubric grades {rubric.agent_type}, not {agent_type}; name {agent_type}_rubric"
            )
        return rubric

    def _begun(self, request: JudgeRequest, account: str, index: int, events: SimpleQueue[int]) -> _Inquiry:
        """Ask all judges about one item, unless the guard flags it; `events` hears of each answer."""
        now = time.monotonic()
        inquiry = _Inquiry(request, self._guard.screen(request.output), now, now + self._deadline_s)
        if inquiry.screened.verdict == "quarantine":
            return inquiry
        theirs = inquiry.deadline - min(_LONGEST_LEAD_S, _LEAD_SHARE * self._deadline_s)
        for seat in self._asking_order:
            if not seat.grades(request.agent_type):
                continue
            try:
                future = seat.begin(request, max(0.0, theirs - time.monotonic()), account)
            except RuntimeError:
                if not self._closed:
                    raise
                # another thread has closed the panel: its pools take nothing any more
                inquiry.faults[seat.judge_id] = JudgeError("closed: the panel was closed before the judge began")
                continue
            inquiry.futures[seat.judge_id] = future
            future.add_done_callback(lambda _: events.put(index))
        return inquiry

    def _gather(self, inquiry: _Inquiry) -> None:
        """Take the grades and the faults out of the futures, and end what is late."""
        for name, future in inquiry.futures.items():
            try:
                inquiry.scores[name] = self._grade(name, future, inquiry.request)
            except JudgeError as fault:
                inquiry.faults[name] = fault

    def _grade(self, name: str, future: Future[JudgeScore], request: JudgeRequest) -> JudgeScore:
        if not future.done():
            future.cancel()
            raise JudgeError(f"timeout: no grade within {self._deadline_s:g} s")
        try:
            grade = future.result()
        except CancelledError:
            raise JudgeError("closed: the panel was closed before the judge began") from None
        if grade.judge_id != name or set(grade.criteria_scores) != set(request.rubric.weights):
            raise JudgeError("malformed: the grade is under another id or does not cover the rubric's dimensions")
        return grade

    def _concluded(self, inquiry: _Inquiry) -> ConsensusResult:
        """Return what the panel says of an item, and remember its grades."""
        scores = {name: inquiry.scores[name] for name in sorted(inquiry.scores)}
        faults = {name: inquiry.faults[name] for name in sorted(inquiry.faults)}
        spent = [(grade.cost_usd, grade.tokens) for grade in scores.values()]
        spent += [(fault.cost_usd, fault.tokens) for fault in faults.values()]
        reasons = {name: str(fault) for name, fault in faults.items()}
        bare = ConsensusResult(
            status="pending",
            final_score=None,
            confidence=0.0,
            agreement_level=None,
            individual_scores=tuple(scores.values()),
            excluded=tuple({"judge_id": name, "reason": reason} for name, reason in reasons.items()),
            consensus_method=self._method,
            disagreement_detected=False,
            resolution_applied=None,
            alpha=None,
            effective_votes=None,
            cost_usd=math.fsum(usd for usd, _ in spent),
            tokens=sum(tokens for _, tokens in spent),
            degraded=_BUDGET if any(reason.startswith(f"{_BUDGET}:") for reason in reasons.values()) else None,
            flags=inquiry.screened.flags,
            latency_s=time.monotonic() - inquiry.started,
        )
        if inquiry.screened.verdict == "quarantine":
            return replace(bare, status="quarantined")
        meant = len(self.judges_of(inquiry.request.agent_type))
        seated = meant - sum(reason.startswith(_NOT_SEATED) for reason in reasons.values())
        if not scores or len(scores) < min(self._quorum, seated):
            return bare
        combined = self._combined(scores)
        grades = {name: grade.score for name, grade in scores.items()}
        reliability = self._reliability.add(grades, comparable=meant > 1 or len(self._seats) == 1)
        return replace(
            bare,
            status="ok",
            final_score=combined.score,
            confidence=combined.confidence,
            agreement_level=combined.agreement_level,
            disagreement_detected=combined.disagreement,
            resolution_applied=combined.resolution,
            alpha=reliability.alpha,
            effective_votes=reliability.effective_votes,
        )

    def _combined(self, scores: Mapping[str, JudgeScore]) -> Combined:
        values = {name: grade.score for name, grade in scores.items()}
        method, fallback = self._method, None
        if method == "calibrated":
            known = self._calibrations
            curves = {name: known.get(name) for name in scores}
            if all(curves.values()):
                values = {name: curve.calibrated(values[name]) for name, curve in curves.items() if curve}
            else:
                method = fallback = "weighted_average"
        votes = [Vote(values[name], grade.confidence, self._weights[name]) for name, grade in scores.items()]
        combined = combine(votes, method, self._threshold)
        return combined if combined.resolution or not fallback else replace(combined, resolution=fallback)


def _quorum(quorum: int | None, judges: int) -> int:
    if judges == 1:
        return 1
    wanted = DEFAULT_QUORUM if quorum is None else quorum
    if not 1 <= wanted <= judges:
        raise ConfigError(f"judge.quorum: {wanted} grades cannot come from {judges} judges; use 1 to {judges}")
    return wanted
