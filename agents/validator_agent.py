"""The validator's seat: the analysts' outputs in, one view that stands for those in conflict out, whatever policy thinks.

The coordinator calls `decide_many` where the workflow asks for it; people call `analyze`. It always exists: there is
nothing to enable, and its rules need no provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from agents.base_agent import NO_BARS, Agent
from agents.conflicts.detection import opinions
from agents.conflicts.resolution import ResolutionContext
from agents.policies.base import PolicyRequest
from utils.errors import DataUnavailable
from utils.hashing import content_hash
from utils.schema import AgentOutput, AgentType, MarketSnapshot, RegimeInputs


class ValidatorAgent(Agent):
    """From conflicting opinions to one."""

    agent_type: AgentType = "validator"

    def analyze(
        self, outputs: Mapping[str, AgentOutput], state: Any = None, *, as_of: datetime | None = None
    ) -> AgentOutput:
        """Resolve the conflicts among outputs of one symbol.

        Parameters
        ----------
        outputs : mapping of str to AgentOutput
            By agent; at least one.
        state : MarketSnapshot, ResolutionContext, RegimeInputs or mapping, optional
            The market in which they were given; a calm one by default. A mapping may hold volatility, trend_strength and
            news_impact as in `RegimeInputs`.
        as_of : datetime, optional
            Decision time; that of the outputs by default.

        Raises
        ------
        DataUnavailable
            Without any output.
        """
        if not outputs:
            raise DataUnavailable("outputs: there is nothing to validate; give at least one agent's output")
        snapshot = state if isinstance(state, MarketSnapshot) else _without_market(outputs, state, as_of)
        return self.decide_many([self.question(snapshot, outputs)])[0]

    def question(self, snapshot: MarketSnapshot, outputs: Mapping[str, AgentOutput]) -> PolicyRequest:
        """Return the request that asks for a view of outputs."""
        return replace(self.request(snapshot), agent_outputs=dict(outputs))


def _without_market(outputs: Mapping[str, AgentOutput], state: Any, as_of: datetime | None) -> MarketSnapshot:
    """Return a snapshot that knows nothing but the regime's inputs."""
    any_output = next(iter((opinions(outputs) or dict(sorted(outputs.items()))).values()))
    at = as_of or max(output.as_of for output in outputs.values())
    market = ResolutionContext.of(state)
    inputs = RegimeInputs(market.volatility, market.trend_strength, market.news_impact, 0.0)
    digest = content_hash({"symbol": any_output.symbol, "as_of": at.isoformat(), "bars": 0})
    return MarketSnapshot(any_output.symbol, at, at.date(), NO_BARS, (), (), inputs, True, digest)
