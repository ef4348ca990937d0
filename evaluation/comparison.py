"""The figures of a comparison of policies: what each agent's calls were worth, how sure that is, and who was better.

`training.compare` hands it aligned arrays, one row a decision; every arm has the same rows. Sessions, never decisions, are
resampled. It knows nothing of policies, prices or files, and what is undefined is None, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import MIN_BLOCKS, Interval, statistic_interval, two_sided_p
from evaluation.decision_metrics import Figure

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SUSPICIOUS_ACCURACY = 0.595
SUSPICIOUS_MCC = 0.19
"""Beyond these on daily data a leak is likelier than skill."""

BINS = 10
RANDOM_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made: sessions a block, coverage, resamples, seed."""

    block: int
    level: float = 0.95
    draws: int = 2000
    seed: int = 42


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the decisions, the same for all; arrays of shape (n,).

    Attributes
    ----------
    session : int
        Index of the decision's session, from 0.
    sessions : int
        Number of sessions.
    actual, benchmark : float
        Returns of the symbol and of the universe over the horizon (fractions).
    """

    session: NDArray[np.int64]
    sessions: int
    actual: Floats
    benchmark: Floats


@dataclass(frozen=True, slots=True)
class Calls:
    """One agent's calls in one arm; arrays of shape (n,), aligned with `Outcomes`.

    Attributes
    ----------
    abstained : bool
        Such rows count nowhere but in the abstention share; their other values mean nothing.
    side : int
        -1, 0, +1.
    conviction, p_correct : float
        0..1; NaN where no calibrated probability is known.
    success : bool
        Whether the call came true: as the reward has it, net of costs.
    reward, expected_reward : float
        Realised, and at the expected return; NaN where nobody knows what was to be expected.
    net_return : float
        Side times the return above the universe's, less costs; 0 for a hold.
    """

    abstained: Bools
    side: NDArray[np.int64]
    conviction: Floats
    p_correct: Floats
    success: Bools
    reward: Floats
    expected_reward: Floats
    net_return: Floats


@dataclass(frozen=True, slots=True)
class DirectionFigures:
    """Sides against the sign of a return: holds and returns of exactly 0 are left out, `sides` remain."""

    sides: int
    accuracy: Figure
    mcc: Figure


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Calls whose stated probability lies in one tenth: how many, what they stated and how often it came true."""

    count: int
    stated: float
    observed: float


@dataclass(frozen=True, slots=True)
class CalibrationFigures:
    """Stated probabilities against what came true."""

    calls: int
    brier: Figure
    expected_calibration_error: float | None
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class CallFigures:
    """What one agent's calls in one arm came to; means are over its calls, abstentions left out."""

    decisions: int
    abstention_share: float | None
    hold_share: float | None
    reward: Figure
    expected_reward: Figure | None
    net_return: Figure
    relative: DirectionFigures
    plain: DirectionFigures
    conviction: CalibrationFigures
    p_correct: CalibrationFigures | None


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm minus the reference; p-values are two-sided, `p_holm` is adjusted over the whole family."""

    value: Figure
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True, slots=True)
class PairedFigures:
    """Two arms on the decisions on which neither abstained."""

    decisions: int
    reward: Difference
    accuracy: Difference


@dataclass(frozen=True, slots=True)
class RandomFigures:
    """A coin with the agent's own frequencies of buying, holding and selling, over many draws: mean and middle 95 %."""

    draws: int
    accuracy: Figure
    mcc: Figure
    net_return: Figure


def call_figures(calls: Calls, outcomes: Outcomes, how: Resampling) -> CallFigures:
    """Return the figures of one agent's calls."""
    made = ~calls.abstained
    count = int(made.sum())
    held = made & (calls.side == 0)
    known = made & np.isfinite(calls.expected_reward)
    stated = made & np.isfinite(calls.p_correct)
    return CallFigures(
        decisions=len(made),
        abstention_share=_share(len(made) - count, len(made)),
        hold_share=_share(int(held.sum()), count),
        reward=_mean(calls.reward, made, outcomes, how),
        expected_reward=_mean(calls.expected_reward, known, outcomes, how) if known.any() else None,
        net_return=_mean(calls.net_return, made, outcomes, how),
        relative=direction_figures(calls, outcomes, outcomes.actual - outcomes.benchmark, how),
        plain=direction_figures(calls, outcomes, outcomes.actual, how),
        conviction=calibration_figures(calls.conviction, calls.success, made, outcomes, how),
        p_correct=calibration_figures(calls.p_correct, calls.success, stated, outcomes, how) if stated.any() else None,
    )


def direction_figures(calls: Calls, outcomes: Outcomes, moves: Floats, how: Resampling) -> DirectionFigures:
    """Return accuracy and Matthews correlation of the sides against the sign of `moves`."""
    cells = _confusion(calls, moves)
    table = _by_session(cells.astype(float), outcomes)
    return DirectionFigures(
        int(cells.sum()),
        _within(_figure(table, _accuracy_of_means, how), 0.0, 1.0),
        _within(_figure(table, _mcc_of_means, how), -1.0, 1.0),
    )


def calibration_figures(
    stated: Floats, success: Bools, used: Bools, outcomes: Outcomes, how: Resampling
) -> CalibrationFigures:
    """Return Brier score, expected calibration error and reliability curve over ten equal bins of the stated value."""
    squared = np.where(used, (np.nan_to_num(stated) - success) ** 2, 0.0)
    bins, error = reliability(stated[used], success[used])
    brier = _within(_mean(squared, used, outcomes, how), 0.0, 1.0)
    return CalibrationFigures(int(used.sum()), brier, error, bins)


def reliability(stated: Floats, success: Bools) -> tuple[tuple[ReliabilityBin, ...], float | None]:
    """Return the reliability curve and the expected calibration error, Σ n_b/n·|stated - observed|.

    Parameters
    ----------
    stated : array of shape (n,)
        0..1.
    success : array of bool of shape (n,)

    Returns
    -------
    bins : tuple of ReliabilityBin
        The tenths that hold any call, ascending; 1.0 belongs to the last.
    error : float or None
        None without calls.

    References
    ----------
    Naeini, Cooper, Hauskrecht (2015), AAAI 29, eq. 3.
    """
    if not len(stated):
        return (), None
    place = np.minimum((stated * BINS).astype(int), BINS - 1)
    bins = tuple(
        ReliabilityBin(int(inside.sum()), float(stated[inside].mean()), float(success[inside].mean()))
        for number in range(BINS)
        if (inside := place == number).any()
    )
    return bins, float(sum(b.count * abs(b.stated - b.observed) for b in bins) / len(stated))


def matthews(true_positive: float, false_positive: float, true_negative: float, false_negative: float) -> float | None:
    """Return the Matthews correlation coefficient of a confusion table, None where a margin is empty.

    References
    ----------
    Matthews (1975), Biochimica et Biophysica Acta 405, 442-451.
    """
    value = _mcc_of_means(np.array([[true_positive, false_positive, true_negative, false_negative]], dtype=float))[0]
    return float(value) if np.isfinite(value) else None


def paired_figures(arm: Calls, reference: Calls, outcomes: Outcomes, how: Resampling) -> PairedFigures:
    """Return an arm minus the reference where neither abstained: mean reward, and accuracy against the universe.

    Each arm's accuracy is that of its own sides among these decisions; both are resampled by the same sessions.
    """
    both = ~arm.abstained & ~reference.abstained
    gain = np.where(both, np.nan_to_num(arm.reward) - np.nan_to_num(reference.reward), 0.0)
    moves = outcomes.actual - outcomes.benchmark
    columns = np.column_stack(
        (_confusion(replace(arm, abstained=~both), moves), _confusion(replace(reference, abstained=~both), moves))
    )
    reward = _difference(_by_session(np.column_stack((gain, both)), outcomes), _ratio, how)
    accuracy = _difference(
        _by_session(columns.astype(float), outcomes),
        lambda means: _accuracy_of_means(means[:, :4]) - _accuracy_of_means(means[:, 4:]),
        how,
    )
    return PairedFigures(int(both.sum()), reward, accuracy)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values over a family; None stays None and counts for nothing.

    References
    ----------
    Holm (1979), Scandinavian Journal of Statistics 6, 65-70.
    """
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[place] = largest
    return adjusted


def adjusted(family: Sequence[PairedFigures]) -> list[PairedFigures]:
    """Return the comparisons with p-values adjusted over all of them, reward and accuracy alike."""
    values = holm([item.p for pair in family for item in (pair.reward, pair.accuracy)])
    return [
        replace(
            pair,
            reward=replace(pair.reward, p_holm=values[2 * number]),
            accuracy=replace(pair.accuracy, p_holm=values[2 * number + 1]),
        )
        for number, pair in enumerate(family)
    ]


def random_figures(
    calls: Calls, outcomes: Outcomes, cost: float, seed: int, draws: int = RANDOM_DRAWS
) -> RandomFigures:
    """Return what a coin makes that buys, holds and sells as often as the agent, on the decisions that it took.

    Parameters
    ----------
    cost : float
        Of the round trip, a fraction of the traded value.
    """
    made = ~calls.abstained
    moves = (outcomes.actual - outcomes.benchmark)[made]
    count = len(moves)
    results = np.full((draws, 3), np.nan)
    if count:
        sold, bought = (float((calls.side[made] == side).mean()) for side in (-1, 1))
        rng = np.random.default_rng(seed)
        rose, fell = moves > 0, moves < 0
        for number in range(draws):
            drawn = rng.random(count)
            buys, sells = drawn >= 1 - bought, drawn < sold
            cells = np.array([[(buys & rose).sum(), (buys & fell).sum(), (sells & fell).sum(), (sells & rose).sum()]])
            gained = moves[buys].sum() - moves[sells].sum() - cost * (buys.sum() + sells.sum())
            means = cells.astype(float)
            results[number] = _accuracy_of_means(means)[0], _mcc_of_means(means)[0], gained / count
    return RandomFigures(draws, *(_spread(column) for column in results.T))


def suspicions(figures: CallFigures) -> list[str]:
    """Return the figures that are too good to be believed before a leak has been looked for."""
    found = []
    for what, direction in (("against the universe", figures.relative), ("of the plain return", figures.plain)):
        accuracy, mcc = direction.accuracy.value, direction.mcc.value
        if accuracy is not None and accuracy > SUSPICIOUS_ACCURACY:
            found.append(f"accuracy {what} of {accuracy:.1%} lies above {SUSPICIOUS_ACCURACY:.1%}")
        if mcc is not None and mcc > SUSPICIOUS_MCC:
            found.append(f"MCC {what} of {mcc:.3f} lies above {SUSPICIOUS_MCC}")
    return found


def _confusion(calls: Calls, moves: Floats) -> Bools:
    """Return true and false positives, true and false negatives, shape (n, 4); all false for holds and abstentions."""
    buys, sells = ~calls.abstained & (calls.side > 0), ~calls.abstained & (calls.side < 0)
    return np.column_stack((buys & (moves > 0), buys & (moves < 0), sells & (moves < 0), sells & (moves > 0)))


def _accuracy_of_means(means: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((means[:, 0] + means[:, 2]) / means.sum(axis=1))


def _mcc_of_means(means: Floats) -> Floats:
    tp, fp, tn, fn = means.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def _ratio(means: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(means[:, 0] / means[:, 1])


def _mean(values: Floats, used: Bools, outcomes: Outcomes, how: Resampling) -> Figure:
    """Return the mean over the used rows, with an interval over sessions."""
    return _figure(_by_session(np.column_stack((np.where(used, values, 0.0), used)), outcomes), _ratio, how)


def _by_session(columns: Floats, outcomes: Outcomes) -> Floats:
    """Return the sums of columns in each session, shape (sessions, k)."""
    return np.column_stack(
        [np.bincount(outcomes.session, weights=column, minlength=outcomes.sessions) for column in columns.T]
    )


def _figure(table: Floats, statistic: Callable[[Floats], Floats], how: Resampling) -> Figure:
    """Return a statistic of sums a session with its bounds, without them where the sessions are too few."""
    found = _interval(table, statistic, how)
    return Figure(_value(table, statistic)) if found is None else Figure(found.estimate, found.low, found.high)


def _within(figure: Figure, least: float, most: float) -> Figure:
    """Return a figure whose bounds end where its values do; the interval itself is centred on the estimate."""
    if figure.low is None or figure.high is None:
        return figure
    return Figure(figure.value, max(least, figure.low), min(most, figure.high))


def _difference(table: Floats, statistic: Callable[[Floats], Floats], how: Resampling) -> Difference:
    """Return the same with a p-value."""
    found = _interval(table, statistic, how)
    if found is None:
        return Difference(Figure(_value(table, statistic)), None)
    return Difference(Figure(found.estimate, found.low, found.high), two_sided_p(found))


def _interval(table: Floats, statistic: Callable[[Floats], Floats], how: Resampling) -> Interval | None:
    if len(table) < MIN_BLOCKS * how.block or _value(table, statistic) is None:
        return None
    return statistic_interval(table, statistic, how.block, how.level, how.draws, how.seed)


def _value(table: Floats, statistic: Callable[[Floats], Floats]) -> float | None:
    value = float(statistic(table.mean(axis=0, keepdims=True))[0]) if len(table) else math.nan
    return value if math.isfinite(value) else None


def _spread(column: Floats) -> Figure:
    known = column[np.isfinite(column)]
    if not len(known):
        return Figure(None)
    low, high = np.quantile(known, (0.025, 0.975))
    return Figure(float(known.mean()), float(low), float(high))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
