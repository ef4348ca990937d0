"""Every vendor's `ChatModel` against servers that are slow, silent or gone: deadlines, connections, concurrency, the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest
from chat_model_lab import (
    GEMINI_LEGACY,
    GOOD,
    GRACE_S,
    MESSAGES,
    SCHEMA,
    VENDORS,
    Lab,
    Vendor,
    ask,
    ask_in_vain,
    every_vendor,
    failure,
    unused_port,
)
from fakes.dialect import Question
from fakes.http_server import Reply
from fakes.vendors import FakeVendor, answering, exemplary, in_turn
from outage_server import until

from utils.errors import ProviderError
from utils.llm.base import ChatMessage, ChatModel

pytestmark = pytest.mark.timeout(30)

interruptible = pytest.mark.parametrize(
    "vendor", [vendor for vendor in VENDORS if vendor.hangs_up], ids=lambda vendor: vendor.name
)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with Lab(tmp_path, monkeypatch) as lab:
        yield lab


def numbered(number: int) -> list[ChatMessage]:
    """Return a question that is told from others by its number."""
    return [ChatMessage("user", str(number))]


def echo(question: Question) -> dict[str, object]:
    """Answer with the number of the question."""
    return {"score": int(question.user), "why": "asked"}


@every_vendor
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_trickle_ends_at_the_deadline(lab: Lab, vendor: Vendor, chunked: bool) -> None:
    trickle = replace(vendor.dialect.answer(GOOD), trickle=(1, 0.25), chunked=chunked)
    failed = ask_in_vain(lab.model(vendor, lab.serve(vendor, trickle)), deadline_s=0.8)
    assert failed.kind == "timeout"
    assert failed.after_s >= 0.7


@every_vendor
def test_silence_ends_at_the_deadline(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, Reply(silent=True))
    failed = ask_in_vain(lab.model(vendor, server), deadline_s=0.6)
    assert failed.kind == "timeout"
    assert failed.after_s >= 0.5
    assert len(server.requests) == 1


@interruptible
def test_a_call_out_of_time_hangs_up(lab: Lab, vendor: Vendor) -> None:
    trickle = replace(vendor.dialect.answer(GOOD), trickle=(1, 0.25))
    server = lab.serve(vendor, trickle)
    ask_in_vain(lab.model(vendor, server), deadline_s=0.5)
    assert server.requests[0].hung_up.wait(1)


@interruptible
def test_a_cancelled_call_hangs_up(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, Reply(silent=True))
    call = lab.model(vendor, server).submit(MESSAGES, SCHEMA, deadline_s=20)
    until(lambda: server.requests, "request", 5)
    assert call.cancel()
    assert server.requests[0].hung_up.wait(1)
    with pytest.raises(CancelledError):
        call.result(1)


@every_vendor
def test_a_model_is_as_good_as_new_after_a_call_out_of_time(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, in_turn([Reply(silent=True)], exemplary()))
    model = lab.model(vendor, server)
    assert ask_in_vain(model, deadline_s=0.5).kind == "timeout"
    assert set(ask(model).content) == {"score", "why"}


@every_vendor
def test_retries_end_at_the_deadline_too(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, vendor.dialect.fault("overloaded"), latency_s=0.3)
    failed = ask_in_vain(lab.model(vendor, server), deadline_s=0.5)
    assert failed.kind in ("overload", "timeout")
    assert len(server.requests) <= 2


@every_vendor
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_connection_cut_in_the_middle_is_tried_again(lab: Lab, vendor: Vendor, chunked: bool) -> None:
    cut = replace(vendor.dialect.answer(GOOD), cut_after=40, chunked=chunked, trickle=(20, 0.0))
    server = lab.serve(vendor, in_turn([cut], exemplary()))
    assert set(ask(lab.model(vendor, server)).content) == {"score", "why"}
    assert len(server.requests) == 2


@every_vendor
def test_a_connection_that_is_always_cut_counts_as_overload(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, replace(vendor.dialect.answer(GOOD), cut_after=0))
    assert ask_in_vain(lab.model(vendor, server), deadline_s=8).kind == "overload"
    assert 2 <= len(server.requests) <= 3


@every_vendor
def test_a_port_where_nobody_listens_counts_as_overload(lab: Lab, vendor: Vendor) -> None:
    lab.serve(vendor)
    model = lab.model(vendor, f"http://127.0.0.1:{unused_port()}{vendor.dialect.base_path}")
    assert ask_in_vain(model, deadline_s=8).kind == "overload"


@every_vendor
def test_two_calls_run_at_the_same_time_and_do_not_block_the_caller(lab: Lab, vendor: Vendor) -> None:
    model = lab.model(vendor, lab.serve(vendor, answering(echo), latency_s=0.6))
    started = time.monotonic()
    calls = [model.submit(numbered(number), SCHEMA, deadline_s=5) for number in (1, 2)]
    submitted_s = time.monotonic() - started
    assert [call.result(5).content["score"] for call in calls] == [1, 2]
    assert time.monotonic() - started < 1.5 * 0.6
    assert submitted_s < 0.2


@every_vendor
def test_a_hundred_calls_at_the_same_time_each_get_their_own_answer(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, answering(echo), latency_s=0.1)
    model = lab.model(vendor, server, llm={"concurrency": 100})
    started = time.monotonic()
    calls = [model.submit(numbered(number), SCHEMA, deadline_s=10) for number in range(100)]
    assert [call.result(12).content["score"] for call in calls] == list(range(100))
    assert time.monotonic() - started < 6
    assert len(server.requests) == 100


def calls_at_once(server: FakeVendor) -> list[int]:
    """Have the server answer after 0.1 s, and return a list that gets the number of open connections at each question."""
    seen: list[int] = []

    def behave(question: Question) -> Reply:
        seen.append(server.open_connections)
        return replace(question.dialect.answer(GOOD), delay_s=0.1)

    server.behaviour = behave
    return seen


@every_vendor
def test_no_more_calls_run_at_a_time_than_the_setting_allows(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor)
    seen = calls_at_once(server)
    model = lab.model(vendor, server, llm={"concurrency": 2})
    calls = [model.submit(numbered(number), SCHEMA, deadline_s=10) for number in range(6)]
    assert [call.result(10).content for call in calls] == [GOOD] * 6
    assert max(seen) == 2


@interruptible
def test_waiting_for_ones_turn_counts_toward_the_deadline(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, Reply(silent=True))
    model = lab.model(vendor, server, llm={"concurrency": 1})
    started = time.monotonic()
    calls = [model.submit(numbered(number), SCHEMA, deadline_s=0.8) for number in range(3)]
    assert [failure(call) for call in calls] == ["timeout"] * 3
    assert time.monotonic() - started < 0.8 + GRACE_S
    assert len(server.requests) == 1


@every_vendor
def test_the_caller_may_be_any_thread(lab: Lab, vendor: Vendor) -> None:
    model = lab.model(vendor, lab.serve(vendor, answering(echo)))
    scores: dict[int, object] = {}

    def work(number: int) -> None:
        scores[number] = ask(model, messages=numbered(number)).content["score"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert scores == {number: number for number in range(8)}


@every_vendor
def test_closing_leaves_no_thread_and_no_connection_and_refuses_later_calls(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor)
    before = set(threading.enumerate())
    models = lab.models(vendor, server)
    model = models.model(vendor.provider, vendor.model)
    ask(model)
    models.close()
    until(lambda: set(threading.enumerate()) <= before, "end of the threads", 3)
    until(lambda: server.open_connections == 0, "end of the connections", 3)
    assert ask_in_vain(model).kind == "closed"
    assert len(server.requests) == 1
    assert set(threading.enumerate()) <= before
    models.close()


@interruptible
def test_closing_ends_the_calls_that_run(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, Reply(silent=True))
    before = set(threading.enumerate())
    models = lab.models(vendor, server)
    model: ChatModel = models.model(vendor.provider, vendor.model)
    calls = [model.submit(numbered(number), SCHEMA, deadline_s=20) for number in range(3)]
    until(lambda: len(server.requests) == 3, "requests", 5)
    started = time.monotonic()
    models.close()
    assert time.monotonic() - started < 2
    assert [failure(call, 1) for call in calls] == ["closed"] * 3
    until(lambda: set(threading.enumerate()) <= before, "end of the threads", 3)
    until(lambda: server.open_connections == 0, "end of the connections", 3)


def test_when_every_thread_of_the_old_gemini_sdk_hangs_new_calls_fail_at_once(lab: Lab) -> None:
    server = lab.serve(GEMINI_LEGACY, Reply(silent=True))
    before = set(threading.enumerate())
    models = lab.models(GEMINI_LEGACY, server, llm={"concurrency": 3})
    model = models.model(GEMINI_LEGACY.provider, GEMINI_LEGACY.model)
    calls = [model.submit(numbered(number), SCHEMA, deadline_s=0.4) for number in range(3)]
    assert [failure(call) for call in calls] == ["timeout"] * 3
    assert len(set(threading.enumerate()) - before) <= 4  # one a hung call, and the loop's
    failed = ask_in_vain(model, deadline_s=8)
    assert failed.kind == "overload"
    assert failed.after_s < 2  # at once, but for the retries
    assert len(server.requests) == 3
    started = time.monotonic()
    models.close()
    assert time.monotonic() - started < 3
    server.close()  # lets the threads go
    until(lambda: set(threading.enumerate()) <= before, "end of the threads", 5)


@every_vendor
def test_a_failure_is_raised_out_of_the_future_and_not_by_submit(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, vendor.dialect.fault("bad_key"))
    model = lab.model(vendor, server)
    calls = [model.submit(MESSAGES, SCHEMA, deadline_s=5) for _ in range(2)]
    errors = [call.exception(5) for call in calls]
    assert all(isinstance(error, ProviderError) for error in errors)
