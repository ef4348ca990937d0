"""The production orchestrator: builds the parts, starts them in order, supervises their threads, stops them in reverse.

``python -m monitoring.production_orchestrator`` is the daemon; notebooks use `start_production_orchestrator`. It holds
no logic of its own about markets, agents or models.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from agents.factory import policy_kinds
from data_pipeline.embedder_factory import build_embedder
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.feeds.base import MarketFeed
from data_pipeline.feeds.factory import build_feed
from data_pipeline.library.runs import Run
from data_pipeline.library_access import open_library
from judge.configured_panel import build_panel
from judge.multi_judge_consensus import MultiJudgeConsensus
from monitoring import recovery
from monitoring.daily_upkeep import DailyUpkeep
from monitoring.decision_pipeline import DecisionPipeline
from monitoring.deployment import Deployment, open_local_models
from monitoring.embedding_stage import States, embedding_stage
from monitoring.health_checker import HealthChecker
from monitoring.health_checks import active_checks
from monitoring.hosted_models import open_chat_models, probe
from monitoring.http_endpoint import HttpEndpoint
from monitoring.library_care import LibraryCare
from monitoring.metrics_collector import MetricsCollector
from monitoring.scope import refuse_what_is_not_there
from monitoring.stage import Repeated, Stage
from monitoring.status import build_status
from monitoring.summary import FORWARD, summarise
from monitoring.supervision import SupervisedThread
from monitoring.trade_metrics import TradeMetrics
from orchestration.coordinator import Coordinator
from orchestration.judging import JudgeBatch, Judging
from orchestration.retrieval import ExperienceMemory
from orchestration.step_journal import StepJournal
from training.local_models import LocalModels
from training.model_registry import ModelRegistry
from training.pipelines.online_learning_loop import OnlineLearningLoop
from utils.clock import Clock, VirtualClock, WallClock
from utils.errors import ComponentStartError, ProviderError
from utils.ids import ADHOC_RUN
from utils.llm.factory import ChatModels
from utils.llm.untrusted import replay_key
from utils.logs import logger
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry

__all__ = ["OrchestratorConfig", "ProductionOrchestrator", "start_production_orchestrator"]

COMPONENT_ORDER = (
    "experience_library", "broker", "judge", "supervisor", "coordinator", "outcome_tracker", "metrics", "health_checker",
    "learning_loop", "streaming",
)  # fmt: skip
STOP_DEADLINE_S = 30.0
_REFRESH_S = 1.0
_GUARD_EVERY_S = 2.0


class ProductionOrchestrator:
    """One daemon.

    Parameters
    ----------
    config : OrchestratorConfig, optional
        From environment, ``config/system.yaml`` and defaults if not given.
    stop : threading.Event, optional
        Set by whoever wants a start that takes long to be given up; it then fails.

    Attributes
    ----------
    status : str
        initialized, starting, running, degraded, finished, stopping, stopped or ``failed: <error>``.
    components : dict of str to object
        The parts by name, see `get_component`.
    """

    def __init__(self, config: OrchestratorConfig | None = None, stop: threading.Event | None = None) -> None:
        self.config = config or OrchestratorConfig()
        self._stop_asked = stop or threading.Event()
        self.components: dict[str, Any] = {}
        self.status = "initialized"
        self.run: Run | None = None
        self.pipeline: DecisionPipeline | None = None
        self.summary: dict[str, Any] | None = None
        self.finished = threading.Event()
        self.failed = threading.Event()
        self._states: dict[str, str] = {}
        self._reported: dict[str, dict[str, str]] = {}  # by component, what each that speaks for it says
        self._started_at: datetime | None = None
        self._lifecycle = threading.RLock()
        self._state_lock = threading.Lock()
        self._telemetry: Telemetry = NO_TELEMETRY
        self._metrics: MetricsCollector | None = None
        self._health: HealthChecker | None = None
        self._endpoint: HttpEndpoint | None = None
        self.judging: Judging | None = None
        self.chat_models: ChatModels | None = None
        self.local_models: LocalModels | None = None
        self._judging: Stage[JudgeBatch] | None = None
        self._embedding: Stage[States] | None = None
        self._learning: Stage[datetime] | None = None
        self._streaming: SupervisedThread | None = None
        self._supervision: SupervisedThread | None = None
        self._snapshot: dict[str, Any] = {}
        self.library_care: LibraryCare | None = None
        self._lock_held = True
        self._guarded_at = 0.0

    @property
    def running(self) -> bool:
        """Whether the orchestrator works (a finished replay that still serves counts)."""
        return self.status in ("running", "degraded", "finished")

    @property
    def metrics_port(self) -> int | None:
        """The port of the HTTP endpoint, None without monitoring."""
        return self._endpoint.port if self._endpoint else None

    @property
    def states(self) -> dict[str, str]:
        """The state of each component, in the order they are started."""
        with self._state_lock:
            return {name: self._states[name] for name in COMPONENT_ORDER if name in self._states}

    def get_component(self, name: str) -> Any | None:
        """Return a part by name: one of COMPONENT_ORDER; None if it is not enabled or not known."""
        return self.components.get(name)

    def get_status(self) -> dict[str, Any]:
        """Return the present status as JSON values; secrets are masked."""
        return build_status(self, self._started_at)

    def start(self) -> None:
        """Start every enabled part; returns once all run.

        Raises
        ------
        ConfigError
            If a setting cannot work.
        ComponentStartError
            If a part cannot start; what had started is stopped again.
        """
        with self._lifecycle:
            if self.running:
                return
            self._started_at = datetime.now(UTC)
            self.status = "starting"
            self.summary = None
            self.finished.clear()
            self.failed.clear()
            try:
                self._start_endpoint()
                self._start_parts()
            except BaseException as error:
                self._shut_down()
                self.status = f"failed: {error}"
                raise
            with self._state_lock:
                if self.status == "starting":  # a run that had ended already may have said so by now
                    self.status = "running"
            if self.run is not None and self.run.finished_at is not None:
                logger.info("this run finished on %s already; --fresh runs it anew", self.run.finished_at.date())
            self._supervision = SupervisedThread("supervision", self._supervise)
            self._supervision.start()

    def stop(self) -> None:
        """Stop within 30 s: decisions in hand are finished, training is stopped, everything is closed. Idempotent."""
        with self._lifecycle:
            if self.status in ("stopped", "initialized"):
                return
            was = self.status
            self.status = "stopping"
            self._shut_down()
            self.status = was if was.startswith("failed") else "stopped"

    def _start_endpoint(self) -> None:
        """Answer over HTTP from the first moment, with 503 until ready."""
        if not self.config.enable_monitoring:
            return
        self._metrics = MetricsCollector(self.config.metrics_port, self.config.metrics_host)
        self._telemetry = self._metrics
        self._endpoint = HttpEndpoint(
            self.config.metrics_host,
            self.config.metrics_port,
            metrics=self._metrics.render,
            views={"/health": self._view_health, "/ready": self._view_ready, "/status": self._view_status},
        )
        self._endpoint.start()

    def _start_parts(self) -> None:
        config = self.config
        refuse_what_is_not_there(config)
        feed = build_feed(config, self._telemetry) if config.enable_streaming else None
        clock: Clock = (
            VirtualClock(datetime.min.replace(tzinfo=UTC)) if feed is not None and feed.mode != "live" else WallClock()
        )
        library = self._open_library()
        self._register("experience_library", library)
        self.library_care = LibraryCare(library, self._on_library_change)
        replay = feed is not None and feed.mode != "live"
        local_models = self.local_models = open_local_models(config, self._telemetry, self._stop_asked, replay=replay)
        try:
            self.run = self._open_run(library, local_models, feed)
        except ProviderError as error:
            raise ComponentStartError(f"agents: {error}") from error
        library.run_id = self.run.run_id if self.run else ADHOC_RUN
        chat_models = self.chat_models = open_chat_models(config, replay=replay, telemetry=self._telemetry)
        consensus = build_panel(config, chat_models, replay_key(config.random_state) if replay else None)
        library.exact_search = replay  # an approximate index is built with randomness
        memory = ExperienceMemory(library, config.retrieval, waits=replay, telemetry=self._telemetry)
        remote = chat_models is not None or config.local.server_url is not None
        try:
            coordinator = Coordinator(
                config,
                run_id=library.run_id,
                memory=memory,
                timer=None if replay else time.perf_counter,
                journal=StepJournal(config.data_dir / "decisions_in_hand.jsonl") if remote else None,
                chat_models=chat_models,
                local_policies=local_models.policy_for,
                telemetry=self._telemetry,
            )
        except ProviderError as error:
            raise ComponentStartError(f"agents: {error}") from error
        probe(chat_models)
        if feed is not None:
            self._build_pipeline(feed, library, coordinator, consensus, clock)
        self._register("judge", consensus)
        self._register("supervisor", coordinator.router)
        self._register("coordinator", coordinator)
        if self._metrics is not None:
            self._register("metrics", self._metrics)
            self._health = HealthChecker(config.health_check_interval_seconds, data_dir=config.data_dir)
            self._register("health_checker", self._health)
        if config.enable_learning_loop:
            held_by, on_state = ModelRegistry(library).held_by, self._state_setter("learning_loop")
            deployment = Deployment(config, coordinator, local_models, held_by, on_state)
            self._start_learning(library, deployment, clock, replay=replay)
        elif config.retention.enabled or not library.exact_search:
            self._start_learning_stage(library, lambda at: None, "experience_library")
        if self.pipeline is not None:
            self._start_streaming(self.pipeline)
        if self._health is not None:
            self._health.start(active_checks(lambda: self.states, library, lambda: self._lock_held, self._streaming))

    def _open_library(self) -> ExperienceLibraryPostgres:
        """Open the configured database, embedded or external, and become its one orchestrator."""
        library = open_library(self.config, telemetry=self._telemetry, embedder=build_embedder(self.config.embeddings))
        self.components["experience_library"] = library
        library.database.become_the_orchestrator()
        library.open_spool(
            self.config.data_dir / "spool"
        )  # not before: what waits in it is for a database that is ours
        return library

    def _open_run(self, library: ExperienceLibraryPostgres, models: LocalModels, feed: MarketFeed | None) -> Run | None:
        """Return the run that this start belongs to; without streaming there is none."""
        if feed is None:
            return None
        local = "local" in policy_kinds(self.config).values()
        identity = recovery.identify(
            self.config, feed, embedding=library.embedder.model, base_model=models.base_version() if local else None
        )
        run = recovery.open_run(library, identity, fresh=self.config.fresh)
        logger.info(
            "run %s: %s, %s to %s, %d symbols (%s)",
            run.run_id[:12], feed.name, *identity.data["period"], len(feed.symbols), FORWARD[feed.mode],
        )  # fmt: skip
        return run

    def _build_pipeline(
        self,
        feed: MarketFeed,
        library: ExperienceLibraryPostgres,
        coordinator: Coordinator,
        consensus: MultiJudgeConsensus,
        clock: Clock,
    ) -> None:
        opened: list[MarketFeed] = [feed]

        def open_feed() -> MarketFeed:
            return opened.pop() if opened else build_feed(self.config, self._telemetry)

        run_id = library.run_id
        pipeline = self.pipeline = DecisionPipeline(
            self.config, run_id, library, coordinator, clock, self._telemetry, open_feed, self._on_end
        )
        judging = self.judging = Judging(
            consensus, library, run_id, lambda found: pipeline.tracker.graded(found),
            calibrate=self.config.judge.method == "calibrated", telemetry=self._telemetry,
        )  # fmt: skip
        retry = (lambda: judging.retry_due(clock.now())) if feed.mode == "live" else (lambda: None)
        self._judging = Stage(
            "judging", judging.process, lambda: judging.process(judging.backlog()), library.revive,
            self._state_setter("judge"), idle=retry,
        )  # fmt: skip
        pipeline.judging = self._judging
        pipeline.judging_backlog = judging.backlog
        pipeline.on_prepared = self._on_prepared
        self._register("broker", pipeline.broker)
        self._register("outcome_tracker", pipeline.tracker)
        self._judging.start()
        if not library.embedder.inline:
            on_state = self._state_setter("experience_library", "embedding")
            self._embedding = pipeline.embedding = embedding_stage(library, self.config.embeddings.batch, on_state)
            self._embedding.start()

    @property
    def _stages(self) -> list[Stage[Any]]:
        """The stages that there are, in the order they are stopped."""
        return [stage for stage in (self._learning, self._embedding, self._judging) if stage is not None]

    def _start_learning(
        self, library: ExperienceLibraryPostgres, deployment: Deployment, clock: Clock, *, replay: bool
    ) -> None:
        loop = OnlineLearningLoop.for_daemon(
            self.config, library, clock, derived_ids=replay, serving=deployment, telemetry=self._telemetry
        )
        self._register("learning_loop", loop)
        loop.restore()  # before anything is decided or learned
        if self.pipeline is None:
            loop.start()  # nothing drives its checks but its own clock
            return
        if len(marks := self.pipeline.ledger.portfolio.equity_curve) > 1:
            loop.resume_after(marks[-2][0])
        idle = (lambda: None) if replay else (lambda: loop.tend(clock.now()))
        self._start_learning_stage(library, loop.check, "learning_loop", idle)
        loop.driven = True

    def _start_learning_stage(
        self,
        library: ExperienceLibraryPostgres,
        learn: Callable[[datetime], None],
        component: str,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        """Let a thread learn of every instant, and then look after the library; without a feed there is none."""
        if self.pipeline is None:
            return
        upkeep = DailyUpkeep(library, self.config.retention, self.judging.ungraded_agents if self.judging else ())
        work = Repeated(upkeep.after(learn))
        stage = Stage(
            "learning", work, work.recover, library.revive, self._state_setter(component, "learning"),
            idle=idle,
        )  # fmt: skip
        upkeep.stopped = stage.thread.heartbeat.stop.is_set
        stage.start()
        self._learning = self.pipeline.learning = stage

    def _start_streaming(self, pipeline: DecisionPipeline) -> None:
        self._streaming = SupervisedThread("decisions", pipeline.run, self._state_setter("streaming"))
        self._register("streaming", pipeline)
        self._streaming.start()

    def _register(self, name: str, component: Any) -> None:
        self.components[name] = component
        self._set_state(name, "running")

    def _state_setter(self, name: str, speaker: str = "") -> Callable[[str], None]:
        return lambda state: self._set_state(name, state, speaker)

    def _set_state(self, name: str, state: str, speaker: str = "") -> None:
        with self._state_lock:
            said = self._reported.setdefault(name, {})
            said[speaker] = state
            ill = (s for word in ("failed", "degraded") for s in said.values() if s.startswith(word))
            self._states[name] = next(ill, said.get("", state))
            if self.status in ("running", "degraded"):
                unwell = any(value.startswith(("degraded", "failed")) for value in self._states.values())
                self.status = "degraded" if unwell else "running"
        if state.startswith("failed"):
            self.status = f"failed: {name}: {state.removeprefix('failed: ')}"
            self.failed.set()

    def _on_prepared(self, pipeline: DecisionPipeline) -> None:
        """A restart of the decision thread has recovered these anew."""
        self.components["broker"] = pipeline.broker
        self.components["outcome_tracker"] = pipeline.tracker

    def _on_end(self) -> None:
        """The feed has ended and everything that could settle has settled."""
        if self.pipeline is None or self.run is None:
            return
        library: ExperienceLibraryPostgres = self.components["experience_library"]
        self.summary = summarise(self.config, self.run, library, self.pipeline)
        with self._state_lock:
            self.status = "finished"
        self.finished.set()

    def _supervise(self, heartbeat: Any) -> None:
        """Refresh what HTTP and Prometheus show, once a second."""
        trades = TradeMetrics(self._telemetry)
        while not heartbeat.stop.is_set():
            heartbeat.beat()
            if self.library_care is not None and not self.failed.is_set():
                self.library_care.tend()
            self._snapshot = self.get_status()
            self._guard_the_lock()
            if self._metrics is not None:
                self._metrics.update_from_status(self._snapshot)
            if self.pipeline is not None:
                trades.update(self.pipeline.ledger)
            heartbeat.stop.wait(_REFRESH_S)

    def _on_library_change(self, away: str | None) -> None:
        """Have state and health say that the database has gone, or that it is back."""
        self._set_state("experience_library", f"degraded: {away}" if away else "running")
        if self._health is not None:
            self._health.check_now()

    def _guard_the_lock(self) -> None:
        """See that this is still the one orchestrator of its database; if another took over, work no more on it."""
        library: ExperienceLibraryPostgres | None = self.components.get("experience_library")
        if library is None or self.failed.is_set() or time.monotonic() - self._guarded_at < _GUARD_EVERY_S:
            return
        try:
            self._lock_held = library.database.holds_the_lock()
        except ComponentStartError as error:
            self._lock_held = False
            for thread in (self._streaming, *(stage.thread for stage in self._stages)):
                if thread is not None:
                    thread.heartbeat.stop.set()
            if (learning := self.components.get("learning_loop")) is not None:
                learning.stop()
            self._set_state("experience_library", f"failed: {error}")
        self._guarded_at = time.monotonic()

    def _view_health(self) -> tuple[int, dict[str, Any]]:
        failed = self.status.startswith("failed")
        if self._health is None or self.status in ("starting", "initialized"):
            return 503, {"overall_healthy": False, "status": self.status}
        health = self._health.get_system_health()
        healthy = health["overall_healthy"] and not failed
        return 200 if healthy else 503, {**health, "overall_healthy": healthy, "status": self.status}

    def _view_ready(self) -> tuple[int, dict[str, Any]]:
        return (200 if self.running else 503), {"ready": self.running, "status": self.status}

    def _view_status(self) -> tuple[int, dict[str, Any]]:
        if not self.running and not self._snapshot:
            return 503, {"status": self.status}
        return 200, self._snapshot or self.get_status()

    def _shut_down(self) -> None:
        """Stop in reverse order of the start; every step runs even if one before it failed to stop in time."""
        deadline = time.monotonic() + STOP_DEADLINE_S

        def left() -> float:
            return max(0.5, deadline - time.monotonic() - 5.0)

        for thread in (self._supervision, self._streaming):
            if thread is not None and not thread.stop(left()):
                logger.warning("%s did not stop in time", thread.name)
        learning = self.components.get("learning_loop")
        if learning is not None:
            learning.stop()
        for stage in self._stages:
            if not stage.stop(left()):
                logger.warning("%s did not stop in time", stage.thread.name)
        if self._health is not None:
            self._health.stop()
        for name in reversed(COMPONENT_ORDER):
            component = self.components.get(name)
            if name in ("judge", "coordinator", "learning_loop", "experience_library") and component is not None:
                component.close()
            if name in self._states and not self._states[name].startswith("failed"):
                self._states[name] = "stopped"
        for models in (self.chat_models, self.local_models):
            if models is not None:
                models.close()
        if self._endpoint is not None:
            self._endpoint.stop()


def start_production_orchestrator(config: OrchestratorConfig | None = None) -> ProductionOrchestrator:
    """Build an orchestrator, start it and return it."""
    orchestrator = ProductionOrchestrator(config)
    orchestrator.start()
    return orchestrator


if __name__ == "__main__":
    from monitoring.cli import main

    sys.exit(main())
