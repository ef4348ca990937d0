"""Trajectories: one agent's reasoning in one decision, its row, and how rows are written and read.

A trajectory is immutable but for its outcome. Writing the same content twice changes nothing; other content under the
same identity is a conflict.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from utils.errors import LibraryConflict
from utils.hashing import canonical_json, sha256_hex
from utils.ids import ADHOC_RUN

EMBEDDING_DIMENSION = 384
EMBEDDING_MODEL_KEY = "embedding_model"
"""Stands beside the fields of a trajectory wherever its embedding leaves the library: vectors of other models are never compared."""

_LARGEST_HALF = 65504.0
FIELD_LIMIT = 8 << 20
"""Characters of a text or of a JSON field at most: a thousand times what a decision needs, and no danger to the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One agent's part in one decision, as stored.

    Attributes
    ----------
    trajectory_id : str
        Made by the client; at most 64 characters.
    timestamp : float
        Decision time, Unix epoch seconds.
    symbol, agent_type : str
    market_state, agent_inputs : dict
        JSON values; what the agent saw and what it was given.
    reasoning : str
    confidence : float
        0..1.
    actual_return, reward, benchmark_return, max_drawdown, costs, success, horizon, matured_at
        The outcome; all None until it is known.
    embedding : sequence of float, optional
        384 values.
    """

    trajectory_id: str
    timestamp: float
    symbol: str
    agent_type: str
    market_state: Mapping[str, Any]
    agent_inputs: Mapping[str, Any]
    reasoning: str
    confidence: float
    run_id: str = ADHOC_RUN
    decision_id: str | None = None
    as_of: datetime | None = None
    recommendation: str | None = None
    market_regime: str | None = None
    abstained: bool = False
    shadow: bool = False
    position_size: float | None = None
    stop_loss: float | None = None
    take_profit: float | None = None
    policy: str | None = None
    evidence_hash: str | None = None
    workflow_trace: Mapping[str, Any] | None = None
    similar_ids: Sequence[str] | None = None
    actual_return: float | None = None
    reward: float | None = None
    benchmark_return: float | None = None
    max_drawdown: float | None = None
    costs: float | None = None
    success: bool | None = None
    horizon: str | None = None
    matured_at: datetime | None = None
    embedding: Sequence[float] | NDArray[np.float32] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict; times in ISO 8601."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trajectory:
        """Build a trajectory from `to_dict`'s form, or from a line of an export, which names its embedding's model beside.

        Raises
        ------
        ValueError
            For an unknown or a missing field, named.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known - {EMBEDDING_MODEL_KEY})
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r} of a trajectory; known are {', '.join(sorted(known))}")
        values = {name: value for name, value in data.items() if name != EMBEDDING_MODEL_KEY}
        for name in ("as_of", "matured_at"):
            if isinstance(values.get(name), str):
                values[name] = datetime.fromisoformat(values[name])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error).split("__init__() ")[-1]) from None


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value.tolist() if isinstance(value, np.ndarray) else value


CONTENT_COLUMNS = (
    "trajectory_id", "run_id", "decision_id", "timestamp", "as_of", "symbol", "agent_type", "recommendation",
    "market_regime", "market_state", "agent_inputs", "reasoning", "confidence", "abstained", "shadow", "position_size",
    "stop_loss", "take_profit", "policy", "evidence_hash", "workflow_trace", "similar_ids", "horizon",
)  # fmt: skip
OUTCOME_COLUMNS = ("actual_return", "reward", "benchmark_return", "max_drawdown", "costs", "success", "matured_at")
_COLUMNS = CONTENT_COLUMNS + OUTCOME_COLUMNS
JSON_COLUMNS = frozenset(("market_state", "agent_inputs", "workflow_trace"))
_INSERT_COLUMNS = (*_COLUMNS, "content_hash")
_CONTENT_OF = attrgetter(*CONTENT_COLUMNS)
_OUTCOME_OF = attrgetter(*OUTCOME_COLUMNS)
_JSON_PLACES = tuple(place for place, name in enumerate(CONTENT_COLUMNS) if name in JSON_COLUMNS)
_AS_OF = CONTENT_COLUMNS.index("as_of")
_SIMILAR = CONTENT_COLUMNS.index("similar_ids")
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""The escape of NUL in JSON; an even number of backslashes before it would make it plain text."""
SELECTED = ", ".join(f"t.{name}" for name in _COLUMNS)
"""Columns of a trajectory `t`, in the order in which `from_row` wants them."""


_TEXT_LENGTHS: dict[str, tuple[int, int]] = {
    "trajectory_id": (1, 64), "symbol": (1, 20), "agent_type": (1, 50), "run_id": (1, 32), "decision_id": (0, 64),
    "recommendation": (0, 50), "market_regime": (0, 50), "evidence_hash": (64, 64), "reasoning": (0, FIELD_LIMIT),
    "policy": (0, FIELD_LIMIT), "horizon": (0, FIELD_LIMIT),
}  # fmt: skip
_OPTIONAL_TEXTS = frozenset(("policy", "horizon", "decision_id", "recommendation", "market_regime", "evidence_hash"))
_TEXTS = tuple((name, name in _OPTIONAL_TEXTS, *span) for name, span in _TEXT_LENGTHS.items())
_TEXTS_OF = attrgetter(*_TEXT_LENGTHS)
_NUMBERS = (
    "timestamp", "position_size", "stop_loss", "take_profit", "actual_return", "reward", "benchmark_return",
    "max_drawdown", "costs",
)  # fmt: skip
_NUMBERS_OF = attrgetter(*_NUMBERS)
_LAST_TIMESTAMP = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def validate(trajectory: Trajectory) -> None:
    """Check what the database would refuse, and what it would accept by mistake; JSON and embedding are checked with their rows.

    Raises
    ------
    ValueError
        Naming the field and what it must be.
    """
    t = trajectory
    if not isinstance(t.confidence, (int, float)) or not 0 <= t.confidence <= 1:
        raise ValueError(f"confidence must lie in 0..1, not {t.confidence!r}")
    for name, value in zip(_NUMBERS, _NUMBERS_OF(t), strict=True):
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise ValueError(f"{name} must be finite, not {value!r}")
    if not 0 <= t.timestamp <= _LAST_TIMESTAMP:
        raise ValueError(f"timestamp must be in epoch seconds up to the year 9999, not {t.timestamp!r}")
    for name, price in (("stop_loss", t.stop_loss), ("take_profit", t.take_profit)):
        if price is not None and price <= 0:
            raise ValueError(f"{name} must be a positive price, not {price!r}")
    for name, instant in (("as_of", t.as_of), ("matured_at", t.matured_at)):
        if instant is not None and instant.tzinfo is None:
            raise ValueError(f"{name} has no time zone; give an aware datetime, for example in UTC")
    if (t.actual_return is None) != (t.matured_at is None):
        raise ValueError("actual_return and matured_at must be given together or not at all")
    for (name, optional, least, most), text in zip(_TEXTS, _TEXTS_OF(t), strict=True):
        if text is not None or not optional:
            check_text(name, text, least, most)
    for item in t.similar_ids or ():
        check_text("similar_ids", item)


def check_text(name: str, text: Any, least: int = 0, most: int = FIELD_LIMIT) -> None:
    """Raise a ValueError that names the field unless it is text that the database can hold."""
    if not isinstance(text, str) or "\x00" in text:
        raise ValueError(f"{name} must be text without NUL characters")
    if not least <= len(text) <= most:
        raise ValueError(f"{name} must have {least} to {most} characters, not {len(text)}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} holds a lone surrogate; it is not valid Unicode text") from None


def check_embedding(embedding: Sequence[float] | NDArray[np.float32]) -> None:
    """Raise a ValueError unless the embedding has 384 values that are finite in half precision."""
    as_vectors([embedding])


def has_direction(embedding: NDArray[np.float32]) -> bool:
    """Return whether an embedding is more than zero in the half precision in which it is stored and compared."""
    return bool(embedding.astype(np.float16).any())


def as_vectors(embeddings: Sequence[Sequence[float] | NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return embeddings as the rows of a matrix.

    Raises
    ------
    ValueError
        If one has not 384 values that are finite in half precision.
    """
    for embedding in embeddings:
        if len(embedding) != EMBEDDING_DIMENSION:
            raise ValueError(f"embedding must have {EMBEDDING_DIMENSION} values, not {len(embedding)}")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            matrix = np.array(embeddings, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError("embedding must hold numbers and nothing else") from None
    if not (np.abs(matrix) <= _LARGEST_HALF).all():  # False for NaN
        raise ValueError(f"embedding must be finite and within ±{_LARGEST_HALF:.0f} (half precision) in every value")
    return matrix


def as_row(t: Trajectory) -> tuple[Any, ...]:
    """Return the values of a trajectory in the order of the INSERT, its content hash last.

    Raises
    ------
    ValueError
        If a JSON field holds NaN, an infinity, a NUL character or no Unicode, or is longer than FIELD_LIMIT.
    """
    values: list[Any] = list(_CONTENT_OF(t))
    if values[_AS_OF] is None:
        values[_AS_OF] = datetime.fromtimestamp(t.timestamp, UTC)
    elif t.as_of is not None and t.as_of.tzinfo is not UTC:
        values[_AS_OF] = t.as_of.astimezone(UTC)  # the same instant must hash alike
    for place in _JSON_PLACES:
        if values[place] is not None:
            values[place] = json_text(CONTENT_COLUMNS[place], values[place])
    if t.similar_ids is not None:
        values[_SIMILAR] = list(t.similar_ids)  # as it comes back: a tuple must hash alike
    # fields are told apart by a character that no JSON and no identity holds
    digest = sha256_hex("\x1f".join(["" if value is None else str(value) for value in values]))
    return (*values, *_OUTCOME_OF(t), digest)


def json_text(name: str, value: Any, limit_bytes: int | None = FIELD_LIMIT) -> str:
    """Return the canonical JSON of a field.

    Raises
    ------
    ValueError
        Naming the field, if it is no JSON, holds a NUL character, or is longer than `limit_bytes` (characters).
    """
    try:
        text = canonical_json(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if "\\u0000" in text and _NUL.search(text):
        raise ValueError(f"{name} holds a NUL character, which the database cannot store")
    if limit_bytes is not None and len(text) > limit_bytes:
        raise ValueError(f"{name} has {len(text)} characters of JSON; {limit_bytes} are the most")
    return text


def copy_rows(cursor: psycopg.Cursor[Any], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write new rows by COPY; the caller knows that none of them exists."""
    with cursor.copy(f"COPY trajectories ({', '.join(_INSERT_COLUMNS)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def insert_row(cursor: psycopg.Cursor[Any], row: tuple[Any, ...]) -> bool:
    """Write one row unless it is there; return whether it is new.

    Raises
    ------
    LibraryConflict
        If other content is stored under the identity.
    """
    placeholders = ", ".join("%s::jsonb" if name in JSON_COLUMNS else "%s" for name in _INSERT_COLUMNS)
    cursor.execute(
        f"INSERT INTO trajectories ({', '.join(_INSERT_COLUMNS)}) VALUES ({placeholders}) ON CONFLICT (trajectory_id) DO NOTHING",
        row,
    )
    if cursor.rowcount == 1:
        return True
    cursor.execute("SELECT content_hash FROM trajectories WHERE trajectory_id = %s", (row[0],))
    stored = cursor.fetchone()
    if stored is None or stored[0] != row[-1]:
        raise LibraryConflict(
            f"trajectory {row[0]} is stored with other content; a trajectory is immutable, use a new id"
        )
    return False


def from_row(row: Sequence[Any]) -> Trajectory:
    """Return the trajectory that a selected row holds."""
    values = dict(zip(_COLUMNS, row, strict=True))
    values["run_id"] = values["run_id"].strip()
    return Trajectory(**values)


def select(
    cursor: psycopg.Cursor[Any], where: str, parameters: Sequence[Any], order: str, limit: int | None = None
) -> list[Trajectory]:
    """Read trajectories `t` by a condition."""
    tail = f" LIMIT {int(limit)}" if limit is not None else ""
    cursor.execute(f"SELECT {SELECTED} FROM trajectories t WHERE {where} ORDER BY {order}{tail}", parameters)
    return [from_row(row) for row in cursor]


def json_value(value: Any) -> Jsonb:
    """Wrap a value for a jsonb parameter; refuses NaN."""
    return Jsonb(value, dumps=canonical_json)
