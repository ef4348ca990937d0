"""How far a panel can be trusted: agreement beyond chance, how many independent votes it is worth, and shared mistakes.

The consensus keeps a `ReliabilityWindow` over its last items; reports ask `error_correlation` once outcomes are known.
Nothing here changes a grade.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 200
"""Items that agreement and effective votes look back on."""

MIN_ITEMS_FOR_CORRELATION = 20
"""With fewer common items a correlation's standard error exceeds .2, and effective votes would be noise."""


def krippendorff_alpha(ratings: NDArray[np.float64]) -> float | None:
    """Return Krippendorff's alpha for interval data: 1 is perfect agreement, 0 that of chance.

    Parameters
    ----------
    ratings : array of shape (items, judges)
        NaN where a judge did not grade an item. Items with fewer than two grades do not count.

    Returns
    -------
    float or None
        None without two comparable grades or without any variation.

    Notes
    -----
    Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability": 1 - D_o/D_e with squared differences.
    """
    ratings = ratings[:, np.isfinite(ratings).any(axis=0)]  # a judge without a grade does not even change rounding
    given = np.isfinite(ratings)
    counts = given.sum(axis=1)
    rows = counts >= 2
    if not rows.any():
        return None
    values, given, counts = np.where(given, ratings, 0.0)[rows], given[rows], counts[rows]
    n = counts.sum()
    flat = values[given]
    # differences from a mean, because the difference of two large sums of squares would lose the digits that matter
    means = values.sum(axis=1) / counts
    within = (np.where(given, values - means[:, None], 0.0) ** 2).sum(axis=1)
    observed = (2 * counts * within / (counts - 1)).sum() / n
    expected = 2 * ((flat - flat.mean()) ** 2).sum() / (n - 1)
    return float(1 - observed / expected) if expected > 0 else None


def effective_votes(ratings: NDArray[np.float64]) -> float | None:
    """Return how many independent judges the panel is worth: n/(1 + (n - 1)·mean correlation).

    Parameters
    ----------
    ratings : array of shape (items, judges)
        Of the n judges in question; NaN where one did not grade.

    Returns
    -------
    float or None
        1..n; a negative mean correlation counts as 0, because no panel is worth more than its members. None while no
        pair has 20 common items that vary.
    """
    n = ratings.shape[1]
    if n == 1:
        return 1.0
    pairs = _pairwise(ratings)[np.triu_indices(n, 1)]
    known = pairs[np.isfinite(pairs)]
    if not len(known):
        return None
    return float(n / (1 + (n - 1) * max(0.0, float(known.mean()))))


def error_correlation(scores: NDArray[np.float64], successes: Sequence[bool]) -> NDArray[np.float64]:
    """Return how far judges err together: the correlation of score/100 - outcome between each two of them.

    Judges that miss the same way are one vote whatever they cost. Two judges whose scores have nothing to do with the
    outcome correlate as well, since both miss it: read the figure beside each judge's own skill.

    Parameters
    ----------
    scores : array of shape (items, judges)
        0..100, NaN where a judge did not grade.
    successes : sequence of bool
        Of the items: was the graded call right.

    Returns
    -------
    array of shape (judges, judges)
        -1..1, 1 on the diagonal; NaN where two judges have fewer than 20 common items or one does not vary.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    if len(scores) != len(successes):
        raise ValueError(f"{len(scores)} graded items need as many outcomes, not {len(successes)}")
    return _pairwise(scores / 100 - np.asarray(successes, dtype=np.float64)[:, None])


def _pairwise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Pearson's correlations of the columns over the rows that each two of them share."""
    n = values.shape[1]
    found = np.full((n, n), np.nan)
    given = np.isfinite(values)
    for first in range(n):
        for second in range(first, n):
            rows = given[:, first] & given[:, second]
            left, right = values[rows, first], values[rows, second]
            if len(left) < MIN_ITEMS_FOR_CORRELATION or not (np.ptp(left) > 0 and np.ptp(right) > 0):
                continue
            value = 1.0 if first == second else float(np.clip(np.corrcoef(left, right)[0, 1], -1, 1))
            found[first, second] = found[second, first] = value
    return found


@dataclass(frozen=True, slots=True)
class Reliability:
    """A panel's agreement over the window, and what the judges that graded the last item are worth together."""

    alpha: float | None
    effective_votes: float | None


class ReliabilityWindow:
    """The grades of the last items; safe to be used from several threads.

    Parameters
    ----------
    judge_ids : sequence of str
        The panel; statistics do not depend on their order.
    """

    def __init__(self, judge_ids: Sequence[str]) -> None:
        self._names = sorted(judge_ids)
        self._ratings = np.empty((0, len(self._names)))
        self._lock = threading.Lock()

    def add(self, grades: Mapping[str, float], *, comparable: bool = True) -> Reliability:
        """Take in the grades of one item by judge id and return the statistics with it.

        An item that is not `comparable`, because only one judge of several was to grade it, takes no place in the window.
        """
        row = np.array([[grades.get(name, np.nan) for name in self._names]])
        with self._lock:
            if comparable:
                self._ratings = np.concatenate((self._ratings[-(WINDOW - 1) :], row))
            ratings = self._ratings
        graded = [index for index, name in enumerate(self._names) if name in grades]
        return Reliability(krippendorff_alpha(ratings), effective_votes(ratings[:, graded]))
