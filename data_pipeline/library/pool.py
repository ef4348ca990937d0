"""The connection to the database: a checked pool, typed errors, the schema, and the lock of the one orchestrator.

Used by every module that holds SQL. Knows nothing of what is stored.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson
import psycopg
from pgvector.psycopg import register_vector
from psycopg.types.json import set_json_loads
from psycopg_pool import ConnectionPool, PoolTimeout

from data_pipeline.library.migrations import migrate
from data_pipeline.library.search_plan import SESSION_SETTINGS
from utils.errors import ComponentStartError, LibraryUnavailable

_ORCHESTRATOR_LOCK = 0x570C4
_START_PATIENCE_S = 5.0
"""A killed orchestrator's session can outlive it by a moment."""

_RETAKE_PATIENCE_S = 1.0

_OWN_SESSION = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END_SESSION = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"

_NETWORK: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""A network that swallows packets is noticed within half a minute, not after the hours that the system's defaults allow."""

_CONNECT_TIMEOUT_S = 5

MINIMUM_SERVER = 150_000
Connection = psycopg.Connection[tuple[Any, ...]]


class Database:
    """A pool of connections to one database.

    Parameters
    ----------
    dsn : str
        A libpq connection string or URL.
    pool_size : int
        Most connections at a time.

    Raises
    ------
    ComponentStartError
        If the server cannot be reached, is older than PostgreSQL 15, or has no pgvector; the password never appears.
    """

    def __init__(self, dsn: str, pool_size: int = 8) -> None:
        self.place = _place(dsn)
        self._dsn = psycopg.conninfo.make_conninfo(dsn, **{**_NETWORK, **psycopg.conninfo.conninfo_to_dict(dsn)})
        self._lock_guard = threading.Lock()
        self._lock_connection: Connection | None = None
        self._lock_session: tuple[Any, ...] | None = None  # pid and start of the session, once this is the orchestrator
        self._prepare_schema()
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            self._dsn,
            min_size=1,
            max_size=pool_size,
            timeout=3.0,
            max_lifetime=1800.0,
            reconnect_timeout=2.0,  # its back-off would outlast the outage by as long again
            configure=_configure,
            check=_check,
            open=True,
            name="library",
        )

    def _prepare_schema(self) -> None:
        try:
            with psycopg.connect(self._dsn, connect_timeout=_CONNECT_TIMEOUT_S) as connection:
                if connection.info.server_version < MINIMUM_SERVER:
                    raise ComponentStartError(
                        f"the database at {self.place} is older than PostgreSQL 15; upgrade the server"
                    )
                migrate(connection)
        except psycopg.errors.FeatureNotSupported as error:
            raise ComponentStartError(_no_vector(self.place, error)) from None
        except (
            psycopg.errors.UndefinedFile,
            psycopg.errors.UndefinedObject,  # halfvec, before 0.7
            psycopg.errors.InsufficientPrivilege,
        ) as error:
            raise ComponentStartError(_no_vector(self.place, error)) from None
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())
            raise ComponentStartError(
                f"cannot connect to the database at {self.place}: {reason[:200]}; check DB_HOST, DB_PORT, DB_NAME, DB_USER, "
                "DB_PASSWORD or DATABASE_URL, and that the database exists (createdb trading_experience)"
            ) from None

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection; commits at the end, rolls back on an error.

        Raises
        ------
        LibraryUnavailable
            If no working connection can be had, or it breaks while in use.
        """
        try:
            with self._pool.connection() as connection:
                yield connection
        except (PoolTimeout, psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction) as error:
            raise unavailable(self.place, error) from error

    def open_session(self, timeout_s: int) -> Connection:
        """Return a connection outside the pool that commits each statement by itself; the caller closes it.

        Raises
        ------
        psycopg.Error
            If the database does not take it within `timeout_s` seconds (at least 2).
        """
        connection = psycopg.connect(self._dsn, connect_timeout=timeout_s)
        try:
            _configure(connection)
            connection.autocommit = True
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Lend a connection for single statements that write nothing: no transaction, and so no round trips for one.

        Raises
        ------
        LibraryUnavailable
            As `connection`.
        """
        with self.connection() as connection:
            connection.autocommit = True
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.autocommit = False

    @contextlib.contextmanager
    def autocommit_connection(self) -> Iterator[Connection]:
        """Lend a session of its own, outside any transaction, for work that must not be in one.

        Raises
        ------
        LibraryUnavailable
            If the database cannot be reached, or goes away meanwhile.
        """
        try:
            with contextlib.closing(self.open_session(_CONNECT_TIMEOUT_S)) as connection:
                yield connection
        except psycopg.OperationalError as error:
            raise unavailable(self.place, error) from error

    def become_the_orchestrator(self) -> None:
        """Take the lock that only one orchestrator a database can hold, on a connection of its own.

        Raises
        ------
        ComponentStartError
            If another orchestrator holds it.
        """
        try:
            with self._lock_guard:
                self._lock_connection = self._locked(_START_PATIENCE_S)
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())[:200]
            raise ComponentStartError(f"cannot connect to the database at {self.place}: {reason}") from None

    def holds_the_lock(self) -> bool:
        """Whether the orchestrator's lock is still ours; taken again after the server restarted, False while it is away.

        Raises
        ------
        ComponentStartError
            Once, if another orchestrator has taken it meanwhile: two would trade one portfolio. This one is none any more.
        """
        with self._lock_guard:
            if self._lock_session is None:
                return False
            if self._lock_connection is not None:
                with contextlib.suppress(psycopg.Error):
                    self._lock_connection.execute("SELECT 1")
                    return True
                self._lock_connection.close()
                self._lock_connection = None
            try:
                self._lock_connection = self._locked(_RETAKE_PATIENCE_S)
            except psycopg.Error:
                return False
            except ComponentStartError:
                self._lock_session = None
                raise
            return True

    def _locked(self, patience_s: float) -> Connection:
        """Return a session of its own that holds the lock; an earlier one that the network cut off from us is ended."""
        connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S)
        try:
            deadline = time.monotonic() + patience_s
            while True:
                row = connection.execute("SELECT pg_try_advisory_lock(%s)", (_ORCHESTRATOR_LOCK,)).fetchone()
                if row and row[0]:
                    self._lock_session = connection.execute(_OWN_SESSION).fetchone()
                    return connection
                if self._lock_session is not None:
                    connection.execute(_END_SESSION, self._lock_session)
                if time.monotonic() > deadline:
                    raise ComponentStartError(
                        f"another orchestrator works on the database at {self.place}; stop it, or give this one its own --data_dir or database"
                    )
                time.sleep(0.1)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close every connection; idempotent."""
        with self._lock_guard:
            self._lock_session = None
            if self._lock_connection is not None:
                self._lock_connection.close()
                self._lock_connection = None
        self._pool.close()


def unavailable(place: str, error: psycopg.Error) -> LibraryUnavailable:
    """Return the fault that says that a database does not answer, and how."""
    return LibraryUnavailable(f"the database at {place} does not answer: {' '.join(str(error).split())[:160]}")


def _configure(connection: Connection) -> None:
    register_vector(connection)
    set_json_loads(orjson.loads, connection)
    # generic plans of the filtered similarity search are an order of magnitude slower
    connection.execute("SET plan_cache_mode = force_custom_plan")
    connection.execute("SET statement_timeout = '120s'")
    connection.execute("SET timezone = 'UTC'")
    for setting in SESSION_SETTINGS:
        connection.execute(setting)
    connection.commit()


def _check(connection: Connection) -> None:
    """Raise an OperationalError for a connection that is broken.

    A healthy idle connection has nothing to say. Only one that does is asked, so that the usual case costs no round trip:
    a server that went away has left its farewell, or the end of the stream, to be read.
    """
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN)
    if watch.poll(0):
        ConnectionPool.check_connection(connection)


def _place(dsn: str) -> str:
    """Return host, port and database of a connection string, for messages."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise ComponentStartError(
            "database_url is not a connection string; give for example postgresql://user:password@host:5432/trading_experience"
        ) from None
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def _no_vector(place: str, error: psycopg.Error) -> str:
    reason = " ".join(str(error).split())[:120]
    return (
        f"the database at {place} cannot use the extension pgvector ({reason}); install pgvector 0.8 or newer on the server and "
        "run CREATE EXTENSION vector once as a superuser"
    )
