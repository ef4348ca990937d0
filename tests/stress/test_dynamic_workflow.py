"""The workflow under load and failure: real threads, slow, broken and hanging agents, many runs at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from agents.policies.rules.validator import RulesValidator
from agents.validator_agent import ValidatorAgent
from orchestration.dynamic_workflow import DynamicWorkflowManager, RewriteRule, WorkflowAction
from orchestration.workflow_graph import WorkflowGraph
from orchestration.workflow_run import StepCall
from orchestration.workflow_state import replay_trace
from utils.errors import ConfigError, LookAheadError
from utils.schema import AgentOutput, NewsOutput

AS_OF = datetime(2014, 6, 3, 20, 0, tzinfo=UTC)
JUNIORS = ("news", "technical", "fundamental")
CONTEXT = {"symbol": "AAPL", "volatility": 0.4}
AskedWith = Callable[[Mapping[str, Any]], Any]


def opinion(recommendation: str = "hold", confidence: float = 0.6, **more: Any) -> AgentOutput:
    return NewsOutput(symbol="AAPL", as_of=AS_OF, recommendation=recommendation, confidence=confidence, **more)


def says(recommendation: str = "hold", confidence: float = 0.6, **more: Any) -> AskedWith:
    output = opinion(recommendation, confidence, **more)
    return lambda context: output


def quiet(**agents: AskedWith) -> dict[str, AskedWith]:
    """The juniors, each holding with some confidence, but for those given."""
    return {name: says() for name in JUNIORS} | agents


@pytest.fixture
def manager() -> Iterator[DynamicWorkflowManager]:
    made = DynamicWorkflowManager()
    yield made
    made.close()


def test_all_agents_answer_and_the_state_says_so(manager: DynamicWorkflowManager) -> None:
    outputs, state = manager.execute_workflow(JUNIORS, CONTEXT, quiet())
    assert set(outputs) == set(JUNIORS) == set(state.executed_agents)
    assert (state.pending_agents, state.conflicts_detected, state.rewrite_history) == ((), (), ())
    assert state.total_latency > 0


def test_the_first_two_agents_are_in_flight_together(manager: DynamicWorkflowManager) -> None:
    meeting = threading.Barrier(2, timeout=20)

    def meets(context: Mapping[str, Any]) -> AgentOutput:
        meeting.wait()
        return opinion()

    outputs, _ = manager.execute_workflow(JUNIORS, CONTEXT, quiet(news=meets, technical=meets))
    assert set(outputs) == set(JUNIORS)


def test_in_sequence_no_two_agents_are_in_flight() -> None:
    lock = threading.Lock()

    def alone(context: Mapping[str, Any]) -> AgentOutput:
        assert lock.acquire(blocking=False)
        time.sleep(0.01)
        lock.release()
        return opinion()

    manager = DynamicWorkflowManager({"mode": "sequential"})
    _, state = manager.execute_workflow(JUNIORS, CONTEXT, dict.fromkeys(JUNIORS, alone))
    assert state.executed_agents == JUNIORS
    manager.close()


def test_agreement_spares_the_third_agent_its_call(manager: DynamicWorkflowManager) -> None:
    asked: list[str] = []
    agents = quiet(news=says("buy", 0.8), technical=says("strong_buy", 0.75), fundamental=lambda c: asked.append("f"))
    outputs, state = manager.execute_workflow(JUNIORS, CONTEXT, agents)
    assert (asked, set(outputs), state.skipped_agents) == ([], {"news", "technical"}, ("fundamental",))


def test_extreme_confidence_ends_the_workflow(manager: DynamicWorkflowManager) -> None:
    agents = quiet(news=says("sell", 0.95), technical=says("strong_sell", 0.92))
    outputs, state = manager.execute_workflow(JUNIORS, CONTEXT, agents)
    assert "fundamental" not in outputs
    assert state.rewrite_history[0].rule == "early_termination_extreme_confidence"


def test_a_conflict_is_validated_by_the_built_in_validator(manager: DynamicWorkflowManager) -> None:
    agents = quiet(news=says("buy", 0.8), technical=says("sell", 0.6))
    outputs, state = manager.execute_workflow(JUNIORS, CONTEXT, agents)
    assert outputs["validator"].recommendation in ("buy", "hold", "sell")
    assert [found.conflict_type for found in state.conflicts_detected] == ["opposite_recommendations"]
    assert state.executed_agents[-1] == "validator"


def test_the_validator_sees_the_market_that_the_context_tells(manager: DynamicWorkflowManager) -> None:
    agents = quiet(news=says("sell", 0.6), technical=says("buy", 0.8), fundamental=says("sell", 0.6))
    calm, _ = manager.execute_workflow(JUNIORS, {"volatility": 0.2, "trend_strength": 0.0}, agents)
    stormy, _ = manager.execute_workflow(JUNIORS, {"volatility": 0.9}, agents)
    strategies = [outputs["validator"].resolutions[0].strategy for outputs in (calm, stormy)]  # type: ignore[attr-defined]
    assert strategies == ["confidence_weighted", "domain_expertise"]


def test_a_validator_of_ones_own_takes_the_place_of_the_built_in(manager: DynamicWorkflowManager) -> None:
    agents = quiet(news=says("buy", 0.4), validator=says("sell", 0.9))
    outputs, _ = manager.execute_workflow(JUNIORS, CONTEXT, agents)
    assert outputs["validator"].recommendation == "sell"


def test_very_low_confidence_is_asked_once_more_with_twice_the_lookback(manager: DynamicWorkflowManager) -> None:
    seen: list[Any] = []

    def unsure(context: Mapping[str, Any]) -> AgentOutput:
        seen.append((context.get("retry"), context.get("lookback_days")))
        return opinion("buy", 0.1)

    outputs, state = manager.execute_workflow(("news",), {**CONTEXT, "lookback_days": 5}, {"news": unsure})
    assert seen == [(None, 5), (1, 10)]
    assert [rewrite.rule for rewrite in state.rewrite_history][:1] == ["retry_agent_very_low_confidence"]
    assert outputs["news"].confidence == 0.1


def test_one_failing_agent_costs_only_its_own_answer(manager: DynamicWorkflowManager) -> None:
    def fails(context: Mapping[str, Any]) -> AgentOutput:
        raise OSError("connection reset")

    outputs, state = manager.execute_workflow(JUNIORS, CONTEXT, quiet(technical=fails))
    assert set(outputs) == {"news", "fundamental"}
    assert state.failed_agents == {"technical": "OSError: connection reset"}


def test_all_agents_may_fail(manager: DynamicWorkflowManager) -> None:
    outputs, state = manager.execute_workflow(JUNIORS, CONTEXT, dict.fromkeys(JUNIORS, lambda context: 1 / 0))
    assert (outputs, set(state.failed_agents)) == ({}, set(JUNIORS))


def test_an_agent_that_answers_nonsense_has_failed(manager: DynamicWorkflowManager) -> None:
    _, state = manager.execute_workflow(JUNIORS, CONTEXT, quiet(news=lambda context: {"confidence": "very"}))
    assert "no valid output" in state.failed_agents["news"]


def test_an_agent_may_answer_with_a_mapping(manager: DynamicWorkflowManager) -> None:
    told = {"symbol": "AAPL", "as_of": "2014-06-03T20:00:00Z", "recommendation": "bullish", "confidence": "70 %"}
    outputs, _ = manager.execute_workflow(("news",), CONTEXT, {"news": lambda context: told})
    assert (outputs["news"].recommendation, outputs["news"].confidence) == ("buy", 0.7)


def test_a_hanging_agent_is_given_up_at_its_deadline(manager: DynamicWorkflowManager) -> None:
    release = threading.Event()

    def hangs(context: Mapping[str, Any]) -> AgentOutput:
        release.wait(30)
        return opinion()

    started = time.perf_counter()
    outputs, state = manager.execute_workflow(JUNIORS, {**CONTEXT, "timeout_s": 0.2}, quiet(news=hangs))
    assert time.perf_counter() - started < 10
    release.set()
    assert set(outputs) == {"technical", "fundamental"}
    assert state.failed_agents["news"].startswith("TimeoutError")


def test_abstentions_start_no_rule(manager: DynamicWorkflowManager) -> None:
    silent = says("hold", 0.0, abstained=True, abstain_reason="no data")
    _, state = manager.execute_workflow(JUNIORS, CONTEXT, dict.fromkeys(JUNIORS, silent))
    assert (state.rewrite_history, state.conflicts_detected) == ((), ())


def test_a_spent_budget_starts_nothing_more() -> None:
    manager = DynamicWorkflowManager({"max_latency_ms": 100.0}, timer=None)
    outputs, state = manager.execute_workflow(JUNIORS, CONTEXT, quiet(news=says("hold", 0.6, latency_s=0.2)))
    assert (set(outputs), state.skipped_agents) == ({"news", "technical"}, ("fundamental",))
    manager.close()


def test_declared_latencies_make_the_workflow_hurry_without_a_clock() -> None:
    names = ("a", "b", "c", "d", "e")
    manager = DynamicWorkflowManager(timer=None)
    agents = dict.fromkeys(names, says("hold", 0.6, latency_s=1.8))
    states = [manager.execute_workflow(names, CONTEXT, agents)[1] for _ in range(3)]
    assert states[0] == states[1] == states[2]
    # a and b together, c, then beyond 3.5 s d and e at once
    assert states[0].total_latency == pytest.approx(5400)
    assert states[0].rewrite_history[0].rule == "parallel_execution_latency"
    manager.close()


def test_the_order_in_which_threads_end_does_not_show_in_a_replay() -> None:
    def delayed(delay_s: float, output: AgentOutput) -> AskedWith:
        def answer(context: Mapping[str, Any]) -> AgentOutput:
            time.sleep(delay_s)
            return output

        return answer

    manager = DynamicWorkflowManager(timer=None)
    states = []
    for first, second in ((0.0, 0.05), (0.05, 0.0)):
        agents = quiet(news=delayed(first, opinion("buy", 0.2)), technical=delayed(second, opinion("sell", 0.9)))
        states.append(manager.execute_workflow(JUNIORS, CONTEXT, agents)[1])
    assert states[0] == states[1]
    manager.close()


def test_sixteen_agents_in_three_rounds_take_three_times_as_long_as_one(manager: DynamicWorkflowManager) -> None:
    names = [f"agent{number}" for number in range(16)]
    rounds = {
        name: () if number < 6 else names[:6] if number < 12 else names[6:12] for number, name in enumerate(names)
    }

    def slow(context: Mapping[str, Any]) -> AgentOutput:
        time.sleep(0.1)
        return opinion()

    _, state = manager.execute_workflow(WorkflowGraph.of(rounds), CONTEXT, dict.fromkeys(names, slow))
    assert len(state.executed_agents) == 16
    assert 300 <= state.total_latency < 1600 / 2


def test_a_rule_of_ones_own_runs_and_one_that_raises_is_ignored(manager: DynamicWorkflowManager) -> None:
    manager.add_rule(RewriteRule("boom", lambda state: 1 / 0 > 1, WorkflowAction.EARLY_TERMINATION, (), 50))
    manager.add_rule(
        RewriteRule(
            "enough", lambda state: len(state.executed_agents) >= 2, WorkflowAction.SKIP_AGENT, ("fundamental",)
        )
    )
    _, state = manager.execute_workflow(JUNIORS, CONTEXT, quiet())
    assert [rewrite.rule for rewrite in state.rewrite_history] == ["enough"]
    with pytest.raises(ConfigError, match="already"):
        manager.add_rule(RewriteRule("enough", lambda state: False, WorkflowAction.SKIP_AGENT))


def test_a_rule_may_name_an_agent_that_does_not_exist(manager: DynamicWorkflowManager) -> None:
    manager.add_rule(RewriteRule("ghost", lambda state: True, WorkflowAction.ADD_VALIDATOR, ("ghost",)))
    outputs, state = manager.execute_workflow(JUNIORS, CONTEXT, quiet())
    assert set(outputs) == set(JUNIORS)
    assert "there is no 'ghost'" in state.failed_agents["ghost"]


def test_what_ends_a_decision_is_not_taken_for_an_agents_failure(manager: DynamicWorkflowManager) -> None:
    def peeks(context: Mapping[str, Any]) -> AgentOutput:
        raise LookAheadError("tomorrow's close")

    with pytest.raises(LookAheadError):
        manager.execute_workflow(JUNIORS, CONTEXT, quiet(news=peeks))


def test_an_agent_nobody_handed_over_is_named(manager: DynamicWorkflowManager) -> None:
    with pytest.raises(ConfigError, match="did you mean 'technical'"):
        manager.execute_workflow(("technicall",), CONTEXT, quiet())


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="max_latency"):
        DynamicWorkflowManager({"max_latency": 5})


class Batches:
    """A caller of many runs that counts how its agents are asked; agents named in `waiting` are asked in threads."""

    def __init__(self, waiting: tuple[str, ...] = ()) -> None:
        self.calls: list[tuple[str, int]] = []
        self.runs: list[Any] = []
        self._waiting = waiting

    def waits(self, agent: str) -> bool:
        return agent in self._waiting

    def deadline_s(self, agent: str) -> float:
        return 20.0

    def prepare(self, index: int, call: StepCall) -> tuple[int, dict[str, AgentOutput]]:
        return index, dict(self.runs[index].outputs)

    def ask(self, agent: str, questions: Any) -> list[AgentOutput]:
        self.calls.append((agent, len(questions)))
        if agent == "validator":
            return [ValidatorAgent(RulesValidator()).analyze(outputs) for _, outputs in questions]
        if any(index == 3 for index, _ in questions) and agent == "technical":
            raise RuntimeError("the fourth symbol is broken")
        sides = {"news": "buy", "technical": "sell", "fundamental": "hold"}
        return [opinion(sides[agent] if index % 2 else "hold", 0.6) for index, _ in questions]

    def late(self, agent: str, question: Any) -> AgentOutput:
        raise TimeoutError(agent)


def test_many_runs_ask_each_agent_once_a_round_and_one_broken_symbol_spoils_no_other() -> None:
    manager = DynamicWorkflowManager(timer=None)
    caller = Batches()
    caller.runs = [manager.begin(WorkflowGraph.routed(JUNIORS)) for _ in range(10)]
    manager.drive(caller.runs, caller)
    batches = Counter(agent for agent, size in caller.calls if size > 1)
    assert batches == {"news": 1, "technical": 1, "fundamental": 1, "validator": 1}
    assert [len(run.state.failed_agents) for run in caller.runs] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    for run in caller.runs:
        assert replay_trace(run.trace, run.outputs) == run.state
    manager.close()


def test_waiting_and_computing_agents_lead_to_the_same_decisions() -> None:
    manager = DynamicWorkflowManager(timer=None, max_workers=4)
    traces = []
    for waiting in ((), ("news",), ("news", "technical", "fundamental", "validator")):
        caller = Batches(waiting)
        caller.runs = [manager.begin(WorkflowGraph.routed(JUNIORS)) for _ in range(12)]
        manager.drive(caller.runs, caller)
        traces.append([run.trace for run in caller.runs])
    assert traces[0] == traces[1] == traces[2]
    manager.close()


def test_hundreds_of_live_runs_on_few_threads_all_end() -> None:
    manager = DynamicWorkflowManager(max_workers=4)
    caller = Batches(JUNIORS)
    caller.runs = [manager.begin(WorkflowGraph.routed(JUNIORS)) for _ in range(300)]
    manager.drive(caller.runs, caller)
    assert all(run.finished for run in caller.runs)
    assert sum(size for agent, size in caller.calls if agent == "news") == 300
    manager.close()


def test_agents_that_hang_take_no_thread_from_those_that_answer() -> None:
    release, ended = threading.Event(), []
    manager = DynamicWorkflowManager(max_workers=1)
    agents = quiet(news=lambda context: release.wait())

    def runs() -> None:
        for _ in range(2):
            ended.append(manager.execute_workflow(JUNIORS, {**CONTEXT, "timeout_s": 0.2}, agents)[1].executed_agents)

    thread = threading.Thread(target=runs, daemon=True)
    thread.start()
    thread.join(30)
    release.set()
    assert ended == [("technical", "fundamental")] * 2
    manager.close()


def test_a_process_ends_though_an_agent_hangs() -> None:
    code = """
import threading
from orchestration.dynamic_workflow import DynamicWorkflowManager
agents = {"news": lambda context: threading.Event().wait()}
_, state = DynamicWorkflowManager().execute_workflow(["news"], {"timeout_s": 0.1}, agents)
print(sorted(state.failed_agents))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "['news']\n"
