"""Who knows most in which kind of market: the weight of each analyst, by what drives the market.

Read by the strategist's rules and by the resolution of conflicts, so that both trust the same analysts.
"""

from __future__ import annotations

from collections.abc import Mapping

EXPERTISE: dict[str, dict[str, float]] = {
    "event_driven": {"news": 0.9, "technical": 0.2, "fundamental": 0.6},
    "trend": {"news": 0.3, "technical": 0.9, "fundamental": 0.7},
    "chart": {"news": 0.2, "technical": 0.9, "fundamental": 0.5},
}
"""Weight of an analyst in a kind of market; those not named have `OTHER_EXPERTISE`."""

OTHER_EXPERTISE = 0.5
EVENTFUL = 0.7
"""Volatility rank or news impact beyond which events drive the market."""

TRENDING = 0.6
"""|trend strength| beyond which the trend does."""


def market_kind(volatility: float, news_impact: float, trend_strength: float) -> str:
    """Return the kind of market, a key of `EXPERTISE`; the arguments are those of `RegimeInputs`."""
    if volatility > EVENTFUL or news_impact > EVENTFUL:
        return "event_driven"
    return "trend" if abs(trend_strength) > TRENDING else "chart"


def expertise(volatility: float, news_impact: float, trend_strength: float) -> Mapping[str, float]:
    """Return the analysts' weights in a market."""
    return EXPERTISE[market_kind(volatility, news_impact, trend_strength)]
