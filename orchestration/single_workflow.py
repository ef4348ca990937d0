"""Asks the agents of one workflow that somebody runs by hand: `Agent` objects and plain callables alike.

Used by `DynamicWorkflowManager.execute_workflow`; the coordinator has a caller of its own that knows snapshots and batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.base_agent import Agent, Variation
from agents.policies.base import PolicyRequest
from agents.policies.rules.validator import RulesValidator
from agents.validator_agent import ValidatorAgent
from orchestration.workflow_run import StepCall, WorkflowRun
from orchestration.workflow_state import VALIDATOR
from utils.errors import ConfigError, DataUnavailable, ProviderError, nearest
from utils.schema import AgentOutput, MarketSnapshot, parse_output

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_LOOKBACK_DAYS = 7


@dataclass(frozen=True, slots=True)
class Question:
    """A call that can be made, and what an `Agent` is asked by it, so that its rules can be asked the same."""

    answer: Callable[[], AgentOutput]
    asked: Callable[[], Variation] | None = None


class SingleCaller:
    """A `StepCaller` for one run.

    Parameters
    ----------
    context : mapping
    agents : mapping of str to Agent or callable

    Attributes
    ----------
    run : WorkflowRun
        Set by whoever begins it.
    """

    run: WorkflowRun

    def __init__(self, context: Mapping[str, Any], agents: Mapping[str, Any]) -> None:
        self._context = context
        self._agents = {VALIDATOR: ValidatorAgent(RulesValidator()), **agents}
        self._deadline_s = float(context.get("timeout_s", DEFAULT_TIMEOUT_S))

    def require(self, names: Sequence[str]) -> None:
        """Raise ConfigError if one of the agents is not there."""
        for name in names:
            agent = self._agents.get(name)
            if agent is None:
                raise ConfigError(
                    f"agents: there is no {name!r}{nearest(name, self._agents)}; hand it over by its name"
                )
            if not isinstance(agent, Agent) and not callable(agent):
                raise ConfigError(f"agents: {name} is neither an Agent nor a callable, but {type(agent).__name__}")

    def variation(self, name: str) -> str | None:
        """Return what a retry would change."""
        agent = self._agents.get(name)
        if isinstance(agent, Agent):
            try:
                varied = self._varied(agent)
            except DataUnavailable:
                return None
            return varied.what if varied else None
        return f"{self._doubled()} days of lookback" if agent is not None else None

    def waits(self, agent: str) -> bool:
        """Return whether an agent is asked in a thread: a callable may do anything, so it is."""
        known = self._agents.get(agent)
        return known.waits if isinstance(known, Agent) else True

    def deadline_s(self, agent: str) -> float:
        """Return ``timeout_s`` of the context."""
        return self._deadline_s

    def prepare(self, index: int, call: StepCall) -> Question:
        """Return the call, bound to the outputs that are there when it starts."""
        agent, outputs = self._agents.get(call.agent), dict(self.run.outputs)
        if isinstance(agent, ValidatorAgent):
            state = self._context.get("snapshot", self._context)
            return Question(lambda: agent.analyze(outputs, state))
        if isinstance(agent, Agent):
            return Question(
                lambda: agent.decide_variation(self._asked(agent, call.attempt, outputs)),
                lambda: self._asked(agent, call.attempt, outputs),
            )
        told = {**self._context, "agent_outputs": outputs}
        if call.attempt > 1:
            told |= {"retry": call.attempt - 1, "lookback_days": self._doubled()}
        return Question(lambda: _output(call.agent, agent, told))

    def ask(self, agent: str, questions: Sequence[Question]) -> list[AgentOutput]:
        """Return what the calls return."""
        return [question.answer() for question in questions]

    def late(self, agent: str, question: Question) -> AgentOutput:
        """Let an agent's rules answer the same question; a callable has none."""
        known = self._agents.get(agent)
        if isinstance(known, Agent) and question.asked is not None:
            return known.fall_back(question.asked().request, "its time is up", "timeout")
        raise ProviderError(f"{agent}: its time is up", kind="timeout")

    def _doubled(self) -> int:
        return 2 * int(self._context.get("lookback_days", DEFAULT_LOOKBACK_DAYS))

    def _request(self, agent: Agent) -> PolicyRequest:
        snapshot = self._context.get("snapshot")
        if not isinstance(snapshot, MarketSnapshot):
            raise DataUnavailable("context: an Agent needs a MarketSnapshot under 'snapshot'")
        return agent.request(snapshot)

    def _asked(self, agent: Agent, attempt: int, outputs: Mapping[str, AgentOutput]) -> Variation:
        asked = self._varied(agent) if attempt > 1 else None
        asked = asked or Variation(self._request(agent), "as usual")
        return replace(asked, request=replace(asked.request, agent_outputs=outputs))

    def _varied(self, agent: Agent) -> Variation | None:
        request = self._request(agent)
        return agent.variation(request, request.snapshot)


def _output(name: str, agent: Any, told: Mapping[str, Any]) -> AgentOutput:
    """Return what a callable answers, as an output.

    Raises
    ------
    DataUnavailable
        If it is none.
    """
    if agent is None:
        raise DataUnavailable(f"agents: there is no {name!r}")
    answer = agent(told)
    output, findings = parse_output(answer, name)
    if output is None:
        raise DataUnavailable(f"{name}: no valid output: {findings[0].pointer or 'it'}: {findings[0].description}")
    return output
