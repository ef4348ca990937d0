"""The seam between the system and any language model: messages and a JSON schema in, an object with usage and cost out.

Judges and hosted policies call it; nothing else of the system knows a vendor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    cost_usd : float
        0 for local models.
    latency_s : float
    """

    content: Mapping[str, Any]
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0


class ChatModel(Protocol):
    """Answers with a JSON object.

    Failure contract: no answer within the deadline, a refusal, a truncated answer, text that is no JSON object, a missing or
    refused key, a spent budget: each raises `ProviderError` that says which. It never returns a default and never a part
    of an answer. Two calls may run at the same time.

    Attributes
    ----------
    name : str
        ``<provider>:<model>``.
    """

    name: str

    def complete(
        self, messages: Sequence[ChatMessage], schema: Mapping[str, Any], *, deadline_s: float = 20.0
    ) -> ChatAnswer:
        """Ask for an object of the JSON schema, within `deadline_s` seconds of wall time."""
        ...
