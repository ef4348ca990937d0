"""The fundamental analyst's seat: filings in, a `FundamentalOutput` out, whatever policy thinks.

The coordinator calls `decide_many`, people call `analyze`.
"""

from __future__ import annotations

from datetime import datetime

from agents.base_agent import Agent, narrowed
from utils.schema import AgentOutput, AgentType, MarketSnapshot

PERIODS = ("Q", "A")


class FundamentalAgent(Agent):
    """Valuation and quality."""

    agent_type: AgentType = "fundamental"

    def analyze(self, symbol: str, period: str = "Q", *, as_of: datetime | None = None) -> AgentOutput:
        """Analyse one symbol.

        Parameters
        ----------
        symbol : str
        period : {"Q", "A"}
            Q reads every filing, A one a year: those whose period ends in the month of the newest one's.
        as_of : datetime, optional
            Decision time; None is the latest instant of the data.

        Raises
        ------
        ValueError
            If the period is neither.
        """
        if period not in PERIODS:
            raise ValueError(f"period {period!r} is none of {', '.join(PERIODS)}")
        return self._ask(symbol, as_of, lambda snapshot: self.request(_yearly(snapshot) if period == "A" else snapshot))


def _yearly(snapshot: MarketSnapshot) -> MarketSnapshot:
    if not snapshot.filings:
        return snapshot
    month = max(filing.period_end for filing in snapshot.filings).month
    filings = tuple(filing for filing in snapshot.filings if filing.period_end.month == month)
    return narrowed(snapshot, "filings:yearly", filings=filings)
