"""What trading is made of: the decision on a symbol, orders, fills, and the outcome when the horizon has passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal

from utils.clock import isoformat
from utils.schema.agents import AgentOutput, StrategistOutput, ValidatorOutput

Side = Literal["buy", "sell"]
EventKind = Literal["order", "clamp", "reject", "fill", "cancel", "mark", "cash", "split", "dividend", "halt", "resume"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the system makes of one symbol at one instant: the strategist's output and the juniors' behind it.

    `validator` is the view that stood for conflicting juniors, None where it was not asked; `workflow` is the trace of how
    the decision came about, see `orchestration.workflow_state`.
    """

    decision_id: str
    symbol: str
    as_of: datetime
    regime: str
    strategist: StrategistOutput
    agents: dict[str, AgentOutput]
    snapshot_hash: str
    workflow: list[dict[str, Any]] = field(default_factory=list)
    validator: ValidatorOutput | None = None

    def canonical(self) -> dict[str, Any]:
        """Return the fields of the decisions file: nothing that differs between two runs on equal inputs."""
        s = self.strategist
        return {
            "as_of": isoformat(self.as_of),
            "symbol": self.symbol,
            "recommendation": s.recommendation,
            "confidence": s.confidence,
            "abstained": s.abstained,
            "position_size": s.position_size,
            "entry_target": s.entry_target,
            "stop_loss": s.stop_loss,
            "take_profit": s.take_profit,
            "regime": self.regime,
            "agents": {
                name: {
                    "recommendation": out.recommendation,
                    "confidence": out.confidence,
                    "abstained": out.abstained,
                    "policy": out.policy,
                }
                for name, out in sorted(self.agents.items())
            },
        }


@dataclass(frozen=True, slots=True)
class Order:
    """A market order for the next open. `quantity` in shares; stop and target are prices in USD."""

    order_id: str
    symbol: str
    side: Side
    quantity: float
    as_of: datetime
    stop_loss: float | None = None
    take_profit: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a symbol over the horizon after a decision; returns are fractions.

    `actual_return` is the instrument's (from the next open to the horizon's close, dividends included), whatever side
    was taken; `max_drawdown` (≤ 0) is its worst fall from a peak within, `max_rise` (≥ 0) its best rise from a trough,
    which is the drawdown of a short position. `costs` is what a round trip costs as a fraction of its value.
    """

    decision_id: str
    symbol: str
    as_of: datetime
    matured_at: datetime
    horizon_sessions: int
    entry_session: date
    actual_return: float
    benchmark_return: float
    max_drawdown: float
    max_rise: float
    costs: float
    volatility: float


@dataclass(frozen=True, slots=True)
class PortfolioState:
    """What the strategist, and whoever checks its work, may know of the portfolio.

    Attributes
    ----------
    equity, cash : float
        USD.
    weights : mapping of str to float
        Held share of equity by symbol, 0..1.
    """

    equity: float
    cash: float
    weights: Mapping[str, float] = field(default_factory=dict)
