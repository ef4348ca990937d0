"""Fine-tunes a LoRA adapter in a process of its own: ``python -m training.sft.train_adapter JOB.json``.

Launched by the learning loop (alone or through ``accelerate launch``); it reads an `SFTJob` and trains on the answers of
its examples. What surrounds the training stands in `training.child`.
"""

from __future__ import annotations

import sys
from typing import Any

from agents.policies.local.decisions import stated_experiences
from training.child.lifecycle import read_rows, run_job
from training.child.session import Session, main
from training.child.training import BaseModel, fit, load_base, lora, processes, reporter, trainer_arguments
from training.job import TrainingResult
from training.sft.job import SFTJob
from utils.errors import TrainingFailed


def run(job: SFTJob, session: Session) -> TrainingResult | None:
    """Train, examine and seal; None in a helper process of accelerate.

    Raises
    ------
    TrainingFailed
        If base model, data set or held-out states cannot be used, or training diverges.
    """
    examples = read_rows(job.dataset)
    return run_job(job, session, lambda base: _train(job, session, base, examples))


def _train(job: SFTJob, session: Session, base: BaseModel, examples: list[dict[str, Any]]) -> dict[str, float]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    session.check()
    hyper = job.hyper_parameters
    model, tokenizer, placement = load_base(job, base)
    lengths = token_lengths(tokenizer, examples, hyper.max_length)
    steps = hyper.epochs * -(-len(examples) // (hyper.batch_size * processes()))
    config = SFTConfig(
        **trainer_arguments(job),
        **placement,
        max_length=hyper.max_length,
        packing=False,
        num_train_epochs=hyper.epochs,
        per_device_train_batch_size=hyper.batch_size,
        warmup_steps=round(hyper.warmup_ratio * steps),
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([_prompt_completion(example) for example in examples]),
        processing_class=tokenizer,
        peft_config=lora(hyper, hyper.lora_dropout),
        callbacks=[reporter(job, session, base, "sft")],
    )
    experienced = stated_experiences(example["messages"] for example in examples)
    counted = {"examples": float(len(examples)), "tokens": float(sum(lengths) * hyper.epochs)}
    return fit(job, session, base, trainer, experienced, lambda logged: counted)


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


if __name__ == "__main__":
    sys.exit(main(SFTJob, run))
