"""A local policy's versions behind an OpenAI-compatible server (vLLM): one base model, adapters by immutable name.

The daemon makes one `ServedModel` in the place of the engine in this process. A name is loaded once for one set of weights and
never for others; a new version is a new name beside the old one. Nothing is booked: the server is one's own.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from agents.policies.local.engine import Adapter, Question
from utils.artifacts import ArtifactCorrupt, verify
from utils.errors import ConfigError, ProviderError, ProviderFault
from utils.llm.adapter import VendorError
from utils.llm.base import ChatAnswer, ChatMessage
from utils.llm.budget import Budget
from utils.llm.event_loop import LoopThread
from utils.llm.hosted import HostedChatModel
from utils.llm.lora_server import PROVIDER, LoraServer, ServedCard
from utils.llm.openai import OpenAIAdapter
from utils.llm.prices import NoPrice
from utils.logs import logger
from utils.telemetry import NO_TELEMETRY, Telemetry

ABSENT_KEY = "EMPTY"
"""Sent where the server asks for no key: the client library wants one."""

OF_THE_SERVER: frozenset[ProviderFault] = frozenset(("auth", "overload", "timeout", "open", "closed"))
"""Faults that, where every question has one, are of the server and not of the questions."""

_GRACE_S = 1.0
"""Beyond the deadline that a model holds itself."""

_UNLOAD_S = 5.0
_CLOSE_S = 10.0


class _ServedAdapter(OpenAIAdapter):
    """Told apart from the vendor in messages and counts."""

    provider = PROVIDER


@dataclass(slots=True, eq=False)
class _Version:
    """What is open under a name. `leases` counts sources that are open and answers in hand; `ours`: loaded from here."""

    name: str
    adapter: Adapter | None
    model: HostedChatModel
    ours: bool
    leases: int = 0


class ServedModel:
    """An `AnswerEngine` over a server; see there for what it promises.

    Parameters
    ----------
    base_url : str
        With ``/v1``.
    base_model : str
        The name that the server serves the base model by.
    api_key : str, optional
        None for a server that asks for none.
    deadline_s : float
        Wall seconds for the questions of one `answer` that names none; all are asked at the same time.
    load_s : float
        Wall seconds for a version to be ready: to wait for others, to ask the server, to have it load the adapter.
    concurrency : int
        Questions of a version that may be out; others wait, and their deadline runs.
    max_output_tokens : int
        Of an answer; at most half of the context that the server names is asked for.
    telemetry : Telemetry
        Is told ``llm_calls_total`` and ``llm_tokens_total`` of the provider ``served``.

    Raises
    ------
    ConfigError
        If a number is not positive.
    ProviderError
        Of kind fault, if the client library is not installed.
    """

    def __init__(
        self,
        base_url: str,
        base_model: str,
        *,
        api_key: str | None = None,
        deadline_s: float = 20.0,
        load_s: float = 60.0,
        concurrency: int = 64,
        max_output_tokens: int = 512,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        for name, value in (("deadline_s", deadline_s), ("load_s", load_s)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} of a served model is {value}; give seconds above 0")
        if concurrency < 1 or max_output_tokens < 1:
            raise ConfigError("concurrency and max_output_tokens of a served model must be 1 or more")
        self.deadline_s = deadline_s
        self._base_url = base_url
        self._base_model = base_model
        self._key = api_key or ABSENT_KEY
        self._load_s = load_s
        self._concurrency = concurrency
        self._max_output_tokens = max_output_tokens
        self._telemetry = telemetry
        try:
            self._server = LoraServer(base_url, self._key)
        except ImportError as error:
            text = f"the client of {base_url} is not installed ({error}); install stock-agents[hosted]"
            raise ProviderError(text, kind="fault") from error
        self._loop = LoopThread("served-model")
        self._changes = asyncio.Lock()
        """One opening, restoring or dropping at a time, on the loop."""
        self._lock = threading.Lock()
        self._versions: dict[str, _Version] = {}
        self._digests: dict[str, str] = {}
        """The weights that each name was ever opened with; empty for the base model."""

    def open(self, version: str, adapter: Adapter | None = None) -> ServedSource:
        """Look whether the server has the version, load its adapter if not, and return a source; see `AnswerEngine`."""
        if adapter is not None:
            _check(adapter, version)
            if version == self._base_model:
                text = f"{version}: an adapter cannot have the name of the base model; give it one of its own"
                raise ProviderError(text, kind="request")
        opening = self._loop.submit(lambda: self._opened(version, adapter))
        try:
            return ServedSource(self, opening.result(timeout=self._load_s + _GRACE_S))
        except CancelledError:
            raise _closed(version) from None
        except TimeoutError:
            text = (
                f"{self._base_url}: {version} is not ready within {self._load_s:g} s; allow more or look at the server"
            )
            raise ProviderError(text, kind="timeout") from None

    def close(self) -> None:
        """Unload what was loaded from here and close the client; may be called twice."""
        if self._loop.is_running:
            wait([self._loop.submit(self._ended)], timeout=_CLOSE_S)
        self._loop.close()

    def lease(self, held: _Version) -> None:
        """Keep a version that is open from being dropped."""
        with self._lock:
            held.leases += 1

    def release(self, held: _Version) -> None:
        """Give a lease back; with the last one the version is dropped, on the loop."""
        with self._lock:
            held.leases -= 1
            last = held.leases == 0
        if last:
            try:
                self._loop.submit(lambda: self._dropped(held))
            except ProviderError:  # the engine is closed, and with it the version
                return

    def forget(self, held: _Version) -> None:
        """Give back the lease of a source that nobody holds any more; the thread of the loop does it, with its locks."""
        self._loop.post(lambda: self.release(held))

    def restore(self, held: _Version, timeout_s: float) -> bool:
        """Load an adapter again that the server has lost, as by a restart, and return whether it is there now.

        The name stands for the same bytes as before. What takes longer than `timeout_s` goes on for the next who asks.
        """
        if held.adapter is None:
            return False
        adapter = held.adapter
        try:
            _check(adapter, held.name)
            self._loop.submit(lambda: self._restored(held, adapter)).result(timeout=timeout_s)
        except (ProviderError, CancelledError, TimeoutError) as error:
            logger.warning(
                "%s has lost %s and has not got it back: %s", self._base_url, held.name, error or "no time left"
            )
            return False
        logger.warning("%s had lost %s; it is loaded again", self._base_url, held.name)
        return True

    async def _opened(self, version: str, adapter: Adapter | None) -> _Version:
        digest = adapter.sha256 if adapter is not None else ""
        async with asyncio.timeout(self._load_s), self._changes:
            if self._digests.get(version, digest) != digest:
                text = f"{version}: this name stands for other weights; a new version needs a new name"
                raise ProviderError(text, kind="request")
            held = self._versions.get(version)
            if held is None:
                cards = await self._server.cards(self._load_s)
                base = self._base_card(cards)
                ours = adapter is not None and await self._loaded(version, adapter, cards)
                name = version if adapter is not None else self._base_model
                model = await asyncio.to_thread(self._model, name, base)  # its first use imports much
                held = _Version(version, adapter, model, ours)
                self._versions[version] = held
                self._digests[version] = digest
            self.lease(held)
            return held

    async def _restored(self, held: _Version, adapter: Adapter) -> None:
        async with asyncio.timeout(self._load_s), self._changes:
            cards = await self._server.cards(self._load_s)
            self._base_card(cards)
            held.ours = await self._loaded(held.name, adapter, cards) or held.ours

    async def _loaded(self, version: str, adapter: Adapter, cards: Mapping[str, ServedCard]) -> bool:
        """Make sure that the server has an adapter, and return whether it was loaded from here."""
        if version in cards:
            self._check_loaded(cards[version], adapter, cards)
            return False
        try:
            await self._server.load(version, adapter.folder.resolve(), self._load_s)
        except VendorError as fault:
            if fault.kind == "request":
                cards = await self._server.cards(self._load_s)
                if version in cards:  # somebody else was faster
                    self._check_loaded(cards[version], adapter, cards)
                    return False
            if fault.kind not in ("request", "overload"):
                raise
            raise ProviderError(
                f"{self._base_url} does not load {version}: {fault}. Start the server with --enable-lora and "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True where it can read {adapter.folder}, or load the adapter by this name",
                kind=fault.kind,
            ) from fault
        return True

    def _base_card(self, cards: Mapping[str, ServedCard]) -> ServedCard:
        if self._base_model not in cards:
            served = ", ".join(sorted(cards)) or "nothing"
            text = f"{self._base_url} serves {served}, not {self._base_model}; correct the base model's name"
            raise ProviderError(text, kind="request")
        return cards[self._base_model]

    def _check_loaded(self, card: ServedCard, adapter: Adapter, cards: Mapping[str, ServedCard]) -> None:
        """Refuse an adapter that somebody else loaded by the name, as far as the server tells what it is."""
        base, parent = cards[self._base_model], cards.get(card.parent)
        if card.parent and card.parent != base.name and (parent is None or parent.root != base.root):
            text = f"{card.name}: the server has it on {card.parent}, not on {base.name}; unload it or give a new name"
            raise ProviderError(text, kind="request")
        folder = Path(card.root)
        if card.root and folder.is_dir() and folder.resolve() != adapter.folder.resolve():
            _check(Adapter(folder, adapter.sha256), card.name)

    def _model(self, name: str, base: ServedCard) -> HostedChatModel:
        limit = self._max_output_tokens
        return HostedChatModel(
            _ServedAdapter(name, self._key, self._base_url),
            self._loop,
            Budget(math.inf),  # of its own: what costs nothing takes nothing from the hosted models' budgets
            NoPrice(),
            max_output_tokens=min(limit, max(1, base.context_tokens // 2)) if base.context_tokens else limit,
            concurrency=self._concurrency,
            telemetry=self._telemetry,
        )

    async def _dropped(self, held: _Version) -> None:
        async with self._changes:
            with self._lock:
                if held.leases or self._versions.get(held.name) is not held:
                    return
                del self._versions[held.name]
            await self._end(held)

    async def _ended(self) -> None:
        async with self._changes:
            with self._lock:
                versions = tuple(self._versions.values())
                self._versions.clear()
            await asyncio.gather(*(self._end(held) for held in versions))
            await self._server.aclose()

    async def _end(self, held: _Version) -> None:
        await held.model.aclose()
        if held.ours:
            try:
                await self._server.unload(held.name, _UNLOAD_S)
            except VendorError as error:
                logger.warning(
                    "%s keeps the adapter %s, which nobody asks any more: %s", self._base_url, held.name, error
                )


class ServedSource:
    """An `AnswerSource` over one name of the server; made by `ServedModel.open`. Closed or forgotten, it gives its lease back."""

    waits = True

    def __init__(self, engine: ServedModel, held: _Version) -> None:
        self.version = held.name
        self._engine = engine
        self._held = held
        self._lock = threading.Lock()
        self._closed = False
        self._forgotten = weakref.finalize(self, engine.forget, held)
        self._forgotten.atexit = False

    def answer(self, questions: Sequence[Question], *, deadline_s: float | None = None) -> list[str | ProviderError]:
        """Ask all questions at the same time; an adapter that the server lost is loaded again, and asked once more."""
        with self._lock:
            if self._closed:
                raise _closed(self.version)
            self._engine.lease(self._held)
        try:
            deadline = time.monotonic() + (self._engine.deadline_s if deadline_s is None else deadline_s)
            answers = self._asked(questions, deadline)
            lost = [
                index
                for index, answer in enumerate(answers)
                if isinstance(answer, VendorError) and answer.unknown_model
            ]
            if lost and self._engine.restore(self._held, max(0.0, deadline - time.monotonic())):
                again = self._asked([questions[index] for index in lost], deadline)
                for index, answer in zip(lost, again, strict=True):
                    answers[index] = answer
        finally:
            self._engine.release(self._held)
        faults = [answer for answer in answers if isinstance(answer, ProviderError) and answer.kind in OF_THE_SERVER]
        if faults and len(faults) == len(answers):
            raise faults[0]
        return answers

    def close(self) -> None:
        """Give the version back; the server lets it go once no answer is in hand, if it was loaded from here."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._forgotten.detach()
        self._engine.release(self._held)

    def _asked(self, questions: Sequence[Question], deadline: float) -> list[str | ProviderError]:
        left_s = max(0.0, deadline - time.monotonic())
        futures = [
            self._held.model.submit(
                [_turn(message) for message in question.messages],
                question.schema,
                deadline_s=left_s,
                temperature=question.temperature,
                seed=question.random_state % 2**63,
            )
            for question in questions
        ]
        wait(futures, timeout=left_s + _GRACE_S)
        return [self._text(question, future) for question, future in zip(questions, futures, strict=True)]

    def _text(self, question: Question, future: Future[ChatAnswer]) -> str | ProviderError:
        if not future.done():
            future.cancel()
            return ProviderError(f"{self.version}: no answer in time; allow more seconds", kind="timeout")
        try:
            return canonical_text(future.result().content, question.schema)
        except CancelledError:
            return _closed(self.version)
        except ProviderError as error:
            return error


def canonical_text(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return an object as JSON without white space, its properties in the schema's order and others after them."""
    return json.dumps(_ordered(value, schema), separators=(",", ":"), allow_nan=False)


def _ordered(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        properties: Mapping[str, Any] = schema.get("properties", {})
        names = [*(name for name in properties if name in value), *(name for name in value if name not in properties)]
        return {name: _ordered(value[name], properties.get(name, {})) for name in names}
    if isinstance(value, list):
        return [_ordered(item, schema.get("items", {})) for item in value]
    return value


def _turn(message: Mapping[str, str]) -> ChatMessage:
    return ChatMessage(cast(Literal["system", "user", "assistant"], message["role"]), message["content"])


def _check(adapter: Adapter, version: str) -> None:
    try:
        verify(adapter.folder, adapter.sha256)
    except ArtifactCorrupt as error:
        text = f"{version}: the adapter is not what was registered ({error}); train it again or take a former version"
        raise ProviderError(text, kind="fault") from error


def _closed(version: str) -> ProviderError:
    return ProviderError(f"{version} is closed; open it again", kind="closed")
