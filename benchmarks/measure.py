"""The arithmetic of the benchmarks: percentiles, medians with their range, recall against the exact answer.

Called by the sections; measures nothing itself and knows no contender.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TIE = 1e-6
"""Cosine distance within which two results count as equally near."""


@dataclass(frozen=True)
class Spread:
    """The median of several rounds and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value; ValueError for none."""
        if not values:
            raise ValueError("a spread needs at least one value")
        return cls(float(np.median(values)), min(values), max(values))

    def text(self, digits: int = 0) -> str:
        """Return ``median [low to high]``."""
        return f"{self.median:,.{digits}f} [{self.low:,.{digits}f} to {self.high:,.{digits}f}]"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` % of the values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("a percentile needs at least one value")
    return float(np.percentile(values, percent, method="inverted_cdf"))


def resampled(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float], seed: int, draws: int = 2000
) -> tuple[float, float, float]:
    """Return a statistic of independent values and its 95 % bootstrap interval (percentile method, Efron 1979)."""
    if not values:
        raise ValueError("a statistic needs at least one value")
    rng, array = np.random.default_rng(seed), np.asarray(values, dtype=float)
    found = [statistic(rng.choice(array, len(array)).tolist()) for _ in range(draws)]
    low, high = np.percentile(found, (2.5, 97.5))
    return statistic(values), float(low), float(high)


def recall(found: Sequence[int], distances: NDArray[np.float32], allowed: NDArray[np.bool_], limit: int) -> float:
    """Return the share of the exact answer that was found.

    Parameters
    ----------
    found : sequence of int
        Row numbers that a contender returned; repetitions count once.
    distances : array, shape (rows,)
        Distance of the query to every row.
    allowed : array of bool, shape (rows,)
        The rows that the filter lets through.
    limit : int
        How many were asked for.

    Returns
    -------
    float
        0..1. A result counts as right if the filter allows it and it is no farther than the last row of the exact
        answer (within `TIE`): among equally near rows any choice is right. 1 where nothing is allowed.
    """
    candidates = distances[allowed]
    wanted = min(limit, len(candidates))
    if wanted == 0:
        return 1.0
    farthest = np.partition(candidates, wanted - 1)[wanted - 1]
    right = sum(1 for row in set(found) if allowed[row] and distances[row] <= farthest + TIE)
    return min(right, wanted) / wanted
