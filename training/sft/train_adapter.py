"""Fine-tunes a LoRA adapter in a process of its own: ``python -m training.sft.train_adapter JOB.json``.

Launched by the learning loop (alone or through ``accelerate launch``); it reads an `SFTJob`, reports progress as JSON
lines on standard output and leaves `SFTResult` in ``result.json``. Never touches a database, and never leaves half an
adapter: what is not sealed with a manifest does not exist. A killed run resumes from its newest whole checkpoint.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import ValidationError

from agents.policies.local.adapters import read_adapter
from agents.policies.local.decisions import decision_schema, prompt_hash, stated_experiences
from agents.policies.local.decoding import generate
from agents.policies.local.engine import Adapter, Question
from agents.policies.local.model import LocalModel
from training.base_models import resolve_base_model
from training.launcher import die_with_parent
from training.sft.job import SFTHyperParameters, SFTJob, SFTResult
from utils.artifacts import ArtifactCorrupt, publish, seal, verify, write_atomically
from utils.errors import ProviderError, TrainingFailed
from utils.hashing import canonical_json
from utils.logs import configure_logging, logger

if TYPE_CHECKING:
    from transformers import TrainerCallback

STOPPED = 143
"""Exit status after SIGTERM, as a shell would report it; there is no result file then."""

LOSS_WINDOW = 10
"""Steps over which the final loss is averaged: the loss of one batch says little."""


LEAST_EXPERIENCED = 0.1
"""Share of the examples that must show past experiences for the adapter to be shown them when it serves."""


class StopRequested(Exception):
    """SIGTERM arrived; unwinds to `main`, which exits with `STOPPED`."""


@dataclass(slots=True)
class Session:
    """The child's line to its launcher: progress out, the request to stop in."""

    out: TextIO
    stop: bool = False
    started: float = field(default_factory=time.monotonic)

    def progress(self, stage: str, step: int, steps: int, loss: float | None = None) -> None:
        """Report a step, then stop here if that was asked."""
        event = {"event": "progress", "stage": stage, "step": step, "steps": steps, "loss": loss}
        if is_main_process():
            self.out.write(json.dumps(event) + "\n")
            self.out.flush()
        self.check()

    def check(self) -> None:
        """Raise `StopRequested` if SIGTERM has arrived."""
        if self.stop:
            raise StopRequested


def is_main_process() -> bool:
    """Return whether this is the process that writes files; of several under accelerate one does."""
    return os.environ.get("RANK", "0") == "0"


def run(job: SFTJob, session: Session) -> SFTResult | None:
    """Train, examine and seal; see `SFTResult` for what is left behind (None in a helper process of accelerate).

    Raises
    ------
    TrainingFailed
        If base model, data set or held-out states cannot be used, or training diverges.
    """
    examples = _read_jsonl(job.dataset)
    questions = _read_jsonl(job.holdout) if job.holdout else []
    job.output_dir.mkdir(parents=True, exist_ok=True)
    base_dir, base_sha256 = resolve_base_model(
        job.base_model,
        job.cache_dir,
        job.base_recipe,
        lambda step, steps, loss: session.progress("pretrain", step, steps, loss),
    )
    session.check()
    adapter_dir = job.output_dir / "adapter"
    identity = job.training_identity(base_sha256)
    try:
        sealed = verify(adapter_dir)
    except ArtifactCorrupt:
        sealed = None
    if sealed is None or sealed.meta.get("identity") != identity:
        metrics = _train(job, session, base_dir, base_sha256, examples)
        session.check()
        sealed = verify(adapter_dir)
    else:
        metrics = dict(sealed.meta["metrics"])
    if not is_main_process():
        return None
    predictions = None
    if questions:
        predictions = job.output_dir / "predictions.jsonl"
        _examine(job, session, base_dir, adapter_dir, questions, predictions)
    champion_predictions = None
    if questions and job.champion_adapter is not None and _lies_on(job.champion_adapter, base_sha256):
        champion_predictions = job.output_dir / "champion_predictions.jsonl"
        _examine(job, session, base_dir, job.champion_adapter, questions, champion_predictions)
    result = SFTResult(
        job_id=job.job_id,
        base_model=job.base_model,
        base_dir=base_dir,
        base_sha256=base_sha256,
        adapter_dir=adapter_dir,
        adapter_sha256=sealed.digest,
        prompt_sha256=prompt_hash(job.agent_type),
        predictions=predictions,
        champion_predictions=champion_predictions,
        metrics={**metrics, "total_wall_s": time.monotonic() - session.started},
    )
    write_atomically(job.output_dir / "result.json", result.model_dump_json(indent=1))
    shutil.rmtree(job.output_dir / "work", ignore_errors=True)
    return result


def _train(
    job: SFTJob, session: Session, base_dir: Path, base_sha256: str, examples: list[dict[str, Any]]
) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    session.check()
    hyper, identity = job.hyper_parameters, job.training_identity(base_sha256)
    on_gpu = not hyper.use_cpu and torch.cuda.is_available()
    half = on_gpu and torch.cuda.is_bf16_supported()
    if not on_gpu:
        torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True)
    lengths = token_lengths(tokenizer, examples, hyper.max_length)
    work = job.output_dir / "work"
    resumed = _newest_checkpoint(work, identity)
    steps = hyper.epochs * -(-len(examples) // (hyper.batch_size * int(os.environ.get("WORLD_SIZE", "1"))))
    torch.manual_seed(job.seed)
    model = AutoModelForCausalLM.from_pretrained(
        base_dir, local_files_only=True, use_safetensors=True, dtype=torch.bfloat16 if half else torch.float32
    )
    config = SFTConfig(
        output_dir=str(work),
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=not on_gpu,
        bf16=half,
        gradient_checkpointing=False,
        max_length=hyper.max_length,
        packing=False,
        report_to="none",
        dataloader_pin_memory=False,
        num_train_epochs=hyper.epochs,
        per_device_train_batch_size=hyper.batch_size,
        learning_rate=hyper.learning_rate,
        lr_scheduler_type=hyper.lr_scheduler,
        warmup_steps=round(hyper.warmup_ratio * steps),
        weight_decay=hyper.weight_decay,
        max_grad_norm=hyper.max_grad_norm,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=hyper.save_steps,
        save_total_limit=2,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([_prompt_completion(example) for example in examples]),
        processing_class=tokenizer,
        peft_config=_lora(hyper, LoraConfig),
        callbacks=[_callback(session, work, identity)],
    )
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    session.check()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-LOSS_WINDOW:]
    metrics = {
        "final_loss": sum(losses) / len(losses),
        "steps": trainer.state.global_step,
        "examples": len(examples),
        "tokens": sum(lengths) * hyper.epochs,
        "wall_s": time.monotonic() - started,
        "resumed_from_step": int(resumed.name.rpartition("-")[2]) if resumed else 0,
    }
    if not metrics["final_loss"] < float("inf"):
        raise TrainingFailed(f"training diverged: the loss ended at {metrics['final_loss']}")
    if trainer.is_world_process_zero():
        meta = {
            "identity": identity,
            "base_sha256": base_sha256,
            "metrics": metrics,
            "agent_type": job.agent_type,
            "reads_experiences": stated_experiences(example["messages"] for example in examples) >= LEAST_EXPERIENCED,
        }
        _save_adapter(job, trainer.model, base_dir, meta)
    trainer.accelerator.wait_for_everyone()
    del trainer, model
    gc.collect()
    return metrics


def _lora(hyper: SFTHyperParameters, factory: Any) -> Any:
    modules = hyper.target_modules if isinstance(hyper.target_modules, str) else list(hyper.target_modules)
    return factory(
        r=hyper.lora_r,
        lora_alpha=hyper.lora_alpha,
        lora_dropout=hyper.lora_dropout,
        target_modules=modules,
        task_type="CAUSAL_LM",
    )


def _prompt_completion(example: dict[str, Any]) -> dict[str, Any]:
    """The form in which TRL trains on the answer alone, whatever the model's chat template marks."""
    return {
        "prompt": example["messages"][:-1],
        "completion": example["messages"][-1:],
        "chat_template_kwargs": {"enable_thinking": False},
    }


def token_lengths(tokenizer: Any, examples: list[dict[str, Any]], limit: int) -> list[int]:
    """Count each example's tokens; the trainer cuts silently, so a longer one than `limit` ends the run here."""
    for number, example in enumerate(examples, 1):
        messages = example.get("messages")
        if not isinstance(messages, list) or not messages or messages[-1].get("role") != "assistant":
            raise TrainingFailed(f"line {number} of the data set does not end with an assistant message")
    texts = tokenizer.apply_chat_template(
        [example["messages"] for example in examples], tokenize=False, enable_thinking=False
    )
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    # The trainer may add an end-of-text token, so one place is kept for it.
    if lengths[longest] + 1 > limit:
        name = examples[longest].get("metadata", {}).get("trajectory_id", f"line {longest + 1}")
        raise TrainingFailed(f"example {name} has {lengths[longest]} tokens; max_length {limit} would cut it")
    return lengths


def _callback(session: Session, work: Path, identity: str) -> TrainerCallback:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc,unused-ignore]
        """Reports each step, seals each checkpoint, and stops at one when asked."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if session.stop:
                control.should_save = True
                control.should_training_stop = True
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs and not session.stop:
                session.progress("sft", state.global_step, state.max_steps, float(logs["loss"]))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoint = work / f"checkpoint-{state.global_step}"
            if state.is_world_process_zero and checkpoint.is_dir():
                seal(checkpoint, {"identity": identity})

    return Reporter()


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


def _save_adapter(job: SFTJob, model: Any, base_dir: Path, meta: dict[str, Any]) -> None:
    """Write the adapter so that equal trainings give equal bytes: no path of this machine, no order of a set."""
    aside = job.output_dir / ".adapter.aside"
    shutil.rmtree(aside, ignore_errors=True)
    for config in model.peft_config.values():
        config.base_model_name_or_path = job.base_model
    model.save_pretrained(str(aside), safe_serialization=True, save_embedding_layers=False)
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


def _lies_on(champion_adapter: Path, base_sha256: str) -> bool:
    """Return whether the champion can be examined: one of another base model cannot, and what it decided stands for it."""
    same = bool(verify(champion_adapter).meta.get("base_sha256") == base_sha256)
    if not same:
        logger.warning("the champion in %s is not examined: it belongs to another base model", champion_adapter)
    return same


def _examine(
    job: SFTJob,
    session: Session,
    base_dir: Path,
    adapter_dir: Path,
    questions: list[dict[str, Any]],
    predictions: Path,
) -> None:
    """Let the trained model answer every held-out state, greedily, with the code that would serve it.

    Where there is no answer, one that does not end in time say, the text is empty, which is no decision.
    """
    schema = decision_schema(job.agent_type)
    model = LocalModel(base_dir, "cpu" if job.hyper_parameters.use_cpu else "auto")
    try:
        version, shelf = adapter_dir.name, model.adapters
        adapter = Adapter(adapter_dir, verify(adapter_dir).digest)
        shelf.add(version, read_adapter(adapter, model.base_sha256, shelf.device, shelf.dtype, version))
        answers = generate(
            model,
            [Question(tuple(question["messages"]), schema) for question in questions],
            [version] * len(questions),
            on_batch=lambda done, total: session.progress("evaluate", done, total),
        )
    finally:
        model.close()
    lines = (
        canonical_json({"key": question["key"], "text": answer if isinstance(answer, str) else ""})
        for question, answer in zip(questions, answers, strict=True)
    )
    write_atomically(predictions, "".join(f"{line}\n" for line in lines))


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise TrainingFailed(f"{path} cannot be read: {error}") from error
    if not rows or not all(isinstance(row, dict) and "messages" in row for row in rows):
        raise TrainingFailed(f"{path} is empty or has a line without messages")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job in the file named by the only argument and return the exit status."""
    die_with_parent()
    # Libraries print to standard output as they please; the launcher reads JSON lines there and nothing else.
    session = Session(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)

    def on_terminate(number: int, frame: FrameType | None) -> None:
        session.stop = True

    signal.signal(signal.SIGTERM, on_terminate)
    configure_logging()
    (path,) = sys.argv[1:] if arguments is None else arguments
    try:
        job = SFTJob.model_validate_json(Path(path).read_bytes())
    except (OSError, ValidationError) as error:
        logger.error("the job file %s cannot be used: %s", path, error)
        return 2
    try:
        (job.output_dir / "result.json").unlink(missing_ok=True)
        run(job, session)
    except StopRequested:
        logger.info("stopped on request")
        return STOPPED
    except (TrainingFailed, ProviderError, ArtifactCorrupt) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
