"""Claude models over the Messages API, through the vendor's async SDK with its retries off.

Built by `utils.llm.factory`. Temperature is never sent: the SDK has no such parameter and newer models refuse it. What
structured output does not know, such as ranges, the SDK itself moves into the schema's descriptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utils.errors import ProviderFault
from utils.llm.adapter import RawAnswer, system_text
from utils.llm.base import ChatMessage
from utils.llm.faults import Endpoint, count, no_api_reply, unusable, vendor_fault
from utils.llm.http_client import async_client, timeout
from utils.llm.lookup import PROBE_TIMEOUT_S, look_up

DEFAULT_BASE_URL = "https://api.anthropic.com"

_STOPPED: dict[str, tuple[ProviderFault, str]] = {
    "refusal": ("refusal", "it refused to answer; change what is asked"),
    "max_tokens": ("truncated", "the answer was cut off; raise llm.max_output_tokens"),
    "model_context_window_exceeded": ("truncated", "the context is full; shorten the messages"),
}


class AnthropicAdapter:
    """One Claude model.

    Parameters
    ----------
    model, key : str
    base_url : str
        Without ``/v1``.
    """

    provider = "anthropic"

    def __init__(self, model: str, key: str, base_url: str = DEFAULT_BASE_URL) -> None:
        from anthropic import AsyncAnthropic, transform_schema

        self.model = model
        self._endpoint = Endpoint(self.provider, model, key)
        self._client = AsyncAnthropic(
            api_key=key, base_url=base_url, max_retries=0, http_client=async_client(base_url), open_telemetry=False
        )
        self._accepted = transform_schema
        self._messages = self._client.messages  # imported here, in the caller's thread, not on the loop's

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
        """Ask once; see `Adapter`."""
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_output_tokens,
            "messages": [{"role": m.role, "content": m.content} for m in messages if m.role != "system"],
            "output_config": {"format": {"type": "json_schema", "schema": self._accepted(without_type_lists(schema))}},
        }
        if system := system_text(messages):
            request["system"] = system
        try:
            reply = await self._messages.create(**request, timeout=timeout(timeout_s))
            return self._answer(reply)
        except Exception as error:  # the SDK raises nearly anything, a TypeError from its parsing among it
            raise vendor_fault(self._endpoint, error) from error

    async def probe(self) -> None:
        """Look the model up; see `Adapter`."""
        models = self._client.models
        await look_up(
            self._endpoint,
            lambda: models.retrieve(self.model, timeout=PROBE_TIMEOUT_S),
            lambda: models.list(limit=1000, timeout=PROBE_TIMEOUT_S),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _answer(self, reply: Any) -> RawAnswer:
        blocks = getattr(reply, "content", None)
        stop_reason = getattr(reply, "stop_reason", None)
        if blocks is None or stop_reason is None:
            raise no_api_reply(self._endpoint, reply)
        text = "".join(block.text for block in blocks if getattr(block, "type", None) == "text" and block.text)
        usage = reply.usage
        cached = count(getattr(usage, "cache_creation_input_tokens", None)) + count(
            getattr(usage, "cache_read_input_tokens", None)
        )
        answer = RawAnswer(
            text,
            str(reply.model or self.model),
            count(getattr(usage, "input_tokens", None)) + cached,
            count(getattr(usage, "output_tokens", None)),
        )
        if stop_reason in _STOPPED:
            kind, what = _STOPPED[stop_reason]
            raise unusable(self._endpoint, kind, what, answer)
        if not text.strip():
            raise unusable(self._endpoint, "malformed", f"the answer is empty (stop_reason {stop_reason})", answer)
        return answer


def without_type_lists(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON schema with ``type: [a, b]`` said as ``anyOf``, which is the only form the SDK understands."""
    said = {key: _without_type_lists(value) for key, value in schema.items()}
    types = said.get("type")
    if not isinstance(types, list):
        return said
    del said["type"]
    about: dict[str, Any] = {key: said.pop(key) for key in ("description", "title") if key in said}
    return {**about, "anyOf": [{"type": "null"} if name == "null" else {"type": name, **said} for name in types]}


def _without_type_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_type_lists(value)
    return [_without_type_lists(item) for item in value] if isinstance(value, list) else value
