"""Model cards: for every version one page that says where it comes from, how it was judged and what became of it.

Written beside a version's adapter, whose folder is sealed, when a verdict falls and when its aliases move; `show` of the
registry's command line renders one anew. Everything on a card stands in the database: a lost card costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training.model_registry import AliasEvent, ModelRegistry, ModelVersion
from utils.artifacts import MANIFEST, write_atomically
from utils.logs import logger

CARD_MD = "card.md"
CARD_HTML = "card.html"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the database knows of a version.

    Attributes
    ----------
    kind : str
        Of training: sft or rl.
    config, metrics, trigger : dict
        Of the training run, as recorded.
    dataset_rows : int or None
        Examples of `dataset_id`; None without a data set.
    parent : str or None
        The version that training began with; None for the base model itself.
    events : tuple of (run id, AliasEvent)
        Moves of aliases to or from this version in any run, oldest first.
    has_bytes : bool
        Whether the adapter lies where the registry says.
    """

    model: ModelVersion
    kind: str
    run_id: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    trigger: dict[str, Any]
    data_cutoff: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    dataset_id: str | None
    dataset_rows: int | None
    dataset_from: datetime | None
    dataset_to: datetime | None
    parent: str | None
    events: tuple[tuple[str, AliasEvent], ...]
    has_bytes: bool


def read(cursor: psycopg.Cursor[Any], registry: ModelRegistry, version: str) -> ModelCard | None:
    """Return the card of a version; None where there is no such version."""
    model = registry.get(cursor, version)
    if model is None:
        return None
    cursor.execute(
        "SELECT r.kind, r.run_id, coalesce(r.config, '{}'), coalesce(r.metrics, '{}'), coalesce(r.trigger, '{}'), r.data_cutoff, "
        "r.started_at, r.ended_at, r.dataset_id, d.rows, d.from_at, d.to_at FROM training_runs r "
        "LEFT JOIN datasets d USING (dataset_id) WHERE r.training_run_id = %s",
        (model.training_run_id,),
    )
    row = cursor.fetchone()
    if row is None:
        raise LookupError(f"the training run {model.training_run_id} of {version} cannot be read")
    kind, run_id, config, metrics, trigger, cutoff, started, ended, dataset_id, rows, from_at, to_at = row
    parent = registry.get(cursor, config["parent_version"]) if config.get("parent_version") else None
    # a child leaves out an adapter that lies on another base model than the one it trains
    parent = parent if parent is not None and parent.base_revision == model.base_revision else None
    cursor.execute(
        "SELECT run_id, agent_type, alias, old_version, new_version, reason, as_of FROM alias_events "
        "WHERE old_version = %(version)s OR new_version = %(version)s ORDER BY id",
        {"version": version},
    )
    events = tuple((row[0].strip(), AliasEvent(*row[1:])) for row in cursor)
    return ModelCard(
        model, kind, run_id.strip(), config, metrics, trigger, cutoff, started, ended, dataset_id, rows, from_at, to_at,
        parent.version if parent else None, events, has_bytes(model),
    )  # fmt: skip


def has_bytes(model: ModelVersion) -> bool:
    """Return whether a version's adapter is there, its bytes unchecked."""
    return (model.path / MANIFEST).is_file()


def write(library: ExperienceLibraryPostgres, version: str) -> None:
    """Write the card of a version as `CARD_MD` and `CARD_HTML` beside its adapter, whole or not at all.

    A disk that takes none costs a warning: nothing that was decided hangs on it.
    """
    from training.model_card_page import render_html, render_markdown

    with library.connection() as connection, connection.cursor() as cursor:
        card = read(cursor, ModelRegistry(library), version)
    if card is None:
        return
    folder = card.model.path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CARD_MD, render_markdown(card))
        write_atomically(folder / CARD_HTML, render_html(card))
    except OSError as error:
        logger.warning("the card of %s is not written: %s", version, error)


class CardKeeper:
    """Keeps the cards of the library's run in step with its aliases, whoever moves them.

    Parameters
    ----------
    library : ExperienceLibraryPostgres
    """

    def __init__(self, library: ExperienceLibraryPostgres) -> None:
        self._library = library
        self._seen = 0

    def refresh(self) -> None:
        """Write the cards of versions whose aliases have moved since the last call, and those that are missing."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT id, old_version, new_version FROM alias_events WHERE run_id = %s AND id > %s ORDER BY id",
                (self._library.run_id, self._seen),
            )
            moves = cursor.fetchall()
            cursor.execute(
                "SELECT v.version, v.path FROM model_versions v JOIN training_runs r USING (training_run_id) "
                "WHERE r.run_id = %s AND r.state = 'completed'",
                (self._library.run_id,),
            )
            missing = [version for version, path in cursor if not (Path(path).parent / CARD_MD).is_file()]
        moved = [version for move in moves for version in move[1:] if version is not None]
        for version in dict.fromkeys([*moved, *missing]):
            write(self._library, version)
        self._seen = moves[-1][0] if moves else self._seen
