"""Canonical JSON and content hashes: equal content gives equal bytes, on every machine and in every run.

Called wherever something is identified by what it holds: snapshots, trajectories, datasets, runs, portfolio events.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import orjson

# what is no JSON value of its own is refused, not guessed at
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def canonical_json(value: Any) -> str:
    """Serialise to JSON with sorted keys and no spaces; what is derived from float or tuple counts as such.

    Raises
    ------
    ValueError
        If a number is NaN or infinite: neither has a JSON form, and PostgreSQL's jsonb refuses them.
    TypeError
        If something in it is no JSON value, a key is no string, an integer exceeds 64 bits, or a text is not valid
        Unicode.
    """
    data = orjson.dumps(value, default=_plain, option=_OPTIONS)
    if b"null" in data and _holds_non_finite(value):  # the serialiser writes NaN as null
        raise ValueError("numbers must be finite")
    return data.decode()


def _plain(value: Any) -> Any:
    """Return the JSON value that something derived from one stands for, a NumPy float or a named tuple."""
    if isinstance(value, float):
        return float(value)
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _holds_non_finite(value: Any) -> bool:
    open_ = [value]
    while open_:
        item = open_.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return True
        elif isinstance(item, dict):
            open_.extend(item.values())
        elif isinstance(item, (list, tuple)):
            open_.extend(item)
    return False


def sha256_hex(data: bytes | str) -> str:
    """Return the SHA-256 of bytes or of a string's UTF-8 form as 64 hexadecimal digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def content_hash(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return sha256_hex(canonical_json(value))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
