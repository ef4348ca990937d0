"""What a fine-tuning run is asked: the job file of `training.sft.train_adapter` and its hyper-parameters.

Written by whoever launches a run. Imports no model library, so that the daemon can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from training.job import CONFIG, Count, HyperParameters, Positive, TrainingJob, read_hyper_parameters

DEFAULT_CONFIG = CONFIG / "sft_config.yaml"


class SFTHyperParameters(HyperParameters):
    """How the adapter is trained; the keys of ``config/training/sft_config.yaml``, where each is explained."""

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    learning_rate: Positive = 2e-4
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.05
    epochs: Count = 3
    batch_size: Count = 8
    max_length: Count = 512


class SFTJob(TrainingJob):
    """One fine-tuning run; each line of its data set has `messages`, the last one the assistant's."""

    hyper_parameters: SFTHyperParameters = SFTHyperParameters()

    @property
    def algorithm(self) -> str:
        """What the training is, in words for the record of the run."""
        return "supervised fine-tuning of a LoRA adapter"


def load_hyper_parameters(base_model: str, path: Path = DEFAULT_CONFIG) -> SFTHyperParameters:
    """Read the hyper-parameters of fine-tuning for a base model; a ConfigError names what is wrong with the file."""
    return read_hyper_parameters(SFTHyperParameters, base_model, path)
