"""What every vendor's wire format has in common: what a request asks, and the replies that a vendor documents.

The fake servers use it, and tests take single replies from it. Pure functions; nothing here knows a socket.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from fakes.http_server import Reply, Request

Fault = Literal[
    "bad_key", "forbidden", "bad_request", "spent", "unknown_model", "too_large", "rate", "internal", "unavailable",
    "gateway_timeout", "overloaded",
]  # fmt: skip
"""What a vendor may answer instead of a completion. `spent`: the account has no money or no quota left for the day."""


@dataclass(frozen=True)
class Question:
    """A request for a completion, whoever's dialect it came in.

    Attributes
    ----------
    user : str
        The texts of the user's turns, joined by empty lines.
    schema : mapping, optional
        The JSON schema that the answer is to obey, None if the request names none.
    """

    dialect: Dialect
    request: Request
    model: str
    system: str
    user: str
    schema: Mapping[str, Any] | None
    max_output_tokens: int | None
    temperature: float | None


@dataclass(frozen=True)
class Route:
    """Where a request goes: a completion, one model, or the list of models."""

    kind: Literal["ask", "retrieve", "list"]
    model: str = ""


class Dialect(ABC):
    """One vendor's wire format."""

    name: str
    base_path: str = ""  # what the SDK wants behind host and port

    @abstractmethod
    def key(self, request: Request) -> str | None:
        """Return the key that the request carries, None without one."""

    @abstractmethod
    def route(self, request: Request) -> Route | None:
        """Return what the request is for, None for a path that the vendor does not have."""

    @abstractmethod
    def complaint(self, request: Request) -> str | None:
        """Return what the vendor would not accept in a completion's body, None if it is well formed."""

    @abstractmethod
    def question(self, request: Request) -> Question:
        """Read a well-formed completion's body."""

    @abstractmethod
    def answer(
        self,
        content: Any,
        *,
        stop_reason: str | None = None,
        input_tokens: int = 120,
        output_tokens: int = 40,
        model: str = "fake-model",
    ) -> Reply:
        """Return a completion; `content` is text, or a value that is sent as JSON text. `stop_reason` in the vendor's words."""

    @abstractmethod
    def truncated(self, text: str = '{"score": 7') -> Reply:
        """Return a completion that ended at its token limit."""

    @abstractmethod
    def refusals(self) -> dict[str, Reply]:
        """Return every documented way not to answer for reasons of content, by name."""

    @abstractmethod
    def wrong_shapes(self) -> dict[str, Reply]:
        """Return replies with status 200 and JSON that is no completion, or one without text, by name."""

    @abstractmethod
    def fault(self, fault: Fault, *, retry_after_s: float | None = None, message: str | None = None) -> Reply:
        """Return a documented error; `retry_after_s` is put where the vendor puts it, `message` replaces the usual text."""

    @abstractmethod
    def model_card(self, model: str) -> Reply:
        """Return what is known of one model."""

    @abstractmethod
    def model_list(self, models: Iterable[str]) -> Reply:
        """Return the list of models."""

    def unanswerable(self) -> dict[str, Reply]:
        """Return bodies with status 200 that no client can use, whatever the vendor, by name."""
        good = self.answer({"score": 7})
        page = Reply(body=b"<!doctype html><title>Sign in</title>", content_type="text/html; charset=utf-8")
        return {
            "html": page,
            "html_called_json": replace(page, content_type="application/json"),
            "truncated_body": replace(good, body=good.body[:-25]),
            "nothing": replace(good, body=b""),
            "null": replace(good, body=b"null"),
            "list": replace(good, body=b"[]"),
            "object": replace(good, body=b"{}"),
            "text": replace(good, body=b'"overloaded"'),
        }

    def no_objects(self) -> dict[str, Reply]:
        """Return completions whose text is not one JSON object, by name."""
        texts = {
            "nan": '{"score": NaN}',
            "infinity": '{"score": -Infinity}',
            "overflow": '{"score": 1e400}',
            "too_deep": '{"score": ' * 100_000 + "7" + "}" * 100_000,
            "two_objects": '{"score": 7}\n{"score": 8}',
            "text_before": 'Here is the score: {"score": 7}',
            "text_after": '{"score": 7} I hope this helps.',
            "list": "[7]",
            "number": "7",
            "null": "null",
            "string": '"seven"',
            "prose": "I would give it a seven.",
            "cut": '{"score": ',
            "blank": "  \n",
        }
        return {name: self.answer(text) for name, text in texts.items()}


def as_text(content: Any) -> str:
    """Return `content` as the text of a completion."""
    return content if isinstance(content, str) else json.dumps(content)


def bearer(request: Request) -> str | None:
    """Return the token of the Authorization header, None without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def not_strict(schema: Any, *, unsupported: Iterable[str] = (), at: str = "schema") -> str | None:
    """Return why a schema is none of strict structured output, None if it is one."""
    if not isinstance(schema, Mapping):
        return f"{at} must be an object"
    if found := [word for word in unsupported if word in schema]:
        return f"{at}: for '{schema.get('type')}' type, properties {', '.join(found)} are not supported"
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            return f"{at}: 'additionalProperties' is required to be supplied and to be false"
        if set(schema.get("required", [])) != set(schema.get("properties", {})):
            return f"{at}: 'required' is required to be supplied and to include every key in properties"
    parts = {f"{at}.properties.{name}": part for name, part in schema.get("properties", {}).items()}
    parts |= {f"{at}.$defs.{name}": part for name, part in schema.get("$defs", {}).items()}
    parts |= {f"{at}.anyOf[{index}]": part for index, part in enumerate(schema.get("anyOf", []))}
    if "items" in schema:
        parts[f"{at}.items"] = schema["items"]
    complaints = (not_strict(part, unsupported=unsupported, at=where) for where, part in parts.items())
    return next((complaint for complaint in complaints if complaint), None)


def missing(body: Any, fields: Iterable[str]) -> str | None:
    """Return a complaint about the first field that is absent or empty, None if all are there."""
    if not isinstance(body, dict):
        return "the body must be a JSON object"
    return next((f"{field}: Field required" for field in fields if not body.get(field)), None)


def blocks_text(content: Any) -> str:
    """Return the text of a message's content, a string or a list of blocks with text."""
    return content if isinstance(content, str) else "\n".join(block.get("text", "") for block in content or [])
