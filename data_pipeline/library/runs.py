"""Runs: every start of the daemon belongs to one; an unfinished run is resumed, a finished one reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import psycopg

from data_pipeline.library.trajectories import json_value
from utils.errors import ConfigError
from utils.ids import ADHOC_RUN

Mode = Literal["live", "replay", "simulated"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run's identity and state."""

    run_id: str
    mode: Mode
    config: dict[str, Any]
    data_hashes: dict[str, Any]
    started_at: datetime
    finished_at: datetime | None


def open_run(
    cursor: psycopg.Cursor[Any], run_id: str, mode: Mode, config: dict[str, Any], data_hashes: dict[str, Any]
) -> Run:
    """Return the run of this identity, created if it is new."""
    cursor.execute(
        "INSERT INTO runs (run_id, mode, config, data_hashes) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (run_id, mode, json_value(config), json_value(data_hashes)),
    )
    run = get(cursor, run_id)
    if run is None:
        raise LookupError(f"run {run_id} has just been stored and cannot be read back")
    return run


def get(cursor: psycopg.Cursor[Any], run_id: str) -> Run | None:
    """Return a run, None if there is none."""
    cursor.execute(
        "SELECT run_id, mode, config, data_hashes, started_at, finished_at FROM runs WHERE run_id = %s", (run_id,)
    )
    row = cursor.fetchone()
    return Run(row[0].strip(), *row[1:]) if row else None


def newest(cursor: psycopg.Cursor[Any]) -> Run | None:
    """Return the daemon's run that was started last, None before the first."""
    cursor.execute("SELECT run_id FROM runs WHERE run_id <> %s ORDER BY created_at DESC, run_id LIMIT 1", (ADHOC_RUN,))
    row = cursor.fetchone()
    return get(cursor, row[0].strip()) if row else None


def check_sources(cursor: psycopg.Cursor[Any], run_id: str, sources: Sequence[str]) -> None:
    """Make sure that a run may read the experiences of others: those of another mode are of another world.

    Raises
    ------
    ConfigError
        If a run is not there, or a source is of another mode than the run.
    """
    modes: dict[str, Mode] = {}
    for name in (run_id, *sources):
        run = get(cursor, name)
        if run is None:
            raise ConfigError(f"experience_sources: there is no run {name!r} in this library; name runs that are there")
        modes[name] = run.mode
    for name in sources:
        if modes[name] != modes[run_id]:
            raise ConfigError(
                f"experience_sources: run {name} is {modes[name]}, and {run_id} that would read it {modes[run_id]}; "
                "name runs of the same mode"
            )


def finish(cursor: psycopg.Cursor[Any], run_id: str) -> None:
    """Mark a run as finished."""
    cursor.execute("UPDATE runs SET finished_at = now() WHERE run_id = %s AND finished_at IS NULL", (run_id,))
