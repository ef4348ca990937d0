"""A database with a local spool behind it: what it cannot take while it is away waits on disk, in order, and is applied once.

The experience library works with it in place of `Database`. Without a spool it is a `Database`; it owns no thread:
whoever reads, writes or calls `drain` drains.
"""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import psycopg
from psycopg.types.json import Jsonb

from data_pipeline.library import operations
from data_pipeline.library.operations import Operation
from data_pipeline.library.outage import Outage
from data_pipeline.library.pool import Connection, Database, unavailable
from data_pipeline.library.spool import LIMIT_BYTES, Record, Spool
from utils.errors import ComponentStartError, LibraryConflict, LibraryUnavailable
from utils.logs import logger

_BATCH = 64
_BATCH_BYTES = 8 << 20
"""Operations of one transaction of a drain: what a commit costs is shared, and little is done again after a kill."""

_WRITER_PATIENCE_S = 0.25
"""How long a write helps to drain, or waits for who drains, before it goes behind what is left."""

_CONNECT_TIMEOUT_S = 2


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """What waits in the spool; `oldest` is when the first of it was acknowledged."""

    size_bytes: int
    operations: int
    oldest: datetime | None
    quarantined_files: int


class SpooledDatabase(Database):
    """See the module. Parameters and faults are those of `Database`."""

    def __init__(self, dsn: str, pool_size: int = 8) -> None:
        super().__init__(dsn, pool_size)
        self._spool: Spool | None = None
        self._outage = Outage()
        self._draining = threading.Lock()
        self._session: Connection | None = None  # of whoever drains, until nothing waits

    def open_spool(self, directory: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        """Put a spool behind the database, and drain what an earlier process left in it.

        Raises
        ------
        ComponentStartError
            If another process owns the directory, or what waits in it is for another database.
        LibraryUnavailable
            If the database does not say which one it is.
        """
        with super().connection() as connection:
            row = connection.execute("SELECT id::text FROM library_identity").fetchone()
        self._spool = Spool(directory, limit_bytes)
        try:
            self._spool.belong_to(str(row[0]) if row else "", self.place)
        except ComponentStartError:
            self._spool.close()
            self._spool = None
            raise
        if self._spool.operations:
            logger.info("the spool %s holds %d operations of before", directory, self._spool.operations)
        with contextlib.suppress(LibraryUnavailable):
            self._drain_for(None, always=True)

    @property
    def away(self) -> str | None:
        """Why the database is taken to be away, None while it is not; known only where there is a spool."""
        return str(self._outage.as_error()) if self._spool is not None and self._outage.known else None

    @property
    def spool_status(self) -> SpoolStatus | None:
        """What waits in the spool, None without one."""
        spool = self._spool
        if spool is None:
            return None
        return SpoolStatus(spool.size_bytes, spool.operations, spool.oldest, len(spool.quarantined))

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection that sees everything acknowledged before; commits at the end, rolls back on an error.

        Raises
        ------
        LibraryUnavailable
            If no working connection can be had, or it breaks while in use. With a spool, at once while the database
            is known to be away and it is too early to ask again.
        """
        self.drain()
        try:
            with super().connection() as connection:
                yield connection
        except LibraryUnavailable as error:
            self._note_outage(error)
            raise

    @contextlib.contextmanager
    def undrained(self) -> Iterator[Connection]:
        """Lend a connection that need not see what waits in the spool, and so never waits for it."""
        with super().connection() as connection:
            yield connection

    def write(self, operation: Operation) -> int:
        """Apply an operation, or spool it while the database is away or something waits before it; returns its result.

        Raises
        ------
        ValueError, LibraryConflict
            If the database refuses it for good: the field is named.
        LibraryUnavailable
            If neither the database nor the spool takes it.
        """
        spool = self._spool
        if spool is None:
            return self._apply(operation)
        if spool.operations or self._outage.known:
            try:
                drained = self._drain_for(_WRITER_PATIENCE_S)
            except LibraryUnavailable:
                drained = False
            if not drained:
                return self._append(spool, operation)
        try:
            return self._apply(operation)
        except LibraryUnavailable as error:
            self._note_outage(error)
            return self._append(spool, operation)

    def drain(self, *, patience_s: float | None = None, ask_now: bool = False) -> None:
        """Apply everything that waits in the spool; returns at once if nothing does.

        Parameters
        ----------
        patience_s : float, optional
            Leave what is not applied by then to the next one who drains.
        ask_now : bool
            Ask a database that is known to be away even if it is too early.

        Raises
        ------
        LibraryUnavailable
            If the database is away.
        """
        if ask_now:
            self._outage.ask_now()
        while not self._drain_for(patience_s) and patience_s is None:
            pass  # somebody else drains, or somebody writes faster than one drains

    def close(self) -> None:
        """Close every connection and the spool; what waits in it stays on disk. Idempotent."""
        super().close()
        if self._spool is not None:
            with self._draining:
                self._end_session()
                self._spool.close()

    def _apply(self, operation: Operation) -> int:
        try:
            with super().connection() as connection, connection.cursor() as cursor:
                return operation.apply(cursor)
        except (psycopg.IntegrityError, psycopg.DataError) as error:
            raise operations.as_named_fault(error) from error

    def _append(self, spool: Spool, operation: Operation) -> int:
        spool.append(operations.encode(operation))
        return operation.assumed

    def _drain_for(self, patience_s: float | None, *, always: bool = False) -> bool:
        """Drain for so long (None: to the end); return whether nothing waits any more."""
        spool = self._spool
        if spool is None or not (always or spool.operations or self._outage.known):
            return True
        deadline = None if patience_s is None else time.monotonic() + patience_s
        # while it is away one asks, and nobody waits for the answer
        timeout = 0.0 if self._outage.known else -1.0 if patience_s is None else patience_s
        if not self._draining.acquire(timeout=timeout):
            if self._outage.known:
                raise self._outage.as_error()
            return False
        try:
            if not (always or spool.operations or self._outage.known):
                return True  # whoever drained before has done it
            self._outage.check_due()
            return self._drain(spool, deadline)
        finally:
            self._draining.release()

    def _drain(self, spool: Spool, deadline: float | None) -> bool:
        applied = 0
        try:
            if self._session is None:  # of its own: the back-off of a pool outlasts the outage
                self._session = self.open_session(_CONNECT_TIMEOUT_S)
                self._outage.answered()
                _forget_retired(self._session, spool)
            while records := spool.peek(_BATCH, _BATCH_BYTES):
                _apply_records(self._session, records)
                spool.advance(records)
                applied += len(records)
                _forget_retired(self._session, spool)
                if deadline is not None and time.monotonic() > deadline:
                    break
        except psycopg.Error as error:
            self._end_session()
            fault = unavailable(self.place, error)
            self._outage.probe_failed(str(fault))
            raise fault from error
        left = spool.operations
        if not left:
            self._end_session()
        if self._outage.ended():
            logger.info("the database at %s answers again", self.place)
        if applied:
            logger.info("%d operations of the spool were applied, %d are left", applied, left)
        return not left

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _note_outage(self, error: LibraryUnavailable) -> None:
        if self._outage.began(str(error)) and self._spool is not None:
            logger.warning("%s; what is written goes to the spool %s", error, self._spool.directory)


_REFUSALS = (psycopg.IntegrityError, psycopg.DataError, LibraryConflict, ValueError)
"""What will not be otherwise the next time. Everything else is taken for an outage, and tried again."""


def _apply_records(connection: Connection, records: list[Record]) -> None:
    """Apply operations in order and note each, in one transaction; what is noted already was applied before."""
    refused: list[tuple[Record, str]] = []
    with connection.transaction(), connection.cursor() as cursor:
        # waits for a transaction of a killed process that still applies one of them
        cursor.execute(
            "INSERT INTO spool_applied (op_id) SELECT unnest(%s::uuid[]) ON CONFLICT DO NOTHING RETURNING op_id",
            ([record.op_id for record in records],),
        )
        new = {row[0] for row in cursor}
        fresh = [record for record in records if record.op_id in new]
        if not _apply_together(connection, cursor, fresh):
            refused = [(r, reason) for r in fresh if (reason := _refusal(connection, cursor, r)) is not None]
        for record, reason in refused:
            cursor.execute(
                "INSERT INTO spool_dead_letter (op_id, op, error) VALUES (%s, %s, %s)",
                (record.op_id, Jsonb(_legible(record.payload)), reason),
            )
    for record, reason in refused:
        logger.error("operation %s of the spool is refused, see spool_dead_letter: %s", record.op_id, reason)


def _apply_together(connection: Connection, cursor: psycopg.Cursor[Any], records: list[Record]) -> bool:
    """Apply operations that are all in order, which is several times as fast; False, and nothing done, if one is refused."""
    try:
        with connection.transaction():
            operations.apply_all(cursor, [operations.decode(record.payload) for record in records])
    except _REFUSALS:
        return False
    return True


def _refusal(connection: Connection, cursor: psycopg.Cursor[Any], record: Record) -> str | None:
    """Apply one operation; return why the database will never take it, None if it did."""
    try:
        with connection.transaction():  # a savepoint: what is refused must not take the others with it
            operations.apply_all(cursor, [operations.decode(record.payload)])
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        return str(operations.as_named_fault(error))
    except (LibraryConflict, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _legible(payload: bytes) -> Any:
    """Return an operation as a jsonb column can hold it."""
    if b"\\u0000" not in payload:
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(payload)
    return {"base64": base64.b64encode(payload).decode()}


def _forget_retired(connection: Connection, spool: Spool) -> None:
    """Delete the notes of operations whose file will never be read again, then the file."""
    for path, op_ids in spool.retired():
        connection.execute("DELETE FROM spool_applied WHERE op_id = ANY(%s)", (op_ids,))
        spool.discard(path)
