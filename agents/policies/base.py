"""The seam between what an agent is responsible for and how it thinks.

A policy is a pure function of what it is handed: it never asks for the time, the market or the network on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from utils.market_regime_detector import RegimeDetection
from utils.schema import AgentOutput, AgentType, MarketSnapshot, PortfolioState


@dataclass(frozen=True, slots=True)
class PastExperience:
    """What came of an earlier opinion of the same agent in a market like this one.

    Attributes
    ----------
    trajectory_id : str
    similarity : float
        Cosine similarity of the two states, -1..1.
    symbol, market_regime, recommendation : str
    confidence : float
        0..1, as stated then.
    success : bool
        Whether the call came true.
    reward, actual_return : float
        On the reward's own scale; return of the instrument as a fraction.
    """

    trajectory_id: str
    similarity: float
    symbol: str
    market_regime: str
    recommendation: str
    confidence: float
    success: bool
    reward: float
    actual_return: float


@dataclass(frozen=True, slots=True)
class PolicyRequest:
    """One question to a policy.

    The snapshot, its regime, for the strategist the juniors' outputs and the portfolio, and what the agent has lived through
    in markets like this (empty where nothing is known or nobody asked).
    """

    snapshot: MarketSnapshot
    regime: RegimeDetection
    agent_outputs: Mapping[str, AgentOutput] = field(default_factory=dict)
    portfolio: PortfolioState | None = None
    experiences: tuple[PastExperience, ...] = ()


class Policy(Protocol):
    """Answers requests for one agent type.

    Failure contract: one answer a request, in order; where the data does not suffice the answer is an abstention with
    its reason. A broken provider or model raises `ProviderError` for the whole batch, and the caller falls back to
    rules. Equal requests give equal answers.

    Attributes
    ----------
    agent_type : AgentType
        The agent it thinks for.
    reads_experiences : bool
        Whether `PolicyRequest.experiences` makes a difference to it; searching for them costs time.
    name : str
        ``rules``, ``local:<version>``, ``<provider>:<model>``; written into every output.
    waits : bool
        True where the answer comes from a server: such a policy is asked about each symbol apart and beside others, from
        several threads, and its answers are worth keeping across a crash. One that computes is asked about all symbols
        at once.
    prompt_hash : str or None
        SHA-256 of the system prompt that it asks a hosted model with, part of what a kept answer is an answer to; None
        where there is none.
    """

    agent_type: AgentType
    name: str
    reads_experiences: bool
    waits: bool
    prompt_hash: str | None

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request."""
        ...


@runtime_checkable
class SamplingPolicy(Policy, Protocol):
    """A policy that can be asked for other answers than its usual one.

    Failure contract: as `Policy`; equal random states give equal answers, temperature 0 the usual one.
    """

    def sample(self, request: PolicyRequest, temperature: float, random_state: int) -> AgentOutput:
        """Answer a request with more variety the higher the temperature."""
        ...


def waits(policy: Policy) -> bool:
    """Return whether a policy waits on a server; one that does not say computes."""
    return bool(getattr(policy, "waits", False))
