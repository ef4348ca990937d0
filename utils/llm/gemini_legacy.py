"""Gemini models through google-generativeai, which its vendor no longer maintains: for where google-genai is absent.

Built by `utils.llm.factory`. It has no async REST, so calls run in a bounded pool: one that hangs keeps its thread until the
server closes, and when all are held new calls fail at once. Its configuration is global to the process.
"""

from __future__ import annotations

import asyncio
import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from utils.errors import ProviderError
from utils.llm.adapter import RawAnswer, VendorError, system_text, with_schema
from utils.llm.base import ChatMessage
from utils.llm.faults import Endpoint, vendor_fault
from utils.llm.gemini import DEFAULT_BASE_URL, conversation, read_reply
from utils.llm.http_client import is_loopback
from utils.llm.worker_pool import WorkerPool

_PROBE_TIMEOUT_S = 5.0


class LegacyGeminiAdapter:
    """One Gemini model.

    Parameters
    ----------
    model, key : str
    base_url : str
        With its scheme, without a version.
    threads : int
        Calls that may be open, hung ones among them.

    Raises
    ------
    ImportError
        If google-generativeai is not installed.
    """

    provider = "gemini"

    def __init__(self, model: str, key: str, base_url: str = DEFAULT_BASE_URL, threads: int = 16) -> None:
        with warnings.catch_warnings():  # it announces its own end, and Python 3.11's, whenever it is imported
            warnings.simplefilter("ignore")
            self._genai = importlib.import_module("google.generativeai")
        self._genai.configure(api_key=key, transport="rest", client_options={"api_endpoint": base_url})
        self._client, self._lookup = self._own_clients(is_loopback(base_url))
        self.model = model
        self._endpoint = Endpoint(self.provider, model, key)
        self._pool = WorkerPool(threads, "gemini")

    async def ask(
        self,
        messages: Sequence[ChatMessage],
        schema: Mapping[str, Any],
        *,
        max_output_tokens: int,
        temperature: float | None,
        timeout_s: float,
        seed: int | None = None,
    ) -> RawAnswer:
        """Ask once, the schema in the prompt because the SDK knows only part of JSON schema; see `Adapter`."""
        said = with_schema(messages, schema)
        settings: dict[str, Any] = {
            "max_output_tokens": max_output_tokens,
            "response_mime_type": "application/json",
        }
        if temperature is not None:
            settings["temperature"] = temperature

        def work() -> RawAnswer:
            model = self._genai.GenerativeModel(self.model, system_instruction=system_text(said))
            model._client = self._client  # else it takes that of whoever configured the process last
            reply = model.generate_content(
                conversation(said), generation_config=settings, request_options={"timeout": timeout_s, "retry": None}
            )
            return read_reply(self._endpoint, reply)

        return await self._run(work)

    async def probe(self) -> None:
        """Look the model up; see `Adapter`."""
        name = self.model if self.model.startswith("models/") else f"models/{self.model}"
        await self._run(
            lambda: self._genai.get_model(
                name, client=self._lookup, request_options={"timeout": _PROBE_TIMEOUT_S, "retry": None}
            )
        )

    async def aclose(self) -> None:
        """Let the threads and the connections end."""
        self._pool.close()
        for client in (self._client, self._lookup):
            client.transport.close()

    @staticmethod
    def _own_clients(own_machine: bool) -> tuple[Any, Any]:
        """Return clients for questions and for look-ups as they are configured now.

        They ask once on a refused key, and this machine's own server directly: the SDK has settings for neither.
        """
        client = importlib.import_module("google.generativeai.client")
        made = (client.get_default_generative_client(), client.get_default_model_client())
        for each in made:
            session = each.transport._session
            session._max_refresh_attempts = 0
            session.trust_env = not own_machine
        return made

    async def _run(self, work: Any) -> Any:
        if self._pool.is_full:
            raise VendorError(
                f"gemini {self.model}: every thread is held by a call that hangs; install google-genai, which needs none",
                kind="overload",
            )
        try:
            return await asyncio.wrap_future(self._pool.submit(work))
        except ProviderError:
            raise
        except Exception as error:  # the SDK raises nearly anything, those of requests among it
            raise vendor_fault(self._endpoint, error) from error
