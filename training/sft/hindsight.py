"""Says in hindsight what should have been recommended on each state, by what came of the states most like it.

The fine-tuning pipeline corrects examples by it. A side is right only where it earned more than its costs by at least one
standard error; otherwise nothing was to be had, and the correction is to hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from agents.policies.local.decisions import stored_state
from data_pipeline.data_synthesis import Correction
from data_pipeline.library.trajectories import Trajectory
from judge.reward_calculator import ordinary_move, relative_move, right_calls
from training.similar_states import NEIGHBOURS, NEWEST, nearest

STANDARD_ERRORS = 1.0
"""By which the mean of its like must exceed the costs before a side is called right."""


def corrections(
    agent_type: str,
    matured: Sequence[Trajectory],
    *,
    horizon_sessions: int,
    round_trip_cost: float,
    neighbours: int = NEIGHBOURS,
) -> Mapping[str, Correction]:
    """Return by trajectory id what was to be recommended, and with which confidence.

    Parameters
    ----------
    agent_type : str
    matured : sequence of Trajectory
        Of the training period; those without a state or an outcome are passed over.
    horizon_sessions : int
    round_trip_cost : float
        Fraction of the traded value.

    Returns
    -------
    mapping of str to Correction
        Empty where so few outcomes are known that each state would be told its own: one says nothing of its error.

    Notes
    -----
    The reward's own measure: return against the market in units of volatility·√horizon, clamped. The confidence is the
    share of the like in which the recommendation was right.
    """
    known = [
        (row, state)
        for row in matured
        if row.actual_return is not None and (state := stored_state(row.agent_inputs)) is not None
    ][-NEWEST:]
    if not known:
        return {}
    figures = np.array([_figures(row, horizon_sessions, round_trip_cost) for row, _ in known])
    found: dict[str, Correction] = {}
    for number, alike in nearest(agent_type, [state for _, state in known], range(len(known)), neighbours):
        if len(alike) < 2:
            continue
        moves, costs, rose, fell, stayed = figures[alike].T
        mean, doubt = float(moves.mean()), STANDARD_ERRORS * float(moves.std(ddof=1)) / math.sqrt(len(moves))
        if abs(mean) <= float(costs.mean()) + doubt:
            call, right = "hold", stayed
        else:
            call, right = ("buy", rose) if mean > 0 else ("sell", fell)
        found[known[number][0].trajectory_id] = Correction(call, float(right.mean()), len(alike))
    return found


def _figures(row: Trajectory, horizon: int, cost: float) -> tuple[float, float, float, float, float]:
    """Return move and costs in ordinary moves, and whether a buy, a sell, a hold was right."""
    value = row.actual_return or 0.0
    volatility = float(row.market_state["inputs"]["daily_volatility"]) or None
    sell, hold, buy = right_calls(value, cost)
    move = relative_move(value, row.benchmark_return, volatility, horizon)
    return move, cost / ordinary_move(volatility, horizon), float(buy), float(sell), float(hold)
