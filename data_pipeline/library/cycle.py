"""The commit of one trading cycle: trajectories, outcomes, portfolio events and regime changes, all or nothing.

The cycle's last event is its mark; that the mark is stored means that the whole cycle is. A start after a kill goes on
from the last mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from data_pipeline.library import findings, outcomes, portfolio_log, similarity, trajectories
from data_pipeline.library.findings import Finding
from data_pipeline.library.outcomes import OutcomeUpdate
from data_pipeline.library.portfolio_log import PortfolioEvent, PositionRow
from data_pipeline.library.rows import PreparedRows
from data_pipeline.library.trajectories import Trajectory, json_value
from utils.clock import isoformat
from utils.errors import LibraryConflict


@dataclass(frozen=True, slots=True)
class RegimeChange:
    """A symbol's regime label changed."""

    symbol: str
    as_of: datetime
    old: str | None
    new: str
    inputs: dict[str, Any]
    confidence: float


@dataclass(frozen=True, slots=True)
class CycleBatch:
    """Everything that one instant produced. `events` ends with the mark of the instant."""

    run_id: str
    as_of: datetime
    events: Sequence[PortfolioEvent]
    positions: Sequence[PositionRow] = ()
    trajectories: Sequence[Trajectory] = ()
    outcomes: Sequence[OutcomeUpdate] = ()
    regime_changes: Sequence[RegimeChange] = ()
    findings: Sequence[Finding] = ()


def check(batch: CycleBatch) -> None:
    """Raise a ValueError unless the cycle ends with its mark."""
    if not batch.events or batch.events[-1].kind != "mark":
        raise ValueError("events: a cycle's last event must be its mark")


def commit(cursor: psycopg.Cursor[Any], batch: CycleBatch, rows: PreparedRows) -> bool:
    """Write a cycle inside the caller's transaction; return False if it is stored already.

    A commit whose answer was lost may have happened: that is why a repeated one must see it and change nothing.

    Parameters
    ----------
    rows : PreparedRows
        Those of the batch's trajectories.

    Raises
    ------
    LibraryConflict
        If its first event does not follow the last one of its run: a cycle before it could not be stored.
    """
    cursor.execute(
        "SELECT EXISTS (SELECT 1 FROM portfolio_events WHERE event_id = %s), "
        "(SELECT hash FROM portfolio_events WHERE run_id = %s ORDER BY seq DESC LIMIT 1)",
        (batch.events[-1].event_id, batch.run_id),
    )
    found = cursor.fetchone()
    stored, last_hash = found if found else (False, None)
    if stored:
        return False
    if batch.events[0].prev_hash != (last_hash or portfolio_log.GENESIS):
        raise LibraryConflict(
            f"events: the cycle of {isoformat(batch.as_of)} does not follow the last event that run {batch.run_id} has stored"
        )
    trajectories.copy_rows(cursor, rows.rows)
    similarity.copy_rows(cursor, rows.embeddings.values())
    if batch.outcomes:
        outcomes.apply(cursor, batch.outcomes)
    if batch.findings:
        findings.copy_rows(cursor, batch.findings)
    if batch.regime_changes:
        cursor.executemany(
            "INSERT INTO regime_events (run_id, symbol, as_of, kind, old, new, inputs, confidence) VALUES (%s, %s, %s, 'label', %s, %s, %s, %s)",
            [
                (batch.run_id, c.symbol, c.as_of, c.old, c.new, json_value(c.inputs), c.confidence)
                for c in batch.regime_changes
            ],
        )
    portfolio_log.append(cursor, batch.run_id, batch.events, batch.positions)
    return True
