"""The wire format of Gemini's generateContent, as both of the vendor's SDKs speak it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fakes.dialect import Dialect, Fault, Question, Route, as_text, blocks_text, missing
from fakes.http_server import Reply, Request, json_reply


class Gemini(Dialect):
    """generateContent, of both SDKs: versions v1 and v1beta."""

    name = "gemini"

    def key(self, request: Request) -> str | None:
        return request.headers.get("x-goog-api-key") or next(iter(request.query.get("key", [])), None)

    def route(self, request: Request) -> Route | None:
        version, _, rest = request.path.strip("/").partition("/")
        if version not in ("v1", "v1beta") or not rest.startswith("models"):
            return None
        model = rest.removeprefix("models").lstrip("/")
        if request.method == "POST":
            model, _, method = model.partition(":")
            return Route("ask", model) if method == "generateContent" else None
        return Route("retrieve", model) if model else Route("list")

    def complaint(self, request: Request) -> str | None:
        body = request.json
        if wrong := missing(body, ("contents",)):
            return wrong
        if any(turn.get("role", "user") not in ("user", "model") for turn in body["contents"]):
            return "Please use a valid role: user, model."
        config = body.get("generationConfig", {})
        schema = config.get("responseJsonSchema") or config.get("responseSchema")
        if schema is not None and config.get("responseMimeType") != "application/json":
            return "Function calling or a response schema with a response mime type: '' is unsupported"
        return None

    def question(self, request: Request) -> Question:
        body = request.json
        route = self.route(request)
        assert route is not None
        config = body.get("generationConfig", {})
        user = "\n\n".join(
            blocks_text(turn["parts"]) for turn in body["contents"] if turn.get("role", "user") == "user"
        )
        system = blocks_text(body.get("systemInstruction", {}).get("parts"))
        schema = config.get("responseJsonSchema") or config.get("responseSchema")
        limit, temperature = config.get("maxOutputTokens"), config.get("temperature")
        return Question(self, request, route.model, system, user, schema, limit, temperature)

    def _response(self, candidate: Any, usage: tuple[int, int] = (120, 0), model: str = "fake-model") -> Reply:
        counts = {
            "promptTokenCount": usage[0],
            "candidatesTokenCount": usage[1],
            "totalTokenCount": sum(usage),
        }
        response = {"usageMetadata": counts, "modelVersion": model, "responseId": "fake"}
        return json_reply(response if candidate is None else {"candidates": [candidate], **response})

    def answer(
        self,
        content: Any,
        *,
        stop_reason: str | None = None,
        input_tokens: int = 120,
        output_tokens: int = 40,
        model: str = "fake-model",
    ) -> Reply:
        candidate = {
            "content": {"parts": [{"text": as_text(content)}], "role": "model"},
            "finishReason": stop_reason or "STOP",
            "index": 0,
            "safetyRatings": [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE"}],
        }
        return self._response(candidate, (input_tokens, output_tokens), model)

    def truncated(self, text: str = '{"score": 7') -> Reply:
        return self.answer(text, stop_reason="MAX_TOKENS")

    def refusals(self) -> dict[str, Reply]:
        reasons = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")
        replies = {reason.lower(): self._response({"finishReason": reason, "index": 0}) for reason in reasons}
        blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 120}}
        replies["blocked_prompt"] = json_reply(blocked)
        replies["safety_midway"] = self.answer('{"score"', stop_reason="SAFETY")
        return replies

    def wrong_shapes(self) -> dict[str, Reply]:
        def candidate(**fields: Any) -> Reply:
            return self._response({"finishReason": "STOP", "index": 0, **fields})

        return {
            "no_candidates": self._response(None),
            "candidates_empty": json_reply({"candidates": []}),
            "content_absent": candidate(),
            "parts_absent": candidate(content={"role": "model"}),
            "parts_empty": candidate(content={"role": "model", "parts": []}),
            "text_empty": candidate(content={"role": "model", "parts": [{"text": ""}]}),
            "function_call": candidate(
                content={"role": "model", "parts": [{"functionCall": {"name": "score", "args": {"score": 7}}}]}
            ),
            "other_object": json_reply({"predictions": ['{"score": 7}']}),
        }

    def fault(self, fault: Fault, *, retry_after_s: float | None = None, message: str | None = None) -> Reply:
        google = "type.googleapis.com/google.rpc."
        status, name, usual, details = {
            "bad_key": (
                400,
                "INVALID_ARGUMENT",
                "API key not valid. Please pass a valid API key.",
                [{"@type": f"{google}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}],
            ),
            "forbidden": (403, "PERMISSION_DENIED", "The caller does not have permission", []),
            "bad_request": (400, "INVALID_ARGUMENT", "Request contains an invalid argument.", []),
            "spent": (
                429,
                "RESOURCE_EXHAUSTED",
                "You exceeded your current quota, please check your plan and billing details.",
                [
                    {
                        "@type": f"{google}QuotaFailure",
                        "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
                    }
                ],
            ),
            "unknown_model": (404, "NOT_FOUND", "models/fake-unknown is not found for API version v1beta", []),
            "too_large": (413, "INVALID_ARGUMENT", "Request payload size exceeds the limit", []),
            "rate": (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).", []),
            "internal": (500, "INTERNAL", "An internal error has occurred.", []),
            "unavailable": (503, "UNAVAILABLE", "The model is overloaded. Please try again later.", []),
            "gateway_timeout": (504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.", []),
            "overloaded": (503, "UNAVAILABLE", "The service is currently unavailable.", []),
        }[fault]
        if retry_after_s is not None:
            details = [*details, {"@type": f"{google}RetryInfo", "retryDelay": f"{retry_after_s:g}s"}]
        error = {"code": status, "message": message or usual, "status": name}
        return json_reply({"error": error | ({"details": details} if details else {})}, status)

    def _card(self, model: str) -> dict[str, Any]:
        return {
            "name": f"models/{model}",
            "version": "001",
            "displayName": model,
            "inputTokenLimit": 1_048_576,
            "outputTokenLimit": 65_536,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }

    def model_card(self, model: str) -> Reply:
        return json_reply(self._card(model))

    def model_list(self, models: Iterable[str]) -> Reply:
        return json_reply({"models": [self._card(model) for model in models]})
