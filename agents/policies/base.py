"""The seam between what an agent is responsible for and how it thinks.

A policy is a pure function of what it is handed: it never asks for the time, the market or the network on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from utils.market_regime_detector import RegimeDetection
from utils.schema import AgentOutput, AgentType, MarketSnapshot, PortfolioState


@dataclass(frozen=True, slots=True)
class PolicyRequest:
    """One question to a policy: the snapshot, its regime, and for the strategist the juniors' outputs."""

    snapshot: MarketSnapshot
    regime: RegimeDetection
    agent_outputs: Mapping[str, AgentOutput] = field(default_factory=dict)
    portfolio: PortfolioState | None = None


class Policy(Protocol):
    """Answers requests for one agent type.

    Failure contract: one answer a request, in order; where the data does not suffice the answer is an abstention with
    its reason. A broken provider or model raises `ProviderError` for the whole batch, and the caller falls back to
    rules. Equal requests give equal answers.

    Attributes
    ----------
    agent_type : AgentType
        The agent it thinks for.
    name : str
        ``rules``, ``local:<version>``, ``<provider>:<model>``; written into every output.
    """

    agent_type: AgentType
    name: str

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request."""
        ...
