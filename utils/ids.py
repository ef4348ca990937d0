"""Identities: of a run, of what a run produces, and of what is written outside any run.

In a replay every identity is derived from the run and the content (UUIDv5), so that a repeated or resumed replay
produces the same set of rows; elsewhere identities are time-ordered (UUIDv7).
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from typing import Any

from utils.hashing import content_hash, sha256_hex

ADHOC_RUN = "adhoc"
"""The run to which everything belongs that is written without a daemon, for example from a notebook."""

_NAMESPACE = uuid.UUID("6f6a1f3e-0f4f-5d0c-9d3e-7a1f5f0c2b11")


def uuid7() -> uuid.UUID:
    """Return a time-ordered UUID (RFC 9562, version 7): 48 bits of Unix milliseconds, then 74 random bits."""
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def derived_uuid(run_id: str, *parts: object) -> uuid.UUID:
    """Return the UUIDv5 (RFC 9562) of a run and the parts that name a thing in it."""
    return uuid.UUID(derived_id(run_id, *parts))


def derived_id(run_id: str, *parts: object) -> str:
    """Return `derived_uuid` as text; a decision needs a dozen, and `uuid.uuid5` takes several times as long."""
    name = "\x1f".join((run_id, *map(str, parts)))
    digits = hashlib.sha1(_NAMESPACE.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


def run_identity(identity: dict[str, Any]) -> str:
    """Return the 32 hexadecimal digits that identify a run by mode, feed, data, period, symbols and configuration."""
    return content_hash(identity)[:32]


def generate_trajectory_id(symbol: str, agent_type: str, timestamp: float) -> str:
    """Return a deterministic identity of 16 hexadecimal digits.

    Parameters
    ----------
    symbol, agent_type : str
        Of the trajectory.
    timestamp : float
        Decision time, Unix epoch seconds; microseconds count.
    """
    return sha256_hex(f"{symbol}|{agent_type}|{timestamp:.6f}")[:16]
