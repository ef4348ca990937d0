"""Trajectories as rows, ready to be written: checked, hashed and embedded once, then written singly or in bulk.

Called by the library's operations; holds what one trajectory and a batch of them have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import psycopg

from data_pipeline.library import similarity, trajectories
from data_pipeline.library.trajectories import Trajectory
from utils.errors import LibraryConflict

Row = tuple[Any, ...]
_HASH = -1
"""The content hash stands last in a row, the identity first."""


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """Rows of `trajectories`, their places in the batch, and rows of `trajectory_embeddings` by identity; none twice."""

    rows: tuple[Row, ...]
    places: tuple[int, ...]
    embeddings: dict[str, Row]


def prepare(batch: Sequence[Trajectory], embedding_model: str) -> PreparedRows:
    """Check trajectories and return their rows.

    An abstention and an embedding without direction (all zero, in half precision) are not indexed.

    Raises
    ------
    ValueError
        Naming the place in the batch, where there are several, and the field.
    LibraryConflict
        If two of them share an identity but not the content.
    """
    rows: dict[str, Row] = {}
    places = []
    for place, t in enumerate(batch):
        try:
            trajectories.validate(t)
            row = trajectories.as_row(t)
        except ValueError as error:
            if len(batch) == 1:
                raise
            raise ValueError(f"trajectories[{place}]: {error}") from None
        twin = rows.setdefault(t.trajectory_id, row)
        if twin is row:
            places.append(place)
        elif twin[_HASH] != row[_HASH]:
            raise LibraryConflict(
                f"trajectories[{place}]: trajectory_id {t.trajectory_id} stands for other content above"
            )
    return PreparedRows(
        tuple(rows.values()), tuple(places), {row[0]: row for row in _embeddings(batch, embedding_model)}
    )


def _embeddings(batch: Sequence[Trajectory], model: str) -> list[Row]:
    try:
        return similarity.embedding_rows(batch, model)
    except ValueError:
        if len(batch) == 1:
            raise
        for place, t in enumerate(batch):  # all at once they are quick to check; only one at a time names the culprit
            try:
                similarity.embedding_rows([t], model)
            except ValueError as error:
                raise ValueError(f"trajectories[{place}]: {error}") from None
        raise


def joined(parts: Iterable[PreparedRows]) -> PreparedRows:
    """Return several batches as one; LibraryConflict if two of them have other content under one identity."""
    rows: dict[str, Row] = {}
    embeddings: dict[str, Row] = {}
    for part in parts:
        for row in part.rows:
            if rows.setdefault(row[0], row)[_HASH] != row[_HASH]:
                raise LibraryConflict(f"trajectory_id {row[0]} stands for two contents")
        for identity, embedding in part.embeddings.items():
            embeddings.setdefault(identity, embedding)
    return PreparedRows(tuple(rows.values()), tuple(range(len(rows))), embeddings)


def store(cursor: psycopg.Cursor[Any], prepared: PreparedRows) -> int:
    """Write the rows that are not stored yet; return how many.

    Raises
    ------
    LibraryConflict
        If other content is stored under an identity; nothing is written then.
    """
    if len(prepared.rows) == 1:
        return _store_singly(cursor, prepared)
    cursor.execute(
        "SELECT trajectory_id, content_hash FROM trajectories WHERE trajectory_id = ANY(%s)",
        ([row[0] for row in prepared.rows],),
    )
    stored = dict(cursor.fetchall())
    for place, row in zip(prepared.places, prepared.rows, strict=True):
        if stored.get(row[0], row[_HASH]) != row[_HASH]:
            raise LibraryConflict(
                f"trajectories[{place}]: trajectory_id {row[0]} is stored with other content; use a new id"
            )
    # in one order, so that two writers of the same rows wait for each other and do not deadlock
    fresh = sorted((row for row in prepared.rows if row[0] not in stored), key=itemgetter(0))
    if not fresh:
        return 0
    try:
        with cursor.connection.transaction():  # a savepoint: somebody else may write one of them at this moment
            trajectories.copy_rows(cursor, fresh)
            similarity.copy_rows(cursor, [e for row in fresh if (e := prepared.embeddings.get(row[0])) is not None])
    except psycopg.errors.UniqueViolation:
        return _store_singly(cursor, prepared)
    return len(fresh)


def _store_singly(cursor: psycopg.Cursor[Any], prepared: PreparedRows) -> int:
    written = 0
    for row in sorted(prepared.rows, key=itemgetter(0)):
        if trajectories.insert_row(cursor, row):
            written += 1
            if (embedding := prepared.embeddings.get(row[0])) is not None:
                similarity.insert_row(cursor, embedding)
    return written
