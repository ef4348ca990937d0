"""Three ways to run a decision on one history with one set of opinions: one after another, all at once, and the dynamic workflow.

The section ``workflow`` measures them. Opinions are the rules agents' with a conviction as a language model states it, so
that all ways hear the same; filings are generated, prices and news are those of the replay folder.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from agents.base_agent import Agent
from agents.factory import build_agents
from agents.policies.base import Policy, PolicyRequest
from benchmarks.generated_filings import GeneratedCompany
from data_pipeline.asof_store import AsOfStore, AsOfView
from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.feeds.replay import ReplayFeed
from orchestration.coordinator import Coordinator
from orchestration.decision_steps import DecisionSteps, OpenCase
from orchestration.history_walk import walk
from orchestration.workflow_graph import WorkflowGraph
from orchestration.workflow_run import WorkflowRun
from utils.clock import isoformat
from utils.schema import AgentOutput, AgentType, MarketUpdate
from utils.settings import OrchestratorConfig

LATENCY_S = {"news": 0.5, "technical": 0.3, "fundamental": 0.4, "strategist": 0.5}
"""Medians of the log-normal latencies."""

SIGMA = 0.4
CONVICTION = (0.62, 1.5, 0.10)
"""A stated conviction is the first plus the second times (the rules' minus .5) plus noise of the third: models overstate."""

ARMS = ("sequential", "parallel", "dynamic")


def question_key(agent_type: str, symbol: str, as_of: datetime) -> str:
    """Return the identity of a question, by which all ways draw the same opinion and latency."""
    return f"{agent_type}|{symbol}|{isoformat(as_of)}"


def latency_s(agent_type: str, symbol: str, as_of: datetime) -> float:
    """Return the seconds that the answer to a question takes."""
    rng = random.Random(f"latency|{question_key(agent_type, symbol, as_of)}")
    return LATENCY_S[agent_type] * math.exp(SIGMA * rng.gauss(0, 1))


def opinion(rules: Policy, request: PolicyRequest) -> AgentOutput:
    """Return the rules' opinion with a conviction as a model states it; the strategist's decision is the rules'."""
    said = rules.decide_many([request])[0]
    if said.abstained or rules.agent_type == "strategist":
        return said
    base, slope, noise = CONVICTION
    rng = random.Random(f"conviction|{question_key(rules.agent_type, request.snapshot.symbol, request.snapshot.as_of)}")
    stated = base + slope * (said.confidence - 0.5) + rng.gauss(0, noise)
    return said.model_copy(update={"confidence": round(min(0.99, max(0.05, stated)), 4)})


class DeclaredPolicy:
    """Answers at once and declares how long a model would have taken; for thousands of decisions without waiting."""

    reads_experiences = False
    waits = True
    prompt_hash: str | None = None

    def __init__(self, rules: Policy) -> None:
        self.agent_type: AgentType = rules.agent_type
        self.name = f"declared:{rules.agent_type}"
        self._rules = rules

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request."""
        return [self._decided(request) for request in requests]

    def _decided(self, request: PolicyRequest) -> AgentOutput:
        said = opinion(self._rules, request)
        if said.abstained:  # code sees that there is no data; no model is asked
            return said.model_copy(update={"policy": self.name})
        taken = latency_s(self.agent_type, request.snapshot.symbol, request.snapshot.as_of)
        return said.model_copy(update={"policy": self.name, "latency_s": taken})


class FixedCoordinator(Coordinator):
    """Asks everyone every time: one after another, or all analysts at once."""

    def __init__(self, *arguments: Any, together: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._together = together

    def _begun(self, index: int, case: OpenCase, steps: DecisionSteps) -> WorkflowRun:
        agents = self.router.route(case.regime)
        graph = WorkflowGraph.together(agents) if self._together else WorkflowGraph.routed(agents, "sequential")
        return WorkflowRun(graph, ())


def coordinator_of(arm: str, agents: dict[str, Agent], **options: Any) -> Coordinator:
    """Return the coordinator of a way; sequential mode also keeps the strategist from being spared."""
    settings = {"mode": "adaptive" if arm == "dynamic" else "sequential"}
    config = OrchestratorConfig(agents="rules", workflow=settings)
    if arm == "dynamic":
        return Coordinator(config, agents=agents, **options)
    return FixedCoordinator(config, agents=agents, together=arm == "parallel", **options)


def declared_agents() -> dict[str, Agent]:
    """Return agents that declare their latency, with the rules beside them."""
    agents = build_agents(OrchestratorConfig(agents="rules"))
    for name in LATENCY_S:
        agents[name].set_policy(DeclaredPolicy(agents[name].policy))
    return agents


@dataclass(frozen=True)
class Session:
    """A session's close: the market as of then, and what trades."""

    day: date
    at: datetime
    view: AsOfView
    calendar: ExchangeCalendar
    symbols: tuple[str, ...]


def sessions(folder: str, start: date, end: date, feed_symbols: tuple[str, ...] | None = None) -> Iterator[Session]:
    """Yield the sessions of a replay folder in order of time, filings generated."""
    feed = ReplayFeed(folder, feed_symbols, start, end)
    store = AsOfStore(feed.calendar)
    companies: dict[str, GeneratedCompany] = {}
    filed: dict[str, int] = {}
    for close in walk(feed, store):
        view = close.view
        for symbol in view.symbols:
            bar = view.last_bar(symbol)
            if bar is None:
                continue
            company = companies.setdefault(symbol, GeneratedCompany(symbol, bar.session, bar.close))
            while company.due < close.session:
                company.file(bar.close)
            for made in company.filings[filed.get(symbol, 0) :]:
                filing = replace(made, available_at=close.at)  # a store takes nothing that lies before what it holds
                store.add(MarketUpdate(symbol, "filing", filing, filing.event_time, close.at, "generated filing"))
            filed[symbol] = len(company.filings)
        yield Session(close.session, close.at, view, feed.calendar, feed.symbols)
