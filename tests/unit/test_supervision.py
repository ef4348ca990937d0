"""A thread that dies is started again with growing pauses, given up loudly, and stopped when asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from monitoring import supervision
from monitoring.supervision import RESTARTS_PER_HOUR, Heartbeat, SupervisedThread
from utils.errors import ProviderError


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


def test_a_body_that_returns_is_finished_and_not_started_again() -> None:
    calls: list[int] = []
    states: list[str] = []
    thread = SupervisedThread("t", lambda heartbeat: calls.append(1), states.append)
    assert thread.state == "initialized"
    thread.start()
    wait_until(lambda: not thread.alive)
    assert calls == [1]
    assert states == ["running", "finished"]


def test_a_body_that_fails_is_started_again_and_says_why() -> None:
    calls: list[int] = []
    states: list[str] = []

    def body(heartbeat: Heartbeat) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise ProviderError("the model\n is away")

    thread = SupervisedThread("t", body, states.append, first_backoff_s=0.001)
    thread.start()
    wait_until(lambda: not thread.alive)
    assert states == ["running", *["degraded: ProviderError: the model is away", "running"] * 2, "finished"]
    assert thread.restarts == 2


def test_an_error_that_nobody_expected_is_restarted_too() -> None:
    calls: list[int] = []

    def body(heartbeat: Heartbeat) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    thread = SupervisedThread("t", body, first_backoff_s=0.001)
    thread.start()
    wait_until(lambda: thread.state == "finished")


def test_pauses_double_up_to_a_minute(monkeypatch) -> None:
    pauses: list[float] = []

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return False

    def body(heartbeat: Heartbeat) -> None:
        raise ProviderError("again")

    thread = SupervisedThread("t", body)
    thread.heartbeat.stop = Impatient()
    thread._run()
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_after_ten_restarts_in_an_hour_it_is_given_up_with_the_reason() -> None:
    calls: list[int] = []

    def body(heartbeat: Heartbeat) -> None:
        calls.append(1)
        raise ProviderError("no way")

    thread = SupervisedThread("t", body, first_backoff_s=1e-6)
    thread.start()
    wait_until(lambda: not thread.alive)
    assert thread.state == "failed: ProviderError: no way"
    assert len(calls) == RESTARTS_PER_HOUR + 1
    assert thread.restarts == RESTARTS_PER_HOUR


def test_failures_far_apart_are_never_given_up(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(supervision.time, "monotonic", lambda: now[0])
    calls: list[int] = []

    def body(heartbeat: Heartbeat) -> None:
        calls.append(1)
        now[0] += 400  # eleven of these take more than an hour
        if len(calls) < 30:
            raise ProviderError("now and then")

    thread = SupervisedThread("t", body, first_backoff_s=1e-9)
    thread._run()
    assert thread.state == "finished"
    assert thread.restarts == 29


def test_stop_ends_a_body_that_listens_and_is_idempotent() -> None:
    thread = SupervisedThread("t", lambda heartbeat: heartbeat.stop.wait())  # type: ignore[arg-type,return-value]
    thread.start()
    assert thread.stop(5)
    assert thread.stop(5)
    assert thread.state == "stopped"


def test_stop_does_not_wait_out_a_pause() -> None:
    def body(heartbeat: Heartbeat) -> None:
        raise ProviderError("once")

    thread = SupervisedThread("t", body, first_backoff_s=60)
    thread.start()
    wait_until(lambda: thread.state.startswith("degraded"))
    began = time.monotonic()
    assert thread.stop(5)
    assert time.monotonic() - began < 5
    assert thread.state == "stopped"


def test_an_error_while_stopping_is_no_failure() -> None:
    def body(heartbeat: Heartbeat) -> None:
        heartbeat.stop.wait()
        raise ProviderError("the socket closed under me")

    thread = SupervisedThread("t", body)
    thread.start()
    assert thread.stop(5)
    assert thread.state == "stopped"
    assert thread.restarts == 0


def test_a_body_that_does_not_listen_is_reported() -> None:
    release = threading.Event()
    thread = SupervisedThread("t", lambda heartbeat: release.wait())  # type: ignore[arg-type,return-value]
    thread.start()
    assert not thread.stop(0.01)
    assert thread.alive
    release.set()
    wait_until(lambda: not thread.alive)


def test_a_heartbeat_knows_its_age(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(supervision.time, "monotonic", lambda: now[0])
    heartbeat = Heartbeat()
    now[0] += 7
    assert heartbeat.age_s == 7
    heartbeat.beat()
    assert heartbeat.age_s == 0


def test_stop_before_start_is_harmless() -> None:
    assert SupervisedThread("t", lambda heartbeat: None).stop(1)
