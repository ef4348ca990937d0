"""What an OpenAI-compatible server of one's own serves, and the LoRA adapters that it is told to take in and let go (vLLM).

`agents.policies.local.served` asks it before an adapter is asked anything; answers come through `utils.llm.openai`. It
never loads in place: a name stands for the same weights as long as the server runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from utils.llm.adapter import VendorError
from utils.llm.faults import Endpoint, no_api_reply, vendor_fault
from utils.llm.http_client import async_client, timeout

_T = TypeVar("_T")

PROVIDER = "served"


@dataclass(frozen=True, slots=True)
class ServedCard:
    """One entry of the server's list.

    Attributes
    ----------
    root : str
        Where its weights come from, as the server knows it; empty if it does not say.
    parent : str
        Of an adapter its base model; empty for a base model, and where the server does not say.
    context_tokens : int
        Prompt and answer together; 0 if the server does not say.
    """

    name: str
    root: str
    parent: str
    context_tokens: int


class LoraServer:
    """The server's side that is not chat; its coroutines run on one event loop.

    Every method raises `VendorError`: refused, away, or no reply within the seconds allowed, which are of wall time.

    Parameters
    ----------
    base_url : str
        With ``/v1``.
    key : str
        Sent as the bearer token; a server without keys takes any.
    """

    def __init__(self, base_url: str, key: str) -> None:
        from openai import AsyncOpenAI

        self._key = key
        self._client = AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=async_client(base_url))
        self._models = self._client.models  # imported here, in the caller's thread, not on the loop's

    async def cards(self, timeout_s: float) -> dict[str, ServedCard]:
        """Return what can be asked now, by name."""
        page: Any = await self._call("/models", timeout_s, lambda: self._models.list(timeout=timeout(timeout_s)))
        listed = getattr(page, "data", None)
        if not isinstance(listed, list):
            raise no_api_reply(Endpoint(PROVIDER, "/models", self._key), page)
        cards = (_card(item) for item in listed)
        return {card.name: card for card in cards}

    async def load(self, name: str, folder: Path, timeout_s: float) -> None:
        """Take an adapter in under a name that is free; the server reads the folder itself."""
        await self._change("/load_lora_adapter", name, {"lora_name": name, "lora_path": str(folder)}, timeout_s)

    async def unload(self, name: str, timeout_s: float) -> None:
        """Let an adapter go."""
        await self._change("/unload_lora_adapter", name, {"lora_name": name}, timeout_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _change(self, path: str, name: str, body: dict[str, str], timeout_s: float) -> None:
        options: Any = {"timeout": timeout(timeout_s)}
        await self._call(name, timeout_s, lambda: self._client.post(path, cast_to=str, body=body, options=options))

    async def _call(self, subject: str, timeout_s: float, call: Callable[[], Awaitable[_T]]) -> _T:
        try:
            async with asyncio.timeout(timeout_s):
                return await call()
        except TimeoutError:
            text = f"{PROVIDER} {subject}: no reply within {timeout_s:g} s; look whether the server is busy or hangs"
            raise VendorError(text, kind="timeout", sent=True) from None
        except Exception as error:  # the SDK raises nearly anything
            raise vendor_fault(Endpoint(PROVIDER, subject, self._key), error) from error


def _card(item: Any) -> ServedCard:
    context = getattr(item, "max_model_len", None)
    return ServedCard(
        str(getattr(item, "id", "")),
        str(getattr(item, "root", None) or ""),
        str(getattr(item, "parent", None) or ""),
        context if isinstance(context, int) and context > 0 else 0,
    )
