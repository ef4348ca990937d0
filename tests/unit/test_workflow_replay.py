"""Whatever agents and rules do, a workflow ends, asks nobody twice but to retry, and its trace leads to the same state."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from opinion_factory import opinion, silent

from orchestration.rewrite_actions import WorkflowAction
from orchestration.rewrite_rules import RewriteRule, default_rules
from orchestration.workflow_graph import WorkflowGraph
from orchestration.workflow_run import WorkflowRun
from orchestration.workflow_state import replay_trace
from utils.schema import RECOMMENDATIONS
from utils.setting_sections import WorkflowSettings

NAMES = ("news", "technical", "fundamental", "macro", "flow")
ANSWERS = st.one_of(
    st.builds(opinion, st.sampled_from(RECOMMENDATIONS), st.floats(0, 1), st.just({"x": 0.0})),
    st.builds(
        opinion, st.sampled_from(RECOMMENDATIONS), st.floats(0, 1), st.dictionaries(st.just("x"), st.floats(-1, 1))
    ),
    st.builds(silent),
    st.just(RuntimeError("it broke")),
)
CUSTOM = st.builds(
    lambda number, action, targets, priority, least: RewriteRule(
        f"rule{number}", lambda seen: len(seen.executed_agents) >= least, action, targets, priority
    ),
    st.integers(0, 9),
    st.sampled_from(list(WorkflowAction)),
    st.lists(st.sampled_from((*NAMES, "validator", "nobody")), max_size=3, unique=True),
    st.integers(-5, 30),
    st.integers(0, 3),
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_workflow_ends_and_replays_to_the_same_state(data: st.DataObject) -> None:
    custom = data.draw(st.lists(CUSTOM, max_size=3, unique_by=lambda rule: rule.name))
    rules = sorted((*default_rules(WorkflowSettings()), *custom), key=lambda rule: -rule.priority)
    names = data.draw(st.permutations(NAMES))[: data.draw(st.integers(1, 5))]
    mode: Any = data.draw(st.sampled_from(["adaptive", "sequential"]))
    change = data.draw(st.sampled_from(["more", None]))
    run = WorkflowRun(WorkflowGraph.routed(names, mode), rules, 5000.0, variation=lambda name: change)
    asked: Counter[str] = Counter()
    running: list[Any] = []
    while not run.finished:
        for call in run.ready():
            run.start(call)
            running.append(call)
            asked[call.agent] += 1
        assert running, "nothing is ready and nothing runs"
        call = running.pop(data.draw(st.integers(0, len(running) - 1)))
        run.record(call, data.draw(ANSWERS), data.draw(st.floats(0, 4000)))
        assert sum(asked.values()) <= 60
    retries = Counter(
        target
        for event in run.trace
        if event["event"] == "rewrite" and event["action"] == "retry_agent" and event["effect"]
        for target in event["targets"]
    )
    for name, times in asked.items():
        assert times <= 1 + retries[name]
    assert not set(run.state.executed_agents) & {*run.state.skipped_agents, *run.state.failed_agents}
    fired = Counter((rewrite.rule, target) for rewrite in run.state.rewrite_history for target in rewrite.targets)
    assert all(times == 1 for (rule, _), times in fired.items() if rule != "max_latency")
    stored = json.loads(json.dumps(run.trace, allow_nan=False))
    assert replay_trace(stored, run.outputs) == run.state


def test_a_trace_alone_tells_all_but_the_outputs() -> None:
    run = WorkflowRun(WorkflowGraph.routed(("news",)), default_rules(WorkflowSettings()))
    (call,) = run.ready()
    run.start(call)
    run.record(call, opinion("buy", 0.8), 12.5)
    state = replay_trace(run.trace)
    assert (state.executed_agents, state.total_latency, state.agent_outputs) == (("news",), 12.5, {})


def test_what_was_decided_later_changes_nothing_of_the_state() -> None:
    run = WorkflowRun(WorkflowGraph.routed(("news",)), ())
    decided = {"event": "decision", "agent": "strategist", "status": "ran"}
    assert replay_trace([*run.trace, decided]) == replay_trace(run.trace)
