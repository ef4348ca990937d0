"""What every training child is asked and what it answers: the files between a pipeline and the child it launches.

`training.sft.job` and `training.rl.job` add what is theirs. Imports no model library, so that the daemon can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.policies.local.decisions import prompt_hash
from training.small_base_model import Recipe
from utils.errors import ConfigError, nearest
from utils.hashing import content_hash, file_sha256
from utils.settings import BUILTIN_TINY

CONFIG = Path(__file__).parents[1] / "config" / "training"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Frozen(BaseModel):
    """A record that is read from a file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HyperParameters(Frozen):
    """How an adapter is trained, whatever the objective; each key is explained in the YAML file that holds it."""

    lora_r: Count = 16
    lora_alpha: Count = 32
    target_modules: str | tuple[str, ...] = "all-linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive = 1.0
    save_steps: Count = 50
    use_cpu: bool = False
    learning_rate: Positive
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]


class TrainingJob(Frozen):
    """One run of a training child.

    Attributes
    ----------
    dataset : Path
        JSONL; what a line holds is the objective's affair.
    holdout : Path, optional
        JSONL of {"key": str, "messages": [system, user]}; the trained model answers each.
    champion_adapter : Path, optional
        The adapter that serves now; it answers the held-out states too, so that both are examined alike.
    output_dir : Path
        Receives `adapter/`, `predictions.jsonl`, `result.json`; `work/` holds checkpoints until the end.
    base_recipe : Recipe, optional
        Of ``builtin:tiny``; None is the default one.
    """

    job_id: str = Field(min_length=1)
    agent_type: Literal["technical", "news", "fundamental", "strategist"] = "technical"
    base_model: str = BUILTIN_TINY
    cache_dir: Path
    dataset: Path
    holdout: Path | None = None
    champion_adapter: Path | None = None
    output_dir: Path
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    hyper_parameters: HyperParameters
    base_recipe: Recipe | None = None

    @property
    def algorithm(self) -> str:
        """What the training is, in words for the record of the run."""
        raise NotImplementedError

    @property
    def starts_from(self) -> Path | None:
        """The adapter that training begins with; None for the base model itself."""
        return None

    def training_identity(self, base_sha256: str, start_sha256: str | None = None) -> str:
        """Return the hash of all that the weights follow from; a checkpoint of another identity is never resumed."""
        return content_hash(
            [
                base_sha256,
                start_sha256,
                file_sha256(self.dataset),
                self.seed,
                self.algorithm,
                self.hyper_parameters.model_dump(mode="json"),
                prompt_hash(self.agent_type),
            ]
        )


class TrainingResult(Frozen):
    """What a completed run left behind; `result.json` exists only then.

    `adapter_sha256` is the digest over all files of `adapter_dir`; `metrics` has first_loss, final_loss, steps, examples,
    wall_s (of training), total_wall_s, resumed_from_step, and what the objective adds.
    """

    state: Literal["completed"] = "completed"
    job_id: str
    base_model: str
    base_dir: Path
    base_sha256: str
    adapter_dir: Path
    adapter_sha256: str
    prompt_sha256: str
    predictions: Path | None
    champion_predictions: Path | None = None
    metrics: dict[str, float]


H = TypeVar("H", bound=HyperParameters)


def read_hyper_parameters(kind: type[H], base_model: str, path: Path) -> H:
    """Read the hyper-parameters for a base model; a profile without a revision holds for all of them.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key is unknown or its value impossible.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not content.keys() <= {"defaults", "profiles"}:
        raise ConfigError(f"{path} must hold the sections defaults and profiles, and nothing else")
    profiles = content.get("profiles") or {}
    profile = profiles.get(base_model) or profiles.get(base_model.partition("@")[0])
    merged = {**(content.get("defaults") or {}), **(profile or {})}
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        hint = nearest(key, kind.model_fields) if first["type"] == "extra_forbidden" else ""
        raise ConfigError(f"{path}: {key}: {first['msg']}{hint}") from error
