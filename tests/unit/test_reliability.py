"""How far a panel can be trusted: agreement against an independent implementation, votes, shared mistakes."""

from __future__ import annotations

import threading
from typing import Any

import krippendorff
import numpy as np
import pytest

from judge.reliability import WINDOW, ReliabilityWindow, effective_votes, error_correlation, krippendorff_alpha


def _gappy(seed: int) -> Any:
    """Return random grades of 2 to 6 judges on 3 to 120 items, with judges that follow each other and gaps."""
    rng = np.random.default_rng(seed)
    items, judges = int(rng.integers(3, 120)), int(rng.integers(2, 7))
    true = rng.uniform(0, 100, (items, 1))
    ratings = np.clip(true + rng.normal(0, rng.uniform(1, 60), (items, judges)), 0, 100).round(int(rng.integers(0, 3)))
    gaps = rng.uniform(size=ratings.shape) < rng.uniform(0, 0.6)
    gaps[:2] = False
    ratings[gaps] = np.nan
    return ratings


@pytest.mark.parametrize("seed", range(150))
def test_alpha_equals_that_of_an_independent_implementation_on_grades_with_gaps(seed: int) -> None:
    ratings = _gappy(seed)
    expected = krippendorff.alpha(reliability_data=ratings.T, level_of_measurement="interval")
    assert krippendorff_alpha(ratings) == pytest.approx(expected, abs=1e-9)


def test_alpha_is_one_for_agreement_and_near_zero_for_chance() -> None:
    rng = np.random.default_rng(7)
    same = np.repeat(rng.uniform(0, 100, 50)[:, None], 3, axis=1)
    assert krippendorff_alpha(same) == pytest.approx(1.0)
    assert krippendorff_alpha(rng.uniform(0, 100, (400, 3))) == pytest.approx(0.0, abs=0.1)


def test_alpha_matches_the_published_example_with_missing_grades() -> None:
    # Krippendorff (2011), example C: interval alpha .849
    nan = np.nan
    table = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    ).T
    assert krippendorff_alpha(table) == pytest.approx(0.849, abs=5e-4)


def test_alpha_is_undefined_without_two_grades_or_variation() -> None:
    assert krippendorff_alpha(np.array([[50.0, np.nan], [np.nan, 60.0]])) is None
    assert krippendorff_alpha(np.full((5, 2), 50.0)) is None


def test_copies_of_a_judge_are_worth_one_vote_and_strangers_all() -> None:
    rng = np.random.default_rng(3)
    one = rng.uniform(0, 100, 200)
    assert effective_votes(np.column_stack((one, one, one))) == pytest.approx(1.0)
    assert effective_votes(rng.uniform(0, 100, (200, 3))) == pytest.approx(3.0, abs=0.5)
    assert effective_votes(np.column_stack((one, 100 - one))) == 2.0
    assert effective_votes(np.column_stack((one, one))[:5]) is None


def test_judges_that_miss_together_correlate_in_their_errors_and_independent_ones_do_not() -> None:
    rng = np.random.default_rng(11)
    outcomes = rng.uniform(size=600) < 0.5
    shared = rng.normal(0, 20, 600)
    truth = np.where(outcomes, 75.0, 25.0)
    apart = rng.normal(0, 20, 600)
    scores = np.clip(np.column_stack((truth + shared, truth + shared + rng.normal(0, 2, 600), truth + apart)), 0, 100)
    found = error_correlation(scores, outcomes.tolist())
    assert found == pytest.approx(np.corrcoef((scores / 100 - outcomes[:, None]).T))
    assert found[0, 1] > 0.9
    assert found[0, 1] > found[0, 2]


def test_error_correlation_uses_common_items_only_and_says_where_there_are_too_few() -> None:
    rng = np.random.default_rng(5)
    scores = rng.uniform(0, 100, (60, 3))
    scores[:30, 1] = np.nan
    scores[15:, 2] = np.nan
    found = error_correlation(scores, [True, False] * 30)
    labels = np.array([1.0, 0.0] * 30)
    both = scores[30:, :2] / 100 - labels[30:, None]
    assert found[0, 1] == pytest.approx(np.corrcoef(both.T)[0, 1])
    assert np.isnan(found[0, 2])
    assert np.isnan(found[1, 2])
    with pytest.raises(ValueError, match="60 graded items need as many outcomes, not 2"):
        error_correlation(scores, [True, False])


def test_the_window_forgets_what_is_older_than_its_length() -> None:
    rng = np.random.default_rng(9)
    long, fresh = ReliabilityWindow(["a", "b"]), ReliabilityWindow(["b", "a"])
    for value in rng.uniform(0, 100, 150):
        long.add({"a": value, "b": 100 - value})
    for value in rng.uniform(0, 100, WINDOW):
        grades = {"a": value, "b": value / 2 + 20}
        last, alone = long.add(grades), fresh.add(grades)
    assert last == alone


def test_items_that_one_judge_was_to_grade_alone_push_no_comparable_ones_out() -> None:
    rng = np.random.default_rng(4)
    window = ReliabilityWindow(["a", "b"])
    for value in rng.uniform(0, 100, WINDOW):
        known = window.add({"a": value, "b": 0.5 * value + 10})
    for value in rng.uniform(0, 100, 2 * WINDOW):
        alone = window.add({"a": value}, comparable=False)
    assert (alone.alpha, alone.effective_votes) == (known.alpha, 1.0)
    assert known.alpha is not None


def test_a_window_that_several_threads_fill_loses_nothing() -> None:
    window = ReliabilityWindow(["a", "b"])
    rng = np.random.default_rng(2)
    values = rng.uniform(0, 100, (4, 40))

    def fill(own: Any) -> None:
        for value in own:
            window.add({"a": value, "b": value})

    threads = [threading.Thread(target=fill, args=(own,)) for own in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    everything = np.repeat(np.append(values.ravel(), 50.0)[:, None], 2, axis=1)
    last = window.add({"a": 50.0, "b": 50.0})
    assert last.alpha == pytest.approx(krippendorff_alpha(everything))
    assert last.effective_votes == pytest.approx(1.0)
