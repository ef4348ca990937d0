"""What the daemon says of itself: one JSON object, built from the parts, without secrets. Serves /status and notebooks."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.decision_metrics import sharpe_ratio
from monitoring.decision_pipeline import DecisionPipeline
from monitoring.library_care import LibraryCare
from monitoring.summary import FORWARD
from orchestration.execution.portfolio import Portfolio
from orchestration.judging import Judging
from utils.clock import isoformat
from utils.ids import ADHOC_RUN

if TYPE_CHECKING:
    from monitoring.production_orchestrator import ProductionOrchestrator

_MINIMUM_RETURNS = 20


def build_status(orchestrator: ProductionOrchestrator, started_at: datetime | None) -> dict[str, Any]:
    """Return the present status as JSON values."""
    pipeline = orchestrator.pipeline
    care = orchestrator.library_care
    if care is not None:
        care.count()
    learning = orchestrator.get_component("learning_loop")
    health = orchestrator.get_component("health_checker")
    coordinator = orchestrator.get_component("coordinator")
    return {
        "status": orchestrator.status,
        "started_at": isoformat(started_at) if started_at else None,
        "uptime_seconds": (datetime.now(UTC) - started_at).total_seconds() if started_at else 0.0,
        "run_id": orchestrator.run.run_id if orchestrator.run else ADHOC_RUN,
        "components": orchestrator.states,
        "feed": _feed(pipeline) if pipeline else None,
        "progress": _progress(pipeline) if pipeline else None,
        "portfolio": portfolio_status(pipeline.ledger.portfolio) if pipeline else None,
        "regime": pipeline.cycle.regimes if pipeline else {},
        "models": coordinator.policies if coordinator else {},
        "experience_library": _library(pipeline, care, orchestrator.judging) if care else None,
        "findings": _findings(pipeline) if pipeline else None,
        "judges": orchestrator.judging.status() if orchestrator.judging else None,
        "hosted_models": orchestrator.chat_models.status() if orchestrator.chat_models else None,
        "learning_loop": learning.snapshot() if learning else None,
        "metrics": {"port": orchestrator.metrics_port} if orchestrator.metrics_port else None,
        "health": health.get_system_health() if health else None,
        "spool": _spool(care) if care else None,
        "config": orchestrator.config.masked(),
    }


def portfolio_status(portfolio: Portfolio) -> dict[str, Any]:
    """Return equity, cash, positions and drawdown; Sharpe only once there are 20 returns."""
    curve = [equity for _, equity in portfolio.equity_curve]
    peak = portfolio.peak_equity
    return {
        "equity": portfolio.equity,
        "cash": portfolio.cash,
        "drawdown": 1 - portfolio.equity / peak if peak > 0 else 0.0,
        "sharpe": _sharpe(curve),
        "halted": portfolio.halted,
        "positions": {symbol: p.quantity for symbol, p in sorted(portfolio.positions.copy().items()) if p.quantity},
        "fills": len(portfolio.trades),
        "costs_usd": portfolio.costs_usd,
    }


def _sharpe(curve: list[float]) -> float | None:
    """Return the Sharpe ratio so far, None while it means nothing."""
    if len(curve) <= _MINIMUM_RETURNS:
        return None
    equity = np.array(curve)
    return sharpe_ratio(equity[1:] / equity[:-1] - 1)


def _feed(pipeline: DecisionPipeline) -> dict[str, Any]:
    return {
        "name": pipeline.feed.name,
        "mode": pipeline.feed.mode,
        "kind_of_result": FORWARD[pipeline.feed.mode],
        "symbols": list(pipeline.feed.symbols),
        "rejected": dict(pipeline.feed.rejected),
        "queue_depth": pipeline.queue_depth,
        "lag_seconds": pipeline.feed_age_s,
    }


def _progress(pipeline: DecisionPipeline) -> dict[str, Any]:
    p = pipeline.progress
    return {
        "instants": p.done,
        "of": p.total,
        "at": isoformat(p.at) if p.at else None,
        "decisions": p.decisions,
        "abstentions": p.abstentions,
        "outcomes": p.outcomes,
        "first_decision_after_s": p.first_decision_after_s,
        "ended": p.ended,
    }


def _findings(pipeline: DecisionPipeline) -> dict[str, Any]:
    found = pipeline.progress.findings.copy()
    by_severity: Counter[str] = Counter()
    for (_, severity), number in found.items():
        by_severity[severity] += number
    return {
        "total": found.total(),
        "by_category": {category: number for (category, _), number in found.most_common()},
        "by_severity": dict(by_severity),
        "recent": [dict(finding) for finding in list(pipeline.progress.recent_findings)],
    }


def _spool(care: LibraryCare) -> dict[str, Any] | None:
    """Return what waits for the database, and how much of what waited it has refused for good."""
    spool = care.library.spool
    if spool is None:
        return None
    return {
        "size_bytes": spool.size_bytes,
        "operations": spool.operations,
        "oldest": isoformat(spool.oldest) if spool.oldest else None,
        "quarantined_files": spool.quarantined_files,
        "dead_letters": care.dead_letters,
    }


def _library(pipeline: DecisionPipeline | None, care: LibraryCare, judging: Judging | None) -> dict[str, Any]:
    return {
        "location": care.library.location,
        "trajectories": care.size,
        "outcome_backlog": pipeline.tracker.backlog if pipeline else 0,
        "judge_queue": pipeline.judging.pending if pipeline and pipeline.judging else 0,
        "judge_pending": judging.pending if judging else 0,
        "embedding_pending": pipeline.embedding.pending if pipeline and pipeline.embedding else 0,
    }
