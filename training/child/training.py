"""A trainer of TRL run so that it can be killed at any instant: sealed checkpoints, exact resume, one sealed adapter.

The children build their trainer with `load_base`, `trainer_arguments` and `reporter`, and hand it to `fit`. What is
optimised is theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.child.session import Session
from training.job import HyperParameters, TrainingJob
from utils.artifacts import ArtifactCorrupt, publish, seal, verify
from utils.errors import TrainingFailed
from utils.logs import logger

if TYPE_CHECKING:
    from transformers import TrainerCallback

LOSS_WINDOW = 10
"""Steps over which the final loss is averaged: the loss of one batch says little."""

LEAST_EXPERIENCED = 0.1
"""Share of the examples that must show past experiences for the adapter to be shown them when it serves."""

Figures = Callable[[Mapping[str, Any]], dict[str, Any]]
"""What a stage reports of a step beside the loss, out of what the trainer logged."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What a training begins with: the base model, the adapter to start from, and the identity of the training."""

    folder: Path
    sha256: str
    start_adapter: Path | None
    identity: str


def processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def same_base(adapter: Path, base_sha256: str, what: str) -> bool:
    """Return whether an adapter is whole and lies on the base model, and warn where not: it is of no use then."""
    try:
        if verify(adapter).meta.get("base_sha256") == base_sha256:
            return True
        reason = "it belongs to another base model"
    except ArtifactCorrupt as error:
        reason = str(error)
    logger.warning("%s in %s is left out: %s", what, adapter, reason)
    return False


def load_base(job: TrainingJob, base: BaseModel) -> tuple[Any, Any, dict[str, Any]]:
    """Return the model, its tokenizer, and the trainer's arguments that say where and how precisely it computes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    on_gpu = not job.hyper_parameters.use_cpu and torch.cuda.is_available()
    half = on_gpu and torch.cuda.is_bf16_supported()
    if not on_gpu:
        torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    torch.manual_seed(job.seed)
    model = AutoModelForCausalLM.from_pretrained(
        base.folder, local_files_only=True, use_safetensors=True, dtype=torch.bfloat16 if half else torch.float32
    )
    return model, tokenizer, {"use_cpu": not on_gpu, "bf16": half}


def trainer_arguments(job: TrainingJob) -> dict[str, Any]:
    """Return the arguments that every trainer gets."""
    hyper = job.hyper_parameters
    return {
        "output_dir": str(work_dir(job)),
        "seed": job.seed,
        "data_seed": job.seed,
        "gradient_checkpointing": False,
        "report_to": "none",
        "dataloader_pin_memory": False,
        "learning_rate": hyper.learning_rate,
        "lr_scheduler_type": hyper.lr_scheduler,
        "weight_decay": hyper.weight_decay,
        "max_grad_norm": hyper.max_grad_norm,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": hyper.save_steps,
        "save_total_limit": 2,
    }


def work_dir(job: TrainingJob) -> Path:
    """Return where checkpoints lie until the training is done."""
    return job.output_dir / "work"


def lora(hyper: HyperParameters, dropout: float) -> Any:
    """Return PEFT's configuration of a fresh adapter."""
    from peft import LoraConfig

    modules = hyper.target_modules if isinstance(hyper.target_modules, str) else list(hyper.target_modules)
    return LoraConfig(
        r=hyper.lora_r,
        lora_alpha=hyper.lora_alpha,
        lora_dropout=dropout,
        target_modules=modules,
        task_type="CAUSAL_LM",
    )


def reporter(
    job: TrainingJob,
    session: Session,
    base: BaseModel,
    stage: str,
    figures: Figures = lambda logs: {},
    stop_every: int = 1,
) -> TrainerCallback:
    """Return the callback that reports each step, seals each checkpoint, and stops at one when asked.

    `stop_every`: a stop waits for a multiple of so many steps, where a batch is used for several of them.
    """
    from transformers import TrainerCallback

    work = work_dir(job)

    class Reporter(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if session.stop and state.global_step % stop_every == 0:
                control.should_save = True
                control.should_training_stop = True
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            # a stop waits for the end of a step, where a checkpoint is saved: the launcher may ask as soon as it reads this
            if logs and "loss" in logs and not session.stop:
                session.report(stage, state.global_step, state.max_steps, float(logs["loss"]), **figures(logs))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoint = work / f"checkpoint-{state.global_step}"
            if state.is_world_process_zero and checkpoint.is_dir():
                seal(checkpoint, {"identity": base.identity})

    return Reporter()


def fit(
    job: TrainingJob,
    session: Session,
    base: BaseModel,
    trainer: Any,
    experienced: float,
    measure: Callable[[list[dict[str, Any]]], dict[str, float]],
) -> dict[str, float]:
    """Train from the newest whole checkpoint to the end and seal the adapter.

    Parameters
    ----------
    trainer : Trainer
        Of TRL, with the callback of `reporter`.
    experienced : float
        Share of the examples that show past experiences.
    measure : callable
        Returns the objective's own metrics of the steps that the trainer logged.

    Raises
    ------
    TrainingFailed
        If the loss is not finite at the end.
    """
    resumed = _newest_checkpoint(work_dir(job), base.identity)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    session.check()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = [entry["loss"] for entry in steps]
    beginning, end = losses[:LOSS_WINDOW], losses[-LOSS_WINDOW:]
    metrics = {
        "first_loss": sum(beginning) / len(beginning),
        "final_loss": sum(end) / len(end),
        "steps": trainer.state.global_step,
        "wall_s": time.monotonic() - started,
        "resumed_from_step": int(resumed.name.rpartition("-")[2]) if resumed else 0,
        **_gpu_memory(),
        **measure(steps),
    }
    if not abs(metrics["final_loss"]) < float("inf"):
        raise TrainingFailed(f"training diverged: the loss ended at {metrics['final_loss']}")
    if trainer.is_world_process_zero():
        meta = {
            "identity": base.identity,
            "base_sha256": base.sha256,
            "metrics": metrics,
            "agent_type": job.agent_type,
            "reads_experiences": experienced >= LEAST_EXPERIENCED,
        }
        _save_adapter(job, trainer.model, base.folder, meta)
    trainer.accelerator.wait_for_everyone()
    return metrics


def _gpu_memory() -> dict[str, float]:
    """Return the most that this process has held on its GPU, in GiB; nothing without one."""
    import torch

    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"peak_gpu_gib": used / 2**30} if used else {}


def _newest_checkpoint(work: Path, identity: str) -> Path | None:
    """Return the newest checkpoint of this very training that is whole; others are removed, since loading one crashes."""
    whole: list[tuple[int, Path]] = []
    for folder in work.glob("checkpoint-*"):
        try:
            if verify(folder).meta.get("identity") == identity:
                whole.append((int(folder.name.rpartition("-")[2]), folder))
                continue
            reason = "it belongs to another training"
        except ArtifactCorrupt as error:
            reason = str(error)
        logger.warning("checkpoint %s is ignored: %s", folder.name, reason)
        shutil.rmtree(folder, ignore_errors=True)
    return max(whole)[1] if whole else None


def _save_adapter(job: TrainingJob, model: Any, base_dir: Path, meta: dict[str, Any]) -> None:
    """Write the adapter so that equal trainings give equal bytes: no path of this machine, no order of a set."""
    aside = job.output_dir / ".adapter.aside"
    shutil.rmtree(aside, ignore_errors=True)
    for config in model.peft_config.values():
        config.base_model_name_or_path = job.base_model
    model.save_pretrained(
        str(aside), safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"]
    )
    config_file = aside / "adapter_config.json"
    content = json.loads(config_file.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = job.base_model
    if isinstance(content.get("target_modules"), list):
        content["target_modules"] = sorted(content["target_modules"])
    config_file.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    card = aside / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(str(base_dir), job.base_model), encoding="utf-8")
    seal(aside, {"job_id": job.job_id, "base_model": job.base_model, **meta})
    publish(aside, job.output_dir / "adapter")
