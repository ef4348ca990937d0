"""The benchmark section ``training``: seconds a step on the small base model, and what our child costs over plain TRL.

Child and plain script do the same steps on the same data in alternating rounds, each a process of its own from its first
import to the saved adapter. CPU time decides, since wall time on a shared machine says more of the neighbours.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.policies.local.decisions import cited_evidence, encode_decision, prompt_messages
from agents.policies.local.states import state_line
from benchmarks.large_model import save_large_model
from benchmarks.measure import Spread
from training.job import TrainingJob
from training.launcher import rl_command, run_training_child, sft_command
from training.rl.job import Outcome, RLExample, RLJob, load_rl_hyper_parameters
from training.sft.job import SFTJob, load_hyper_parameters
from training.small_base_model import build_base_model

SEED = 42
ROUNDS = 3
SFT_STEPS, RL_STEPS = 100, 8  # seconds of steps beside the seconds of importing the libraries, which both have
GPU_STEPS = 20
RL_ROWS = 160
AIM_OVERHEAD = 0.05
TIMEOUT_S = 1800.0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table and return the figures."""
    folder = Path(tempfile.mkdtemp(prefix="training-benchmark-"))
    try:
        cache = folder / "base"
        base = build_base_model(cache)
        print("training on the small base model (0.4 million parameters), one thread")
        print(f"  {'':6}{'steps':>6}{'s a step':>26}{'child, CPU s':>26}{'plain TRL, CPU s':>26}{'overhead':>10}   aim")
        figures = {kind: _measured(kind, _job(kind, folder, cache), base) for kind in ("sft", "rl")}
        return {**figures, "gpu": _on_gpu(folder, base)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measured(kind: str, job: TrainingJob, base: Path) -> dict[str, Any]:
    path = job.output_dir.with_suffix(".json")
    path.write_text(job.model_dump_json())
    command = sft_command(path) if kind == "sft" else rl_command(path)
    plain = [sys.executable, "-m", "benchmarks.bare_training", kind, str(path), str(base)]
    ours: list[float] = []
    theirs: list[float] = []
    a_step: list[float] = []
    steps = 0
    for number in range(ROUNDS):
        for child in (True, False) if number % 2 else (False, True):
            shutil.rmtree(job.output_dir, ignore_errors=True)
            cpu_s, result = _run(command if child else plain, job, reads_result=child)
            (ours if child else theirs).append(cpu_s)
            if child:
                steps = int(result["metrics"]["steps"])
                a_step.append(result["metrics"]["wall_s"] / steps)
    overhead = min(ours) / min(theirs) - 1  # a neighbour only ever adds to the CPU time of a round
    shown = "".join(f"{Spread.of(values).text(digits):>26}" for values, digits in ((a_step, 3), (ours, 1), (theirs, 1)))
    print(f"  {kind:6}{steps:6}{shown}{overhead:10.1%}   at most {AIM_OVERHEAD:.0%}")
    return {"steps": steps, "wall_s_a_step": a_step, "child_cpu_s": ours, "plain_cpu_s": theirs, "overhead": overhead}


def _on_gpu(folder: Path, small_base: Path) -> dict[str, Any] | None:
    """Train a model of half a billion parameters in bfloat16, and the same by the plain script; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        print("  half a billion parameters in bfloat16: skipped: no CUDA device")
        return None
    large = save_large_model(small_base, folder / "large")
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    for kind in ("sft", "rl"):
        job = _job(kind, folder / "gpu", folder / "base", large)
        path = folder / "gpu" / f"{kind}.json"
        path.write_text(job.model_dump_json())
        _, result = _run(sft_command(path) if kind == "sft" else rl_command(path), job)
        plain = [sys.executable, "-m", "benchmarks.bare_training", kind, str(path), str(large)]
        shutil.rmtree(job.output_dir, ignore_errors=True)
        _run(plain, job, reads_result=False)
        bare = json.loads((job.output_dir / "bare.json").read_text())
        ours, steps = result["metrics"], int(result["metrics"]["steps"])
        tokens = _tokens(kind, job, ours, large)
        print(
            f"  {kind}: {figures['device']}, bfloat16, LoRA, {steps} steps: {tokens / ours['wall_s']:,.0f} tokens/s and "
            f"{ours['peak_gpu_gib']:.2f} GiB; plain TRL {tokens / bare['wall_s']:,.0f} and {bare['peak_gpu_gib']:.2f} GiB"
        )
        figures[kind] = {"steps": steps, "tokens": tokens, "child": ours, "plain": bare}
    return figures


def _tokens(kind: str, job: TrainingJob, metrics: dict[str, float], base: Path) -> float:
    """Return how many tokens the steps went through: examples, or prompts with their answers."""
    if kind == "sft":
        return metrics["tokens"]
    from transformers import AutoTokenizer

    assert isinstance(job, RLJob)
    tokenizer = AutoTokenizer.from_pretrained(base)
    row = RLExample.model_validate_json(job.dataset.read_text().partition("\n")[0])
    text = tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True, tokenize=False)
    prompt = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    answers = metrics["steps"] * job.hyper_parameters.batch_size
    return answers * (prompt + metrics["completion_length_first"])


def _run(command: Sequence[str], job: TrainingJob, *, reads_result: bool = True) -> tuple[float, Any]:
    """Return the CPU seconds of a command and its children, and the result that it left."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    ended = run_training_child(
        command,
        log_path=job.output_dir.with_suffix(".log"),
        timeout_s=TIMEOUT_S,
        result_path=job.output_dir / "result.json" if reads_result else None,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert cpu_s <= 2 * (time.monotonic() - started)
    return cpu_s, ended.result


def _job(kind: str, folder: Path, cache: Path, large: Path | None = None) -> TrainingJob:
    folder.mkdir(exist_ok=True)
    rng = random.Random(SEED)
    common: dict[str, Any] = {
        "job_id": kind,
        "agent_type": "strategist",
        "cache_dir": cache,
        "dataset": folder / f"{kind}.jsonl",
        "output_dir": folder / kind,
        "seed": SEED,
    }
    name = "builtin:tiny"
    if large is not None:
        name = common["base_model"] = str(large)
    if kind == "sft":
        tuning = load_hyper_parameters(name).model_copy(update={"epochs": 1})
        steps = SFT_STEPS if large is None else GPU_STEPS
        _write(common["dataset"], [_tuning_row(rng) for _ in range(steps * tuning.batch_size)])
        return SFTJob(**common, hyper_parameters=tuning)
    _write(common["dataset"], [_example(rng).model_dump_json() for _ in range(RL_ROWS)])
    steps = RL_STEPS if large is None else GPU_STEPS
    reinforcing = load_rl_hyper_parameters(name).model_copy(update={"max_steps": steps, "save_steps": steps})
    return RLJob(**common, hyper_parameters=reinforcing)


def _example(rng: random.Random) -> RLExample:
    vote = rng.uniform(-1, 1)
    call = "buy" if vote > 0 else "sell"
    values = {
        "vote": vote,
        "tech": call,
        "tconf": rng.uniform(0.3, 1),
        "held": 10,
        "cash": 50,
        "vol": 2.0,
        "regime": "neutral",
    }
    messages = prompt_messages("strategist", state_line("strategist", values))
    return RLExample(messages=tuple(messages), outcomes=(Outcome(actual_return=0.05 * vote, volatility=0.02),))


def _tuning_row(rng: random.Random) -> str:
    example = _example(rng)
    answer = encode_decision(rng.choice(("buy", "sell")), 0.7, cited_evidence("strategist", example.state_text))
    return json.dumps({"messages": [*example.messages, {"role": "assistant", "content": answer}]})


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
