"""The arithmetic of a panel: many grades to one, and how much the graders agree.

Pure functions that `MultiJudgeConsensus` calls; no thread, no judge and no state lives here.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

METHODS = ("weighted_average", "majority_vote", "median", "min", "max", "calibrated")
PASS_SCORE = 70.0
DISAGREEMENT_DISCOUNT = 0.8
MIN_ITEMS_FOR_CORRELATION = 20
"""With fewer common items a correlation's standard error exceeds .2, and effective votes would be noise."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One grade with the weight of its judge: score 0..100, confidence 0..1, weight > 0."""

    score: float
    confidence: float
    weight: float


@dataclass(frozen=True, slots=True)
class Combined:
    """What a panel says; `resolution` names what replaced the method where the votes lay too far apart."""

    score: float
    confidence: float
    agreement_level: float | None
    disagreement: bool
    resolution: str | None


def combine(votes: Sequence[Vote], method: str, disagreement_threshold: float) -> Combined:
    """Combine at least one vote.

    Parameters
    ----------
    votes : sequence of Vote
        For ``calibrated`` the scores are the calibrated ones; they are averaged like any others.
    method : str
        One of `METHODS`.
    disagreement_threshold : float
        Where the range of the scores exceeds it, the median counts and the confidence is taken times .8.

    Raises
    ------
    ValueError
        On an unknown method or without votes.
    """
    if method not in METHODS:
        raise ValueError(f"consensus method {method!r} is none of {', '.join(METHODS)}")
    if not votes:
        raise ValueError("no votes to combine")
    scores = [vote.score for vote in votes]
    spread = max(scores) - min(scores)
    total = sum(vote.weight for vote in votes)
    confidence = min(1.0, sum(vote.weight * vote.confidence for vote in votes) / total)
    agreement = 1 - spread / 100 if len(votes) > 1 else None
    if spread > disagreement_threshold:
        return Combined(statistics.median(scores), confidence * DISAGREEMENT_DISCOUNT, agreement, True, "median")
    return Combined(_score(votes, scores, method), confidence, agreement, False, None)


def _score(votes: Sequence[Vote], scores: list[float], method: str) -> float:
    if method == "median":
        return statistics.median(scores)
    if method == "min":
        return min(scores)
    if method == "max":
        return max(scores)
    if method == "majority_vote":
        passed = [score for score in scores if score >= PASS_SCORE]
        failed = [score for score in scores if score < PASS_SCORE]
        if len(passed) == len(failed):
            return statistics.median(scores)
        return statistics.median(passed if len(passed) > len(failed) else failed)
    mass = sum(vote.weight * vote.confidence for vote in votes)
    # where nobody is sure at all only the judges' weights are left; it is the limit of equal, vanishing confidences
    parts = [vote.weight * (vote.confidence if mass > 0 else 1.0) for vote in votes]
    mean = sum(part * score for part, score in zip(parts, scores, strict=True)) / sum(parts)
    return max(min(scores), min(max(scores), mean))


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
    given = np.isfinite(ratings)
    counts = given.sum(axis=1)
    rows = counts >= 2
    if not rows.any():
        return None
    values, given, counts = np.where(given, ratings, 0.0)[rows], given[rows], counts[rows]
    sums, squares = values.sum(axis=1), (values**2).sum(axis=1)
    n = counts.sum()
    observed = (2 * (counts * squares - sums**2) / (counts - 1)).sum() / n
    flat = values[given]
    # centred, because the difference of two large sums of squares would lose the digits that matter
    expected = 2 * n * ((flat - flat.mean()) ** 2).sum() / (n * (n - 1))
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
    correlations = []
    for first in range(n):
        for second in range(first + 1, n):
            pair = ratings[:, (first, second)]
            pair = pair[np.isfinite(pair).all(axis=1)]
            if len(pair) >= MIN_ITEMS_FOR_CORRELATION and (np.ptp(pair, axis=0) > 0).all():
                correlations.append(_correlation(pair[:, 0], pair[:, 1]))
    if not correlations:
        return None
    return n / (1 + (n - 1) * max(0.0, sum(correlations) / len(correlations)))


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    left, right = first - first.mean(), second - second.mean()
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))
