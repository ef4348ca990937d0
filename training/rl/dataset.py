"""Makes the examples of reinforcement learning out of matured decisions: each state with what came of the instrument.

Called by the pipeline. An example knows nothing that was not known when its outcome matured, and its base rates nothing
that was not known when it was decided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from agents.policies.local.decisions import prompt_messages, stored_state
from data_pipeline.library.trajectories import Trajectory
from judge.reward_calculator import BASE_RATE_WINDOW, right_calls
from training.rl.job import Outcome, RLExample
from training.similar_states import NEWEST
from utils.clock import isoformat

SIDES = ("sell", "hold", "buy")

Rates = tuple[float, float, float]


def counterfactual_examples(
    matured: Sequence[Trajectory],
    market_regime: str | None = None,
    *,
    horizon_sessions: int,
    round_trip_cost: float,
) -> list[RLExample]:
    """Return an example for each decision whose state can be read and whose outcome is known, oldest first.

    Parameters
    ----------
    matured : sequence of Trajectory
        In order of decision.
    market_regime : str, optional
        Only decisions of this regime; base rates are those of all.
    """
    known = [row for row in matured if row.actual_return is not None and row.as_of and row.matured_at][-NEWEST:]
    examples = []
    for row, rates in zip(known, base_rates(known, round_trip_cost), strict=True):
        state = stored_state(row.agent_inputs)
        if state is None or (market_regime is not None and row.market_regime != market_regime):
            continue
        assert row.actual_return is not None and row.as_of is not None and row.matured_at is not None
        outcome = Outcome(
            actual_return=row.actual_return,
            benchmark_return=row.benchmark_return or 0.0,
            volatility=float(row.market_state["inputs"]["daily_volatility"]) or None,
            horizon_sessions=horizon_sessions,
            round_trip_cost=round_trip_cost,
            base_rates=rates,
        )
        metadata: dict[str, str | float | None] = {
            "trajectory_id": row.trajectory_id,
            "agent_type": row.agent_type,
            "as_of": isoformat(row.as_of),
            "matured_at": isoformat(row.matured_at),
        }
        messages = tuple(prompt_messages(row.agent_type, state))
        examples.append(RLExample(messages=messages, outcomes=(outcome,), metadata=metadata))
    return examples


def base_rates(rows: Sequence[Trajectory], round_trip_cost: float) -> Iterator[Rates]:
    """Yield for each row how often a sell, a hold, a buy would have been right by the outcomes known at its decision.

    Over the last 200 of them, as the rewards of served calls do it; .5 where there is none. Rows are in order of decision.
    """
    windows: list[deque[bool]] = [deque(maxlen=BASE_RATE_WINDOW) for _ in SIDES]
    by_maturity = sorted(rows, key=lambda row: (row.matured_at, row.trajectory_id))
    rates: Rates = (0.5, 0.5, 0.5)
    seen = 0
    for row in rows:
        before = seen
        while seen < len(rows) and by_maturity[seen].matured_at < row.as_of:  # type: ignore[operator]
            for window, right in zip(
                windows, right_calls(by_maturity[seen].actual_return or 0.0, round_trip_cost), strict=True
            ):
                window.append(right)
            seen += 1
        if seen > before:
            sell, hold, buy = (sum(window) / len(window) for window in windows)
            rates = (sell, hold, buy)
        yield rates
