"""Shadow opinions: what other policies would have said in an agent's place, on the very question that it answered.

The coordinator holds one `Shadows`; the trading cycle asks it once a decision has been traded. Nothing that a shadow says or
fails to say reaches a decision, the portfolio, or what agents and trainings learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agents.policies.base import Policy, PolicyRequest
from evaluation.error_taxonomy import ErrorReport
from orchestration.analysis import Analysis
from utils.errors import ProviderError
from utils.logs import logger
from utils.schema import AgentOutput
from utils.telemetry import NO_TELEMETRY, Telemetry

Examine = Callable[[Analysis, AgentOutput], ErrorReport]
"""Looks for errors in an opinion on what was known when the decision was taken."""


@dataclass(frozen=True, slots=True)
class ShadowOpinion:
    """What the policy named `policy` answered in the place of the one that serves, and what is wrong with it."""

    policy: str
    output: AgentOutput
    report: ErrorReport


class Shadows:
    """The policies that answer beside each agent's own.

    Parameters
    ----------
    examine : callable
    """

    def __init__(self, examine: Examine, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self._examine = examine
        self._telemetry = telemetry
        self._policies: Mapping[str, tuple[Policy, ...]] = {}

    def set(self, agent_type: str, policies: tuple[Policy, ...]) -> None:
        """Let these answer beside an agent from its next decision on, in place of those before."""
        held = {**self._policies, agent_type: policies}
        self._policies = {name: shadows for name, shadows in held.items() if shadows}

    @property
    def names(self) -> dict[str, list[str]]:
        """The names of the shadows, by agent."""
        return {name: [policy.name for policy in shadows] for name, shadows in sorted(self._policies.items())}

    def opinions(self, analyses: Sequence[Analysis]) -> list[list[ShadowOpinion]]:
        """Return what each shadow says to the questions that its agent has answered with an opinion, by analysis.

        A shadow that fails, or whose rules answer in its place, says nothing.
        """
        said: list[list[ShadowOpinion]] = [[] for _ in analyses]
        for agent_type, policies in self._policies.items():
            asked = [index for index, analysis in enumerate(analyses) if _gave_opinion(analysis, agent_type)]
            requests = [analyses[index].requests[agent_type] for index in asked]
            for policy in policies if asked else ():
                for index, output in zip(asked, self._answers(policy, requests), strict=True):
                    if output is not None and output.policy == policy.name:
                        report = self._examine(analyses[index], output)
                        said[index].append(ShadowOpinion(policy.name, output, report))
        return said

    def _answers(self, policy: Policy, requests: Sequence[PolicyRequest]) -> Sequence[AgentOutput | None]:
        """Return a shadow's answers, None each where it fails."""
        try:
            answers = policy.decide_many(requests)
            if len(answers) == len(requests):
                # checked anew: one that no row can hold must not keep the decision beside it from being stored
                return [type(answer).model_validate(answer.model_dump()) for answer in answers]
            fault: object = f"{len(answers)} answers to {len(requests)} requests"
        except ProviderError as error:
            fault = error
        except Exception as error:  # whatever a policy raises that serves nobody: no decision may hang on it
            fault = f"{type(error).__name__}: {error}"
        self._telemetry.count("agent_errors_total", agent_type=policy.agent_type, error_type="shadow")
        logger.warning("%s: its shadow %s gave no answers: %s", policy.agent_type, policy.name, fault)
        return [None] * len(requests)


def _gave_opinion(analysis: Analysis, agent_type: str) -> bool:
    decision = analysis.decision
    output = decision.strategist if agent_type == "strategist" else decision.agents.get(agent_type)
    return output is not None and not output.abstained and agent_type in analysis.requests
