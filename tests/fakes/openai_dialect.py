"""The wire format of OpenAI's chat completions, which compatible servers speak too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fakes.dialect import Dialect, Fault, Question, Route, as_text, bearer, blocks_text, missing, not_strict
from fakes.http_server import Reply, Request, json_reply


class OpenAI(Dialect):
    """Chat completions."""

    name = "openai"
    base_path = "/v1"

    def key(self, request: Request) -> str | None:
        return bearer(request)

    def route(self, request: Request) -> Route | None:
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["v1", "chat", "completions"]:
                return Route("ask", (request.json or {}).get("model", ""))
            case "GET", ["v1", "models"]:
                return Route("list")
            case "GET", ["v1", "models", *model] if model:
                return Route("retrieve", "/".join(model))
        return None

    def complaint(self, request: Request) -> str | None:
        body = request.json
        if wrong := missing(body, ("model", "messages")):
            return wrong
        if "max_tokens" in body:
            return "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
        form = body.get("response_format")
        if form is None or form.get("type") in ("text", "json_object"):
            return None
        named = form.get("json_schema", {})
        if not named.get("name") or not named.get("strict"):
            return "Missing required parameter: 'response_format.json_schema.name' or 'strict'"
        return not_strict(named.get("schema"), at="Invalid schema for response_format")

    def question(self, request: Request) -> Question:
        body = request.json

        def texts(*roles: str) -> str:
            return "\n\n".join(blocks_text(turn["content"]) for turn in body["messages"] if turn["role"] in roles)

        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        limit, temperature = body.get("max_completion_tokens"), body.get("temperature")
        system = texts("system", "developer")
        return Question(self, request, body["model"], system, texts("user"), schema, limit, temperature)

    def _completion(
        self, message: Any, finish_reason: str, usage: tuple[int, int] = (120, 0), model: str = "fake-model"
    ) -> Reply:
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        completion = {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 1_790_000_000,
            "model": model,
            "choices": [choice],
            "usage": counts,
        }
        return json_reply(completion, headers={"x-request-id": "req_fake"})

    def answer(
        self,
        content: Any,
        *,
        stop_reason: str | None = None,
        input_tokens: int = 120,
        output_tokens: int = 40,
        model: str = "fake-model",
    ) -> Reply:
        message = {"role": "assistant", "content": as_text(content), "refusal": None}
        return self._completion(message, stop_reason or "stop", (input_tokens, output_tokens), model)

    def truncated(self, text: str = '{"score": 7') -> Reply:
        return self.answer(text, stop_reason="length")

    def refusals(self) -> dict[str, Reply]:
        refused = {"role": "assistant", "content": None, "refusal": "I'm sorry, I can't help with that."}
        filtered = {"role": "assistant", "content": "", "refusal": None}
        partial = {"role": "assistant", "content": '{"score"', "refusal": None}
        return {
            "refused": self._completion(refused, "stop"),
            "filtered": self._completion(filtered, "content_filter"),
            "filtered_midway": self._completion(partial, "content_filter"),
        }

    def wrong_shapes(self) -> dict[str, Reply]:
        def empty(**message: Any) -> Reply:
            return self._completion({"role": "assistant", **message}, "stop")

        return {
            "no_choices": json_reply({"object": "chat.completion", "choices": []}),
            "choices_null": json_reply({"object": "chat.completion", "choices": None}),
            "message_null": self._completion(None, "stop"),
            "text_null": empty(content=None, refusal=None),
            "text_empty": empty(content="", refusal=None),
            "text_absent": empty(),
            "tool_calls": empty(content=None, tool_calls=[{"id": "call_1", "type": "function", "function": {}}]),
            "other_object": json_reply({"result": '{"score": 7}'}),
            "usage_null": json_reply({"object": "chat.completion", "choices": [{}], "usage": None}),
        }

    def fault(self, fault: Fault, *, retry_after_s: float | None = None, message: str | None = None) -> Reply:
        status, kind, code, usual = {
            "bad_key": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
            "forbidden": (403, "request_forbidden", "unsupported_country_region_territory", "Country not supported."),
            "bad_request": (400, "invalid_request_error", "invalid_value", "Invalid value: 'messages'."),
            "spent": (429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
            "unknown_model": (404, "invalid_request_error", "model_not_found", "The model does not exist."),
            "too_large": (413, "invalid_request_error", "request_too_large", "Request too large."),
            "rate": (429, "requests", "rate_limit_exceeded", "Rate limit reached for requests per min."),
            "internal": (500, "server_error", None, "The server had an error while processing your request."),
            "unavailable": (503, "server_error", None, "The engine is currently overloaded."),
            "gateway_timeout": (504, "server_error", None, "Gateway timeout."),
            "overloaded": (529, "server_error", None, "Overloaded."),
        }[fault]
        headers = {} if retry_after_s is None else {"retry-after": f"{retry_after_s:g}"}
        error = {"message": message or usual, "type": kind, "param": None, "code": code}
        return json_reply({"error": error}, status, headers=headers)

    def _card(self, model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": 1_790_000_000, "owned_by": "fake"}

    def model_card(self, model: str) -> Reply:
        return json_reply(self._card(model))

    def model_list(self, models: Iterable[str]) -> Reply:
        return json_reply({"object": "list", "data": [self._card(model) for model in models]})
