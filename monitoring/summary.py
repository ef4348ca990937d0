"""What a run came to: the figures at its end, for the console and for ``--summary_json``.

Computed from the database, the portfolio's log and the feed's bars, never from counters of one process, so that a
resumed run and a finished one say the same.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library import findings
from data_pipeline.library.runs import Run
from evaluation.decision_metrics import ClosedTrade, buy_and_hold, summarise_performance
from monitoring.decision_pipeline import DecisionPipeline
from orchestration.execution.portfolio import Portfolio
from training import training_runs
from training.model_registry import ModelRegistry
from utils.artifacts import write_atomically
from utils.clock import isoformat
from utils.hashing import content_hash
from utils.settings import OrchestratorConfig

FORWARD = {
    "live": "forward paper trading",
    "replay": "historical replay",
    "simulated": "generated data: mechanics, not performance",
}
"""What kind of result a run of a mode gives; kinds are never mixed."""


def summarise(
    config: OrchestratorConfig, run: Run, library: ExperienceLibraryPostgres, pipeline: DecisionPipeline
) -> dict[str, Any]:
    """Return the summary of a run as JSON values."""
    portfolio = pipeline.ledger.portfolio
    counts = _counts(library, run.run_id)
    with library.connection() as connection, connection.cursor() as cursor:
        trainings = training_runs.of_run(cursor, run.run_id)
        registry = ModelRegistry(library)
        versions = {t.training_run_id: registry.get(cursor, (t.metrics or {}).get("version", "")) for t in trainings}
    generated = run.mode == "simulated"
    figures = _performance(portfolio, pipeline, config)
    return {
        "run_id": run.run_id,
        "kind_of_result": FORWARD[run.mode],
        "feed": pipeline.feed.name,
        "period": run.data_hashes.get("period"),
        "symbols": list(pipeline.feed.symbols),
        **counts,
        "rejected_records": dict(pipeline.feed.rejected),
        "fills": portfolio.counts.get("fill", 0),
        "risk_clamps": portfolio.counts.get("clamp", 0),
        "risk_rejections": portfolio.counts.get("reject", 0),
        "halted": portfolio.halted,
        "equity_usd": portfolio.equity,
        "costs_usd": portfolio.costs_usd,
        "performance": None if generated else figures,
        **({"figures_on_generated_data": figures} if generated else {}),
        "trainings": [
            {
                "run_id": str(t.training_run_id),
                "agent_type": t.agent_type,
                "kind": t.kind,
                "state": t.state,
                "as_of": isoformat(t.started_at),
                "examples": (t.metrics or {}).get("examples"),
                "version": (t.metrics or {}).get("version"),
                "error": t.error,
                "gate": v.gate if (v := versions[t.training_run_id]) else None,
            }
            for t in reversed(trainings)
        ],
        "database": library.location,
        "data_hash": content_hash(run.data_hashes),
        "config_hash": content_hash(run.config.get("settings", {})),
    }


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Write a summary as JSON, whole or not at all."""
    write_atomically(path, json.dumps(summary, indent=1, sort_keys=True, allow_nan=False) + "\n")


def render(summary: dict[str, Any]) -> str:
    """Return a summary as text for people."""
    s = summary
    period = s["period"] or ["?", "?"]
    lines = [
        "",
        f"Run {s['run_id'][:12]}: {s['feed']}, {period[0]} to {period[1]}, {len(s['symbols'])} symbols ({s['kind_of_result']})",
        f"  decisions    {s['decisions']:,}, of them {s['abstentions']:,} abstentions; {s['trajectories']:,} trajectories",
        f"  outcomes     {s['outcomes']:,} settled, {s['pending_outcomes']:,} pending; graded {s['evaluations']:,}, mean score {_number(s['mean_score'], 1)}"
        + _ungraded(s),
        f"  trading      {s['fills']:,} fills, {s['risk_clamps']:,} clamps, {s['risk_rejections']:,} rejections, costs {s['costs_usd']:,.2f} USD",
    ]
    found = ", ".join(f"{count:,} {category}" for category, count in sorted(s["findings"].items()))
    lines.append(f"  errors       {found or 'none found in the outputs'}")
    figures = s["performance"] or s.get("figures_on_generated_data")
    lines += _performance_lines(figures) if figures else ["  portfolio    too short a run to measure"]
    if "figures_on_generated_data" in s:
        lines.append("               of generated data: they show that the mechanism works, nothing about real shares")
    for t in s["trainings"]:
        lines += _training_lines(t)
    if not s["trainings"]:
        lines.append("  training     none: the triggers were not reached")
    if s["rejected_records"]:
        lines.append(
            "  rejected     "
            + ", ".join(f"{count} {reason}" for reason, count in sorted(s["rejected_records"].items()))
        )
    lines += [
        f"  database     {s['database']}",
        f"  identity     data {s['data_hash'][:12]}, configuration {s['config_hash'][:12]}",
        "",
    ]
    return "\n".join(lines)


def _ungraded(s: dict[str, Any]) -> str:
    parts = [
        f", {s[f'{what}_evaluations']:,} {words}"
        for what, words in (("pending", "below the judges' quorum"), ("quarantined", "quarantined"))
        if s[f"{what}_evaluations"]
    ]
    return "".join(parts)


def _counts(library: ExperienceLibraryPostgres, run_id: str) -> dict[str, Any]:
    with library.connection() as connection, connection.cursor() as cursor:
        cost = connection.execute(
            "SELECT (SELECT coalesce(sum((workflow_trace->'output'->>'cost_usd')::float8), 0) FROM trajectories WHERE run_id = %s) + "
            "(SELECT coalesce(sum(cost_usd), 0) FROM judge_evaluations e JOIN trajectories t USING (trajectory_id) WHERE t.run_id = %s)",
            (run_id, run_id),
        ).fetchone()
        row = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE agent_type = 'strategist'), count(*) FILTER (WHERE agent_type = 'strategist' AND abstained), "
            "count(*) FILTER (WHERE matured_at IS NOT NULL), count(*) FILTER (WHERE matured_at IS NULL AND NOT abstained) "
            "FROM trajectories WHERE run_id = %s AND NOT shadow",
            (run_id,),
        ).fetchone()
        graded = connection.execute(
            "SELECT count(*) FILTER (WHERE e.status = 'ok'), avg(final_score), count(*) FILTER (WHERE e.status = 'pending'), "
            "count(*) FILTER (WHERE e.status = 'quarantined') "
            "FROM judge_evaluations e JOIN trajectories t USING (trajectory_id) WHERE t.run_id = %s",
            (run_id,),
        ).fetchone()
        found = findings.counts(cursor, run_id)
    assert row is not None and graded is not None and cost is not None
    return {
        "trajectories": row[0],
        "decisions": row[1],
        "abstentions": row[2],
        "outcomes": row[3],
        "pending_outcomes": row[4],
        "evaluations": graded[0],
        "mean_score": None if graded[1] is None else float(graded[1]),
        "pending_evaluations": graded[2],
        "quarantined_evaluations": graded[3],
        "llm_cost_usd": float(cost[0]),
        "findings": {category: number for (category, _), number in sorted(found.items())},
    }


def _performance(portfolio: Portfolio, pipeline: DecisionPipeline, config: OrchestratorConfig) -> dict[str, Any] | None:
    """Return the portfolio's figures against buying and holding the universe over the same sessions."""
    if len(portfolio.equity_curve) < 3:
        return None
    sessions = [_session(pipeline, at) for at, _ in portfolio.equity_curve]
    equity = [value for _, value in portfolio.equity_curve]
    # the first point is the initial cash before the first session: nothing was held during it
    trades = [
        ClosedTrade(_session(pipeline, t.at), t.symbol, t.net_return)
        for t in portfolio.trades
        if t.net_return is not None
    ]
    benchmark = buy_and_hold(_returns(pipeline, sessions), config.execution.initial_cash, config.execution.one_way_cost)
    summary = summarise_performance(sessions, equity, trades, benchmark, seed=config.random_state)
    return summary.to_dict()


def _session(pipeline: DecisionPipeline, at: datetime) -> date:
    calendar = pipeline.feed.calendar
    return at.date() if calendar.is_session(at.date()) else calendar.previous(at.date())


def _returns(pipeline: DecisionPipeline, sessions: list[date]) -> Any:
    """Return total returns of shape (sessions - 1, symbols); NaN where a symbol has no two bars in a row."""
    view = pipeline.store.as_of(pipeline.ledger.portfolio.equity_curve[-1][0])
    columns = []
    for symbol in pipeline.feed.symbols:
        dividends: dict[date, float] = {}
        splits: dict[date, float] = {}
        for action in view.actions(symbol, date.min):
            (splits if action.kind == "split" else dividends)[action.session] = action.value
        column, previous = [], None
        for session in sessions:
            bar = view.bar(symbol, session)
            if bar is None:
                column.append(float("nan"))
                continue
            value = bar.close * splits.get(session, 1.0) + dividends.get(session, 0.0)
            column.append(float("nan") if previous is None else value / previous - 1)
            previous = bar.close
        columns.append(column[1:])
    return np.array(columns).T


def _performance_lines(p: dict[str, Any]) -> list[str]:
    strategy, benchmark = p["strategy"], p["benchmark"]
    lines = [
        f"  portfolio    return {strategy['total_return']:+.2%}, Sharpe {_figure(strategy['sharpe'], 2)}, drawdown {strategy['max_drawdown']:.2%}, "
        f"{p['trades']} closed trades, win rate {_figure(p['win_rate'], 2)}",
    ]
    if benchmark:
        lines += [
            f"  buy and hold return {benchmark['total_return']:+.2%}, Sharpe {_figure(benchmark['sharpe'], 2)}, drawdown {benchmark['max_drawdown']:.2%}",
            f"  difference   Sharpe {_figure(p['sharpe_difference'], 2)}, daily return {_figure(p['daily_difference'], 5)} "
            f"({p['level']:.0%} block-bootstrap intervals, {p['sessions']} sessions, block {p['block']})",
        ]
    return lines


def _training_lines(t: dict[str, Any]) -> list[str]:
    head = f"  training     {t['as_of'][:10]} {t['kind']} {t['agent_type']}: {t['state']}"
    if t["error"]:
        return [f"{head}: {t['error']}"]
    gate = t["gate"]
    lines = [f"{head} on {t['examples']} examples -> {t['version']}"]
    if gate:
        reward = gate.get("reward") or {}
        lines.append(
            f"    gate       {gate['verdict']}: {gate['decisions']} paired decisions in {gate['sessions']} sessions, reward difference "
            f"{_number(reward.get('mean'), 4)}, lower bound {_number(reward.get('lower_bound'), 4)}, smallest edge it could have seen "
            f"{_number(reward.get('minimum_detectable_edge'), 4)}"
        )
        lines += [f"               {reason}" for reason in gate["reasons"]]
    return lines


def _figure(figure: dict[str, Any] | None, digits: int) -> str:
    if not figure or figure["value"] is None:
        return "undefined"
    if figure["low"] is None:
        return f"{figure['value']:.{digits}f} [too short for an interval]"
    return f"{figure['value']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def _number(value: float | None, digits: int) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"
