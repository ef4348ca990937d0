"""The seam between the system and any language model: messages and a JSON schema in, an object with usage and cost out.

Judges and hosted policies call it; nothing else of the system knows a vendor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn. Untrusted text belongs into user messages, delimited, never into a system message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A model's answer.

    Attributes
    ----------
    content : mapping
        The JSON object that was asked for. It was parsed, not checked against the schema: whoever asked checks it.
    model : str
        As the provider names what answered.
    input_tokens, output_tokens : int
        As the provider counts them, over all attempts.
    cost_usd : float
        0 for local models, and for an answer from the cache.
    latency_s : float
        Wall seconds from the question to the answer; of an answer from the cache, what the first one took.
    cached : bool
        Whether nobody was asked this time.
    """

    content: Mapping[str, Any]
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    cached: bool = False


class ChatModel(Protocol):
    """Answers with a JSON object.

    Failure contract: no answer within the deadline, a refusal, a truncated answer, text that is no JSON object, a missing or
    refused key, a spent budget: each raises `ProviderError` (out of the future, or of `complete`) whose `kind` says which. It
    never returns a default and never a part of an answer. The deadline is of wall time and holds against a server that
    trickles. Calls may run at the same time; none blocks the caller but `complete`.

    Attributes
    ----------
    name : str
        ``<provider>:<model>``.
    """

    name: str

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
        """Ask for an object of the JSON schema and return at once.

        Parameters
        ----------
        messages : sequence of ChatMessage
        schema : mapping
            JSON schema of an object: every property required, no additional ones, as strict structured output wants it.
        deadline_s : float
            Wall seconds until the future holds an answer or a `ProviderError`, retries included.
        temperature : float, optional
            A wish; vendors that take none are not sent it.
        seed : int, optional
            Of the draw, 0 to 2^63 - 1; a wish as well.
        account : str
            What the call is made for, a decision's identity: its tokens and USD are capped together.
        """
        ...

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
        """Do as `submit` does, and wait for the answer."""
        ...
