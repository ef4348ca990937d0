"""Export and import of trajectories between libraries: exact on the way there and back, and in bounded memory.

Called by the facade's `export_trajectories` and `import_trajectories`. An import never overwrites: what is stored with
other content is a conflict that names its line; outcomes are added where there were none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from data_pipeline.embeddings import Embedder
from data_pipeline.library import outcomes, similarity, trajectories
from data_pipeline.library.outcomes import OutcomeUpdate
from data_pipeline.library.pool import Connection
from data_pipeline.library.trajectories import EMBEDDING_MODEL_KEY, JSON_COLUMNS, OUTCOME_COLUMNS, Trajectory
from data_pipeline.library.trajectory_files import Record, reading, small_integers, writing
from utils.errors import LibraryConflict

BATCH = 500
"""Trajectories in memory and in one transaction: some MB."""

_ORDER = 't.as_of, t.symbol COLLATE "C", t.agent_type COLLATE "C", t.trajectory_id COLLATE "C"'
Lend = Callable[[], Any]
"""Lends a connection that commits at its end: `Database.connection`."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which trajectories are meant; None: all.

    With `as_of`, only those whose outcome had matured before; without, also pending ones and abstentions.
    """

    agent_type: str | None = None
    symbol: str | None = None
    market_regime: str | None = None
    recommendation: str | None = None
    success: bool | None = None
    min_reward: float | None = None
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True)
class ImportCounts:
    """What an import found: trajectories that were new, that were stored already, and among the latter those whose outcome was."""

    new: int = 0
    same: int = 0
    matured: int = 0


@dataclass(frozen=True, slots=True)
class _Item:
    """One trajectory of a file: its place, its row, and the model of its embedding."""

    place: str
    trajectory: Trajectory
    row: tuple[Any, ...]
    model: str


def export(connection: Connection, path: Path, run_ids: Sequence[str], model: str, selection: Selection) -> int:
    """Write trajectories with their embeddings of a model, in the order of time; return how many."""
    where, parameters = _condition(run_ids, selection)
    total = 0
    with writing(path) as write, connection.cursor("export_trajectories") as cursor:
        cursor.execute(
            f"SELECT {trajectories.SELECTED}, e.embedding FROM trajectories t LEFT JOIN trajectory_embeddings e "
            f"ON e.trajectory_id = t.trajectory_id AND e.embedding_model = %s WHERE {where} ORDER BY {_ORDER}",
            [model, *parameters],
        )
        while rows := cursor.fetchmany(BATCH):
            write([_record(row, model) for row in rows])
            total += len(rows)
    return total


def import_file(lend: Lend, path: Path, embedder: Embedder, run_id: str | None) -> ImportCounts:
    """Store the trajectories of a file, a batch a transaction; see the facade for the errors."""
    counts = ImportCounts()
    records = reading(path, BATCH)
    last = 0
    while True:
        first = last + 1
        try:
            items, last = _next_items(records, path, embedder.model, run_id, last)
            if not items:
                return counts
            with lend() as connection, connection.cursor() as cursor:
                counts = _added(counts, _store(cursor, items, embedder))
        except (ValueError, LibraryConflict, psycopg.DataError) as error:
            kind = LibraryConflict if isinstance(error, LibraryConflict) else ValueError
            done = f"the {counts.new + counts.same} before are stored" if counts.new + counts.same else "nothing was"
            raise kind(f"{error}; nothing from line {first} on was stored, {done}") from None


def _condition(run_ids: Sequence[str], selection: Selection) -> tuple[str, list[Any]]:
    where, parameters = ["t.run_id = ANY(%s)"], [list(run_ids)]
    tests: dict[str, Any] = {
        "t.agent_type = %s": selection.agent_type,
        "t.symbol = %s": selection.symbol,
        "t.market_regime = %s": selection.market_regime,
        "t.recommendation = %s": selection.recommendation,
        "t.success = %s": selection.success,
        "t.reward >= %s": selection.min_reward,
        "t.matured_at < %s": selection.as_of,
    }
    for test, value in tests.items():
        if value is not None:
            where.append(test)
            parameters.append(value)
    return " AND ".join(where), parameters


def _record(row: Sequence[Any], model: str) -> Record:
    record = trajectories.from_row(row[:-1]).to_dict()
    if row[-1] is not None:
        record["embedding"] = row[-1].to_list()
        record[EMBEDDING_MODEL_KEY] = model
    return record


def _readable(t: Trajectory) -> Trajectory:
    """Return a stored trajectory with the numbers that a file would hold."""
    return replace(t, **{name: small_integers(getattr(t, name)) for name in JSON_COLUMNS})


def _next_items(
    records: Iterator[tuple[int, Record]], path: Path, model: str, run_id: str | None, last: int
) -> tuple[list[_Item], int]:
    """Return the next batch of a file, and the line that it ends with."""
    items: list[_Item] = []
    for number, record in records:
        last = number
        items.append(_item(f"{path}:{number}", record, model, run_id))
        if len(items) == BATCH:
            break
    return items, last


def _item(place: str, record: Record, model: str, run_id: str | None) -> _Item:
    try:
        _check_kinds(record)
        trajectory = Trajectory.from_dict(record)
        if run_id is not None:
            trajectory = replace(trajectory, run_id=run_id)
        trajectories.validate(trajectory)
        if trajectory.embedding is not None:
            trajectories.check_embedding(trajectory.embedding)
        return _Item(place, trajectory, trajectories.as_row(trajectory), record.get(EMBEDDING_MODEL_KEY, model))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {error}") from None


def _check_kinds(record: Mapping[str, Any]) -> None:
    """Raise a ValueError for what a wrong kind of value would break only later, without a name."""
    kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
        **dict.fromkeys(JSON_COLUMNS, (dict, "an object")),
        **dict.fromkeys(("abstained", "shadow", "success"), (bool, "true or false")),
        **dict.fromkeys(("as_of", "matured_at"), (str, "a time in ISO 8601")),
        **dict.fromkeys(("similar_ids", "embedding"), (list, "a list")),
        EMBEDDING_MODEL_KEY: (str, "text"),
    }
    required = {"market_state", "agent_inputs", "abstained", "shadow", EMBEDDING_MODEL_KEY}
    for name, (kind, words) in kinds.items():
        value = record.get(name)
        if name in record and not isinstance(value, kind) and (value is not None or name in required):
            raise ValueError(f"{name} must be {words}, not {value!r}"[:200])


def _store(cursor: psycopg.Cursor[Any], items: Sequence[_Item], embedder: Embedder) -> ImportCounts:
    """Store a batch inside the caller's transaction."""
    _check_runs(cursor, items)
    stored = {
        t.trajectory_id: (t, digest) for t, digest in _stored(cursor, [item.trajectory.trajectory_id for item in items])
    }
    new: dict[str, _Item] = {}
    updates: dict[str, OutcomeUpdate] = {}
    for item in items:
        identity = item.trajectory.trajectory_id
        if identity in stored:
            update = _compared(item, *stored[identity])
        elif identity not in new:
            new[identity] = item
            continue
        elif new[identity].row[-1] != item.row[-1]:
            raise LibraryConflict(f"{item.place}: trajectory {identity} has other content at {new[identity].place}")
        else:
            update = _compared(item, new[identity].trajectory, new[identity].row[-1])
        if update is not None and updates.setdefault(identity, update) != update:
            raise LibraryConflict(f"{item.place}: trajectory {identity} has another outcome in a line before")
    try:
        trajectories.copy_rows(cursor, (item.row for item in new.values()))
    except psycopg.errors.UniqueViolation:
        raise LibraryConflict(
            f"{items[0].place} and after: another writer is storing the same trajectories; import again"
        ) from None
    similarity.copy_rows(cursor, _vectors(list(new.values()), embedder))
    if updates:
        outcomes.apply(cursor, list(updates.values()))
    return ImportCounts(len(new), len(items) - len(new), len(updates))


def _check_runs(cursor: psycopg.Cursor[Any], items: Sequence[_Item]) -> None:
    cursor.execute(
        "SELECT run_id FROM runs WHERE run_id = ANY(%s)", (sorted({item.trajectory.run_id for item in items}),)
    )
    known = {row[0].strip() for row in cursor}
    for item in items:
        if item.trajectory.run_id not in known:
            raise ValueError(
                f"{item.place}: run_id {item.trajectory.run_id!r} names no run of this database; "
                "give import_trajectories the run_id of one that is there, for example 'adhoc'"
            )


def _stored(cursor: psycopg.Cursor[Any], identities: Sequence[str]) -> Iterator[tuple[Trajectory, str]]:
    cursor.execute(
        f"SELECT {trajectories.SELECTED}, t.content_hash FROM trajectories t WHERE t.trajectory_id = ANY(%s)",
        (list(identities),),
    )
    for row in cursor:
        yield trajectories.from_row(row[:-1]), row[-1]


def _compared(item: _Item, stored: Trajectory, digest: str) -> OutcomeUpdate | None:
    """Return the outcome that a stored trajectory lacks, None if it lacks none.

    The database keeps fewer digits of some numbers than it was given, so that what was exported from it has another
    hash than what was stored: then what it would export now is compared.
    """
    if item.row[-1] != digest and item.row[-1] != trajectories.as_row(_readable(stored))[-1]:
        raise LibraryConflict(f"{item.place}: trajectory {stored.trajectory_id} is stored with other content")
    given, kept = ([getattr(t, name) for name in OUTCOME_COLUMNS] for t in (item.trajectory, stored))
    if given == kept or given == [None] * len(given):
        return None
    t = item.trajectory
    if any(value is not None for value in kept) or None in (t.actual_return, t.success, t.reward, t.matured_at):
        raise LibraryConflict(f"{item.place}: trajectory {t.trajectory_id} is stored with another outcome")
    return OutcomeUpdate(**{"trajectory_id": t.trajectory_id, **dict(zip(OUTCOME_COLUMNS, given, strict=True))})


def _vectors(items: Sequence[_Item], embedder: Embedder) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of embeddings: those of the file under their own model, and what can be made inline."""
    for model in dict.fromkeys(item.model for item in items):
        yield from similarity.embedding_rows([item.trajectory for item in items if item.model == model], model)
    if embedder.inline:
        without = [
            item.trajectory
            for item in items
            if not item.trajectory.abstained and (item.trajectory.embedding is None or item.model != embedder.model)
        ]
        vectors = embedder.embed_many([t.market_state for t in without])
        embedded = [replace(t, embedding=vector) for t, vector in zip(without, vectors, strict=True)]
        yield from similarity.embedding_rows(embedded, embedder.model)


def _added(a: ImportCounts, b: ImportCounts) -> ImportCounts:
    return ImportCounts(a.new + b.new, a.same + b.same, a.matured + b.matured)
