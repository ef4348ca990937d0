"""The decision thread: takes instants from the feed and runs the trading cycle, judging, embedding, learning beside it.

In a replay it is the keeper of the virtual clock: the next instant begins only when whatever it depends on is done, the
embedding and learning of the present one and the grades that fall due. A restart, after a crash of the thread or of the process, goes
through the same recovery.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from data_pipeline.asof_store import AsOfStore
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.feeds.base import MarketFeed
from data_pipeline.realtime_streaming import FeedPump
from judge.reward_calculator import RewardCalculator
from monitoring import recovery
from monitoring.decision_log import DecisionLog
from monitoring.embedding_stage import States
from monitoring.stage import Stage
from monitoring.supervision import Heartbeat
from orchestration.analysis import Analysis
from orchestration.commit_lane import CommitLane
from orchestration.coordinator import Coordinator
from orchestration.execution.outcomes import OutcomeTracker
from orchestration.execution.paper_broker import PaperBroker
from orchestration.execution.portfolio import Ledger
from orchestration.judging import JudgeBatch
from orchestration.trading_cycle import CycleResult, TradingCycle
from utils.clock import Clock, VirtualClock
from utils.patience import patiently
from utils.schema import AGENT_TYPES, Instant
from utils.settings import OrchestratorConfig
from utils.telemetry import Telemetry

_JUDGING_LAG = 2
"""Durable instants of a replay whose judging may still run while later ones are decided."""


RECENT_FINDINGS = 10


@dataclass
class Progress:
    """Where the run stands, for people; written by the decision thread, read by anyone."""

    done: int = 0
    total: int | None = None
    at: datetime | None = None
    decisions: int = 0
    abstentions: int = 0
    outcomes: int = 0
    findings: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many findings of fault localisation there are by category and severity."""
    recent_findings: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=RECENT_FINDINGS))
    """The newest of them, newest first, as JSON values."""
    first_decision_after_s: float | None = None
    ended: bool = False


class DecisionPipeline:
    """Everything between the feed and the database.

    Parameters
    ----------
    config, run_id, library, coordinator, clock, telemetry
    open_feed : callable
        Opens the configured feed anew for each start of the thread.

    Attributes
    ----------
    judging, embedding, learning : Stage or None
        Stages beside the decisions, set before `run`; without the second one trajectories carry their embeddings.
    judging_backlog : callable
        Reads the opinions that no judge has seen.
    on_prepared : callable
        Told when a restart has made broker, tracker and cycle anew.
    """

    def __init__(
        self,
        config: OrchestratorConfig,
        run_id: str,
        library: ExperienceLibraryPostgres,
        coordinator: Coordinator,
        clock: Clock,
        telemetry: Telemetry,
        open_feed: Callable[[], MarketFeed],
        on_end: Callable[[], None],
    ) -> None:
        self._config = config
        self._run_id = run_id
        self._library = library
        self._coordinator = coordinator
        self._clock = clock
        self._telemetry = telemetry
        self._open_feed = open_feed
        self._on_end = on_end
        self._log = DecisionLog(config.decisions_jsonl)
        # the grade of an instant is first read when its horizon ends; until then its commit and its judging may lag behind
        self._overlaps = config.decision.horizon_sessions > 1
        self._judging_lag = max(0, min(_JUDGING_LAG, config.decision.horizon_sessions - 2))
        self._created = time.monotonic()
        self._commits: CommitLane
        self._committing: tuple[Instant, CycleResult] | None = None
        self._pump: FeedPump | None = None
        self._prepared = False
        self.judging: Stage[JudgeBatch] | None = None
        self.judging_backlog: Callable[[], JudgeBatch] = lambda: JudgeBatch(None, ())
        self.on_prepared: Callable[[DecisionPipeline], None] = lambda pipeline: None
        self.embedding: Stage[States] | None = None
        self.learning: Stage[datetime] | None = None
        self.progress = Progress()
        self.feed: MarketFeed
        self.store: AsOfStore
        self.ledger: Ledger
        self.tracker: OutcomeTracker
        self.broker: PaperBroker
        self.cycle: TradingCycle
        self.prepare()

    def prepare(self) -> None:
        """Open the feed, warm the store and recover the run's state from the database."""
        config = self._config
        self.feed = self._open_feed()
        self.store = AsOfStore(self.feed.calendar)
        for update in self.feed.history():
            self.store.add(update)
        self._commits, self._committing = CommitLane(self._library), None
        self.ledger = recovery.recover_ledger(self._library, self._run_id)
        self.broker = PaperBroker(self.ledger, config.execution, self._run_id)
        self.tracker = OutcomeTracker(
            self.feed.calendar,
            config.decision.horizon_sessions,
            config.execution.one_way_cost,
            RewardCalculator(volatility_scaling=True),
            config.judge.weight,
        )
        recovery.recover_tracker(self.tracker, self._library, self._run_id, self.feed.calendar, AGENT_TYPES)
        round_trip = 2 * config.execution.one_way_cost
        self._coordinator.conflicts.restore(recovery.recover_conflicts(self._library, self._run_id, round_trip))
        self._coordinator.calibrator.restore(recovery.recover_calibration(self._library, self._run_id))
        self.cycle = TradingCycle(
            config,
            self._run_id,
            self.feed.symbols,
            store=self.store,
            calendar=self.feed.calendar,
            coordinator=self._coordinator,
            broker=self.broker,
            ledger=self.ledger,
            tracker=self.tracker,
            embedder=self._library.embedder,
            commits=self._commits,
            halt_file=config.data_dir / "HALT",
            regimes=recovery.recover_regimes(self._library, self._run_id),
            telemetry=self._telemetry,
        )
        self._coordinator.attach(self.store, self.feed.calendar, self.feed.symbols, self.ledger.portfolio)
        self._log.restart(recovery.stored_decisions(self._library, self._run_id))
        self.progress.total = self.feed.total_instants
        self.progress.at = self.ledger.portfolio.marked_at
        self.progress.decisions, self.progress.abstentions, self.progress.outcomes = recovery.progress_of(
            self._library, self._run_id
        )
        self.progress.findings, latest = recovery.findings_of(self._library, self._run_id, RECENT_FINDINGS)
        self.progress.recent_findings = deque(latest, RECENT_FINDINGS)
        self._prepared = True

    @property
    def queue_depth(self) -> int:
        """Instants that wait for a decision."""
        return self._pump.depth if self._pump else 0

    @property
    def feed_age_s(self) -> float:
        """Seconds since the feed's thread was last known to be well; 0 once it has ended, for nothing more is to come."""
        return time.monotonic() - self._pump.heartbeat if self._pump and self._pump.alive else 0.0

    def run(self, heartbeat: Heartbeat) -> None:
        """Work until the feed ends or the heartbeat says to stop; the body of the decision thread."""
        if not self._prepared:
            self._patiently("the recovery of the run", self.prepare, heartbeat)
            self.on_prepared(self)
        self._prepared = False
        self._commits.stop = heartbeat.stop
        self._coordinator.stop_waiting_on(heartbeat.stop)
        cursor = self.ledger.portfolio.marked_at
        self.progress.done = 0
        self._pump = FeedPump(self.feed, self._config.feed_settings.queue, cursor)
        self._pump.start()
        try:
            replay = self.feed.mode != "live"  # live, what a back-fill has left over may be embedded while it decides
            if not (self._idle(self.judging, heartbeat) and self._idle(self.learning, heartbeat)) or (
                replay and not self._idle(self.embedding, heartbeat)
            ):
                return
            if self.judging is not None:  # what a death of this thread kept from the judges after its commit
                self._patiently("the backlog of the judges", self._submit_backlog, heartbeat)
                if replay and not self._idle(self.judging, heartbeat):
                    return
            if cursor is not None and self.learning is not None:
                self.learning.submit(cursor)  # a kill may have come before the last instant's check was done
                if not self._idle(self.learning, heartbeat):
                    return
            while not heartbeat.stop.is_set():
                instant = self._pump.get(0.5)
                heartbeat.beat()
                if instant is not None:
                    self._take(instant, cursor, heartbeat)
                elif self._pump.ended:
                    self._finish(heartbeat)
                    return
            self._settle()
        finally:
            self._pump.stop()
            if self._commits.close():
                self._publish()  # what broke may have been the next instant: this one is durable all the same
            self._log.close()

    def _take(self, instant: Instant, cursor: datetime | None, heartbeat: Heartbeat) -> None:
        """Run one instant, or only learn its data if it is durable already."""
        if isinstance(self._clock, VirtualClock):
            self._clock.advance_to(max(instant.at, self._clock.now()))
        if cursor is not None and instant.at <= cursor:
            for update in instant.updates:
                self.store.add(update)
            self.progress.done += 1
            return
        result = self.cycle.run(instant)  # when it returns, the instant before is durable
        self._publish()
        self._committing = (instant, result)
        replay = self.feed.mode != "live"
        depends = self._coordinator.remembers or (replay and self.learning is not None)
        if depends or not self._overlaps or self._pump_is_dry:
            self._settle()  # nothing to decide meanwhile, or what is decided next depends on what this one leads to
        if replay:
            self._idle(self.judging, heartbeat, self._judging_lag)
            self._idle(self.embedding, heartbeat)
            self._idle(self.learning, heartbeat)

    @property
    def _pump_is_dry(self) -> bool:
        return self._pump is None or self._pump.depth == 0

    def _settle(self) -> None:
        """Wait until the last instant is durable, and tell of it."""
        self._commits.flush()
        self._publish()

    def _publish(self) -> None:
        """Tell the log, the judges, the learning loop and people of the instant that has become durable, if one has."""
        if self._committing is None:
            return
        (instant, result), self._committing = self._committing, None
        self._log.append(decision.canonical() for decision in result.decisions)
        self._coordinator.forget(decision.decision_id for decision in result.decisions)
        self._note(instant, result)
        if self.judging is not None:
            self.judging.submit(JudgeBatch(instant.at, result.to_judge))
        if self.embedding is not None and result.to_embed:
            self.embedding.submit(result.to_embed)
        if self.learning is not None:
            self.learning.submit(instant.at)

    def _finish(self, heartbeat: Heartbeat) -> None:
        self._settle()
        if self._wait_for_stages(heartbeat):
            self.progress.ended = True
            self._patiently("the end of the run", self._end, heartbeat)

    def _end(self) -> None:
        recovery.finish_run(self._library, self._run_id)
        self._on_end()

    def _submit_backlog(self) -> None:
        if self.judging is not None:
            self.judging.submit(self.judging_backlog())

    def _patiently(self, name: str, work: Callable[[], None], heartbeat: Heartbeat) -> None:
        """Do what must read the database; a commit can wait in the spool, this cannot."""
        patiently(name, work, heartbeat.stop, self._library.revive)

    def _wait_for_stages(self, heartbeat: Heartbeat) -> bool:
        return all(self._idle(stage, heartbeat) for stage in (self.judging, self.embedding, self.learning))

    def _idle(self, stage: Stage[Any] | None, heartbeat: Heartbeat, backlog: int = 0) -> bool:
        return stage is None or stage.wait_idle(heartbeat, backlog)

    def _note(self, instant: Instant, result: CycleResult) -> None:
        progress = self.progress
        if result.decisions and progress.first_decision_after_s is None:
            progress.first_decision_after_s = time.monotonic() - self._created
        progress.done += 1
        progress.at = instant.at
        progress.decisions += len(result.decisions)
        progress.abstentions += sum(decision.strategist.abstained for decision in result.decisions)
        progress.outcomes += len(result.settlement.outcomes)
        stored = Counter(name for decision in result.decisions for name in (*decision.agents, "strategist"))
        for agent_type, number in stored.items():
            self._telemetry.count("trajectories_stored_total", number, agent_type=agent_type)
        for analysis in result.analyses:
            self._note_findings(analysis)
        for decision in result.settlement.unsettled:
            self._telemetry.count("outcomes_unsettled_total", symbol=decision.symbol)
        for agent_type, number in result.settlement.successes.items():
            self._telemetry.count("trajectories_successful_total", number, agent_type=agent_type)

    def _note_findings(self, analysis: Analysis) -> None:
        """Count what was found in the outputs of a decision, and keep the newest for people."""
        decision = analysis.decision
        for name, report in analysis.reports.items():
            for error in report.errors:
                category, severity = str(error.category), error.severity.value
                self.progress.findings[category, severity] += 1
                self.progress.recent_findings.appendleft(
                    recovery.shown_finding(
                        decision.as_of, decision.symbol, name, category, severity, error.location, error.description
                    )
                )
                self._telemetry.count("error_findings_total", category=category)
                self._telemetry.count("error_findings_severity_total", severity=severity)
