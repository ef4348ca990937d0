"""The panel: asks every judge, leaves out those that fail, and combines the rest into one grade.

The judging thread calls `MultiJudgeConsensus.evaluate` when a decision has been taken, before its outcome exists. It
never gives a failed judge a default score, and below quorum there is no score at all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from judge.base import Judge, JudgeRequest, JudgeScore
from judge.calibration import ScoreCalibration
from judge.combining import METHODS, Combined, Vote, combine, effective_votes, krippendorff_alpha
from judge.local_judge import LocalJudge
from judge.rubrics import Rubric, load_rubric
from utils.errors import ConfigError, JudgeError, nearest
from utils.schema import AgentOutput, parse_output

WINDOW = 200
"""Items that alpha and effective votes look back on."""

DEFAULT_QUORUM = 2

PROVIDER_PREFIXES = {"claude": "anthropic", "gpt": "openai", "gemini": "gemini", "local": "local"}
BUILDERS: dict[str, Callable[[str], Judge]] = {"local": LocalJudge}
"""Provider to what builds its judge from an id; a provider without an entry has no judge in this version."""

_CONFIG_KEYS = ("id", "model", "weight", "provider")


@dataclass(frozen=True, slots=True)
class ConsensusResult:
    """What the panel says of one output.

    Attributes
    ----------
    status : {"ok", "pending", "quarantined"}
        ``pending`` below quorum: to be tried again, there is no score.
    final_score : float or None
        0..100.
    confidence : float
        0..1; 0 while pending.
    agreement_level : float or None
        1 - (max - min)/100; None for fewer than two grades.
    individual_scores : tuple of JudgeScore
        In the order of the panel.
    excluded : tuple of dict
        ``judge_id`` and ``reason``, which begins with one word for its kind.
    consensus_method : str
        The method that was asked for.
    disagreement_detected : bool
    resolution_applied : str or None
        What replaced the method: ``median`` on disagreement, ``weighted_average`` where labels are too few.
    alpha : float or None
        Krippendorff's interval alpha over the last 200 items.
    effective_votes : float or None
        What the grading judges are worth together; None until enough items are there to tell.
    """

    status: Literal["ok", "pending", "quarantined"]
    final_score: float | None
    confidence: float
    agreement_level: float | None
    individual_scores: tuple[JudgeScore, ...]
    excluded: tuple[dict[str, str], ...]
    consensus_method: str
    disagreement_detected: bool
    resolution_applied: str | None
    alpha: float | None
    effective_votes: float | None


@dataclass(frozen=True, slots=True)
class _Seat:
    judge: Judge
    weight: float


class MultiJudgeConsensus:
    """A panel of judges.

    Parameters
    ----------
    judge_configs : sequence of mapping
        {id, model, weight 1.0, provider?}; without provider the model's name decides.
    consensus_method : str
        weighted_average, majority_vote, median, min, max or calibrated.
    disagreement_threshold : float
        Points between the highest and the lowest grade above which the median counts.
    deadline_s : float
        Wall seconds for the whole panel.
    quorum : int, optional
        Grades that are needed; 2 where None. A single judge is always its own quorum.
    judges : sequence of Judge
        Ready judges. One whose id stands in `judge_configs` takes its weight from there; the others weigh 1.
    calibrations : mapping of str to ScoreCalibration
        Curves by judge id for the method ``calibrated``; judges without one make it fall back to weighted_average.

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
        judges: Sequence[Judge] = (),
        calibrations: Mapping[str, ScoreCalibration] | None = None,
    ) -> None:
        if consensus_method not in METHODS:
            raise ValueError(f"consensus method {consensus_method!r} is none of {', '.join(METHODS)}")
        if not deadline_s > 0:
            raise ConfigError(f"judge.deadline_s: must be positive seconds, not {deadline_s!r}")
        if not disagreement_threshold >= 0:
            raise ConfigError(f"judge.disagreement_threshold: must be 0 or more points, not {disagreement_threshold!r}")
        self._seats = _seats(judge_configs, judges)
        self._method = consensus_method
        self._threshold = disagreement_threshold
        self._deadline_s = deadline_s
        self._quorum = _quorum(quorum, len(self._seats))
        self._calibrations = dict(calibrations or {})
        self._rubrics: dict[str, Rubric] = {}
        self._window: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()
        # a thread for each judge: one that hangs can hold up its own calls only
        self._pools: dict[str, ThreadPoolExecutor] = {}
        if len(self._seats) > 1:
            for seat in self._seats:
                name = seat.judge.judge_id
                self._pools[name] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"judge-{name}")
        self._closed = False

    @property
    def judge_ids(self) -> tuple[str, ...]:
        """The judges of the panel, in order."""
        return tuple(seat.judge.judge_id for seat in self._seats)

    def evaluate(
        self,
        agent_type: str,
        agent_output: AgentOutput | Mapping[str, Any] | str,
        rubric_path: str,
        context: Mapping[str, Any] | None = None,
    ) -> ConsensusResult:
        """Grade one output.

        Parameters
        ----------
        agent_type : str
        agent_output : AgentOutput, mapping or JSON text
        rubric_path : str
            A YAML file or a name such as ``news_rubric``; read once.
        context : mapping, optional
            What was known at decision time, see `JudgeRequest`.

        Raises
        ------
        JudgeError
            If the output abstained or is no valid output of the agent: no judge could ever grade it, so it does not
            stay pending.
        LookAheadError
            If the context tells the outcome.
        ConfigError
            If the rubric is wrong or belongs to another agent.
        """
        output = _parsed(agent_type, agent_output)
        request = JudgeRequest(agent_type, output, self._rubric(agent_type, rubric_path), context or {})
        scores, excluded = self._ask(request)
        if len(scores) < self._quorum:
            return ConsensusResult(
                "pending",
                None,
                0.0,
                None,
                tuple(scores.values()),
                tuple(excluded),
                self._method,
                False,
                None,
                None,
                None,
            )
        combined = self._combine(scores)
        alpha, votes = self._remember({name: grade.score for name, grade in scores.items()})
        return ConsensusResult(
            status="ok",
            final_score=combined.score,
            confidence=combined.confidence,
            agreement_level=combined.agreement_level,
            individual_scores=tuple(scores.values()),
            excluded=tuple(excluded),
            consensus_method=self._method,
            disagreement_detected=combined.disagreement,
            resolution_applied=combined.resolution,
            alpha=alpha,
            effective_votes=votes,
        )

    def close(self) -> None:
        """Release the judges' threads; idempotent. Calls in flight end by the judges' own deadlines."""
        with self._lock:
            self._closed = True
            for pool in self._pools.values():
                pool.shutdown(wait=False, cancel_futures=True)

    def _rubric(self, agent_type: str, path: str) -> Rubric:
        rubric = self._rubrics.get(path)
        if rubric is None:
            rubric = self._rubrics[path] = load_rubric(path)
        if rubric.agent_type != agent_type:
            raise ConfigError(
                f"{path}: this rubric grades {rubric.agent_type}, not {agent_type}; name {agent_type}_rubric"
            )
        return rubric

    def _ask(self, request: JudgeRequest) -> tuple[dict[str, JudgeScore], list[dict[str, str]]]:
        """Return the grades by judge id and those left out with their reasons, both in the order of the panel."""
        scores: dict[str, JudgeScore] = {}
        excluded: list[dict[str, str]] = []
        if self._closed:
            raise JudgeError("closed: the panel has been closed")
        deadline = time.monotonic() + self._deadline_s
        futures: dict[str, Future[JudgeScore]] = {
            seat.judge.judge_id: self._pools[seat.judge.judge_id].submit(_graded, seat.judge, request)
            for seat in self._seats
            if self._pools
        }
        if futures:
            wait(futures.values(), timeout=max(0.0, deadline - time.monotonic()))
        for seat in self._seats:
            name = seat.judge.judge_id
            try:
                scores[name] = _graded(seat.judge, request) if not futures else _result(futures[name], self._deadline_s)
            except JudgeError as fault:
                excluded.append({"judge_id": name, "reason": str(fault)})
        return scores, excluded

    def _combine(self, scores: Mapping[str, JudgeScore]) -> Combined:
        weights = {seat.judge.judge_id: seat.weight for seat in self._seats}
        values = {name: grade.score for name, grade in scores.items()}
        method, fallback = self._method, None
        if method == "calibrated":
            curves = {name: self._calibrations.get(name) for name in scores}
            if all(curves.values()):
                values = {name: curve.calibrated(values[name]) for name, curve in curves.items() if curve}
            else:
                method = fallback = "weighted_average"
        votes = [Vote(values[name], grade.confidence, weights[name]) for name, grade in scores.items()]
        combined = combine(votes, method, self._threshold)
        return combined if combined.resolution or not fallback else replace(combined, resolution=fallback)

    def _remember(self, item: dict[str, float]) -> tuple[float | None, float | None]:
        """Take an item into the window and return alpha and effective votes with it."""
        if len(self._seats) == 1:
            return None, 1.0
        names = self.judge_ids
        with self._lock:
            self._window.append(item)
            ratings = np.array([[row.get(name, np.nan) for name in names] for row in self._window])
        graded = [index for index, name in enumerate(names) if name in item]
        return krippendorff_alpha(ratings), effective_votes(ratings[:, graded])


def _graded(judge: Judge, request: JudgeRequest) -> JudgeScore:
    grade = judge.grade(request)
    if grade.judge_id != judge.judge_id or set(grade.criteria_scores) != set(request.rubric.weights):
        raise JudgeError("malformed: the grade is under another id or does not cover the rubric's dimensions")
    return grade


def _result(future: Future[JudgeScore], deadline_s: float) -> JudgeScore:
    if not future.done():
        future.cancel()
        raise JudgeError(f"timeout: no grade within {deadline_s:g} s")
    try:
        return future.result()
    except CancelledError:
        raise JudgeError("closed: the panel was closed before the judge began") from None


def _parsed(agent_type: str, raw: AgentOutput | Mapping[str, Any] | str) -> AgentOutput:
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


def _quorum(quorum: int | None, judges: int) -> int:
    if judges == 1:
        return 1
    wanted = DEFAULT_QUORUM if quorum is None else quorum
    if not 1 <= wanted <= judges:
        raise ConfigError(f"judge.quorum: {wanted} grades cannot come from {judges} judges; use 1 to {judges}")
    return wanted


def _seats(configs: Sequence[Mapping[str, Any]], ready: Sequence[Judge]) -> tuple[_Seat, ...]:
    """Return the panel: the configured judges in their order, then the ready ones that no entry names."""
    by_id = {judge.judge_id: judge for judge in ready}
    if len(by_id) != len(ready):
        raise ConfigError("judges: two ready judges have the same id; give each its own")
    seats: dict[str, _Seat] = {}
    for config in configs:
        for key in config:
            if key not in _CONFIG_KEYS:
                raise ConfigError(f"judges: unknown key {key!r}{nearest(str(key), _CONFIG_KEYS)}")
        name = config.get("id")
        if not isinstance(name, str) or not name:
            raise ConfigError("judges: an entry has no id; give each judge a unique one, for example local")
        if name in seats:
            raise ConfigError(f"judges.{name}: this id stands twice; give each judge its own")
        weight = config.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise ConfigError(f"judges.{name}.weight: must be a positive number, not {weight!r}")
        provider = _provider(name, config)
        judge = by_id.pop(name, None)
        seats[name] = _Seat(judge if judge is not None else _build(name, provider, config), float(weight))
    for name, judge in by_id.items():
        seats[name] = _Seat(judge, 1.0)
    if not seats:
        raise ConfigError("judges: the panel is empty; name at least one judge, for example local")
    return tuple(seats.values())


def _provider(name: str, config: Mapping[str, Any]) -> str:
    provider, model = config.get("provider"), config.get("model")
    known = tuple(PROVIDER_PREFIXES.values())
    if provider is not None:
        if provider not in known:
            hint = nearest(str(provider), known)
            raise ConfigError(f"judges.{name}.provider: {provider!r} is none of {', '.join(known)}{hint}")
        return str(provider)
    for prefix, found in PROVIDER_PREFIXES.items():
        if isinstance(model, str) and model.startswith(prefix):
            return found
    raise ConfigError(
        f"judges.{name}.model: {model!r} names no known provider; begin it with {', '.join(PROVIDER_PREFIXES)} or set provider"
    )


def _build(name: str, provider: str, config: Mapping[str, Any]) -> Judge:
    builder = BUILDERS.get(provider)
    if builder is None:
        raise ConfigError(
            f"judges.{name}: the {provider} model {config.get('model')!r} cannot judge in this version; "
            "use model 'local', or hand a ready judge over by judges="
        )
    return builder(name)
