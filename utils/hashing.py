"""Canonical JSON and content hashes: equal content gives equal bytes, on every machine and in every run.

Called wherever something is identified by what it holds: snapshots, trajectories, datasets, runs, portfolio events.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """Serialise to JSON with sorted keys and no spaces.

    Raises
    ------
    ValueError
        If a number is NaN or infinite: neither has a JSON form, and PostgreSQL's jsonb refuses them.
    """
    return _ENCODER.encode(value)


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
