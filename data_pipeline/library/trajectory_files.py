"""Files of trajectories, JSONL and Parquet: how a trajectory is written as a record, and read back with its place.

Used by `transfer`. Streams in both directions and never holds more than a batch; a file is written aside and renamed, so
that half of one is never seen. Knows nothing of the database.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from data_pipeline.library.trajectories import EMBEDDING_DIMENSION, EMBEDDING_MODEL_KEY, JSON_COLUMNS
from utils.artifacts import written_aside
from utils.errors import ConfigError
from utils.hashing import canonical_json

Record = dict[str, Any]
"""`Trajectory.to_dict`, and beside an embedding the name of its model."""

Write = Callable[[Sequence[Record]], None]

_TEXTS = (
    "trajectory_id", "symbol", "agent_type", "reasoning", "run_id", "decision_id", "recommendation", "market_regime",
    "policy", "evidence_hash", "horizon", "as_of", "matured_at", EMBEDDING_MODEL_KEY,
)  # fmt: skip
_NUMBERS = (
    "timestamp", "confidence", "position_size", "stop_loss", "take_profit", "actual_return", "reward", "benchmark_return",
    "max_drawdown", "costs",
)  # fmt: skip
_BOOLEANS = ("abstained", "shadow", "success")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Write]:
    """Lend a function that appends records to a new file; the file appears when everything is written.

    Raises
    ------
    ValueError
        If the name ends neither in .jsonl nor in .parquet, or the folder is not there.
    """
    kind = _kind(path)
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    with written_aside(path) as aside:
        if kind == "jsonl":
            with aside.open("wb") as handle:
                yield lambda records: handle.writelines(_json(r).encode() + b"\n" for r in records)
            return
        parquet, schema = _parquet(), _schema()
        with parquet.ParquetWriter(aside, schema, compression="zstd") as writer:
            yield lambda records: writer.write_table(_table(records, schema))


def reading(path: Path, batch: int) -> Iterator[tuple[int, Record]]:
    """Yield the records of a file with their line, or row, from 1.

    Raises
    ------
    ValueError
        If the name or a line is malformed, with the place.
    FileNotFoundError
        If there is no such file.
    """
    if _kind(path) == "jsonl":
        with path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield number, _parsed(path, number, line)
        return
    parquet = _parquet()
    import pyarrow

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for part in file.iter_batches(batch_size=batch):
                for row in part.to_pylist():
                    number += 1
                    yield number, _from_columns(path, number, row)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: is not a Parquet file: {error}") from None


def small_integers(value: Any) -> Any:
    """Return a JSON value with integers beyond 64 bits as the floats they were: the database gives 1e300 back as an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**64 else float(value)
    if isinstance(value, dict):
        return {key: small_integers(item) for key, item in value.items()}
    return [small_integers(item) for item in value] if isinstance(value, list) else value


def _json(value: Any) -> str:
    try:
        return canonical_json(value)
    except TypeError:
        return canonical_json(small_integers(value))


def _kind(path: Path) -> str:
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("jsonl", "parquet"):
        raise ValueError(f"{path}: the name must end in .jsonl or .parquet")
    return kind


def _parsed(path: Path, number: int, line: bytes) -> Record:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path}:{number}: is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path}:{number}: must hold an object, not {type(record).__name__}")
    return record


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "Parquet needs the extra of that name; pip install 'stock-agents[parquet]', or use .jsonl"
        ) from None
    return pyarrow.parquet


def _schema() -> Any:
    """Return the columns of the Parquet form; what is JSON in the database is canonical JSON text here."""
    import pyarrow as pa

    return pa.schema(
        [
            *((name, pa.string()) for name in (*_TEXTS, *sorted(JSON_COLUMNS))),
            *((name, pa.float64()) for name in _NUMBERS),
            *((name, pa.bool_()) for name in _BOOLEANS),
            ("similar_ids", pa.list_(pa.string())),
            ("embedding", pa.list_(pa.float32(), EMBEDDING_DIMENSION)),
        ]
    )


def _table(records: Sequence[Record], schema: Any) -> Any:
    import pyarrow as pa

    def value(record: Record, name: str) -> Any:
        found = record.get(name)
        return _json(found) if name in JSON_COLUMNS and found is not None else found

    columns = [pa.array([value(record, name) for record in records], schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


def _from_columns(path: Path, number: int, row: Record) -> Record:
    record = {name: value for name, value in row.items() if name != EMBEDDING_MODEL_KEY or value is not None}
    for name in JSON_COLUMNS & record.keys():
        if record[name] is not None:
            try:
                record[name] = orjson.loads(record[name])
            except (orjson.JSONDecodeError, TypeError) as error:
                raise ValueError(f"{path}:{number}: {name} is not JSON: {error}") from None
    return record
