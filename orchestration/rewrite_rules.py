"""Rewriting rules: when to skip, add, retry or rearrange agents, as pure functions of the state of a workflow.

`WorkflowRun` evaluates them after every step; the documented ones are a table, others are added to a manager.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.rewrite_actions import WorkflowAction
from orchestration.workflow_state import VALIDATOR, WorkflowState
from utils.schema import direction
from utils.setting_sections import WorkflowSettings

HURRY = 0.7
"""Share of the latency budget beyond which what is pending runs at once."""

EXTREME_CONFIDENCE = 0.9
Condition = Callable[[WorkflowState], "bool | Mapping[str, Any]"]
Targets = Sequence[str] | Callable[[WorkflowState], Sequence[str]]


@dataclass(frozen=True, slots=True)
class RewriteRule:
    """One rule.

    Attributes
    ----------
    name : str
    condition : callable
        Of the `WorkflowState`; true where it matches. It may return the figures that made it match, as a mapping of JSON
        values: they go into the trace. Nothing (False, None or an empty mapping) means no match. It must be pure.
    action : WorkflowAction
    target_agents : sequence of str, or callable
        Whom it acts on, a callable being asked where the condition matches. Empty: everyone it can act on, which is what is
        pending, or for ``add_validator`` the validator.
    priority : int
        Higher is evaluated first; equal ones in the order in which they were added.
    """

    name: str
    condition: Condition
    action: WorkflowAction
    target_agents: Targets = ()
    priority: int = 0

    def targets(self, state: WorkflowState) -> tuple[str, ...]:
        """Return whom the rule acts on in a state, each once."""
        named = self.target_agents(state) if callable(self.target_agents) else self.target_agents
        if named:
            return tuple(dict.fromkeys(named))
        if callable(self.target_agents) or self.action == WorkflowAction.RETRY_AGENT:
            return ()
        return (VALIDATOR,) if self.action == WorkflowAction.ADD_VALIDATOR else state.pending_agents


def default_rules(settings: WorkflowSettings) -> tuple[RewriteRule, ...]:
    """Return the documented rules with the thresholds of a configuration, highest priority first."""
    very_low = settings.very_low_confidence

    def late(state: WorkflowState) -> Mapping[str, Any]:
        limit_ms = HURRY * settings.max_latency_ms
        if state.total_latency <= limit_ms or len(_analysts(state)) < 2:
            return {}
        return {"elapsed_ms": state.total_latency, "limit_ms": limit_ms, "pending": len(_analysts(state))}

    def extreme(state: WorkflowState) -> Mapping[str, Any]:
        votes = state.opinions
        sides = {direction(output.recommendation) for output in votes.values()}
        least = min((output.confidence for output in votes.values()), default=0.0)
        if len(votes) < 2 or len(sides) > 1 or 0 in sides or least <= EXTREME_CONFIDENCE:
            return {}
        return {"outputs": len(votes), "least_confidence": least}

    def doubtful(state: WorkflowState) -> list[str]:
        votes = state.opinions
        return [name for name, output in votes.items() if output.confidence < very_low]

    def doubts(state: WorkflowState) -> Mapping[str, Any]:
        return {name: state.agent_outputs[name].confidence for name in doubtful(state)}

    def conflict(state: WorkflowState) -> Mapping[str, Any]:
        return {found.conflict_type: found.severity for found in state.conflicts_detected}

    def low(state: WorkflowState) -> Mapping[str, Any]:
        votes = state.opinions
        least = min((output.confidence for output in votes.values()), default=1.0)
        return {"least_confidence": least} if least < settings.low_confidence_threshold else {}

    def agreement(state: WorkflowState) -> Mapping[str, Any]:
        votes = state.opinions
        news, technical = votes.get("news"), votes.get("technical")
        if news is None or technical is None:
            return {}
        side = direction(news.recommendation)
        least = min(news.confidence, technical.confidence)
        if not side or side != direction(technical.recommendation) or least <= settings.agreement_confidence:
            return {}
        return {"news": news.confidence, "technical": technical.confidence}

    act = WorkflowAction
    return (
        RewriteRule("parallel_execution_latency", late, act.PARALLEL_EXECUTION, _analysts, 20),
        RewriteRule("early_termination_extreme_confidence", extreme, act.EARLY_TERMINATION, (), 15),
        RewriteRule("retry_agent_very_low_confidence", doubts, act.RETRY_AGENT, doubtful, 13),
        RewriteRule("add_validator_conflict", conflict, act.ADD_VALIDATOR, (VALIDATOR,), 12),
        RewriteRule("add_validator_low_confidence", low, act.ADD_VALIDATOR, (VALIDATOR,), 10),
        RewriteRule("skip_redundant_high_agreement", agreement, act.SKIP_AGENT, ("fundamental",), 5),
    )


def start_unsparable(settings: WorkflowSettings) -> RewriteRule:
    """Return the rule that lets a waiting agent start as soon as nothing can spare it any more.

    The documented rules spare an agent only where those before it take one side, each of them surer than
    `agreement_confidence` or than 0.9. One that fails, abstains, holds or is less sure rules that out, unless it is being asked
    once more; what still waits for the rest would then wait for nothing. It changes when an agent is asked, never whether.
    Worth its place where answers take time.
    """
    least = min(settings.agreement_confidence, EXTREME_CONFIDENCE)

    def ruled_out(state: WorkflowState) -> Mapping[str, Any]:
        if not _analysts(state):
            return {}
        # the answer of a retry may still be one that spares others
        open_ = {*state.pending_agents, *state.running_agents}
        for name in state.failed_agents:
            if name not in open_:
                return {name: "failed"}
        for name, output in state.agent_outputs.items():
            if name in open_:
                continue
            if output.abstained or not direction(output.recommendation):
                return {name: "abstained" if output.abstained else "hold"}
            if output.confidence <= least:
                return {name: output.confidence}
        return {}

    return RewriteRule("start_unsparable", ruled_out, WorkflowAction.PARALLEL_EXECUTION, _analysts, 4)


def _analysts(state: WorkflowState) -> list[str]:
    """Return the pending agents but the validator, who always comes last."""
    return [name for name in state.pending_agents if name != VALIDATOR]
