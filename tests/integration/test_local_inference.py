"""The serving thread of local models: versions beside each other, swaps under load, merged batches, and what goes wrong."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="needs the extra `training`")
pytest.importorskip("peft", reason="needs the extra `training`")

import torch
from local_model_lab import micro_base, questions, reference_answer, write_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.policies.local import server as serving
from agents.policies.local.engine import Adapter, AnswerSource
from agents.policies.local.model import LocalModel
from agents.policies.local.server import LocalInferenceServer
from utils.artifacts import seal
from utils.errors import ProviderError

ASKED = questions(8, seed=21)
DEADLINE_S = 60.0
Serve = Callable[..., LocalInferenceServer]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(base, folder / f"a{seed}", seed) for seed in range(3)]


@pytest.fixture
def serve(base: Path) -> Iterator[Serve]:
    servers: list[LocalInferenceServer] = []

    def start(model: LocalModel | None = None, **options: Any) -> LocalInferenceServer:
        servers.append(LocalInferenceServer(model or LocalModel(base, "cpu"), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def expected(base: Path, adapters: list[Adapter]) -> list[list[str]]:
    """What each adapter, and last the base, answers by PEFT itself, one token at a time."""
    local = LocalModel(base, "cpu")
    found = []
    for adapter in (*adapters, None):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter.folder))
        found.append([reference_answer(model.eval(), local, question) for question in ASKED])
    return found


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        threading.Event().wait(0.005)


def together(sources: Sequence[AnswerSource]) -> list[list[Any]]:
    """Ask every source from a thread of its own, all at one moment."""
    barrier, answers = threading.Barrier(len(sources)), [[] for _ in sources]

    def ask(number: int) -> None:
        barrier.wait()
        answers[number] = sources[number].answer(ASKED)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(sources))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("window_s", [None, 0.05])
def test_every_version_answers_as_peft_computes_it_alone_and_beside_others(
    serve: Serve, adapters: list[Adapter], expected: list[list[str]], window_s: float | None
) -> None:
    server = serve(merge_window_s=window_s)
    sources = [server.open(f"technical@{n}.0", adapter) for n, adapter in enumerate((*adapters, None))]
    assert [source.answer(ASKED) for source in sources] == expected
    assert len({tuple(answers) for answers in expected}) == 4
    assert together(sources) == expected


class Batches:
    """Notes the versions of each batch that the server generates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[str | None]] = []
        real = serving.generate

        def noting(model: LocalModel, asked: Any, versions: Any, **options: Any) -> Any:
            self.seen.append(list(versions))
            return real(model, asked, versions, **options)

        monkeypatch.setattr(serving, "generate", noting)


def test_within_the_window_versions_share_a_batch_and_without_one_no_group_is_merged(
    serve: Serve, adapters: list[Adapter], expected: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(monkeypatch)
    live = serve(merge_window_s=4.0)
    sources = [live.open("a", adapters[0]), live.open("b", adapters[1])]
    sources[1].answer(ASKED[:1])
    answers: list[Any] = []
    known = threading.Event()

    def other() -> None:
        sources[0].answer(ASKED[:1])
        known.set()
        answers.extend(sources[0].answer(ASKED))

    thread = threading.Thread(target=other)
    thread.start()
    assert known.wait(DEADLINE_S)
    assert sources[1].answer(ASKED) == expected[1]
    thread.join()
    assert answers == expected[0]
    assert sorted(map(len, batches.seen)) == [1, 1, 2 * len(ASKED)]
    assert set(batches.seen[-1]) == {"a", "b"}

    batches.seen.clear()
    replay = serve(merge_window_s=None)
    together([replay.open("a", adapters[0]), replay.open("b", adapters[1])])
    assert sorted(batches.seen) == [["a"] * len(ASKED), ["b"] * len(ASKED)]


def test_requests_that_piled_up_are_merged_at_once_up_to_the_largest_batch(
    serve: Serve, base: Path, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(monkeypatch)
    gate = Gated(base, "cpu")
    server = serve(gate, merge_window_s=0.0, max_batch=4)
    source = server.open("a", adapters[0])
    gate.hold()
    threads = [threading.Thread(target=source.answer, args=(ASKED[:2],)) for _ in range(6)]
    threads[0].start()
    until(gate.reached.is_set)
    for thread in threads[1:]:
        thread.start()
    until(lambda: server._jobs.qsize() == 5)
    gate.go.set()
    for thread in threads:
        thread.join()
    assert [len(batch) for batch in batches.seen] == [2, 4, 4, 2]


class Gated(LocalModel):
    """Stands still in the middle of an answer while it is held."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.reached, self.go = threading.Event(), threading.Event()
        self.go.set()

    def hold(self) -> None:
        self.reached.clear()
        self.go.clear()

    def forward(self, *arguments: Any) -> Any:
        self.reached.set()
        assert self.go.wait(DEADLINE_S)
        return super().forward(*arguments)


def test_a_lone_caller_does_not_wait_for_company(serve: Serve) -> None:
    source = serve(merge_window_s=30.0).open("base")
    started = time.monotonic()
    source.answer(ASKED)
    assert time.monotonic() - started < 25


def test_swaps_under_load_lose_nothing_and_mix_nothing(
    serve: Serve, adapters: list[Adapter], expected: list[list[str]]
) -> None:
    server = serve(merge_window_s=0.002)
    current: list[tuple[int, AnswerSource]] = [(0, server.open("v0", adapters[0]))]
    stop, wrong, count = threading.Event(), [], [0] * 8

    def hammer(number: int) -> None:
        while not stop.is_set():
            kind, source = current[0]
            try:
                answers = source.answer(ASKED[number : number + 2])
            except ProviderError as error:
                wrong.append(error)
                continue
            if answers != expected[kind][number : number + 2]:
                wrong.append((kind, answers))
            count[number] += 1

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for swap in range(1, 9):
        before = sum(count)
        current[0] = (swap % 3, server.open(f"v{swap}", adapters[swap % 3]))
        until(lambda before=before: sum(count) > before + 8)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(count) > 0
    del thread, threads
    gc.collect()
    until(lambda: set(server._holders) == {"v8"})
    assert current[0][1].answer(ASKED) == expected[8 % 3]
    assert max(server.pauses_s) < 0.05


def test_a_version_leaves_with_its_last_holder_and_answers_in_hand_are_finished(
    serve: Serve, base: Path, adapters: list[Adapter], expected: list[list[str]]
) -> None:
    model = Gated(base, "cpu")
    server = serve(model)
    first, second = server.open("a", adapters[0]), server.open("a", adapters[0])
    first.close()
    first.close()
    with pytest.raises(ProviderError, match="closed") as refused:
        first.answer(ASKED)
    assert refused.value.kind == "closed"
    model.hold()
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.extend(second.answer(ASKED)))
    thread.start()
    until(model.reached.is_set)
    second.close()
    model.go.set()
    thread.join()
    assert answers == expected[0]
    until(lambda: server._holders == {})
    forgotten = server.open("b", adapters[1])
    assert forgotten.answer(ASKED) == expected[1]
    del forgotten
    gc.collect()
    assert server.open("base").answer(ASKED) == expected[3]
    until(lambda: server._holders.keys() <= {"base"})
    assert not any(module._forward_hooks for module in model._model.modules())


def test_a_name_never_stands_for_other_weights(serve: Serve, adapters: list[Adapter]) -> None:
    server = serve()
    source = server.open("a", adapters[0])
    for other in (adapters[1], None):
        with pytest.raises(ProviderError, match="other weights"):
            server.open("a", other)
    source.close()
    with pytest.raises(ProviderError, match="other weights"):
        server.open("a", adapters[1])
    server.open("a", adapters[0])


def _flip(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")


def _unseal(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(("harm", "reason"), [(_flip, "does not match"), (_unseal, "no readable manifest")])
def test_a_damaged_adapter_is_refused_and_the_others_serve_on(
    serve: Serve, adapters: list[Adapter], expected: list[list[str]], tmp_path: Path, harm: Any, reason: str
) -> None:
    server = serve()
    good = server.open("good", adapters[0])
    folder = tmp_path / "adapter"
    shutil.copytree(adapters[1].folder, folder)
    harm(folder)
    with pytest.raises(ProviderError, match=reason):
        server.open("bad", Adapter(folder, adapters[1].sha256))
    assert good.answer(ASKED) == expected[0]
    assert server.open("bad", adapters[1]).answer(ASKED) == expected[1]


def _edited(adapter: Adapter, base_sha256: str, folder: Path, **changes: Any) -> Adapter:
    shutil.copytree(adapter.folder, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return Adapter(folder, seal(folder, {"base_sha256": base_sha256}).digest)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"alpha_pattern": {"q_proj": 8}},
    ],
)
def test_an_adapter_that_is_more_than_plain_lora_is_refused_by_the_name_of_the_setting(
    serve: Serve, base: Path, adapters: list[Adapter], tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = LocalModel(base, "cpu")
    odd = _edited(adapters[0], model.base_sha256, tmp_path / "odd", **changes)
    with pytest.raises(ProviderError, match=next(iter(changes))):
        serve(model).open("odd", odd)


def test_an_adapter_of_another_base_or_shape_is_refused(
    serve: Serve, base: Path, adapters: list[Adapter], expected: list[list[str]], tmp_path: Path
) -> None:
    server = serve()
    with pytest.raises(ProviderError, match="not the base model"):
        server.open("stranger", _edited(adapters[0], "0" * 64, tmp_path / "stranger"))
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.intermediate_size = 48
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wider")
    sha256 = LocalModel(base, "cpu").base_sha256
    with pytest.raises(ProviderError, match=r"layer .* of the base model has shape"):
        server.open("wider", write_adapter(tmp_path / "wider", tmp_path / "a", 1, base_sha256=sha256))
    assert server.open("base").answer(ASKED) == expected[3]


def test_rank_stabilised_scaling_and_single_layers_are_as_peft_computes_them(
    serve: Serve, base: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(base, tmp_path / "a", 8, r=2, use_rslora=True, target_modules=["q_proj", "down_proj"])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter.folder)).eval()
    local = LocalModel(base, "cpu")
    assert serve().open("rs", adapter).answer(ASKED) == [reference_answer(plain, local, q) for q in ASKED]


def test_a_deadline_ends_the_wait_and_not_the_thread(
    serve: Serve, base: Path, adapters: list[Adapter], expected: list[list[str]]
) -> None:
    model = Gated(base, "cpu")
    source = serve(model).open("a", adapters[0])
    model.hold()
    with pytest.raises(ProviderError, match=r"within 0.05 s") as late:
        source.answer(ASKED, deadline_s=0.05)
    assert late.value.kind == "timeout"
    model.go.set()
    assert source.answer(ASKED, deadline_s=DEADLINE_S) == expected[0]


class Touchy(LocalModel):
    """Fails on a batch with a row of one version, in a way that nobody expects."""

    def forward(self, inputs: Any, mask: Any, positions: Any, cache: Any, versions: Any) -> Any:
        if "bad" in versions:
            raise ZeroDivisionError("odd weights")
        return super().forward(inputs, mask, positions, cache, versions)


def test_one_bad_group_harms_neither_its_neighbours_nor_the_thread(
    serve: Serve, base: Path, adapters: list[Adapter], expected: list[list[str]]
) -> None:
    server = serve(Touchy(base, "cpu"), merge_window_s=0.2)
    good, bad = server.open("good", adapters[0]), server.open("bad", adapters[1])
    failed: list[Exception] = []

    def ask_bad() -> None:
        try:
            bad.answer(ASKED)
        except ProviderError as error:
            failed.append(error)

    good.answer(ASKED[:1])
    thread = threading.Thread(target=ask_bad)
    thread.start()
    assert good.answer(ASKED) == expected[0]
    thread.join()
    assert ["ZeroDivisionError" in str(error) for error in failed] == [True]
    assert good.answer(ASKED) == expected[0]


def test_a_closed_server_refuses_and_a_call_in_hand_is_answered_first(
    serve: Serve, base: Path, expected: list[list[str]]
) -> None:
    model = Gated(base, "cpu")
    server = serve(model)
    source = server.open("base")
    model.hold()
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(source.answer(ASKED)))
    asking.start()
    until(model.reached.is_set)
    closing = threading.Thread(target=server.close)
    closing.start()
    until(lambda: server._closed)
    model.go.set()
    closing.join()
    asking.join()
    assert answers == expected[3]
    server.close()
    assert not server._thread.is_alive()
    for call in (lambda: source.answer(ASKED), lambda: server.open("x"), lambda: model.prompt_tokens([])):
        with pytest.raises(ProviderError, match="closed") as refused:
            call()
        assert refused.value.kind == "closed"


def test_what_came_of_each_question_is_counted(serve: Serve) -> None:
    counted: dict[str, float] = {}

    class Counting:
        def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
            counted[f"{name} {labels['provider']} {labels['outcome']}"] = amount + counted.get(
                f"{name} {labels['provider']} {labels['outcome']}", 0
            )

        def gauge(self, name: str, value: float | None, **labels: str) -> None: ...

        def observe(self, name: str, value: float, **labels: str) -> None: ...

    source = serve(telemetry=Counting()).open("base")
    source.answer([*ASKED, replace(ASKED[0], schema={"type": "nonsense"})])
    assert counted == {"llm_calls_total local ok": len(ASKED), "llm_calls_total local request": 1}


def _without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _torn(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10")


def _gone(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(_without_template, "no chat template"), (_torn, "cannot be loaded"), (_gone, "cannot be loaded")],
)
def test_a_folder_that_holds_no_usable_model_is_refused_with_its_reason(
    base: Path, tmp_path: Path, harm: Any, reason: str
) -> None:
    shutil.copytree(base, tmp_path / "base")
    harm(tmp_path / "base")
    with pytest.raises(ProviderError, match=reason):
        LocalModel(tmp_path / "base", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of machines without a GPU")
def test_what_needs_a_gpu_says_so(base: Path) -> None:
    with pytest.raises(ProviderError, match="no CUDA device"):
        LocalModel(base, "cuda")
    with pytest.raises(ProviderError, match="4bit needs a CUDA device"):
        LocalModel(base, "auto", quantization="4bit")
    assert AutoTokenizer.from_pretrained(base).is_fast
    assert LocalModel(base, "auto").device == "cpu"
