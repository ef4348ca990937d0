"""What gates may spend: never more than the budget in any sequence of gates, and at most what is allowed by then."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.error_budget import (
    LARGEST_ALPHA,
    LEAST_SHARE,
    YEAR,
    GateSpending,
    allowed,
    next_alpha,
    settled,
    waits_until,
    why_it_waits,
)

START = datetime(2014, 1, 6, 21, tzinfo=UTC)
BUDGET = 0.05


def spend(budget: float, gaps_days: list[float], verdicts: list[bool] | None = None) -> list[GateSpending]:
    """Ask for a gate after each gap; those whose verdict did not look at the bound spend nothing."""
    spent: list[GateSpending] = []
    at = START
    looked = verdicts or [True] * len(gaps_days)
    for gap, looks in zip(gaps_days, looked, strict=False):
        at += timedelta(days=gap)
        alpha = next_alpha(budget, spent, at)
        if alpha > 0 and looks:
            spent.append(GateSpending(at, alpha))
    return spent


@given(
    st.floats(0.001, 0.49),
    st.lists(st.floats(0, 200), max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_no_sequence_of_gates_spends_more_than_the_budget_of_a_year_nor_more_than_is_allowed_by_then(
    budget: float, gaps: list[float], looked: list[bool]
) -> None:
    spent = spend(budget, gaps, looked)
    assert all(0 < item.alpha <= LARGEST_ALPHA for item in spent)
    for item in spent:
        years = math.floor((item.at - spent[0].at) / YEAR)
        begun = spent[0].at + years * YEAR
        by_then = math.fsum(other.alpha for other in spent if begun <= other.at <= item.at)
        assert by_then <= allowed(budget, (item.at - begun) / YEAR) + 1e-9
        assert by_then <= budget + 1e-9


@given(st.floats(0.001, 0.49), st.lists(st.floats(0, 40), min_size=1, max_size=30))
def test_a_gate_is_allowed_exactly_from_the_instant_that_is_named(budget: float, gaps: list[float]) -> None:
    spent = spend(budget, gaps)
    at = spent[-1].at
    for _ in range(40):  # drain what is left now
        alpha = next_alpha(budget, spent, at)
        spent += [GateSpending(at, alpha)] if alpha else []
    until = waits_until(budget, spent, at)
    assert until is not None
    assert until > at
    assert next_alpha(budget, spent, until + timedelta(milliseconds=1)) > 0
    assert next_alpha(budget, spent, at + 0.99 * (until - at)) == 0


def test_the_first_gate_has_the_level_of_a_single_one_and_the_next_follow_every_two_months() -> None:
    spent = spend(BUDGET, [1.0] * 364)
    days = [(item.at - spent[0].at).days for item in spent]
    assert spent[0].alpha == pytest.approx(0.02)
    assert days == [0, 61, 122, 183, 244, 305]
    assert all(item.alpha >= LEAST_SHARE * BUDGET for item in spent)


def test_a_new_year_begins_a_year_after_the_first_gate() -> None:
    spent = spend(BUDGET, [1.0] * 500)
    second_year = [item for item in spent if item.at >= spent[0].at + YEAR]
    assert second_year[0].alpha == pytest.approx(0.02)


def test_a_verdict_that_lacked_evidence_spends_nothing_and_the_others_what_was_reserved() -> None:
    assert settled(0.005, "insufficient_evidence") == {"error_spent": 0.0, "level": 0.995}
    for verdict in ("promote", "reject"):
        assert settled(0.005, verdict)["error_spent"] == 0.005


def test_who_waits_is_told_until_when() -> None:
    spent = [GateSpending(START, 0.02)]
    assert why_it_waits(BUDGET, [], START) is None
    waiting = why_it_waits(BUDGET, spent, START + timedelta(days=1))
    assert waiting == "the error budget of 0.05 a year allows the next gate on 2014-03-08T17:00:00Z"


def test_gates_of_a_year_on_policies_without_skill_promote_as_rarely_as_the_union_bound_says() -> None:
    """5,000 years of gates, each on an independent period: the worst case of the bound, and its standard error is .003."""
    rng = np.random.default_rng(7)
    levels = [item.alpha for item in spend(BUDGET, [1.0] * 365)]
    thresholds = np.array([NormalDist().inv_cdf(1 - alpha) for alpha in levels])
    promoted = (rng.standard_normal((5000, len(levels))) > thresholds).any(axis=1).mean()
    assert math.fsum(levels) <= BUDGET + 1e-9
    assert 0.035 < promoted < 0.059
