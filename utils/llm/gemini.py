"""Gemini models over generateContent, through google-genai's async client with its retries off.

Built by `utils.llm.factory`, which takes `utils.llm.gemini_legacy` where google-genai is not installed; the reading of a
reply is shared by both.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from utils.llm.adapter import RawAnswer, system_text
from utils.llm.base import ChatMessage
from utils.llm.faults import Endpoint, count, no_api_reply, unusable, vendor_fault
from utils.llm.http_client import async_client, sync_client

DEFAULT_BASE_URL = "https://generativelanguage.googleapis.com"
_PROBE_TIMEOUT_MS = 5000

_COMPLETE = ("STOP", "FINISH_REASON_UNSPECIFIED")
_REFUSED = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE")


class GeminiAdapter:
    """One Gemini model.

    Parameters
    ----------
    model, key : str
    base_url : str
        Without a version.

    Raises
    ------
    ImportError
        If google-genai is not installed.
    """

    provider = "gemini"

    def __init__(self, model: str, key: str, base_url: str = DEFAULT_BASE_URL) -> None:
        genai = importlib.import_module("google.genai")
        types = importlib.import_module("google.genai.types")
        self.model = model
        self._endpoint = Endpoint(self.provider, model, key)
        self._types = types
        self._http = async_client(base_url)
        self._unused = sync_client()
        options = types.HttpOptions(
            base_url=base_url,
            api_version="v1beta",
            retry_options=types.HttpRetryOptions(attempts=1),
            httpx_client=self._unused,
            httpx_async_client=self._http,
        )
        self._client = genai.Client(vertexai=False, api_key=key, http_options=options)

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
        types = self._types
        config = types.GenerateContentConfig(
            system_instruction=system_text(messages) or None,
            max_output_tokens=max_output_tokens,
            temperature=temperature,
            seed=None if seed is None else seed % 2**31,  # the API takes 31 bits
            response_mime_type="application/json",
            response_json_schema=dict(schema),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            http_options=types.HttpOptions(timeout=max(1, round(timeout_s * 1000))),
        )
        try:
            reply = await self._client.aio.models.generate_content(
                model=self.model, contents=conversation(messages), config=config
            )
            return read_reply(self._endpoint, reply)
        except Exception as error:  # the SDK raises nearly anything, those of the HTTP client among it
            raise vendor_fault(self._endpoint, error) from error

    async def probe(self) -> None:
        """Look the model up; see `Adapter`."""
        options = self._types.HttpOptions(timeout=_PROBE_TIMEOUT_MS)
        try:
            await self._client.aio.models.get(model=self.model, config={"http_options": options})
        except Exception as error:  # as above
            raise vendor_fault(self._endpoint, error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        self._client.close()
        self._unused.close()


def conversation(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return the messages as Gemini has them, those of the system left out."""
    roles = {"user": "user", "assistant": "model"}
    return [
        {"role": roles[message.role], "parts": [{"text": message.content}]}
        for message in messages
        if message.role != "system"
    ]


def read_reply(endpoint: Endpoint, reply: Any) -> RawAnswer:
    """Return what a reply of either SDK says.

    Raises
    ------
    VendorError
        If it is blocked, refused, cut off, empty or no reply at all.
    """
    usage = getattr(reply, "usage_metadata", None)
    # what it thought is charged as output and stands beside it in google-genai
    output_tokens = count(getattr(usage, "candidates_token_count", None)) + count(
        getattr(usage, "thoughts_token_count", None)
    )
    input_tokens = count(getattr(usage, "prompt_token_count", None))
    model = str(getattr(reply, "model_version", None) or endpoint.model)
    blocked = getattr(getattr(reply, "prompt_feedback", None), "block_reason", None)
    candidates = getattr(reply, "candidates", None)
    if not candidates:
        if blocked:
            what = f"the prompt was blocked ({_name(blocked)}); change what is asked"
            raise unusable(endpoint, "refusal", what, RawAnswer("", model, input_tokens, output_tokens))
        raise no_api_reply(endpoint, reply)
    candidate = candidates[0]
    parts = getattr(candidate.content, "parts", None) or ()
    text = "".join(part.text for part in parts if part.text and not getattr(part, "thought", None))
    answer = RawAnswer(text, model, input_tokens, output_tokens)
    reason = _name(candidate.finish_reason)
    if reason == "MAX_TOKENS":
        raise unusable(endpoint, "truncated", "the answer was cut off; raise llm.max_output_tokens", answer)
    if reason in _REFUSED:
        raise unusable(endpoint, "refusal", f"the answer was held back ({reason}); change what is asked", answer)
    if not text.strip() or reason not in _COMPLETE:
        raise unusable(endpoint, "malformed", f"the answer is empty or broken off (finishReason {reason})", answer)
    return answer


def _name(value: Any) -> str:
    """Return an enum's name as the API spells it."""
    return str(getattr(value, "name", None) or value or "FINISH_REASON_UNSPECIFIED")
