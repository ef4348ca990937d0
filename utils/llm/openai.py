"""GPT models, and whatever speaks OpenAI's chat completions (vLLM, Ollama), through the vendor's async SDK, retries off.

Built by `utils.llm.factory`. What an endpoint refuses to be told (structured output, a temperature) is left out from then
on; the schema then stands in the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utils.llm.adapter import RawAnswer, with_schema
from utils.llm.base import ChatMessage
from utils.llm.faults import Endpoint, count, no_api_reply, refused_parameter, unusable, vendor_fault
from utils.llm.http_client import async_client, timeout
from utils.llm.lookup import PROBE_TIMEOUT_S, look_up

DEFAULT_BASE_URL = "https://api.openai.com/v1"


class OpenAIAdapter:
    """One model behind an OpenAI-compatible server.

    Parameters
    ----------
    model, key : str
    base_url : str
        With ``/v1``.
    """

    provider = "openai"

    def __init__(self, model: str, key: str, base_url: str = DEFAULT_BASE_URL) -> None:
        from openai import AsyncOpenAI

        self.model = model
        self._endpoint = Endpoint(self.provider, model, key)
        self._client = AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=async_client(base_url))
        self._takes_schema = True
        self._takes_temperature = True
        self._completions = self._client.chat.completions  # imported here, in the caller's thread, not on the loop's

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
        """Ask once, or again without what the endpoint refuses to be told; see `Adapter`."""
        while True:
            with_format = self._takes_schema
            with_temperature = temperature is not None and self._takes_temperature
            request: dict[str, Any] = {"model": self.model, "max_completion_tokens": max_output_tokens}
            if with_format:
                request["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)},
                }
            if with_temperature:
                request["temperature"] = temperature
            if seed is not None:
                request["seed"] = seed
            said = messages if with_format else with_schema(messages, schema)
            request["messages"] = [{"role": message.role, "content": message.content} for message in said]
            try:
                reply = await self._completions.create(**request, timeout=timeout(timeout_s))
                return self._answer(reply)
            except Exception as error:  # the SDK raises nearly anything, a TypeError from its parsing among it
                # another call may have learnt it meanwhile: what counts is what this request said
                if with_temperature and refused_parameter(error, "temperature"):
                    self._takes_temperature = False
                elif with_format and refused_parameter(error, "response_format", "json_schema"):
                    self._takes_schema = False
                else:
                    raise vendor_fault(self._endpoint, error) from error

    async def probe(self) -> None:
        """Look the model up, or find it in the list where a server has no such look-up; see `Adapter`."""
        models = self._client.models
        await look_up(
            self._endpoint,
            lambda: models.retrieve(self.model, timeout=PROBE_TIMEOUT_S),
            lambda: models.list(timeout=PROBE_TIMEOUT_S),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _answer(self, reply: Any) -> RawAnswer:
        choices: Any = getattr(reply, "choices", None)
        message = choices[0].message if choices else None
        if message is None:
            raise no_api_reply(self._endpoint, reply)
        usage = reply.usage
        answer = RawAnswer(
            message.content or "",
            str(reply.model or self.model),
            count(getattr(usage, "prompt_tokens", None)),
            count(getattr(usage, "completion_tokens", None)),
        )
        reason = choices[0].finish_reason
        if getattr(message, "refusal", None):
            raise unusable(self._endpoint, "refusal", f"it refused to answer ({message.refusal[:120]})", answer)
        if reason == "content_filter":
            raise unusable(self._endpoint, "refusal", "the content filter held the answer back", answer)
        if reason == "length":
            what = "the answer was cut off; raise llm.max_output_tokens"
            raise unusable(self._endpoint, "truncated", what, answer)
        if not answer.text.strip():
            raise unusable(self._endpoint, "malformed", f"the answer is empty (finish_reason {reason})", answer)
        return answer
