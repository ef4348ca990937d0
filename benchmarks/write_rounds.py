"""Writes of the library beside raw SQL: the same rows into the same tables and indexes, contenders by turns.

Called by the section `library`; leaves the databases filled for its searches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from pgvector.psycopg import register_vector

from benchmarks import raw_pgvector
from benchmarks.library_data import Experiences, trajectory
from benchmarks.measure import Spread
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory

BATCH = 500
ROUNDS = 10
INDEXED_ROUNDS = 4
INDEXED_SHARE = 0.04
"""Of the rows, those that are written once the vectors are indexed: what a daemon with a grown library does."""


@dataclass
class Writes:
    """Rows a second of each contender in each round, and what the indexes took (s)."""

    rows_a_round: int
    rates: dict[str, list[float]]
    indexed_rows_a_round: int = 0
    indexed_rates: dict[str, list[float]] = field(default_factory=dict)
    library_maintain_s: float = float("nan")
    raw_hnsw_s: float = float("nan")
    hnsw_since_round: int | None = None

    def ratio(self, indexed: bool = False) -> Spread:
        """Return the library's rate in parts of executemany's, each round compared with itself."""
        rates = self.indexed_rates if indexed else self.rates
        return Spread.of([ours / raw for ours, raw in zip(rates["library"], rates["raw executemany"], strict=True)])


def measure_writes(
    data: Experiences,
    library: ExperienceLibraryPostgres,
    raw_url: str,
    copy_url: str,
    progress: Callable[[str], None],
) -> Writes:
    """Write all rows: most of them into tables whose vectors are not indexed by the benchmark, then the rest into indexed ones.

    Where the library indexes its vectors by itself, the others' are indexed before their next round.
    """
    rows_indexed = int(len(data) * INDEXED_SHARE) // (INDEXED_ROUNDS * BATCH) * BATCH
    first = (len(data) - rows_indexed * INDEXED_ROUNDS) // ROUNDS
    with psycopg.connect(raw_url) as raw, psycopg.connect(copy_url) as copied:
        for connection in (raw, copied):
            register_vector(connection)
        contenders: dict[str, Callable[[_Chunk], None]] = {
            "library": lambda chunk: chunk.each(lambda batch, _: library.store_trajectories(batch)),
            "raw executemany": lambda chunk: chunk.each(lambda _, rows: raw_pgvector.insert_many(raw, *rows)),
            "raw COPY": lambda chunk: chunk.each(lambda _, rows: raw_pgvector.copy(copied, *rows)),
        }
        writes = Writes(first, {name: [] for name in contenders})
        start = 0
        for turn in range(ROUNDS):
            stop = start + first if turn < ROUNDS - 1 else len(data) - rows_indexed * INDEXED_ROUNDS
            _round(turn, _Chunk.of(data, start, stop), contenders, writes.rates)
            start = stop
            if writes.hnsw_since_round is None and _has_hnsw(library):
                writes.hnsw_since_round = turn + 1
                for connection in (raw, copied):
                    raw_pgvector.build_hnsw(connection)
                    connection.commit()
        progress("indexing the library's vectors, then those of raw SQL")
        began = time.perf_counter()
        library.maintain()
        writes.library_maintain_s = time.perf_counter() - began
        began = time.perf_counter()
        raw_pgvector.build_hnsw(raw)
        raw.commit()
        writes.raw_hnsw_s = time.perf_counter() - began
        if rows_indexed and _has_hnsw(library):
            raw_pgvector.build_hnsw(copied)
            copied.commit()
            progress("writing into indexed vectors, by turns")
            writes.indexed_rows_a_round = rows_indexed
            writes.indexed_rates = {name: [] for name in contenders}
            for turn in range(INDEXED_ROUNDS):
                _round(turn, _Chunk.of(data, start, start + rows_indexed), contenders, writes.indexed_rates)
                start += rows_indexed
        elif rows_indexed:
            library.store_trajectories([trajectory(data, row) for row in range(start, len(data))])
            for _, rows in _Chunk.of(data, start, len(data)).batches:
                raw_pgvector.insert_many(raw, *rows)
    return writes


@dataclass(frozen=True)
class _Chunk:
    """Rows of one round in batches, as trajectories and as parameters, made before the clock starts."""

    rows: int
    batches: list[tuple[list[Trajectory], tuple[raw_pgvector.Rows, raw_pgvector.Rows]]]

    @classmethod
    def of(cls, data: Experiences, start: int, stop: int) -> _Chunk:
        made = []
        for first in range(start, stop, BATCH):
            batch = [trajectory(data, row) for row in range(first, min(first + BATCH, stop))]
            made.append((batch, raw_pgvector.parameters(batch)))
        return cls(stop - start, made)

    def each(self, write: Callable[[list[Trajectory], Any], None]) -> None:
        for batch, rows in self.batches:
            write(batch, rows)


def _round(
    turn: int, chunk: _Chunk, contenders: dict[str, Callable[[_Chunk], None]], rates: dict[str, list[float]]
) -> None:
    for name in _rotated(list(contenders), turn):
        began = time.perf_counter()
        contenders[name](chunk)
        rates[name].append(chunk.rows / (time.perf_counter() - began))


def _rotated(names: list[str], turn: int) -> Iterator[str]:
    """Return the names from another one on each turn: who goes first has the emptier write-ahead log."""
    shift = turn % len(names)
    yield from names[shift:] + names[:shift]


def _has_hnsw(library: ExperienceLibraryPostgres) -> bool:
    with library.connection() as connection:
        query = "SELECT 1 FROM pg_indexes WHERE tablename = 'trajectory_embeddings' AND indexdef LIKE '%USING hnsw%'"
        return connection.execute(query).fetchone() is not None
