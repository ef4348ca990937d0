"""Lineage: which experiences a dataset holds, so that none of them is removed while the dataset is known.

Written by whoever registers a dataset, in the same transaction, and read by retention. Datasets that were registered
before their items were recorded get them from their manifest; this never guesses what a dataset holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from utils.errors import LibraryConflict
from utils.logs import logger


def record(cursor: psycopg.Cursor[Any], dataset_id: str, trajectory_ids: Sequence[str]) -> None:
    """Record the items of a registered dataset inside the caller's transaction; a complete record is left alone.

    The record is complete if there are as many identities as the dataset has rows. Until then the dataset protects all
    that it may hold.

    Raises
    ------
    LibraryConflict
        If the library no longer has one of the experiences: retention came between the choice and the registration.
    """
    cursor.execute("SELECT rows, items_complete FROM datasets WHERE dataset_id = %s FOR UPDATE", (dataset_id,))
    stored = cursor.fetchone()
    if stored is None or stored[1]:
        return
    try:
        cursor.execute(
            "INSERT INTO dataset_items (dataset_id, trajectory_id) SELECT %s, unnest(%s::text[]) ON CONFLICT DO NOTHING",
            (dataset_id, list(trajectory_ids)),
        )
    except psycopg.errors.ForeignKeyViolation:
        raise LibraryConflict(
            f"dataset {dataset_id[:12]} holds experiences that the library no longer has; choose its rows anew"
        ) from None
    if len(trajectory_ids) == stored[0]:
        _complete(cursor, dataset_id)


def backfill(cursor: psycopg.Cursor[Any]) -> int:
    """Record the items of datasets whose record is incomplete from their manifests; return how many were completed.

    A manifest that is not there, not readable, or not this dataset's leaves the record as it is. Experiences that the
    library no longer has are left out: nothing can protect them any more.
    """
    cursor.execute(
        "SELECT dataset_id, path, rows FROM datasets WHERE NOT items_complete ORDER BY dataset_id FOR UPDATE"
    )
    completed = 0
    for dataset_id, path, rows in cursor.fetchall():
        ids = _ids_of_manifest(Path(path).with_suffix(".json"), dataset_id, rows)
        if ids is None:
            continue
        cursor.execute(
            "INSERT INTO dataset_items (dataset_id, trajectory_id) SELECT %s, trajectory_id FROM trajectories "
            "WHERE trajectory_id = ANY(%s) FOR KEY SHARE ON CONFLICT DO NOTHING",
            (dataset_id, ids),
        )
        _complete(cursor, dataset_id)
        completed += 1
    return completed


def _complete(cursor: psycopg.Cursor[Any], dataset_id: str) -> None:
    cursor.execute("UPDATE datasets SET items_complete = true WHERE dataset_id = %s", (dataset_id,))


def _ids_of_manifest(path: Path, dataset_id: str, rows: int) -> list[str] | None:
    """Return the identities that a manifest lists, None unless it is this dataset's and names one for each row."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        logger.debug("dataset %s has no readable manifest: %s", dataset_id[:12], error)
        return None
    if not isinstance(manifest, dict) or manifest.get("dataset_id") != dataset_id:
        return None
    ids = manifest.get("ids")
    if not isinstance(ids, list) or len(ids) != rows or not all(isinstance(item, str) for item in ids):
        return None
    return ids
