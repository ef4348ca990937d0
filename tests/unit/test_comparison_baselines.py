"""The simple forecasts that every comparison of policies is held against."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import pytest
from market_data_builders import bar_update, make_bar

from data_pipeline.asof_store import AsOfStore
from data_pipeline.calendar import ExchangeCalendar
from training.comparison_outcomes import BASELINES, _baselines


def forecasts(closes: Sequence[float], later: Sequence[float] = ()) -> dict[str, str | None]:
    """Return what each baseline says after some closes, None where it abstains; `later` closes are not known yet."""
    bars = [make_bar(number, close) for number, close in enumerate((*closes, *later))]
    store = AsOfStore(ExchangeCalendar(start=date(2014, 1, 1), end=date(2015, 12, 31)))
    for bar in bars:
        store.add(bar_update(bar))
    said = _baselines(store.as_of(bars[len(closes) - 1].available_at), "AAA")
    return {name: None if record.abstained else record.recommendation for name, record in said.items()}


def test_each_follows_its_own_stretch_of_the_past() -> None:
    # a year up, a month down, and up on the last day: above where it was a year ago, above its average, up since yesterday
    year = [100.0 + day for day in range(232)]
    month = [331.0 - 2 * day for day in range(20)]
    assert forecasts([*year, *month, month[-1] + 1]) == dict.fromkeys(BASELINES, "buy")
    # the same mirrored; who buys and holds still does
    fallen = [500.0 - close for close in (*year, *month, month[-1] + 1)]
    assert forecasts(fallen) == {**dict.fromkeys(BASELINES, "sell"), "always up": "buy"}


def test_momentum_leaves_the_last_month_out_and_the_average_does_not() -> None:
    crashed = [100.0] * 100 + [200.0] * 132 + [90.0] * 21
    assert forecasts(crashed) == {
        "always up": "buy", "yesterday's direction": "hold", "200-day average": "sell", "12-1 momentum": "buy",
    }  # fmt: skip


@pytest.mark.parametrize(("bars", "able"), [(1, 1), (2, 2), (199, 2), (200, 3), (252, 3), (253, 4)])
def test_one_that_does_not_reach_back_far_enough_abstains(bars: int, able: int) -> None:
    said = forecasts([100.0 + day for day in range(bars)])
    assert [name for name, word in said.items() if word is not None] == list(BASELINES[:able])


def test_no_baseline_sees_a_later_close() -> None:
    known = [100.0 + day for day in range(260)]
    assert forecasts(known, later=[1.0] * 30) == forecasts(known)
