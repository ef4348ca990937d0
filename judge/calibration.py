"""Calibration: what a judge's score has meant so far, learned from outcomes that matured before the grade.

The consensus asks it when its method is ``calibrated``. Isotonic regression: more score never means less success, and
nothing else is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_LABELS = 200
"""Below this many outcomes a calibration curve is noise."""


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """A judge's curve: steps of rising success rate over score.

    Attributes
    ----------
    scores : tuple of float
        Mean score of each step, ascending, 0..100.
    rates : tuple of float
        Success rate there, 0..1, not descending.
    labels : int
        Outcomes behind it.
    """

    scores: tuple[float, ...]
    rates: tuple[float, ...]
    labels: int

    def calibrated(self, score: float) -> float:
        """Return the success rate at a score as a score of 0..100, linear between steps and flat beyond them."""
        return 100 * float(np.interp(score, self.scores, self.rates))


def fit_calibration(scores: Sequence[float], successes: Sequence[bool]) -> ScoreCalibration | None:
    """Fit isotonic regression by pooling adjacent violators (Ayer et al. 1955).

    Parameters
    ----------
    scores : sequence of float
        0..100.
    successes : sequence of bool
        Of the same length: was the graded call right.

    Returns
    -------
    ScoreCalibration or None
        None below 200 labels.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    if len(scores) != len(successes):
        raise ValueError(f"{len(scores)} scores need as many labels, not {len(successes)}")
    if len(scores) < MIN_LABELS:
        return None
    ties: dict[float, tuple[float, int]] = {}
    for score, success in zip(scores, successes, strict=True):
        right, count = ties.get(score, (0.0, 0))
        ties[score] = (right + success, count + 1)
    pools: list[tuple[float, float, int]] = []  # sum of scores, sum of successes, count
    for score in sorted(ties):
        right, count = ties[score]
        pool = (score * count, right, count)
        while pools and pools[-1][1] / pools[-1][2] >= pool[1] / pool[2]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    return ScoreCalibration(tuple(p[0] / p[2] for p in pools), tuple(p[1] / p[2] for p in pools), len(scores))
