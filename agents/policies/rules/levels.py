"""Where a trade ends: stop and take profit around an entry, rounded once, with the ratio computed from what was rounded.

Called by the strategist's rules policy; pure arithmetic on prices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_pipeline.rounding import clip, price_figure

STOP_FRACTION, TAKE_FRACTION = 0.05, 0.15
"""Distances as shares of the price where no ATR is known."""

MAX_STOP_FRACTION, MAX_TAKE_FRACTION = 0.5, 0.9
HORIZON_SESSIONS = 5
REACH_SIGMAS = 3.9
"""Largest distance of the target in standard deviations over the horizon; beyond 4 it is wishful."""

_LEAST_DISTANCE = 1e-3
"""Smallest distance of a level as a share of the price: nearer, and one tick decides the trade."""


@dataclass(frozen=True, slots=True)
class LevelSettings:
    """Distances of stop and take profit from the entry, in ATRs."""

    stop_atr: float = 2.0
    take_atr: float = 4.0


@dataclass(frozen=True, slots=True)
class Levels:
    """Prices in USD; `ratio` = |take - entry| / |entry - stop|; `usual_move` = a day's usual move over the price."""

    entry: float
    stop: float
    take: float
    ratio: float
    usual_move: float


def price_levels(
    side: int, entry: float, atr: float | None, daily_volatility: float, settings: LevelSettings
) -> Levels | None:
    """Return the levels of a trade, None where the price moves too little for any.

    Parameters
    ----------
    side : int
        1 to buy, -1 to sell: the stop then lies above the entry.
    entry : float
        USD, as written in the output.
    atr : float or None
        USD; without it the distances are 5 % and 15 % of the price.
    daily_volatility : float
        Fraction a day, bounds the target to what five sessions can reach; 0 where unknown.
    """
    stop_share = settings.stop_atr * atr / entry if atr else STOP_FRACTION
    take_share = settings.take_atr * atr / entry if atr else TAKE_FRACTION
    if daily_volatility > 0:
        take_share = min(take_share, REACH_SIGMAS * daily_volatility * math.sqrt(HORIZON_SESSIONS))
    if take_share < _LEAST_DISTANCE:
        return None
    stop = price_figure(entry * (1 - side * clip(stop_share, _LEAST_DISTANCE, MAX_STOP_FRACTION)))
    take = price_figure(entry * (1 + side * min(take_share, MAX_TAKE_FRACTION)))
    ratio = round(abs(take - entry) / abs(entry - stop), 4)
    return Levels(entry, stop, take, ratio, atr / entry if atr else STOP_FRACTION / 2)
