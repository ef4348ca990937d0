"""Numbered SQL migrations and `schema.sql`, which is made of them.

``python -m data_pipeline.library.migrations > schema.sql`` writes the file; a test holds the two equal.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any, NamedTuple

from utils.errors import ComponentStartError


class Migration(NamedTuple):
    """One numbered step of the schema."""

    version: int
    name: str
    sql: str


def all_migrations() -> list[Migration]:
    """Return the migrations in order of their numbers."""
    found = []
    for entry in resources.files(__name__).iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name):
            found.append(Migration(int(match.group(1)), match.group(2), entry.read_text(encoding="utf-8")))
    return sorted(found)


def schema_sql() -> str:
    """Return the whole schema as one idempotent script."""
    head = "-- The database schema. Generated from data_pipeline/library/migrations; safe to run again.\n"
    return head + "\n".join(migration.sql for migration in all_migrations())


def migrate(connection: Any) -> list[int]:
    """Apply what is missing in one transaction, under a lock that lets only one process migrate.

    Returns
    -------
    list of int
        The versions applied now.

    Raises
    ------
    ComponentStartError
        If the database was migrated by a newer program; nothing is changed.
    """
    known = all_migrations()
    applied = []
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (0x5AFE,))
        exists = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL").fetchone()[0]
        done = {row[0] for row in connection.execute("SELECT version FROM schema_migrations")} if exists else set()
        newest = max(done, default=0)
        if newest > known[-1].version:
            raise ComponentStartError(
                f"the database has schema version {newest}, and this program knows versions up to {known[-1].version}; use the "
                "newer program that migrated it, or another database"
            )
        for migration in known:
            if migration.version not in done:
                connection.execute(migration.sql)
                applied.append(migration.version)
    return applied
