"""When to train: the trigger of one pipeline, decided on what the database says of the past, and in words.

Pure functions; the pipeline hands in its past runs and the tallies of matured calls. A training whose gate could only
answer "insufficient evidence" is not started.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from data_pipeline.library.outcomes import SessionTally
from evaluation.gate import GateSettings, sessions_needed
from training.pipelines.holdout import Split, split_by_time, usable_calls
from training.rl.job import GRPO_CONFIG, load_rl_hyper_parameters
from training.sft.job import DEFAULT_CONFIG, load_hyper_parameters
from training.training_runs import TrainingRun
from utils.clock import isoformat
from utils.errors import ConfigError
from utils.settings import BUILTIN_TINY, OrchestratorConfig

FIRST_RETRY = timedelta(hours=1)
LONGEST_RETRY = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """What a training pipeline needs to know, whatever it optimises.

    Attributes
    ----------
    min_new_trajectories : int
        What training may use and no completed run of the kind has seen; what of it counts is the kind's affair.
    retrain_interval_hours : float
        Between two completed runs, on the Clock.
    holdout_sessions, holdout_decisions : int
        Kept from training for the gate; more sessions where a long horizon makes it need them, see `gate_sessions`.
    horizon_sessions : int
        Of the outcomes; purge and embargo are each as long.
    one_way_cost : float
        Of a trade, fraction of its value.
    hyper_parameters : Path, optional
        YAML file; the kind's own in ``config/training`` by default.
    accelerate_config : Path, optional
        YAML file by which ``accelerate launch`` starts several processes; one process by default.
    shadow_stage : bool
        Whether a version that the gate has passed proves itself in shadow before it serves.
    derived_ids : bool
        In a replay identities follow from the run and the content; elsewhere they are time-ordered.
    error_budget_per_year, disk_budget_gb, free_memory_gb, max_model_age_days, keep_rejected
        Of section `learning` of the configuration.
    """

    kind: ClassVar[str]
    counted: ClassVar[str]
    """What of an agent's matured calls is counted, in words."""

    agent_type: str = "technical"
    data_dir: Path = Path("var")
    cache_dir: Path = Path("var/models/base")
    base_model: str = BUILTIN_TINY
    min_new_trajectories: int = 100
    retrain_interval_hours: float = 24.0
    holdout_sessions: int = 60
    holdout_decisions: int = 200
    horizon_sessions: int = 5
    one_way_cost: float = 8e-4
    timeout_s: float = 3600.0
    seed: int = 42
    hyper_parameters: Path | None = None
    accelerate_config: Path | None = None
    shadow_stage: bool = True
    derived_ids: bool = False
    error_budget_per_year: float = 0.05
    disk_budget_gb: float = 20.0
    free_memory_gb: float = 2.0
    max_model_age_days: float | None = 365.0
    keep_rejected: int = 10

    @property
    def gate_sessions(self) -> int:
        """Sessions that are held out: with fewer the gate could not judge outcomes over this horizon."""
        return sessions_needed(self.horizon_sessions, GateSettings(min_sessions=self.holdout_sessions))

    @staticmethod
    def count(tally: SessionTally) -> int:
        """Return how many calls of a session count."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class SFTPipelineConfig(PipelineConfig):
    """What the fine-tuning pipeline needs to know; it counts successes."""

    kind: ClassVar[str] = "sft"
    counted: ClassVar[str] = "successes"

    @staticmethod
    def count(tally: SessionTally) -> int:
        """Return a session's successes."""
        return tally.successes

    @classmethod
    def from_settings(
        cls, config: OrchestratorConfig, agent_type: str, *, derived_ids: bool = False
    ) -> SFTPipelineConfig:
        """Return the pipeline's part of the daemon's configuration."""
        return cls(
            min_new_trajectories=config.sft_min_trajectories,
            retrain_interval_hours=config.sft_retrain_interval_hours,
            hyper_parameters=config.learning.sft_config,
            **_shared(config, agent_type, derived_ids),
        )


@dataclass(frozen=True, slots=True)
class RLPipelineConfig(PipelineConfig):
    """What the reinforcement-learning pipeline needs to know; winners and losers count alike."""

    kind: ClassVar[str] = "rl"
    counted: ClassVar[str] = "matured decisions"

    agent_type: str = "strategist"
    min_new_trajectories: int = 500
    retrain_interval_hours: float = 48.0

    @staticmethod
    def count(tally: SessionTally) -> int:
        """Return a session's decisions."""
        return tally.decisions

    @classmethod
    def from_settings(
        cls, config: OrchestratorConfig, agent_type: str, *, derived_ids: bool = False
    ) -> RLPipelineConfig:
        """Return the pipeline's part of the daemon's configuration."""
        return cls(
            min_new_trajectories=config.rl_min_trajectories,
            retrain_interval_hours=config.rl_retrain_interval_hours,
            hyper_parameters=config.learning.rl_config,
            **_shared(config, agent_type, derived_ids),
        )


def _shared(config: OrchestratorConfig, agent_type: str, derived_ids: bool) -> dict[str, Any]:
    return {
        "agent_type": agent_type,
        "data_dir": config.data_dir,
        "cache_dir": config.base_model_cache,
        "base_model": config.learning.base_model,
        "holdout_sessions": config.learning.holdout_sessions,
        "holdout_decisions": config.learning.holdout_decisions,
        "horizon_sessions": config.decision.horizon_sessions,
        "one_way_cost": config.execution.one_way_cost,
        "accelerate_config": config.learning.accelerate_config,
        "timeout_s": config.learning.train_timeout_s,
        "seed": config.random_state,
        "shadow_stage": config.learning.shadow_stage,
        "derived_ids": derived_ids,
        "error_budget_per_year": config.learning.error_budget_per_year,
        "disk_budget_gb": config.learning.disk_budget_gb,
        "free_memory_gb": config.learning.free_memory_gb,
        "max_model_age_days": config.learning.max_model_age_days,
        "keep_rejected": config.learning.keep_rejected,
    }


def check_hyper_parameters(config: OrchestratorConfig) -> None:
    """Read what the learning loop's trainings are configured with, so that faults are found at the start and not at the first.

    Raises
    ------
    ConfigError
        Naming the setting, and the file and key that are wrong.
    """
    if not config.enable_learning_loop:
        return
    learning = config.learning
    if learning.accelerate_config is not None and not learning.accelerate_config.is_file():
        raise ConfigError(
            f"learning.accelerate_config: there is no file {learning.accelerate_config}; `accelerate config` writes one, or null"
        )
    try:
        setting = "sft_config"
        load_hyper_parameters(learning.base_model, learning.sft_config or DEFAULT_CONFIG)
        setting = "rl_config"
        load_rl_hyper_parameters(learning.base_model, learning.rl_config or GRPO_CONFIG)
    except ConfigError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"learning.{setting}: {reason}; mend it, name another file, or null for this version's own"
        ) from None


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a training may start, and in words what it waits for.

    Attributes
    ----------
    resumes : uuid.UUID, optional
        The training that a kill, or a database that went away, cut off: it goes on under its identity.
    blocked : str, optional
        What the machine lacks for it, in words.
    needed : int
        How many new calls were asked for.
    """

    ready: bool
    new_calls: int
    detail: str
    split: Split | None = None
    resumes: uuid.UUID | None = None
    blocked: str | None = None
    needed: int = 0


def assess(
    config: PipelineConfig,
    past: Sequence[TrainingRun],
    tally: Callable[[], Sequence[SessionTally]],
    at: datetime,
    *,
    force: bool = False,
) -> Readiness:
    """Say whether to train now: enough time, enough new calls of those that the kind counts, and a held-out period that allows a verdict.

    Parameters
    ----------
    past : sequence of TrainingRun
        The agent's runs of the kind, newest first. One that is still running and began at `at` was cut off by a kill: it goes on.
    tally : callable
        Reads the matured calls by session; asked only if it is time.
    force : bool
        Neither wait for the interval nor for new calls.
    """
    cut_off = next((run for run in past if run.state == "running" and run.started_at == at), None)
    if cut_off is not None:
        tallies = tally()
        split = _split(config, tallies)
        usable = usable_calls(tallies, split, None, config.count)
        return Readiness(
            split.train_end is not None, usable, "an interrupted run goes on", split, cut_off.training_run_id
        )
    last = next((run for run in past if run.state == "completed"), None)
    if not force and (wait := _must_wait(config, past, last, at)):
        return Readiness(False, 0, wait)
    tallies = tally()
    since = last.data_cutoff if last and not force else None
    new = sum(config.count(row) for row in tallies if since is None or row.matured_at >= since)
    if not force and new < config.min_new_trajectories:
        return Readiness(False, new, f"{new} of {config.min_new_trajectories} new {config.counted}")
    split = _split(config, tallies)
    enough = split.holdout_sessions >= config.gate_sessions and split.holdout_decisions >= config.holdout_decisions
    if not enough or split.train_end is None:
        wanted = f"the gate needs {config.gate_sessions} held-out sessions and {config.holdout_decisions} decisions"
        there = f"there are {split.holdout_sessions} and {split.holdout_decisions}, and nothing before them"
        return Readiness(False, new, f"{wanted}; {there}")
    usable = usable_calls(tallies, split, since, config.count)
    needed = 1 if force else config.min_new_trajectories
    if usable < needed:
        detail = f"{usable} of {config.min_new_trajectories} new {config.counted} before the held-out period"
        return Readiness(False, usable, detail)
    detail = f"{usable} new {config.counted}, {split.holdout_sessions} sessions held out"
    return Readiness(True, usable, detail, split, needed=needed)


def _split(config: PipelineConfig, tallies: Sequence[SessionTally]) -> Split:
    return split_by_time(tallies, config.gate_sessions, config.holdout_decisions, config.horizon_sessions)


def _must_wait(
    config: PipelineConfig, past: Sequence[TrainingRun], last: TrainingRun | None, at: datetime
) -> str | None:
    """Return what to wait for: the interval after a success, the growing pause after failures."""
    interval = timedelta(hours=config.retrain_interval_hours)
    if last is not None and at - last.started_at < interval:
        return f"last trained {isoformat(last.started_at)}; next after {config.retrain_interval_hours:g} h"
    failures = 0
    for run in past:
        if run.state == "completed":
            break
        failures += run.state in ("failed", "blocked")
    if failures:
        pause = min(FIRST_RETRY * 2 ** (failures - 1), LONGEST_RETRY)
        newest = next(run for run in past if run.state in ("failed", "blocked"))
        if newest.ended_at is not None and at - newest.ended_at < pause:
            why = f"blocked: {newest.error}" if newest.state == "blocked" else f"{failures} failed in a row"
            return f"{why}; next try {isoformat(newest.ended_at + pause)}"
    return None
