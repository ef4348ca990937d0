"""The risk gates: what stands between a decision and an order, in a fixed order, each a pure function of the state.

Every clamp and every rejection is an event that says which gate acted, what it changed and why. The gates know
nothing of agents and cannot be talked round by a confident one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestration.execution.portfolio import Portfolio
from utils.schema import Side
from utils.setting_sections import ExecutionSettings, RiskSettings


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a decision asks for, in terms of the whole holding.

    Attributes
    ----------
    target_weight : float
        Share of equity to hold afterwards, 0..1; ignored for the sell side, which closes the holding.
    blocked : str or None
        Why the decision may not trade at all (abstention, stale data, fatal finding).
    """

    symbol: str
    side: Side
    target_weight: float
    price: float
    blocked: str | None = None


@dataclass(frozen=True, slots=True)
class Clamp:
    """One gate's action; weights are shares of equity."""

    gate: str
    action: Literal["clamp", "reject"]
    before: float
    after: float
    reason: str


@dataclass(frozen=True, slots=True)
class RiskDecision:
    """The shares to trade (0: no order) and what the gates did to get there."""

    side: Side
    quantity: float
    clamps: tuple[Clamp, ...] = ()


class RiskGate:
    """Checks proposals against the limits of `RiskSettings`."""

    def __init__(self, risk: RiskSettings, execution: ExecutionSettings) -> None:
        self._risk = risk
        self._execution = execution

    def check(self, proposal: Proposal, portfolio: Portfolio, reserved: float) -> RiskDecision:
        """Decide on one proposal.

        Parameters
        ----------
        proposal : Proposal
        portfolio : Portfolio
            Marked at the present instant.
        reserved : float
            USD that orders accepted earlier in this instant will spend.
        """
        equity = portfolio.value()
        held = portfolio.held(proposal.symbol)
        weight = held * proposal.price / equity if equity > 0 else 0.0
        if proposal.side == "sell":
            if proposal.blocked:
                return self._refuse(proposal, "unfit", weight, proposal.blocked)
            return RiskDecision("sell", held)
        if portfolio.halted:
            return self._refuse(proposal, "halt", proposal.target_weight, "the kill switch is on: reductions only")
        loss = 1 - equity / portfolio.session_start_equity if portfolio.session_start_equity > 0 else 0.0
        if loss >= self._risk.max_daily_loss:
            reason = f"the portfolio lost {loss:.2%} since the last session: reductions only until the next"
            return self._refuse(proposal, "daily_loss", proposal.target_weight, reason)
        if proposal.blocked:
            return self._refuse(proposal, "unfit", proposal.target_weight, proposal.blocked)
        if equity <= 0:
            return self._refuse(proposal, "gross_leverage", proposal.target_weight, "there is no equity to buy with")
        return self._buy(proposal, portfolio, equity, weight, reserved)

    def _buy(
        self, proposal: Proposal, portfolio: Portfolio, equity: float, weight: float, reserved: float
    ) -> RiskDecision:
        """Clamp a purchase to size, concentration and leverage, and leave small differences alone."""
        clamps: list[Clamp] = []
        target = proposal.target_weight
        for gate, limit, reason in (
            ("position_size", self._risk.max_position_size, "largest position a decision may ask for"),
            ("symbol_concentration", self._risk.max_symbol_concentration, "largest share of one symbol"),
        ):
            if target > limit:
                clamps.append(Clamp(gate, "clamp", target, limit, reason))
                target = limit
        if target - weight <= self._execution.rebalance_band * target:
            return RiskDecision("buy", 0.0, tuple(clamps))
        # the order fills at a price not yet known: leave room for its costs
        room = (self._risk.max_gross_leverage * equity - (equity - portfolio.cash) - reserved) / equity
        room = max(0.0, min(room, (portfolio.cash - reserved) / equity) - 2 * self._execution.one_way_cost)
        wanted = target - weight
        if wanted > room:
            clamps.append(Clamp("gross_leverage", "clamp", wanted, room, "cash and leverage allow no more"))
            wanted = room
        quantity = float(int(wanted * equity / proposal.price))
        return RiskDecision("buy", quantity, tuple(clamps))

    def _refuse(self, proposal: Proposal, gate: str, before: float, reason: str) -> RiskDecision:
        return RiskDecision(proposal.side, 0.0, (Clamp(gate, "reject", before, 0.0, reason),))
