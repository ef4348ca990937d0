"""What an output is held against: the market and the portfolio as they were known when the output was made.

Built by whoever made the output (the coordinator, a harness, a person), read by every detector. It never holds anything
that became known later, but for `recommendation`, which only people and harnesses that know the right call may set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from utils.schema import AgentOutput, MarketSnapshot, PortfolioState


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Facts as of one output; whatever is missing leaves the rules that need it unchecked.

    Attributes
    ----------
    snapshot : MarketSnapshot, optional
        Bars, news, filings and regime inputs as of the output.
    agent_outputs : mapping of str to AgentOutput
        For the strategist: the outputs it was given.
    workflow : sequence of mapping
        The steps of the decision; one that names ``conflict`` says how a conflict was resolved.
    portfolio : PortfolioState, optional
        Before any order of the decision.
    market_open : bool, optional
        Whether the exchange was open.
    indicators : mapping of str to float
        Indicator values known to be right; they go before recomputation from the bars.
    sectors : mapping of str to str
        Sector by ticker, the output's own symbol among them.
    recommendation : str, optional
        The right call, where somebody knows it.
    """

    snapshot: MarketSnapshot | None = None
    agent_outputs: Mapping[str, AgentOutput] = field(default_factory=dict)
    workflow: Sequence[Mapping[str, Any]] = ()
    portfolio: PortfolioState | None = None
    market_open: bool | None = None
    indicators: Mapping[str, float] = field(default_factory=dict)
    sectors: Mapping[str, str] = field(default_factory=dict)
    recommendation: str | None = None

    @classmethod
    def of(cls, given: GroundTruth | Mapping[str, Any] | None) -> GroundTruth:
        """Return the ground truth that was given, from a mapping with the names of the attributes, or an empty one.

        Raises
        ------
        ValueError
            For a key that names no attribute.
        """
        if given is None:
            return cls()
        if isinstance(given, GroundTruth):
            return given
        known = {item.name for item in fields(cls)}
        for key in given:
            if key not in known:
                raise ValueError(f"ground_truth has the key {key!r}; known are {', '.join(sorted(known))}")
        return cls(**given)
