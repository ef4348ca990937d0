"""Which run a command line means, and what time it is there: what is done by hand must fit the run's own Clock.

Used by the commands that move aliases and by those that train. Reads only.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg

from data_pipeline.library import runs
from data_pipeline.library.runs import Run
from utils.clock import WallClock
from utils.errors import ConfigError
from utils.ids import ADHOC_RUN


def choose(cursor: psycopg.Cursor[Any], named: str | None) -> Run:
    """Return the run that is meant: the named one, else the newest live one that is not finished, else the newest."""
    if named is not None:
        cursor.execute("SELECT run_id FROM runs WHERE starts_with(run_id, %s) ORDER BY run_id", (named,))
        found = [row[0].strip() for row in cursor]
        if len(found) != 1 and named not in found:
            what = f"runs {', '.join(found)}; give more digits" if found else "no such run"
            raise ConfigError(f"run: {named!r} names {what}")
        run_id = named if named in found else found[0]
    else:
        cursor.execute(
            "SELECT run_id FROM runs WHERE mode = 'live' AND finished_at IS NULL AND run_id <> %s "
            "ORDER BY created_at DESC, run_id LIMIT 1",
            (ADHOC_RUN,),
        )
        row = cursor.fetchone()
        newest = runs.newest(cursor)
        run_id = row[0].strip() if row else newest.run_id if newest else ADHOC_RUN
    run = runs.get(cursor, run_id)
    if run is None:
        raise ConfigError("run: this database holds no run yet; start the daemon once")
    return run


def present(cursor: psycopg.Cursor[Any], run: Run) -> datetime:
    """Return the instant of a run's Clock: now for a live one, else the last one that it has reached."""
    now = WallClock().now()
    if run.mode == "live":
        return now
    cursor.execute(
        "SELECT greatest((SELECT max(as_of) FROM portfolio_events WHERE run_id = %(run)s), (SELECT max(started_at) FROM "
        "training_runs WHERE run_id = %(run)s), (SELECT max(as_of) FROM alias_events WHERE run_id = %(run)s))",
        {"run": run.run_id},
    )
    row = cursor.fetchone()
    return row[0] if row and row[0] else now
