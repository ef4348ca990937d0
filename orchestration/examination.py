"""Looks at decisions that have been taken: errors in every output, texts that speak to a judge, the states that models learn from.

Used by the coordinator on each decision and on what shadows say beside it. It changes no output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from agents.base_agent import Agent
from agents.policies.base import PolicyRequest
from agents.policies.local.states import LOCAL_AGENTS, StateWriter
from evaluation.error_taxonomy import ErrorReport
from evaluation.fault_localization import FaultLocalizationEngine
from evaluation.ground_truth import GroundTruth
from judge.robustness_guard import RobustnessGuard
from orchestration.analysis import Analysis
from orchestration.decision_steps import OpenCase
from utils.logs import logger
from utils.schema import AgentOutput, Decision, MarketSnapshot, PortfolioState
from utils.settings import OrchestratorConfig


class Examiner:
    """Examines what agents said, on what was known when they said it.

    Parameters
    ----------
    config : OrchestratorConfig
    agents : mapping of str to Agent
        Whose policies gave the outputs.
    is_open : callable
        Whether the exchange was open at an instant; None where that is not known.
    """

    def __init__(
        self,
        config: OrchestratorConfig,
        agents: Mapping[str, Agent],
        is_open: Callable[[datetime], bool | None],
    ) -> None:
        self._agents = agents
        self._is_open = is_open
        self._engine = FaultLocalizationEngine()
        self._guard = RobustnessGuard()
        self._states = StateWriter.configured(config)

    def examined(self, case: OpenCase, decision: Decision) -> Analysis:
        """Look for errors in every output of a decision, on what was known when it was taken."""
        snapshot = case.snapshot
        truth = self._truth(snapshot, case.opinions, decision, case.portfolio)
        outputs = {**decision.agents, "strategist": decision.strategist}
        reports = {name: self._engine.detect_faults(name, output, truth) for name, output in sorted(outputs.items())}
        written = {name: output for name, output in outputs.items() if output.policy != "rules"}
        screened = {name: self._guard.screen(output) for name, output in sorted(written.items())}
        flags = {name: verdict for name, verdict in screened.items() if verdict.flags}
        served = {name: self._agents[name].policy for name in outputs if name in self._agents}
        prompts = {
            name: policy.prompt_hash
            for name, policy in served.items()
            if policy.prompt_hash is not None and outputs[name].policy == policy.name
        }
        opinions = {name: output for name, output in outputs.items() if name in LOCAL_AGENTS and not output.abstained}
        requests = {name: _asked(case, name) for name in opinions}
        return Analysis(
            decision, snapshot, case.regime, case.similar, reports, case.portfolio, prompts, flags, case.failures,
            self._stated(opinions, requests), requests,
        )  # fmt: skip

    def _truth(
        self,
        snapshot: MarketSnapshot,
        opinions: Mapping[str, AgentOutput],
        decision: Decision,
        portfolio: PortfolioState | None,
    ) -> GroundTruth:
        return GroundTruth(
            snapshot,
            agent_outputs=opinions,
            workflow=decision.workflow,
            portfolio=portfolio,
            market_open=self._is_open(snapshot.as_of),
        )

    def found(self, analysis: Analysis, output: AgentOutput) -> ErrorReport:
        """Look for errors in an opinion that was given in an agent's shadow, on what was known then."""
        strategist = analysis.requests.get("strategist")
        opinions = analysis.decision.agents if strategist is None else strategist.agent_outputs
        truth = self._truth(analysis.snapshot, opinions, analysis.decision, analysis.portfolio)
        return self._engine.detect_faults(output.agent_type, output, truth)

    def _stated(self, outputs: Mapping[str, AgentOutput], requests: Mapping[str, PolicyRequest]) -> dict[str, str]:
        """Return the state of each opinion as a local model reads it: what rules compute, whoever thought."""
        states = {}
        for name, output in outputs.items():
            request = requests[name]
            try:
                facts = output if output.policy == "rules" else self._agents[name].by_rules(request)
            except (
                Exception
            ) as error:  # rules that break leave an opinion of others without its state, and nothing else
                logger.warning("%s: no state is recorded of %s: %s", name, output.symbol, error)
                continue
            if facts is not None and not facts.abstained:
                states[name] = self._states.write(facts, request)
        return states


def _asked(case: OpenCase, name: str) -> PolicyRequest:
    """Return what an agent of a decided case was asked."""
    request = PolicyRequest(case.snapshot, case.regime, experiences=case.experiences.get(name, ()))
    if name == "strategist":
        request = replace(request, agent_outputs=case.opinions, portfolio=case.portfolio)
    return request
