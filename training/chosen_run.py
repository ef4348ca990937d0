"""Which run a command line means, and what time it is there: what is done by hand must fit the run's own Clock.

Used by the commands that move aliases and by whatever trains outside a daemon. Reads only.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

import psycopg

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library import runs
from data_pipeline.library.runs import Run
from utils.clock import WallClock
from utils.errors import ConfigError, LibraryUnavailable
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


class RunClock:
    """The Clock of the run that a library reads and writes, seen from outside the daemon that may be moving it.

    Parameters
    ----------
    library : ExperienceLibraryPostgres
        Its `run_id` is the run.

    Raises
    ------
    LibraryUnavailable
        If the database cannot be asked for the first instant; later the last one holds while it is away.
    """

    def __init__(self, library: ExperienceLibraryPostgres) -> None:
        self._library = library
        self._last = self._read()

    def now(self) -> datetime:
        """Return the present of a live run, or the instant that any other has reached."""
        with contextlib.suppress(LibraryUnavailable):
            self._last = self._read()
        return self._last

    def _read(self) -> datetime:
        with self._library.connection() as connection, connection.cursor() as cursor:
            run = runs.get(cursor, self._library.run_id)
            if run is None:
                raise ConfigError(
                    f"run: there is no run {self._library.run_id!r} in this database; name one that is there"
                )
            return present(cursor, run)


def enter(library: ExperienceLibraryPostgres, named: str | None = None) -> RunClock:
    """Have a library read and write the run that is meant, see `choose`, and return that run's Clock."""
    with library.connection() as connection, connection.cursor() as cursor:
        library.run_id = choose(cursor, named).run_id
    return RunClock(library)
