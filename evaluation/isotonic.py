"""Isotonic regression: the rising steps that fit successes best, and the curve through them.

Whatever turns a stated number into an observed success rate fits here: the judges' scores and the agents' convictions.
More of the number never means less success; nothing else is assumed. Pure functions without state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MIN_LABELS = 200
"""Below this many outcomes a calibration curve is noise."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the calls that stated one value: how many there were, and how many came true."""

    value: float
    calls: int
    successes: int


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of values with one success rate.

    Attributes
    ----------
    value : float
        Mean of the values in it, each as often as it was stated.
    rate : float
        0..1.
    values : int
        Different values in it.
    """

    value: float
    rate: float
    values: int


def isotonic_steps(tallies: Iterable[Tally]) -> tuple[Step, ...]:
    """Fit isotonic regression by pooling adjacent violators (Ayer et al. 1955).

    Parameters
    ----------
    tallies : iterable of Tally
        Each of at least one call and of another value, in any order.

    Returns
    -------
    tuple of Step
        In ascending order of values, their rates rising.
    """
    pools: list[tuple[float, int, int, int]] = []  # sum of values, successes, calls, different values
    for tally in sorted(tallies, key=lambda tally: tally.value):
        pool = (tally.value * tally.calls, tally.successes, tally.calls, 1)
        while pools and pools[-1][1] * pool[2] >= pool[1] * pools[-1][2]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2], before[3] + pool[3])
        pools.append(pool)
    return tuple(Step(total / calls, right / calls, values) for total, right, calls, values in pools)


def rate_at(value: float, values: Sequence[float], rates: Sequence[float]) -> float:
    """Return the success rate at a value, linear between steps and flat beyond them."""
    return float(np.interp(value, values, rates))
