"""The portfolio: the fold of its event log, and nothing else.

`Ledger.record` is the only way to change it: an event is chained to the one before, applied, and kept until the cycle
that made it is committed. Loading the log and folding it gives the same portfolio, to the last bit.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from data_pipeline.library.portfolio_log import GENESIS, PortfolioEvent, PositionRow
from utils.clock import isoformat
from utils.ids import derived_uuid
from utils.schema import EventKind, Order


@dataclass(frozen=True, slots=True)
class Position:
    """Shares of one symbol; `avg_price` and `stop_loss`, `take_profit` in USD a share."""

    symbol: str
    quantity: float = 0.0
    avg_price: float = 0.0
    realised_pnl: float = 0.0
    stop_loss: float | None = None
    take_profit: float | None = None


@dataclass(frozen=True, slots=True)
class Trade:
    """One fill; a sale has the return on what the shares had cost, commissions included (fraction)."""

    at: datetime
    symbol: str
    action: str
    net_return: float | None


@dataclass
class Portfolio:
    """Cash, positions, open orders and marks; changed only by `apply`.

    Attributes
    ----------
    cash, equity, peak_equity, session_start_equity : float
        USD. `equity` is that of the last mark.
    halted : bool
        Whether the kill switch or the drawdown gate allows reductions only.
    trades : list of Trade
        Every fill, in order.
    order_ids : set of str
        Every order ever accepted: an order is placed once, however often it is sent.
    """

    cash: float = 0.0
    positions: dict[str, Position] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)
    equity: float = 0.0
    peak_equity: float = 0.0
    session_start_equity: float = 0.0
    halted: bool = False
    marked_at: datetime | None = None
    equity_curve: list[tuple[datetime, float]] = field(default_factory=list)
    trades: list[Trade] = field(default_factory=list)
    costs_usd: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    order_ids: set[str] = field(default_factory=set)

    def held(self, symbol: str) -> float:
        """Return the shares held."""
        position = self.positions.get(symbol)
        return position.quantity if position else 0.0

    def value(self) -> float:
        """Return cash plus every position at its last price, USD."""
        return self.cash + sum(p.quantity * self.prices[p.symbol] for p in list(self.positions.values()) if p.quantity)

    def revalue(self, closes: Mapping[str, float]) -> None:
        """Look at an instant's closes before its mark records them: the gates act on today's prices.

        Sets exactly what that mark will set, so that the fold of the log stays the portfolio.
        """
        self.prices.update({symbol: close for symbol, close in closes.items() if self.held(symbol)})
        self.session_start_equity = self.equity

    def weights(self) -> dict[str, float]:
        """Return the share of equity that each held symbol has."""
        equity = self.value()
        return {
            p.symbol: p.quantity * self.prices[p.symbol] / equity
            for p in self.positions.values()
            if p.quantity and equity > 0
        }

    def apply(self, event: PortfolioEvent) -> None:
        """Fold one event in."""
        self.counts[event.kind] = self.counts.get(event.kind, 0) + 1
        getattr(self, f"_on_{event.kind}")(event.payload, event.as_of)

    def _on_cash(self, p: dict[str, Any], at: datetime) -> None:
        self.cash += p["amount"]
        if p["reason"] == "initial":
            self.equity = self.peak_equity = self.session_start_equity = p["amount"]

    def _on_order(self, p: dict[str, Any], at: datetime) -> None:
        self.order_ids.add(p["order_id"])
        self.orders[p["order_id"]] = Order(
            p["order_id"], p["symbol"], p["side"], p["quantity"], at, p["stop_loss"], p["take_profit"]
        )

    def _on_cancel(self, p: dict[str, Any], at: datetime) -> None:
        self.orders.pop(p["order_id"], None)

    def _on_fill(self, p: dict[str, Any], at: datetime) -> None:
        symbol, quantity, price = p["symbol"], p["quantity"], p["price"]
        self.costs_usd += p["commission"] + p["spread"] + p["slippage"]
        position = self.positions.get(symbol, Position(symbol))
        order = self.orders.pop(p["order_id"], None) if p["reason"] == "open" else None
        closed: float | None = None
        if p["side"] == "buy":
            total = position.quantity + quantity
            paid = position.quantity * position.avg_price + quantity * price + p["commission"]
            self.cash -= quantity * price + p["commission"]
            position = replace(position, quantity=total, avg_price=paid / total)
            if order is not None:
                position = replace(position, stop_loss=order.stop_loss, take_profit=order.take_profit)
        else:
            profit = quantity * (price - position.avg_price) - p["commission"]
            self.cash += quantity * price - p["commission"]
            closed = profit / (quantity * position.avg_price) if position.avg_price > 0 else None
            remaining = position.quantity - quantity
            position = replace(position, quantity=remaining, realised_pnl=position.realised_pnl + profit)
            if remaining <= 0:
                position = replace(position, quantity=0.0, avg_price=0.0, stop_loss=None, take_profit=None)
        self.positions[symbol] = position
        self.trades.append(Trade(at, symbol, p["side"] if p["reason"] == "open" else p["reason"], closed))
        self.prices.setdefault(symbol, price)

    def _on_split(self, p: dict[str, Any], at: datetime) -> None:
        symbol, ratio = p["symbol"], p["ratio"]
        if position := self.positions.get(symbol):
            self.positions[symbol] = replace(
                position,
                quantity=position.quantity * ratio,
                avg_price=position.avg_price / ratio,
                stop_loss=_divided(position.stop_loss, ratio),
                take_profit=_divided(position.take_profit, ratio),
            )
        if symbol in self.prices:
            self.prices[symbol] /= ratio
        for order_id, order in list(self.orders.items()):
            if order.symbol == symbol:
                self.orders[order_id] = replace(
                    order,
                    quantity=order.quantity * ratio,
                    stop_loss=_divided(order.stop_loss, ratio),
                    take_profit=_divided(order.take_profit, ratio),
                )

    def _on_dividend(self, p: dict[str, Any], at: datetime) -> None:
        self.cash += p["amount"]

    def _on_mark(self, p: dict[str, Any], at: datetime) -> None:
        self.prices.update(p["prices"])
        self.session_start_equity = self.equity
        self.equity = p["equity"]
        self.peak_equity = max(self.peak_equity, self.equity)
        self.marked_at = at
        self.equity_curve.append((at, self.equity))

    def _on_halt(self, p: dict[str, Any], at: datetime) -> None:
        self.halted = True

    def _on_resume(self, p: dict[str, Any], at: datetime) -> None:
        self.halted = False
        self.peak_equity = self.equity

    def _on_clamp(self, p: dict[str, Any], at: datetime) -> None:
        """A clamp is a record; the order that follows carries its effect."""

    def _on_reject(self, p: dict[str, Any], at: datetime) -> None:
        """A rejection is a record; nothing follows."""


def _divided(price: float | None, ratio: float) -> float | None:
    return None if price is None else price / ratio


class Ledger:
    """A portfolio and the events since the last commit.

    Parameters
    ----------
    run_id : str
        Event identities derive from it and from the event's place in the log.
    history : iterable of PortfolioEvent
        The log so far, verified.
    """

    def __init__(self, run_id: str, history: Iterable[PortfolioEvent] = ()) -> None:
        self._run_id = run_id
        self.portfolio = Portfolio()
        self._head = GENESIS
        self._length = 0
        self._pending: list[PortfolioEvent] = []
        self._touched: set[str] = set()
        for event in history:
            self._advance(event)

    def record(self, kind: EventKind, as_of: datetime, **payload: Any) -> PortfolioEvent:
        """Append an event and apply it."""
        event_id: uuid.UUID = derived_uuid(self._run_id, "event", self._length, kind, isoformat(as_of))
        event = PortfolioEvent.chained(event_id, kind, as_of, payload, self._head)
        self._advance(event)
        self._pending.append(event)
        if kind in ("fill", "split"):
            self._touched.add(payload["symbol"])
        return event

    def take_pending(self) -> tuple[list[PortfolioEvent], list[PositionRow]]:
        """Return the events since the last call and the positions they touched."""
        rows = [
            PositionRow(p.symbol, p.quantity, p.avg_price, p.realised_pnl)
            for symbol in sorted(self._touched)
            if (p := self.portfolio.positions.get(symbol))
        ]
        events, self._pending = self._pending, []
        self._touched.clear()
        return events, rows

    def _advance(self, event: PortfolioEvent) -> None:
        self.portfolio.apply(event)
        self._head = event.hash
        self._length += 1
