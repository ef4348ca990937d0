"""What every vendor's adapter is to the rest: one question, one raw answer, or a `VendorError` that says its kind.

Adapters implement `Adapter`; `utils.llm.hosted` calls them on the loop thread. Nothing here retries, waits or counts money.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from utils.errors import ProviderError, ProviderFault
from utils.llm.base import ChatMessage

LONGEST_MESSAGE = 299
"""Characters of an error message."""

SCHEMA_REQUEST = "Answer with exactly one JSON object, without any text around it, that fits this JSON schema:\n"
"""Asks for the object where a vendor's structured output cannot."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What a model said, and the tokens as its vendor counts them; 0 of both where the vendor did not say."""

    text: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0


class VendorError(ProviderError):
    """A vendor gave no usable answer.

    Attributes
    ----------
    retry_after_s : float or None
        Seconds that the vendor asks to wait.
    answer : RawAnswer or None
        What it said all the same, which is paid for: a truncated, malformed or refused answer.
    sent : bool
        Whether the vendor may have worked on the question, and may charge for it.
    unknown_model : bool
        Whether the vendor says that it has no such model.
    reason : str
        What is wrong with the answer, in words for the model that gave it; empty if there are none.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: ProviderFault,
        retry_after_s: float | None = None,
        answer: RawAnswer | None = None,
        sent: bool = False,
        unknown_model: bool = False,
        reason: str = "",
    ) -> None:
        super().__init__(one_line(message), kind=kind)
        self.retry_after_s = retry_after_s
        self.answer = answer
        self.sent = sent
        self.unknown_model = unknown_model
        self.reason = reason


class Adapter(Protocol):
    """One model of one vendor. Its coroutines run on one event loop; cancelling one ends its request."""

    provider: str
    model: str

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
        """Ask once; temperature and seed are wishes. Raises `VendorError`; an answer cut off, refused or empty is one."""
        ...

    async def probe(self) -> None:
        """Find out without cost whether key and model are accepted. Raises `VendorError` if not."""
        ...

    async def aclose(self) -> None:
        """Close connections and threads."""
        ...


def one_line(text: str) -> str:
    """Return a text as one line of at most 299 characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"


def system_text(messages: Sequence[ChatMessage]) -> str:
    """Return the system messages as one text, empty if there is none."""
    return "\n\n".join(message.content for message in messages if message.role == "system")


def with_schema(messages: Sequence[ChatMessage], schema: Mapping[str, Any]) -> list[ChatMessage]:
    """Return the messages with the schema asked for in words, in a system message at the front."""
    request = SCHEMA_REQUEST + json.dumps(schema, ensure_ascii=False)
    text = "\n\n".join(part for part in (system_text(messages), request) if part)
    return [ChatMessage("system", text), *(message for message in messages if message.role != "system")]


def json_object(text: str) -> dict[str, Any]:
    """Return the one JSON object that a text is; a Markdown fence around it is tolerated.

    Raises
    ------
    ValueError
        If it is anything else, with the reason: no JSON, no object, a number that is not finite, a character that cannot
        be stored (NUL, half of a surrogate pair).
    """
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and len(body) >= 6:
        inner = body[3:-3]
        first, _, rest = inner.partition("\n")
        body = rest if first.strip().lower() in ("", "json") else inner
    try:
        value = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}, not an object")
    for string in _strings(value):
        if "\0" in string:
            raise ValueError("it holds the character NUL")
        if not string.isascii() and any("\ud800" <= character <= "\udfff" for character in string):
            raise ValueError("it holds half of a surrogate pair")
    return value


def _strings(value: Any) -> Iterator[str]:
    """Yield every key and text of a JSON value."""
    open_ = [value]
    while open_:
        item = open_.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from item
            open_.extend(item.values())
        elif isinstance(item, list):
            open_.extend(item)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value
