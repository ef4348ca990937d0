"""Generated experiences for the benchmark of the library: vectors with the structure of real ones, and their rows.

Every number follows from a seed, so that each contender and each run sees the same data. Called by the section
`library`; stores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.library.trajectories import EMBEDDING_DIMENSION, Trajectory

AGENTS = tuple(
    "technical news fundamental strategist macro sentiment options_flow insider earnings sector_rotation".split()
)
REGIMES = tuple(
    "bull_market bear_market crash recovery neutral high_volatility range_bound_low_vol range_bound_high_vol "
    "strong_trend_low_vol strong_trend_high_vol".split()
)
SYMBOLS = tuple(f"SYM{number:02d}" for number in range(88))
RECOMMENDATIONS = ("buy", "hold", "sell")
FIRST_DECISION = datetime(2014, 1, 2, 21, tzinfo=UTC)
SPAN = timedelta(days=730)

# Weights of the parts of a vector. With them neighbours are what the feature-hashing embedder's are on market states:
# the ten nearest share the agent nearly always and the regime mostly, the symbol far less, and what is left is a
# few continuous numbers. The isotropic noise is an encoder's: it gives every one of the 384 axes something to say.
_AGENT_WEIGHT = 1.0
_REGIME_WEIGHT = 0.7
_SYMBOL_WEIGHT = 0.5
_STATE_WEIGHT = 0.6
_NOISE_WEIGHT = 0.3
_STATE_NUMBERS = 12

_STRUCTURE_SEED = 7
"""Of what rows and queries share: the directions of agents, regimes, symbols and numbers."""

_INDICATORS = (
    "rsi_14 macd macd_signal sma_20 sma_50 sma_200 ema_12 ema_26 bollinger_upper bollinger_lower atr_14 adx_14".split()
)
_SENTENCE = (
    "In a {regime} regime {symbol} trades at {price:.2f}; {agent} weighs trend, momentum and volatility and asks to "
    "{recommendation}. Decisive: RSI {rsi:.1f}, MACD {macd:+.3f}, and the distance to the moving averages. "
    "The case fails if the close falls through the lower band on rising volume."
)


@dataclass(frozen=True)
class Experiences:
    """Rows as arrays of equal length; labels are indices into the tuples of this module.

    Attributes
    ----------
    vectors : array, shape (rows, 384), float32, length 1
    reward : array, standard normal
    matured : array, epoch seconds
    """

    seed: int
    vectors: NDArray[np.float32]
    agent: NDArray[np.intp]
    regime: NDArray[np.intp]
    symbol: NDArray[np.intp]
    recommendation: NDArray[np.intp]
    success: NDArray[np.bool_]
    reward: NDArray[np.float64]
    matured: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.vectors)


def generate(rows: int, seed: int) -> Experiences:
    """Return `rows` experiences; each label is uniform, time runs on evenly through the span."""
    structure = np.random.default_rng(_STRUCTURE_SEED)
    agents = _directions(structure, len(AGENTS))
    regimes = _directions(structure, len(REGIMES))
    symbols = _directions(structure, len(SYMBOLS))
    numbers = _directions(structure, _STATE_NUMBERS)
    rng = np.random.default_rng(seed)
    agent, regime, symbol, recommendation = (
        rng.integers(len(labels), size=rows) for labels in (AGENTS, REGIMES, SYMBOLS, RECOMMENDATIONS)
    )
    state = rng.standard_normal((rows, _STATE_NUMBERS), dtype=np.float32) / np.float32(np.sqrt(_STATE_NUMBERS))
    noise = rng.standard_normal((rows, EMBEDDING_DIMENSION), dtype=np.float32) / np.float32(
        np.sqrt(EMBEDDING_DIMENSION)
    )
    vectors = (
        _AGENT_WEIGHT * agents[agent]
        + _REGIME_WEIGHT * regimes[regime]
        + _SYMBOL_WEIGHT * symbols[symbol]
        + _STATE_WEIGHT * (state @ numbers)
        + _NOISE_WEIGHT * noise
    ).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    start = FIRST_DECISION.timestamp()
    return Experiences(
        seed=seed,
        vectors=vectors,
        agent=agent,
        regime=regime,
        symbol=symbol,
        recommendation=recommendation,
        success=rng.random(rows) < 0.5,
        reward=rng.standard_normal(rows),
        matured=start + np.floor(np.linspace(0.0, SPAN.total_seconds(), rows, endpoint=False)),
    )


def trajectory_id(row: int) -> str:
    """Return the identity of a row."""
    return f"bench-{row:08d}"


def row_of(identity: str) -> int:
    """Return the row of an identity."""
    return int(identity.removeprefix("bench-"))


def trajectory(data: Experiences, row: int) -> Trajectory:
    """Return a row as a trajectory with about 1.7 KB of JSON and text, as the daemon writes them."""
    rng = np.random.default_rng((data.seed, row))
    values = [round(float(value), 6) for value in rng.standard_normal(len(_INDICATORS))]
    price = round(float(rng.uniform(5, 500)), 2)
    agent, regime, symbol = AGENTS[data.agent[row]], REGIMES[data.regime[row]], SYMBOLS[data.symbol[row]]
    action = RECOMMENDATIONS[data.recommendation[row]]
    matured = datetime.fromtimestamp(float(data.matured[row]), UTC)
    as_of = matured - timedelta(days=5)
    stamp = as_of.isoformat()
    reasoning = _SENTENCE.format(
        regime=regime,
        symbol=symbol,
        price=price,
        agent=agent,
        recommendation=action,
        rsi=50 + values[0],
        macd=values[1],
    )
    evidence: list[dict[str, Any]] = [
        {"id": f"ind:{name}", "kind": "indicator", "value": value, "unit": "USD", "source": "bars", "event_time": stamp}
        for name, value in zip(_INDICATORS[:7], values, strict=False)
    ]
    return Trajectory(
        trajectory_id=trajectory_id(row),
        decision_id=f"decision-{row // len(AGENTS):08d}",
        timestamp=as_of.timestamp(),
        as_of=as_of,
        symbol=symbol,
        agent_type=agent,
        recommendation=action,
        market_regime=regime,
        market_state={
            "price": price,
            "regime": regime,
            "indicators": dict(zip(_INDICATORS, values, strict=True)),
            "signals": {"consensus": values[2], agent: values[3]},
        },
        agent_inputs={"snapshot": f"{row:064x}", "session": as_of.date().isoformat()},
        reasoning=reasoning,
        confidence=round(float(rng.uniform(0.3, 0.95)), 6),
        policy="rules",
        evidence_hash=f"{row:064x}",
        workflow_trace={
            "output": {"symbol": symbol, "as_of": stamp, "recommendation": action, "evidence": evidence},
            "steps": [{"step": "agents", "ran": [agent]}, {"step": "strategist", "ran": ["strategist"]}],
        },
        horizon="5d",
        actual_return=round(float(data.reward[row]) / 100, 6),
        reward=float(data.reward[row]),
        success=bool(data.success[row]),
        matured_at=matured,
        embedding=data.vectors[row],
    )


def _directions(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Return unit vectors, shape (count, 384), in random directions."""
    directions = rng.standard_normal((count, EMBEDDING_DIMENSION))
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
