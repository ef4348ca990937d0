"""Turns what somebody claims to be an agent's output (a model, a dict, JSON text) into a valid one, or says why not.

Total on content: whatever a language model writes, the result is an output or None, with findings that point at fields.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from utils.json_pointer import join
from utils.schema.agents import NO_PRICE, OUTPUT_MODELS, AgentOutput

_KEY_ALIASES = {"decision": "recommendation", "metrics": "key_metrics", "support_level": "support_levels"}
_VALUE_ALIASES = {"bullish": "buy", "bearish": "sell", "neutral": "hold"}
_METRIC_ALIASES = {"RSI": "rsi_14", "PE": "pe_ratio"}
_PERCENT = re.compile(r"^\s*(-?\d+(?:\.\d+)?)\s*(?:%|/\s*100)\s*$")
_NUMERIC_FIELDS = frozenset(
    "confidence p_correct sentiment_score current_price financial_health growth_quality price_target position_size "
    "entry_target stop_loss take_profit expected_return risk_reward_ratio latency_s cost_usd".split()
)
_NAIVE = re.compile(r"^\s*\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?\s*$")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class SchemaFinding:
    """What was wrong with one field: `category` is one of formatting_error, missing_field, invalid_value."""

    category: str
    pointer: str
    description: str


def parse_output(raw: Any, agent_type: str | None = None) -> tuple[AgentOutput | None, list[SchemaFinding]]:
    """Parse an agent's output.

    Parameters
    ----------
    raw : AgentOutput, dict, str or bytes
        A model passes through; a dict or JSON text is coerced and validated.
    agent_type : str, optional
        Decides the model where the content does not say.

    Returns
    -------
    output : AgentOutput or None
        None if a field is missing or cannot be coerced.
    findings : list of SchemaFinding
        One formatting_error for each coercion; one missing_field or invalid_value for each fault.
    """
    if isinstance(raw, AgentOutput):
        return raw, []
    findings: list[SchemaFinding] = []
    data = load_object(raw, findings)
    if data is None:
        return None, findings
    kind = data.get("agent_type", agent_type)
    model = OUTPUT_MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        category = "missing_field" if kind is None else "invalid_value"
        findings.append(SchemaFinding(category, "/agent_type", f"not one of {', '.join(OUTPUT_MODELS)}"))
        return None, findings
    data = coerce_object({**data, "agent_type": kind}, findings)
    try:
        return model.model_validate(data), findings
    except ValidationError as error:
        faults: dict[tuple[str, str], SchemaFinding] = {}
        for item in error.errors(include_url=False, include_context=False):
            absent = item["type"] in ("missing", NO_PRICE) or item["input"] is None
            category = "missing_field" if absent else "invalid_value"
            where = ("current_price",) if item["type"] == NO_PRICE else _within(item["loc"], data)
            # the members of a union complain one by one about the same value
            faults.setdefault((category, join(*where)), SchemaFinding(category, join(*where), item["msg"]))
        return None, [*findings, *faults.values()]


def _within(loc: Sequence[str | int], data: Any) -> tuple[str | int, ...]:
    """Return a validator's location as far as it names places in the data, and not members of a union."""
    found: list[str | int] = []
    for part in loc:
        if isinstance(data, dict):
            found.append(part)
            data = data.get(part)
        elif isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data):
            found.append(part)
            data = data[part]
        else:
            break
    return tuple(found)


def load_object(raw: Any, findings: list[SchemaFinding]) -> dict[str, Any] | None:
    """Return the object that `raw` holds, None where there is none."""
    doubled: list[tuple[dict[str, Any], str]] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            doubled.extend((result, key) for key, count in counts.items() if count > 1)
        return result

    if isinstance(raw, (str, bytes)):
        try:
            raw = json.loads(raw, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            findings.append(SchemaFinding("invalid_value", "", f"not JSON: {str(error)[:120]}"))
            return None
        for owner, key in doubled:
            where = _place(owner, raw)
            if where is not None:
                findings.append(SchemaFinding("formatting_error", join(*where, key), "the key stands twice"))
    if not isinstance(raw, dict):
        findings.append(SchemaFinding("invalid_value", "", f"an object is needed, not {type(raw).__name__}"))
        return None
    return {str(key): value for key, value in raw.items()}


def _place(owner: dict[str, Any], tree: Any) -> tuple[str | int, ...] | None:
    """Return the way from the root of `tree` to `owner`, None where it was itself dropped as a double."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), tree)]
    while waiting:
        where, node = waiting.pop()
        if node is owner:
            return where
        if isinstance(node, dict):
            waiting += [((*where, key), value) for key, value in node.items()]
        elif isinstance(node, list):
            waiting += [((*where, index), value) for index, value in enumerate(node)]
    return None


def coerce_object(data: dict[str, Any], findings: list[SchemaFinding]) -> dict[str, Any]:
    """Apply the documented aliases and number forms, with one formatting_error for each."""

    def note(where: str, text: str) -> None:
        findings.append(SchemaFinding("formatting_error", where, text))

    for alias, name in _KEY_ALIASES.items():
        if alias in data and name not in data:
            note(f"/{alias}", f"read as {name}")
            data[name] = data.pop(alias)
    for name in ("recommendation", "signal"):
        value = data.get(name)
        if isinstance(value, str) and value.strip().lower() in _VALUE_ALIASES:
            data[name] = _VALUE_ALIASES[value.strip().lower()]
            note(f"/{name}", f"{value!r} read as {data[name]!r}")
    for name in _NUMERIC_FIELDS & data.keys():
        data[name] = _number(data[name], f"/{name}", note)
    for name in ("indicators", "key_metrics", "signals"):
        if isinstance(data.get(name), dict):
            data[name] = _named_numbers(data[name], name, note)
    for name in ("support_levels", "resistance_levels"):
        if isinstance(data.get(name), (int, float, str)):
            data[name] = [data[name]]
            note(f"/{name}", "a single level read as a list")
        if isinstance(data.get(name), (list, tuple)):
            data[name] = [_number(value, f"/{name}/{i}", note) for i, value in enumerate(data[name])]
    if isinstance(data.get("key_events"), (list, tuple)):
        data["key_events"] = [_event(event, i, data, note) for i, event in enumerate(data["key_events"])]
    if "as_of" in data:
        data["as_of"] = _time(data["as_of"], "/as_of", note)
    for name, times in (("evidence", ("event_time", "available_at")), ("key_events", ("published_at",))):
        if isinstance(data.get(name), (list, tuple)):
            data[name] = [_dated(item, times, f"/{name}/{i}", note) for i, item in enumerate(data[name])]
    for name in ("reasoning", "risk_assessment", "abstain_reason"):
        if isinstance(data.get(name), str) and CONTROL_CHARACTERS.search(data[name]):
            data[name] = CONTROL_CHARACTERS.sub("", data[name])
            note(f"/{name}", "control characters removed")
    return data


def _named_numbers(values: dict[Any, Any], field: str, note: Any) -> dict[str, Any]:
    """Return a map of names to numbers with the documented short names spelt out."""
    result = {}
    for key, value in values.items():
        name = _METRIC_ALIASES.get(str(key), str(key))
        if name != key:
            taken = name in values
            note(join(field, str(key)), f"left out: {name} is given as well" if taken else f"read as {name}")
            if taken:
                continue
        result[name] = _number(value, join(field, name), note)
    return result


def _number(value: Any, where: str, note: Any) -> Any:
    """Return a number for "85 %", "85/100" and numeric strings; anything else unchanged."""
    if not isinstance(value, str):
        return value
    if match := _PERCENT.match(value):
        note(where, f"{value!r} read as a fraction")
        return float(match.group(1)) / 100
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        return value
    note(where, f"{value!r} read as a number")
    return number


def _dated(item: Any, times: tuple[str, ...], where: str, note: Any) -> Any:
    """Return an object with its times in a zone."""
    if not isinstance(item, dict):
        return item
    zoned = {key: _time(item[key], f"{where}/{key}", note) for key in times if key in item}
    return {**item, **zoned} if any(value is not item[key] for key, value in zoned.items()) else item


def _time(value: Any, where: str, note: Any) -> Any:
    """Return a time without a zone as UTC; anything else unchanged."""
    time = value
    if isinstance(value, str) and _NAIVE.match(value):
        try:
            time = datetime.fromisoformat(value.strip())
        except ValueError:
            return value
    if not isinstance(time, datetime) or time.tzinfo is not None:
        return value
    note(where, "a time without a zone read as UTC")
    return time.replace(tzinfo=UTC)


def _event(event: Any, index: int, data: dict[str, Any], note: Any) -> Any:
    """Return an event object for an event that was given as a string."""
    if not isinstance(event, str):
        return event
    headline, _, source = event.partition("source:")
    note(f"/key_events/{index}", "a string read as an event")
    return {
        "headline": headline.strip(" ()-,;"),
        "source": source.strip(" ()"),
        "published_at": data.get("as_of"),
        "evidence_id": "",
    }
