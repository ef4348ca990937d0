"""Which regime reigns on which session, and the random streams that everything in a simulated market is drawn from.

The generator asks once. A longer schedule begins with the shorter one, and no stream is shared between two purposes, so
that more sessions or more symbols never change what was generated before.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from data_pipeline.simulation.scenario import Scenario

IntArray = NDArray[np.int64]


def stream(seed: int, purpose: str, symbol: str = "") -> np.random.Generator:
    """Return the generator of one purpose, and of one symbol where it has one."""
    digest = hashlib.sha256(f"{purpose}\x1f{symbol}".encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], dtype="<u4").tolist()])


def regime_schedule(scenario: Scenario, length: int) -> IntArray:
    """Return the index of the regime on each of the sessions 0 to `length` - 1."""
    schedule = np.zeros(length, dtype=np.int64)
    fixed = sorted((start, index) for index, regime in enumerate(scenario.regimes) for start in regime.starts)
    if fixed:
        for start, index in fixed:
            schedule[start:] = index
        return schedule
    count = len(scenario.regimes)
    if count == 1:
        return schedule
    random = stream(scenario.seed, "regimes")
    session = current = 0
    while session < length:
        spell = int(random.geometric(1 / scenario.regimes[current].mean_sessions))
        schedule[session : session + spell] = current
        session += spell
        current = (current + 1 + int(random.integers(count - 1))) % count
    return schedule
