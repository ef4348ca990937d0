"""Work beside the decisions: in order, none lost over a failure, patient with the database, and idle only when it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitoring import stage as stage_module
from monitoring.stage import Repeated, Stage
from monitoring.supervision import Heartbeat
from utils.errors import ComponentStartError, LibraryUnavailable, ProviderError


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(stage_module, "_POLL_S", 0.01)


@pytest.fixture
def make() -> Iterator[Callable[..., Stage[Any]]]:
    made: list[Stage[Any]] = []

    def build(process: Any, recover: Any = lambda: None, revive: Any = lambda: None, size: int = 64) -> Stage[Any]:
        stage: Stage[Any] = Stage("work", process, recover, revive, lambda state: None, size)
        stage.thread._first_backoff_s = 0.001
        made.append(stage)
        return stage

    yield build
    for stage in made:
        stage.stop(5)


def test_items_are_done_in_order_and_recovery_comes_first(make) -> None:
    done: list[Any] = []
    stage = make(done.append, lambda: done.append("recovered"))
    stage.start()
    assert stage.wait_idle(Heartbeat())
    for item in range(50):
        stage.submit(item)
    assert stage.wait_idle(Heartbeat())
    assert done == ["recovered", *range(50)]
    assert stage.pending == 0


def test_it_is_not_idle_before_it_has_recovered(make) -> None:
    release = threading.Event()
    stage = make(lambda item: None, lambda: release.wait(5))
    stage.start()
    assert stage.pending == 1
    stop = Heartbeat()
    threading.Timer(0.05, stop.stop.set).start()
    assert not stage.wait_idle(stop)
    release.set()
    assert stage.wait_idle(Heartbeat())


def test_an_item_counts_until_it_is_done_not_until_it_is_taken(make) -> None:
    taken, release = threading.Event(), threading.Event()

    def process(item: int) -> None:
        taken.set()
        release.wait(5)

    stage = make(process)
    stage.start()
    stage.wait_idle(Heartbeat())
    stage.submit(1)
    assert taken.wait(5)
    assert stage.pending == 1
    assert stage.wait_idle(Heartbeat(), backlog=1)
    release.set()
    assert stage.wait_idle(Heartbeat())


def test_after_a_failure_recovery_covers_the_item_and_those_that_waited(make) -> None:
    stored: list[int] = []
    done: list[int] = []
    failed: list[int] = []
    hold = threading.Event()

    def process(item: int) -> None:
        if item == 2 and not failed:
            failed.append(item)
            hold.wait(5)
            raise ProviderError("broken")
        done.append(item)

    def recover() -> None:
        done.extend(item for item in stored if item not in done)

    stage = make(process, recover)
    stage.start()
    stage.wait_idle(Heartbeat())
    for item in (1, 2, 3, 4):
        stored.append(item)
        stage.submit(item)
    hold.set()
    assert stage.wait_idle(Heartbeat())
    assert sorted(done) == [1, 2, 3, 4]
    assert stage.thread.restarts == 1
    stage.submit(5)
    assert stage.wait_idle(Heartbeat())
    assert done[-1] == 5


def test_while_the_database_is_away_the_item_waits_and_is_done_once_it_is_back(make, monkeypatch) -> None:
    attempts: list[int] = []
    revived: list[int] = []

    def process(item: int) -> None:
        attempts.append(item)
        if len(revived) < 3:
            raise LibraryUnavailable("away")

    stage = make(process, revive=lambda: revived.append(1))
    heartbeat = stage.thread.heartbeat
    waits: list[float] = []
    monkeypatch.setattr(heartbeat.stop, "wait", lambda timeout=None: waits.append(timeout) or False)
    stage.start()
    stage.submit(7)
    assert stage.wait_idle(Heartbeat())
    assert attempts == [7, 7, 7, 7]
    assert waits[:3] == [0.1, 0.2, 0.4]
    assert stage.thread.restarts == 0


def test_a_full_queue_makes_the_giver_wait_and_loses_nothing(make) -> None:
    release = threading.Event()
    done: list[int] = []

    def process(item: int) -> None:
        release.wait(5)
        done.append(item)

    stage = make(process, size=2)
    stage.start()
    stage.wait_idle(Heartbeat())
    giver = threading.Thread(target=lambda: [stage.submit(item) for item in range(10)])
    giver.start()
    wait_until(lambda: stage._queue.full())
    assert giver.is_alive()
    release.set()
    giver.join(5)
    assert stage.wait_idle(Heartbeat())
    assert done == list(range(10))


def test_a_stage_that_was_given_up_says_so_to_who_waits_for_it(make) -> None:
    def process(item: int) -> None:
        raise ProviderError("never works")

    def recover() -> None:
        raise ProviderError("nor does this")

    stage = make(process, recover)
    stage.thread._first_backoff_s = 1e-6
    stage.start()
    with pytest.raises(ComponentStartError, match=r"given up.*nor does this"):
        stage.wait_idle(Heartbeat())


def test_who_waits_is_let_go_when_told_to_stop(make) -> None:
    release = threading.Event()
    stage = make(lambda item: release.wait(5))
    stage.start()
    stage.wait_idle(Heartbeat())
    stage.submit(1)
    heartbeat = Heartbeat()
    heartbeat.stop.set()
    assert not stage.wait_idle(heartbeat)
    release.set()


def test_stop_finishes_the_item_in_hand(make) -> None:
    taken, done = threading.Event(), []

    def process(item: int) -> None:
        taken.set()
        time.sleep(0.05)
        done.append(item)

    stage = make(process)
    stage.start()
    stage.submit(1)
    stage.wait_idle(Heartbeat(), backlog=1)
    taken.wait(5)
    assert stage.stop(5)
    assert done in ([1], [])
    assert stage.thread.state == "stopped"


def test_an_item_whose_giver_waited_through_the_recovery_is_still_counted(make) -> None:
    recovering, release, working = threading.Event(), threading.Event(), threading.Event()
    hold = threading.Event()
    done: list[int] = []

    def recover() -> None:
        recovering.set()
        release.wait(5)

    def process(item: int) -> None:
        if item == 2:
            working.set()
            hold.wait(5)
        done.append(item)

    stage = make(process, recover, size=1)
    stage.start()
    assert recovering.wait(5)
    giver = threading.Thread(target=lambda: [stage.submit(item) for item in (1, 2)])
    giver.start()
    wait_until(lambda: stage._queue.full() and stage.pending == 3)
    release.set()
    assert working.wait(5)
    assert stage.pending == 1, "the second item is in hand"
    hold.set()
    assert stage.wait_idle(Heartbeat())
    assert (done, stage.pending) == ([1, 2], 0)


def test_repeated_work_does_the_item_again_that_it_died_on_and_the_waiting_giver_waits_for_that(make) -> None:
    done: list[str] = []
    faults = [OSError("the disk is full"), OSError("still full")]

    def process(item: str) -> None:
        if item == "second" and faults:
            raise faults.pop()
        done.append(item)

    work = Repeated(process)
    stage = make(work, work.recover)
    stage.start()
    for item in ("first", "second", "third"):
        stage.submit(item)
        assert stage.wait_idle(Heartbeat())
    assert done == ["first", "second", "third"]
    assert stage.thread.restarts == 2
