"""The block bootstrap: right on known distributions, honest on dependent ones, the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.bootstrap import (
    circular_block_means,
    few_blocks_factor,
    lower_bound,
    mean_interval,
    overlap_factor,
    paired_difference,
    return_win_rate_interval,
    sharpe_difference,
    sharpe_interval,
    student_t_quantile,
    win_rate_interval,
)


def _naive_means(values: np.ndarray, block: int, draws: int, seed: int) -> np.ndarray:
    n = len(values)
    blocks = math.ceil(n / block)
    starts = np.random.default_rng(seed).integers(0, n, size=(draws, blocks))
    index = (starts[:, :, None] + np.arange(block)) % n
    return values[index.reshape(draws, -1)[:, :n]].mean(axis=1)


@pytest.mark.parametrize(("n", "block"), [(60, 20), (61, 20), (75, 1), (50, 7), (30, 30)])
def test_block_sums_give_what_resampled_series_give(n: int, block: int) -> None:
    values = np.random.default_rng(1).normal(size=n)
    fast = circular_block_means(values, block, 200, 5)
    assert np.allclose(fast, _naive_means(values, block, 200, 5))


def test_columns_are_resampled_together() -> None:
    values = np.random.default_rng(1).normal(size=80)
    both = circular_block_means(np.column_stack((values, 2 * values)), 20, 50, 3)
    assert np.allclose(both[:, 1], 2 * both[:, 0])


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(2).normal(size=100)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1).low != mean_interval(values, seed=2).low


@pytest.mark.parametrize(("level", "degrees", "expected"), [
    (0.98, 3.5, 3.1925), (0.975, 5, 2.5706), (0.99, 11, 2.7181), (0.98, 100, 2.0809), (0.975, 2, 4.3027),
])  # fmt: skip
def test_quantiles_of_students_t_match_the_tables(level: float, degrees: float, expected: float) -> None:
    assert student_t_quantile(level, degrees) == pytest.approx(expected, rel=5e-4)


def test_the_factor_for_few_blocks_shrinks_to_one() -> None:
    factors = [few_blocks_factor(n, 20, 0.98) for n in (60, 120, 500, 100_000)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] > 1.7
    assert factors[-1] == pytest.approx(1.0, abs=0.01)


def test_the_factor_for_overlap_restores_the_variance_that_block_means_lack() -> None:
    rng = np.random.default_rng(21)
    sums = np.lib.stride_tricks.sliding_window_view(rng.normal(size=200_004), 5).sum(axis=-1)
    blocks = sums.reshape(-1, 20).mean(axis=1)
    # the long-run variance of sums over five sessions is 25
    assert 20 * blocks.var() * overlap_factor(5, 20) ** 2 == pytest.approx(25, rel=0.04)
    assert 20 * blocks.var() < 24
    assert overlap_factor(1, 1) == overlap_factor(1, 20) == 1
    with pytest.raises(ValueError, match="shorter than the horizon"):
        overlap_factor(6, 5)


def test_with_blocks_of_one_the_standard_error_is_the_classic_one() -> None:
    values = np.random.default_rng(3).normal(size=400)
    found = mean_interval(values, block=1, draws=20_000)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 20, rel=0.03)
    assert found.low == pytest.approx(values.mean() - 1.966 * values.std(ddof=1) / 20, abs=0.005)


def test_intervals_of_independent_series_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    trials = 1500
    found = (mean_interval(rng.normal(size=120), 20, 0.95, 400, seed) for seed in range(trials))
    missed = sum(not interval.low <= 0 <= interval.high for interval in found)
    # nominal 5 %; a true rate of 6.5 % would pass 117 in 1,500 trials with a probability of 2.4 %
    assert 45 <= missed <= 117


def test_lower_bounds_of_dependent_series_err_about_as_rarely_as_they_say() -> None:
    rng = np.random.default_rng(5)
    trials = 1500
    errors = plain = 0
    for seed in range(trials):
        series = np.convolve(rng.normal(size=124), np.ones(5), "valid")
        errors += lower_bound(series, 20, 0.98, 400, seed).low > 0
        plain += lower_bound(series, 1, 0.98, 400, seed).low > 0
    # nominal 2 %, measured about 3 %; taking the sessions for independent is wrong about six times as often
    assert errors / trials < 0.045
    assert plain / trials > 0.12


def test_a_paired_difference_sees_what_two_noisy_series_hide() -> None:
    rng = np.random.default_rng(6)
    common = rng.normal(0, 0.02, 250)
    first, second = common + 0.001 + rng.normal(0, 0.001, 250), common + rng.normal(0, 0.001, 250)
    assert paired_difference(first, second).low > 0
    assert mean_interval(first).low < 0 < mean_interval(first).high


def test_the_sharpe_interval_covers_a_known_ratio() -> None:
    rng = np.random.default_rng(7)
    truth = 0.08 * math.sqrt(252)
    found = [sharpe_interval(rng.normal(0.0008, 0.01, 500), draws=300, seed=i) for i in range(200)]
    covered = sum(interval.low <= truth <= interval.high for interval in found)
    # nominal 95 %: fewer than 180 of 200 has a probability of .1 %
    assert covered >= 180


def test_the_sharpe_estimate_is_the_textbook_one() -> None:
    values = np.random.default_rng(8).normal(0.001, 0.01, 252)
    assert sharpe_interval(values).estimate == pytest.approx(values.mean() / values.std(ddof=1) * math.sqrt(252))


def test_a_leveraged_copy_has_no_other_sharpe_ratio() -> None:
    values = np.random.default_rng(9).normal(0.001, 0.01, 252)
    found = sharpe_difference(2 * values, values)
    assert (found.estimate, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_win_rates_are_ratios_of_counts_and_stay_within_bounds() -> None:
    wins, trades = np.zeros(90), np.zeros(90)
    trades[::3], wins[::3] = 2, 2
    found = win_rate_interval(wins, trades)
    assert (found.estimate, found.low, found.high) == (1, 1, 1)
    wins[::6] = 1
    found = win_rate_interval(wins, trades)
    assert found.estimate == pytest.approx(0.75)
    assert 0 <= found.low <= 0.75 <= found.high <= 1


def test_the_win_rate_of_returns_counts_those_above_zero() -> None:
    assert return_win_rate_interval([0.1, -0.1, 0.0, 0.2] * 20).estimate == 0.5


@pytest.mark.parametrize("values", [[1.0] * 59, [1.0, math.nan] * 40, [[1.0]] * 80])
def test_series_that_bear_no_interval_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"sessions|series"):
        mean_interval(values)


def test_returns_without_variation_have_no_sharpe_interval_and_no_trades_no_win_rate() -> None:
    with pytest.raises(ValueError, match="vary"):
        sharpe_interval(np.zeros(100))
    with pytest.raises(ValueError, match="no trade"):
        win_rate_interval(np.zeros(100), np.zeros(100))


def test_paired_series_must_be_equally_long() -> None:
    with pytest.raises(ValueError, match="equally long"):
        paired_difference(np.zeros(80), np.zeros(81))
