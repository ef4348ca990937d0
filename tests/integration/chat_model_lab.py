"""What the contract tests of `ChatModel` share: the vendors, a fake server for each, and the models that ask it.

Models are made as the daemon makes them, by `ChatModels`, and asked over real sockets with the vendors' own SDKs.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.dialect import Dialect, Question
from fakes.http_server import Reply
from fakes.vendors import Behaviour, FakeAnthropic, FakeGemini, FakeOpenAI, FakeVendor

from utils.errors import ProviderError
from utils.llm.base import ChatAnswer, ChatMessage, ChatModel
from utils.llm.factory import ChatModels
from utils.settings import OrchestratorConfig

KEY = "sk-test-0123456789abcdef"
GRACE_S = 0.5
"""How much later than its deadline a call may end."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"score": {"type": "integer"}, "why": {"type": "string"}},
    "required": ["score", "why"],
    "additionalProperties": False,
}
GOOD = {"score": 7, "why": "evidence is cited"}
MESSAGES = (ChatMessage("system", "You grade reasoning."), ChatMessage("user", "The trend is up because volume rose."))


@dataclass(frozen=True)
class Vendor:
    """One way to a hosted model.

    Attributes
    ----------
    sdk : str
        The module that must be importable.
    priced : bool
        Whether config/llm/prices.yaml knows what the model costs.
    hangs_up : bool
        Whether a call that has run out of time closes its connection; the old Gemini SDK cannot be interrupted.
    takes_temperature : bool
    options : mapping
        What the fake server is told beside.
    """

    name: str
    provider: str
    model: str
    fake: type[FakeVendor]
    sdk: str
    priced: bool = True
    hangs_up: bool = True
    takes_temperature: bool = True
    options: Mapping[str, Any] | None = None

    @property
    def dialect(self) -> Dialect:
        """The wire format."""
        return self.fake.dialect


ANTHROPIC = Vendor(
    "anthropic", "anthropic", "claude-haiku-5-5", FakeAnthropic, "anthropic", takes_temperature=False
)  # fmt: skip
OPENAI = Vendor("openai", "openai", "gpt-5.4-mini", FakeOpenAI, "openai")
COMPATIBLE = Vendor(
    "openai-compatible", "openai", "qwen3-8b", FakeOpenAI, "openai", priced=False, options={"retrievable": False}
)
GEMINI = Vendor("gemini", "gemini", "gemini-3.8-flash", FakeGemini, "google.genai")
GEMINI_LEGACY = Vendor(
    "gemini-legacy", "gemini", "gemini-3.8-flash", FakeGemini, "google.generativeai", hangs_up=False
)  # fmt: skip
VENDORS = (ANTHROPIC, OPENAI, COMPATIBLE, GEMINI, GEMINI_LEGACY)

every_vendor = pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent package is there
        return False


@dataclass(frozen=True)
class Failed:
    """How a call failed, and after how many seconds."""

    error: ProviderError
    after_s: float

    @property
    def kind(self) -> str:
        """The error's kind."""
        return self.error.kind


class Lab:
    """Starts servers and models for one test and closes them all."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._patch = patch
        self._stack = ExitStack()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def serve(self, vendor: Vendor, behaviour: Behaviour | Reply | None = None, **options: Any) -> FakeVendor:
        """Start the vendor's server; by default it answers everything with `GOOD`."""
        if not _importable(vendor.sdk):
            pytest.skip(f"needs {vendor.sdk}")
        if vendor is GEMINI_LEGACY:
            self._hide_new_gemini_sdk()
        importlib.import_module(vendor.sdk)  # the first import takes seconds, more than the deadlines of these tests
        server = vendor.fake(behaviour or vendor.dialect.answer(GOOD), **{**(vendor.options or {}), **options})
        self._stack.callback(server.close)
        return server

    def _hide_new_gemini_sdk(self) -> None:
        import google

        self._patch.setitem(sys.modules, "google.genai", None)
        self._patch.delattr(google, "genai", raising=False)

    def models(self, vendor: Vendor, server: FakeVendor | str, *, replay: bool = False, **settings: Any) -> ChatModels:
        """Make what the daemon makes models with, pointed at a server; `settings` are fields of the configuration."""
        url = server if isinstance(server, str) else server.url
        access = {f"{vendor.provider}_api_key": KEY, f"{vendor.provider}_base_url": url}
        config = OrchestratorConfig(
            **{"data_dir": self.folder / "data", "budget": {"usd_per_day": 100}, **access, **settings}
        )
        models = ChatModels(config, replay=replay)
        self._stack.callback(models.close)
        return models

    def model(self, vendor: Vendor, server: FakeVendor | str, **settings: Any) -> ChatModel:
        """Make the vendor's model, pointed at a server."""
        return self.models(vendor, server, **settings).model(vendor.provider, vendor.model)


def ask(
    model: ChatModel, *, deadline_s: float = 5.0, messages: Sequence[ChatMessage] = MESSAGES, **wishes: Any
) -> ChatAnswer:
    """Ask for an object of `SCHEMA`."""
    return model.complete(messages, wishes.pop("schema", SCHEMA), deadline_s=deadline_s, **wishes)


def ask_in_vain(model: ChatModel, *, deadline_s: float = 5.0, **wishes: Any) -> Failed:
    """Ask, and return how it failed: with a `ProviderError` and, whatever happens, in time."""
    started = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        ask(model, deadline_s=deadline_s, **wishes)
    after_s = time.monotonic() - started
    assert after_s < deadline_s + GRACE_S
    message = str(caught.value)
    assert len(message) < 300 and "\n" not in message
    return Failed(caught.value, after_s)


def failure(future: Future[ChatAnswer], limit_s: float = 10.0) -> str:
    """Return the kind of failure that a future ends with."""
    error = future.exception(limit_s)
    assert isinstance(error, ProviderError), error
    return error.kind


def outcomes(lab: Lab, vendor: Vendor, replies: Mapping[str, Reply]) -> tuple[dict[str, Any], FakeVendor]:
    """Ask one question for each reply, all at the same time.

    Returns
    -------
    dict, FakeVendor
        By the replies' names the kind of failure, or the content of the answer; and the server.
    """

    def behave(question: Question) -> Reply:
        return replies[question.user.splitlines()[0]]

    server = lab.serve(vendor, behave)
    model = lab.model(vendor, server, llm={"concurrency": 16})
    calls = {name: model.submit([ChatMessage("user", name)], SCHEMA, deadline_s=10) for name in replies}
    ended: dict[str, Any] = {}
    for name, call in calls.items():
        error = call.exception(12)
        ended[name] = call.result().content if error is None else getattr(error, "kind", repr(error))
    return ended, server


def times_asked(server: FakeVendor) -> dict[str, int]:
    """Return how often the server of `outcomes` was asked for each reply."""
    return dict(Counter(question.user.splitlines()[0] for question in server.asked))


def unused_port() -> int:
    """Return a port of the loopback interface where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
