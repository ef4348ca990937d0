"""Trains one agent's local model on what its decisions would have been worth, and lets the gate decide whether it serves.

Called by the learning loop after fine-tuning, and by hand through `run_automated_rl_pipeline` or ``python -m training.rl``.
Winners and losers are learned from alike: what counts is the state and what the instrument did, not what was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from data_pipeline.datasets import SavedDataset, save_dataset
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training.job import TrainingJob
from training.launcher import rl_command
from training.pipelines.training_pipeline import TrainingPipeline
from training.pipelines.trigger import RLPipelineConfig
from training.rl.dataset import counterfactual_examples
from training.rl.job import GRPO_CONFIG, RLJob, load_rl_hyper_parameters
from training.version_base import ConfiguredBase
from utils.errors import TrainingFailed
from utils.settings import OrchestratorConfig


class AutomatedRLPipeline(TrainingPipeline[RLPipelineConfig]):
    """One agent's reinforcement learning, from trigger to verdict; see `TrainingPipeline` for the parameters."""

    kind: ClassVar[str] = "rl"

    def __init__(
        self,
        config: RLPipelineConfig | None = None,
        library: ExperienceLibraryPostgres | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            config or RLPipelineConfig.from_settings(OrchestratorConfig(), "strategist"), library, **options
        )

    def _dataset(self, train_end: datetime, market_regime: str | None) -> SavedDataset:
        matured = self._library.get_matured_trajectories(self.config.agent_type, as_of=train_end)
        examples = counterfactual_examples(
            matured,
            market_regime,
            horizon_sessions=self.config.horizon_sessions,
            round_trip_cost=2 * self.config.one_way_cost,
        )
        if not examples:
            raise TrainingFailed("there is no matured decision with a readable state in the training period")
        rows = [example.model_dump(mode="json") for example in examples]
        return save_dataset(rows, self.config.data_dir / "datasets", kind="rl", form="outcomes", rule="all")

    def _job(self, common: Mapping[str, Any], train_end: datetime) -> TrainingJob:
        path = self.config.hyper_parameters or GRPO_CONFIG
        hyper = load_rl_hyper_parameters(self.config.base_model, path)
        start = self._start(hyper.base_model, train_end)
        return RLJob(**common, base_model=hyper.base_model, start_adapter=start, hyper_parameters=hyper)

    def _start(self, base_model: str, train_end: datetime) -> Path | None:
        """Return the adapter to begin with: the champion's, else the newest fine-tuned one, of those on the same base model.

        A fine-tuned one that has seen later outcomes, of a time when less was held out, would answer the held-out states by
        heart; the champion is what the gate compares with, so that it gains nothing by what both have seen.
        """
        base = ConfiguredBase(base_model, self.config.cache_dir)
        champion = self._registry.holder(self.config.agent_type, "champion")
        if champion is not None and base.fits(champion):
            return champion.path
        tuned = self._registry.newest_of_kind(self.config.agent_type, "sft", train_end, base.fits)
        return tuned.path if tuned is not None and tuned.path.is_dir() else None

    def _command(self, job_path: Path) -> list[str]:
        return rl_command(job_path, self.config.accelerate_config)


def run_automated_rl_pipeline(market_regime: str | None = None, force_retrain: bool = False) -> dict[str, Any]:
    """Run the pipeline once as configured, on the experiences of the newest live run or else of the newest, as of its present.

    For people and schedulers: what ``python -m training.rl`` does, without a terminal.
    """
    pipeline = AutomatedRLPipeline()
    try:
        return pipeline.run_pipeline(market_regime, force_retrain)
    finally:
        pipeline.close()
