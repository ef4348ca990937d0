"""The memory of an outage: who is turned away, who asks again, and when."""

from __future__ import annotations

import pytest

from data_pipeline.library.outage import Outage
from utils.errors import LibraryUnavailable


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def turned_away(outage: Outage) -> bool:
    try:
        outage.check_due()
    except LibraryUnavailable:
        return True
    return False


def test_a_database_that_answers_turns_nobody_away(time) -> None:
    outage = Outage(time)
    assert (outage.known, turned_away(outage)) == (False, False)


def test_the_pauses_between_probes_double_from_a_tenth_of_a_second_to_five_seconds(time) -> None:
    outage = Outage(time)
    outage.began("away")
    pauses = []
    for _ in range(9):
        started = time.now
        while turned_away(outage):
            time.now += 0.01
        pauses.append(round(time.now - started, 1))
        outage.probe_failed("away")
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_calls_that_fail_at_one_moment_are_one_finding(time) -> None:
    outage = Outage(time)
    assert [outage.began("first"), outage.began("second"), outage.began("third")] == [True, False, False]
    time.now += 0.11
    assert not turned_away(outage)
    assert "first" in str(outage.as_error())


def test_whoever_is_turned_away_is_told_why_and_when_it_is_asked_again(time) -> None:
    outage = Outage(time)
    outage.began("the server is gone")
    with pytest.raises(LibraryUnavailable, match=r"the server is gone; it is asked again in 0\.1 s"):
        outage.check_due()


def test_somebody_who_did_something_about_it_may_ask_at_once(time) -> None:
    outage = Outage(time)
    outage.began("away")
    outage.ask_now()
    assert not turned_away(outage)


def test_a_connection_alone_does_not_shorten_the_pauses_but_the_end_of_the_outage_does(time) -> None:
    outage = Outage(time)
    outage.began("away")
    outage.probe_failed("away")
    outage.answered()
    assert not outage.known
    outage.probe_failed("refuses every statement")
    time.now += 0.3
    assert turned_away(outage)
    assert outage.ended() is True
    assert (outage.known, outage.ended()) == (False, False)
    outage.began("away again")
    time.now += 0.11
    assert not turned_away(outage)
