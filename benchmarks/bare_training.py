"""The contender of the section ``training``: the same training as a plain script of TRL, as its documentation writes one.

``python -m benchmarks.bare_training sft|rl JOB.json BASE_DIR``: no progress, no checkpoints, no seal; it reads the job's
data, numbers and rewards so that both do the same steps.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from training.rl.job import RewardWeights, RLExample
from training.rl.neighbours import pooled_outcomes
from training.rl.rewards import CounterfactualReward, decision_scale


def main() -> None:
    """Train and save the adapter."""
    kind, job_path, base_dir = sys.argv[1:]
    job = json.loads(Path(job_path).read_text())
    hyper = job["hyper_parameters"]
    on_gpu = not hyper["use_cpu"] and torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
    rows = [json.loads(line) for line in Path(job["dataset"]).read_text().splitlines()]
    common: dict[str, Any] = {
        "output_dir": job["output_dir"],
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "gradient_checkpointing": False,
        "report_to": "none",
        "dataloader_pin_memory": False,
        "learning_rate": hyper["learning_rate"],
        "lr_scheduler_type": hyper["lr_scheduler"],
        "per_device_train_batch_size": hyper["batch_size"],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    shared: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16 if on_gpu else torch.float32),
        "processing_class": AutoTokenizer.from_pretrained(base_dir),
        "peft_config": LoraConfig(
            r=hyper["lora_r"], lora_alpha=hyper["lora_alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    }
    trainer: Any
    if kind == "sft":
        pairs = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
        config = SFTConfig(**common, max_length=hyper["max_length"], num_train_epochs=hyper["epochs"])
        trainer = SFTTrainer(args=config, train_dataset=Dataset.from_list(pairs), **shared)
    else:
        examples = [RLExample.model_validate(row) for row in rows]
        prompts = [{"prompt": row["messages"], "number": number} for number, row in enumerate(rows)]
        outcomes = pooled_outcomes(job["agent_type"], examples, range(len(rows)), hyper["neighbours"])
        trainer = GRPOTrainer(
            args=GRPOConfig(
                **common,
                max_steps=hyper["max_steps"],
                num_generations=hyper["num_generations"],
                max_completion_length=hyper["max_completion_length"],
                beta=hyper["beta"],
                scale_rewards="none",
                mask_truncated_completions=True,
            ),
            reward_funcs=CounterfactualReward(
                job["agent_type"], examples, RewardWeights(), outcomes, decision_scale(outcomes.values())
            ),
            train_dataset=Dataset.from_list(prompts),
            **shared,
        )
    started = time.monotonic()
    trainer.train()
    wall_s = time.monotonic() - started
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    (Path(job["output_dir"]) / "bare.json").write_text(json.dumps({"wall_s": wall_s, "peak_gpu_gib": peak}))
    trainer.save_model(str(Path(job["output_dir"]) / "adapter"))


if __name__ == "__main__":
    main()
