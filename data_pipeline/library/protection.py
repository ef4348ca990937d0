"""What keeps an experience from being removed, as one SQL expression: the name of its first protection, or NULL.

Read by retention only. Each rule stands for a reader who would miss the row: the tracker of open decisions, a dataset's
lineage, a model's verdict and its live trial, the recovery of a run. `similar_ids` protect nothing: they record what an agent was shown,
nobody resolves them, and a chain of them would keep everything that was ever alike.
"""

from __future__ import annotations

from typing import Any

import psycopg

HISTORY_CALLS = 200
"""Newest matured calls a side that the reward's base rates look back on; a test holds it to the judge's own window."""

# %(run_id)s char(32) of the row t, %(present)s, %(resumable)s: whether a start may go on with the run,
# %(agents)s, %(calls)s, %(limits)s: see history_limits; %(ungraded)s: agents whose opinions no judge grades
PROTECTION = """CASE
    WHEN NOT t.abstained AND (t.matured_at IS NULL OR t.matured_at >= %(present)s) THEN 'pending'
    WHEN EXISTS (SELECT 1 FROM dataset_items i WHERE i.trajectory_id = t.trajectory_id) THEN 'dataset'
    WHEN EXISTS (SELECT 1 FROM datasets d WHERE NOT d.items_complete AND d.agent_type = t.agent_type
        AND t.as_of <= coalesce(d.to_at, 'infinity')) THEN 'dataset'
    WHEN EXISTS (SELECT 1 FROM training_runs r JOIN model_versions v USING (training_run_id)
        WHERE r.run_id = t.run_id AND r.agent_type = t.agent_type AND t.as_of >= coalesce(r.data_cutoff, '-infinity')
        AND t.matured_at < coalesce(r.started_at, 'infinity')
        AND (v.state IN ('shadow', 'champion') OR EXISTS (SELECT 1 FROM model_aliases a WHERE a.version = v.version)))
        THEN 'model'
    WHEN EXISTS (SELECT 1 FROM training_runs r WHERE r.state = 'running' AND r.run_id = t.run_id AND r.agent_type = t.agent_type)
        THEN 'training'
    WHEN %(resumable)s AND t.agent_type = 'strategist' AND NOT t.shadow THEN 'decision'
    WHEN %(resumable)s AND t.matured_at IS NOT NULL AND NOT t.shadow AND NOT EXISTS (
        SELECT 1 FROM unnest(%(agents)s::text[], %(calls)s::text[], %(limits)s::timestamptz[]) AS h (agent_type, call, before)
        WHERE h.agent_type = t.agent_type AND h.call IS NOT DISTINCT FROM t.recommendation AND t.matured_at < h.before)
        THEN 'history'
    WHEN %(resumable)s AND EXISTS (SELECT 1 FROM model_aliases a WHERE a.run_id = t.run_id AND a.agent_type = t.agent_type
        AND a.alias IN ('champion', 'challenger') AND t.as_of > (SELECT max(e.as_of) FROM alias_events e
            WHERE e.run_id = a.run_id AND e.agent_type = a.agent_type AND e.alias = a.alias AND e.new_version = a.version))
        AND (t.shadow OR EXISTS (SELECT 1 FROM trajectories x
            WHERE x.decision_id = t.decision_id AND x.agent_type = t.agent_type AND x.shadow)) THEN 'trial'
    WHEN %(resumable)s AND NOT t.abstained AND NOT t.shadow AND t.agent_type <> ALL(%(ungraded)s::text[]) AND NOT EXISTS (
        SELECT 1 FROM judge_evaluations e WHERE e.trajectory_id = t.trajectory_id) THEN 'unjudged'
END"""

IN_WORDS = {
    "pending": "their outcome is not known yet",
    "dataset": "a registered dataset holds them",
    "model": "the verdict on a model in use rests on them",
    "training": "a training is under way",
    "decision": "decisions of a run that can be resumed",
    "history": "the newest calls, which rewards are calibrated by",
    "trial": "a version on trial is judged by them",
    "unjudged": "the judges have not seen them yet",
}


def history_limits(cursor: psycopg.Cursor[Any], run_id: str, *, resumable: bool) -> dict[str, list[Any]]:
    """Return for each agent and call before which maturity its calls are no longer part of any reward's history.

    A group of fewer than `HISTORY_CALLS` has no limit. Newer calls only move the limits on, so that those of the start
    of a removal are safe until its end.
    """
    rows: list[tuple[Any, ...]] = []
    if resumable:
        cursor.execute(
            "SELECT agent_type, recommendation, matured_at FROM (SELECT agent_type, recommendation, matured_at, row_number() OVER "
            "(PARTITION BY agent_type, recommendation ORDER BY matured_at DESC) AS place FROM trajectories "
            "WHERE run_id = %s AND matured_at IS NOT NULL AND NOT shadow) AS ranked WHERE place = %s",
            (run_id, HISTORY_CALLS),
        )
        rows = cursor.fetchall()
    return {"agents": [r[0] for r in rows], "calls": [r[1] for r in rows], "limits": [r[2] for r in rows]}
