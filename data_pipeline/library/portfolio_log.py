"""The log of everything that changed the portfolio: append-only, each event chained to the one before by its hash.

The portfolio is the fold of this log; orders, fills and positions are projections of it for people who query.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from utils.clock import isoformat
from utils.errors import LibraryConflict
from utils.hashing import canonical_json, sha256_hex
from utils.schema import EventKind

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class PortfolioEvent:
    """One change of the portfolio; `payload` holds JSON values only."""

    event_id: uuid.UUID
    kind: EventKind
    as_of: datetime
    payload: dict[str, Any]
    prev_hash: str
    hash: str

    @classmethod
    def chained(
        cls, event_id: uuid.UUID, kind: EventKind, as_of: datetime, payload: dict[str, Any], prev_hash: str
    ) -> PortfolioEvent:
        """Make the event that follows the one whose hash is `prev_hash`."""
        content = canonical_json(
            {"event_id": str(event_id), "kind": kind, "as_of": isoformat(as_of), "payload": payload}
        )
        return cls(event_id, kind, as_of, payload, prev_hash, sha256_hex(prev_hash + content))


@dataclass(frozen=True, slots=True)
class PositionRow:
    """A position as the projection shows it; prices in USD a share."""

    symbol: str
    quantity: float
    avg_price: float
    realised_pnl: float


def append(
    cursor: psycopg.Cursor[Any], run_id: str, events: Sequence[PortfolioEvent], positions: Iterable[PositionRow]
) -> None:
    """Append events and bring the projections up to date."""
    with cursor.copy(
        "COPY portfolio_events (event_id, run_id, kind, as_of, payload, prev_hash, hash) FROM STDIN"
    ) as copy:
        for event in events:
            copy.write_row(
                (
                    event.event_id,
                    run_id,
                    event.kind,
                    event.as_of,
                    canonical_json(event.payload),
                    event.prev_hash,
                    event.hash,
                )
            )
    for statement, rows in _projections(run_id, events, positions):
        if rows:
            cursor.executemany(statement, rows)


def _projections(
    run_id: str, events: Sequence[PortfolioEvent], positions: Iterable[PositionRow]
) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yield statements with their rows, in an order that every projection may rely on: one round trip each."""
    orders = [event.payload for event in events if event.kind == "order"]
    fills = [(event.payload, event.as_of) for event in events if event.kind == "fill"]
    yield (
        "INSERT INTO orders (order_id, run_id, symbol, side, quantity, status) VALUES (%s, %s, %s, %s, %s, 'open')",
        [(p["order_id"], run_id, p["symbol"], p["side"], p["quantity"]) for p in orders],
    )
    yield (
        "INSERT INTO fills (fill_id, run_id, order_id, symbol, side, quantity, price, commission, spread, slippage, reason, "
        "filled_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (
                p["fill_id"], run_id, p["order_id"], p["symbol"], p["side"], p["quantity"], p["price"], p["commission"],
                p["spread"], p["slippage"], p["reason"], filled_at,
            )
            for p, filled_at in fills
        ],
    )  # fmt: skip
    yield (
        "UPDATE orders SET status = 'filled' WHERE order_id = %s",
        [(p["order_id"],) for p, _ in fills if p["reason"] == "open"],
    )
    yield (
        "UPDATE orders SET status = CASE status WHEN 'filled' THEN 'partly_filled' ELSE 'cancelled' END WHERE order_id = %s",
        [(event.payload["order_id"],) for event in events if event.kind == "cancel"],
    )
    yield (
        "INSERT INTO positions (run_id, symbol, quantity, avg_price, realised_pnl) VALUES (%s, %s, %s, %s, %s) "
        "ON CONFLICT (run_id, symbol) DO UPDATE SET quantity = excluded.quantity, avg_price = excluded.avg_price, "
        "realised_pnl = excluded.realised_pnl",
        [(run_id, row.symbol, row.quantity, row.avg_price, row.realised_pnl) for row in positions],
    )


def load(cursor: psycopg.Cursor[Any], run_id: str) -> list[PortfolioEvent]:
    """Return a run's events in order, the chain verified.

    Raises
    ------
    LibraryConflict
        If an event was changed or is missing; its sequence number is named.
    """
    cursor.execute(
        "SELECT seq, event_id, kind, as_of, payload, prev_hash, hash FROM portfolio_events WHERE run_id = %s ORDER BY seq",
        (run_id,),
    )
    events: list[PortfolioEvent] = []
    previous = GENESIS
    for seq, event_id, kind, as_of, payload, prev_hash, digest in cursor:
        event = PortfolioEvent.chained(event_id, kind, as_of, payload, previous)
        if prev_hash != previous or digest != event.hash:
            raise LibraryConflict(
                f"the portfolio log is broken at event {seq}: its hash does not follow from the event before"
            )
        events.append(event)
        previous = digest
    return events
