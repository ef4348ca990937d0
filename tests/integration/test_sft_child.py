"""The real training path, once: base model from code, child process, adapter, kill and resume, and the policy that serves it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra `training`")

from agents.policies.local.decisions import (
    cited_evidence,
    decision_schema,
    encode_decision,
    parse_decision,
    prompt_messages,
)
from agents.policies.local.engine import Adapter, Question
from agents.policies.local.model import LocalModel
from agents.policies.local.server import LocalInferenceServer
from agents.policies.local.states import state_values, technical_state_text
from training.job import TrainingResult
from training.launcher import ChildResult, run_training_child, sft_command
from training.sft.job import SFTHyperParameters, SFTJob, load_hyper_parameters
from training.sft.train_adapter import token_lengths
from training.small_base_model import Recipe, build_base_model
from utils.artifacts import verify
from utils.errors import ConfigError, ProviderError, TrainingFailed
from utils.schema import TechnicalOutput

pytestmark = pytest.mark.timeout(600)

AS_OF = datetime(2014, 1, 2, 21, tzinfo=UTC)
SMALL = Recipe(steps=130, learning_rate=4e-3)
"""A third of the default pre-training: enough to write decisions, too little to be good at it."""

MICRO = Recipe(hidden_size=32, layers=1, heads=2, intermediate_size=32, steps=2, batch_size=2, warmup_steps=1)
HYPER = load_hyper_parameters("builtin:tiny").model_copy(update={"epochs": 2, "save_steps": 4})


def indicators(rng: random.Random) -> dict[str, float]:
    drift = rng.gauss(0, 1)
    return {
        "rsi_14": min(max(50 + 15 * drift, 1), 99),
        "macd": 0.3 * drift,
        "macd_signal": 0.0,
        "sma_20": 100 - 2 * drift,
        "sma_50": 100 - 4 * drift,
        "stoch_k": min(max(50 + 25 * drift, 0), 100),
        "mfi_14": 50.0,
        "adx_14": 25.0,
        "bb_upper": 104.0,
        "bb_lower": 96.0,
        "atr_14": 2.0,
    }


def technical(rng: random.Random, **changes: Any) -> TechnicalOutput:
    fields: dict[str, Any] = {
        "symbol": "AAPL",
        "as_of": AS_OF,
        "recommendation": "hold",
        "confidence": 0.5,
        "trend": rng.choice(["uptrend", "downtrend", "sideways"]),
        "indicators": indicators(rng),
        "current_price": 100.0,
        "support_levels": (95.0,),
    }
    return TechnicalOutput(**{**fields, **changes})


@dataclass(frozen=True)
class Bench:
    folder: Path
    dataset: Path
    holdout: Path

    def job(self, name: str) -> Path:
        job = SFTJob(
            job_id=name,
            cache_dir=self.folder / "cache",
            dataset=self.dataset,
            holdout=self.holdout,
            output_dir=self.folder / name,
            hyper_parameters=HYPER,
            base_recipe=SMALL,
        )
        path = self.folder / f"{name}.json"
        path.write_text(job.model_dump_json())
        return path

    def launch(self, name: str, **arguments: Any) -> ChildResult:
        return run_training_child(
            sft_command(self.job(name)),
            log_path=self.folder / f"{name}.log",
            timeout_s=400,
            result_path=self.folder / name / "result.json",
            **arguments,
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("sft")
    rng = random.Random(7)
    rows = []
    for number in range(60):
        state = technical_state_text(technical(rng))
        side = "buy" if float(state_values(state)["rsi"]) >= 50 else "sell"
        answer = encode_decision(side, 0.8, cited_evidence("technical", state))
        messages = [*prompt_messages("technical", state), {"role": "assistant", "content": answer}]
        rows.append({"messages": messages, "metadata": {"trajectory_id": f"t{number}"}})
    questions = [
        {"key": f"h{number}", "messages": prompt_messages("technical", technical_state_text(technical(rng)))}
        for number in range(12)
    ]
    dataset, holdout = folder / "train.jsonl", folder / "holdout.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    holdout.write_text("".join(json.dumps(row) + "\n" for row in questions))
    return Bench(folder, dataset, holdout)


@pytest.fixture(scope="module")
def trained(bench: Bench) -> tuple[TrainingResult, list[dict[str, Any]]]:
    events: list[Any] = []
    child = bench.launch("first", on_progress=events.append)
    return TrainingResult.model_validate(child.result), events


def test_a_run_reports_its_stages_and_leaves_a_sealed_adapter_and_an_answer_a_question(
    bench: Bench, trained: tuple[TrainingResult, list[dict[str, Any]]]
) -> None:
    result, events = trained
    assert list(dict.fromkeys(event["stage"] for event in events)) == ["pretrain", "sft", "evaluate"]
    steps = [event["step"] for event in events if event["stage"] == "sft"]
    assert steps == list(range(1, 17))
    assert result.metrics["steps"] == 16
    assert result.metrics["resumed_from_step"] == 0
    first_loss = next(event["loss"] for event in events if event["stage"] == "sft")
    assert result.metrics["final_loss"] < first_loss
    assert verify(result.adapter_dir, result.adapter_sha256).meta["base_sha256"] == result.base_sha256
    assert (result.adapter_dir / "adapter_model.safetensors").stat().st_size > 10_000
    assert result.predictions is not None
    answers = [json.loads(line) for line in result.predictions.read_text().splitlines()]
    assert [answer["key"] for answer in answers] == [f"h{number}" for number in range(12)]
    decisions = [parse_decision(answer["text"]) for answer in answers]
    assert sum(decision is not None for decision in decisions) >= 10
    assert not (bench.folder / "first" / "work").exists()


def test_an_adapter_names_no_path_of_the_machine(
    bench: Bench, trained: tuple[TrainingResult, list[dict[str, Any]]]
) -> None:
    folder = trained[0].adapter_dir
    for name in ("adapter_config.json", "README.md"):
        assert str(bench.folder) not in (folder / name).read_text()


def test_a_run_stopped_and_killed_leaves_nothing_half_done_and_resumes_to_the_same_bytes(
    bench: Bench, trained: tuple[TrainingResult, list[dict[str, Any]]]
) -> None:
    output = bench.folder / "second"

    def at(step: int, act: Callable[[], Any]) -> Callable[[Any], None]:
        return lambda event: act() if event["stage"] == "sft" and event["step"] >= step else None

    stop = threading.Event()
    stopped = bench.launch("second", stop_event=stop, on_progress=at(2, stop.set))
    assert (stopped.state, stopped.exit_code) == ("stopped", 143)
    assert not (output / "result.json").exists()
    assert not (output / "adapter").exists()

    def kill_the_child() -> None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is_child_of_this_process(entry, str(bench.folder / "second.json")):
                os.kill(int(entry.name), signal.SIGKILL)

    with pytest.raises(TrainingFailed, match="killed by SIGKILL"):
        bench.launch("second", on_progress=at(10, kill_the_child))
    assert not (output / "result.json").exists()
    assert not (output / "adapter").exists()
    torn = max((output / "work").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    half = torn.with_name("checkpoint-15")
    shutil.copytree(torn, half)
    (half / "adapter_model.safetensors").write_bytes(b"torn")

    result = TrainingResult.model_validate(bench.launch("second").result)
    assert 0 < result.metrics["resumed_from_step"] < 15
    assert result.base_sha256 == trained[0].base_sha256
    assert result.adapter_sha256 == trained[0].adapter_sha256


def _is_child_of_this_process(entry: Path, argument: str) -> bool:
    try:
        parent = entry.joinpath("stat").read_text().rpartition(")")[2].split()[1]
        return int(parent) == os.getpid() and argument in entry.joinpath("cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_served_adapter_answers_as_it_did_when_it_was_examined(
    bench: Bench, trained: tuple[TrainingResult, list[dict[str, Any]]]
) -> None:
    result, _ = trained
    asked = [json.loads(line)["messages"] for line in bench.holdout.read_text().splitlines()]
    assert result.predictions is not None
    examined = [json.loads(line)["text"] for line in result.predictions.read_text().splitlines()]
    server = LocalInferenceServer(LocalModel(result.base_dir, "cpu"))
    try:
        source = server.open("technical@1", Adapter(result.adapter_dir, result.adapter_sha256))
        questions = [Question(tuple(messages), decision_schema("technical")) for messages in asked]
        assert source.answer(questions) == examined
        base = server.open("base")
        assert base.answer(questions) != examined
    finally:
        server.close()
    assert all(parse_decision(text) is not None for text in examined)
    assert len(set(examined)) > 1


@pytest.mark.parametrize("damage", ["flipped", "truncated", "config", "unsealed", "other"])
def test_an_adapter_that_is_not_the_recorded_one_is_refused(
    trained: tuple[TrainingResult, list[dict[str, Any]]], tmp_path: Path, damage: str
) -> None:
    result, _ = trained
    folder = tmp_path / "adapter"
    shutil.copytree(result.adapter_dir, folder)
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    expected = result.adapter_sha256
    harm: dict[str, Callable[[], Any]] = {
        "flipped": lambda: weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
        "truncated": lambda: weights.write_bytes(content[: len(content) // 2]),
        "config": lambda: (folder / "adapter_config.json").write_text("{}"),
        "unsealed": (folder / "manifest.json").unlink,
        "other": lambda: None,
    }
    harm[damage]()
    if damage == "other":
        expected = "0" * 64
    server = LocalInferenceServer(LocalModel(result.base_dir, "cpu"))
    try:
        with pytest.raises(ProviderError, match="technical@1"):
            server.open("technical@1", Adapter(folder, expected))
    finally:
        server.close()


def test_an_adapter_is_not_put_on_another_base(
    trained: tuple[TrainingResult, list[dict[str, Any]]], tmp_path: Path
) -> None:
    result, _ = trained
    other = build_base_model(tmp_path, MICRO)
    server = LocalInferenceServer(LocalModel(other, "cpu"))
    try:
        with pytest.raises(ProviderError, match="base model"):
            server.open("technical@1", Adapter(result.adapter_dir, result.adapter_sha256))
    finally:
        server.close()


def test_a_recipe_builds_once_and_a_corrupt_cache_is_rebuilt_to_the_same_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[int] = []
    folder = build_base_model(tmp_path, MICRO, lambda step, total, loss: steps.append(step))
    digest = verify(folder).digest
    assert build_base_model(tmp_path, MICRO, lambda step, total, loss: steps.append(step)) == folder
    assert steps == [1, 2]
    (folder / "model.safetensors").write_bytes(b"")
    assert build_base_model(tmp_path, MICRO, lambda step, total, loss: steps.append(step)) == folder
    assert steps == [1, 2, 1, 2]
    assert "rebuilt" in caplog.text
    assert verify(folder).digest == digest
    assert Recipe(seed=43).digest() != Recipe().digest()


def test_a_build_that_is_interrupted_leaves_nothing_that_could_be_taken_for_a_model(tmp_path: Path) -> None:
    def interrupt(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_base_model(tmp_path, MICRO, interrupt)
    assert not list(tmp_path.glob("tiny-*"))


def test_an_example_that_would_be_cut_ends_the_run_by_name(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(build_base_model(tmp_path, MICRO))
    short = [*prompt_messages("technical", "rsi:60"), {"role": "assistant", "content": "{}"}]
    long = [*prompt_messages("technical", "rsi:60 " * 40), {"role": "assistant", "content": "{}"}]
    examples = [{"messages": short}, {"messages": long, "metadata": {"trajectory_id": "t7"}}]
    lengths = token_lengths(tokenizer, examples, 256)
    assert lengths[0] < lengths[1]
    assert token_lengths(tokenizer, examples, lengths[1] + 1) == lengths
    with pytest.raises(TrainingFailed, match=rf"example t7 has {lengths[1]} tokens; max_length {lengths[1]} would cut"):
        token_lengths(tokenizer, examples, lengths[1])


def test_hyper_parameters_come_from_the_profile_of_the_base_model_and_a_wrong_key_is_named(tmp_path: Path) -> None:
    tiny, other = load_hyper_parameters("builtin:tiny"), load_hyper_parameters("/models/qwen")
    assert (tiny.learning_rate, tiny.max_length, tiny.use_cpu) == (2e-3, 256, True)
    assert (other.learning_rate, other.use_cpu, other.lora_r) == (2e-4, False, tiny.lora_r)
    path = tmp_path / "sft.yaml"
    path.write_text("profiles: {org/name: {lora_r: 4}, org/name@v2: {lora_r: 2}}\n")
    assert [load_hyper_parameters(f"org/name{at}", path).lora_r for at in ("", "@v1", "@v2")] == [4, 4, 2]
    path.write_text("defaults: {learning_rat: 1.0e-4}\n")
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        load_hyper_parameters("builtin:tiny", path)
    with pytest.raises(ValueError, match="lora_r"):
        SFTHyperParameters(lora_r=0)
