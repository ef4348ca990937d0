"""Fine-tunes one junior on what came true and on what should have been said instead, and lets the gate decide whether the result serves.

Called by the learning loop when a trigger is ready, and by hand through `run_automated_sft_pipeline` or
``python -m training.sft``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from agents.policies.local.decisions import example_messages, stored_state
from data_pipeline.data_synthesis import Correction, DataSynthesisModule
from data_pipeline.datasets import SavedDataset
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.findings import Finding
from data_pipeline.library.trajectories import Trajectory
from evaluation.error_taxonomy import ErrorSeverityClassifier, Severity
from training.job import TrainingJob
from training.launcher import sft_command
from training.pipelines.training_pipeline import TrainingPipeline
from training.pipelines.trigger import SFTPipelineConfig
from training.sft.hindsight import corrections
from training.sft.job import DEFAULT_CONFIG, SFTJob, load_hyper_parameters
from utils.errors import TrainingFailed
from utils.settings import OrchestratorConfig


def _acceptable(findings: Sequence[Finding]) -> bool:
    """Return whether an output may be learned from for all that was found in it."""
    return ErrorSeverityClassifier().is_acceptable([Severity(finding.severity) for finding in findings])


class AutomatedSFTPipeline(TrainingPipeline[SFTPipelineConfig]):
    """One agent's fine-tuning, from trigger to verdict; see `TrainingPipeline` for the parameters."""

    kind: ClassVar[str] = "sft"

    def __init__(
        self,
        config: SFTPipelineConfig | None = None,
        library: ExperienceLibraryPostgres | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            config or SFTPipelineConfig.from_settings(OrchestratorConfig(), "technical"), library, **options
        )

    def _dataset(self, train_end: datetime, market_regime: str | None) -> SavedDataset:
        synthesis = DataSynthesisModule(
            self._library,
            trigger_count=self.config.min_new_trajectories,
            render=example_messages,
            acceptable=_acceptable,
            readable=lambda row: stored_state(row.agent_inputs) is not None,
            correct=self._corrections,
        )
        selection = synthesis.select(self.config.agent_type, market_regime, as_of=train_end)
        if not selection.chosen:
            faulty = f"; {selection.faulty} were left out for errors in them" if selection.faulty else ""
            raise TrainingFailed(f"there is no success to learn from in the training period{faulty}")
        return synthesis.save_sft_dataset(synthesis.examples(selection), self.config.data_dir / "datasets")

    def _corrections(self, matured: Sequence[Trajectory]) -> Mapping[str, Correction]:
        return corrections(
            self.config.agent_type,
            matured,
            horizon_sessions=self.config.horizon_sessions,
            round_trip_cost=2 * self.config.one_way_cost,
        )

    def _job(self, common: Mapping[str, Any], train_end: datetime) -> TrainingJob:
        base_model = self.config.base_model
        hyper = load_hyper_parameters(base_model, self.config.hyper_parameters or DEFAULT_CONFIG)
        return SFTJob(**common, base_model=base_model, hyper_parameters=hyper)

    def _command(self, job_path: Path) -> list[str]:
        return sft_command(job_path, self.config.accelerate_config)


def run_automated_sft_pipeline(
    agent_type: str, market_regime: str | None = None, force_retrain: bool = False
) -> dict[str, Any]:
    """Run the pipeline once as configured, on the experiences of the newest live run or else of the newest, as of its present.

    For people and schedulers: what ``python -m training.sft`` does, without a terminal.
    """
    pipeline = AutomatedSFTPipeline(SFTPipelineConfig.from_settings(OrchestratorConfig(), agent_type))
    try:
        return pipeline.run_pipeline(market_regime, force_retrain)
    finally:
        pipeline.close()
