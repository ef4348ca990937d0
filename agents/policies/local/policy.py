"""How an agent thinks with a local model: rules supply the facts, the model supplies the opinion on them.

Built for every seat that a local version serves. It never asks the model where the rules abstain for want of data, and never
repairs an answer: what is no decision is an abstention, and where the model cannot answer the rules do, visibly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agents.base_agent import abstain
from agents.policies.base import Policy, PolicyRequest
from agents.policies.local.decisions import (
    ParsedDecision,
    decision_schema,
    is_grounded,
    parse_decision,
    prompt_hash,
    prompt_messages,
)
from agents.policies.local.engine import AnswerSource, Question
from agents.policies.local.states import LOCAL_AGENTS, StateWriter
from agents.policies.rules.figures import written
from agents.policies.rules.strategist import RulesStrategist
from utils.errors import ConfigError, ProviderError
from utils.logs import logger
from utils.schema import (
    AgentOutput,
    AgentType,
    FundamentalOutput,
    NewsOutput,
    StrategistOutput,
    TechnicalOutput,
    direction,
)
from utils.telemetry import NO_TELEMETRY, Telemetry

_SIGNAL_WORDS = {1: "buy", 0: "hold", -1: "sell"}


class LocalModelPolicy:
    """A `Policy` whose opinion is a local model's.

    Parameters
    ----------
    agent_type : AgentType
        One of `LOCAL_AGENTS`.
    source : AnswerSource
        The version that answers; its name becomes the policy's, ``local:<version>``. Closed with the policy.
    rules : Policy
        Computes indicators, figures, levels and evidence, abstains where the data does not suffice, and answers in the
        model's place where it cannot. For the strategist `RulesStrategist`, which also carries the decision out: size, stop
        and target are code's.
    states : StateWriter
    reads_experiences : bool
        Whether the version was trained on states that show experiences.
    deadline_s : float
        Wall seconds for a batch; None leaves them to the source, which in this process waits as long as it takes.

    Raises
    ------
    ConfigError
        For an agent that no local model thinks for, and for rules that cannot do what is asked of them.
    """

    def __init__(
        self,
        agent_type: AgentType,
        source: AnswerSource,
        rules: Policy,
        states: StateWriter,
        *,
        reads_experiences: bool = False,
        deadline_s: float | None = 10.0,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        if agent_type not in LOCAL_AGENTS:
            raise ConfigError(f"no local model thinks for the {agent_type} agent, only for {', '.join(LOCAL_AGENTS)}")
        if rules.agent_type != agent_type:
            raise ConfigError(f"rules of the {rules.agent_type} agent cannot compute the facts of {agent_type}")
        if agent_type == "strategist" and not isinstance(rules, RulesStrategist):
            raise ConfigError(
                f"{type(rules).__name__} cannot carry out a strategist's decision; give a RulesStrategist"
            )
        self.agent_type: AgentType = agent_type
        self.name = f"local:{source.version}"
        self.reads_experiences = reads_experiences
        self.waits = source.waits
        self.prompt_hash: str | None = prompt_hash(agent_type)
        self._source = source
        self._rules = rules
        self._states = states
        self._deadline_s = deadline_s
        self._telemetry = telemetry
        self._schema = decision_schema(agent_type)

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request in one batch; what the rules abstain from never reaches the model.

        Raises
        ------
        ProviderError
            If the model cannot be asked at all; the agent falls back to rules.
        """
        return self._decide(requests, 0.0, 0)

    def sample(self, request: PolicyRequest, temperature: float, random_state: int) -> AgentOutput:
        """Return one of several answers to a request, tokens drawn at a temperature; 0 is the usual answer.

        Raises
        ------
        ValueError
            If the temperature is negative or no number.
        """
        if temperature < 0 or not math.isfinite(temperature):
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        return self._decide([request], temperature, random_state)[0]

    def close(self) -> None:
        """Give the version back; it is unloaded once no other policy asks it."""
        self._source.close()

    def _decide(self, requests: Sequence[PolicyRequest], temperature: float, random_state: int) -> list[AgentOutput]:
        facts = self._rules.decide_many(requests)
        decided = list(facts)  # without data nobody is asked, and the rules say so
        asked = [i for i, output in enumerate(facts) if not output.abstained]
        states = [self._states.write(facts[i], requests[i]) for i in asked]
        questions = [
            Question(tuple(prompt_messages(self.agent_type, state)), self._schema, temperature, random_state)
            for state in states
        ]
        answers = self._source.answer(questions, deadline_s=self._deadline_s) if questions else []
        faults: list[ProviderError] = []
        for i, state, answer in zip(asked, states, answers, strict=True):
            if isinstance(answer, ProviderError):
                self._telemetry.count("agent_errors_total", agent_type=self.agent_type, error_type=answer.kind)
                faults.append(answer)
            else:
                decided[i] = self._opinion(facts[i], requests[i], state, answer)
        if faults:
            logger.warning(
                "%s: rules answer %d of %d requests in place of %s: %s",
                self.agent_type, len(faults), len(questions), self.name, faults[0],
            )  # fmt: skip
        return decided

    def _opinion(self, facts: AgentOutput, request: PolicyRequest, state: str, answer: str) -> AgentOutput:
        decision = parse_decision(answer)
        if decision is None:
            self._telemetry.count("agent_errors_total", agent_type=self.agent_type, error_type="malformed")
            reason = "the local model's answer is not a valid decision"
            return abstain(self.agent_type, facts.symbol, facts.as_of, reason, self.name)
        said = self._said(state, decision)
        output = facts
        if isinstance(self._rules, RulesStrategist):
            output, refusal = self._rules.carry_out(request, decision.recommendation, decision.confidence)
            if refusal is not None:
                said = f"{said} It became {output.recommendation.replace('_', ' ')}: {refusal}."
            update: dict[str, Any] = {"reasoning": f"{said} {_grounds(output)}"}
        else:
            update = {
                "recommendation": decision.recommendation,
                "confidence": decision.confidence,
                "p_correct": None,
                "reasoning": f"{said} {_grounds(facts)}",
            }
            if isinstance(facts, TechnicalOutput):
                update["signal"] = _SIGNAL_WORDS[direction(decision.recommendation)]
        return output.model_copy(update={**update, "policy": self.name})

    def _said(self, state: str, decision: ParsedDecision) -> str:
        """Say what the model recommends, and where it cites what the state does not say."""
        sentence = (
            f"The local model {self.name.removeprefix('local:')} recommends {decision.recommendation.replace('_', ' ')} "
            f"with confidence {written(decision.confidence)}."
        )
        return sentence if is_grounded(state, decision) else f"{sentence} Its cited evidence does not match the state."


def _technical_grounds(facts: TechnicalOutput) -> str:
    rsi = facts.indicators.get("rsi_14")
    trend = {"uptrend": "an uptrend", "downtrend": "a downtrend"}.get(facts.trend, "a sideways market")
    at = "" if rsi is None else f" with RSI {rsi:.1f} [ind:rsi_14]"
    return f"It read {trend}{at} and {facts.momentum.replace('_', ' ')} momentum."


def _news_grounds(facts: NewsOutput) -> str:
    tone = "positive" if facts.sentiment_score > 0 else "negative" if facts.sentiment_score < 0 else "neutral"
    source = facts.key_events[0] if facts.key_events else None
    weighty = f"; the weightiest article comes from {source.source} [{source.evidence_id}]" if source else ""
    return f"It read news whose age-weighted sentiment is {tone} at {facts.sentiment_score:.3g}{weighty}."


def _fundamental_grounds(facts: FundamentalOutput) -> str:
    health = written(facts.financial_health)
    return (
        f"It read filed figures of a share that is {facts.valuation.replace('_', ' ')}, with financial health {health}."
    )


def _strategy_grounds(facts: StrategistOutput) -> str:
    return f"It weighed these views: {'; '.join(facts.key_factors)}."


_GROUNDS: Mapping[type[AgentOutput], Callable[[Any], str]] = {
    TechnicalOutput: _technical_grounds,
    NewsOutput: _news_grounds,
    FundamentalOutput: _fundamental_grounds,
    StrategistOutput: _strategy_grounds,
}


def _grounds(facts: AgentOutput) -> str:
    """Say what the model was shown; figures are the exact ones with their evidence, never the model's rounded citation."""
    return _GROUNDS[type(facts)](facts)
