"""Each rule of a workflow fires exactly where it is said to."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from opinion_factory import opinion, silent

from orchestration.rewrite_actions import WorkflowAction
from orchestration.rewrite_rules import RewriteRule, default_rules, start_unsparable
from orchestration.workflow_graph import WorkflowGraph
from orchestration.workflow_run import StepCall, WorkflowRun
from orchestration.workflow_state import WorkflowState, replay_trace
from utils.errors import ConfigError
from utils.schema import AgentOutput
from utils.setting_sections import WorkflowSettings

SETTINGS = WorkflowSettings()
RULES = {rule.name: rule for rule in default_rules(SETTINGS)}
JUNIORS = ("news", "technical", "fundamental")


def state(outputs: dict[str, AgentOutput], **more: Any) -> WorkflowState:
    opinions = {name: output for name, output in outputs.items() if not output.abstained}
    return WorkflowState(tuple(outputs), agent_outputs=outputs, opinions=opinions, **more)


def fires(name: str, seen: WorkflowState) -> bool:
    return bool(RULES[name].condition(seen))


def finish(
    run: WorkflowRun, answers: dict[str, list[AgentOutput | Exception]], latency_ms: float = 0.0
) -> list[list[str]]:
    """Answer every call from `answers`, in turn; returns who started together."""
    rounds = []
    while calls := run.ready():
        rounds.append([call.agent for call in calls])
        for call in calls:
            run.start(call)
        for call in calls:
            run.record(call, answers[call.agent].pop(0), latency_ms)
    assert run.finished
    return rounds


def test_the_rules_stand_in_the_documented_order() -> None:
    assert [(rule.name, rule.priority, rule.action.value) for rule in default_rules(SETTINGS)] == [
        ("parallel_execution_latency", 20, "parallel_execution"),
        ("early_termination_extreme_confidence", 15, "early_termination"),
        ("retry_agent_very_low_confidence", 13, "retry_agent"),
        ("add_validator_conflict", 12, "add_validator"),
        ("add_validator_low_confidence", 10, "add_validator"),
        ("skip_redundant_high_agreement", 5, "skip_agent"),
    ]


@pytest.mark.parametrize(
    ("elapsed_ms", "pending", "expected"),
    [(3501.0, 2, True), (3500.0, 2, False), (3501.0, 1, False)],
)
def test_what_is_pending_hurries_beyond_seven_tenths_of_the_budget(
    elapsed_ms: float, pending: int, expected: bool
) -> None:
    seen = state({}, pending_agents=JUNIORS[:pending], total_latency=elapsed_ms)
    assert fires("parallel_execution_latency", seen) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((opinion("buy", 0.95), opinion("strong_buy", 0.91)), True),
        ((opinion("buy", 0.95), opinion("buy", 0.9)), False),
        ((opinion("buy", 0.95), opinion("sell", 0.95)), False),
        ((opinion("hold", 0.95), opinion("hold", 0.95)), False),
        ((opinion("buy", 0.95), silent()), False),
    ],
)
def test_two_extremely_sure_agents_on_one_side_end_it(said: tuple[AgentOutput, AgentOutput], expected: bool) -> None:
    assert fires("early_termination_extreme_confidence", state(dict(zip(JUNIORS, said, strict=False)))) == expected


def test_who_is_very_unsure_is_asked_again_but_not_who_abstains() -> None:
    seen = state({"news": opinion("buy", 0.29), "technical": opinion("buy", 0.3), "fundamental": silent()})
    assert fires("retry_agent_very_low_confidence", seen)
    assert RULES["retry_agent_very_low_confidence"].targets(seen) == ("news",)


def test_low_confidence_calls_the_validator_and_an_abstention_is_none() -> None:
    assert fires("add_validator_low_confidence", state({"news": opinion("buy", 0.49)}))
    assert not fires("add_validator_low_confidence", state({"news": opinion("buy", 0.5), "technical": silent()}))


@pytest.mark.parametrize(
    ("news", "technical", "expected"),
    [
        (opinion("buy", 0.71), opinion("strong_buy", 0.71), True),
        (opinion("sell", 0.8), opinion("sell", 0.8), True),
        (opinion("buy", 0.7), opinion("buy", 0.9), False),
        (opinion("hold", 0.9), opinion("hold", 0.9), False),
        (opinion("buy", 0.9), opinion("sell", 0.9), False),
        (silent(), opinion("buy", 0.9), False),
    ],
)
def test_agreement_of_news_and_chart_makes_the_fundamentals_redundant(
    news: AgentOutput, technical: AgentOutput, expected: bool
) -> None:
    assert fires("skip_redundant_high_agreement", state({"news": news, "technical": technical})) == expected


def test_two_agents_start_together_and_the_third_after_both() -> None:
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), default_rules(SETTINGS))
    answers: dict[str, list[Any]] = {name: [opinion("hold", 0.6)] for name in JUNIORS}
    assert finish(run, answers) == [["news", "technical"], ["fundamental"]]


def test_in_sequence_one_starts_after_another() -> None:
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS, "sequential"), default_rules(SETTINGS))
    answers: dict[str, list[Any]] = {name: [opinion("hold", 0.6)] for name in JUNIORS}
    assert finish(run, answers) == [["news"], ["technical"], ["fundamental"]]


def test_a_skipped_agent_is_never_asked_and_the_trace_says_why() -> None:
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), default_rules(SETTINGS))
    finish(run, {"news": [opinion("buy", 0.8)], "technical": [opinion("buy", 0.75)]})
    assert run.state.skipped_agents == ("fundamental",)
    (rewrite,) = run.state.rewrite_history
    assert (rewrite.rule, rewrite.why) == ("skip_redundant_high_agreement", {"news": 0.8, "technical": 0.75})
    assert rewrite.changed == "fundamental skipped"


def test_a_conflict_brings_the_validator_after_everyone_else() -> None:
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), default_rules(SETTINGS))
    answers: dict[str, list[Any]] = {
        "news": [opinion("buy", 0.8)], "technical": [opinion("sell", 0.6)], "fundamental": [opinion("hold", 0.6)],
        "validator": [opinion("buy", 0.5)],
    }  # fmt: skip
    assert finish(run, answers) == [["news", "technical"], ["fundamental"], ["validator"]]
    assert [found.conflict_type for found in run.state.conflicts_detected] == ["opposite_recommendations"]


def test_a_retry_that_changes_something_is_made_once_and_replaces_the_first_answer() -> None:
    run = WorkflowRun(WorkflowGraph.routed(("news",)), default_rules(SETTINGS), variation=lambda name: "news of 6 days")
    again = opinion("sell", 0.2)
    rounds = finish(run, {"news": [opinion("buy", 0.1), again], "validator": [silent()]})
    assert rounds == [["news"], ["news"], ["validator"]]
    assert run.outputs["news"] is again
    assert run.state.rewrite_history[0].changed == "news asked once more: news of 6 days"


def test_a_retry_that_can_change_nothing_is_not_made_and_said_so() -> None:
    run = WorkflowRun(WorkflowGraph.routed(("news",)), default_rules(SETTINGS), variation=lambda name: None)
    assert finish(run, {"news": [opinion("buy", 0.1)], "validator": [silent()]}) == [["news"], ["validator"]]
    assert run.state.rewrite_history[0].changed.startswith("nothing: news")


@pytest.mark.parametrize("second", [silent(), RuntimeError("away")])
def test_a_retry_without_an_answer_leaves_the_first_one_in_force(second: AgentOutput | Exception) -> None:
    run = WorkflowRun(WorkflowGraph.routed(("news",)), default_rules(SETTINGS), variation=lambda name: "more")
    first = opinion("buy", 0.1)
    finish(run, {"news": [first, second], "validator": [silent()]})
    assert run.outputs["news"] is first
    assert run.state.executed_agents == ("news", "validator")
    assert run.state.failed_agents == {}


def test_a_failing_agent_is_recorded_and_the_others_go_on() -> None:
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), default_rules(SETTINGS))
    answers: dict[str, list[Any]] = {name: [opinion("hold", 0.6)] for name in JUNIORS}
    answers["technical"] = [RuntimeError("no chart")]
    finish(run, answers)
    assert run.state.failed_agents == {"technical": "RuntimeError: no chart"}
    assert run.state.executed_agents == ("news", "fundamental")


def test_latency_counts_along_the_critical_path() -> None:
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), ())
    answers: dict[str, list[Any]] = {name: [opinion("hold", 0.6)] for name in JUNIORS}
    finish(run, answers, latency_ms=100.0)
    assert run.state.total_latency == 200.0


def test_a_late_workflow_runs_the_rest_at_once() -> None:
    names = ("a", "b", "c", "d", "e")
    run = WorkflowRun(WorkflowGraph.routed(names), default_rules(SETTINGS), SETTINGS.max_latency_ms)
    answers: dict[str, list[Any]] = {name: [opinion("hold", 0.6)] for name in names}
    assert finish(run, answers, latency_ms=3600.0)[:2] == [["a", "b"], ["c", "d", "e"]]


def test_beyond_the_budget_nothing_starts_but_the_validator() -> None:
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), default_rules(SETTINGS), SETTINGS.max_latency_ms)
    answers: dict[str, list[Any]] = {
        "news": [opinion("buy", 0.8)], "technical": [opinion("sell", 0.6)], "validator": [silent()],
    }  # fmt: skip
    assert finish(run, answers, latency_ms=5000.0) == [["news", "technical"], ["validator"]]
    assert run.state.rewrite_history[0].rule == "max_latency"
    assert run.state.skipped_agents == ("fundamental",)


def test_a_condition_that_raises_is_recorded_once_and_costs_nothing() -> None:
    broken = RewriteRule("broken", lambda seen: 1 / 0 > 0, WorkflowAction.SKIP_AGENT, ("fundamental",), 99)
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), (broken, *default_rules(SETTINGS)))
    answers: dict[str, list[Any]] = {name: [opinion("hold", 0.6)] for name in JUNIORS}
    finish(run, answers)
    assert [event["rule"] for event in run.trace if event["event"] == "rule_error"] == ["broken"]
    assert len(run.outputs) == 3


def test_figures_that_are_no_json_break_the_rule_and_not_the_decision() -> None:
    odd = RewriteRule("odd", lambda seen: {"x": math.nan}, WorkflowAction.SKIP_AGENT, ("fundamental",))
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), (odd,))
    answers: dict[str, list[Any]] = {name: [opinion("hold", 0.6)] for name in JUNIORS}
    finish(run, answers)
    assert "fundamental" in run.outputs


def test_a_rule_of_ones_own_may_put_agents_one_after_another() -> None:
    rule = RewriteRule(
        "slow", lambda seen: "a" in seen.executed_agents, WorkflowAction.SEQUENTIAL_EXECUTION, ("d", "b", "c")
    )
    graph = WorkflowGraph.of({"a": (), "b": ("a",), "c": ("a",), "d": ("a", "c")})
    run = WorkflowRun(graph, (rule,))
    answers: dict[str, list[Any]] = {name: [opinion("hold", 0.6)] for name in "abcd"}
    assert finish(run, answers) == [["a"], ["b"], ["c"], ["d"]]


def test_an_answer_nobody_waits_for_is_refused() -> None:
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), ())
    (news, _) = run.ready()
    with pytest.raises(ValueError, match="not running"):
        run.record(news, opinion("buy", 0.6), 0.0)


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({"a": ("b",), "b": ("a",)}, "wait for one another"),
        ({"a": ("b",)}, "not there"),
        ({"a": ("a",)}, "one another"),
    ],
)
def test_a_graph_that_cannot_end_is_refused(needs: dict[str, tuple[str, ...]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WorkflowGraph.of(needs)


def test_an_agent_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        WorkflowGraph.routed(("news", "news"))


@pytest.mark.parametrize(
    ("agreement", "news", "spared_by"),
    [
        (0.7, [0.2, 0.8], "skip_redundant_high_agreement"),  # doubtful at first, sure when asked once more
        (0.95, [0.92], "early_termination_extreme_confidence"),
    ],
)
def test_nobody_is_started_early_who_may_yet_be_spared(agreement: float, news: list[float], spared_by: str) -> None:
    config = WorkflowSettings(agreement_confidence=agreement)
    rules = sorted((*default_rules(config), start_unsparable(config)), key=lambda rule: -rule.priority)
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), rules, variation=lambda name: "more news")
    technical = run.ready()[1]
    run.start(run.ready()[0])
    run.start(technical)
    for attempt, confidence in enumerate(news, 1):
        calls = run.ready()
        assert [call.agent for call in calls] == ["news"] * (attempt - 1)
        for call in calls:
            run.start(call)
        run.record(StepCall("news", attempt, 0.0), opinion("buy", confidence), 1.0)
        assert "fundamental" not in [call.agent for call in run.ready()]
    run.record(technical, opinion("buy", 0.93), 5.0)
    assert "fundamental" in run.state.skipped_agents
    assert spared_by in [rewrite.rule for rewrite in run.rewrites]


def test_the_figures_of_a_rule_are_those_that_a_stored_trace_gives_back() -> None:
    figures: dict[str, Any] = {"camps": ("news", "technical"), "seen": []}

    def split(seen: WorkflowState) -> dict[str, Any]:
        figures["seen"].append(len(seen.executed_agents))
        return figures

    rule = RewriteRule("split", split, WorkflowAction.SKIP_AGENT, ("fundamental",))
    run = WorkflowRun(WorkflowGraph.routed(JUNIORS), [rule])
    finish(run, {"news": [opinion("buy", 0.6)], "technical": [opinion("sell", 0.6)]})
    assert run.rewrites[0].why == {"camps": ["news", "technical"], "seen": [1]}
    assert replay_trace(json.loads(json.dumps(run.trace)), run.outputs) == run.state
