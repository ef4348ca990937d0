"""Fine-tunes one junior on what came true, and lets the gate decide whether the result serves.

Called by the learning loop when a trigger is ready, by hand through `run_automated_sft_pipeline`, and by nobody else.
The training is a child process; until the gate's verdict is committed the champion is untouched.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.policies.local.decisions import example_messages, prompt_messages, stored_state
from agents.policies.local.states import LANGUAGE
from data_pipeline.data_synthesis import DataSynthesisModule, SavedDataset
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.findings import Finding
from data_pipeline.library.trajectories import Trajectory
from data_pipeline.library_access import open_library
from evaluation.error_taxonomy import ErrorSeverityClassifier, Severity
from evaluation.gate import GateSettings, GateVerdict, evaluate_gate
from training import training_runs
from training.launcher import ChildResult, run_training_child, sft_command
from training.model_registry import ModelRegistry, ModelVersion, version_name
from training.pipelines import gate_evidence
from training.pipelines.gate_evidence import Call
from training.pipelines.sft_trigger import Readiness, SFTPipelineConfig, assess
from training.sft.job import SFTJob, SFTResult, load_hyper_parameters
from utils.clock import Clock, WallClock, isoformat
from utils.errors import LibraryConflict, TrainingFailed
from utils.ids import derived_uuid, uuid7
from utils.logs import logger
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry


def _acceptable(findings: Sequence[Finding]) -> bool:
    """Return whether an output may be learned from for all that was found in it."""
    return ErrorSeverityClassifier().is_acceptable([Severity(finding.severity) for finding in findings])


class AutomatedSFTPipeline:
    """One agent's fine-tuning, from trigger to verdict.

    Parameters
    ----------
    config : SFTPipelineConfig
    library : ExperienceLibraryPostgres, optional
        The configured database is opened (and closed by `close`) if none is given.
    clock : Clock
    deploy : callable
        Told of a version that the gate has promoted, after the promotion is committed.

    Attributes
    ----------
    on_progress : callable
        Receives the child's progress events.
    """

    def __init__(
        self,
        config: SFTPipelineConfig | None = None,
        library: ExperienceLibraryPostgres | None = None,
        *,
        clock: Clock | None = None,
        deploy: Callable[[ModelVersion], None] = lambda version: None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self.config = config or SFTPipelineConfig()
        self._owned = library is None
        self._library = library or open_library(OrchestratorConfig(data_dir=self.config.data_dir))
        self._registry = ModelRegistry(self._library)
        self._clock: Clock = clock or WallClock()
        self._deploy = deploy
        self.on_progress: Callable[[Mapping[str, Any]], None] = lambda event: None
        self._telemetry = telemetry
        self.stop_event = threading.Event()

    def close(self) -> None:
        """Stop a training that runs, and close what this object opened."""
        self.stop_event.set()
        if self._owned:
            self._library.close()

    def get_training_history(self) -> list[dict[str, Any]]:
        """Return the runs of this agent, newest first."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            found = training_runs.of_run(cursor, self._library.run_id, self.config.agent_type, "sft")
        return [
            {"run_id": str(run.training_run_id), "state": run.state, "started_at": run.started_at, "error": run.error}
            for run in found
        ]

    def readiness(self, at: datetime, *, force: bool = False) -> Readiness:
        """Say whether to train now, and in words what it waits for; a run that a stop cut off is recorded as failed."""
        agent_type = self.config.agent_type
        with self._library.connection() as connection, connection.cursor() as cursor:
            past = training_runs.of_run(cursor, self._library.run_id, agent_type, "sft")
        for run in past:
            if run.state == "running" and run.started_at != at:
                self._record_failure(run.training_run_id, at, "interrupted: the daemon was stopped while it trained")
        return assess(
            self.config,
            past,
            # what no data set can hold must not count, or the trigger would fire for ever
            lambda: self._library.tally_by_session(agent_type, as_of=at, state_language=LANGUAGE),
            at,
            force=force,
        )

    def run_pipeline(
        self, market_regime: str | None = None, force_retrain: bool = False, at: datetime | None = None
    ) -> dict[str, Any]:
        """Train and decide, if it is time.

        Parameters
        ----------
        market_regime : str, optional
            Train on successes of one regime only.
        force_retrain : bool
            Do not wait for the trigger; the held-out period is needed all the same.
        at : datetime, optional
            The present of the run; the clock's by default.

        Returns
        -------
        dict
            run_id, steps, success, duration (s), and error or skipped where there is one.
        """
        at = at or self._clock.now()
        ready = self.readiness(at, force=force_retrain)
        if not ready.ready or ready.split is None:
            return {"run_id": None, "steps": [], "success": False, "duration": 0.0, "skipped": ready.detail}
        started = time.monotonic()
        identity = self._identity(at)
        steps: list[str] = []
        try:
            verdict = self._train(identity, at, ready, market_regime, steps)
        except TrainingFailed as error:
            self._record_failure(identity, at, str(error))
            return {
                "run_id": str(identity),
                "steps": steps,
                "success": False,
                "duration": time.monotonic() - started,
                "error": str(error),
            }
        result: dict[str, Any] = {
            "run_id": str(identity),
            "steps": steps,
            "success": verdict is not None,
            "duration": time.monotonic() - started,
        }
        if verdict is None:
            return {**result, "skipped": "stopped; the run goes on at the next start"}
        return {**result, "verdict": verdict.verdict}

    def _identity(self, at: datetime) -> uuid.UUID:
        if self.config.derived_ids:
            return derived_uuid(self._library.run_id, "training", "sft", self.config.agent_type, isoformat(at))
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
        held_out = self._library.get_matured_trajectories(
            self.config.agent_type, as_of=at, decided_from=split.holdout_start
        )
        holdout = [row for row in held_out if stored_state(row.agent_inputs) is not None]
        job = self._write_job(identity, dataset, holdout, folder)
        trigger = {
            "new_successes": ready.new_successes,
            "needed": self.config.min_new_trajectories,
            "at": isoformat(at),
        }
        with self._library.connection() as connection, connection.cursor() as cursor:
            span = (
                datetime.fromisoformat(dataset.from_at) if dataset.from_at else None,
                datetime.fromisoformat(dataset.to_at) if dataset.to_at else None,
            )
            query = {
                "agent_type": self.config.agent_type,
                "matured_before": isoformat(split.train_end),
                "market_regime": market_regime,
            }
            try:
                training_runs.register_dataset(
                    cursor, dataset.dataset_id, "sft", self.config.agent_type, dataset.path, dataset.rows, span, query,
                    dataset.trajectory_ids,
                )  # fmt: skip
            except (
                LibraryConflict
            ) as error:  # retention came between choice and registration: the next check chooses anew
                raise TrainingFailed(str(error)) from None
            training_runs.start(
                cursor, identity, self._library.run_id, self.config.agent_type, "sft",
                trigger=trigger, config=job.model_dump(mode="json"), data_cutoff=split.train_end, dataset_id=dataset.dataset_id, started_at=at,
            )  # fmt: skip
        logger.info(
            "training the %s agent on %d successes up to %s",
            self.config.agent_type,
            dataset.rows,
            split.train_end.date(),
        )
        child = self._run_child(folder)
        if child.state == "stopped":
            return None
        steps.append("train")
        result = SFTResult.model_validate(child.result)
        verdict = self._gate(holdout, result)
        steps.append("gate")
        self._conclude(identity, at, dataset, result, verdict)
        steps.append("registry")
        return verdict

    def _dataset(self, train_end: datetime, market_regime: str | None) -> SavedDataset:
        synthesis = DataSynthesisModule(
            self._library,
            trigger_count=self.config.min_new_trajectories,
            render=example_messages,
            acceptable=_acceptable,
            readable=lambda row: stored_state(row.agent_inputs) is not None,
        )
        selection = synthesis.select(self.config.agent_type, market_regime, as_of=train_end)
        if not selection.chosen:
            faulty = f"; {selection.faulty} were left out for errors in them" if selection.faulty else ""
            raise TrainingFailed(f"there is no success to learn from in the training period{faulty}")
        return synthesis.save_sft_dataset(synthesis.examples(selection), self.config.data_dir / "datasets")

    def _write_job(
        self, identity: uuid.UUID, dataset: SavedDataset, rows: Sequence[Trajectory], folder: Path
    ) -> SFTJob:
        agent_type = self.config.agent_type
        folder.mkdir(parents=True, exist_ok=True)
        holdout = folder / "holdout.jsonl"
        lines = (
            json.dumps({"key": row.trajectory_id, "messages": prompt_messages(agent_type, state)}) + "\n"
            for row in rows
            if (state := stored_state(row.agent_inputs)) is not None
        )
        holdout.write_text("".join(lines), encoding="utf-8")
        champion = self._registry.champion(agent_type)
        job = SFTJob(
            job_id=str(identity),
            champion_adapter=champion.path if champion else None,
            agent_type=agent_type,
            base_model=self.config.base_model,
            cache_dir=self.config.cache_dir.resolve(),
            dataset=dataset.path.resolve(),
            holdout=holdout.resolve(),
            output_dir=folder.resolve(),
            seed=self.config.seed,
            hyper_parameters=load_hyper_parameters(self.config.base_model),
        )
        (folder / "job.json").write_text(job.model_dump_json(indent=1), encoding="utf-8")
        return job

    def _run_child(self, folder: Path) -> ChildResult:
        return run_training_child(
            sft_command(folder / "job.json"),
            log_path=folder / "training.log",
            timeout_s=self.config.timeout_s,
            result_path=folder / "result.json",
            on_progress=self._note_progress,
            stop_event=self.stop_event,
        )

    def _note_progress(self, event: Mapping[str, Any]) -> None:
        if isinstance(event.get("loss"), (int, float)):
            self._telemetry.gauge(
                "training_loss", float(event["loss"]), agent_type=self.config.agent_type, training_type="sft"
            )
        self.on_progress(event)

    def _gate(self, holdout: Sequence[Trajectory], result: SFTResult) -> GateVerdict:
        """Compare what served in the held-out period with what the candidate answers to the same states."""
        if result.champion_predictions is not None:
            champion = _calls(holdout, result.champion_predictions)
        else:
            champion = {row.trajectory_id: gate_evidence.stored_call(row) for row in holdout}
        evidence = gate_evidence.pair(
            holdout,
            champion,
            _calls(holdout, result.predictions),
            horizon_sessions=self.config.horizon_sessions,
            round_trip_cost=2 * self.config.one_way_cost,
        )
        settings = GateSettings(
            min_sessions=self.config.holdout_sessions,
            min_decisions=self.config.holdout_decisions,
            seed=self.config.seed,
        )
        return evaluate_gate(evidence, settings)

    def _conclude(
        self, identity: uuid.UUID, at: datetime, dataset: SavedDataset, result: SFTResult, verdict: GateVerdict
    ) -> None:
        """Write version, verdict, promotion and the run's end in one transaction; then deploy."""
        state = {"promote": "champion", "reject": "rejected"}.get(verdict.verdict, "trained")
        name = version_name(self.config.agent_type, result.adapter_sha256)
        model = ModelVersion(
            name, self.config.agent_type, identity, result.adapter_dir, result.adapter_sha256, result.base_model, result.base_sha256,
            result.base_dir, verdict.to_dict(), state,
        )  # fmt: skip
        with self._library.connection() as connection, connection.cursor() as cursor:
            metrics = {**result.metrics, "examples": dataset.rows, "version": name, "verdict": verdict.verdict}
            training_runs.end(cursor, identity, "completed", at, metrics=metrics, checkpoint=str(result.adapter_dir))
            self._registry.register(cursor, model)
            if verdict.promoted:
                self._registry.promote(cursor, model, at, verdict.reasons[0] if verdict.reasons else "the gate")
        agent_type = self.config.agent_type
        self._telemetry.count("training_runs_total", agent_type=agent_type, training_type="sft")
        self._telemetry.count(
            "model_promotions_total" if verdict.promoted else "model_rejections_total", agent_type=agent_type
        )
        logger.info("the gate on %s: %s. %s", name, verdict.verdict, " ".join(verdict.reasons))
        if verdict.promoted:
            self._deploy(model)

    def _record_failure(self, identity: uuid.UUID, at: datetime, error: str) -> None:
        logger.error("training of the %s agent failed: %s", self.config.agent_type, error)
        self._telemetry.count("training_runs_total", agent_type=self.config.agent_type, training_type="sft")
        with self._library.connection() as connection, connection.cursor() as cursor:
            training_runs.record_failure(
                cursor, identity, self._library.run_id, self.config.agent_type, "sft", at, error[:2000]
            )


def _calls(holdout: Sequence[Trajectory], predictions: Path | None) -> dict[str, Call]:
    """Return the opinions that a file of answers to the held-out states holds."""
    texts = {row.trajectory_id: stored_state(row.agent_inputs) or "" for row in holdout}
    lines = predictions.read_text(encoding="utf-8").splitlines() if predictions is not None else []
    answers = map(json.loads, lines)
    return {a["key"]: gate_evidence.read_call(texts[a["key"]], a["text"]) for a in answers}


def run_automated_sft_pipeline(
    agent_type: str, market_regime: str | None = None, force_retrain: bool = False
) -> dict[str, Any]:
    """Run the pipeline once on the configured database; for people and schedulers."""
    pipeline = AutomatedSFTPipeline(SFTPipelineConfig(agent_type=agent_type))
    try:
        return pipeline.run_pipeline(market_regime, force_retrain)
    finally:
        pipeline.close()
