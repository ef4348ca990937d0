"""The paper broker: fills orders at the next open and works stops and targets inside the bar, with costs.

Market orders pay half the spread and slippage; a stop that is gapped fills at the open; where a bar touches both stop
and target, the stop is assumed to come first. Orders live for one session: what the participation cap leaves over, or
what finds no bar, is cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from orchestration.execution.portfolio import Ledger
from utils.ids import derived_id
from utils.schema import Bar, CorporateAction, Order, Side
from utils.setting_sections import ExecutionSettings


class PaperBroker:
    """Executes against bars and records what happened in a ledger.

    Parameters
    ----------
    ledger : Ledger
        Holds the portfolio and its open orders.
    settings : ExecutionSettings
        Costs and participation.
    run_id : str
        Fill identities derive from it.
    """

    def __init__(self, ledger: Ledger, settings: ExecutionSettings, run_id: str) -> None:
        self._ledger = ledger
        self._settings = settings
        self._run_id = run_id

    def open_account(self, as_of: datetime) -> None:
        """Pay in the initial cash unless the log has begun already."""
        if not self._ledger.portfolio.counts:
            self._ledger.record("cash", as_of, amount=self._settings.initial_cash, reason="initial")

    def submit(self, order: Order) -> None:
        """Accept a market order for the next session's open; one that was ever accepted before changes nothing."""
        if order.order_id in self._ledger.portfolio.order_ids:
            return
        self._ledger.record(
            "order",
            order.as_of,
            order_id=order.order_id,
            symbol=order.symbol,
            side=order.side,
            quantity=order.quantity,
            stop_loss=order.stop_loss,
            take_profit=order.take_profit,
        )

    def process_session(
        self, bars: Mapping[str, Bar], actions: Mapping[str, list[CorporateAction]], at: datetime
    ) -> None:
        """Take one session's bars in: corporate actions, fills at the open, stops and targets, cancellations.

        Parameters
        ----------
        bars : mapping of symbol to Bar
            Of the session that has just closed.
        actions : mapping of symbol to list of CorporateAction
            Effective in it.
        at : datetime
            The close of the session.
        """
        portfolio = self._ledger.portfolio
        for symbol in sorted(actions):
            for action in actions[symbol]:
                self._corporate_action(action, bars[symbol].open_time if symbol in bars else at)
        capacity = {symbol: float(int(bar.volume * self._settings.participation)) for symbol, bar in bars.items()}
        for order in sorted(portfolio.orders.values(), key=lambda o: (o.symbol, o.order_id)):
            bar = bars.get(order.symbol)
            if bar is None:
                self._cancel(order, order.quantity, at, "no bar in the session")
                continue
            affordable = self._affordable(order, bar.open)
            quantity = min(order.quantity, capacity[order.symbol], affordable)
            if quantity > 0:
                capacity[order.symbol] -= quantity
                self._fill(order.order_id, order.symbol, order.side, quantity, bar.open, bar.open_time, "open")
            if quantity < order.quantity:
                reason = (
                    "cash does not suffice at the open"
                    if quantity == affordable
                    else "participation cap of the bar's volume"
                )
                self._cancel(order, order.quantity - quantity, bar.open_time, reason)
        for symbol in sorted(bars):
            self._protect(bars[symbol], capacity[symbol])

    def mark(self, closes: Mapping[str, float], at: datetime) -> None:
        """Value the portfolio at the closes; the event that ends a cycle."""
        portfolio = self._ledger.portfolio
        prices = {
            symbol: closes[symbol]
            for symbol in sorted(portfolio.positions)
            if symbol in closes and portfolio.held(symbol)
        }
        held_at = {**portfolio.prices, **prices}
        equity = portfolio.cash + sum(
            p.quantity * held_at[p.symbol] for p in portfolio.positions.values() if p.quantity
        )
        self._ledger.record("mark", at, equity=equity, cash=portfolio.cash, prices=prices)

    def _affordable(self, order: Order, price: float) -> float:
        """Return the shares that the cash pays for: a gap up overnight must not buy on credit."""
        if order.side == "sell":
            return self._ledger.portfolio.held(order.symbol)
        executed = price * (1 + (self._settings.half_spread_bps + self._settings.slippage_bps) / 1e4)
        unit = executed * (1 + self._settings.commission_bps / 1e4)
        return float(int(max(0.0, self._ledger.portfolio.cash) / unit))

    def _protect(self, bar: Bar, capacity: float) -> None:
        """Work stop and target of a held position inside the bar."""
        position = self._ledger.portfolio.positions.get(bar.symbol)
        if position is None or position.quantity <= 0 or capacity <= 0:
            return
        quantity = min(position.quantity, capacity)
        order_id = f"{bar.symbol}-{bar.session.isoformat()}"
        if position.stop_loss is not None and bar.low <= position.stop_loss:
            self._fill(
                f"stop-{order_id}",
                bar.symbol,
                "sell",
                quantity,
                min(bar.open, position.stop_loss),
                bar.event_time,
                "stop_loss",
            )
        elif position.take_profit is not None and bar.high >= position.take_profit:
            price = max(bar.open, position.take_profit)
            self._fill(f"take-{order_id}", bar.symbol, "sell", quantity, price, bar.event_time, "take_profit")

    def _fill(
        self, order_id: str, symbol: str, side: Side, quantity: float, price: float, at: datetime, reason: str
    ) -> None:
        """Record a fill; a take-profit is a limit order and pays no spread or slippage."""
        sign = 1 if side == "buy" else -1
        spread = slippage = 0.0
        if reason != "take_profit":
            spread = price * self._settings.half_spread_bps / 1e4
            slippage = price * self._settings.slippage_bps / 1e4
        executed = price + sign * (spread + slippage)
        self._ledger.record(
            "fill",
            at,
            fill_id=derived_id(self._run_id, "fill", order_id, reason),
            order_id=order_id if reason == "open" else None,
            symbol=symbol,
            side=side,
            quantity=quantity,
            price=executed,
            commission=quantity * executed * self._settings.commission_bps / 1e4,
            spread=quantity * spread,
            slippage=quantity * slippage,
            reason=reason,
        )

    def _cancel(self, order: Order, quantity: float, at: datetime, reason: str) -> None:
        self._ledger.record(
            "cancel", at, order_id=order.order_id, symbol=order.symbol, quantity=quantity, reason=reason
        )

    def _corporate_action(self, action: CorporateAction, at: datetime) -> None:
        portfolio = self._ledger.portfolio
        held = portfolio.held(action.symbol)
        waiting = any(order.symbol == action.symbol for order in portfolio.orders.values())
        if action.kind == "split" and (held or waiting):
            self._ledger.record("split", at, symbol=action.symbol, ratio=action.value)
        elif action.kind == "dividend" and held:
            self._ledger.record(
                "dividend", at, symbol=action.symbol, per_share=action.value, amount=held * action.value
            )
