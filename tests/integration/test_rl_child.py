"""The reinforcement-learning child, once for real: it learns a planted relation, survives kills to the same bytes, and
trains in two processes.

The world is generated: the instrument goes where the vote points. It shows the mechanics of learning, not performance.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra `training`")

from agents.policies.local.adapters import read_adapter
from agents.policies.local.decisions import decision_schema, encode_decision, prompt_messages
from agents.policies.local.decoding import generate
from agents.policies.local.engine import Adapter, Question
from agents.policies.local.model import LocalModel
from agents.policies.local.states import state_line
from training.child.training import same_base
from training.job import TrainingResult
from training.launcher import ChildResult, rl_command, run_training_child
from training.rl.job import Outcome, RewardWeights, RLExample, RLHyperParameters, RLJob, load_rl_hyper_parameters
from training.rl.rewards import CounterfactualReward, Score
from training.sft.job import SFTJob, load_hyper_parameters
from training.small_base_model import Recipe, build_base_model
from utils.artifacts import seal, verify
from utils.errors import TrainingFailed

pytestmark = pytest.mark.timeout(600)

MICRO = Recipe(hidden_size=32, layers=1, heads=2, intermediate_size=32, steps=2, batch_size=2, warmup_steps=1)
"""Writes nothing that could be a decision."""

TINY = load_rl_hyper_parameters("builtin:tiny")
LEARNING = TINY.model_copy(update={"batch_size": 64, "max_steps": 8, "save_steps": 8})
TWICE = TINY.model_copy(
    update={"batch_size": 16, "num_generations": 4, "num_iterations": 2, "max_steps": 6, "save_steps": 2}
)


def planted(rng: random.Random) -> RLExample:
    """The instrument moves three ordinary moves to the side of the vote."""
    vote = rng.choice([-0.8, -0.6, -0.4, 0.4, 0.6, 0.8])
    call = "buy" if vote > 0 else "sell"
    values = {"vote": vote, "tech": call, "tconf": 0.7, "held": 10, "cash": 50, "vol": 2.0, "regime": "neutral"}
    outcome = Outcome(actual_return=0.13 if vote > 0 else -0.13, volatility=0.02, round_trip_cost=0.0016)
    return RLExample(
        messages=tuple(prompt_messages("strategist", state_line("strategist", values))), outcomes=(outcome,)
    )


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Bench:
    folder: Path
    cache: Path
    dataset: Path
    holdout: Path
    held_out: list[RLExample]

    def job(self, name: str, hyper: RLHyperParameters, **changes: Any) -> Path:
        job = RLJob(
            job_id=name,
            cache_dir=self.cache,
            dataset=self.dataset,
            output_dir=self.folder / name,
            hyper_parameters=hyper,
            **changes,
        )
        path = self.folder / f"{name}.json"
        path.write_text(job.model_dump_json())
        return path

    def launch(self, name: str, command: list[str], **arguments: Any) -> ChildResult:
        return run_training_child(
            command,
            log_path=self.folder / f"{name}.log",
            timeout_s=500,
            result_path=self.folder / name / "result.json",
            **arguments,
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Bench:
    folder = tmp_path_factory.mktemp("rl")
    rng = random.Random(11)
    rows = [planted(rng) for _ in range(80)]
    held_out = [planted(rng) for _ in range(60)]
    questions = [{"key": f"h{n}", "messages": list(row.messages)} for n, row in enumerate(held_out)]
    return Bench(
        folder,
        model_cache,
        write(folder / "train.jsonl", [row.model_dump(mode="json") for row in rows]),
        write(folder / "holdout.jsonl", questions),
        held_out,
    )


@pytest.fixture(scope="module")
def trained(bench: Bench) -> tuple[TrainingResult, list[dict[str, Any]]]:
    events: list[Any] = []
    job = bench.job("first", LEARNING, holdout=bench.holdout)
    child = bench.launch("first", rl_command(job), on_progress=events.append)
    return TrainingResult.model_validate(child.result), events


def sampled(bench: Bench, result: TrainingResult, adapter: Path | None) -> list[Score]:
    """Score four answers to each held-out state, drawn as the policy draws them."""
    model = LocalModel(result.base_dir, "cpu")
    try:
        if adapter is not None:
            read = read_adapter(
                Adapter(adapter, verify(adapter).digest), model.base_sha256, "cpu", model.adapters.dtype, "a"
            )
            model.adapters.add("a", read)
        rows = bench.held_out * 4
        schema = decision_schema("strategist")
        asked = [Question(row.messages, schema, 1.0, number) for number, row in enumerate(rows)]
        answers = generate(model, asked, ["a" if adapter else None] * len(asked))
    finally:
        model.close()
    reward = CounterfactualReward("strategist", rows, RewardWeights())
    return [reward.score(row, str(text)) for row, text in zip(rows, answers, strict=True)]


def test_the_planted_relation_is_learned_in_a_few_steps(
    bench: Bench, trained: tuple[TrainingResult, list[dict[str, Any]]]
) -> None:
    result, _ = trained
    before, after = sampled(bench, result, None), sampled(bench, result, result.adapter_dir)
    assert fmean(s.total for s in after) > fmean(s.total for s in before) + 0.03
    assert fmean(s.decision for s in after) > fmean(s.decision for s in before) + 0.08
    assert fmean(s.grounded for s in after) >= fmean(s.grounded for s in before) - 0.05
    assert result.predictions is not None
    answers = [json.loads(line) for line in result.predictions.read_text().splitlines()]
    assert [answer["key"] for answer in answers] == [f"h{number}" for number in range(60)]


def test_each_step_reports_its_reward_and_each_component_by_name(
    trained: tuple[TrainingResult, list[dict[str, Any]]],
) -> None:
    result, events = trained
    steps = [event for event in events if event["stage"] == "rl"]
    assert [event["step"] for event in steps] == list(range(1, 9))
    weights = {"decision": 0.4, "risk": 0.3, "reasoning": 0.2, "calibration": 0.1}
    for event in steps:
        assert event["components"].keys() == weights.keys()
        parts = sum(weight * event["components"][name] for name, weight in weights.items())
        assert event["reward"] == pytest.approx(parts, abs=1e-4)
        assert {"kl", "entropy", "completion_length", "no_signal_share", "valid_share"} <= event.keys()
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["kl"] > 1e-4
    assert result.metrics["reward_last"] > result.metrics["reward_first"]
    assert result.metrics["steps"] == 8


def test_an_adapter_names_no_path_of_the_machine(
    bench: Bench, trained: tuple[TrainingResult, list[dict[str, Any]]]
) -> None:
    folder = trained[0].adapter_dir
    for name in ("adapter_config.json", "README.md"):
        text = (folder / name).read_text()
        assert str(bench.folder) not in text
        assert str(bench.cache) not in text


def test_a_training_that_goes_on_from_an_adapter_survives_stop_and_kill_to_the_same_bytes(
    bench: Bench, trained: tuple[TrainingResult, list[dict[str, Any]]]
) -> None:
    """Each batch is used twice, as in PPO: a stop waits until the batch in hand is used up."""
    start = trained[0].adapter_dir
    undisturbed = TrainingResult.model_validate(
        bench.launch("whole", rl_command(bench.job("whole", TWICE, start_adapter=start))).result
    )
    assert undisturbed.adapter_sha256 != trained[0].adapter_sha256
    assert sorted(path.name for path in undisturbed.adapter_dir.iterdir()) == sorted(p.name for p in start.iterdir())
    job = bench.job("broken", TWICE, start_adapter=start)

    def at(step: int, act: Callable[[], Any]) -> Callable[[Any], None]:
        return lambda event: act() if event["stage"] == "rl" and event["step"] >= step else None

    stop = threading.Event()
    stopped = bench.launch("broken", rl_command(job), stop_event=stop, on_progress=at(1, stop.set), grace_s=120)
    assert (stopped.state, stopped.exit_code) == ("stopped", 143)
    saved = [int(path.name.rpartition("-")[2]) for path in (bench.folder / "broken" / "work").glob("checkpoint-*")]
    assert saved
    assert all(step % 2 == 0 for step in saved)
    with pytest.raises(TrainingFailed, match="killed by SIGKILL"):
        bench.launch("broken", rl_command(job), on_progress=at(max(saved) + 1, lambda: kill_child_with(job)))
    assert not (bench.folder / "broken" / "adapter").exists()
    resumed = TrainingResult.model_validate(bench.launch("broken", rl_command(job)).result)
    assert resumed.metrics["resumed_from_step"] >= 2
    assert weights(resumed) == weights(undisturbed)


def weights(result: TrainingResult) -> str:
    """Return the hash of the trained numbers; the manifest around them names the job."""
    return verify(result.adapter_dir).files["adapter_model.safetensors"]


def kill_child_with(argument: Path) -> None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_child_of_this_process(entry, str(argument)):
            os.kill(int(entry.name), signal.SIGKILL)


def _is_child_of_this_process(entry: Path, argument: str) -> bool:
    try:
        parent = entry.joinpath("stat").read_text().rpartition(")")[2].split()[1]
        return int(parent) == os.getpid() and argument in entry.joinpath("cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_model_whose_answers_are_all_alike_is_not_moved_and_the_share_is_reported(bench: Bench) -> None:
    hyper = TINY.model_copy(update={"batch_size": 8, "num_generations": 4, "max_steps": 2, "max_completion_length": 8})
    events: list[Any] = []
    job = bench.job("mute", hyper, base_recipe=MICRO)
    child = bench.launch("mute", rl_command(job), on_progress=events.append)
    steps = [event for event in events if event["stage"] == "rl"]
    assert [event["no_signal_share"] for event in steps] == [1, 1]
    assert [event["reward"] for event in steps] == [pytest.approx(-1)] * 2
    assert all(event["loss"] == 0 for event in steps)
    from safetensors.torch import load_file

    factors = load_file(TrainingResult.model_validate(child.result).adapter_dir / "adapter_model.safetensors")
    ups = [tensor for name, tensor in factors.items() if "lora_B" in name]
    assert ups
    assert not any(tensor.any() for tensor in ups)


def in_two_processes(command: list[str]) -> list[str]:
    """The same command under torchrun: two processes on the CPU, which talk by gloo."""
    runner = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [sys.executable, *runner, *command[1:]]


def test_two_processes_train_one_policy_together(
    bench: Bench, trained: tuple[TrainingResult, list[dict[str, Any]]]
) -> None:
    hyper = TINY.model_copy(update={"batch_size": 8, "num_generations": 4, "max_steps": 2})
    events: list[Any] = []
    job = bench.job("pair", hyper, start_adapter=trained[0].adapter_dir)
    child = bench.launch("pair", in_two_processes(rl_command(job)), on_progress=events.append)
    result = TrainingResult.model_validate(child.result)
    assert [event["step"] for event in events if event["stage"] == "rl"] == [1, 2]
    assert result.metrics["steps"] == 2
    assert weights(result) != weights(trained[0])


def test_two_processes_fine_tune_one_adapter_together(bench: Bench) -> None:
    answer = encode_decision("buy", 0.8, "vote:0.4 tech:buy")
    rows = [{"messages": [*row.messages, {"role": "assistant", "content": answer}]} for row in bench.held_out[:16]]
    hyper = load_hyper_parameters("builtin:tiny").model_copy(update={"epochs": 1, "batch_size": 4})
    job = SFTJob(
        job_id="tuned", agent_type="strategist", cache_dir=bench.cache, dataset=write(bench.folder / "sft.jsonl", rows),
        output_dir=bench.folder / "tuned", hyper_parameters=hyper, base_recipe=MICRO,
    )  # fmt: skip
    path = bench.folder / "tuned.json"
    path.write_text(job.model_dump_json())
    events: list[Any] = []
    command = in_two_processes([sys.executable, "-m", "training.sft.train_adapter", str(path)])
    result = TrainingResult.model_validate(bench.launch("tuned", command, on_progress=events.append).result)
    assert [event["step"] for event in events if event["stage"] == "sft"] == [1, 2]
    assert result.metrics["steps"] == 2


def test_a_row_that_is_none_ends_the_run_by_its_line(bench: Bench, tmp_path: Path) -> None:
    good = planted(random.Random(1)).model_dump(mode="json")
    dataset = write(tmp_path / "rows.jsonl", [good, {**good, "outcomes": []}])
    job = bench.job("bad", TINY, base_recipe=MICRO).read_text()
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**json.loads(job), "dataset": str(dataset)}))
    with pytest.raises(TrainingFailed, match="line 2: outcomes"):
        bench.launch("bad", rl_command(path))


def test_an_adapter_of_another_base_or_a_damaged_one_is_neither_trained_on_nor_examined(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    base = build_base_model(bench.cache, MICRO)
    folder = bench.folder / "foreign"
    folder.mkdir()
    seal(folder, {"base_sha256": "0" * 64})
    assert not same_base(folder, verify(base).digest, "the adapter to start from")
    assert "another base model" in caplog.text
    whole = bench.folder / "unharmed"
    whole.mkdir()
    (whole / "weights").write_bytes(b"1")
    seal(whole, {"base_sha256": verify(base).digest})
    assert same_base(whole, verify(base).digest, "the champion to examine")
    (whole / "weights").write_bytes(b"2")
    assert not same_base(whole, verify(base).digest, "the champion to examine")
    assert "the champion to examine in" in caplog.text
