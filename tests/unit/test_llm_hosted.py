"""A model over a scripted adapter: deadlines, slots, retries, repairs, money, cache, cancelling and closing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from utils.errors import ProviderError, ProviderFault
from utils.llm.adapter import RawAnswer, VendorError
from utils.llm.answer_cache import AnswerCache
from utils.llm.base import ChatMessage
from utils.llm.budget import Budget
from utils.llm.event_loop import LoopThread
from utils.llm.hosted import HostedChatModel

ASK = [ChatMessage("user", "what?")]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
GOOD = RawAnswer('{"a": 1}', "m-2026", 100, 20)

Step = RawAnswer | VendorError | float
"""An answer, a fault, or seconds that a call hangs."""


class ScriptedAdapter:
    """Answers with the next step of a script, the last one for ever."""

    provider = "anthropic"
    model = "m"

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.asked: list[list[ChatMessage]] = []
        self.open_calls = 0
        self.most_open = 0
        self.cancelled = 0
        self.closed = False

    async def ask(self, messages: Sequence[ChatMessage], schema: Mapping[str, Any], **_: Any) -> RawAnswer:
        self.asked.append(list(messages))
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        self.open_calls += 1
        self.most_open = max(self.most_open, self.open_calls)
        try:
            if isinstance(step, float):
                await asyncio.sleep(step)
                return GOOD
            if isinstance(step, VendorError):
                raise step
            await asyncio.sleep(0)
            return step
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open_calls -= 1

    async def probe(self) -> None:
        step = self.steps[0]
        if isinstance(step, VendorError):
            raise step

    async def aclose(self) -> None:
        self.closed = True


class UsdPrice:
    """One USD per million tokens of either kind."""

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens + output_tokens) / 1e6


class Counts:
    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        key = (name, *(labels[label] for label in sorted(labels)))
        self.values[key] = self.values.get(key, 0.0) + amount

    def gauge(self, name: str, value: float | None, **labels: str) -> None:
        pass

    def observe(self, name: str, value: float, **labels: str) -> None:
        pass


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread("llm-test")
    yield thread
    thread.close()


def fault(kind: ProviderFault, **details: Any) -> VendorError:
    return VendorError(f"a fault of kind {kind}", kind=kind, **details)


def model(loop: LoopThread, *steps: Step, budget: Budget | None = None, **more: Any) -> HostedChatModel:
    adapter = ScriptedAdapter(*steps)
    made = HostedChatModel(adapter, loop, budget or Budget(100.0), UsdPrice(), max_output_tokens=1000, **more)
    made.scripted = adapter  # type: ignore[attr-defined]
    return made


def script(made: HostedChatModel) -> ScriptedAdapter:
    return made.scripted  # type: ignore[attr-defined, no-any-return]


def kind_of(made: HostedChatModel, **more: Any) -> str:
    with pytest.raises(ProviderError) as caught:
        made.complete(ASK, SCHEMA, **more)
    return caught.value.kind


def reached(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.002)
    return condition()


def test_an_answer_carries_content_model_tokens_and_cost(loop: LoopThread) -> None:
    counts = Counts()
    made = model(loop, GOOD, telemetry=counts)
    answer = made.complete(ASK, SCHEMA)
    assert (dict(answer.content), answer.model, answer.cached) == ({"a": 1}, "m-2026", False)
    assert (answer.input_tokens, answer.output_tokens, answer.cost_usd) == (100, 20, pytest.approx(120e-6))
    assert counts.values == {
        ("llm_calls_total", "ok", "anthropic"): 1.0,
        ("llm_tokens_total", "anthropic"): 120.0,
        ("llm_cost_usd_total", "anthropic"): pytest.approx(120e-6),
    }
    assert made.status() == {"state": "ready", "calls": 1, "failed": 0, "tokens": 120, "cost_usd": 0.00012}


def test_the_deadline_ends_a_call_that_hangs_and_frees_its_slot(loop: LoopThread) -> None:
    made = model(loop, 30.0, GOOD, concurrency=1)
    begun = time.monotonic()
    assert kind_of(made, deadline_s=0.2) == "timeout"
    assert time.monotonic() - begun < 1.0
    assert script(made).cancelled == 1
    assert made.complete(ASK, SCHEMA).content == {"a": 1}


def test_a_question_without_time_for_an_answer_is_not_asked_and_costs_nothing(loop: LoopThread) -> None:
    budget = Budget(100.0)
    made = model(loop, GOOD, budget=budget)
    for deadline_s in (0.0, -1.0):
        assert kind_of(made, deadline_s=deadline_s) == "timeout"
    assert script(made).asked == []
    assert (budget.spent_today, made.status()["tokens"]) == (0.0, 0)


def test_a_repair_of_an_answer_with_half_a_surrogate_pair_can_be_sent(loop: LoopThread) -> None:
    made = model(loop, RawAnswer('{"a": "\ud83d"}', "m-2026", 100, 20), GOOD)
    assert made.complete(ASK, SCHEMA).content == {"a": 1}
    quoted = script(made).asked[1][1].content
    assert quoted.encode().decode() == quoted == '{"a": "?"}'


def test_waiting_for_a_slot_counts_toward_the_deadline(loop: LoopThread) -> None:
    made = model(loop, 30.0, concurrency=1)
    first = made.submit(ASK, SCHEMA, deadline_s=30)
    assert reached(lambda: script(made).open_calls == 1)
    assert kind_of(made, deadline_s=0.1) == "timeout"
    assert len(script(made).asked) == 1
    first.cancel()


def test_no_more_calls_are_open_than_the_concurrency_allows(loop: LoopThread) -> None:
    made = model(loop, 0.02, concurrency=3)
    futures = [made.submit(ASK, SCHEMA) for _ in range(12)]
    assert all(future.result(10).content == {"a": 1} for future in futures)
    assert script(made).most_open == 3


def test_cancelling_the_future_ends_the_call(loop: LoopThread) -> None:
    made = model(loop, 30.0)
    future = made.submit(ASK, SCHEMA)
    assert reached(lambda: script(made).open_calls == 1)
    assert future.cancel()
    assert reached(lambda: script(made).cancelled == 1 and script(made).open_calls == 0)
    with pytest.raises(CancelledError):
        future.result(1)


def test_an_overload_is_tried_again_and_the_tokens_of_all_attempts_count(loop: LoopThread) -> None:
    made = model(loop, fault("overload"), RawAnswer("no", "m", 50, 5), GOOD)
    answer = made.complete(ASK, SCHEMA)
    assert (answer.input_tokens, answer.output_tokens) == (150, 25)
    asked = script(made).asked
    assert [len(turns) for turns in asked] == [1, 1, 3]
    assert "cannot be used" in asked[2][-1].content


def test_two_bad_answers_in_a_row_are_malformed_and_are_paid_for(loop: LoopThread) -> None:
    budget = Budget(100.0)
    made = model(loop, RawAnswer("no", "m", 50, 5), budget=budget)
    assert kind_of(made) == "malformed"
    assert len(script(made).asked) == 2
    assert budget.spent_today == pytest.approx(110e-6)


def test_a_long_retry_after_fails_at_once_instead_of_waiting(loop: LoopThread) -> None:
    made = model(loop, fault("rate", retry_after_s=3600.0))
    begun = time.monotonic()
    assert kind_of(made, deadline_s=20.0) == "rate"
    assert time.monotonic() - begun < 1.0


def test_a_spent_budget_asks_nobody(loop: LoopThread) -> None:
    made = model(loop, GOOD, budget=Budget(0.0001))
    assert kind_of(made) == "budget"
    assert script(made).asked == []
    assert made.status()["state"] == "ready"


def test_a_decision_pays_for_its_own_calls_only(loop: LoopThread) -> None:
    made = model(loop, GOOD, budget=Budget(100.0, tokens_per_decision=1150))
    made.complete(ASK, SCHEMA, account="one")
    assert kind_of(made, account="one") == "budget"
    made.complete(ASK, SCHEMA, account="two")


def test_a_refused_call_costs_nothing_and_one_cut_off_on_the_way_its_estimate(loop: LoopThread) -> None:
    budget = Budget(100.0)
    assert kind_of(model(loop, fault("request"), budget=budget)) == "request"
    assert budget.spent_today == 0
    assert kind_of(model(loop, 30.0, budget=budget), deadline_s=0.1) == "timeout"
    assert 0.001 < budget.spent_today < 0.0012


def test_five_failed_calls_hold_the_sixth_back_without_asking(loop: LoopThread) -> None:
    made = model(loop, fault("fault"))
    assert [kind_of(made) for _ in range(6)] == ["fault"] * 5 + ["open"]
    assert len(script(made).asked) == 5


def test_a_refused_key_is_asked_only_once(loop: LoopThread) -> None:
    made = model(loop, fault("auth"))
    assert [kind_of(made), kind_of(made)] == ["auth", "auth"]
    assert len(script(made).asked) == 1
    assert made.status()["state"] == "off: auth"


def test_a_probe_that_finds_an_unknown_model_turns_it_off(loop: LoopThread) -> None:
    made = model(loop, fault("request", unknown_model=True))
    assert made.probe().result(5).startswith("request: ")
    assert kind_of(made) == "request"
    assert script(made).asked == []


def test_a_probe_of_a_busy_vendor_leaves_the_model_on(loop: LoopThread) -> None:
    made = model(loop, fault("overload"))
    assert made.probe().result(5).startswith("overload: ")
    assert made.status()["state"] == "ready"


@pytest.mark.parametrize(
    "text", ["", "[1]", "1", '{"a": NaN}', '{"a": 1e999}', '{"a": 1} {"b": 2}', '{"a": "\\u0000"}']
)
def test_what_is_not_one_storable_json_object_is_malformed(loop: LoopThread, text: str) -> None:
    assert kind_of(model(loop, RawAnswer(text, "m", 1, 1))) == "malformed"


@pytest.mark.parametrize("text", ['```json\n{"a": 1}\n```', '```\n{"a": 1}```', ' {"a": 1}\n'])
def test_a_fence_around_the_object_is_tolerated(loop: LoopThread, text: str) -> None:
    assert model(loop, RawAnswer(text, "m", 1, 1)).complete(ASK, SCHEMA).content == {"a": 1}


@pytest.mark.parametrize(
    ("messages", "schema", "temperature"),
    [
        ([], SCHEMA, None),
        ([ChatMessage("system", "only")], SCHEMA, None),
        (ASK, {"type": object()}, None),
        ([ChatMessage("user", "half a pair \ud800")], SCHEMA, None),
        (ASK, SCHEMA, float("nan")),
    ],
)
def test_a_question_that_cannot_be_sent_is_refused_as_such(
    loop: LoopThread, messages: list[ChatMessage], schema: dict[str, Any], temperature: float | None
) -> None:
    made = model(loop, GOOD)
    with pytest.raises(ProviderError) as caught:
        made.complete(messages, schema, temperature=temperature)
    assert caught.value.kind == "request"
    assert script(made).asked == []


def test_the_same_question_is_answered_from_the_cache_for_nothing(loop: LoopThread, tmp_path: Path) -> None:
    counts = Counts()
    made = model(loop, GOOD, cache=AnswerCache(tmp_path), telemetry=counts)
    first, second = made.complete(ASK, SCHEMA), made.complete(ASK, SCHEMA)
    assert (second.cached, second.cost_usd, second.latency_s) == (True, 0.0, first.latency_s)
    assert second.content == first.content
    assert len(script(made).asked) == 1
    assert counts.values["llm_calls_total", "cached", "anthropic"] == 1.0


def test_the_same_question_in_flight_is_asked_once(loop: LoopThread, tmp_path: Path) -> None:
    made = model(loop, 0.1, cache=AnswerCache(tmp_path))
    answers = [future.result(10) for future in [made.submit(ASK, SCHEMA) for _ in range(8)]]
    assert len(script(made).asked) == 1
    assert sorted(answer.cached for answer in answers) == [False] + [True] * 7


def test_a_short_deadline_does_not_fail_those_who_ask_the_same_with_more_time(loop: LoopThread, tmp_path: Path) -> None:
    made = model(loop, 30.0, GOOD, cache=AnswerCache(tmp_path))
    hasty = made.submit(ASK, SCHEMA, deadline_s=0.1)
    patient = made.submit(ASK, SCHEMA, deadline_s=20.0)
    with pytest.raises(ProviderError, match="no answer within"):
        hasty.result(5)
    assert patient.result(10).content == {"a": 1}


def test_whoever_waits_for_the_same_question_gets_its_fault_too(loop: LoopThread, tmp_path: Path) -> None:
    made = model(loop, fault("refusal"), cache=AnswerCache(tmp_path))
    futures = [made.submit(ASK, SCHEMA) for _ in range(3)]
    assert {future.exception(10).kind for future in futures} == {"refusal"}  # type: ignore[union-attr]
    assert list(tmp_path.iterdir()) == []


def test_closing_ends_what_runs_with_kind_closed_and_leaves_no_thread() -> None:
    thread = LoopThread("llm-closing")
    made = model(thread, 30.0)
    future = made.submit(ASK, SCHEMA, deadline_s=30)
    assert reached(lambda: script(made).open_calls == 1)
    thread.submit(made.aclose).result(5)
    assert future.exception(5).kind == "closed"  # type: ignore[union-attr]
    assert kind_of(made) == "closed"
    assert script(made).closed
    thread.close()
    thread.close()
    assert "llm-closing" not in {running.name for running in threading.enumerate()}
    with pytest.raises(ProviderError, match="closed"):
        thread.submit(made.aclose)


def test_closing_the_loop_under_a_running_call_does_not_leave_its_caller_waiting() -> None:
    thread = LoopThread("llm-pulled-away")
    made = model(thread, 30.0)
    future = made.submit(ASK, SCHEMA, deadline_s=30)
    assert reached(lambda: script(made).open_calls == 1)
    thread.close()
    assert reached(future.done)
    assert script(made).cancelled == 1
