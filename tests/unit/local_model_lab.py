"""Small local models for tests: a base with random weights, adapters that change its answers, questions of every agent."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from agents.policies.local.decisions import decision_schema, prompt_messages
from agents.policies.local.engine import Adapter, Question
from agents.policies.local.model import LocalModel
from training.small_base_model import Recipe, build_base_model, pretraining_example
from utils.artifacts import folder_digest, seal

MICRO = Recipe(hidden_size=32, layers=2, heads=2, intermediate_size=32, steps=2, batch_size=16, warmup_steps=1)
"""For its tokenizer and its template, which are the real ones."""


def micro_base(folder: Path) -> Path:
    """Build a base model whose weights are random and large: its answers hang on every word of the state."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, base = build_base_model(folder, MICRO), folder / "random"
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(source).save_pretrained(base)
    return base


def questions(count: int, seed: int = 0, **changes: Any) -> list[Question]:
    """Questions of all agents, of different lengths and schemas."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        agent, state, _ = pretraining_example(rng, 0.4)
        found.append(Question(tuple(prompt_messages(agent, state)), decision_schema(agent), **changes))
    return found


def write_adapter(base_dir: Path, folder: Path, seed: int, base_sha256: str | None = None, **settings: Any) -> Adapter:
    """Write a sealed adapter with random weights, large enough to change most answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    chosen = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir), LoraConfig(task_type="CAUSAL_LM", **chosen))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(str(folder))
    meta = {"base_sha256": base_sha256 or folder_digest(base_dir)[1]}
    return Adapter(folder, seal(folder, meta).digest)


def reference_answer(model: Any, local: LocalModel, question: Question) -> str:
    """Greedy answer by the plainest way there is: one token at a time, the whole text anew each time, no cache."""
    import numpy as np
    import torch

    (tokens,) = local.prompt_tokens([question.messages])
    walk = local.grammars.walk(question.schema)
    tokens = tokens + walk.forced()
    while not walk.finished:
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([tokens])).logits[0, -1].numpy()
        bits = np.unpackbits(local.grammars.masks([walk]).view(np.uint8), bitorder="little")[: len(scores)]
        tokens = tokens + walk.choose(int(np.where(bits == 1, scores, -np.inf).argmax()))
    return local.grammars.text(walk)
