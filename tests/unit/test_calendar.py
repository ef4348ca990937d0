from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime

import pytest

from data_pipeline.calendar import ExchangeCalendar
from utils.errors import ConfigError


@pytest.fixture(scope="module")
def nyse() -> ExchangeCalendar:
    return ExchangeCalendar("XNYS", start=date(2014, 1, 1), end=date(2014, 12, 31))


def test_sessions_leave_out_weekends_and_holidays(nyse: ExchangeCalendar) -> None:
    assert nyse.sessions(date(2014, 7, 2), date(2014, 7, 8)) == [
        date(2014, 7, 2), date(2014, 7, 3), date(2014, 7, 7), date(2014, 7, 8),
    ]  # fmt: skip
    assert not nyse.is_session(date(2014, 7, 4))
    assert len(nyse.sessions(date(2014, 1, 1), date(2014, 12, 31))) == 252


def test_open_and_close_follow_daylight_saving_in_utc(nyse: ExchangeCalendar) -> None:
    assert nyse.open_time(date(2014, 1, 2)) == datetime(2014, 1, 2, 14, 30, tzinfo=UTC)
    assert nyse.close_time(date(2014, 1, 2)) == datetime(2014, 1, 2, 21, 0, tzinfo=UTC)
    assert nyse.close_time(date(2014, 7, 2)) == datetime(2014, 7, 2, 20, 0, tzinfo=UTC)


@pytest.mark.parametrize("day", [date(2014, 7, 3), date(2014, 11, 28), date(2014, 12, 24)])
def test_half_days_close_at_one_in_the_afternoon_of_new_york(nyse: ExchangeCalendar, day: date) -> None:
    local_one_o_clock = 17 if day.month == 7 else 18
    assert nyse.close_time(day) == datetime(day.year, day.month, day.day, local_one_o_clock, tzinfo=UTC)


def test_stepping_starts_from_sessions_and_from_days_between_them(nyse: ExchangeCalendar) -> None:
    assert nyse.next_session(date(2014, 7, 3)) == date(2014, 7, 7)
    assert nyse.next_session(date(2014, 7, 5)) == date(2014, 7, 7)
    assert nyse.next_session(date(2014, 7, 3), 5) == date(2014, 7, 11)
    assert nyse.previous(date(2014, 7, 7)) == date(2014, 7, 3)
    assert nyse.previous(date(2014, 7, 6), 2) == date(2014, 7, 2)


def test_outcome_horizons_beyond_the_end_are_covered(nyse: ExchangeCalendar) -> None:
    assert nyse.next_session(date(2014, 12, 31), 60) == date(2015, 3, 30)


def test_the_future_beyond_a_year_can_be_asked_for() -> None:
    later = ExchangeCalendar(start=date(2030, 1, 1), end=date(2030, 12, 31))
    assert later.close_time(date(2030, 11, 29)) == datetime(2030, 11, 29, 18, tzinfo=UTC)


def test_a_step_out_of_the_range_is_refused_and_says_the_range(nyse: ExchangeCalendar) -> None:
    with pytest.raises(ConfigError, match="wider start and end"):
        nyse.next_session(date(2014, 12, 31), 5000)
    with pytest.raises(ConfigError, match="wider start and end"):
        nyse.previous(date(2014, 1, 2), 5000)


def test_a_day_that_is_no_session_has_no_close(nyse: ExchangeCalendar) -> None:
    with pytest.raises(ConfigError, match="2014-07-04 is not a session"):
        nyse.close_time(date(2014, 7, 4))


def test_an_unknown_exchange_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'XNYZ'; did you mean '"):
        ExchangeCalendar("XNYZ", start=date(2014, 1, 1), end=date(2014, 2, 1))


def test_a_range_before_the_exchange_keeps_records_is_refused() -> None:
    with pytest.raises(ConfigError, match="XHKG does not cover 1950"):
        ExchangeCalendar("XHKG", start=date(1950, 1, 1), end=date(1950, 2, 1))


def test_an_end_before_the_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="lies before the start"):
        ExchangeCalendar(start=date(2014, 2, 1), end=date(2014, 1, 1))


def test_importing_the_feed_imports_neither_pandas_nor_the_calendar_package() -> None:
    code = "import sys, data_pipeline.feeds.factory; print({'pandas', 'exchange_calendars'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "set()"
