"""Claude models over the Messages API, through the vendor's async SDK with its retries off.

Built by `utils.llm.factory`. Temperature is never sent: the SDK has no such parameter and newer models refuse it.
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

_UNSAYABLE = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems",
)  # fmt: skip
"""Keywords that the vendor's schemas refuse."""


def accepted_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema as the vendor accepts it: ranges and lengths stand in descriptions, for the model to read.

    The SDK's own `transform_schema` does likewise, but not for a list of types.
    """
    told = {name: schema[name] for name in _UNSAYABLE if name in schema}
    if schema.get("minItems", 0) > 1:
        told["minItems"] = schema["minItems"]
    accepted = {name: value for name, value in schema.items() if name not in told}
    if told:
        words = ", ".join(f"{name} {value}" for name, value in told.items())
        accepted["description"] = f"{accepted['description']} ({words})" if "description" in accepted else words
    for name in ("properties", "$defs"):
        if name in accepted:
            accepted[name] = {key: accepted_schema(part) for key, part in accepted[name].items()}
    if "items" in accepted:
        accepted["items"] = accepted_schema(accepted["items"])
    if "anyOf" in accepted:
        accepted["anyOf"] = [accepted_schema(part) for part in accepted["anyOf"]]
    return accepted


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
        from anthropic import AsyncAnthropic

        self.model = model
        self._endpoint = Endpoint(self.provider, model, key)
        self._client = AsyncAnthropic(
            api_key=key, base_url=base_url, max_retries=0, http_client=async_client(base_url), open_telemetry=False
        )

    async def ask(
        self,
        messages: Sequence[ChatMessage],
        schema: Mapping[str, Any],
        *,
        max_output_tokens: int,
        temperature: float | None,
        timeout_s: float,
    ) -> RawAnswer:
        """Ask once, what the vendor's schemas cannot say (ranges, lengths) in the descriptions; see `Adapter`."""
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_output_tokens,
            "messages": [{"role": m.role, "content": m.content} for m in messages if m.role != "system"],
            "output_config": {"format": {"type": "json_schema", "schema": accepted_schema(schema)}},
        }
        if system := system_text(messages):
            request["system"] = system
        try:
            reply = await self._client.messages.create(**request, timeout=timeout(timeout_s))
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
