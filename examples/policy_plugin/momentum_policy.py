"""A policy that another package brings: momentum of twelve months without the last one, for the technical seat.

Named by the entry point ``momentum``. The seat's rules supply indicators, levels and evidence, and this only changes the
opinion on them; it reads nothing but its request and keeps nothing between two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agents.base_agent import abstain
from agents.policies.base import Policy, PolicyRequest
from data_pipeline.rounding import clip, figure
from utils.errors import ConfigError
from utils.schema import AgentOutput, AgentType
from utils.settings import OrchestratorConfig

LOOKBACK, SKIPPED = 252, 21
"""Sessions: a year of returns, without the last month, which tends to revert (Jegadeesh and Titman, Journal of Finance, 1993)."""

SIDE, STRONG = 0.5, 1.5
"""Least |score| of a side and of a strong one, in standard deviations."""

LEAST_CONFIDENCE, MOST_CONFIDENCE = 0.5, 0.7
"""Past returns say little about the next week; nothing here warrants more."""


def policy(agent_type: AgentType, config: OrchestratorConfig, rules: Policy) -> Policy:
    """Return the policy of a seat.

    Parameters
    ----------
    agent_type : AgentType
        The seat whose configuration names this plug-in.
    config : OrchestratorConfig
        The whole run's; momentum needs none of it.
    rules : Policy
        How the seat would think by rules.

    Raises
    ------
    ConfigError
        For any seat but the technical one.
    """
    if agent_type != "technical":
        raise ConfigError(f"momentum is read off bars: it thinks for the technical agent, not for {agent_type}")
    return Momentum(rules)


class Momentum:
    """A `Policy` of one score: the return of a year without its last month, in standard deviations.

    Notes
    -----
    score = ln(P[t-21] / P[t-252]) / (s·√231) with s the standard deviation of the daily log returns in between. Its sign
    is the side (Moskowitz, Ooi and Pedersen, Journal of Financial Economics, 2012).
    """

    agent_type: AgentType = "technical"
    name = "momentum"
    reads_experiences = False
    waits = False
    prompt_hash: str | None = None

    def __init__(self, rules: Policy) -> None:
        self._rules = rules

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request; where the rules abstain or a year of bars is not known, the answer is an abstention."""
        return [
            facts if facts.abstained else self._opinion(facts, request)
            for facts, request in zip(self._rules.decide_many(requests), requests, strict=True)
        ]

    def _opinion(self, facts: AgentOutput, request: PolicyRequest) -> AgentOutput:
        close = request.snapshot.bars.close
        if len(close) <= LOOKBACK:
            reason = f"{len(close)} bars are known, momentum needs {LOOKBACK + 1}"
            return abstain(self.agent_type, facts.symbol, facts.as_of, reason, self.name)
        score = _score(np.log(close[-LOOKBACK - 1 : -SKIPPED]))
        if score is None:
            reason = "the price did not move for a year"
            return abstain(self.agent_type, facts.symbol, facts.as_of, reason, self.name)
        side = 0 if abs(score) < SIDE else (1 if score > 0 else -1)
        word = ("sell", "hold", "buy")[side + 1]
        strength = clip((abs(score) - SIDE) / (2 * STRONG - SIDE), 0.0, 1.0) if side else 0.0
        tone = "risen" if score > 0 else "fallen"
        grade = "clearly" if abs(score) >= STRONG else "noticeably" if side else "hardly"
        return facts.model_copy(
            update={
                "recommendation": f"strong_{word}" if side and abs(score) >= STRONG else word,
                "signal": word,
                "confidence": figure(LEAST_CONFIDENCE + (MOST_CONFIDENCE - LEAST_CONFIDENCE) * strength),
                "p_correct": None,
                "signals": {**facts.signals, "momentum_of_a_year": figure(math.tanh(score))},
                "reasoning": (
                    f"Measured by its usual moves the price has {grade} {tone} over the last year without its last month; "
                    f"returns of that span tend to go on for a while. Recommendation {word.replace('_', ' ')}."
                ),
                "policy": self.name,
            }
        )


def _score(logs: np.ndarray) -> float | None:
    """Return the return of a span of log prices in standard deviations, None where nothing moved."""
    spread = float(np.diff(logs).std())
    if spread < 1e-12:
        return None
    return float(logs[-1] - logs[0]) / (spread * math.sqrt(len(logs) - 1))
