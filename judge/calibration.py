"""Calibration: what a judge's score has meant so far, learned from outcomes that matured before the grade.

The consensus asks it when its method is ``calibrated``. The regression itself is `evaluation.isotonic`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.isotonic import MIN_LABELS, Tally, isotonic_steps, rate_at


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
        return 100 * rate_at(score, self.scores, self.rates)


def fit_calibration(scores: Sequence[float], successes: Sequence[bool]) -> ScoreCalibration | None:
    """Fit a judge's curve.

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
    graded = Counter(scores)
    right = Counter(score for score, success in zip(scores, successes, strict=True) if success)
    steps = isotonic_steps(Tally(score, calls, right[score]) for score, calls in graded.items())
    return ScoreCalibration(tuple(s.value for s in steps), tuple(s.rate for s in steps), len(scores))
