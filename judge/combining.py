"""The arithmetic of a panel: many grades to one.

Pure functions that `MultiJudgeConsensus` calls; no thread, no judge and no state lives here.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

METHODS = ("weighted_average", "majority_vote", "median", "min", "max", "calibrated")
PASS_SCORE = 70.0
DISAGREEMENT_DISCOUNT = 0.8


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
