"""Matured opinions of the technical agent, made by hand or drawn from a small world with or without a relation."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from agents.policies.local.decisions import recorded_state
from agents.policies.local.states import state_line
from data_pipeline.library.trajectories import Trajectory

START = datetime(2014, 1, 6, 21, tzinfo=UTC)
HORIZON = 5
DAILY_VOLATILITY = 0.02
ORDINARY = DAILY_VOLATILITY * HORIZON**0.5
COST = 0.0016


def technical_state(**values: Any) -> str:
    """A state of which only the values given are known."""
    return state_line("technical", values)


def matured(number: int, moved: float | None, state: str | None = None, **changes: Any) -> Trajectory:
    """An opinion of day `number` on an instrument that then moved by so much (fraction), the market not at all."""
    as_of = START + timedelta(days=number)
    fields: dict[str, Any] = {
        "trajectory_id": f"t{number:05}",
        "timestamp": as_of.timestamp(),
        "as_of": as_of,
        "symbol": "AAA",
        "agent_type": "technical",
        "recommendation": "buy",
        "market_regime": "neutral",
        "market_state": {"inputs": {"daily_volatility": DAILY_VOLATILITY}},
        "agent_inputs": {"state": recorded_state(technical_state(rsi=50) if state is None else state)},
        "reasoning": "",
        "confidence": 0.8,
        "actual_return": moved,
        "benchmark_return": 0.0,
        "reward": moved,
        "success": None if moved is None else moved > COST,
        "matured_at": as_of + timedelta(days=7),
        **changes,
    }
    return Trajectory(**fields)


def world(count: int, seed: int, edge: float, *, shuffled: bool = False) -> list[Trajectory]:
    """Opinions where an RSI above 50 comes before a rise of `edge` ordinary moves and one below before a fall.

    Each outcome is drawn around it with a deviation of one ordinary move; three more fields and a label are noise. Shuffled,
    the outcomes are the same and belong to other states.
    """
    rng = random.Random(seed)
    states, moves = [], []
    for _ in range(count):
        rsi = rng.choice([20, 25, 30, 70, 75, 80])
        values = {"rsi": rsi, "macd": rng.gauss(0, 3), "stoch": rng.uniform(0, 100), "adx": rng.uniform(10, 60)}
        states.append(technical_state(**values, trend=rng.choice(["up", "down", "flat"])))
        moves.append(ORDINARY * rng.gauss(edge if rsi > 50 else -edge, 1))
    if shuffled:
        rng.shuffle(moves)
    return [matured(number, moved, state) for number, (moved, state) in enumerate(zip(moves, states, strict=True))]
