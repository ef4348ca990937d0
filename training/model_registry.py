"""The registry of trained models: immutable versions, and the aliases champion, challenger and previous between them.

A version's row carries its lineage and the gate's verdict with all numbers. Moving an alias is one transaction with its
event. ``python -m training.model_registry`` is the command line of `training.registry_commands`.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psycopg

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.trajectories import json_value


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One adapter: where it lies, what its bytes hash to, what it was made from, and what the gate said of it.

    `state` is trained, rejected, shadow, champion or retired; `base_revision` the SHA-256 of the base model's content,
    `base_dir` the folder that holds it.
    """

    version: str
    agent_type: str
    training_run_id: uuid.UUID
    path: Path
    sha256: str
    base_model: str
    base_revision: str
    base_dir: Path
    gate: dict[str, Any] | None
    state: str


Alias = Literal["champion", "challenger", "previous"]


@dataclass(frozen=True, slots=True)
class AliasEvent:
    """One move of an alias; None stands for no version, where the configured policy serves. `as_of` is of the Clock."""

    agent_type: str
    alias: Alias
    old_version: str | None
    new_version: str | None
    reason: str
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Held:
    """What an alias points to, since when (of the Clock), and why."""

    model: ModelVersion
    since: datetime
    reason: str


Holders = dict[Alias, Held]
"""The aliases of an agent that point to a version."""

_COLUMNS = "version, agent_type, training_run_id, path, sha256, base_model, base_revision, base_dir, gate, state"


def version_name(agent_type: str, sha256: str) -> str:
    """Return the immutable name of an adapter: the agent and 12 digits of its hash."""
    return f"{agent_type}@{sha256[:12]}"


class ModelRegistry:
    """Versions and aliases of one run.

    Parameters
    ----------
    library : ExperienceLibraryPostgres
        Whose database holds the registry, and whose run the aliases belong to.
    """

    def __init__(self, library: ExperienceLibraryPostgres) -> None:
        self._library = library

    def register(self, cursor: psycopg.Cursor[Any], model: ModelVersion) -> None:
        """Write a version inside the caller's transaction.

        The same adapter trained again updates its place, and its verdict unless it is champion or challenger: what serves or is on trial is
        measured by the verdict that brought it there, and an adapter compared with itself is never better.
        """
        held = (
            "EXISTS (SELECT 1 FROM model_aliases a WHERE a.version = model_versions.version AND a.alias <> 'previous')"
        )
        cursor.execute(
            f"INSERT INTO model_versions ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) "
            f"ON CONFLICT (version) DO UPDATE SET gate = CASE WHEN {held} THEN model_versions.gate ELSE excluded.gate END, "
            f"state = CASE WHEN {held} THEN model_versions.state ELSE excluded.state END, path = excluded.path, "
            "base_dir = excluded.base_dir",
            (
                model.version, model.agent_type, model.training_run_id, str(model.path), model.sha256, model.base_model,
                model.base_revision, str(model.base_dir), json_value(model.gate), model.state,
            ),
        )  # fmt: skip

    def lock(self, cursor: psycopg.Cursor[Any], agent_type: str) -> None:
        """Let nobody else move an agent's aliases until the caller's transaction ends; before any row is locked.

        A lock of rows would not do: where an alias points nowhere there is none.
        """
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"aliases {self._library.run_id} {agent_type}",)
        )

    def challenge(self, cursor: psycopg.Cursor[Any], model: ModelVersion, as_of: datetime, reason: str) -> None:
        """Let a version that the gate has passed prove itself beside what serves, inside the caller's transaction."""
        self.lock(cursor, model.agent_type)
        self._move(cursor, model.agent_type, "challenger", model.version, as_of, reason)
        self._set_state(cursor, model.version, "shadow")

    def promote(self, cursor: psycopg.Cursor[Any], model: ModelVersion, as_of: datetime, reason: str) -> None:
        """Make a version champion and the former champion previous, inside the caller's transaction."""
        agent_type = model.agent_type
        self.lock(cursor, agent_type)
        former = self.held(cursor, agent_type, "champion")
        if self.held(cursor, agent_type, "challenger") == model.version:
            self._move(cursor, agent_type, "challenger", None, as_of, "it is champion now")
        if former == model.version:
            return
        if former is not None:
            self._set_state(cursor, former, "retired")
        self._move(cursor, agent_type, "previous", former, as_of, f"replaced by {model.version}")
        self._move(cursor, agent_type, "champion", model.version, as_of, reason)
        self._set_state(cursor, model.version, "champion")

    def turn_down(self, cursor: psycopg.Cursor[Any], model: ModelVersion, as_of: datetime, reason: str) -> None:
        """End a challenger's trial without promotion, inside the caller's transaction."""
        self.lock(cursor, model.agent_type)
        self._move(cursor, model.agent_type, "challenger", None, as_of, reason)
        self._set_state(cursor, model.version, "rejected")

    def withdraw(
        self, cursor: psycopg.Cursor[Any], agent_type: str, as_of: datetime, reason: str, *, to_previous: bool = True
    ) -> ModelVersion | None:
        """Take the champion out of service, inside the caller's transaction.

        Parameters
        ----------
        to_previous : bool
            The previous version serves again where there is one; otherwise, or without one, the rules do.

        Returns
        -------
        ModelVersion or None
            What serves from now on; None is the rules.
        """
        self.lock(cursor, agent_type)
        fallen = self.held(cursor, agent_type, "champion")
        if fallen is None:
            return None
        heir = self.held(cursor, agent_type, "previous") if to_previous else None
        self._move(cursor, agent_type, "previous", None, as_of, f"{fallen} is withdrawn")
        self._move(cursor, agent_type, "champion", heir, as_of, reason)
        self._set_state(cursor, fallen, "retired")
        if heir is None:
            return None
        self._set_state(cursor, heir, "champion")
        return self.get(cursor, heir)

    def holder(self, agent_type: str, alias: Alias) -> ModelVersion | None:
        """Return the version that holds an alias; without a champion the agent's configured policy serves."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            version = self.held(cursor, agent_type, alias)
            return self.get(cursor, version) if version else None

    def holders(self, cursor: psycopg.Cursor[Any], agent_type: str | None = None) -> dict[str, Holders]:
        """Return what the aliases of each agent point to.

        Parameters
        ----------
        agent_type : str, optional
            Of this agent only.
        """
        columns = ", ".join(f"v.{name}" for name in _COLUMNS.split(", "))
        cursor.execute(
            "SELECT a.agent_type, a.alias, coalesce((SELECT e.as_of FROM alias_events e WHERE e.run_id = a.run_id AND "
            "e.agent_type = a.agent_type AND e.alias = a.alias AND e.new_version = a.version ORDER BY e.id DESC LIMIT 1), "
            f"a.created_at), coalesce(a.reason, ''), {columns} FROM model_aliases a JOIN model_versions v USING (version) "
            "WHERE a.run_id = %s AND (%s::text IS NULL OR a.agent_type = %s) ORDER BY a.agent_type, a.alias",
            (self._library.run_id, agent_type, agent_type),
        )
        found: dict[str, Holders] = {}
        for agent, alias, since, reason, *row in cursor:
            found.setdefault(agent, {})[alias] = Held(_from_row(tuple(row)), since, reason)
        return found

    def held_by(self, agent_type: str) -> Holders:
        """Return what the aliases of one agent point to."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            return self.holders(cursor, agent_type).get(agent_type, {})

    def events(self, agent_type: str | None = None) -> list[AliasEvent]:
        """Return how the run's aliases moved, oldest first."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT agent_type, alias, old_version, new_version, reason, as_of FROM alias_events "
                "WHERE run_id = %s AND (%s::text IS NULL OR agent_type = %s) ORDER BY id",
                (self._library.run_id, agent_type, agent_type),
            )
            return [AliasEvent(*row) for row in cursor]

    def get(self, cursor: psycopg.Cursor[Any], version: str) -> ModelVersion | None:
        """Return a version by its name."""
        cursor.execute(f"SELECT {_COLUMNS} FROM model_versions WHERE version = %s", (version,))
        row = cursor.fetchone()
        return _from_row(row) if row else None

    def version_at(self, cursor: psycopg.Cursor[Any], path: Path | None) -> str | None:
        """Return the name of the version whose adapter lies in a folder, None where there is none."""
        cursor.execute(
            "SELECT version FROM model_versions WHERE path = %s ORDER BY created_at DESC LIMIT 1", (str(path),)
        )
        row = cursor.fetchone()
        return row[0] if row else None

    def newest_of_kind(
        self,
        agent_type: str,
        kind: str,
        trained_until: datetime | None = None,
        fits: Callable[[ModelVersion], bool] = lambda version: True,
    ) -> ModelVersion | None:
        """Return the version that the run trained last by a kind of training, whatever the gate said; None without any.

        With `trained_until` only those count that have seen no outcome that matured later, and in any case only those that fit.
        """
        columns = ", ".join(f"v.{name}" for name in _COLUMNS.split(", "))
        with self._library.connection() as connection, connection.cursor() as cursor:
            cursor.execute(
                # an earlier run may have made the same bytes first: the version's row then names a training of that run
                f"SELECT {columns} FROM training_runs r JOIN model_versions v ON v.version = r.metrics->>'version' "
                "WHERE r.run_id = %s AND v.agent_type = %s AND r.kind = %s AND (%s::timestamptz IS NULL OR r.data_cutoff <= %s) "
                "ORDER BY r.started_at DESC, v.version",
                (self._library.run_id, agent_type, kind, trained_until, trained_until),
            )
            found = [_from_row(row) for row in cursor]
        return next(filter(fits, found), None)

    def versions(self) -> list[ModelVersion]:
        """Return every version, newest first."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT {_COLUMNS} FROM model_versions ORDER BY created_at DESC, version")
            return [_from_row(row) for row in cursor]

    def held(self, cursor: psycopg.Cursor[Any], agent_type: str, alias: Alias) -> str | None:
        """Return the name of the version that holds an alias, inside the caller's transaction."""
        cursor.execute(
            "SELECT version FROM model_aliases WHERE run_id = %s AND agent_type = %s AND alias = %s",
            (self._library.run_id, agent_type, alias),
        )
        row = cursor.fetchone()
        return row[0] if row else None

    def _move(
        self,
        cursor: psycopg.Cursor[Any],
        agent_type: str,
        alias: Alias,
        version: str | None,
        as_of: datetime,
        reason: str,
    ) -> None:
        """Let an alias point elsewhere, or nowhere, and write the event; nothing where it does already."""
        run_id = self._library.run_id
        before = self.held(cursor, agent_type, alias)
        if before == version:
            return
        if version is None:
            cursor.execute(
                "DELETE FROM model_aliases WHERE run_id = %s AND agent_type = %s AND alias = %s",
                (run_id, agent_type, alias),
            )
        else:
            cursor.execute(
                "INSERT INTO model_aliases (run_id, agent_type, alias, version, reason) VALUES (%s, %s, %s, %s, %s) "
                "ON CONFLICT (run_id, agent_type, alias) DO UPDATE SET version = excluded.version, reason = excluded.reason",
                (run_id, agent_type, alias, version, reason),
            )
        cursor.execute(
            "INSERT INTO alias_events (run_id, agent_type, alias, old_version, new_version, reason, as_of) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (run_id, agent_type, alias, before, version, reason, as_of),
        )

    @staticmethod
    def _set_state(cursor: psycopg.Cursor[Any], version: str, state: str) -> None:
        cursor.execute("UPDATE model_versions SET state = %s WHERE version = %s", (state, version))


def _from_row(row: tuple[Any, ...]) -> ModelVersion:
    version, agent_type, training_run_id, path, sha256, base_model, base_revision, base_dir, gate, state = row
    return ModelVersion(
        version, agent_type, training_run_id, Path(path), sha256, base_model, base_revision, Path(base_dir), gate, state
    )


if __name__ == "__main__":
    from training.registry_commands import main

    sys.exit(main())
