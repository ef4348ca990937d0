"""Thinking for a comparison: every arm's answers on one symbol's history, wherever the work is done.

A chunk is one symbol, whatever the number of workers, so that batches and answers do not depend on it. Called in this
process, in a pool's or in a Ray task; it measures nothing but latency and never sees an outcome.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice

from agents.base_agent import Agent
from agents.factory import build_agents
from agents.policies.base import PolicyRequest
from data_pipeline.feeds.replay import ReplayFeed
from evaluation.fault_localization import FaultLocalizationEngine
from evaluation.ground_truth import GroundTruth
from orchestration.history_walk import walk
from training.arms import SEATS, Arm, ArmPlan, open_local_models, open_planned
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import JUNIOR_AGENTS, AgentOutput, AgentType
from utils.settings import OrchestratorConfig

BATCH_SESSIONS = 64
"""Decisions asked together: enough for a local model's padded batch, few enough for memory."""

UNGROUNDED = frozenset(
    {
        "hallucination", "data_inaccuracy", "unsupported_claim", "news_hallucination", "conflating_companies",
        "indicator_calculation_error", "support_resistance_hallucination", "earnings_hallucination",
        "valuation_calculation_error", "debt_analysis_error", "calculation_error",
    }
)  # fmt: skip
"""Categories of error by which an output says what the data do not."""


@dataclass(frozen=True)
class Job:
    """What all chunks of a comparison share.

    Attributes
    ----------
    agents : tuple of str
        Whose calls are wanted; with the strategist every analyst is asked, since it decides on what they say.
    """

    replay_dir: str
    plans: tuple[ArmPlan, ...]
    agents: tuple[AgentType, ...]
    config: OrchestratorConfig


@dataclass(frozen=True, slots=True)
class Chunk:
    """One symbol and the part of the period in which it has a history."""

    symbol: str
    start: date
    end: date


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One answer, as far as its worth depends on it.

    Attributes
    ----------
    invalid : bool
        The model had the facts and gave no answer that could be used.
    by_rules : bool
        Rules answered, since the model's provider failed.
    grounded : bool
        No detector found that it says what the data do not; False for an abstention.
    """

    recommendation: str
    confidence: float
    p_correct: float | None
    abstained: bool
    position_size: float
    stop_loss: float | None
    take_profit: float | None
    invalid: bool
    by_rules: bool
    grounded: bool
    cost_usd: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Thought:
    """Every arm's answers on one symbol, session by session; `calls` by arm and agent."""

    symbol: str
    sessions: tuple[date, ...]
    as_of: tuple[datetime, ...]
    volatility: tuple[float, ...]
    calls: Mapping[str, Mapping[str, tuple[CallRecord, ...]]]


class Thinker:
    """The opened arms of a job.

    Parameters
    ----------
    job : Job

    Raises
    ------
    ConfigError, ProviderError
        If an arm cannot be opened.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._arms: list[tuple[Arm, dict[str, Agent]]] = []
        by_rules = job.config.model_copy(update={"agents": "rules"})
        self._rules = build_agents(by_rules)
        self._detector = MarketRegimeDetector()
        self._engine = FaultLocalizationEngine()
        self._batch = BATCH_SESSIONS
        if any(plan.hosted for plan in job.plans):  # a batch shares one deadline, so it must be asked at once
            self._batch = min(self._batch, job.config.llm.concurrency)
        self._asked = [a for a in SEATS if a in self._rules and (a in job.agents or "strategist" in job.agents)]
        self._local = open_local_models(job.config) if any(plan.local for plan in job.plans) else None
        try:
            for plan in job.plans:
                arm = open_planned(plan, job.config, self._local)
                agents = build_agents(by_rules)
                self._arms.append((arm, agents))
                for name, policy in arm.policies.items():
                    if name in agents:
                        agents[name].set_policy(policy)
        except BaseException:
            self.close()
            raise

    def think(self, chunk: Chunk) -> Thought:
        """Answer every decision of a chunk with every arm."""
        feed = ReplayFeed(self._job.replay_dir, (chunk.symbol,), chunk.start, chunk.end)
        sessions: list[date] = []
        instants: list[datetime] = []
        volatility: list[float] = []
        calls: dict[str, dict[str, list[CallRecord]]] = {
            arm.name: {name: [] for name in self._job.agents if name in self._rules} for arm, _ in self._arms
        }
        closes = walk(feed)
        while True:
            # a view does not change while the store grows, so that a batch may be gathered ahead
            batch = list(islice(closes, self._batch))
            if not batch:
                break
            snapshots = [close.view.snapshot(chunk.symbol, close.session) for close in batch]
            requests = [
                PolicyRequest(snapshot, self._detector.detect_regime(snapshot.inputs)) for snapshot in snapshots
            ]
            sessions += [close.session for close in batch]
            instants += [close.at for close in batch]
            volatility += [snapshot.inputs.daily_volatility for snapshot in snapshots]
            for arm, agents in self._arms:
                for name, records in self._answers(agents, requests).items():
                    if name in calls[arm.name]:
                        calls[arm.name][name] += records
        return Thought(
            chunk.symbol, tuple(sessions), tuple(instants), tuple(volatility),
            {arm: {name: tuple(records) for name, records in kept.items()} for arm, kept in calls.items()},
        )  # fmt: skip

    def close(self) -> None:
        """Free the arms."""
        for arm, _ in self._arms:
            arm.close()
        if self._local is not None:
            self._local.close()

    def _answers(self, agents: Mapping[str, Agent], requests: Sequence[PolicyRequest]) -> dict[str, list[CallRecord]]:
        """Ask the analysts, then the strategist on what they said; it knows of no portfolio, so that a sale is a view."""
        answered: dict[str, list[AgentOutput]] = {}
        records: dict[str, list[CallRecord]] = {}
        for name in self._asked:
            asked = list(requests)
            if name not in JUNIOR_AGENTS:
                asked = [
                    PolicyRequest(
                        request.snapshot,
                        request.regime,
                        {junior: outputs[place] for junior, outputs in answered.items()},
                    )
                    for place, request in enumerate(requests)
                ]
            begun = time.perf_counter()
            answered[name] = agents[name].decide_many(asked)
            share_s = (time.perf_counter() - begun) / len(asked)
            records[name] = [
                self._record(agents[name], request, output, share_s)
                for request, output in zip(asked, answered[name], strict=True)
            ]
        return records

    def _record(self, agent: Agent, request: PolicyRequest, output: AgentOutput, share_s: float) -> CallRecord:
        policy = agent.policy.name
        invalid = False
        if output.abstained and policy != "rules":
            facts = agent.by_rules(request)  # rules abstain for want of data alone
            invalid = facts is not None and not facts.abstained
        return CallRecord(
            output.recommendation,
            output.confidence,
            output.p_correct,
            output.abstained,
            float(getattr(output, "position_size", 0.0)),
            getattr(output, "stop_loss", None),
            getattr(output, "take_profit", None),
            invalid,
            not output.abstained and output.policy != policy,
            not output.abstained and self._grounded(output, request),
            output.cost_usd,
            output.latency_s or share_s,
        )

    def _grounded(self, output: AgentOutput, request: PolicyRequest) -> bool:
        truth = GroundTruth(request.snapshot, agent_outputs=request.agent_outputs, portfolio=request.portfolio)
        report = self._engine.detect_faults(output.agent_type, output, truth)
        return not any(error.category in UNGROUNDED for error in report.errors)


_thinkers: dict[int, tuple[Job, Thinker]] = {}
"""The opened arms of this process, so that a worker opens them once for all its chunks."""


def think(job: Job, chunk: Chunk) -> Thought:
    """Answer a chunk in a worker's process, whose arms are opened at its first chunk and end with it.

    Raises
    ------
    ProviderError
        If an arm cannot be opened here.
    """
    kept = _thinkers.get(0)
    if kept is None or kept[0] != job:
        if kept is not None:
            kept[1].close()
            del _thinkers[0]
        _thinkers[0] = kept = (job, Thinker(job))
    return kept[1].think(chunk)
