"""Versions behind a server that takes adapters in by name: loading, asking, swapping and every way that it can fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_model_lab import unused_port
from fakes.http_server import Reply
from fakes.lora_server import FakeLoraServer, lora_error
from fakes.openai_dialect import OpenAI
from fakes.vendors import answering, in_turn

from agents.policies.local.engine import Adapter, AnswerEngine, AnswerSource, Question
from agents.policies.local.served import ServedModel, canonical_text
from utils.artifacts import seal
from utils.errors import ConfigError, ProviderError

pytestmark = pytest.mark.timeout(60)

pytest.importorskip("openai")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"recommendation": {"type": "string"}, "confidence": {"type": "number"}},
    "required": ["recommendation", "confidence"],
    "additionalProperties": False,
}
QUESTION = Question(({"role": "system", "content": "You trade."}, {"role": "user", "content": "rsi:60"}), SCHEMA)
BUY = '{"recommendation":"buy","confidence":0.7}'
CONTEXT_EXCEEDED = (
    "This model's maximum context length is 512 tokens. However, you requested 256 output tokens and your prompt contains "
    "at least 300 input tokens. Please reduce the length of the input prompt or the number of requested output tokens."
)


class CountingTelemetry:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, float, dict[str, str]]] = []

    def count(self, name: str, value: float = 1.0, **labels: str) -> None:
        self.counted.append((name, value, labels))

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.counted.append((name, value, labels))

    def observe(self, name: str, value: float, **labels: str) -> None:
        self.counted.append((name, value, labels))


class Lab:
    """Makes servers, engines and adapters for one test, and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = ExitStack()

    def serve(self, behaviour: Any = None, **options: Any) -> FakeLoraServer:
        server = FakeLoraServer(behaviour or OpenAI().answer(BUY), **options)
        self.stack.callback(server.close)
        return server

    def engine(self, server: FakeLoraServer | str, base_model: str = "base", **options: Any) -> ServedModel:
        url = server if isinstance(server, str) else server.url
        engine = ServedModel(url, base_model, **{"deadline_s": 10.0, "load_s": 10.0, **options})
        self.stack.callback(engine.close)
        return engine

    def adapter(self, name: str, weights: bytes = b"weights") -> Adapter:
        folder = self.folder / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(weights)
        return Adapter(folder, seal(folder).digest)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    with lab.stack:
        yield lab


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once a condition holds; fail after 10 s."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


def refusal(do: Callable[[], Any]) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        do()
    return caught.value


def test_an_adapter_is_loaded_under_its_version_from_its_folder_and_asked_by_that_name(lab: Lab) -> None:
    server = lab.serve()
    adapter = lab.adapter("a")
    engine: AnswerEngine = lab.engine(server)
    source: AnswerSource = engine.open("technical-1", adapter)
    assert (source.version, source.waits) == ("technical-1", True)
    assert server.adapters == {"technical-1": str(adapter.folder)}
    assert source.answer([QUESTION]) == [BUY]
    assert [asked.model for asked in server.asked] == ["technical-1"]
    assert server.asked[0].request.json["messages"] == list(QUESTION.messages)


def test_the_base_model_is_asked_by_the_name_that_the_server_has_for_it(lab: Lab) -> None:
    server = lab.serve(base_model="Qwen/Qwen3-0.6B")
    source = lab.engine(server, "Qwen/Qwen3-0.6B").open("base-of-today")
    assert source.answer([QUESTION]) == [BUY]
    assert (source.version, server.asked[0].model, server.loaded) == ("base-of-today", "Qwen/Qwen3-0.6B", [])


def test_a_base_model_that_the_server_does_not_have_is_refused_with_what_it_has(lab: Lab) -> None:
    error = refusal(lambda: lab.engine(lab.serve(), "llama").open("v1"))
    assert error.kind == "request"
    assert "serves base, not llama" in str(error)


def test_a_version_that_is_open_is_not_loaded_a_second_time(lab: Lab) -> None:
    server = lab.serve()
    engine, adapter = lab.engine(server), lab.adapter("a")
    first, second = engine.open("v1", adapter), engine.open("v1", adapter)
    assert first.answer([QUESTION]) == second.answer([QUESTION]) == [BUY]
    assert server.loaded == ["v1"]


def test_a_name_is_never_used_for_other_weights_not_even_after_it_was_released(lab: Lab) -> None:
    server = lab.serve()
    engine = lab.engine(server)
    first, other = lab.adapter("a"), lab.adapter("b", b"other weights")
    source = engine.open("v1", first)
    assert "a new version needs a new name" in str(refusal(lambda: engine.open("v1", other)))
    source.close()
    wait_for(lambda: server.unloaded == ["v1"])
    assert refusal(lambda: engine.open("v1", other)).kind == "request"
    assert "a new version needs a new name" in str(refusal(lambda: engine.open("v1")))
    assert server.loaded == ["v1"]
    assert engine.open("v1", first).answer([QUESTION]) == [BUY]


def test_an_adapter_cannot_take_the_name_of_the_base_model(lab: Lab) -> None:
    server = lab.serve()
    error = refusal(lambda: lab.engine(server).open("base", lab.adapter("a")))
    assert "cannot have the name of the base model" in str(error)
    assert server.requests == []


def test_what_an_operator_loaded_by_the_name_is_asked_and_stays_when_it_is_released(lab: Lab) -> None:
    adapter = lab.adapter("a")
    server = lab.serve(adapters={"v1": "/mounted/elsewhere/a"}, runtime_loading=False)
    engine = lab.engine(server)
    source = engine.open("v1", adapter)
    assert source.answer([QUESTION]) == [BUY]
    source.close()
    engine.close()
    assert server.adapters == {"v1": "/mounted/elsewhere/a"}
    assert [request.method for request in server.requests] == ["GET", "POST"]


def test_what_an_operator_loaded_by_the_name_from_a_folder_with_other_weights_is_refused(lab: Lab) -> None:
    adapter, other = lab.adapter("a"), lab.adapter("b", b"other weights")
    server = lab.serve(adapters={"v1": str(other.folder)})
    error = refusal(lambda: lab.engine(server).open("v1", adapter))
    assert error.kind == "fault"
    assert "not what was registered" in str(error)


def test_an_adapter_of_the_name_on_another_base_model_is_refused(lab: Lab) -> None:
    server = lab.serve()
    cards = [
        {"id": "base", "object": "model", "root": "/models/base", "parent": None},
        {"id": "v1", "object": "model", "root": "/adapters/v1", "parent": "another"},
    ]
    server._list = lambda: Reply(body=json.dumps({"object": "list", "data": cards}).encode())  # type: ignore[method-assign]
    assert "has it on another, not on base" in str(refusal(lambda: lab.engine(server).open("v1", lab.adapter("a"))))


def test_an_adapter_that_somebody_else_loads_at_the_same_time_is_asked_and_never_unloaded_from_here(lab: Lab) -> None:
    server, adapter = lab.serve(), lab.adapter("a")
    load = server._load

    def after_another(body: Any) -> Reply:
        server.adapters["v1"] = body["lora_path"]
        return load(body)

    server._load = after_another  # type: ignore[method-assign]
    engine = lab.engine(server)
    source = engine.open("v1", adapter)
    assert source.answer([QUESTION]) == [BUY]
    source.close()
    engine.close()
    assert (server.loaded, server.unloaded) == ([], [])


def test_damaged_adapters_are_refused_before_the_server_is_asked(lab: Lab) -> None:
    server, adapter = lab.serve(), lab.adapter("a")
    (adapter.folder / "adapter_model.safetensors").write_bytes(b"weightz")
    error = refusal(lambda: lab.engine(server).open("v1", adapter))
    assert error.kind == "fault"
    assert "adapter_model.safetensors" in str(error)
    assert server.requests == []


def test_a_server_that_loads_nothing_while_it_runs_is_refused_with_the_remedy(lab: Lab) -> None:
    server = lab.serve(runtime_loading=False)
    error = refusal(lambda: lab.engine(server).open("v1", lab.adapter("a")))
    assert error.kind == "request"
    assert "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in str(error)
    assert "or load the adapter by this name" in str(error)
    assert "llm.served" not in str(error)


@pytest.mark.parametrize("status, kind", [(400, "request"), (500, "overload")])
def test_a_refused_load_says_what_the_server_said_and_leaves_other_versions_as_they_were(
    lab: Lab, status: int, kind: str
) -> None:
    server = lab.serve()
    engine = lab.engine(server)
    serving = engine.open("v1", lab.adapter("a"))
    server._load = lambda _: lora_error(status, "LoRA rank 64 is greater than max_lora_rank 16.")  # type: ignore[method-assign]
    error = refusal(lambda: engine.open("v2", lab.adapter("b")))
    assert error.kind == kind
    assert "rank 64" in str(error)
    assert serving.answer([QUESTION]) == [BUY]


def test_a_key_goes_with_every_request_and_a_wrong_one_is_refused(lab: Lab) -> None:
    server, adapter = lab.serve(key="sk-own"), lab.adapter("a")
    assert lab.engine(server, api_key="sk-own").open("v1", adapter).answer([QUESTION]) == [BUY]
    error = refusal(lambda: lab.engine(server, api_key="sk-other").open("v2", adapter))
    assert error.kind == "auth"
    assert "sk-other" not in str(error)


def test_a_version_is_unloaded_once_its_last_source_is_closed(lab: Lab) -> None:
    server, adapter = lab.serve(), lab.adapter("a")
    engine = lab.engine(server)
    first, second = engine.open("v1", adapter), engine.open("v1", adapter)
    first.close()
    first.close()
    assert refusal(lambda: first.answer([QUESTION])).kind == "closed"
    assert second.answer([QUESTION]) == [BUY]
    assert server.unloaded == []
    second.close()
    wait_for(lambda: server.unloaded == ["v1"])
    assert server.adapters == {}


def test_an_answer_in_hand_is_finished_before_its_version_is_unloaded(lab: Lab) -> None:
    asked = threading.Event()

    def slow(_: Any) -> Reply:
        asked.set()
        return replace(OpenAI().answer(BUY), delay_s=0.5)

    server = lab.serve(slow)
    source = lab.engine(server).open("v1", lab.adapter("a"))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(source.answer, [QUESTION])
        assert asked.wait(10)
        source.close()
        assert server.unloaded == []
        assert answer.result(10) == [BUY]
    wait_for(lambda: server.unloaded == ["v1"])


def test_closing_the_engine_unloads_what_it_loaded_and_ends_every_version(lab: Lab) -> None:
    server = lab.serve(adapters={"theirs": "/adapters/theirs"})
    engine = lab.engine(server)
    adapter = lab.adapter("a")
    ours, theirs = engine.open("ours", adapter), engine.open("theirs", lab.adapter("b"))
    engine.close()
    engine.close()
    assert (server.unloaded, list(server.adapters)) == (["ours"], ["theirs"])
    assert refusal(lambda: ours.answer([QUESTION])).kind == "closed"
    assert refusal(lambda: engine.open("v3", adapter)).kind == "closed"
    ours.close()
    theirs.close()
    wait_for(lambda: server._server.open_connections == 0)


def test_two_versions_serve_beside_each_other_through_swaps_without_a_failed_or_mixed_answer(lab: Lab) -> None:
    def named(question: Any) -> dict[str, Any]:
        return {"confidence": 0.5, "recommendation": question.model}

    server = lab.serve(answering(named))
    engine = lab.engine(server)
    versions = [f"v{number}" for number in range(6)]
    adapters = [lab.adapter(version, version.encode()) for version in versions]
    serving = [engine.open(versions[0], adapters[0])]
    done = threading.Event()

    def ask_on() -> int:
        answered = 0
        while not done.is_set() or answered < 20:
            source = serving[0]
            try:
                answers = source.answer([QUESTION] * 3)
            except ProviderError as error:
                assert error.kind == "closed"  # closed between taking the source and asking it: the next one answers
                continue
            expected = f'{{"recommendation":"{source.version}","confidence":0.5}}'
            assert answers == [expected] * 3
            answered += 1
        return answered

    with ThreadPoolExecutor(4) as pool:
        askers = [pool.submit(ask_on) for _ in range(4)]
        try:
            for version, adapter in zip(versions[1:], adapters[1:], strict=True):
                seen = len(server.asked)
                wait_for(lambda seen=seen: len(server.asked) > seen + 6)  # type: ignore[misc]
                former, serving[0] = serving[0], engine.open(version, adapter)
                former.close()
        finally:
            done.set()
        assert sum(asker.result(30) for asker in askers) >= 80
    wait_for(lambda: server.unloaded == versions[:-1])
    assert server.loaded == versions


def test_an_adapter_that_the_server_lost_in_a_restart_is_loaded_again_and_the_question_answered(lab: Lab) -> None:
    server, adapter = lab.serve(), lab.adapter("a")
    source = lab.engine(server).open("v1", adapter)
    server.adapters.clear()
    assert source.answer([QUESTION, QUESTION]) == [BUY, BUY]
    assert server.loaded == ["v1", "v1"]
    server.adapters.clear()
    (adapter.folder / "adapter_model.safetensors").write_bytes(b"weightz")
    (lost,) = source.answer([QUESTION])
    assert isinstance(lost, ProviderError)
    assert "does not exist" in str(lost)
    assert server.loaded == ["v1", "v1"]


def test_a_server_that_is_away_is_an_overload_and_opens_nothing(lab: Lab) -> None:
    engine = lab.engine(f"http://127.0.0.1:{unused_port()}/v1")
    assert refusal(lambda: engine.open("v1", lab.adapter("a"))).kind == "overload"


def test_a_server_that_goes_away_is_raised_and_not_taken_for_the_questions_fault(lab: Lab) -> None:
    server = lab.serve()
    source = lab.engine(server).open("v1", lab.adapter("a"))
    server.close()
    assert refusal(lambda: source.answer([QUESTION] * 3, deadline_s=5.0)).kind in ("overload", "timeout")


def test_a_server_that_hangs_is_a_timeout_within_the_deadline(lab: Lab) -> None:
    server = lab.serve(Reply(silent=True))
    source = lab.engine(server, deadline_s=0.3).open("v1", lab.adapter("a"))
    started = time.monotonic()
    assert refusal(lambda: source.answer([QUESTION] * 2)).kind == "timeout"
    assert time.monotonic() - started < 2.0


def test_a_server_that_hangs_while_it_loads_is_a_timeout_and_other_versions_serve_on(lab: Lab) -> None:
    server = lab.serve()
    engine = lab.engine(server, load_s=0.5)
    serving = engine.open("v1", lab.adapter("a"))
    server._load = lambda _: Reply(silent=True)  # type: ignore[method-assign]
    error = refusal(lambda: engine.open("v2", lab.adapter("b")))
    assert error.kind == "timeout"
    assert serving.answer([QUESTION]) == [BUY]


def test_each_question_has_its_own_answer_or_fault_in_order(lab: Lab) -> None:
    long = Question(({"role": "user", "content": "rsi:60 " * 300},), SCHEMA)

    def by_length(question: Any) -> Reply:
        return lora_error(400, CONTEXT_EXCEEDED) if len(question.user) > 1000 else OpenAI().answer(BUY)

    server = lab.serve(by_length)
    source = lab.engine(server).open("v1", lab.adapter("a"))
    first, second, third = source.answer([QUESTION, long, QUESTION])
    assert (first, third) == (BUY, BUY)
    assert isinstance(second, ProviderError)
    assert second.kind == "request"
    assert "maximum context length" in str(second)
    assert len(server.asked) == 3
    (alone,) = source.answer([long])
    assert isinstance(alone, ProviderError)


@pytest.mark.parametrize(
    "reply, kind",
    [
        (OpenAI().answer("I would buy."), "malformed"),
        (OpenAI().answer('{"confidence": NaN}'), "malformed"),
        (OpenAI().wrong_shapes()["no_choices"], "malformed"),
        (OpenAI().truncated(), "truncated"),
    ],
)
def test_an_answer_that_is_no_object_is_repaired_once_and_then_the_questions_fault(
    lab: Lab, reply: Reply, kind: str
) -> None:
    server = lab.serve(reply)
    source = lab.engine(server).open("v1", lab.adapter("a"))
    (answer,) = source.answer([QUESTION])
    assert isinstance(answer, ProviderError)
    assert answer.kind == kind
    assert len(server.asked) == 2
    server.behaviour = in_turn([reply], answering(lambda _: BUY))
    assert source.answer([QUESTION]) == [BUY]


def test_an_overloaded_server_is_asked_again(lab: Lab) -> None:
    server = lab.serve(in_turn([OpenAI().fault("unavailable")], answering(lambda _: BUY)))
    assert lab.engine(server).open("v1", lab.adapter("a")).answer([QUESTION]) == [BUY]


def test_temperature_seed_schema_and_a_limit_within_the_context_are_on_the_wire(lab: Lab) -> None:
    server = lab.serve(context_tokens=512)
    source = lab.engine(server).open("v1", lab.adapter("a"))
    source.answer([replace(QUESTION, temperature=0.8, random_state=7)])
    source.answer([replace(QUESTION, random_state=2**63 + 5)])
    drawn, likeliest = (asked.request.json for asked in server.asked)
    assert (drawn["temperature"], drawn["seed"]) == (0.8, 7)
    assert (likeliest["temperature"], likeliest["seed"]) == (0.0, 5)
    assert drawn["max_completion_tokens"] == 256
    assert drawn["response_format"]["json_schema"]["schema"] == SCHEMA


def test_all_questions_are_out_at_the_same_time(lab: Lab) -> None:
    server = lab.serve(latency_s=0.3)
    source = lab.engine(server).open("v1", lab.adapter("a"))
    started = time.monotonic()
    assert source.answer([QUESTION] * 16) == [BUY] * 16
    assert time.monotonic() - started < 16 * 0.3 / 2


def test_tokens_are_counted_for_the_server_and_no_money_is_booked(lab: Lab) -> None:
    telemetry = CountingTelemetry()
    server = lab.serve(OpenAI().answer(BUY, input_tokens=34, output_tokens=42))
    lab.engine(server, telemetry=telemetry).open("v1", lab.adapter("a")).answer([QUESTION])
    assert telemetry.counted == [
        ("llm_tokens_total", 76.0, {"provider": "served"}),
        ("llm_calls_total", 1.0, {"provider": "served", "outcome": "ok"}),
    ]


def test_no_questions_are_no_request(lab: Lab) -> None:
    server = lab.serve()
    assert lab.engine(server).open("v1", lab.adapter("a")).answer([]) == []
    assert server.asked == []


def test_an_answer_is_written_without_white_space_and_in_the_schemas_order() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "number"}, "a": {"type": "number"}}}
    schema = {"properties": {"y": inner, "x": {"type": "array", "items": inner}}}
    value = {"x": [{"a": 1, "b": 2.5}], "extra": None, "y": {"a": 3, "b": 4}}
    assert canonical_text(value, schema) == '{"y":{"b":4,"a":3},"x":[{"b":2.5,"a":1}],"extra":null}'


@pytest.mark.parametrize("wrong", [{"deadline_s": 0.0}, {"load_s": float("nan")}, {"concurrency": 0}])
def test_numbers_that_allow_no_answer_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServedModel("http://127.0.0.1:9/v1", "base", **wrong)
