"""The benchmark section ``local``: how fast a local model decides in this process, and what a change of version costs.

Compared with the bare ``generate`` of transformers on the same weights, prompts and length, the arms alternating in time. The
model is the small built-in one; with a CUDA device a larger one with random weights is timed as well.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.policies.local.adapters import read_adapter
from agents.policies.local.decisions import decision_schema, parse_decision, prompt_messages
from agents.policies.local.decoding import MAX_NEW_TOKENS, generate
from agents.policies.local.engine import Adapter, AnswerSource, Question
from agents.policies.local.model import LocalModel
from agents.policies.local.server import LocalInferenceServer
from benchmarks.large_model import save_large_model
from benchmarks.measure import percentile, resampled
from training.small_base_model import build_base_model, pretraining_example
from utils.artifacts import folder_digest, seal
from utils.errors import ProviderError
from utils.settings import OrchestratorConfig

SEED = 42
ROUNDS = {1: 60, 64: 8}
"""Rounds by batch size; each round runs every arm once."""

LATENCIES, SWAPS, CALLERS, COMPARED = 120, 12, 4, 256

Arm = Callable[[Sequence[Question]], list[Any]]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the figures beside their aims and return them."""
    config = OrchestratorConfig()
    base = build_base_model(config.base_model_cache)
    print("local inference in process, float32 on one CPU thread (small built-in model), greedy")
    with tempfile.TemporaryDirectory(prefix="bench-local-") as name:
        adapters = [_adapter(base, Path(name) / f"a{seed}", seed) for seed in range(2)]
        figures = _overhead(base, adapters[0])
        figures |= _served(base, adapters)
        figures |= _on_gpu(base, Path(name) / "large")
    print()
    return figures


def _questions(count: int, seed: int) -> list[Question]:
    rng, found = random.Random(seed), []
    for _ in range(count):
        agent, state, _ = pretraining_example(rng, 0.4)
        found.append(Question(tuple(prompt_messages(agent, state)), decision_schema(agent)))
    return found


def _adapter(base: Path, folder: Path, seed: int) -> Adapter:
    """Write a LoRA as training would, with random weights that leave the model able to write decisions."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    model.save_pretrained(str(folder))
    return Adapter(folder, seal(folder, {"base_sha256": folder_digest(base)[1]}).digest)


@dataclass(frozen=True)
class _Bare:
    """The plain way: template, padding, `generate`, decoding."""

    model: Any
    tokenizer: Any
    new_tokens: int = MAX_NEW_TOKENS

    @classmethod
    def load(cls, base: Path, adapter: Adapter | None, **options: Any) -> _Bare:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(base, **options)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter.folder)).merge_and_unload()
        return cls(model.eval(), AutoTokenizer.from_pretrained(base, padding_side="left"))

    def __call__(self, questions: Sequence[Question]) -> list[str]:
        import torch

        texts = self.tokenizer.apply_chat_template(
            [list(q.messages) for q in questions], tokenize=False, add_generation_prompt=True
        )
        inputs = self.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        inputs = inputs.to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=self.new_tokens, do_sample=False)
        written = output[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]


def _loaded(base: Path, adapter: Adapter | None) -> Arm:
    model = LocalModel(base, "cpu")
    if adapter is None:
        return lambda questions: generate(model, questions)
    shelf = model.adapters
    shelf.add("v", read_adapter(adapter, model.base_sha256, shelf.device, shelf.dtype, "v"))
    return lambda questions: generate(model, questions, ["v"] * len(questions))


def _overhead(base: Path, adapter: Adapter) -> dict[str, Any]:
    """Wall time a decision beside bare generation, paired by round; the median of the pairs."""
    figures: dict[str, Any] = {}
    for label, chosen in (("base", None), ("adapter", adapter)):
        ours, bare = _loaded(base, chosen), _Bare.load(base, chosen)
        against = "generate" if chosen is None else "generate on merged weights"
        for batch, rounds in ROUNDS.items():
            asked = _questions(batch * rounds, SEED)
            walls = []
            ours(asked[:batch]), bare(asked[:batch])
            for number in range(rounds):
                part = asked[number * batch : (number + 1) * batch]
                if number % 2:
                    mine, theirs = _seconds(ours, part), _seconds(bare, part)
                else:
                    theirs, mine = _seconds(bare, part), _seconds(ours, part)
                walls.append((mine / batch, theirs / batch))
            ratio = resampled([a / b for a, b in walls], lambda values: float(np.median(values)), SEED)
            ms = 1e3 * np.median(walls, axis=0)
            print(
                f"  {label:8} batch {batch:3}: {ms[0]:7.1f} ms a decision, {against} {ms[1]:7.1f}; ratio {ratio[0]:.2f}"
                f" [{ratio[1]:.2f} to {ratio[2]:.2f}]   aim <= 1.2 (n {rounds} rounds)"
            )
            figures[f"{label}_batch{batch}"] = {"ratio": ratio, "ms": ms.tolist(), "rounds": rounds}
        if chosen is None:
            figures["agreement"] = _agreement(ours, bare)
    return figures


def _agreement(ours: Arm, bare: Arm) -> dict[str, int]:
    """Count how often the schema changes what a valid answer would have been: it should never."""
    asked = _questions(COMPARED, SEED + 1)
    pairs = [(mine, free) for mine, free in zip(ours(asked), bare(asked), strict=True) if parse_decision(free)]
    same = sum(mine == free for mine, free in pairs)
    print(
        f"  constrained answers equal to free ones where those are decisions: {same} of {len(pairs)} (asked {COMPARED})"
    )
    return {"same": same, "valid": len(pairs), "asked": COMPARED}


def _served(base: Path, adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Latency of single decisions through the thread, then changes of version while callers ask all the time."""
    server = LocalInferenceServer(LocalModel(base, "cpu"), merge_window_s=0.005)
    try:
        asked = _questions(LATENCIES, SEED + 2)
        first = server.open("first", adapters[0])
        first.answer(asked[:2])
        walls = [_seconds(first.answer, [question]) for question in asked]
        p50, p95 = (1e3 * percentile(walls, percent) for percent in (50, 95))
        print(f"  one decision through the thread: p50 {p50:.0f} ms, p95 {p95:.0f} ms   aim p95 < 500 (n {LATENCIES})")
        return {"latency_ms": {"p50": p50, "p95": p95}, "swap": _swaps(server, first, adapters, asked[:16])}
    finally:
        server.close()


def _swaps(
    server: LocalInferenceServer, first: AnswerSource, adapters: Sequence[Adapter], asked: Sequence[Question]
) -> dict[str, Any]:
    other = server.open("other", adapters[1])
    expected = [first.answer(asked), other.answer(asked)]
    other.close()
    current: list[tuple[int, AnswerSource]] = [(0, first)]
    stop, failed, mixed, done = threading.Event(), [], [], [0] * CALLERS

    def ask(caller: int) -> None:
        rng = random.Random(caller)
        while not stop.is_set():
            kind, source = current[0]
            number = rng.randrange(len(asked))
            try:
                (answer,) = source.answer([asked[number]])
            except ProviderError as error:
                failed.append(error)
            else:
                if answer != expected[kind][number]:
                    mixed.append((kind, number, answer))
            done[caller] += 1

    threads = [threading.Thread(target=ask, args=(caller,)) for caller in range(CALLERS)]
    already, totals = len(server.pauses_s), []
    for thread in threads:
        thread.start()
    for swap in range(1, SWAPS + 1):
        started = time.perf_counter()
        source = server.open(f"swap{swap}", adapters[swap % 2])
        source.answer(asked[:1])
        totals.append(1e3 * (time.perf_counter() - started))
        former, current[0] = current[0], (swap % 2, source)
        del former
        before = sum(done)
        while sum(done) < before + 20:
            stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    pauses = [1e3 * pause for pause in server.pauses_s[already:]]
    differ = sum(a != b for a, b in zip(*expected, strict=True))
    print(
        f"  {SWAPS} swaps under {CALLERS} callers: {sum(done)} decisions, {len(failed)} failed, {len(mixed)} of another version"
        f" ({differ} of {len(asked)} answers tell the versions apart)"
    )
    print(
        f"    generation paused {max(pauses):.2f} ms at most   aim <= 50 (n {len(pauses)}); open to first answer"
        f" {np.median(totals):.0f} ms [{min(totals):.0f} to {max(totals):.0f}]"
    )
    return {
        "decisions": sum(done), "failed": len(failed), "mixed": len(mixed), "pauses_ms": pauses, "totals_ms": totals,
    }  # fmt: skip


def _on_gpu(base: Path, folder: Path) -> dict[str, Any]:
    """Time a model of a few hundred million parameters, whose random weights decide as fast as trained ones."""
    import torch

    if not torch.cuda.is_available():
        print("  large model in bfloat16: skipped: no CUDA device")
        return {"gpu": None}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(save_large_model(base, folder))
    model = LocalModel(folder, "cuda", "bfloat16")
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    for batch, rounds in ((1, 30), (64, 30)):
        asked = _questions(batch * rounds, SEED + 3)
        answers = [str(answer) for answer in generate(model, asked[:64])]
        tokens = round(float(np.mean([len(ids) for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]])))
        plain = _Bare.load(folder, None, dtype=torch.bfloat16)
        bare = _Bare(plain.model.to("cuda"), plain.tokenizer, tokens)
        arms: list[Arm] = [lambda questions: generate(model, questions), bare]
        for arm in arms:
            arm(asked[:batch])
        walls = [[_seconds(arm, asked[i * batch : (i + 1) * batch]) for arm in arms] for i in range(rounds)]
        per_s = batch / np.median(walls, axis=0)
        print(
            f"  large model, {figures['device']}, bfloat16, batch {batch:3}: {per_s[0]:7.1f} decisions/s"
            f" ({per_s[0] * tokens:,.0f} tokens/s), generate {per_s[1]:7.1f} ({per_s[1] * tokens:,.0f}) (n {rounds} rounds)"
        )
        figures[f"batch{batch}"] = {"decisions_per_s": per_s.tolist(), "tokens_a_decision": tokens}
    return {"gpu": figures}


def _seconds(arm: Arm, questions: Sequence[Question]) -> float:
    started = time.perf_counter()
    arm(questions)
    return time.perf_counter() - started
