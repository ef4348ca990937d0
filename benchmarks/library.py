"""The section `library`: the experience library beside raw psycopg + pgvector and beside peers, on one server.

Called by ``python -m benchmarks library``. One embedded server with the daemon's own options serves every contender,
each in a database of its own; all see the same generated rows. Prints met and missed aims alike.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import library_report
from benchmarks.library_cases import distances, filters
from benchmarks.library_data import generate, trajectory, trajectory_id
from benchmarks.library_peers import PEERS, PeerResult, run_peer, write_exchange
from benchmarks.library_searches import Search, Truth, library_search, run_searches
from benchmarks.raw_pgvector import METHODS, RawSearch, prepare_searches
from benchmarks.write_rounds import measure_writes
from data_pipeline.embedded_postgres import DATABASE_NAME, EmbeddedPostgres
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.migrations import migrate

ROWS = 100_000
QUERIES = 100
_ROWS_SEED, _QUERIES_SEED = 1, 2


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the section, print it, and return its figures."""
    began = time.perf_counter()

    def progress(text: str) -> None:
        print(f"  [{time.perf_counter() - began:5.0f} s] {text}", flush=True)

    data, queries = generate(options.rows, _ROWS_SEED), generate(options.queries, _QUERIES_SEED)
    cases = filters(data, queries)
    truth = Truth(data, distances(data, queries), cases)
    print(f"experience library, {len(data):,} rows, {len(queries)} queries a filter")
    with tempfile.TemporaryDirectory(prefix="bench-library-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        server = EmbeddedPostgres(root / "server")
        server.start()
        try:
            databases = _Databases(server.url)
            progress("writing, by turns")
            library = ExperienceLibraryPostgres(dsn=databases.create("bench_library"))
            raw_url, copy_url = databases.create("bench_raw"), databases.create("bench_copy")
            for url in (raw_url, copy_url):
                with psycopg.connect(url) as connection:
                    migrate(connection)
            writes = measure_writes(data, library, raw_url, copy_url, progress)
            databases.drop("bench_copy")
            progress("indexing for the raw methods")
            with psycopg.connect(raw_url) as connection:
                prepare_searches(connection, [(trajectory_id(row), data.vectors[row]) for row in range(len(data))])
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("CHECKPOINT")
            with _raw_searches(raw_url) as raw:
                contenders: dict[str, Search] = {"library": library_search(library), **raw}
                answers = run_searches(contenders, cases, queries, progress)
            library.close()
            peers = _peers(options.peers, root, server.url, databases, (data, queries, cases), progress)
            versions = _versions(databases)
        finally:
            server.stop()
    return library_report.report(trajectory(data, 0), writes, answers, peers, truth, versions)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this section."""
    parser.add_argument("--rows", type=int, default=ROWS, help=f"trajectories of the section library ({ROWS:,})")
    parser.add_argument("--queries", type=int, default=QUERIES, help=f"queries a filter ({QUERIES})")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=[peer.name for peer in PEERS],
        choices=[peer.name for peer in PEERS],
        help="peers of the library, all by default; none after a bare --peers",
    )


class _Databases:
    """Databases of one server, one a contender."""

    def __init__(self, url: str) -> None:
        self.server = url

    def url(self, name: str) -> str:
        return self.server.replace(f"/{DATABASE_NAME}?", f"/{name}?")

    def create(self, name: str) -> str:
        self._execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop(self, name: str) -> None:
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def _raw_searches(url: str) -> Iterator[dict[str, Search]]:
    sessions = [RawSearch(url, method) for method in METHODS]
    try:
        yield {session.name: session.search for session in sessions}
    finally:
        for session in sessions:
            session.close()


def _peers(
    names: list[str], root: Path, server: str, databases: _Databases, work: tuple, progress: Callable[[str], None]
) -> list[PeerResult]:
    chosen = [peer for peer in PEERS if peer.name in names]
    if not chosen:
        return []
    exchange = root / "exchange"
    exchange.mkdir()
    progress("writing the rows for the peers")
    write_exchange(exchange, *work)
    return [run_peer(peer, exchange, server, databases.url, progress) for peer in chosen]


def _versions(databases: _Databases) -> dict[str, str]:
    with psycopg.connect(databases.url("bench_raw")) as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
        ).fetchone()
    found = {"PostgreSQL": str(row[0]), "pgvector": str(row[1])} if row else {}
    found["Python"] = platform.python_version()
    return found | {f"{name} (Python)": importlib.metadata.version(name) for name in ("psycopg", "pgvector", "numpy")}
