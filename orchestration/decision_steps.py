"""Asks the agents of real decisions: what each is handed, in batches over symbols, and what is kept of the answers.

The coordinator makes one `OpenCase` a symbol and lets `DynamicWorkflowManager.drive` ask through `DecisionSteps`. It decides
nothing about whom to ask; the runs do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from agents.base_agent import Agent, Variation, narrowed
from agents.conflicts.detection import opinions
from agents.policies.base import PastExperience, PolicyRequest
from orchestration.calibration import ConvictionCalibrator
from orchestration.latencies import Latencies
from orchestration.retrieval import ExperienceMemory
from orchestration.step_journal import StepJournal, step_key
from orchestration.workflow_graph import WorkflowGraph
from orchestration.workflow_run import StepCall, WorkflowRun
from orchestration.workflow_state import VALIDATOR, Event
from utils.errors import DataUnavailable
from utils.market_regime_detector import RegimeDetection
from utils.schema import AgentOutput, MarketSnapshot, PortfolioState, direction
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry

STRATEGIST = "strategist"
SPARE_STRATEGIST = "spare_strategist"
"""Name under which it stands in the trace that the strategist's model was not asked."""

_STRATEGY = WorkflowGraph.routed((STRATEGIST,))

DEADLINE_GRACE_S = 1.0
"""Beyond an agent's timeout. A policy keeps its own deadline and falls back by itself; this is for one that does not."""


@dataclass(slots=True)
class OpenCase:
    """One decision while it is being taken.

    Attributes
    ----------
    decision_id : str
    snapshot : MarketSnapshot
        What the agents see. If a retry saw more and its answer counts, that.
    known : callable
        All that may be known of the symbol: the snapshot, or one that reaches farther back.
    regime : RegimeDetection
    run : WorkflowRun
        The one in progress: the analysts', then the strategist's.
    opinions : mapping of str to AgentOutput
        The analysts' and the validator's outputs, once their run is over.
    portfolio : PortfolioState or None
        What the strategist knows of it.
    experiences : dict of str to tuple of PastExperience
        Those that each agent was given.
    varied : dict of str to Variation
        The questions that were, or could be, asked once more.
    failures : dict of str to str
    """

    decision_id: str
    snapshot: MarketSnapshot
    known: Callable[[], MarketSnapshot]
    regime: RegimeDetection
    run: WorkflowRun = field(init=False)
    opinions: Mapping[str, AgentOutput] = field(default_factory=dict)
    portfolio: PortfolioState | None = None
    experiences: dict[str, tuple[PastExperience, ...]] = field(default_factory=dict)
    varied: dict[str, Variation] = field(default_factory=dict)
    _analysis: list[Event] = field(default_factory=list)
    _failures: dict[str, str] = field(default_factory=dict)
    _analysts_ms: float = 0.0
    spared: bool = False
    """Whether the strategist's rules answer, since no analyst takes a side."""

    @property
    def similar(self) -> Mapping[str, tuple[str, ...]]:
        """The experiences that each agent was given, by identity."""
        return {name: tuple(past.trajectory_id for past in given) for name, given in self.experiences.items()}

    @property
    def failures(self) -> Mapping[str, str]:
        """Agents that failed, with what went wrong."""
        return {**self._failures, **self.run.failed}

    @property
    def trace(self) -> list[Event]:
        """How the decision came about: the analysts' run, then the strategist's step on the same critical path."""
        return [
            *self._analysis,
            *(
                {**event, "event": "decision", "started_ms": self._analysts_ms + event["started_ms"]}
                for event in self.run.trace
                if event["event"] == "step"
            ),
        ]

    def conclude(self, portfolio: PortfolioState, *, sparing: bool = False) -> None:
        """End the analysts' run and begin the strategist's.

        With `sparing` a strategist who waits on a server is not asked where neither an analyst nor the validator takes a
        side: there is nothing to weigh, and its rules say hold.
        """
        run = self.run
        self.opinions, self.portfolio = run.outputs, portfolio
        self._analysis, self._failures, self._analysts_ms = run.trace, dict(run.failed), run.elapsed_ms
        if self.varied:
            counted = {e["agent"] for e in run.trace if e.get("status") == "retried" and "kept" not in e}
            for name in sorted(counted & self.varied.keys()):
                self._adopt(self.varied[name])
        if sparing:
            # the validator may read a side out of signals whose owners hold; an abstention is a hold by its form
            self.spared = not any(direction(output.recommendation) for output in run.outputs.values())
        if self.spared:
            self._analysis = [*run.trace, _spared(sorted(opinions(run.outputs)), run.elapsed_ms)]
        self.run = WorkflowRun(_STRATEGY, ())

    def _adopt(self, varied: Variation) -> None:
        """Let the decision's snapshot hold what a retry saw beyond it."""
        wider = varied.request.snapshot
        fields: dict[str, Any] = {}
        if len(wider.bars) > len(self.snapshot.bars):
            fields["bars"] = wider.bars
        if len(wider.news) > len(self.snapshot.news):
            fields["news"] = wider.news
        if fields:
            self.snapshot = narrowed(self.snapshot, varied.what, **fields)


@dataclass(slots=True, eq=False)
class _Question:
    """A call; once it is `late`, others have answered, and what still comes of it is not kept."""

    case: OpenCase
    asked: Variation
    again: bool
    late: bool = False


class DecisionSteps:
    """A `StepCaller` over the agents of a coordinator.

    Parameters
    ----------
    agents : mapping of str to Agent
    config : OrchestratorConfig
    cases : sequence of OpenCase
        By the index of their runs.
    calibrator : ConvictionCalibrator, optional
        Says of every answer how often such calls came true, before anyone else reads it.
    memory, journal : optional
    latencies : Latencies, optional
        Told how long each answer took.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        config: OrchestratorConfig,
        cases: Sequence[OpenCase],
        *,
        calibrator: ConvictionCalibrator | None = None,
        memory: ExperienceMemory | None = None,
        journal: StepJournal | None = None,
        latencies: Latencies | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._latencies = latencies
        self._calibrator = calibrator
        self._agents = agents
        self._config = config
        self._cases = cases
        self._memory = memory
        self._journal = journal
        self._telemetry = telemetry

    def waits(self, agent: str) -> bool:
        """Return whether an agent's policy waits on a server."""
        known = self._agents.get(agent)
        return known is not None and known.waits

    def deadline_s(self, agent: str) -> float:
        """Return the agent's timeout and some grace."""
        return self._config.agent(agent).timeout_s + DEADLINE_GRACE_S

    def variations(self, index: int) -> Callable[[str], str | None]:
        """Return what tells a run what a retry of an agent would change."""

        def variation(name: str) -> str | None:
            agent, case = self._agents.get(name), self._cases[index]
            varied = agent.variation(self._request(case, name), case.known()) if agent else None
            if varied is None:
                return None
            case.varied[name] = varied
            return varied.what

        return variation

    def prepare(self, index: int, call: StepCall) -> _Question:
        """Return the question of a call; looks for experiences, and may wait for the library."""
        case, name = self._cases[index], call.agent
        if call.attempt > 1 and name in case.varied:
            return _Question(case, case.varied[name], True)
        return _Question(case, Variation(self._request(case, name), ""), False)

    def ask(self, agent: str, questions: Sequence[_Question]) -> list[AgentOutput]:
        """Answer by the journal what it has, by the agent what is left, and tell the metrics; the answers are calibrated."""
        return [self._calibrated(answer) for answer in self._answered(agent, questions)]

    def _answered(self, agent: str, questions: Sequence[_Question]) -> list[AgentOutput]:
        known = self._agents.get(agent)
        if known is None:
            raise DataUnavailable(f"there is no {agent} agent")
        if agent == STRATEGIST and any(question.case.spared for question in questions):
            return [self._unweighed(known, question) for question in questions]
        journal = self._journal if known.waits else None
        keys = [_key(known, question) if journal is not None else "" for question in questions]
        answers = [journal.find(key) if journal is not None else None for key in keys]
        open_ = [index for index, answer in enumerate(answers) if answer is None]
        if open_:
            fresh = self._asked(agent, known, [questions[index] for index in open_])
            for index, answer in zip(open_, fresh, strict=True):
                answers[index] = answer
                if journal is not None and not questions[index].late:
                    journal.add(keys[index], questions[index].case.decision_id, answer)
        return [answer for answer in answers if answer is not None]

    def foreseen(self, index: int, agents: Sequence[str]) -> dict[str, AgentOutput]:
        """Return what the rules of agents who wait on servers say, empty unless all of them wait and have rules."""
        found: dict[str, AgentOutput] = {}
        for name in agents:
            agent = self._agents.get(name)
            if agent is None or not agent.waits:
                return {}
            try:
                said = agent.by_rules(PolicyRequest(self._cases[index].snapshot, self._cases[index].regime))
            except Exception:  # rules that break do so again when the agent is asked, and fail it alone
                return {}
            if said is None:
                return {}
            found[name] = said
        return found

    def _unweighed(self, strategist: Agent, question: _Question) -> AgentOutput:
        """Let the rules answer where there is nothing to weigh, the policy elsewhere."""
        said = strategist.by_rules(question.asked.request) if question.case.spared else None
        if said is not None:
            return said
        question.case.spared = False
        return self._answered(STRATEGIST, [question])[0]

    def late(self, agent: str, question: _Question) -> AgentOutput:
        """Let the agent's rules answer."""
        question.late = True
        reason = f"no answer within {self.deadline_s(agent):g} s"
        return self._calibrated(self._agents[agent].fall_back(question.asked.request, reason, "timeout"))

    def _calibrated(self, answer: AgentOutput) -> AgentOutput:
        """Return an answer with its calibrated probability; the validator's is no opinion of its own."""
        if self._calibrator is None or answer.agent_type == VALIDATOR:
            return answer
        p_correct = self._calibrator.p_correct(answer)
        return answer if p_correct == answer.p_correct else answer.model_copy(update={"p_correct": p_correct})

    def _request(self, case: OpenCase, name: str) -> PolicyRequest:
        """Return what an agent is asked: of the market all, of the others' outputs what they are to judge."""
        if name == VALIDATOR:
            return PolicyRequest(case.snapshot, case.regime, dict(case.run.outputs))
        request = PolicyRequest(case.snapshot, case.regime)
        if name == STRATEGIST:
            request = replace(request, agent_outputs=dict(case.opinions), portfolio=case.portfolio)
        memory, agent = self._memory, self._agents.get(name)
        if memory is not None and agent is not None and memory.serves(agent.policy):
            request = replace(request, experiences=memory.recall(name, case.snapshot, case.regime))
        case.experiences[name] = request.experiences
        return request

    def _asked(self, name: str, agent: Agent, questions: Sequence[_Question]) -> list[AgentOutput]:
        asked, started = agent.policy.name, time.perf_counter()
        if any(question.again for question in questions):
            answers = [agent.decide_variation(question.asked) for question in questions]
        else:
            answers = agent.decide_many([question.asked.request for question in questions])
        each = (time.perf_counter() - started) / len(questions)
        self._telemetry.count("agent_requests_total", len(answers), agent_type=name)
        for answer in answers:
            self._telemetry.observe("agent_latency_seconds", each, agent_type=name)
            # rules that had to answer in a model's place took its time; those that abstain for want of data did not ask it
            if self._latencies is not None and (answer.policy == asked or not answer.abstained):
                self._latencies.note(name, asked, each)
        if answers:
            self._telemetry.gauge("agent_confidence", answers[-1].confidence, agent_type=name)
        return answers


def _spared(held: Sequence[str], at_ms: float) -> Event:
    return {
        "event": "rewrite", "rule": SPARE_STRATEGIST, "action": "skip_agent", "targets": [STRATEGIST],
        "why": {"without_side": list(held)}, "at_ms": at_ms, "effect": False,
        "changed": f"{STRATEGIST} answered by rules: no analyst takes a side",
    }  # fmt: skip


def _key(agent: Agent, question: _Question) -> str:
    """Return the identity of a question to an agent in the journal."""
    request, policy = question.asked.request, agent.policy
    inputs = {
        "outputs": {name: output.model_dump(mode="json") for name, output in sorted(request.agent_outputs.items())},
        "portfolio": None if request.portfolio is None else asdict(request.portfolio),
        "experiences": [experience.trajectory_id for experience in request.experiences],
        "variation": question.asked.what,
    }
    return step_key(request.snapshot.content_hash, str(agent.agent_type), policy.name, policy.prompt_hash or "", inputs)
