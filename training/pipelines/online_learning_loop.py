"""The learning loop: looks at its triggers as the Clock goes on and runs one training at a time.

In the daemon it is driven by the learning stage, at every instant of a replay; on its own (`start_online_learning_loop`)
it has a thread that checks at an interval. What it knows of the past stands in the database.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library_access import open_library
from training import chosen_run, training_runs, version_retention
from training.model_card import CardKeeper
from training.model_expiry import ModelExpiry
from training.model_registry import ModelRegistry, ModelVersion
from training.pipelines.automated_rl_pipeline import AutomatedRLPipeline
from training.pipelines.automated_sft_pipeline import AutomatedSFTPipeline
from training.pipelines.training_pipeline import TrainingPipeline
from training.pipelines.trigger import RLPipelineConfig, SFTPipelineConfig, check_hyper_parameters
from training.trials import NothingServed, Serving, Trials
from utils.clock import Clock, isoformat
from utils.errors import LibraryUnavailable
from utils.logs import logger
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RECENT_TRAININGS = 5
TEND_EVERY_S = 60.0
"""Within which a version moves after the evidence, live, while no instant comes."""

_CONFIGURED = {
    "check_interval_hours": "learning_check_interval_hours",
    "sft_min_new_trajectories": "sft_min_trajectories",
    "sft_retrain_interval_hours": "sft_retrain_interval_hours",
    "rl_min_new_trajectories": "rl_min_trajectories",
    "rl_retrain_interval_hours": "rl_retrain_interval_hours",
    "data_dir": "data_dir",
}
"""What a field of `OnlineLearningConfig` is called in the daemon's configuration."""


@dataclass(frozen=True, slots=True)
class OnlineLearningConfig:
    """Triggers and database of a loop on its own; without `db_host` the embedded database below `data_dir`."""

    check_interval_hours: float = 6.0
    sft_min_new_trajectories: int = 100
    sft_retrain_interval_hours: float = 24.0
    rl_min_new_trajectories: int = 500
    rl_retrain_interval_hours: float = 48.0
    supervisor_update_interval_hours: float = 1.0
    db_host: str | None = None
    db_port: int = 5432
    db_name: str = "trading_experience"
    db_user: str = "postgres"
    db_password: str = "postgres"  # noqa: S105 - the documented default
    data_dir: Path = Path("var")

    @classmethod
    def from_settings(cls, settings: OrchestratorConfig) -> OnlineLearningConfig:
        """Return the triggers of the daemon's configuration; its database is named by the configuration itself."""
        return cls(**{ours: getattr(settings, configured) for ours, configured in _CONFIGURED.items()})

    def settings(self) -> OrchestratorConfig:
        """Return the configuration in which these triggers and this database take the place of the configured ones."""
        given = {configured: getattr(self, ours) for ours, configured in _CONFIGURED.items()}
        if self.db_host:
            given |= {name: getattr(self, name) for name in ("db_host", "db_port", "db_name", "db_user", "db_password")}
        return OrchestratorConfig(**given)


class OnlineLearningLoop:
    """Triggers, trainings and their record.

    Parameters
    ----------
    config : OnlineLearningConfig
    library : ExperienceLibraryPostgres
    pipelines : list of TrainingPipeline
        In the order in which they are checked: of an agent, fine-tuning comes before reinforcement learning.
    clock : Clock
        Of `start`'s own thread.
    trials : Trials
        Of the versions that there are; an agent's trainings wait while it has a challenger.

    Attributes
    ----------
    driven : bool
        Whether somebody else calls `check`, as the daemon's learning stage does.
    progress : mapping or None
        The last progress event of the training that runs.
    """

    def __init__(
        self,
        config: OnlineLearningConfig,
        library: ExperienceLibraryPostgres,
        pipelines: Sequence[TrainingPipeline[Any]],
        clock: Clock,
        *,
        trials: Trials,
        owns_library: bool = False,
    ) -> None:
        self.config = config
        self._library = library
        self._registry = ModelRegistry(library)
        self._pipelines = pipelines
        self._expiry = ModelExpiry(library, {p.config.agent_type: p.config.max_model_age_days for p in pipelines})
        self._cards = CardKeeper(library)
        for pipeline in pipelines:
            pipeline.on_progress = self._note_progress
        self._clock = clock
        self._owns_library = owns_library
        self._trials = trials
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_check: datetime | None = None
        self._tended: datetime | None = None
        self._details: dict[tuple[str, str], str] = {}
        self._recent: list[dict[str, Any]] = []
        self._trainings = 0
        self.progress: Mapping[str, Any] | None = None
        self.driven = False
        self._refresh()

    @classmethod
    def for_daemon(
        cls,
        settings: OrchestratorConfig,
        library: ExperienceLibraryPostgres,
        clock: Clock,
        *,
        derived_ids: bool,
        serving: Serving,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> OnlineLearningLoop:
        """Build the loop of a daemon from its configuration."""
        config = OnlineLearningConfig.from_settings(settings)
        pipelines = _pipelines(settings, library, clock, derived_ids=derived_ids, telemetry=telemetry)
        trials = Trials(library, settings, serving, telemetry=telemetry)
        return cls(config, library, pipelines, clock, trials=trials)

    @property
    def running(self) -> bool:
        """Whether a thread of the loop's own checks."""
        return self._thread is not None and self._thread.is_alive()

    def restore(self) -> None:
        """Have the versions that the run has serve, and answer in shadow, as its aliases say."""
        self._trials.align()

    def tend(self, at: datetime) -> None:
        """Look at the versions again if a minute has passed: for whoever has nothing else to do meanwhile."""
        if self._tended is None or (at - self._tended).total_seconds() >= TEND_EVERY_S:
            self._trials.check(at)
            self._tended = at

    def check(self, at: datetime) -> None:
        """Look at the versions on trial; then, at most once an interval, at every trigger, and train what is ready.

        The interval is aligned to the epoch and not to the last check, so that a resumed replay checks at the same
        instants as an uninterrupted one. An instant that was checked before is checked again without effect.
        """
        self._trials.check(at)
        self._tended = at
        window = self._window(at)
        if self._last_check is not None and self._window(self._last_check) == window and self._last_check != at:
            return
        self._last_check = at
        self._expiry.check(at)
        self._trials.align(again=True)
        for pipeline in self._expiry.stale_first(self._pipelines, at):
            if self._stop.is_set():
                return
            agent_type = pipeline.config.agent_type
            waiting = self._trials.waiting(agent_type)
            if waiting is not None:
                self._details[pipeline.kind, agent_type] = waiting
                continue
            result = pipeline.run_pipeline(at=at)
            self._details[pipeline.kind, agent_type] = str(
                result.get("skipped") or result.get("error") or result.get("verdict")
            )
            if result["run_id"] is not None:
                self.progress = None
                self._trials.align()
                self._refresh()
                version_retention.tidy(self._library, pipeline.config.data_dir, pipeline.config.keep_rejected)
        self._cards.refresh()

    def resume_after(self, instant: datetime) -> None:
        """Take a check's window as checked: that of the last instant but one of a run that is resumed.

        The last instant is checked again then only if it began a window, as in the run that was not interrupted.
        """
        self._last_check = instant

    def get_status(self) -> dict[str, Any]:
        """Return running, last_check, library_stats, training_log_count, recent_trainings (last 5) and triggers."""
        try:
            statistics: dict[str, Any] | None = self._library.get_statistics()["overall"]
        except LibraryUnavailable:
            statistics = None
        return {
            "running": self.running if self._thread else self._last_check is not None and not self._stop.is_set(),
            "last_check": isoformat(self._last_check) if self._last_check else None,
            "library_stats": statistics,
            **self.snapshot(),
        }

    def snapshot(self) -> dict[str, Any]:
        """Return the part of the status that needs no query."""
        triggers = [
            {
                "kind": pipeline.kind,
                "agent_type": pipeline.config.agent_type,
                "needed": pipeline.config.min_new_trajectories,
                "detail": self._details.get((pipeline.kind, pipeline.config.agent_type), "not checked yet"),
            }
            for pipeline in self._pipelines
        ]
        return {
            "training_log_count": self._trainings,
            "recent_trainings": self._recent,
            "training_now": dict(self.progress) if self.progress else None,
            "triggers": triggers,
            "versions": self._trials.snapshot(),
        }

    def start(self) -> None:
        """Check at the interval from a thread of the loop's own."""
        if not self.running:
            self._stop.clear()
            for pipeline in self._pipelines:
                pipeline.stop_event.clear()
            self._thread = threading.Thread(target=self._run, name="online-learning", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop checking, and a training that runs. Idempotent."""
        self._stop.set()
        for pipeline in self._pipelines:
            pipeline.stop_event.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(30)
        self._thread = None

    def close(self) -> None:
        """Stop, and close what this loop opened."""
        self.stop()
        if self._owns_library:
            self._library.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.check(self._clock.now())
            except LibraryUnavailable as error:
                logger.warning("the learning loop waits: %s", error)
                self._last_check = None  # what was left of the check is not put off by an interval
                self._library.revive()
            self._stop.wait(min(self.config.check_interval_hours * 3600, 60.0))

    def _window(self, at: datetime) -> int:
        return int((at - _EPOCH).total_seconds() // (self.config.check_interval_hours * 3600))

    def _note_progress(self, event: Mapping[str, Any]) -> None:
        self.progress = event

    def _refresh(self) -> None:
        """Read the record of trainings anew."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            found = training_runs.of_run(cursor, self._library.run_id)
            models = {
                str(v.training_run_id): v for run in found[:RECENT_TRAININGS] if (v := self._version_of(cursor, run))
            }
        self._trainings = len(found)
        self._recent = [
            {
                "run_id": str(run.training_run_id),
                "agent_type": run.agent_type,
                "kind": run.kind,
                "state": run.state,
                "error": run.error,
                "data_cutoff": isoformat(run.data_cutoff) if run.data_cutoff else None,
                "started_at": isoformat(run.started_at),
                "examples": (run.metrics or {}).get("examples"),
                "version": (run.metrics or {}).get("version"),
                "gate": models[str(run.training_run_id)].gate if str(run.training_run_id) in models else None,
            }
            for run in found[:RECENT_TRAININGS]
        ]

    def _version_of(self, cursor: Any, run: training_runs.TrainingRun) -> ModelVersion | None:
        version = (run.metrics or {}).get("version")
        return self._registry.get(cursor, version) if version else None


def start_online_learning_loop(config: OnlineLearningConfig | None = None) -> OnlineLearningLoop:
    """Open the database, choose the run, start a loop that checks by that run's Clock, and return it.

    Parameters
    ----------
    config : OnlineLearningConfig, optional
        Triggers and database; by default the configured ones. All else is as configured in any case, and the run the newest
        live one that is not finished, else the newest.
    """
    config = config or OnlineLearningConfig.from_settings(OrchestratorConfig())
    settings = config.settings()
    check_hyper_parameters(settings)
    library = open_library(settings)
    clock = chosen_run.enter(library)
    trials = Trials(library, settings, NothingServed())
    pipelines = _pipelines(settings, library, clock)
    loop = OnlineLearningLoop(config, library, pipelines, clock, trials=trials, owns_library=True)
    loop.start()
    return loop


def _pipelines(
    settings: OrchestratorConfig,
    library: ExperienceLibraryPostgres,
    clock: Clock,
    *,
    derived_ids: bool = False,
    **options: Any,
) -> list[TrainingPipeline[Any]]:
    """Return the configured pipelines, fine-tuning first; `options` are those of `TrainingPipeline`."""
    tuning = (
        AutomatedSFTPipeline(
            SFTPipelineConfig.from_settings(settings, agent_type, derived_ids=derived_ids),
            library,
            clock=clock,
            **options,
        )
        for agent_type in settings.learning.sft_agents
    )
    reinforcing = (
        AutomatedRLPipeline(
            RLPipelineConfig.from_settings(settings, agent_type, derived_ids=derived_ids),
            library,
            clock=clock,
            **options,
        )
        for agent_type in settings.learning.rl_agents
    )
    return [*tuning, *reinforcing]
