"""The technical analyst's seat: bars in, a `TechnicalOutput` out, whatever policy thinks.

The coordinator calls `decide_many`, people call `analyze`. A short period never starves the indicators of their warm-up.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from agents.base_agent import Agent, Variation, narrowed
from agents.policies.base import PolicyRequest
from utils.schema import AgentOutput, AgentType, BarWindow, MarketSnapshot

PERIOD_BARS = {"1mo": 21, "3mo": 63, "6mo": 126, "1y": 252, "2y": 504, "5y": 1260, "max": None}
"""Sessions of a period; None for all that is known."""

WARM_UP_BARS = 252
"""Fewest bars an analysis looks at if they are known: the longest average and the recursive ones have settled by then."""

INTERVAL = "1d"


class TechnicalAgent(Agent):
    """Indicators, trend and levels."""

    agent_type: AgentType = "technical"

    def analyze(
        self, symbol: str, period: str = "3mo", interval: str = INTERVAL, *, as_of: datetime | None = None
    ) -> AgentOutput:
        """Analyse one symbol.

        Parameters
        ----------
        symbol : str
        period : str
            One of `PERIOD_BARS`: how far back to look, though never less than `WARM_UP_BARS`.
        interval : str
            ``1d``: snapshots hold daily bars.
        as_of : datetime, optional
            Decision time; None is the latest instant of the data.

        Raises
        ------
        ValueError
            If period or interval is none that is known.
        """
        if interval != INTERVAL:
            raise ValueError(f"interval {interval!r}: snapshots hold daily bars, so it must be {INTERVAL}")
        if period not in PERIOD_BARS:
            raise ValueError(f"period {period!r} is none of {', '.join(PERIOD_BARS)}")
        return self._ask(symbol, as_of, lambda snapshot: self.request(_recent(snapshot, PERIOD_BARS[period])))

    def variation(self, request: PolicyRequest, known: MarketSnapshot) -> Variation | None:
        """Return the question over twice the bars, as far as `known` goes; else as for any agent."""
        seen = len(request.snapshot.bars)
        count = min(2 * seen, len(known.bars))
        if count > seen:
            wider = narrowed(request.snapshot, f"bars:{count}", bars=_last(known.bars, count))
            return Variation(replace(request, snapshot=wider), f"{count} bars")
        return super().variation(request, known)


def _recent(snapshot: MarketSnapshot, period: int | None) -> MarketSnapshot:
    """Return the snapshot with the bars of the period, or those that the warm-up needs."""
    count = None if period is None else max(period, WARM_UP_BARS)
    if count is None or len(snapshot.bars) <= count:
        return snapshot
    return narrowed(snapshot, f"bars:{count}", bars=_last(snapshot.bars, count))


def _last(bars: BarWindow, count: int) -> BarWindow:
    return BarWindow(
        bars.sessions[-count:],
        bars.open[-count:],
        bars.high[-count:],
        bars.low[-count:],
        bars.close[-count:],
        bars.volume[-count:],
    )
