"""Fake servers of the hosted vendors: routing, keys, models known and unknown, and a behaviour for each question.

Tests and benchmarks point an SDK at `url`. Requests that the real vendor would refuse as malformed are refused here too, so
that an adapter cannot pass with a wire form of its own.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from fakes.anthropic_dialect import Anthropic
from fakes.dialect import Dialect, Question
from fakes.gemini_dialect import Gemini
from fakes.http_server import HttpServer, Reply, Request
from fakes.openai_dialect import OpenAI
from fakes.schema_example import schema_example

Behaviour = Callable[[Question], Reply]


def answering(answer: Callable[[Question], Any]) -> Behaviour:
    """Return a behaviour that completes with the object, or the text, that `answer` gives for a question."""

    def behave(question: Question) -> Reply:
        return question.dialect.answer(answer(question), model=question.model)

    return behave


def exemplary(seed: int = 0) -> Behaviour:
    """Return a behaviour that answers every question with a valid object of its schema; a question without one with {}."""
    rng = random.Random(seed)

    def example(question: Question) -> Any:
        schema = question.schema or schema_in_words(f"{question.system}\n{question.user}")
        return schema_example(schema, rng) if schema else {}

    return answering(example)


def schema_in_words(text: str) -> dict[str, Any] | None:
    """Return the first JSON schema of an object that a text holds, None if it holds none."""
    decoder = json.JSONDecoder()
    for brace in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, brace.start())
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("properties"), dict):
            return value
    return None


def in_turn(replies: Iterable[Reply], then: Behaviour | None = None) -> Behaviour:
    """Return a behaviour that gives each reply once, in order, and then does as `then`; without it, status 418."""
    queue = iter(list(replies))
    none_left = Reply(418, b"no reply is left", "text/plain")

    def behave(question: Question) -> Reply:
        reply = next(queue, None)
        if reply is not None:
            return reply
        return then(question) if then else none_left

    return behave


def sampled_latency(rng: random.Random, low_s: float, high_s: float) -> Callable[[Question], float]:
    """Return a latency that is drawn evenly between the two for each question."""
    return lambda _: rng.uniform(low_s, high_s)


class FakeVendor:
    """A vendor's server, running until it is closed; a context manager.

    Parameters
    ----------
    behaviour : callable, or Reply
        From a question to its reply, called on the server's thread; or the one reply to all. Default: `exemplary`.
    models : iterable of str, optional
        Ids that exist; None takes any.
    key : str, optional
        The only key that is accepted; None takes any, but not none.
    latency_s : float, or callable
        Seconds before the head of a completion, or a function from the question to them.

    Attributes
    ----------
    url : str
        Base URL as the vendor's SDK wants it.
    asked : list of Question
        The well-formed questions, in order.
    """

    dialect: Dialect

    def __init__(
        self,
        behaviour: Behaviour | Reply | None = None,
        *,
        models: Iterable[str] | None = None,
        key: str | None = None,
        latency_s: float | Callable[[Question], float] = 0.0,
    ) -> None:
        self.behaviour: Behaviour | Reply = behaviour or exemplary()
        self.models = None if models is None else tuple(models)
        self.key = key
        self.latency_s = latency_s
        self.asked: list[Question] = []
        self._server = HttpServer(self._reply)
        self.url = self._server.url + self.dialect.base_path

    def __enter__(self) -> FakeVendor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def requests(self) -> list[Request]:
        """All requests, for completions, for models and to paths that do not exist, in order."""
        return self._server.requests

    @property
    def completions(self) -> list[Request]:
        """The requests for a completion, well formed or not, in order."""
        return [request for request in self.requests if request.method == "POST"]

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        return self._server.open_connections

    def close(self) -> None:
        """Cut all connections and end the server's thread."""
        self._server.close()

    def _reply(self, request: Request) -> Reply:
        dialect = self.dialect
        route = dialect.route(request)
        if route is None:
            return Reply(404, b"404 page not found", "text/plain")
        key = dialect.key(request)
        if key is None or (self.key is not None and key != self.key):
            return dialect.fault("bad_key")
        if route.kind == "list":
            return dialect.model_list(self.models or ())
        if self.models is not None and route.model not in self.models:
            return dialect.fault("unknown_model")
        if route.kind == "retrieve":
            return dialect.model_card(route.model)
        return self._complete(request)

    def _complete(self, request: Request) -> Reply:
        complaint = self.dialect.complaint(request)
        if complaint is not None:
            return self.dialect.fault("bad_request", message=complaint)
        question = self.dialect.question(request)
        self.asked.append(question)
        behaviour = self._answer_of(question)
        reply = behaviour if isinstance(behaviour, Reply) else behaviour(question)
        latency_s = self.latency_s(question) if callable(self.latency_s) else self.latency_s
        return replace(reply, delay_s=reply.delay_s + latency_s)

    def _answer_of(self, question: Question) -> Behaviour | Reply:
        """Return what answers a question."""
        return self.behaviour


class FakeAnthropic(FakeVendor):
    """api.anthropic.com."""

    dialect = Anthropic()


class FakeOpenAI(FakeVendor):
    """api.openai.com, or any server that speaks its dialect.

    Parameters
    ----------
    structured : bool
        Whether response_format with a JSON schema is understood; older compatible servers answer it with status 400.
    retrievable : bool
        Whether a single model can be asked for; some compatible servers only list them.
    """

    dialect = OpenAI()

    def __init__(self, *arguments: Any, structured: bool = True, retrievable: bool = True, **options: Any) -> None:
        self.structured = structured
        self.retrievable = retrievable
        super().__init__(*arguments, **options)

    def _reply(self, request: Request) -> Reply:
        route = self.dialect.route(request)
        if route is not None and route.kind == "retrieve" and not self.retrievable:
            return Reply(404, b"404 page not found", "text/plain")
        if route is not None and route.kind == "ask" and not self.structured and "response_format" in request.json:
            return self.dialect.fault("bad_request", message="This response_format type is unavailable now")
        return super()._reply(request)


class FakeGemini(FakeVendor):
    """generativelanguage.googleapis.com."""

    dialect = Gemini()
