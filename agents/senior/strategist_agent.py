"""The strategist's seat: the juniors' opinions in, a decision with size and levels out, whatever policy thinks.

The coordinator calls `decide_many`; people call `analyze`; pairwise training calls `synthesize` for variants of one
decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from agents.base_agent import Agent
from agents.policies.base import PolicyRequest, SamplingPolicy
from utils.errors import ConfigError
from utils.schema import AgentOutput, AgentType, MarketSnapshot, PortfolioState


class StrategistAgent(Agent):
    """From opinions to a decision."""

    agent_type: AgentType = "strategist"

    def analyze(
        self,
        symbol: str,
        agent_outputs: Mapping[str, AgentOutput],
        portfolio_state: PortfolioState | Mapping[str, Any] | None = None,
        market_data: MarketSnapshot | None = None,
        *,
        as_of: datetime | None = None,
    ) -> AgentOutput:
        """Decide on one symbol.

        Parameters
        ----------
        symbol : str
        agent_outputs : mapping of str to AgentOutput
            By agent.
        portfolio_state : PortfolioState or mapping, optional
            A mapping has `equity`, `cash` (USD) and `weights` (share of equity by symbol). Without it the decision
            knows nothing of holdings, and may sell what is not held.
        market_data : MarketSnapshot, optional
            None asks the agent's source of snapshots.
        as_of : datetime, optional
            Decision time; None is the latest instant of the data.
        """

        def asked(snapshot: MarketSnapshot) -> PolicyRequest:
            return self._strategy_request(snapshot, agent_outputs, portfolio_state)

        if market_data is not None:
            return self.decide_many([asked(market_data)])[0]
        return self._ask(symbol, as_of, asked)

    def synthesize(
        self,
        symbol: str,
        agent_outputs: Mapping[str, AgentOutput],
        portfolio_state: PortfolioState | Mapping[str, Any] | None = None,
        temperature: float = 0.7,
        random_state: int = 42,
        *,
        market_data: MarketSnapshot | None = None,
        as_of: datetime | None = None,
    ) -> AgentOutput:
        """Return one variant of the decision, the same for the same `random_state`; at temperature 0 the decision itself.

        Raises
        ------
        ConfigError
            If the policy in charge has but one answer.
        """
        policy = self.policy
        if not isinstance(policy, SamplingPolicy):
            raise ConfigError(f"policy {policy.name} cannot be sampled; use rules or a policy with sample()")
        snapshot = market_data if market_data is not None else self.snapshot(symbol, as_of)
        return policy.sample(
            self._strategy_request(snapshot, agent_outputs, portfolio_state), temperature, random_state
        )

    def _strategy_request(
        self,
        snapshot: MarketSnapshot,
        agent_outputs: Mapping[str, AgentOutput],
        portfolio_state: PortfolioState | Mapping[str, Any] | None,
    ) -> PolicyRequest:
        return replace(self.request(snapshot), agent_outputs=dict(agent_outputs), portfolio=_portfolio(portfolio_state))


def _portfolio(state: PortfolioState | Mapping[str, Any] | None) -> PortfolioState | None:
    if state is None or isinstance(state, PortfolioState):
        return state
    unknown = set(state) - {"equity", "cash", "weights"}
    if unknown or not {"equity", "cash"} <= set(state):
        raise ValueError(f"portfolio_state needs equity, cash and weights, got {', '.join(sorted(map(str, state)))}")
    weights = {str(name): float(weight) for name, weight in (state.get("weights") or {}).items()}
    return PortfolioState(float(state["equity"]), float(state["cash"]), weights)
