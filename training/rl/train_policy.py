"""Trains a LoRA policy by GRPO in a process of its own: ``python -m training.rl.train_policy JOB.json``.

Launched by the reinforcement-learning pipeline (alone or through ``accelerate launch``); it reads an `RLJob`, lets the
policy answer, and moves it towards the better answers of each group. What surrounds the training stands in `training.child`.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from agents.policies.local.decisions import stated_experiences
from training.child.lifecycle import read_rows, run_job
from training.child.session import Session, main
from training.child.training import LOSS_WINDOW, BaseModel, fit, load_base, lora, processes, reporter, trainer_arguments
from training.job import TrainingResult
from training.rl.job import COMPONENTS, RLExample, RLJob
from training.rl.neighbours import pooled_outcomes
from training.rl.rewards import CounterfactualReward, decision_scale
from utils.errors import TrainingFailed

SIGNAL = 1e-6
"""Spread of a group's rewards below which it says nothing about what is better; rounding leaves less."""

_REPORTED = {
    "reward": "reward",
    "kl": "kl",
    "entropy": "entropy",
    "completion_length": "completions/mean_length",
    "truncated_share": "completions/clipped_ratio",
    "no_signal_share": "frac_reward_zero_std",
    "valid_share": "valid",
    "grounded_share": "grounded",
    "buy_share": "buys",
    "sell_share": "sells",
}
"""Figures of a step: our name to the trainer's."""


def run(job: RLJob, session: Session) -> TrainingResult | None:
    """Train, examine and seal; None in a helper process of accelerate.

    Raises
    ------
    TrainingFailed
        If base model, data set or held-out states cannot be used, or training diverges.
    """
    examples = _read_examples(job)
    return run_job(job, session, lambda base: _train(job, session, base, examples), job.start_adapter)


def _read_examples(job: RLJob) -> list[RLExample]:
    examples = []
    for number, row in enumerate(read_rows(job.dataset), 1):
        try:
            examples.append(RLExample.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise TrainingFailed(f"{job.dataset}, line {number}: {where}: {first['msg']}") from error
    return examples


def _train(job: RLJob, session: Session, base: BaseModel, examples: list[RLExample]) -> dict[str, float]:
    from datasets import Dataset
    from trl import GRPOConfig

    session.check()
    hyper = job.hyper_parameters
    model, tokenizer, placement = load_base(job, base)
    _check_lengths(tokenizer, model, examples, hyper.max_completion_length)
    config = GRPOConfig(
        **trainer_arguments(job),
        **placement,
        max_steps=hyper.max_steps,
        per_device_train_batch_size=hyper.batch_size,
        num_generations=hyper.num_generations,
        num_iterations=hyper.num_iterations,
        max_completion_length=hyper.max_completion_length,
        temperature=hyper.temperature,
        beta=hyper.beta,
        epsilon=hyper.epsilon,
        loss_type="dapo",
        scale_rewards="none",
        mask_truncated_completions=True,
        disable_dropout=True,
        shuffle_dataset=False,
        use_vllm=False,
        chat_template_kwargs={"enable_thinking": False},
    )
    peft_config = None
    if base.start_adapter is None:
        peft_config = lora(hyper, dropout=0.0)
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(base.start_adapter), is_trainable=True)
    order = training_order(len(examples), _prompts_needed(job), job.seed)
    prompts = [{"prompt": list(examples[number].messages), "number": number} for number in order]
    outcomes = pooled_outcomes(job.agent_type, examples, order, hyper.neighbours)
    trainer = _signal_trainer()(
        model=model,
        reward_funcs=CounterfactualReward(
            job.agent_type, examples, hyper.reward_weights, outcomes, decision_scale(outcomes.values())
        ),
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[reporter(job, session, base, "rl", figures, stop_every=hyper.num_iterations)],
    )
    experienced = stated_experiences(example.messages for example in examples)
    return fit(job, session, base, trainer, experienced, lambda logged: _measured(logged, len(examples)))


def training_order(count: int, needed: int, seed: int) -> list[int]:
    """Return which example each prompt of the whole training is, in order: pass after pass, each shuffled anew.

    Laid out before the first step, so that a resumed training meets the same prompts as one that was not cut off.
    """
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < needed:
        order += rng.sample(range(count), count)
    return order[:needed]


def _prompts_needed(job: RLJob) -> int:
    hyper = job.hyper_parameters
    return hyper.max_steps // hyper.num_iterations * (hyper.batch_size // hyper.num_generations) * processes()


def _check_lengths(tokenizer: Any, model: Any, examples: Sequence[RLExample], longest_answer: int) -> None:
    """End the run if a prompt leaves no room for an answer; the model would go on beyond what it knows positions of."""
    room = getattr(model.config, "max_position_embeddings", None)
    texts = tokenizer.apply_chat_template(
        [list(example.messages) for example in examples],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if room is not None and lengths[longest] + longest_answer > room:
        raise TrainingFailed(
            f"line {longest + 1} of the data set has {lengths[longest]} tokens and an answer may have {longest_answer}; "
            f"the model's context holds {room}"
        )


def _signal_trainer() -> Any:
    from trl import GRPOTrainer

    class SignalTrainer(GRPOTrainer):  # type: ignore[misc,unused-ignore]
        """Leaves groups out of the loss whose completions all earned the same: they would only pull towards the start."""

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
            groups = batch["advantages"].view(-1, self.num_generations)
            telling = (groups.abs().amax(dim=1) > SIGNAL).repeat_interleave(self.num_generations)
            batch["completion_mask"] = batch["completion_mask"] * telling.unsqueeze(1).to(
                batch["completion_mask"].dtype
            )
            batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
            return batch

    return SignalTrainer


def figures(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a step reports; empty of rewards where a batch was used again and nothing new was answered."""
    found = {ours: logs[theirs] for ours, theirs in _REPORTED.items() if logs.get(theirs) is not None}
    components = {name: logs[name] for name in COMPONENTS if logs.get(name) is not None}
    return {**found, **({"components": components} if components else {})}


def _measured(logged: Sequence[Mapping[str, Any]], examples: int) -> dict[str, float]:
    """Return the run's own figures: each at the beginning and at the end, over `LOSS_WINDOW` steps."""
    measured = {"examples": float(examples)}
    for name, theirs in {**_REPORTED, **{f"reward_{part}": part for part in COMPONENTS}}.items():
        values = [entry[theirs] for entry in logged if entry.get(theirs) is not None]
        if values:
            window = min(LOSS_WINDOW, math.ceil(len(values) / 2))
            measured[f"{name}_first"] = sum(values[:window]) / window
            measured[f"{name}_last"] = sum(values[-window:]) / window
    return measured


if __name__ == "__main__":
    sys.exit(main(RLJob, run))
