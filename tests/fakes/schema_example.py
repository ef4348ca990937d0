"""Makes valid objects for JSON schemas, so that a fake model can answer whatever it is asked for.

It knows the keywords that strict structured output allows, and refuses a schema with none of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

_WORDS = ("steady", "volume", "above", "its", "average", "earnings", "trend", "momentum", "support", "caution")


def schema_example(schema: Mapping[str, Any], rng: random.Random) -> Any:
    """Return a value that is valid for `schema`: every property present, numbers within their range.

    Raises
    ------
    ValueError
        If a part of the schema says nothing about its values, or allows none.
    """
    return _example(schema, rng, schema.get("$defs", {}))


def _example(schema: Mapping[str, Any], rng: random.Random, definitions: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        return _example(definitions[schema["$ref"].rpartition("/")[2]], rng, definitions)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return _example(rng.choice(schema[keyword]), rng, definitions)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = rng.choice(kind)
    match kind:
        case "object":
            return {name: _example(part, rng, definitions) for name, part in schema.get("properties", {}).items()}
        case "array":
            least = schema.get("minItems", 0)
            count = rng.randint(least, min(schema.get("maxItems", least + 2), max(least, 3)))
            return [_example(schema["items"], rng, definitions) for _ in range(count)]
        case "integer":
            low, high = _range(schema, whole=True)
            return rng.randint(int(low), int(high))
        case "number":
            low, high = _range(schema, whole=False)
            return min(max(round(rng.uniform(low, high), 4), low), high)
        case "string":
            least = schema.get("minLength", 1)
            text = " ".join(rng.choice(_WORDS) for _ in range(max(4, least)))
            return text[: schema.get("maxLength", max(80, least))]
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
    raise ValueError(f"the schema does not say what its values are: {dict(schema)}")


def _range(schema: Mapping[str, Any], *, whole: bool) -> tuple[float, float]:
    """Smallest and largest value that is allowed, a span of 100 where only one end or none is given."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        bound = schema["exclusiveMinimum"]
        low = math.floor(bound) + 1 if whole else bound + 1e-4
    if "exclusiveMaximum" in schema:
        bound = schema["exclusiveMaximum"]
        high = math.ceil(bound) - 1 if whole else bound - 1e-4
    if low is None:
        low = 0 if high is None else high - 100
    if high is None:
        high = low + 100
    if whole:
        low, high = math.ceil(low), math.floor(high)
    if low > high:
        raise ValueError(f"no value is allowed between {low} and {high}")
    return low, high
