"""The wire format of Anthropic's Messages API, version 2026-10-21."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fakes.dialect import Dialect, Fault, Question, Route, as_text, bearer, blocks_text, missing, not_strict
from fakes.http_server import Reply, Request, json_reply

_UNSUPPORTED_BY_ANTHROPIC = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems",
)  # fmt: skip
"""What the schema of a structured answer may not say; the SDK moves it into descriptions."""


class Anthropic(Dialect):
    """Messages API, version 2026-10-21."""

    name = "anthropic"

    def key(self, request: Request) -> str | None:
        return bearer(request) or request.headers.get("x-api-key")

    def route(self, request: Request) -> Route | None:
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["v1", "messages"]:
                return Route("ask", (request.json or {}).get("model", ""))
            case "GET", ["v1", "models"]:
                return Route("list")
            case "GET", ["v1", "models", model]:
                return Route("retrieve", model)
        return None

    def complaint(self, request: Request) -> str | None:
        body = request.json
        if "anthropic-version" not in request.headers:
            return "anthropic-version: header is required"
        if wrong := missing(body, ("model", "max_tokens", "messages")):
            return wrong
        if any(turn["role"] not in ("user", "assistant") for turn in body["messages"]):
            return "messages: Unexpected role. Allowed roles are 'user' or 'assistant'"
        if "temperature" in body:
            return "temperature: Extra inputs are not permitted"
        form = body.get("output_config", {}).get("format")
        if form is None:
            return None
        if form.get("type") != "json_schema":
            return "output_config.format.type: Input should be 'json_schema'"
        return not_strict(form.get("schema"), unsupported=_UNSUPPORTED_BY_ANTHROPIC, at="output_config.format.schema")

    def question(self, request: Request) -> Question:
        body = request.json
        user = "\n\n".join(blocks_text(turn["content"]) for turn in body["messages"] if turn["role"] == "user")
        schema = body.get("output_config", {}).get("format", {}).get("schema")
        system = blocks_text(body.get("system"))
        return Question(self, request, body["model"], system, user, schema, body["max_tokens"], None)

    def _message(self, content: Any, stop_reason: str, usage: tuple[int, int], model: str, **more: Any) -> Reply:
        message = {
            "id": "msg_01fake",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {"input_tokens": usage[0], "output_tokens": usage[1]},
        }
        return json_reply(message | more, headers={"request-id": "req_01fake"})

    def answer(
        self,
        content: Any,
        *,
        stop_reason: str | None = None,
        input_tokens: int = 120,
        output_tokens: int = 40,
        model: str = "fake-model",
    ) -> Reply:
        blocks = [{"type": "text", "text": as_text(content)}]
        return self._message(blocks, stop_reason or "end_turn", (input_tokens, output_tokens), model)

    def truncated(self, text: str = '{"score": 7') -> Reply:
        return self.answer(text, stop_reason="max_tokens")

    def refusals(self) -> dict[str, Reply]:
        details = {"type": "refusal", "category": "general_harms", "explanation": "This request was declined."}
        partial = [{"type": "text", "text": '{"score"'}]
        return {
            "refused": self._message([], "refusal", (120, 0), "fake-model", stop_details=details),
            "refused_midway": self._message(partial, "refusal", (120, 3), "fake-model", stop_details=details),
            "refused_without_details": self._message([], "refusal", (120, 0), "fake-model"),
        }

    def wrong_shapes(self) -> dict[str, Reply]:
        def message(content: Any) -> Reply:
            return self._message(content, "end_turn", (120, 0), "fake-model")

        return {
            "no_content": message([]),
            "content_null": message(None),
            "content_text": message('{"score": 7}'),
            "text_null": message([{"type": "text", "text": None}]),
            "text_absent": message([{"type": "text"}]),
            "tool_use": message([{"type": "tool_use", "id": "toolu_1", "name": "score", "input": {"score": 7}}]),
            "other_object": json_reply({"completion": '{"score": 7}', "stop": True}),
            "usage_null": json_reply({"type": "message", "content": [], "usage": None, "stop_reason": "end_turn"}),
        }

    def fault(self, fault: Fault, *, retry_after_s: float | None = None, message: str | None = None) -> Reply:
        status, kind, usual = {
            "bad_key": (401, "authentication_error", "invalid x-api-key"),
            "forbidden": (403, "permission_error", "Your API key does not have permission to use the resource."),
            "bad_request": (400, "invalid_request_error", "messages.0.content: Input should be a valid string"),
            "spent": (402, "billing_error", "Your credit balance is too low to access the Anthropic API."),
            "unknown_model": (404, "not_found_error", "model: fake-unknown"),
            "too_large": (413, "request_too_large", "Request exceeds the maximum size"),
            "rate": (429, "rate_limit_error", "This request would exceed your organization's rate limit."),
            "internal": (500, "api_error", "Internal server error"),
            "unavailable": (503, "api_error", "Service unavailable"),
            "gateway_timeout": (504, "timeout_error", "The request timed out."),
            "overloaded": (529, "overloaded_error", "Overloaded"),
        }[fault]
        headers = {"request-id": "req_01fake"}
        if retry_after_s is not None:
            headers["retry-after"] = f"{retry_after_s:g}"
        error = {"type": kind, "message": message or usual}
        return json_reply({"type": "error", "error": error, "request_id": "req_01fake"}, status, headers=headers)

    def spend_limit(self) -> Reply:
        """Return the 429 of a spend cap: like a rate limit, but with details and without retry-after."""
        error = {
            "type": "rate_limit_error",
            "message": "You have reached your specified API usage limits.",
            "details": {"error_code": "enforced_spend_limit_reached"},
        }
        return json_reply({"type": "error", "error": error, "request_id": "req_01fake"}, 429)

    def _card(self, model: str) -> dict[str, Any]:
        return {"type": "model", "id": model, "display_name": model, "created_at": "2026-01-01T00:00:00Z"}

    def model_card(self, model: str) -> Reply:
        return json_reply(self._card(model))

    def model_list(self, models: Iterable[str]) -> Reply:
        data = [self._card(model) for model in models]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return json_reply({"data": data, "has_more": False, "first_id": first, "last_id": last})
