"""Feeds the metrics of trading from the portfolio's own counters, so that no fill is missed and none counted twice."""

from __future__ import annotations

from orchestration.execution.portfolio import Ledger
from utils.telemetry import Telemetry


class TradeMetrics:
    """Turns what is new in a ledger since the last look into metrics."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._seen = 0

    def update(self, ledger: Ledger) -> None:
        """Report the trades since the last call; a recovered ledger may lack the newest, which then come again."""
        trades = ledger.portfolio.trades
        self._seen = min(self._seen, len(trades))
        for trade in trades[self._seen :]:
            self._telemetry.count("trades_executed_total", symbol=trade.symbol, action=trade.action)
            if trade.net_return is not None:
                self._telemetry.observe("trade_returns", trade.net_return, symbol=trade.symbol)
        self._seen = len(trades)
