"""Where a workflow stands, as the fold of its trace: every change of state is an event, and the events are the trace.

`WorkflowRun` appends events and applies them here; `replay_trace` applies stored ones by the same code, so that a trace
always leads to the state that it came from. Events are JSON objects, since they are stored with the decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agents.conflicts.detection import Conflict, opinions
from orchestration.rewrite_actions import WorkflowAction
from utils.schema import AgentOutput

VALIDATOR = "validator"
Event = dict[str, Any]
Status = Literal["pending", "running", "ran", "failed", "skipped"]
_SETTLED = frozenset(("ran", "failed", "skipped"))


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rule that fired: on whom, on which figures, and what it changed."""

    rule: str
    action: WorkflowAction
    targets: tuple[str, ...]
    why: Mapping[str, Any]
    changed: str


@dataclass(frozen=True, slots=True)
class WorkflowState:
    """A workflow at one moment; what the conditions of rules see.

    Attributes
    ----------
    executed_agents : tuple of str
        Those with an output, in the order in which they first had one.
    pending_agents : tuple of str
        Not started yet.
    agent_outputs : mapping of str to AgentOutput
    conflicts_detected : tuple of Conflict
        Each once, whatever became of it.
    total_latency : float
        Milliseconds along the critical path so far.
    rewrite_history : tuple of Rewrite
    running_agents, skipped_agents : tuple of str
    failed_agents : mapping of str to str
        With what went wrong.
    opinions : mapping of str to AgentOutput
        The outputs that are votes, by name: no abstention, no validator.
    """

    executed_agents: tuple[str, ...] = ()
    pending_agents: tuple[str, ...] = ()
    agent_outputs: Mapping[str, AgentOutput] = field(default_factory=dict)
    conflicts_detected: tuple[Conflict, ...] = ()
    total_latency: float = 0.0
    rewrite_history: tuple[Rewrite, ...] = ()
    running_agents: tuple[str, ...] = ()
    skipped_agents: tuple[str, ...] = ()
    failed_agents: Mapping[str, str] = field(default_factory=dict)
    opinions: Mapping[str, AgentOutput] = field(default_factory=dict)


@dataclass(slots=True)
class Step:
    """One agent's place: `ended_ms` is the end of its last attempt, `not_before_ms` the moment that a rewrite let it in."""

    agent: str
    waits_for: tuple[str, ...]
    status: Status = "pending"
    attempt: int = 1
    not_before_ms: float = 0.0
    ended_ms: float = 0.0


class WorkflowProgress:
    """The state that a sequence of events leads to."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self.executed: list[str] = []
        self.failed: dict[str, str] = {}
        self.conflicts: list[Conflict] = []
        self.rewrites: list[Rewrite] = []
        self.elapsed_ms = 0.0

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in one event; those that only tell people something change nothing."""
        kind = event["event"]
        if kind == "step":
            self._stepped(event)
        elif kind == "rewrite":
            self._rewritten(event)
        elif kind == "graph":
            self.steps = {name: Step(name, tuple(needed)) for name, needed in event["steps"]}
        elif kind == "conflict":
            self.conflicts.append(
                Conflict(
                    event["type"], tuple(event["agents"]), event["severity"], event["description"], event.get("signal")
                )
            )

    def free(self) -> list[Step]:
        """Return the steps that may start: nothing that they wait for is still to come."""
        steps = self.steps
        return [
            step
            for step in steps.values()
            if step.status == "pending"
            and (
                not step.waits_for
                or all(needed not in steps or steps[needed].status in _SETTLED for needed in step.waits_for)
            )
        ]

    def with_status(self, status: Status) -> tuple[str, ...]:
        """Return the agents in a status, in order."""
        return tuple(step.agent for step in self.steps.values() if step.status == status)

    @property
    def finished(self) -> bool:
        """Whether nothing is pending or running."""
        return all(step.status in _SETTLED for step in self.steps.values())

    def start_of(self, step: Step) -> float:
        """Return when a step starts, in milliseconds along the critical path."""
        start_ms = step.not_before_ms
        for needed in step.waits_for:
            if needed in self.steps:
                start_ms = max(start_ms, self.steps[needed].ended_ms)
        return start_ms

    def state(self, outputs: Mapping[str, AgentOutput]) -> WorkflowState:
        """Return the state with the outputs of those that have been executed."""
        places: dict[str, list[str]] = {"pending": [], "running": [], "skipped": [], "ran": [], "failed": []}
        for step in self.steps.values():
            places[step.status].append(step.agent)
        in_force = {name: outputs[name] for name in self.executed if name in outputs}
        return WorkflowState(
            tuple(self.executed),
            tuple(places["pending"]),
            in_force,
            tuple(self.conflicts),
            self.elapsed_ms,
            tuple(self.rewrites),
            tuple(places["running"]),
            tuple(places["skipped"]),
            dict(self.failed),
            opinions(in_force),
        )

    def _stepped(self, event: Mapping[str, Any]) -> None:
        step = self.steps[event["agent"]]
        failed = event["status"] == "failed"
        step.ended_ms = event["started_ms"] + event["latency_ms"]
        self.elapsed_ms = max(self.elapsed_ms, step.ended_ms)
        if failed and step.agent not in self.executed:
            self.failed[step.agent] = event["error"]
            step.status = "failed"
            return
        # a retry that fails leaves the first answer in force
        step.status = "ran"
        self.failed.pop(step.agent, None)
        if step.agent not in self.executed:
            self.executed.append(step.agent)

    def _rewritten(self, event: Mapping[str, Any]) -> None:
        action, targets, at_ms = WorkflowAction(event["action"]), tuple(event["targets"]), event["at_ms"]
        self.rewrites.append(Rewrite(event["rule"], action, targets, event["why"], event["changed"]))
        if not event["effect"]:
            return
        if action == WorkflowAction.ADD_VALIDATOR:
            for name in targets:
                # it comes last: a view of what is still being written would be no view
                self.steps[name] = Step(name, tuple(self.steps), not_before_ms=at_ms)
            return
        chosen = [self.steps[name] for name in targets]
        if action in (WorkflowAction.SKIP_AGENT, WorkflowAction.EARLY_TERMINATION):
            for step in chosen:  # a retry that is called off leaves what there was
                known = step.agent in self.executed
                step.status = "ran" if known else "failed" if step.agent in self.failed else "skipped"
        elif action == WorkflowAction.RETRY_AGENT:
            for step in chosen:
                step.status, step.attempt, step.not_before_ms = "pending", step.attempt + 1, at_ms
        elif action == WorkflowAction.PARALLEL_EXECUTION:
            for step in chosen:
                step.waits_for, step.not_before_ms = (), at_ms
        else:
            running = self.with_status("running")
            before: tuple[str, ...] = ()
            for step in (self.steps[name] for name in self._in_order() if name in targets):
                step.waits_for = (*step.waits_for, *running, *before)
                before = (step.agent,)

    def _in_order(self) -> list[str]:
        """Return all agents, each after those it waits for: a chain along it closes no circle."""
        order: list[str] = []
        while len(order) < len(self.steps):
            done = set(order)
            order += [
                step.agent
                for step in self.steps.values()
                if step.agent not in done and all(n in done or n not in self.steps for n in step.waits_for)
            ]
        return order


def replay_trace(trace: Sequence[Mapping[str, Any]], outputs: Mapping[str, AgentOutput] | None = None) -> WorkflowState:
    """Return the state that a stored trace leads to.

    Parameters
    ----------
    trace : sequence of mapping
        `Decision.workflow`, or what the database gives back of it.
    outputs : mapping of str to AgentOutput, optional
        The outputs of the decision; a trace holds the opinions alone.
    """
    progress = WorkflowProgress()
    for event in trace:
        progress.apply(event)
    return progress.state(outputs or {})
