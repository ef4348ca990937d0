"""The technical analyst's seat: bars in, a `TechnicalOutput` out, whatever policy thinks.

The coordinator calls `decide_many`, people call `analyze`. Indicators need their warm-up, so a short period never starves
them: it only bounds how far back levels and averages may look beyond it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from agents.base_agent import Agent
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
            One of `PERIOD_BARS`; indicators look back over at least `WARM_UP_BARS`.
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
        snapshot = self.snapshot(symbol, as_of)
        if not isinstance(snapshot, MarketSnapshot):
            return snapshot
        bars = PERIOD_BARS[period]
        if bars is not None:
            snapshot = replace(snapshot, bars=_last(snapshot.bars, max(bars, WARM_UP_BARS)))
        return self.decide_many([self.request(snapshot)])[0]


def _last(bars: BarWindow, count: int) -> BarWindow:
    if len(bars) <= count:
        return bars
    return BarWindow(*(getattr(bars, name)[-count:] for name in ("sessions", "open", "high", "low", "close", "volume")))
