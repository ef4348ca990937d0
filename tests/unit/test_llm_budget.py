"""The budget: limits of day and decision, reservations, restarts and threads."""

from __future__ import annotations

import json
import threading
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import ProviderError
from utils.llm.budget import MAX_ACCOUNTS, Budget

DAY = date(2026, 11, 27)


class Calendar:
    def __init__(self) -> None:
        self.day = DAY

    def __call__(self) -> date:
        return self.day


class Gauges:
    def __init__(self) -> None:
        self.values: dict[str, float | None] = {}

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        raise AssertionError(name)

    def gauge(self, name: str, value: float | None, **labels: str) -> None:
        self.values[name] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        raise AssertionError(name)


def refused(budget: Budget, usd: float, tokens: int = 1, account: str = "") -> str:
    with pytest.raises(ProviderError) as caught:
        budget.reserve(usd, tokens, account)
    assert caught.value.kind == "budget"
    return str(caught.value)


def test_a_call_that_could_exceed_the_day_is_refused_and_names_the_setting() -> None:
    budget = Budget(1.0, today=lambda: DAY)
    held = budget.reserve(0.6, 10)
    assert "budget.usd_per_day" in refused(budget, 0.6)
    budget.settle(held, 0.1, 5)
    budget.reserve(0.6, 10)
    assert budget.spent_today == pytest.approx(0.1)


def test_the_budget_is_exhausted_once_a_call_was_refused_until_one_fits_again() -> None:
    budget = Budget(1.0, today=lambda: DAY)
    held = budget.reserve(0.9, 10)
    refused(budget, 0.2)
    assert budget.exhausted
    budget.settle(held, 0.0, 0)
    budget.reserve(0.2, 10)
    assert not budget.exhausted


def test_what_costs_nothing_is_allowed_when_nothing_is_left() -> None:
    budget = Budget(0.0, today=lambda: DAY)
    assert budget.exhausted
    budget.settle(budget.reserve(0.0, 10), 0.0, 10)
    assert "budget.usd_per_day" in refused(budget, 1e-6)


def test_a_decision_has_limits_of_its_own_in_usd_and_in_tokens() -> None:
    budget = Budget(100.0, 0.5, 1000, today=lambda: DAY)
    budget.settle(budget.reserve(0.4, 400, "one"), 0.4, 400)
    assert "budget.usd_per_decision" in refused(budget, 0.2, 1, "one")
    assert "budget.tokens_per_decision" in refused(budget, 0.0, 601, "one")
    budget.reserve(0.2, 601, "two")
    budget.reserve(50.0, 10**6, "")


def test_a_decision_of_today_is_still_the_same_decision_tomorrow() -> None:
    calendar = Calendar()
    budget = Budget(100.0, 0.5, 1000, today=calendar)
    budget.settle(budget.reserve(0.4, 1, "one"), 0.4, 1)
    calendar.day = date(2026, 11, 28)
    assert budget.spent_today == 0
    assert "budget.usd_per_decision" in refused(budget, 0.2, 1, "one")


def test_the_accounts_of_old_decisions_are_forgotten_but_never_those_with_open_calls() -> None:
    budget = Budget(1e6, 0.5, 1000, today=lambda: DAY)
    budget.reserve(0.4, 1, "open")
    budget.settle(budget.reserve(0.4, 1, "done"), 0.4, 1)
    for number in range(MAX_ACCOUNTS):
        budget.settle(budget.reserve(0.1, 1, f"d{number}"), 0.1, 1)
    assert "usd_per_decision" in refused(budget, 0.2, 1, "open")
    budget.reserve(0.2, 1, "done")


def test_spending_survives_a_restart_and_ends_with_the_day(tmp_path: Path) -> None:
    path = tmp_path / "llm" / "spending.json"
    first = Budget(1.0, path=path, today=lambda: DAY)
    first.settle(first.reserve(0.7, 1), 0.6, 1)
    first.close()
    again = Budget(1.0, path=path, today=lambda: DAY)
    assert again.spent_today == pytest.approx(0.6)
    refused(again, 0.5)
    assert Budget(1.0, path=path, today=lambda: date(2026, 11, 28)).spent_today == 0


def test_calls_that_were_out_in_a_crash_count_with_their_estimate(tmp_path: Path) -> None:
    path = tmp_path / "spending.json"
    for _ in range(4):  # each start reserves and dies before it settles
        Budget(1.0, path=path, today=lambda: DAY).reserve(0.24, 1)
    refused(Budget(1.0, path=path, today=lambda: DAY), 0.24)


def test_after_a_crash_under_load_a_hundredth_of_the_day_at_most_is_counted_that_was_not_committed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spending.json"
    crashed = Budget(1.0, path=path, today=lambda: DAY)
    crashed.reserve(0.1, 1)  # stays out
    for _ in range(30):
        crashed.settle(crashed.reserve(0.001, 1), 0.001, 1)
        ahead = Budget(1.0, path=path, today=lambda: DAY).spent_today - crashed.spent_today - 0.1
        assert -1e-9 <= ahead <= 0.01 + 1e-9


def test_the_first_call_of_a_new_day_is_kept_too(tmp_path: Path) -> None:
    path, calendar = tmp_path / "spending.json", Calendar()
    budget = Budget(1.0, path=path, today=calendar)
    budget.settle(budget.reserve(0.9, 1), 0.9, 1)
    calendar.day = date(2026, 11, 28)
    budget.settle(budget.reserve(0.2, 1), 0.2, 1)
    budget.close()
    assert Budget(1.0, path=path, today=calendar).spent_today == pytest.approx(0.2)


def test_calls_one_after_another_write_the_file_once_in_a_hundredth_of_the_day(tmp_path: Path) -> None:
    path, written = tmp_path / "spending.json", set()
    budget = Budget(1.0, path=path, today=lambda: DAY)
    for _ in range(100):
        budget.settle(budget.reserve(0.002, 1), 0.001, 1)
        written.add(path.read_text())
    assert 5 <= len(written) <= 15
    assert 0.1 <= Budget(1.0, path=path, today=lambda: DAY).spent_today <= 0.12


@pytest.mark.parametrize("content", ["", "{", "[]", '{"day": "2026-11-27", "usd": NaN}', '{"day": "soon", "usd": 1}'])
def test_a_spoilt_file_counts_as_the_whole_day_spent(tmp_path: Path, content: str) -> None:
    path = tmp_path / "spending.json"
    path.write_text(content)
    assert Budget(2.0, path=path, today=lambda: DAY).exhausted


def test_a_folder_that_cannot_be_written_does_not_stop_the_calls(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    budget = Budget(1.0, path=tmp_path / "file" / "spending.json", today=lambda: DAY)
    budget.settle(budget.reserve(0.5, 1), 0.5, 1)
    assert budget.spent_today == 0.5


def test_a_clock_that_is_set_back_does_not_give_the_money_back() -> None:
    calendar = Calendar()
    budget = Budget(1.0, today=calendar)
    budget.settle(budget.reserve(1.0, 1), 1.0, 1)
    calendar.day = date(2026, 11, 26)
    refused(budget, 0.1)


def test_calls_that_are_out_across_midnight_and_those_of_the_new_day_together_stay_within_it(tmp_path: Path) -> None:
    calendar, path = Calendar(), tmp_path / "spending.json"
    budget = Budget(1.0, path=path, today=calendar)
    held = budget.reserve(0.9, 1)
    calendar.day = date(2026, 11, 28)
    refused(budget, 0.2)
    refused(Budget(1.0, path=path, today=calendar), 0.2)  # nor does a restart forget it
    fits = budget.reserve(0.1, 1)
    budget.settle(held, 0.5, 1)
    assert budget.spent_today == pytest.approx(0.5)
    budget.reserve(0.4, 1)
    refused(budget, 0.1)
    budget.settle(fits, 0.1, 1)
    assert budget.spent_today == pytest.approx(0.6)


def test_what_is_left_is_told_as_a_gauge() -> None:
    gauges = Gauges()
    budget = Budget(1.0, today=lambda: DAY, telemetry=gauges)
    budget.settle(budget.reserve(0.5, 1), 0.25, 1)
    assert gauges.values == {"llm_budget_left_usd": 0.75}


def test_threads_together_never_reserve_more_than_the_day_has(tmp_path: Path) -> None:
    path = tmp_path / "spending.json"
    budget = Budget(1.0, path=path, today=lambda: DAY)
    taken: list[float] = []

    def work() -> None:
        for _ in range(50):
            try:
                held = budget.reserve(0.01, 1)
            except ProviderError:
                continue
            budget.settle(held, 0.01, 1)
            taken.append(0.01)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(taken) == 100
    assert json.loads(path.read_text())["usd"] == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 0.4), st.floats(0, 1)), max_size=40))
def test_settling_below_the_estimate_never_exceeds_the_day(calls: list[tuple[float, float]]) -> None:
    budget = Budget(1.0, today=lambda: DAY)
    for estimate, share in calls:
        try:
            held = budget.reserve(estimate, 1)
        except ProviderError:
            continue
        budget.settle(held, estimate * share, 1)
    assert budget.spent_today <= 1.0 + 1e-6
