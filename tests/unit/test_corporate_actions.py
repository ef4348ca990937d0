from __future__ import annotations

import os
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from market_data_builders import make_bar

from data_pipeline.corporate_actions import actions_of, as_prior_close_factor, split_ratio
from data_pipeline.feeds.replay import ReplayFeed
from utils.schema import CorporateAction


def kinds(factor: float, close: float = 50.0, prior: float = 100.0, tolerance: float = 1e-6) -> list[tuple[str, float]]:
    bar = replace(make_bar(1, close, factor=factor), factor_tolerance=tolerance)
    return [(action.kind, action.value) for action in actions_of(bar, prior)]


@pytest.mark.parametrize("ratio", [2, 3, 7, 20, 1.5, 1.25, 4 / 3, 2.5, 1.2, 0.5, 0.1, 1 / 8, 0.02, 2 / 3])
def test_simple_fractions_are_splits_of_exactly_that_ratio(ratio: float) -> None:
    assert kinds(ratio * (1 + 5e-7)) == [("split", pytest.approx(ratio, rel=1e-12))]


def test_a_split_that_is_nearly_simple_keeps_its_own_ratio() -> None:
    assert kinds(1.998) == [("split", 1.998)]


@given(st.floats(0.0005, 0.14), st.floats(5, 500))
def test_a_dividend_is_recovered_from_the_factor_that_it_makes(part: float, prior: float) -> None:
    factor = 1 / (1 - part)
    [(kind, cash)] = kinds(factor, prior=prior)
    assert kind == "dividend"
    assert cash == pytest.approx(part * prior, rel=1e-9)


def test_a_split_and_a_dividend_on_one_day_are_told_apart_in_booking_order() -> None:
    share_after = 100.0 / 2
    factor = 2 * share_after / (share_after - 0.5)
    assert kinds(factor) == [("split", 2.0), ("dividend", pytest.approx(0.5, rel=1e-9))]


@pytest.mark.parametrize("factor", [None, 1.0, 1 + 1e-5, 1 - 1e-5, 0.97, 0.995])
def test_no_action_without_a_factor_or_near_one_or_where_no_action_explains_it(factor: float | None) -> None:
    assert actions_of(make_bar(1, 50.0, factor=factor), 100.0) == ()


def test_a_large_fall_in_both_closes_is_a_real_fall() -> None:
    assert kinds(1.0, close=20.0, prior=100.0) == []


def test_a_factor_within_the_error_of_the_printed_digits_is_nothing() -> None:
    assert kinds(1.002, tolerance=0.003) == []
    assert kinds(1.002, tolerance=0.001) == [("dividend", pytest.approx(0.1996, rel=1e-3))]


def test_a_factor_that_the_digits_hardly_determine_says_nothing() -> None:
    assert kinds(2.0, tolerance=0.2) == []


def test_the_first_bar_has_no_action() -> None:
    assert actions_of(make_bar(0, 50.0, factor=2.0), None) == ()


def test_sums_worth_less_than_the_smallest_split_are_never_splits() -> None:
    assert split_ratio(1.1) is None
    assert split_ratio(1.19) is None
    assert split_ratio(300.0) is None


def test_the_other_convention_is_converted_and_leaves_splits_alone() -> None:
    converted = as_prior_close_factor(1 + 3.08 / 27.39, close=27.39, prior_close=29.97)
    assert 29.97 * (1 - 1 / converted) == pytest.approx(3.08)
    assert as_prior_close_factor(2.0, close=44.86, prior_close=88.99) == 2.0
    assert as_prior_close_factor(1.0, close=44.86, prior_close=88.99) == 1.0


@pytest.fixture(scope="module")
def sample_actions() -> dict[str, list[CorporateAction]]:
    return actions_in(ReplayFeed("sample"))


def actions_in(feed: ReplayFeed) -> dict[str, list[CorporateAction]]:
    found: dict[str, list[CorporateAction]] = {symbol: [] for symbol in feed.symbols}
    prior: dict[str, float] = {}
    for update in (update for instant in feed.instants() for update in instant.updates if update.update_type == "bar"):
        found[update.symbol] += actions_of(update.data, prior.get(update.symbol))
        prior[update.symbol] = update.data.close
    return found


def test_the_sample_has_the_splits_that_happened_and_no_other(sample_actions: dict[str, list[CorporateAction]]) -> None:
    splits = {
        (symbol, action.session, action.value)
        for symbol, actions in sample_actions.items()
        for action in actions
        if action.kind == "split"
    }
    assert splits == {
        ("AAPL", date(2000, 6, 21), 2.0),
        ("AAPL", date(2005, 2, 28), 2.0),
        ("MSFT", date(2003, 2, 18), 2.0),
    }


def test_the_sample_has_microsofts_special_dividend_and_the_quarterly_ones(
    sample_actions: dict[str, list[CorporateAction]],
) -> None:
    microsoft = {action.session: action.value for action in sample_actions["MSFT"] if action.kind == "dividend"}
    assert microsoft[date(2004, 11, 15)] == pytest.approx(3.08, abs=0.001)
    assert microsoft[date(2012, 2, 14)] == pytest.approx(0.20, abs=0.001)
    apple = [action.value for action in sample_actions["AAPL"] if action.kind == "dividend"]
    assert apple == pytest.approx([2.65, 2.65, 2.65], abs=0.001)
    ibm = [action for action in sample_actions["IBM"] if action.kind == "dividend"]
    assert len(ibm) == 52
    assert {action.session.year: action.value for action in ibm}[2012] == pytest.approx(0.85, abs=0.001)


@pytest.mark.skipif("REPLAY_DATA_DIR" not in os.environ, reason="REPLAY_DATA_DIR names no folder of real history")
def test_split_adjusted_history_shows_dividends_and_no_split() -> None:
    found = actions_in(ReplayFeed(Path(os.environ["REPLAY_DATA_DIR"]), ["AAPL", "KO", "GOOG", "FB"]))
    assert {action.kind for actions in found.values() for action in actions} == {"dividend"}
    assert [round(action.value, 3) for action in found["KO"]] == [0.255] * 2 + [0.28] * 4 + [0.305] * 4 + [0.33] * 3
    assert found["GOOG"] == found["FB"] == []
