"""What the workflow costs: its own work a decision, and how close many agents come to their critical path.

These two need no model; `workflow_latency` measures agents behind a model server.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.measure import Spread
from benchmarks.workflow_latency import behind_a_server, declared, one_hosted_decision
from data_pipeline.asof_store import AsOfStore
from data_pipeline.feeds.factory import build_feed
from orchestration.analysis import Analysis
from orchestration.coordinator import Coordinator
from orchestration.dynamic_workflow import DynamicWorkflowManager
from orchestration.execution.portfolio import Portfolio
from orchestration.workflow_graph import WorkflowGraph
from orchestration.workflow_run import StepCall
from utils.schema import JUNIOR_AGENTS, AgentOutput, NewsOutput
from utils.settings import OrchestratorConfig

OVERHEAD_AIM_MS = 2.0
ROUNDS_AIM_S = 0.7
REPEATS = 5
AGENTS, AGENT_S = 16, 0.2
AS_OF = datetime(2014, 6, 3, 20, 0, tzinfo=UTC)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the figures of every part."""
    print("\nWorkflow")
    figures: dict[str, Any] = {}
    for part in SECTION_PARTS:
        figures |= part()
    return figures


def own_work() -> dict[str, Any]:
    """CPU of graph, rules, batching and trace a decision, with the answers of rule agents at hand."""
    analyses = _decided()
    manager = DynamicWorkflowManager(timer=None)
    taken = []
    for _ in range(REPEATS):
        caller = _Answers(analyses)
        started = time.process_time()
        runs = [manager.begin(WorkflowGraph.routed(JUNIOR_AGENTS), about={"regime": "neutral"}) for _ in analyses]
        manager.drive(runs, caller)
        taken.append(1000 * (time.process_time() - started) / len(analyses))
    own_ms = Spread.of(taken)
    steps = sum(len(run.trace) for run in runs) / len(runs)
    print(
        f"  own work a decision      {own_ms.text(3)} ms CPU (aim {OVERHEAD_AIM_MS:g}; n {len(analyses)} x {REPEATS}, "
        f"{steps:.1f} events each)"
    )
    return {"own_work_ms": own_ms.median, "decisions": len(analyses)}


def rounds_of_agents() -> dict[str, Any]:
    """Wall time of many agents that wait, in three rounds."""
    names = [f"agent{number}" for number in range(AGENTS)]
    needs = {name: names[: 6 * (number // 6)] for number, name in enumerate(names)}
    output = NewsOutput(symbol="AAPL", as_of=AS_OF, recommendation="hold", confidence=0.6)

    def waits(context: Mapping[str, Any]) -> AgentOutput:
        time.sleep(AGENT_S)
        return output

    manager = DynamicWorkflowManager()
    graph, agents = WorkflowGraph.of(needs), dict.fromkeys(names, waits)
    taken = [_wall_of(lambda: manager.execute_workflow(graph, {}, agents)) for _ in range(REPEATS)]
    manager.close()
    wall_s = Spread.of(taken)
    print(
        f"  {AGENTS} agents of {AGENT_S * 1000:.0f} ms      {wall_s.text(3)} s wall in 3 rounds (aim {ROUNDS_AIM_S:g}, "
        f"one after another {AGENTS * AGENT_S:.1f}; n {REPEATS})"
    )
    return {"rounds_s": wall_s.median}


SECTION_PARTS: tuple[Callable[[], dict[str, Any]], ...] = (
    own_work, rounds_of_agents, one_hosted_decision, behind_a_server, declared,
)  # fmt: skip


def _decided() -> list[Analysis]:
    """Return the decisions of rule agents on half a year of the sample history."""
    config = OrchestratorConfig(replay_start="2012-01-03", replay_end="2012-06-29")
    feed = build_feed(config)
    store = AsOfStore(feed.calendar)
    for update in feed.history():
        store.add(update)
    coordinator, portfolio = Coordinator(config), Portfolio(cash=1e5)
    analyses = []
    for instant in feed.instants():
        for update in instant.updates:
            store.add(update)
        analyses += coordinator.analyze(store.as_of(instant.at), instant.session, feed.symbols, portfolio)
    return analyses


def _wall_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class _Answers:
    """Has every agent's answer at hand."""

    def __init__(self, analyses: Sequence[Analysis]) -> None:
        validated = NewsOutput(symbol="AAPL", as_of=AS_OF, recommendation="hold", confidence=0.6)
        self._answers = [{"validator": validated, **analysis.decision.agents} for analysis in analyses]
        self._missing = validated

    def waits(self, agent: str) -> bool:
        return False

    def deadline_s(self, agent: str) -> float:
        return 10.0

    def prepare(self, index: int, call: StepCall) -> AgentOutput:
        return self._answers[index].get(call.agent, self._missing)

    def ask(self, agent: str, questions: Sequence[AgentOutput]) -> Sequence[AgentOutput]:
        return questions

    def late(self, agent: str, question: AgentOutput) -> AgentOutput:
        return question
