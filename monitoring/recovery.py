"""The one way to start: what the database says of a run becomes the state that the loop goes on from.

A new run finds nothing and begins; a killed one finds its last committed cycle. There is no other start path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.feeds.base import MarketFeed
from data_pipeline.library import evaluations, findings, matured_calls, portfolio_log, runs, trajectories
from data_pipeline.library.matured_calls import MaturedCalls
from data_pipeline.library.runs import Mode, Run
from orchestration.conflict_history import PastConflict, RealisedOutcome, past_conflicts, resolved_events
from orchestration.execution.outcomes import OpenDecision, Opinion, OutcomeTracker
from orchestration.execution.portfolio import Ledger
from utils.clock import isoformat
from utils.hashing import content_hash
from utils.ids import run_identity
from utils.schema import direction
from utils.settings import OrchestratorConfig


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What makes two runs the same: `base` is the hash of it, `attempt` counts fresh starts."""

    base: str
    mode: Mode
    config: dict[str, Any]
    data: dict[str, Any]


def identify(config: OrchestratorConfig, feed: MarketFeed, *, embedding: str, base_model: str | None) -> RunIdentity:
    """Return the identity of a run: models go into it by what they hold, wherever their folders are.

    Parameters
    ----------
    embedding, base_model : str
        The embedder's model; the local base model, None where no seat thinks with one.
    """
    data, settings = feed.identity(), config.identity()
    if "embeddings" in settings:
        settings["embeddings"] = {**settings["embeddings"], "model": embedding}
    if base_model is not None:
        settings["local"] = {**settings.get("local", {}), "base": base_model}
    base = run_identity({"mode": feed.mode, "data": data, "settings": settings})
    return RunIdentity(base, feed.mode, settings, data)


def open_run(library: ExperienceLibraryPostgres, identity: RunIdentity, *, fresh: bool) -> Run:
    """Return the newest run of this identity, or a new one if there is none or `fresh` asks for it."""
    with library.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT max((config->>'attempt')::int) FROM runs WHERE config->>'identity' = %s", (identity.base,)
        )
        row = cursor.fetchone()
        newest = row[0] if row else None
        attempt = 0 if newest is None else newest + int(fresh)
        run_id = identity.base if attempt == 0 else content_hash([identity.base, attempt])[:32]
        config = {"identity": identity.base, "attempt": attempt, "settings": identity.config}
        return runs.open_run(cursor, run_id, identity.mode, config, identity.data)


def finish_run(library: ExperienceLibraryPostgres, run_id: str) -> None:
    """Mark a run as finished."""
    with library.connection() as connection, connection.cursor() as cursor:
        runs.finish(cursor, run_id)


def recover_ledger(library: ExperienceLibraryPostgres, run_id: str) -> Ledger:
    """Return the ledger that the run's verified event log folds to."""
    with library.connection() as connection, connection.cursor() as cursor:
        return Ledger(run_id, portfolio_log.load(cursor, run_id))


def recover_regimes(library: ExperienceLibraryPostgres, run_id: str) -> dict[str, str]:
    """Return the last regime label of each symbol."""
    with library.connection() as connection:
        rows = connection.execute(
            "SELECT DISTINCT ON (symbol) symbol, new FROM regime_events WHERE run_id = %s AND kind = 'label' ORDER BY symbol, id DESC",
            (run_id,),
        )
        return {row[0]: row[1] for row in rows}


def recover_tracker(
    tracker: OutcomeTracker,
    library: ExperienceLibraryPostgres,
    run_id: str,
    calendar: ExchangeCalendar,
    agent_types: tuple[str, ...],
) -> None:
    """Give a tracker the open decisions of a run, their grades, and the history of matured calls."""
    with library.connection() as connection, connection.cursor() as cursor:
        waiting = trajectories.select(
            cursor,
            "t.run_id = %s AND t.matured_at IS NULL AND NOT t.abstained",
            [run_id],
            't.as_of, t.symbol COLLATE "C", t.agent_type, t.policy COLLATE "C"',
        )
        grouped: dict[tuple[datetime, str, str], list[trajectories.Trajectory]] = {}
        for row in waiting:
            if row.as_of is not None and row.decision_id is not None:
                grouped.setdefault((row.as_of, row.symbol, row.decision_id), []).append(row)
        # a decision that can still settle has its horizon ahead of the last committed instant
        for (as_of, symbol, decision_id), rows in grouped.items():
            if all(row.shadow for row in rows):  # imported without the opinions that they stand beside
                continue
            tracker.track(_open_decision(decision_id, symbol, as_of, rows, _session(calendar, as_of)))
        tracker.graded(evaluations.scores(cursor, [row.trajectory_id for row in waiting]))
        for agent_type in agent_types:
            cursor.execute(
                "SELECT recommendation, actual_return, costs, success FROM trajectories WHERE run_id = %s AND agent_type = %s "
                'AND matured_at IS NOT NULL AND NOT shadow ORDER BY matured_at, as_of, symbol COLLATE "C"',
                (run_id, agent_type),
            )
            tracker.restore_history(agent_type, [(r[0], direction(r[0]) * r[1] - (r[2] or 0.0), r[3]) for r in cursor])


def recover_conflicts(library: ExperienceLibraryPostgres, run_id: str, round_trip_cost: float) -> list[PastConflict]:
    """Return the conflicts between agents of a run whose outcomes have matured."""
    with library.connection() as connection:
        rows = connection.execute(
            "SELECT as_of, workflow_trace->'steps', actual_return, matured_at FROM trajectories WHERE run_id = %s "
            "AND agent_type = 'strategist' AND matured_at IS NOT NULL AND NOT shadow "
            "AND workflow_trace->'steps' @? '$[*].resolutions[*]' ORDER BY matured_at, as_of, symbol COLLATE \"C\"",
            (run_id,),
        ).fetchall()
    known = ((as_of, steps, RealisedOutcome(value, round_trip_cost, at)) for as_of, steps, value, at in rows)
    return list(past_conflicts(known))


def recover_calibration(library: ExperienceLibraryPostgres, run_id: str) -> list[MaturedCalls]:
    """Return how often the matured calls of a run came true, those that retention removed included."""
    with library.connection() as connection, connection.cursor() as cursor:
        return matured_calls.counts(cursor, run_id)


def progress_of(library: ExperienceLibraryPostgres, run_id: str) -> tuple[int, int, int]:
    """Return how many decisions, abstentions and settled outcomes a run has."""
    with library.connection() as connection:
        row = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE abstained), count(*) FILTER (WHERE matured_at IS NOT NULL) "
            "FROM trajectories WHERE run_id = %s AND agent_type = 'strategist' AND NOT shadow",
            (run_id,),
        ).fetchone()
    return (row[0], row[1], row[2]) if row else (0, 0, 0)


def findings_of(
    library: ExperienceLibraryPostgres, run_id: str, newest: int
) -> tuple[Counter[tuple[str, str]], list[dict[str, Any]]]:
    """Return how many findings of fault localisation a run has by category and severity, and its newest ones."""
    with library.connection() as connection, connection.cursor() as cursor:
        latest = [shown_finding(*row) for row in findings.latest(cursor, run_id, newest)]
        return Counter(findings.counts(cursor, run_id)), latest


def shown_finding(
    as_of: datetime, symbol: str, agent_type: str, category: str, severity: str, pointer: str, description: str
) -> dict[str, Any]:
    """Return a finding as people are shown it."""
    return {
        "as_of": isoformat(as_of), "symbol": symbol, "agent_type": agent_type, "category": category, "severity": severity,
        "location": pointer, "description": description,
    }  # fmt: skip


def stored_decisions(library: ExperienceLibraryPostgres, run_id: str) -> Iterator[dict[str, Any]]:
    """Yield the canonical decisions of a run, in decision order."""
    with library.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT workflow_trace->'decision' FROM trajectories WHERE run_id = %s AND agent_type = 'strategist' AND NOT shadow "
            'ORDER BY as_of, symbol COLLATE "C"',
            (run_id,),
        )
        for row in cursor:
            yield row[0]


def _open_decision(
    decision_id: str, symbol: str, as_of: datetime, rows: list[trajectories.Trajectory], session: date
) -> OpenDecision:
    ordered = sorted(rows, key=lambda r: (r.agent_type == "strategist", r.agent_type))
    opinions, shadows = (tuple(_opinion(row) for row in ordered if row.shadow is shadow) for shadow in (False, True))
    served = [row for row in rows if not row.shadow]
    volatility = float(served[0].market_state["inputs"]["daily_volatility"])
    steps = next(
        (row.workflow_trace["steps"] for row in served if row.workflow_trace and "steps" in row.workflow_trace), ()
    )
    return OpenDecision(decision_id, symbol, as_of, session, volatility, opinions, resolved_events(steps), shadows)


def _opinion(row: trajectories.Trajectory) -> Opinion:
    output = (row.workflow_trace or {}).get("output", {})
    return Opinion(
        row.trajectory_id,
        row.agent_type,
        row.recommendation or "hold",
        float(output.get("confidence", row.confidence)),
        output.get("p_correct"),
        row.position_size or 0.0,
        row.stop_loss,
        row.take_profit,
        row.policy or "rules",
    )


def _session(calendar: ExchangeCalendar, as_of: datetime) -> date:
    day = as_of.date()
    return day if calendar.is_session(day) else calendar.previous(day)
