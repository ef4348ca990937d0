"""Batches of trajectories: the library's `store_trajectories` beside raw psycopg `executemany` into the same tables.

Run by ``make bench``, or alone by ``python -m benchmarks.library_writes``. The raw side is given rows that are made already.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from pgvector import HalfVector

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import similarity, trajectories
from data_pipeline.library.pool import Connection

BATCH = 500
ROUNDS = 12
_FIRST = datetime(2014, 6, 2, 20, tzinfo=UTC)


def batch(rng: np.random.Generator) -> list[Trajectory]:
    """Return trajectories with 1.7 KB of JSON each and an embedding of Python floats."""
    return [
        Trajectory(
            trajectory_id=uuid.uuid4().hex, timestamp=(_FIRST + timedelta(seconds=n)).timestamp(), symbol="AAPL",
            agent_type="technical", reasoning="r" * 100, confidence=0.75, decision_id=uuid.uuid4().hex, recommendation="buy",
            market_state={"inputs": {f"k{k}": float(rng.normal()) for k in range(40)}, "note": "x" * 300},
            agent_inputs={"bars": 300, "z": "y" * 300}, workflow_trace={"steps": [{"ran": ["news"]}]}, policy="rules",
            market_regime="bull_market", evidence_hash="ab" * 32, horizon="5d", embedding=rng.normal(size=384).tolist(),
        )
        for n in range(BATCH)
    ]  # fmt: skip


def ratios() -> tuple[float, float, list[float]]:
    """Return rows a second of the library and of raw psycopg (medians), and the ratio of each pair of batches."""
    rng = np.random.default_rng(42)
    ours, raws = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        library = ExperienceLibraryPostgres.embedded(root / "data")
        raw = library.database.open_session(5)
        raw.autocommit = False
        for number in range(ROUNDS + 1):
            first, second = batch(rng), batch(rng)
            pair = (
                (_raw(raw, first), _ours(library, second))
                if number % 2
                else (_ours(library, first), _raw(raw, second))[::-1]
            )
            if number:  # the first warms caches on both sides
                raws.append(pair[0])
                ours.append(pair[1])
        raw.close()
        library.close()
    return (
        BATCH / statistics.median(ours),
        BATCH / statistics.median(raws),
        [theirs / mine for theirs, mine in zip(raws, ours, strict=True)],
    )


def _ours(library: ExperienceLibraryPostgres, rows: list[Trajectory]) -> float:
    started = time.perf_counter()
    library.store_trajectories(rows)
    return time.perf_counter() - started


def _raw(connection: Connection, rows: list[Trajectory]) -> float:
    columns, vectors = trajectories._INSERT_COLUMNS, similarity._COLUMNS
    values = ", ".join("%s::jsonb" if name in trajectories._JSON_COLUMNS else "%s" for name in columns)
    main = f"INSERT INTO trajectories ({', '.join(columns)}) VALUES ({values})"
    # the vector in binary: its text form would make raw psycopg slower than it need be
    halves = f"INSERT INTO trajectory_embeddings ({', '.join(vectors)}) VALUES ({', '.join(['%s'] * (len(vectors) - 1))}, %b)"
    prepared = [trajectories.as_row(t) for t in rows]
    embedded = [
        (t.trajectory_id, "raw", t.run_id, t.agent_type, t.symbol, t.market_regime, t.recommendation, t.success, t.reward,
         t.matured_at, HalfVector(np.asarray(t.embedding, dtype=np.float16)))
        for t in rows
    ]  # fmt: skip
    started = time.perf_counter()
    with connection.cursor() as cursor:
        cursor.executemany(main, prepared)
        cursor.executemany(halves, embedded)
    connection.commit()
    return time.perf_counter() - started


def report() -> None:
    """Print the figures."""
    ours, raw, pairs = ratios()
    low, high = min(pairs), max(pairs)
    print(f"batch writes, {BATCH} rows of 1.7 KB JSON with embedding, {ROUNDS} pairs of batches")
    print(f"  store_trajectories    {ours:8.0f} rows/s")
    print(f"  raw executemany       {raw:8.0f} rows/s")
    print(f"  ratio                 {statistics.median(pairs):8.2f}        aim 0.8 ({low:.2f} to {high:.2f})\n")


if __name__ == "__main__":
    report()
