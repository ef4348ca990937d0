"""Findings of fault localisation: what was wrong in an output, where, and how it could be mended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import psycopg

from utils.hashing import canonical_json

_COLUMNS = "trajectory_id, category, severity, sub_code, pointer, description, suggested_fix, detector, evidence"


_LONGEST = 4_000
_LARGEST = 2.0**63


@dataclass(frozen=True, slots=True)
class Finding:
    """One error in one field of a trajectory's output; `pointer` is a JSON pointer.

    It holds what was found in a form that can be stored: `evidence` becomes JSON values, what has no such form text, and
    no text holds NUL characters, lone surrogates or more than 4,000 characters.
    """

    trajectory_id: str
    category: str
    severity: str
    sub_code: str | None
    pointer: str
    description: str
    suggested_fix: str
    detector: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("pointer", "description", "suggested_fix"):
            object.__setattr__(self, name, _storable_text(getattr(self, name)))
        object.__setattr__(self, "evidence", _storable(self.evidence))


def copy_rows(cursor: psycopg.Cursor[Any], findings: Iterable[Finding]) -> None:
    """Write new findings; the caller knows that none of them is stored."""
    with cursor.copy(f"COPY error_findings ({_COLUMNS}) FROM STDIN") as copy:
        for f in findings:
            copy.write_row(
                (
                    f.trajectory_id, f.category, f.severity, f.sub_code, f.pointer, f.description, f.suggested_fix, f.detector,
                    canonical_json(f.evidence),
                )
            )  # fmt: skip


def _storable(value: Any) -> Any:
    """Return a value as JSON that PostgreSQL takes; what has no such form as text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _storable_text(value)
    if isinstance(value, (int, float)):
        return value if -_LARGEST < value < _LARGEST else str(value)
    if isinstance(value, Mapping):
        return {_storable_text(str(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_storable(item) for item in value]
    return _storable_text(value.isoformat() if isinstance(value, (date, datetime)) else str(value))


def _storable_text(text: str) -> str:
    """Return a text of bounded length without NUL characters and lone surrogates, which are shown as escapes."""
    return text[:_LONGEST].replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def of_trajectories(cursor: psycopg.Cursor[Any], trajectory_ids: Sequence[str]) -> dict[str, list[Finding]]:
    """Return the findings of each trajectory that has any, in the order in which they were stored."""
    cursor.execute(
        f"SELECT {_COLUMNS} FROM error_findings WHERE trajectory_id = ANY(%s) ORDER BY id", (list(trajectory_ids),)
    )
    found: dict[str, list[Finding]] = {}
    for row in cursor:
        found.setdefault(row[0], []).append(Finding(*row))
    return found


def counts(cursor: psycopg.Cursor[Any], run_id: str) -> dict[tuple[str, str], int]:
    """Return how many findings the run's served outputs have by category and severity."""
    cursor.execute(
        "SELECT f.category, f.severity, count(*) FROM error_findings f JOIN trajectories t USING (trajectory_id) "
        "WHERE t.run_id = %s AND NOT t.shadow GROUP BY 1, 2",
        (run_id,),
    )
    return {(row[0], row[1]): row[2] for row in cursor}


def latest(cursor: psycopg.Cursor[Any], run_id: str, limit: int) -> list[tuple[Any, ...]]:
    """Return (as_of, symbol, agent type, category, severity, pointer, description) of a run's newest findings, newest first."""
    cursor.execute(
        "SELECT t.as_of, t.symbol, t.agent_type, f.category, f.severity, f.pointer, f.description FROM error_findings f "
        "JOIN trajectories t USING (trajectory_id) WHERE t.run_id = %s AND NOT t.shadow ORDER BY f.id DESC LIMIT %s",
        (run_id, limit),
    )
    return list(cursor)
