"""What follows a failed call: waits, repairs, the breaker, and models that are off."""

from __future__ import annotations

import random
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import ProviderError, ProviderFault
from utils.llm.adapter import RawAnswer, VendorError
from utils.llm.base import ChatMessage
from utils.llm.call_policy import Attempts, CircuitBreaker, ModelGate, full_jitter_s, repaired


class Time:
    """A clock and a calendar that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.day = date(2026, 11, 27)

    def monotonic(self) -> float:
        return self.now

    def today(self) -> date:
        return self.day


def fault(kind: ProviderFault, **details: object) -> VendorError:
    return VendorError(f"a fault of kind {kind}", kind=kind, **details)  # type: ignore[arg-type]


def failing(gate: ModelGate, kind: ProviderFault) -> None:
    gate.enter()
    gate.leave(fault(kind))


def kind_of_refusal(gate: ModelGate) -> str:
    with pytest.raises(ProviderError) as caught:
        gate.enter()
    return caught.value.kind


@given(retries=st.integers(0, 40), seed=st.integers(0, 1000))
def test_the_back_off_never_exceeds_its_doubling_bound_and_never_eight_seconds(retries: int, seed: int) -> None:
    assert 0.0 <= full_jitter_s(retries, random.Random(seed)) <= min(8.0, 0.5 * 2**retries)


def test_an_overloaded_vendor_is_asked_three_times_in_all() -> None:
    attempts = Attempts(random.Random(1))
    assert [attempts.after(fault("overload"), 60.0).action for _ in range(3)] == ["retry", "retry", "fail"]


def test_the_same_seed_gives_the_same_waits() -> None:
    waits = [[Attempts(random.Random(7)).after(fault("overload"), 60.0).wait_s for _ in range(1)] for _ in range(2)]
    assert waits[0] == waits[1]
    assert waits[0][0] > 0


def test_a_rate_limit_is_waited_out_as_long_as_the_vendor_asks() -> None:
    step = Attempts(random.Random(1)).after(fault("rate", retry_after_s=3.0), 10.0)
    assert (step.action, step.wait_s) == ("retry", 3.0)


def test_a_rate_limit_beyond_the_deadline_fails_at_once() -> None:
    assert Attempts(random.Random(1)).after(fault("rate", retry_after_s=3600.0), 20.0).action == "fail"


@pytest.mark.parametrize("kind", ["refusal", "request", "auth", "quota", "timeout", "fault"])
def test_what_another_try_cannot_change_is_not_tried_again(kind: ProviderFault) -> None:
    assert Attempts(random.Random(1)).after(fault(kind), 60.0).action == "fail"


def test_a_bad_answer_is_repaired_once_whatever_was_wrong_with_it() -> None:
    attempts = Attempts(random.Random(1))
    assert attempts.after(fault("malformed"), 60.0).action == "repair"
    assert attempts.after(fault("truncated"), 60.0).action == "fail"


def test_a_bad_answer_right_before_the_deadline_is_not_repaired() -> None:
    assert Attempts(random.Random(1)).after(fault("malformed"), 0.1).action == "fail"


def test_the_repair_shows_the_model_its_answer_and_what_was_wrong() -> None:
    said = [ChatMessage("system", "s"), ChatMessage("user", "u")]
    bad = fault("malformed", answer=RawAnswer("[1]", "m"), reason="it is a JSON list, not an object")
    turns = repaired(said, bad)
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[2].content == "[1]"
    assert "it is a JSON list, not an object" in turns[3].content


def test_the_repair_of_an_empty_answer_adds_no_empty_turn() -> None:
    turns = repaired([ChatMessage("user", "u")], fault("malformed", answer=RawAnswer("  ", "m")))
    assert [turn.role for turn in turns] == ["user"]
    assert turns[0].content.startswith("u\n\nAnswer again")


def test_five_failures_within_a_minute_open_the_breaker_for_thirty_seconds() -> None:
    time = Time()
    gate = ModelGate("v:m", time.monotonic, time.today)
    for _ in range(5):
        assert gate.state == "ready"
        failing(gate, "overload")
        time.now += 10
    assert (gate.state, kind_of_refusal(gate)) == ("open", "open")
    time.now += 20.1  # 10 s have passed since the fifth
    gate.enter()


def test_failures_that_are_spread_out_do_not_open_the_breaker() -> None:
    time = Time()
    gate = ModelGate("v:m", time.monotonic, time.today)
    for _ in range(20):
        failing(gate, "timeout")
        time.now += 15.1
    assert gate.state == "ready"


def test_one_trial_goes_out_after_an_open_breaker_and_decides() -> None:
    time = Time()
    breaker = CircuitBreaker(time.monotonic)
    for _ in range(5):
        breaker.failed()
    time.now += 30
    assert [breaker.allow(), breaker.allow()] == [True, False]
    breaker.failed()
    assert breaker.open_for_s == 30.0
    time.now += 30
    assert breaker.allow()
    breaker.succeeded()
    assert [breaker.allow(), breaker.allow()] == [True, True]


def test_a_trial_that_is_called_off_lets_the_next_one_try() -> None:
    time = Time()
    gate = ModelGate("v:m", time.monotonic, time.today)
    for _ in range(5):
        failing(gate, "overload")
    time.now += 30
    gate.enter()
    assert kind_of_refusal(gate) == "open"
    gate.leave(None, told=False)
    gate.enter()


def test_refusals_and_bad_answers_do_not_open_the_breaker() -> None:
    time = Time()
    gate = ModelGate("v:m", time.monotonic, time.today)
    for kind in ("refusal", "malformed", "truncated", "request", "rate") * 3:
        failing(gate, kind)
    assert gate.state == "ready"


def test_a_refused_key_turns_the_model_off_for_good() -> None:
    time = Time()
    gate = ModelGate("v:m", time.monotonic, time.today)
    failing(gate, "auth")
    time.now += 1e6
    time.day = date(2027, 1, 1)
    assert (gate.state, kind_of_refusal(gate)) == ("off: auth", "auth")


def test_a_spent_quota_turns_the_model_off_until_the_next_day() -> None:
    time = Time()
    gate = ModelGate("v:m", time.monotonic, time.today)
    failing(gate, "quota")
    assert (gate.state, kind_of_refusal(gate)) == ("off: quota", "quota")
    time.day = date(2026, 11, 28)
    gate.enter()
