"""One agent's training, from trigger to verdict: what fine-tuning and reinforcement learning have in common.

A pipeline adds its data set and its job. The training is a child process; until the gate's verdict is committed the
champion is untouched.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from agents.policies.local.decisions import prompt_messages, stored_state
from agents.policies.local.states import LANGUAGE
from data_pipeline.datasets import SavedDataset
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.trajectories import Trajectory
from data_pipeline.library_access import open_library
from evaluation.gate import GateSettings, GateVerdict, evaluate_gate
from training import chosen_run, error_budget, model_card, training_runs
from training.code_version import code_version
from training.job import TrainingJob, TrainingResult
from training.launcher import ChildResult, run_training_child
from training.model_expiry import StaleModels
from training.model_registry import ModelRegistry, ModelVersion, version_name
from training.pipelines import gate_evidence, one_at_a_time, preconditions
from training.pipelines.baseline import configured_calls, why_incomparable
from training.pipelines.conclusion import conclude
from training.pipelines.gate_evidence import Call
from training.pipelines.holdout import Split
from training.pipelines.trigger import PipelineConfig, Readiness, assess
from utils.clock import Clock, WallClock, isoformat
from utils.errors import LibraryConflict, TrainingBlocked, TrainingFailed
from utils.ids import derived_uuid, uuid7
from utils.logs import logger
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry

C = TypeVar("C", bound=PipelineConfig)


class TrainingPipeline(ABC, Generic[C]):
    """A kind of training of one agent.

    Parameters
    ----------
    config : PipelineConfig
        A kind of training takes its part of the configuration if none is given.
    library : ExperienceLibraryPostgres, optional
        The configured database is opened (and closed by `close`) if none is given, and the run chosen as by
        ``python -m training.sft``: the newest live one that is not finished, else the newest.
    clock : Clock, optional
        By default that of the chosen run; of a library that is given, the wall clock.

    Attributes
    ----------
    on_progress : callable
        Receives the child's progress events.
    """

    kind: ClassVar[str]
    """sft or rl, as the database knows it."""

    def __init__(
        self,
        config: C,
        library: ExperienceLibraryPostgres | None = None,
        *,
        clock: Clock | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self.config = config
        self._owned = library is None
        self._library = library or open_library(OrchestratorConfig(data_dir=self.config.data_dir))
        self._registry = ModelRegistry(self._library)
        self._stale = StaleModels(self._library)
        of_run = chosen_run.enter(self._library) if self._owned else WallClock()
        self._clock: Clock = clock or of_run
        self.on_progress: Callable[[Mapping[str, Any]], None] = lambda event: None
        self._telemetry = telemetry
        self.stop_event = threading.Event()
        self._said_blocked = False

    @abstractmethod
    def _dataset(self, train_end: datetime, market_regime: str | None) -> SavedDataset:
        """Write what is trained on, of outcomes that matured before `train_end`; TrainingFailed where there is nothing."""

    @abstractmethod
    def _job(self, common: Mapping[str, Any], train_end: datetime) -> TrainingJob:
        """Return the job: `common` holds the fields that are the same for every kind; nothing in it has seen later outcomes."""

    @abstractmethod
    def _command(self, job_path: Path) -> list[str]:
        """Return the child's command."""

    def close(self) -> None:
        """Stop a training that runs, and close what this object opened."""
        self.stop_event.set()
        if self._owned:
            self._library.close()

    def get_training_history(self) -> list[dict[str, Any]]:
        """Return the runs of this kind and agent, newest first."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            found = training_runs.of_run(cursor, self._library.run_id, self.config.agent_type, self.kind)
        return [
            {"run_id": str(run.training_run_id), "state": run.state, "started_at": run.started_at, "error": run.error}
            for run in found
        ]

    def readiness(self, at: datetime, *, force: bool = False) -> Readiness:
        """Say whether to train now, and in words what it waits for; a run that a stop cut off is recorded as failed.

        Whoever calls it is to be the only one who trains: what is still running in the database then runs no more.
        """
        agent_type = self.config.agent_type
        with self._library.connection() as connection, connection.cursor() as cursor:
            past = training_runs.of_run(cursor, self._library.run_id, agent_type, self.kind)
            spent = error_budget.spendings(cursor, self._library.run_id, agent_type)
        for run in past:
            if run.state == "running" and run.started_at != at:
                self._record_failure(run.training_run_id, at, "interrupted: what trained was stopped before the end")
        stale = self._stale.is_stale(agent_type, self.config.max_model_age_days, at)
        ready = assess(
            dataclasses.replace(self.config, min_new_trajectories=1) if stale else self.config,
            past,
            # what no data set can hold must not count, or the trigger would fire for ever
            lambda: self._library.tally_by_session(agent_type, as_of=at, state_language=LANGUAGE),
            at,
            force=force,
        )
        ready = preconditions.check(ready, self.config, spent, at)
        lacking = self._incomparable(ready, at)
        if lacking is None:
            return ready
        return dataclasses.replace(ready, ready=False, detail=f"{ready.detail}; {lacking}")

    def _incomparable(self, ready: Readiness, at: datetime) -> str | None:
        """Return why the gate would have nothing to compare a candidate with; None where no new training would begin."""
        if not ready.ready or ready.resumes is not None or ready.split is None:
            return None
        config = self.config
        if self._registry.holder(config.agent_type, "champion") is not None:
            return None
        held_out = self._held_out(ready.split, at)
        return why_incomparable(
            self._library, config.agent_type, held_out, config.gate_sessions, config.holdout_decisions
        )

    def _held_out(self, split: Split, at: datetime) -> list[Trajectory]:
        """Return the decisions that are kept for the gate, one of each session and symbol."""
        found = self._library.get_matured_trajectories(
            self.config.agent_type, as_of=at, decided_from=split.holdout_start
        )
        readable = [row for row in found if stored_state(row.agent_inputs) is not None]
        return gate_evidence.once_each(readable, self._library.run_id)

    def run_pipeline(
        self, market_regime: str | None = None, force_retrain: bool = False, at: datetime | None = None
    ) -> dict[str, Any]:
        """Train and decide, if it is time.

        Parameters
        ----------
        market_regime : str, optional
            Train on decisions of one regime only.
        force_retrain : bool
            Do not wait for the trigger; the held-out period is needed all the same.
        at : datetime, optional
            The present of the run; the clock's by default.

        Returns
        -------
        dict
            run_id, steps, success, duration (s), and error, skipped or verdict where there is one.
        """
        try:
            with one_at_a_time.alone(self.config.data_dir) as alone:
                if alone:
                    return self._run(market_regime, force_retrain, at or self._clock.now())
            skipped = one_at_a_time.BUSY.format(self.config.data_dir)
        except TrainingBlocked as error:  # nobody may begin here, so nothing is recorded
            skipped = f"blocked: {error}"
            logger.error("training of the %s agent (%s) is %s", self.config.agent_type, self.kind, skipped)
        return _skipped(skipped)

    def _run(self, market_regime: str | None, force_retrain: bool, at: datetime) -> dict[str, Any]:
        ready = self.readiness(at, force=force_retrain)
        identity = ready.resumes or self._identity(at)
        if not ready.ready or ready.split is None:
            recorded = ready.blocked is not None and not self.config.derived_ids
            if recorded:
                self._record_failure(identity, at, str(ready.blocked), "blocked")
            elif ready.blocked is not None and not self._said_blocked:
                logger.warning(
                    "training of the %s agent (%s) does not begin, and this replay is not the one that a larger machine "
                    "gives: %s", self.config.agent_type, self.kind, ready.blocked,
                )  # fmt: skip
            self._said_blocked = ready.blocked is not None
            return _skipped(ready.detail, identity if recorded else None)
        started = time.monotonic()
        steps: list[str] = []
        ending: dict[str, Any]
        try:
            verdict = self._train(identity, at, ready, market_regime, steps)
        except (TrainingFailed, LibraryConflict, OSError) as error:  # a full or foreign disk stops no trading
            self._record_failure(
                identity, at, str(error), "blocked" if isinstance(error, TrainingBlocked) else "failed"
            )
            verdict, ending = None, {"error": str(error)}
        else:
            skipped = {"skipped": "stopped before the end; the daemon goes on with it if it is started again"}
            ending = skipped if verdict is None else {"verdict": verdict.verdict, "reasons": list(verdict.reasons)}
        return {
            "run_id": str(identity),
            "steps": steps,
            "success": verdict is not None,
            "duration": time.monotonic() - started,
            **ending,
        }

    def _identity(self, at: datetime) -> uuid.UUID:
        if self.config.derived_ids:
            return derived_uuid(self._library.run_id, "training", self.kind, self.config.agent_type, isoformat(at))
        return uuid7()

    def _train(
        self, identity: uuid.UUID, at: datetime, ready: Readiness, market_regime: str | None, steps: list[str]
    ) -> GateVerdict | None:
        """Dataset, child process, gate, registry; None if told to stop."""
        split = ready.split
        assert split is not None and split.train_end is not None
        dataset = self._dataset(split.train_end, market_regime)
        steps.append("dataset")
        folder = self.config.data_dir / "training" / str(identity)
        holdout = self._held_out(split, at)
        job = self._write_job(identity, dataset, holdout, folder, split.train_end)
        self._record_start(identity, at, ready, market_regime, dataset, job)
        logger.info(
            "training the %s agent (%s) on %d %s up to %s",
            self.config.agent_type, self.kind, dataset.rows, self.config.counted, split.train_end.date(),
        )  # fmt: skip
        child = self._run_child(folder)
        if child.state == "stopped":
            return None
        steps.append("train")
        result = TrainingResult.model_validate(child.result)
        with self._library.connection() as connection, connection.cursor() as cursor:
            alpha = error_budget.reserve(
                cursor, identity, self._library.run_id, self.config.agent_type, self.config.error_budget_per_year, at
            )
        verdict = self._gate(holdout, result, 1 - alpha)
        steps.append("gate")
        self._conclude(identity, at, dataset, result, verdict, alpha)
        steps.append("registry")
        return verdict

    def _write_job(
        self, identity: uuid.UUID, dataset: SavedDataset, rows: Sequence[Trajectory], folder: Path, train_end: datetime
    ) -> TrainingJob:
        agent_type = self.config.agent_type
        folder.mkdir(parents=True, exist_ok=True)
        holdout = folder / "holdout.jsonl"
        lines = (
            json.dumps({"key": row.trajectory_id, "messages": prompt_messages(agent_type, state)}) + "\n"
            for row in rows
            if (state := stored_state(row.agent_inputs)) is not None
        )
        holdout.write_text("".join(lines), encoding="utf-8")
        champion = self._registry.holder(agent_type, "champion")
        job = self._job(
            {
                "job_id": str(identity),
                "champion_adapter": champion.path if champion else None,
                "agent_type": agent_type,
                "cache_dir": self.config.cache_dir.resolve(),
                "dataset": dataset.path.resolve(),
                "holdout": holdout.resolve(),
                "output_dir": folder.resolve(),
                "seed": self.config.seed,
            },
            train_end,
        )
        (folder / "job.json").write_text(job.model_dump_json(indent=1), encoding="utf-8")
        return job

    def _record_start(
        self,
        identity: uuid.UUID,
        at: datetime,
        ready: Readiness,
        market_regime: str | None,
        dataset: SavedDataset,
        job: TrainingJob,
    ) -> None:
        assert ready.split is not None and ready.split.train_end is not None
        train_end, agent_type = ready.split.train_end, self.config.agent_type
        trigger = {
            f"new_{self.config.counted.replace(' ', '_')}": ready.new_calls,
            "needed": ready.needed,
            "at": isoformat(at),
        }
        span = (
            datetime.fromisoformat(dataset.from_at) if dataset.from_at else None,
            datetime.fromisoformat(dataset.to_at) if dataset.to_at else None,
        )
        query = {"agent_type": agent_type, "matured_before": isoformat(train_end), "market_regime": market_regime}
        with self._library.connection() as connection, connection.cursor() as cursor:
            # retention may have come between choice and registration: a LibraryConflict, and the next check chooses anew
            training_runs.register_dataset(
                cursor, dataset.dataset_id, self.kind, agent_type, dataset.path, dataset.rows, span, query,
                dataset.trajectory_ids,
            )  # fmt: skip
            training_runs.start(
                cursor, identity, self._library.run_id, agent_type, self.kind, trigger=trigger,
                config={
                    **job.model_dump(mode="json"),
                    "algorithm": job.algorithm,
                    "code_version": code_version(),
                    "parent_version": self._registry.version_at(cursor, job.starts_from),
                },
                data_cutoff=train_end, dataset_id=dataset.dataset_id, started_at=at,
            )  # fmt: skip

    def _run_child(self, folder: Path) -> ChildResult:
        return run_training_child(
            self._command(folder / "job.json"),
            log_path=folder / "training.log",
            timeout_s=self.config.timeout_s,
            result_path=folder / "result.json",
            on_progress=self._note_progress,
            stop_event=self.stop_event,
        )

    def _note_progress(self, event: Mapping[str, Any]) -> None:
        agent_type = self.config.agent_type
        if isinstance(event.get("loss"), (int, float)):
            self._telemetry.gauge("training_loss", float(event["loss"]), agent_type=agent_type, training_type=self.kind)
        if isinstance(event.get("reward"), (int, float)):
            self._telemetry.gauge("training_reward", float(event["reward"]), agent_type=agent_type)
        self.on_progress(event)

    def _gate(self, holdout: Sequence[Trajectory], result: TrainingResult, level: float) -> GateVerdict:
        """Compare champion, or without one the configured policy, and candidate on the same held-out states."""
        if result.champion_predictions is not None:
            champion = self._calls(holdout, result.champion_predictions)
        else:
            champion = configured_calls(self._library, self.config.agent_type, holdout)
            holdout = [row for row in holdout if row.trajectory_id in champion]
        evidence = gate_evidence.pair(
            holdout,
            champion,
            self._calls(holdout, result.predictions),
            horizon_sessions=self.config.horizon_sessions,
            round_trip_cost=2 * self.config.one_way_cost,
        )
        settings = GateSettings(
            min_sessions=self.config.holdout_sessions,
            min_decisions=self.config.holdout_decisions,
            level=level,
            seed=self.config.seed,
        )
        return evaluate_gate(evidence, settings)

    def _calls(self, holdout: Sequence[Trajectory], predictions: Path | None) -> dict[str, Call]:
        """Return the opinions that a file of answers to the held-out states holds."""
        texts = {row.trajectory_id: stored_state(row.agent_inputs) or "" for row in holdout}
        lines = predictions.read_bytes().splitlines() if predictions is not None else []
        answers = map(json.loads, lines)
        return {a["key"]: gate_evidence.read_call(self.config.agent_type, texts[a["key"]], a["text"]) for a in answers}

    def _conclude(
        self,
        identity: uuid.UUID,
        at: datetime,
        dataset: SavedDataset,
        result: TrainingResult,
        verdict: GateVerdict,
        alpha: float,
    ) -> None:
        """Write version, verdict, moves of the aliases and the run's end in one transaction."""
        agent_type = self.config.agent_type
        name = version_name(agent_type, result.adapter_sha256)
        model = ModelVersion(
            name, agent_type, identity, result.adapter_dir, result.adapter_sha256, result.base_model, result.base_sha256,
            result.base_dir, None, "trained",
        )  # fmt: skip
        metrics = {**result.metrics, "examples": dataset.rows, "version": name, "verdict": verdict.verdict}
        metrics |= error_budget.settled(alpha, verdict.verdict)
        with self._library.connection() as connection, connection.cursor() as cursor:
            training_runs.end(cursor, identity, "completed", at, metrics=metrics, checkpoint=str(result.adapter_dir))
            state = conclude(self._registry, cursor, model, verdict, at, shadow_stage=self.config.shadow_stage)
        self._telemetry.count("training_runs_total", agent_type=agent_type, training_type=self.kind)
        if not verdict.promoted:
            self._telemetry.count("model_rejections_total", agent_type=agent_type)
        elif state == "champion":  # what becomes of a challenger is counted at the end of its trial
            self._telemetry.count("model_promotions_total", agent_type=agent_type)
        logger.info("the gate on %s: %s. %s", name, verdict.verdict, " ".join(verdict.reasons))
        model_card.write(self._library, name)

    def _record_failure(
        self, identity: uuid.UUID, at: datetime, error: str, state: Literal["failed", "blocked"] = "failed"
    ) -> None:
        agent_type = self.config.agent_type
        outcome = "is blocked" if state == "blocked" else "failed"
        logger.error("training of the %s agent (%s) %s: %s", agent_type, self.kind, outcome, error)
        self._telemetry.count("training_runs_total", agent_type=agent_type, training_type=self.kind)
        with self._library.connection() as connection, connection.cursor() as cursor:
            training_runs.record_failure(
                cursor, identity, self._library.run_id, agent_type, self.kind, at, error[:2000], state
            )


def _skipped(why: str, recorded: uuid.UUID | None = None) -> dict[str, Any]:
    """Return what `run_pipeline` does where no training begins; a blocked one may be recorded."""
    run_id = str(recorded) if recorded else None
    return {"run_id": run_id, "steps": [], "success": False, "duration": 0.0, "skipped": why}
