"""From what an SDK raised to a `VendorError` with the kind that decides what happens next.

Vendor adapters call `vendor_fault` for whatever comes out of an SDK, which may be anything: its own error types, those of
the HTTP client below it, or a plain TypeError from the middle of its parsing. Nothing here knows one vendor's types.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from utils.errors import ProviderFault
from utils.llm.adapter import RawAnswer, VendorError

KEY_VARIABLES = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY"}
BASE_URL_VARIABLES = {
    "anthropic": "ANTHROPIC_BASE_URL",
    "openai": "OPENAI_BASE_URL",
    "gemini": "GOOGLE_GEMINI_BASE_URL",
}

_LONGEST_QUOTE = 90
"""Characters of a vendor's own words in a message of ours, which must keep room for the remedy."""

_SPENT = (
    "insufficient_quota",
    "enforced_spend_limit_reached",
    "billing_hard_limit_reached",
    "credit balance is too low",
)
"""What vendors say of money that is gone, whatever status they say it with."""

_CONNECTION_FAULTS = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ConnectionError", "ConnectTimeoutError")
_READ_TIMEOUTS = ("ReadTimeout", "WriteTimeout", "APITimeoutError", "Timeout", "TimeoutError", "DeadlineExceeded")
_TRANSPORT_FAULTS = ("APIConnectionError", "TransportError", "RequestException", "OSError", "SSLError", "RetryError")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom an adapter talks to; `key` only so that it can be struck out of what the vendor says."""

    provider: str
    model: str
    key: str


def vendor_fault(endpoint: Endpoint, error: Exception) -> VendorError:
    """Return what an SDK raised as a `VendorError`."""
    if isinstance(error, VendorError):
        return error
    status = _status(error)
    if status is not None:
        return _status_fault(endpoint, status, error)
    names = {name for cause in _causes(error) for name in _class_names(cause)}
    where = f"{endpoint.provider} {endpoint.model}"
    variable = BASE_URL_VARIABLES.get(endpoint.provider, "the base URL")
    if names & set(_CONNECTION_FAULTS):
        text = f"{where}: cannot connect ({_quote(endpoint, error)}); check the network and {variable}"
        return VendorError(text, kind="overload")
    if isinstance(error, UnicodeEncodeError):
        return VendorError(
            f"{where}: the messages hold a character that cannot be sent ({error.reason})", kind="request"
        )
    if isinstance(error, json.JSONDecodeError) or names & {
        "RemoteProtocolError",
        "DecodingError",
        "JSONDecodeError",
        "ParseError",
    }:
        if "RemoteProtocolError" in names:
            text = f"{where}: the connection broke ({_quote(endpoint, error)}); try again later"
            return VendorError(text, kind="overload", sent=True)
        text = f"{where}: the reply is no complete JSON; check {variable} and what stands between"
        return VendorError(text, kind="malformed", sent=True)
    if names & set(_READ_TIMEOUTS):
        return VendorError(
            f"{where}: no answer in time; allow more seconds or a faster model", kind="timeout", sent=True
        )
    if names & set(_TRANSPORT_FAULTS):
        text = f"{where}: the connection broke ({_quote(endpoint, error)}); check the network and {variable}"
        return VendorError(text, kind="overload", sent=True)
    if isinstance(error, (TypeError, AttributeError, KeyError, IndexError, ValueError, RecursionError)):
        text = f"{where}: the reply has another shape than the API's ({type(error).__name__}); check {variable}"
        return VendorError(text, kind="malformed", sent=True)
    return VendorError(f"{where}: {type(error).__name__}: {_quote(endpoint, error)}", kind="fault", sent=True)


def unusable(endpoint: Endpoint, kind: ProviderFault, what: str, answer: RawAnswer | None = None) -> VendorError:
    """Return the fault of a reply that came and is none: refused, cut off, empty or of another shape."""
    text = f"{endpoint.provider} {endpoint.model}: {_struck_out(endpoint, what)}"
    return VendorError(text, kind=kind, answer=answer, sent=True)


def no_api_reply(endpoint: Endpoint, reply: object) -> VendorError:
    """Return the fault of a reply that the SDK let through although it is none of the API's, such as a proxy's page."""
    variable = BASE_URL_VARIABLES.get(endpoint.provider, "the base URL")
    shape = "a page of text" if isinstance(reply, str) else "JSON of another shape"
    return unusable(endpoint, "malformed", f"the server replied with {shape}, not as the API does; check {variable}")


def _status_fault(endpoint: Endpoint, status: int, error: Exception) -> VendorError:
    said = _everything_said(error)
    where = f"{endpoint.provider} {endpoint.model}: status {status}"
    quote = _quote(endpoint, error)
    key = KEY_VARIABLES.get(endpoint.provider, "the key")
    if any(word in said for word in _SPENT) or status == 402 or (status == 429 and "PerDay" in said):
        text = f"{where}, quota spent ({quote}); raise the limit at the vendor, it stays off until the next day (UTC)"
        return VendorError(text, kind="quota")
    if status in (401, 403) or "API_KEY_INVALID" in said:
        return VendorError(f"{where}, key refused; correct {key} and start again", kind="auth")
    if status == 404:
        setting = f"llm.{endpoint.provider}" if endpoint.provider in KEY_VARIABLES else "the model's name"
        text = f"{where}, no such model or address ({quote}); change {setting} or the base URL"
        return VendorError(text, kind="request", unknown_model=True)
    if status == 429:
        text = f"{where}, too many requests ({quote}); lower llm.concurrency or raise the vendor's limit"
        return VendorError(text, kind="rate", retry_after_s=retry_after_s(error))
    if status >= 500 or status in (408, 409):
        text = f"{where}, overloaded or out of order ({quote}); try again later"
        return VendorError(text, kind="overload", retry_after_s=retry_after_s(error), sent=status == 504)
    return VendorError(f"{where}, request refused ({quote}); change the request or the model", kind="request")


def names_the_model(error: Exception) -> bool:
    """Return whether a 404 is about the model, rather than about an address that the server does not have."""
    said = _everything_said(error)
    return "model_not_found" in said or "not_found_error" in said


def refused_parameter(error: Exception, *names: str) -> bool:
    """Return whether an error is a 400 or 422 that speaks of one of these request parameters."""
    return _status(error) in (400, 422) and any(name in _everything_said(error) for name in names)


def retry_after_s(error: Exception) -> float | None:
    """Return the seconds that a reply asks to wait: its headers, or Google's RetryInfo in the body; None if it asks none."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if isinstance(headers, Mapping):
        for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            seconds = _seconds(headers.get(name), unit_s)
            if seconds is not None:
                return seconds
    delay = re.search(r"retry_?[dD]elay\W+(?:seconds\W+)?(\d+(?:\.\d+)?)", _everything_said(error))
    return float(delay.group(1)) if delay else None


def _seconds(value: str | None, unit_s: float) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value) * unit_s
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
        return max(0.0, seconds)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error, whichever attribute its SDK keeps it in."""
    for name in ("status_code", "code"):
        value = getattr(error, name, None)
        value = getattr(value, "value", value)  # google.api_core keeps an enum
        if isinstance(value, int) and not isinstance(value, bool) and 300 <= value < 600:
            return value
    response = getattr(error, "response", None)
    value = getattr(response, "status_code", None)
    return value if isinstance(value, int) and value >= 300 else None


def _everything_said(error: Exception) -> str:
    body = getattr(error, "body", None) or getattr(error, "details", None)
    return f"{error} {body}"


def _quote(endpoint: Endpoint, error: Exception) -> str:
    message = getattr(error, "api_message", None) or getattr(error, "message", None)
    cause = error.__cause__
    text = str(message or error or type(error).__name__)
    if cause is not None and str(cause) and text in ("Connection error.", "Request timed out."):
        text = str(cause)
    text = " ".join(_struck_out(endpoint, re.sub(r"^[A-Z]+ https?://\S+: ", "", text)).split())
    return text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 1] + "…"


def _struck_out(endpoint: Endpoint, text: str) -> str:
    return text.replace(endpoint.key, "********") if endpoint.key else text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):  # SDKs wrap the HTTP client's error, which wraps the socket's
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _class_names(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def count(value: Any) -> int:
    """Return a number of tokens as a reply has it; what is no such number counts as not said."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
