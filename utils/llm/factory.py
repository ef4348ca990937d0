"""The models of a run, made when first asked for, with the one loop, budget and cache that they share.

The daemon owns one `ChatModels`; judges and policies get their `ChatModel` from it. `chat_model` makes a single one for
notebooks, without budget and cache.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Literal
from urllib.parse import urlsplit

from utils.errors import ConfigError, ProviderError, nearest
from utils.llm import anthropic, gemini, openai
from utils.llm.adapter import Adapter
from utils.llm.answer_cache import AnswerCache
from utils.llm.base import ChatModel
from utils.llm.budget import Budget
from utils.llm.event_loop import LoopThread
from utils.llm.faults import BASE_URL_VARIABLES, KEY_VARIABLES
from utils.llm.hosted import HostedChatModel, Price
from utils.llm.prices import ModelPrice, NoPrice, load_prices
from utils.settings import ENVIRONMENT, OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry

Provider = Literal["anthropic", "openai", "gemini", "local"]

PROVIDER_PREFIXES: dict[str, Provider] = {
    "claude": "anthropic",
    "gpt": "openai",
    "chatgpt": "openai",
    "o1": "openai",
    "o3": "openai",
    "o4": "openai",
    "gemini": "gemini",
    "local": "local",
}
"""Beginning of a model's name to its provider; the one table of it."""

HOSTED: tuple[Provider, ...] = ("anthropic", "openai", "gemini")
"""Providers that need a key and cost money, in the order in which one is preferred."""

PROVIDERS: tuple[Provider, ...] = (*HOSTED, "local")

_DEFAULT_BASE_URLS = {
    "anthropic": anthropic.DEFAULT_BASE_URL,
    "openai": openai.DEFAULT_BASE_URL,
    "gemini": gemini.DEFAULT_BASE_URL,
}
_PROBE_S = 5.0
_CLOSE_S = 5.0


def keyed_providers(config: OrchestratorConfig) -> list[str]:
    """Return the hosted providers that a configuration has a key for, in order of preference."""
    return [provider for provider in HOSTED if getattr(config, f"{provider}_api_key") is not None]


class ChatModels:
    """Every model of a run.

    Parameters
    ----------
    config : OrchestratorConfig
        Keys, base URLs, sections llm and budget, data_dir.
    replay : bool
        Whether history is replayed: llm.cache auto keeps answers then.
    telemetry : Telemetry

    Raises
    ------
    ConfigError
        If the table of prices is wrong.
    """

    def __init__(self, config: OrchestratorConfig, *, replay: bool, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self._config = config
        self._telemetry = telemetry
        self._prices = load_prices(config.llm.prices)
        folder = config.data_dir / "llm"
        self._budget = Budget(
            config.budget.usd_per_day,
            config.budget.usd_per_decision,
            config.budget.tokens_per_decision,
            folder / "spending.json",
            telemetry=telemetry,
        )
        caches = config.llm.cache == "on" or (config.llm.cache == "auto" and replay)
        self._cache = AnswerCache(folder / "answers") if caches else None
        self._loop = LoopThread()
        self._lock = threading.Lock()
        self._models: dict[str, HostedChatModel] = {}
        self._closed = False

    @property
    def budget(self) -> Budget:
        """What the models may still cost."""
        return self._budget

    def has_key(self, provider: str) -> bool:
        """Return whether a provider can be asked at all; a local model needs no key."""
        return provider == "local" or self._key(provider) is not None

    def model(self, provider: str, model: str | None = None) -> ChatModel:
        """Return the one instance for a model.

        Parameters
        ----------
        provider : {"anthropic", "openai", "gemini", "local"}
        model : str, optional
            A name as the vendor has it, a folder for local; None is the one of section llm.

        Raises
        ------
        ProviderError
            Of kind auth without a key, of kind fault if the vendor's SDK is not installed.
        ConfigError
            If there is no such provider.
        """
        known = _known_provider(provider)
        name = model or ("" if known == "local" else self._config.llm.model(known))
        if not name:
            raise ConfigError("a local model needs the folder that it is in")
        with self._lock:
            if self._closed:
                raise ProviderError("the models are closed; make new ones", kind="closed")
            made = self._models.get(f"{known}:{name}")
            if made is None:
                made = self._models[f"{known}:{name}"] = self._made(known, name)
            return made

    def probe(self) -> dict[str, str]:
        """Ask every vendor, all at once and for 5 s at most, whether key and model are accepted.

        Returns
        -------
        dict
            By the names of the models made so far: ``ready`` or ``<kind>: <message>``. A refused key or an unknown model
            turns its model off.
        """
        with self._lock:
            found = {name: model.probe() for name, model in self._models.items()}
        wait(found.values(), timeout=_PROBE_S)
        return {name: _found(name, future) for name, future in found.items()}

    def status(self) -> dict[str, Any]:
        """Return what is spent and how each model is, as JSON values for people."""
        with self._lock:
            models = dict(self._models)
        return {
            "spent_today_usd": round(self._budget.spent_today, 6),
            "usd_per_day": self._budget.usd_per_day,
            "exhausted": self._budget.exhausted,
            "models": {name: model.status() for name, model in models.items()},
        }

    def close(self) -> None:
        """End every call, connection and thread; may be called twice."""
        with self._lock:
            self._closed = True
            models = tuple(self._models.values())
        _close(self._loop, models)
        self._budget.close()

    def _key(self, provider: str) -> str | None:
        secret = getattr(self._config, f"{provider}_api_key", None)
        return secret.get_secret_value() if secret is not None else None

    def _made(self, provider: Provider, name: str) -> HostedChatModel:
        key = self._key(provider)
        if provider != "local" and key is None:
            raise _no_key(provider)
        base_url = getattr(self._config, f"{provider}_base_url", None) or _DEFAULT_BASE_URLS.get(provider, "")
        price: Price = NoPrice()
        if provider != "local":
            own_server = provider == "openai" and urlsplit(base_url).hostname != "api.openai.com"
            price = ModelPrice(self._prices, provider, name, free_if_unknown=own_server)
        return HostedChatModel(
            make_adapter(provider, name, key or "", base_url, self._config.llm.concurrency),
            self._loop,
            self._budget,
            price,
            cache=self._cache,
            max_output_tokens=self._config.llm.max_output_tokens,
            concurrency=self._config.llm.concurrency,
            random_state=self._config.random_state,
            telemetry=self._telemetry,
        )


class OwnedChatModel(HostedChatModel):
    """A model with a loop of its own, for notebooks; `close` ends it."""

    def __init__(self, adapter: Adapter, max_output_tokens: int) -> None:
        self._own_loop = LoopThread()
        super().__init__(adapter, self._own_loop, Budget(math.inf), NoPrice(), max_output_tokens=max_output_tokens)

    def close(self) -> None:
        """End calls, connections and the thread; may be called twice."""
        _close(self._own_loop, (self,))


def chat_model(
    model: str,
    *,
    provider: str | None = None,
    api_key: str | None = None,
    base_url: str | None = None,
    max_output_tokens: int = 2048,
) -> OwnedChatModel:
    """Return a single model without budget and cache; the cost of its answers is given as 0.

    Parameters
    ----------
    model : str
        A name as the vendor has it, or ``local:<folder>``.
    provider : str, optional
        None takes it from the beginning of the name, see `PROVIDER_PREFIXES`.
    api_key, base_url : str, optional
        None takes the provider's environment variable, and the vendor's own address.
    max_output_tokens : int

    Raises
    ------
    ConfigError
        If the provider cannot be told from the name.
    ProviderError
        Of kind auth without a key, of kind fault if the vendor's SDK is not installed.
    """
    known = _known_provider(provider) if provider else provider_of(model)
    name = model.removeprefix("local:") if known == "local" else model
    if known == "local":
        return OwnedChatModel(make_adapter(known, name, "", ""), max_output_tokens)
    address = base_url or os.environ.get(BASE_URL_VARIABLES[known]) or _DEFAULT_BASE_URLS[known]
    key = api_key or os.environ.get(KEY_VARIABLES[known])
    if not key:
        raise _no_key(known)
    return OwnedChatModel(make_adapter(known, name, key, address), max_output_tokens)


def provider_of(model: str) -> Provider:
    """Return the provider that a model's name begins with.

    Raises
    ------
    ConfigError
        If it begins with none that is known.
    """
    for prefix, provider in PROVIDER_PREFIXES.items():
        if model.startswith(prefix):
            return provider
    raise ConfigError(
        f"{model!r}: no provider is known for this model; name one of {', '.join(PROVIDERS)}, "
        f"or a model that begins with {', '.join(PROVIDER_PREFIXES)}"
    )


def make_adapter(provider: Provider, model: str, key: str, base_url: str, threads: int = 16) -> Adapter:
    """Return the adapter of a vendor; this is where its SDK is imported.

    Raises
    ------
    ProviderError
        Of kind fault, if the SDK is not installed.
    """
    builders: dict[Provider, Callable[[], Adapter]] = {
        "anthropic": lambda: anthropic.AnthropicAdapter(model, key, base_url),
        "openai": lambda: openai.OpenAIAdapter(model, key, base_url),
        "gemini": lambda: _gemini(model, key, base_url, threads),
        "local": lambda: _local(model),
    }
    try:
        return builders[provider]()
    except ImportError as error:
        extra = "training" if provider == "local" else "hosted"
        text = f"{provider} {model}: its library is not installed ({error}); install stock-agents[{extra}]"
        raise ProviderError(text, kind="fault") from error


def _gemini(model: str, key: str, base_url: str, threads: int) -> Adapter:
    try:
        return gemini.GeminiAdapter(model, key, base_url)
    except ImportError:
        from utils.llm.gemini_legacy import LegacyGeminiAdapter

        return LegacyGeminiAdapter(model, key, base_url, threads)


def _local(folder: str) -> Adapter:
    from utils.llm.local import LocalAdapter

    return LocalAdapter(folder)


def _known_provider(provider: str) -> Provider:
    for known in PROVIDERS:
        if known == provider:
            return known
    raise ConfigError(
        f"{provider!r} is no provider of models{nearest(provider, PROVIDERS)}; take one of {', '.join(PROVIDERS)}"
    )


def _no_key(provider: str) -> ProviderError:
    text = f"{provider}: there is no key; set {ENVIRONMENT[f'{provider}_api_key']}"
    if provider == "openai":
        text += " (any word will do where OPENAI_BASE_URL names a server that asks for none)"
    return ProviderError(text, kind="auth")


def _found(name: str, future: Future[str]) -> str:
    if not future.done():
        future.cancel()
        return f"timeout: {name}: no reply within {_PROBE_S:g} s; check the network"
    error = future.exception()
    return future.result() if error is None else f"fault: {name}: {error}"


def _close(loop: LoopThread, models: tuple[HostedChatModel, ...]) -> None:
    """Close models on their loop, if it ever ran, and then the loop."""
    if loop.is_running:
        wait([loop.submit(model.aclose) for model in models], timeout=_CLOSE_S)
    loop.close()
