"""One decision's workflow as a state machine: which agents may start, what their answers change, when it is over.

Driven by `DynamicWorkflowManager`; pure: it has no clock and no threads, and is told every latency. Whatever happens is
an event of its trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from agents.conflicts.detection import ConflictDetector
from orchestration.rewrite_actions import WorkflowAction
from orchestration.rewrite_rules import RewriteRule
from orchestration.workflow_graph import WorkflowGraph
from orchestration.workflow_state import VALIDATOR, Event, Rewrite, WorkflowProgress, WorkflowState
from utils.hashing import canonical_json
from utils.logs import logger
from utils.schema import AgentOutput, ValidatorOutput

OVER_BUDGET = "max_latency"
"""Name under which the latency budget's end stands in the trace; it is no rule, and nothing overrides it."""

MAX_ERROR_CHARS = 200
_DETECTOR = ConflictDetector()
_SENTENCES = {
    WorkflowAction.SKIP_AGENT: "{} skipped",
    WorkflowAction.EARLY_TERMINATION: "{} not asked any more",
    WorkflowAction.ADD_VALIDATOR: "{} added, after everyone else",
    WorkflowAction.PARALLEL_EXECUTION: "{} start at once",
    WorkflowAction.SEQUENTIAL_EXECUTION: "{} one after another",
}


@dataclass(frozen=True, slots=True)
class StepCall:
    """One question to one agent: `attempt` counts from 1, `started_ms` lies on the critical path."""

    agent: str
    attempt: int
    started_ms: float


class WorkflowRun:
    """The workflow of one decision.

    Parameters
    ----------
    graph : WorkflowGraph
    rules : sequence of RewriteRule
        In order of evaluation.
    max_latency_ms : float
        Budget along the critical path; once it is spent nothing more starts but the validator.
    variation : callable, optional
        Says what would differ if an agent was asked once more, None where nothing would: that retry is not made.
    about : mapping, optional
        JSON values that the trace begins with.
    """

    def __init__(
        self,
        graph: WorkflowGraph,
        rules: Sequence[RewriteRule],
        max_latency_ms: float = math.inf,
        *,
        variation: Callable[[str], str | None] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._rules = rules
        self._max_latency_ms = max_latency_ms
        self._variation = variation
        self._progress = WorkflowProgress()
        self._outputs: dict[str, AgentOutput] = {}
        self._fired: set[tuple[str, str]] = set()
        self._broken: set[str] = set()
        self._found: set[tuple[str, str]] = set()
        self._trace: list[Event] = []
        self._state: WorkflowState | None = None
        self._happen(
            {**(about or {}), "event": "graph", "steps": [[name, list(needed)] for name, needed in graph.steps]}
        )

    @property
    def outputs(self) -> Mapping[str, AgentOutput]:
        """The outputs that are in force, by agent."""
        return self._outputs

    @property
    def finished(self) -> bool:
        """Whether no agent is pending or running."""
        return self._progress.finished

    @property
    def failed(self) -> Mapping[str, str]:
        """The agents that failed, with what went wrong."""
        return self._progress.failed

    @property
    def rewrites(self) -> Sequence[Rewrite]:
        """The rules that have fired."""
        return self._progress.rewrites

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds along the critical path so far."""
        return self._progress.elapsed_ms

    @property
    def state(self) -> WorkflowState:
        """Where the workflow stands."""
        if self._state is None:
            self._state = self._progress.state(self._outputs)
        return self._state

    @property
    def trace(self) -> list[Event]:
        """Everything that happened, in order, as JSON values; see `orchestration.workflow_state.replay_trace`."""
        return self._trace

    def ready(self) -> list[StepCall]:
        """Return the calls that may start now, all at the same time."""
        return [StepCall(s.agent, s.attempt, self._progress.start_of(s)) for s in self._progress.free()]

    def start(self, call: StepCall) -> None:
        """Note that a ready call has been made; it is not ready any more."""
        self._progress.steps[call.agent].status = "running"
        self._state = None

    def record(self, call: StepCall, answer: AgentOutput | Exception, latency_ms: float, note: str = "") -> None:
        """Take in the answer to a call, or why there is none, and let the rules look at it.

        Parameters
        ----------
        call : StepCall
            A started one.
        answer : AgentOutput or Exception
        latency_ms : float
            From its start to its end.
        note : str
            What else should be known of it, for the trace.

        Raises
        ------
        ValueError
            If no such call is running, or the latency is no duration.
        """
        step = self._progress.steps.get(call.agent)
        if step is None or step.status != "running" or step.attempt != call.attempt:
            raise ValueError(f"{call.agent}: attempt {call.attempt} is not running")
        if not (0 <= latency_ms < math.inf):
            raise ValueError(f"latency_ms must be finite and at least 0, not {latency_ms}")
        self._happen(self._step_event(call, answer, latency_ms, note))
        at_ms = step.ended_ms
        if self._rules:
            self._look_for_conflicts()
            for rule in self._rules:
                self._evaluate(rule, at_ms)
        self._hold_to_budget(at_ms)

    def _step_event(self, call: StepCall, answer: AgentOutput | Exception, latency_ms: float, note: str) -> Event:
        event: Event = {
            "event": "step",
            "agent": call.agent,
            "attempt": call.attempt,
            "started_ms": call.started_ms,
            "latency_ms": latency_ms,
        }
        if note:
            event["note"] = note
        if isinstance(answer, Exception):
            return {**event, "status": "failed", "error": f"{type(answer).__name__}: {answer}"[:MAX_ERROR_CHARS]}
        event["status"] = "ran" if call.attempt == 1 else "retried"
        event["recommendation"], event["confidence"] = answer.recommendation, answer.confidence
        event["policy"] = answer.policy
        if answer.abstained:
            event["abstained"] = True
        if isinstance(answer, ValidatorOutput):
            event["replaces"] = list(answer.replaces)
            event["resolutions"] = [item.model_dump(mode="json") for item in answer.resolutions]
        before = self._outputs.get(call.agent)
        if before is not None and answer.abstained and not before.abstained:
            event["kept"] = "the first answer: this one abstains"
            kept = before
        else:
            kept = answer
        cost_usd = answer.cost_usd + (before.cost_usd if before is not None else 0.0)
        if cost_usd != kept.cost_usd:  # both answers were paid for
            kept = kept.model_copy(update={"cost_usd": cost_usd})
        self._outputs[call.agent] = kept
        return event

    def _look_for_conflicts(self) -> None:
        for conflict in _DETECTOR.detect_conflicts(self.state.opinions):
            if conflict.key in self._found:
                continue
            self._found.add(conflict.key)
            event = {
                "event": "conflict", "type": conflict.conflict_type, "agents": list(conflict.agents),
                "severity": conflict.severity, "description": conflict.description,
            }  # fmt: skip
            if conflict.signal is not None:
                event["signal"] = conflict.signal
            self._happen(event)

    def _evaluate(self, rule: RewriteRule, at_ms: float) -> None:
        if rule.name in self._broken:
            return
        try:
            why = rule.condition(self.state)
            if not why:
                return
            targets = rule.targets(self.state)
            # as the database gives them back, and no longer the rule's own objects
            figures, _ = orjson.loads(canonical_json([dict(why) if isinstance(why, Mapping) else {}, list(targets)]))
        except Exception as error:  # whoever wrote the rule, it must not cost the decision
            self._broken.add(rule.name)
            logger.warning("rewriting rule %s is ignored: %s: %s", rule.name, type(error).__name__, error)
            text = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
            self._happen({"event": "rule_error", "rule": rule.name, "error": text})
            return
        fresh = [name for name in targets if (rule.name, name) not in self._fired]
        if rule.action == WorkflowAction.RETRY_AGENT:
            for name in fresh:
                self._retry(rule, name, figures, at_ms)
            return
        chosen = [name for name in fresh if self._can(rule.action, name)]
        if chosen:
            self._rewrite(rule.name, rule.action, chosen, figures, at_ms, _SENTENCES[rule.action])

    def _can(self, action: WorkflowAction, name: str) -> bool:
        """Whether an action would change anything for an agent."""
        step = self._progress.steps.get(name)
        if action == WorkflowAction.ADD_VALIDATOR:
            return step is None
        if step is None or step.status != "pending":
            return False
        if action in (WorkflowAction.PARALLEL_EXECUTION, WorkflowAction.SEQUENTIAL_EXECUTION):
            return name != VALIDATOR
        return True

    def _retry(self, rule: RewriteRule, name: str, figures: Mapping[str, Any], at_ms: float) -> None:
        step = self._progress.steps.get(name)
        if step is None or step.status not in ("ran", "failed"):
            return
        change = self._variation(name) if self._variation else None
        sentence = f"{{}} asked once more: {change}" if change else "nothing: {} would see and say the same"
        why = {key: value for key, value in figures.items() if key not in self._progress.steps or key == name}
        self._rewrite(rule.name, rule.action, [name], why, at_ms, sentence, effect=bool(change))

    def _hold_to_budget(self, at_ms: float) -> None:
        elapsed_ms = self._progress.elapsed_ms
        if elapsed_ms < self._max_latency_ms:
            return
        left = [name for name in self._progress.with_status("pending") if name != VALIDATOR]
        if left:
            why = {"elapsed_ms": elapsed_ms, "max_latency_ms": self._max_latency_ms}
            action = WorkflowAction.EARLY_TERMINATION
            self._rewrite(OVER_BUDGET, action, left, why, at_ms, _SENTENCES[action])

    def _rewrite(
        self,
        rule: str,
        action: WorkflowAction,
        targets: Sequence[str],
        why: Mapping[str, Any],
        at_ms: float,
        sentence: str,
        effect: bool = True,
    ) -> None:
        self._fired.update((rule, name) for name in targets)
        event = {
            "event": "rewrite", "rule": rule, "action": action.value, "targets": list(targets), "why": dict(why),
            "at_ms": at_ms, "effect": effect, "changed": sentence.format(", ".join(targets)),
        }  # fmt: skip
        self._happen(event)

    def _happen(self, event: Event) -> None:
        self._trace.append(event)
        self._progress.apply(event)
        self._state = None
