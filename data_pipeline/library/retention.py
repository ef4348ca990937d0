"""Retention: removes old and poor experiences in batches, and never one that something still needs.

Called by the library's facade for the daemon and for people. A batch is one transaction that takes an experience with
its embeddings, evaluations and findings; the portfolio log is append-only and stays. Nothing here decides when to run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from data_pipeline.library import lineage, matured_calls
from data_pipeline.library.protection import PROTECTION, history_limits
from utils.ids import ADHOC_RUN

if TYPE_CHECKING:
    from utils.setting_sections import RetentionSettings  # its libraries are the daemon's, not a notebook's

Connect = Callable[[], AbstractContextManager[psycopg.Connection[tuple[Any, ...]]]]

CHILDREN = ("trajectory_embeddings", "judge_evaluations", "error_findings")

BATCH_ROWS = 1000
"""About 0.1 s a transaction, so that a writer who meets a locked row waits no longer than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """What may go. Nothing does unless an age or a reward is given.

    There is no "keep the best share": applied day after day it would take a share of what the day before had left.

    Attributes
    ----------
    max_age_days : float, optional
        Experiences (and abstentions) decided longer ago than this many days go, more than 0.
    min_reward : float, optional
        Experiences that earned less go, once they were decided `min_reward_after_days` ago: younger losers are what
        the gate of the next training compares with, and a library of winners alone would teach that everything wins.
    min_reward_after_days : float
        At least 0.
    batch_rows : int
        Experiences of one transaction, at least 1.
    ungraded_agents : tuple of str
        Agents whose opinions no judge grades: theirs do not stay to be judged.
    """

    max_age_days: float | None = None
    min_reward: float | None = None
    min_reward_after_days: float = 180.0
    batch_rows: int = BATCH_ROWS
    ungraded_agents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_age_days is not None and not 0 < self.max_age_days < float("inf"):
            raise ValueError(f"max_age_days must be a positive number of days, not {self.max_age_days!r}")
        if self.min_reward is not None and not -float("inf") < self.min_reward < float("inf"):
            raise ValueError(f"min_reward must be finite, not {self.min_reward!r}")
        if not 0 <= self.min_reward_after_days < float("inf"):
            raise ValueError(f"min_reward_after_days must not be negative, not {self.min_reward_after_days!r}")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, not {self.batch_rows!r}")

    @classmethod
    def from_settings(cls, settings: RetentionSettings) -> RetentionPolicy:
        """Return the policy that the configuration asks for."""
        return cls(
            max_age_days=settings.max_age_days,
            min_reward=settings.min_reward,
            min_reward_after_days=settings.min_reward_after_days,
            batch_rows=settings.batch_rows,
        )


@dataclass(slots=True)
class RetentionReport:
    """What retention removed, or would remove.

    Attributes
    ----------
    removed : Counter
        Experiences by reason: age, reward, abstention. Of a dry run: what would go.
    kept : Counter
        Of a dry run only: experiences that the policy would remove, by what protects them.
    rows : int
        Of a dry run only: experiences looked at, of every age.
    children : Counter
        Rows that went with them, by table.
    finished : bool
        False if it was told to stop before the end; applied again, it goes on.
    """

    dry_run: bool = False
    removed: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    children: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    finished: bool = True


_REASON = """CASE
    WHEN t.as_of < %(expired)s::timestamptz THEN CASE WHEN t.abstained THEN 'abstention' ELSE 'age' END
    WHEN NOT t.abstained AND t.as_of < %(judged)s::timestamptz AND t.reward < %(min_reward)s::float8 THEN 'reward'
END"""

_PLAN = f"""
    SELECT reason, protection, count(*) FROM (SELECT {_REASON} AS reason, {PROTECTION} AS protection FROM trajectories t
        WHERE t.run_id = %(run_id)s AND t.as_of < %(newest)s) AS found
    WHERE reason IS NOT NULL GROUP BY 1, 2
"""

_LOCK = f"""
    SELECT t.as_of, t.trajectory_id FROM trajectories t
    WHERE t.run_id = %(run_id)s AND t.as_of < %(newest)s AND (t.as_of, t.trajectory_id) > (%(after_as_of)s::timestamptz, %(after_id)s)
        AND {_REASON} IS NOT NULL AND {PROTECTION} IS NULL
    ORDER BY t.as_of, t.trajectory_id LIMIT %(batch)s FOR UPDATE OF t SKIP LOCKED
"""

_STILL = f"""
    SELECT t.trajectory_id, {_REASON} FROM trajectories t
    WHERE t.trajectory_id = ANY(%(ids)s) AND {_REASON} IS NOT NULL AND {PROTECTION} IS NULL
"""


def plan(
    connect: Connect, policy: RetentionPolicy, run_ids: Sequence[str] | None, as_of: datetime | None
) -> RetentionReport:
    """Count what `apply` would remove and what it would keep for which reason; changes nothing.

    Parameters
    ----------
    connect : callable
        Lends a connection for a transaction.
    run_ids : sequence of str, optional
        The runs whose experiences are meant; all of the database by default.
    as_of : datetime, optional
        The present that ages are measured from; by default that of each run: now for a live one, its last decision for
        a replay or a simulation. Outcomes that had not matured by then count as open.
    """
    report = RetentionReport(dry_run=True)
    with connect() as connection, connection.transaction(force_rollback=True), connection.cursor() as cursor:
        lineage.backfill(cursor)
        for run_id in _runs(cursor, run_ids):
            cursor.execute("SELECT count(*) FROM trajectories WHERE run_id = %s", (run_id,))
            report.rows += _count(cursor)
            parameters = _parameters(cursor, policy, run_id, as_of)
            if parameters is None:
                continue
            for reason, protection, number in cursor.execute(_PLAN, parameters).fetchall():
                (report.removed if protection is None else report.kept)[protection or reason] += number
    return report


def apply(
    connect: Connect,
    policy: RetentionPolicy,
    run_ids: Sequence[str] | None,
    as_of: datetime | None,
    *,
    progress: Callable[[RetentionReport], None] = lambda report: None,
    stopped: Callable[[], bool] = lambda: False,
) -> RetentionReport:
    """Remove what the policy asks for and nothing needs, oldest first, one transaction a batch.

    Whatever ends it, an error, a kill or `stopped`, whole batches are gone and the rest is untouched; applied again, it
    goes on. A row that another transaction holds is left to the next time.

    Parameters
    ----------
    connect, policy, run_ids, as_of
        As in `plan`.
    progress : callable
        Told of the sums after each batch.
    stopped : callable
        Asked before each batch.

    Raises
    ------
    LibraryUnavailable
        If the database goes away; the batch in hand is undone.
    """
    report = RetentionReport()
    with connect() as connection, connection.cursor() as cursor:
        lineage.backfill(cursor)
        runs = _runs(cursor, run_ids)
    for run_id in runs:
        with connect() as connection, connection.cursor() as cursor:
            parameters = _parameters(cursor, policy, run_id, as_of)
        last: tuple[datetime, str] | None = (datetime.min.replace(tzinfo=UTC), "")
        while parameters is not None and last is not None:
            if stopped():
                report.finished = False
                return report
            parameters.update(after_as_of=last[0], after_id=last[1])
            with connect() as connection, connection.cursor() as cursor:
                removed, children, last = _remove_batch(cursor, parameters)
            if removed:
                report.removed += removed
                report.children += children
                report.batches += 1
                progress(report)
    return report


def _remove_batch(
    cursor: psycopg.Cursor[Any], parameters: dict[str, Any]
) -> tuple[Counter[str], Counter[str], tuple[datetime, str] | None]:
    """Remove the next batch; return counts by reason and child table, and the place to go on from (None: the end)."""
    locked = cursor.execute(_LOCK, parameters).fetchall()
    last = locked[-1] if len(locked) == parameters["batch"] else None
    # what was committed while the rows were being locked may protect them; now that they are, nothing new can refer to them
    still = cursor.execute(_STILL, {**parameters, "ids": [row[1] for row in locked]}).fetchall()
    ids = [row[0] for row in still]
    children: Counter[str] = Counter()
    if ids:
        matured_calls.keep(cursor, ids)
        for table in CHILDREN:
            children[table] = cursor.execute(f"DELETE FROM {table} WHERE trajectory_id = ANY(%s)", (ids,)).rowcount
        cursor.execute("DELETE FROM trajectories WHERE trajectory_id = ANY(%s)", (ids,))
    return Counter(row[1] for row in still), children, last


def _runs(cursor: psycopg.Cursor[Any], run_ids: Sequence[str] | None) -> list[str]:
    if run_ids is not None:
        return list(dict.fromkeys(run_ids))
    return [row[0].strip() for row in cursor.execute("SELECT run_id FROM runs ORDER BY run_id").fetchall()]


def _parameters(
    cursor: psycopg.Cursor[Any], policy: RetentionPolicy, run_id: str, as_of: datetime | None
) -> dict[str, Any] | None:
    """Return the parameters of the statements for a run, None where nothing of it is old enough to look at."""
    cursor.execute(
        "SELECT r.mode, (SELECT max(as_of) FROM trajectories t WHERE t.run_id = r.run_id), "
        "r.finished_at IS NULL AND r.run_id <> %s AND NOT EXISTS (SELECT 1 FROM runs n WHERE "
        "n.config->>'identity' = r.config->>'identity' AND (n.config->>'attempt')::int > (r.config->>'attempt')::int) "
        "FROM runs r WHERE r.run_id = %s",
        (ADHOC_RUN, run_id),
    )
    row = cursor.fetchone()
    if row is None or row[1] is None:
        return None
    mode, reached, resumable = row
    present = as_of or (datetime.now(UTC) if mode == "live" else reached)
    expired = _before(present, policy.max_age_days)
    judged = _before(present, policy.min_reward_after_days) if policy.min_reward is not None else None
    newest = max((limit for limit in (expired, judged) if limit is not None), default=None)
    if newest is None:
        return None
    cursor.execute("SELECT EXISTS (SELECT 1 FROM trajectories WHERE as_of < %s AND run_id = %s)", (newest, run_id))
    if not _count(cursor):
        return None
    return {
        "run_id": run_id, "present": present, "resumable": resumable, "expired": expired, "judged": judged, "newest": newest,
        "min_reward": policy.min_reward, "batch": policy.batch_rows, "ungraded": list(policy.ungraded_agents),
        **history_limits(cursor, run_id, resumable=resumable),
    }  # fmt: skip


def _before(present: datetime, days: float | None) -> datetime | None:
    if days is None:
        return None
    try:
        return present - timedelta(days=days)
    except OverflowError:  # older than the calendar: nothing is
        return datetime.min.replace(tzinfo=UTC)


def _count(cursor: psycopg.Cursor[Any]) -> int:
    row = cursor.fetchone()
    return int(row[0]) if row else 0
