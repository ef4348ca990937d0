"""One instant of the loop, from what became known to the transaction that makes it durable.

Settle what is due, decide on every symbol, pass the risk gates, order, mark, and hand it all over for one commit. It is
handed everything it uses and never asks what time it is; replay, paper trading and a resumed run take the same path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from data_pipeline.asof_store import AsOfStore, AsOfView
from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.embeddings import Embedder
from data_pipeline.library.cycle import CycleBatch, RegimeChange
from data_pipeline.library.trajectories import Trajectory
from orchestration.analysis import Analysis
from orchestration.commit_lane import CommitLane
from orchestration.conflict_history import past_conflicts
from orchestration.coordinator import Coordinator
from orchestration.execution.outcomes import OutcomeTracker, Settlement
from orchestration.execution.paper_broker import PaperBroker
from orchestration.execution.portfolio import Ledger
from orchestration.execution.risk import Clamp, Proposal, RiskGate
from orchestration.judging import JudgeItem, judging_context
from orchestration.records import (
    findings_of,
    open_decision,
    shadow_findings,
    shadow_trajectories,
    trajectories_of,
    trajectory_ids,
)
from orchestration.shadows import ShadowOpinion
from utils.clock import isoformat
from utils.logs import logger
from utils.schema import Decision, Instant, Order, direction
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What an instant led to; to be told to others once its commit is durable.

    `to_embed` holds market states by trajectory, empty where the trajectories carry their embeddings.
    """

    at: datetime
    analyses: list[Analysis]
    to_judge: list[JudgeItem]
    settlement: Settlement
    to_embed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def decisions(self) -> list[Decision]:
        """The decisions of the instant, in order of symbols."""
        return [analysis.decision for analysis in self.analyses]


class TradingCycle:
    """Runs instants in order of time.

    Parameters
    ----------
    config : OrchestratorConfig
    run_id : str
    symbols : tuple of str
    store, calendar, coordinator, broker, ledger, tracker, embedder, commits
        The parts it works with; the ledger is the recovered one.
    halt_file : Path
        The kill switch: while it exists, only reductions are traded.
    """

    def __init__(
        self,
        config: OrchestratorConfig,
        run_id: str,
        symbols: tuple[str, ...],
        *,
        store: AsOfStore,
        calendar: ExchangeCalendar,
        coordinator: Coordinator,
        broker: PaperBroker,
        ledger: Ledger,
        tracker: OutcomeTracker,
        embedder: Embedder,
        commits: CommitLane,
        halt_file: Path,
        regimes: dict[str, str] | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._config = config
        self._run_id = run_id
        self._symbols = symbols
        self._store = store
        self._calendar = calendar
        self._coordinator = coordinator
        self._broker = broker
        self._ledger = ledger
        self._tracker = tracker
        self._embedder = embedder
        self._commits = commits
        self._halt_file = halt_file
        self._regimes = dict(regimes or {})
        self._telemetry = telemetry
        self._risk = RiskGate(config.risk, config.execution)

    @property
    def regimes(self) -> dict[str, str]:
        """The present regime label of each symbol."""
        return dict(self._regimes)

    def run(self, instant: Instant) -> CycleResult:
        """Take one instant through the loop; when it returns, the instant before is durable and this one is on its way.

        Raises
        ------
        LibraryUnavailable
            If the commit of the instant before was given up; see `CommitLane.submit`.
        """
        for update in instant.updates:
            self._store.add(update)
        view = self._store.as_of(instant.at)
        self._broker.open_account(instant.at)
        self._execute_session(view, instant)
        self._ledger.portfolio.revalue({s: bar.close for s in self._symbols if (bar := view.bar(s, instant.session))})
        self._kill_switch(instant.at)
        settlement = self._tracker.settle(view, instant.session, instant.at, self._symbols)
        self._coordinator.conflicts.learn(
            past_conflicts(
                (made.as_of, made.conflicts, outcome) for made, outcome in settlement.outcomes if made.conflicts
            )
        )
        analyses = (
            self._coordinator.analyze(view, instant.session, self._symbols, self._ledger.portfolio)
            if instant.decide
            else []
        )
        self._coordinator.calibrator.learn(settlement.matured)  # what this instant settled was not known before it
        self._trade(analyses)
        closes = {symbol: bar.close for symbol in self._symbols if (bar := view.bar(symbol, instant.session))}
        self._broker.mark(closes, instant.at)
        identities = [trajectory_ids(self._run_id, analysis.decision) for analysis in analyses]
        shadows = self._coordinator.shadow_opinions(analyses)
        decided = list(zip(analyses, identities, shadows, strict=True))
        rows = [row for a, ids, _ in decided for row in self._rows(a, ids)]
        found = [row for a, ids, _ in decided for row in findings_of(ids, a.reports)]
        horizon = self._config.decision.horizon
        beside = [row for a, ids, said in decided for row in shadow_trajectories(self._run_id, ids, a, said, horizon)]
        found += [row for _, ids, said in decided for row in shadow_findings(ids, said)]
        events, positions = self._ledger.take_pending()
        self._commits.submit(
            CycleBatch(
                self._run_id,
                instant.at,
                events,
                positions,
                [*rows, *beside],
                settlement.updates,
                self._regime_changes(analyses),
                found,
            )
        )
        to_judge = [item for a, ids, said in decided for item in self._await_outcome(a, ids, said)]
        to_embed = {row.trajectory_id: row.market_state for row in rows if row.embedding is None and not row.abstained}
        return CycleResult(instant.at, analyses, to_judge, settlement, to_embed)

    def _execute_session(self, view: AsOfView, instant: Instant) -> None:
        """Let the broker work the session that has just closed."""
        bars = {symbol: bar for symbol in self._symbols if (bar := view.bar(symbol, instant.session))}
        actions = {
            symbol: today
            for symbol in bars
            if (
                today := [
                    a for a in view.actions(symbol, instant.session - timedelta(days=1)) if a.session == instant.session
                ]
            )
        }
        for symbol, today in actions.items():
            for action in today:
                if action.kind == "split":
                    logger.info("%s split %g for 1 on %s", symbol, action.value, action.session)
        self._broker.process_session(bars, actions, instant.at)

    def _kill_switch(self, at: datetime) -> None:
        """Halt when the file exists or the drawdown limit is passed; resume when the file is gone."""
        portfolio = self._ledger.portfolio
        if portfolio.halted and not self._halt_file.exists():
            self._ledger.record("resume", at, reason="the HALT file was deleted")
        drawdown = 1 - portfolio.value() / portfolio.peak_equity if portfolio.peak_equity > 0 else 0.0
        if not portfolio.halted and drawdown >= self._config.risk.max_drawdown:
            reason = f"drawdown {drawdown:.2%} from the peak reached the limit {self._config.risk.max_drawdown:.0%}"
            # with everything before it durable and before its own commit: a kill between the two must leave the switch on,
            # and the repeated cycle must be the one that says so
            self._commits.flush()
            self._halt_file.write_text(f"{isoformat(at)} run {self._run_id}: {reason}. Delete this file to resume.\n")
            self._ledger.record("halt", at, reason=reason)
            logger.warning("%s: reductions only until %s is deleted", reason, self._halt_file)
        elif not portfolio.halted and self._halt_file.exists():
            self._ledger.record("halt", at, reason="the HALT file exists")
            logger.warning("%s exists: reductions only until it is deleted", self._halt_file)

    def _trade(self, analyses: list[Analysis]) -> None:
        """Pass decisions through the gates, in order of symbols, and order what is left."""
        reserved = 0.0
        for analysis in analyses:
            decision = analysis.decision
            side = direction(decision.strategist.recommendation)
            entry = decision.strategist.entry_target
            if side == 0 or entry is None or (side < 0 and not self._ledger.portfolio.held(decision.symbol)):
                continue
            proposal = Proposal(
                decision.symbol,
                "buy" if side > 0 else "sell",
                decision.strategist.position_size,
                entry,
                analysis.fatal
                or analysis.quarantined
                or ("the newest bar is not of this session" if analysis.snapshot.stale else None),
            )
            verdict = self._risk.check(proposal, self._ledger.portfolio, reserved)
            for clamp in verdict.clamps:
                self._record_clamp(decision, clamp)
            if verdict.quantity > 0:
                if verdict.side == "buy":
                    reserved += verdict.quantity * entry * (1 + self._config.execution.one_way_cost)
                self._broker.submit(
                    Order(
                        decision.decision_id,
                        decision.symbol,
                        verdict.side,
                        verdict.quantity,
                        decision.as_of,
                        decision.strategist.stop_loss,
                        decision.strategist.take_profit,
                    )
                )

    def _record_clamp(self, decision: Decision, clamp: Clamp) -> None:
        self._ledger.record(
            "clamp" if clamp.action == "clamp" else "reject",
            decision.as_of,
            gate=clamp.gate,
            decision_id=decision.decision_id,
            symbol=decision.symbol,
            before=clamp.before,
            after=clamp.after,
            reason=clamp.reason,
        )
        self._telemetry.count("risk_clamps_total", gate=clamp.gate)

    def _rows(self, analysis: Analysis, identities: Mapping[str, str]) -> list[Trajectory]:
        return trajectories_of(self._run_id, identities, analysis, self._config.decision.horizon, self._embedder)

    def _regime_changes(self, analyses: list[Analysis]) -> list[RegimeChange]:
        changes = []
        for analysis in analyses:
            symbol, label = analysis.decision.symbol, analysis.decision.regime
            old = self._regimes.get(symbol)
            if old != label:
                inputs = analysis.snapshot.inputs
                values = {
                    "volatility": inputs.volatility,
                    "trend_strength": inputs.trend_strength,
                    "news_impact": inputs.news_impact,
                }
                changes.append(
                    RegimeChange(symbol, analysis.decision.as_of, old, label, values, analysis.regime.confidence)
                )
                self._regimes[symbol] = label
        return changes

    def _await_outcome(
        self, analysis: Analysis, identities: Mapping[str, str], shadows: Sequence[ShadowOpinion]
    ) -> list[JudgeItem]:
        """Begin to wait for the outcome of a decision; returns the opinions in it, for the judges."""
        decision = analysis.decision
        waiting = open_decision(identities, decision, analysis.snapshot, shadows)
        if waiting is not None:
            self._tracker.track(waiting)
        return [
            JudgeItem(
                identities[output.agent_type],
                decision.decision_id,
                output,
                judging_context(
                    output,
                    price=analysis.snapshot.price,
                    daily_volatility=analysis.snapshot.inputs.daily_volatility,
                    portfolio=analysis.portfolio,
                    agents=decision.agents,
                    report=analysis.reports[output.agent_type],
                ),
            )
            for output in (*decision.agents.values(), decision.strategist)
            if not output.abstained
        ]
