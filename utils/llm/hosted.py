"""The `ChatModel` over any vendor's adapter: deadline, slots, retries, budget, cache and counts in one place.

Made by `utils.llm.factory`, one a model. Everything runs on the loop thread; callers only hold futures.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Protocol

from utils.errors import ProviderError
from utils.llm.adapter import Adapter, RawAnswer, VendorError, json_object, one_line
from utils.llm.answer_cache import AnswerCache
from utils.llm.base import ChatAnswer, ChatMessage
from utils.llm.budget import Budget, utc_today
from utils.llm.call_policy import Attempts, ModelGate, repaired
from utils.llm.event_loop import LoopThread
from utils.telemetry import NO_TELEMETRY, Telemetry

BYTES_PER_TOKEN = 3
"""Lower than what any tokenizer makes of text, so that the estimate before a call is an upper one."""

_TURN_TOKENS = 16
"""What a vendor may add around each message."""

_VENDOR_GRACE_S = 5.0
"""The SDK's own time-out comes this much later, so that the deadline is always ours."""

_COMPLETE_GRACE_S = 2.0
"""Seconds after the deadline until `complete` no longer believes in its future."""

_CLOSE_S = 3.0


class Price(Protocol):
    """What tokens cost."""

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Return USD."""
        ...


@dataclass(slots=True)
class _Usage:
    """What one call took, over its attempts."""

    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


@dataclass(slots=True)
class _Call:
    """One question on its way; times are the monotonic clock's, `key` is empty without a cache.

    `prompt_tokens` are those that the question takes at most, `usage` what its attempts took so far.
    """

    messages: tuple[ChatMessage, ...]
    schema: Mapping[str, Any]
    temperature: float | None
    seed: int | None
    account: str
    key: str
    prompt_tokens: int
    asked_at: float
    deadline: float
    usage: _Usage = field(default_factory=_Usage)


class HostedChatModel:
    """A `ChatModel`; see there for what it promises.

    Parameters
    ----------
    adapter : Adapter
    loop : LoopThread
        Where calls run; shared by all models.
    budget : Budget
    price : Price
    cache : AnswerCache, optional
        None asks every time.
    max_output_tokens : int
    concurrency : int
        Calls that may be open; others wait, and their deadline runs.
    random_state : int
        Seed of the jitter.
    monotonic : callable
        Seconds that never go back.
    today : callable
        The date of UTC.
    telemetry : Telemetry
        Is told ``llm_calls_total``, ``llm_tokens_total`` and ``llm_cost_usd_total``.
    """

    def __init__(
        self,
        adapter: Adapter,
        loop: LoopThread,
        budget: Budget,
        price: Price,
        *,
        cache: AnswerCache | None = None,
        max_output_tokens: int = 2048,
        concurrency: int = 16,
        random_state: int = 42,
        monotonic: Callable[[], float] = time.monotonic,
        today: Callable[[], date] = utc_today,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self.name = f"{adapter.provider}:{adapter.model}"
        self._adapter = adapter
        self._loop = loop
        self._budget = budget
        self._price = price
        self._cache = cache
        self._max_output_tokens = max_output_tokens
        self._slots = asyncio.Semaphore(concurrency)
        self._rng = random.Random(random_state)
        self._monotonic = monotonic
        self._telemetry = telemetry
        self._gate = ModelGate(self.name, monotonic, today)
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._counts: dict[str, float] = {"calls": 0, "failed": 0, "tokens": 0, "cost_usd": 0.0}

    def submit(
        self,
        messages: Sequence[ChatMessage],
        schema: Mapping[str, Any],
        *,
        deadline_s: float = 20.0,
        temperature: float | None = None,
        seed: int | None = None,
        account: str = "",
    ) -> Future[ChatAnswer]:
        """Ask, and return at once; cancelling the future ends the call and its connection."""
        asked_at = self._monotonic()
        turns = tuple(messages)
        try:
            key, prompt_tokens = self._identified(turns, schema, temperature, seed)
            call = _Call(turns, schema, temperature, seed, account, key, prompt_tokens, asked_at, asked_at + deadline_s)
            return self._loop.submit(lambda: self._answered(call))
        except ProviderError as error:
            self._record(error.kind)
            failed: Future[ChatAnswer] = Future()
            failed.set_exception(error)
            return failed

    def complete(
        self,
        messages: Sequence[ChatMessage],
        schema: Mapping[str, Any],
        *,
        deadline_s: float = 20.0,
        temperature: float | None = None,
        seed: int | None = None,
        account: str = "",
    ) -> ChatAnswer:
        """Ask, and wait for the answer; never call it from the loop thread."""
        future = self.submit(
            messages, schema, deadline_s=deadline_s, temperature=temperature, seed=seed, account=account
        )
        try:
            return future.result(timeout=max(0.0, deadline_s) + _COMPLETE_GRACE_S)
        except CancelledError:
            raise ProviderError(f"{self.name}: closed while it was asked", kind="closed") from None
        except TimeoutError:
            raise ProviderError(f"{self.name}: no answer within {deadline_s:g} s", kind="timeout") from None
        finally:
            future.cancel()

    def probe(self) -> Future[str]:
        """Find out, without cost, whether the model can be asked: ``ready`` or ``<kind>: <message>``.

        A refused key or an unknown model turns the model off.
        """
        try:
            return self._loop.submit(self._probe)
        except ProviderError as error:
            found: Future[str] = Future()
            found.set_result(f"{error.kind}: {error}")
            return found

    def status(self) -> dict[str, Any]:
        """Return state and counts as JSON values for people."""
        with self._lock:
            counts = dict(self._counts)
        return {
            "state": "closed" if self._closed else self._gate.state,
            "calls": int(counts["calls"]),
            "failed": int(counts["failed"]),
            "tokens": int(counts["tokens"]),
            "cost_usd": round(counts["cost_usd"], 6),
        }

    async def aclose(self) -> None:
        """Refuse further calls, end those that run and close the vendor's client. For the loop thread."""
        self._closed = True
        running = tuple(self._tasks)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=_CLOSE_S)
        await self._adapter.aclose()

    def _identified(
        self,
        messages: tuple[ChatMessage, ...],
        schema: Mapping[str, Any],
        temperature: float | None,
        seed: int | None,
    ) -> tuple[str, int]:
        """Return the cache key (empty without a cache) and the tokens that the question takes at most."""
        if self._closed:
            raise ProviderError(f"{self.name} is closed; make a new one", kind="closed")
        if not any(message.role != "system" for message in messages):
            raise ProviderError(f"{self.name}: there is no message of the user to answer", kind="request")
        if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
            raise ProviderError(f"{self.name}: temperature {temperature} is not a number from 0 on", kind="request")
        if seed is not None and not 0 <= seed < 2**63:
            raise ProviderError(f"{self.name}: seed {seed} is not from 0 to 2^63 - 1", kind="request")
        try:
            key = (
                AnswerCache.key(self.name, messages, schema, temperature, self._max_output_tokens, seed)
                if self._cache
                else ""
            )
            size = len(json.dumps(schema)) + sum(len(message.content.encode()) for message in messages)
        except (TypeError, ValueError) as error:
            text = one_line(f"{self.name}: messages or schema cannot be sent as JSON ({error}); correct them")
            raise ProviderError(text, kind="request") from None
        return key, math.ceil(size / BYTES_PER_TOKEN) + _TURN_TOKENS * (len(messages) + 1)

    async def _answered(self, call: _Call) -> ChatAnswer:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        outcome = "cancelled"
        usage = call.usage

        async def ask() -> ChatAnswer:
            return await self._in_a_slot(call)

        try:
            async with asyncio.timeout(max(0.0, call.deadline - self._monotonic())):
                answer = await (self._cache.answer(call.key, ask) if self._cache else ask())
            outcome = "cached" if answer.cached else "ok"
            return answer
        except TimeoutError:
            outcome = "timeout"
            text = f"{self.name}: no answer within {call.deadline - call.asked_at:g} s; allow more time or use a faster model"
            raise ProviderError(text, kind="timeout", cost_usd=usage.usd, tokens=usage.tokens) from None
        except ProviderError as error:
            outcome = error.kind
            error.cost_usd, error.tokens = usage.usd, usage.tokens
            raise
        except asyncio.CancelledError:
            if self._closed:
                outcome = "closed"
                raise ProviderError(f"{self.name}: closed while it was asked", kind="closed") from None
            raise
        finally:
            self._tasks.discard(task)
            self._record(outcome)

    async def _in_a_slot(self, call: _Call) -> ChatAnswer:
        self._gate.check()  # who would be refused does not wait for a slot first
        async with self._slots:
            if self._monotonic() >= call.deadline:
                raise TimeoutError  # nothing is reserved, sent or paid for without time for an answer
            self._gate.enter()
            fault: VendorError | None = None
            told = False
            try:
                answer = await self._attempts(call)
                told = True
                return answer
            except VendorError as error:
                fault, told = error, True
                raise
            except asyncio.CancelledError:
                if self._monotonic() >= call.deadline:  # the deadline cancelled it, not a person
                    fault, told = VendorError(f"{self.name}: no answer in time", kind="timeout"), True
                raise
            finally:
                self._gate.leave(fault, told=told)

    async def _attempts(self, call: _Call) -> ChatAnswer:
        attempts = Attempts(self._rng)
        said: Sequence[ChatMessage] = call.messages
        prompt_tokens, usage = call.prompt_tokens, call.usage
        while True:
            try:
                raw, content = await self._attempt(call, said, prompt_tokens)
            except VendorError as error:
                step = attempts.after(error, call.deadline - self._monotonic())
                if step.action == "fail":
                    raise
                if step.action == "repair":
                    said = repaired(call.messages, error)
                    prompt_tokens += self._max_output_tokens
                await asyncio.sleep(step.wait_s)
            else:
                return ChatAnswer(
                    content=content,
                    model=raw.model,
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                    cost_usd=usage.usd,
                    latency_s=self._monotonic() - call.asked_at,
                )

    async def _attempt(
        self, call: _Call, messages: Sequence[ChatMessage], prompt_tokens: int
    ) -> tuple[RawAnswer, dict[str, Any]]:
        estimate = (prompt_tokens, self._max_output_tokens)
        reservation = self._budget.reserve(self._price.usd(*estimate), sum(estimate), call.account)
        used = estimate  # what was cut off on the way may be charged in full
        try:
            raw = await self._adapter.ask(
                messages,
                call.schema,
                max_output_tokens=self._max_output_tokens,
                temperature=call.temperature,
                seed=call.seed,
                timeout_s=max(0.0, call.deadline - self._monotonic()) + _VENDOR_GRACE_S,
            )
            used = _tokens(raw, prompt_tokens)
        except VendorError as error:
            if error.answer is not None:
                used = _tokens(error.answer, prompt_tokens)
            elif not error.sent:
                used = (0, 0)
            raise
        finally:
            usd = self._price.usd(*used)
            self._budget.settle(reservation, usd, sum(used))
            call.usage.input_tokens += used[0]
            call.usage.output_tokens += used[1]
            call.usage.usd += usd
            self._charge(sum(used), usd)
        try:
            return raw, json_object(raw.text)
        except ValueError as error:
            text = f"{self.name}: the answer is not one JSON object ({error}); try again or use another model"
            raise VendorError(text, kind="malformed", answer=raw, sent=True, reason=one_line(str(error))) from None

    async def _probe(self) -> str:
        try:
            async with asyncio.timeout(_VENDOR_GRACE_S):
                await self._adapter.probe()
        except TimeoutError:
            return f"timeout: {self.name}: no reply within {_VENDOR_GRACE_S:g} s; check the network"
        except VendorError as error:
            if error.kind == "auth" or error.unknown_model:
                self._gate.turn_off(error)
            return f"{error.kind}: {error}"
        return "ready"

    def _charge(self, tokens: int, usd: float) -> None:
        with self._lock:
            self._counts["tokens"] += tokens
            self._counts["cost_usd"] += usd
        if tokens:
            self._telemetry.count("llm_tokens_total", float(tokens), provider=self._adapter.provider)
        if usd:
            self._telemetry.count("llm_cost_usd_total", usd, provider=self._adapter.provider)

    def _record(self, outcome: str) -> None:
        with self._lock:
            self._counts["calls"] += 1
            self._counts["failed"] += outcome not in ("ok", "cached", "cancelled")
        self._telemetry.count("llm_calls_total", provider=self._adapter.provider, outcome=outcome)


def _tokens(raw: RawAnswer, prompt_tokens: int) -> tuple[int, int]:
    """Return the tokens of an answer, estimated from above where the vendor does not say."""
    if raw.input_tokens or raw.output_tokens:
        return raw.input_tokens, raw.output_tokens
    return prompt_tokens, math.ceil(len(raw.text.encode(errors="replace")) / BYTES_PER_TOKEN)
