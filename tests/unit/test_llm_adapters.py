"""The adapters' own edges over a socket: trickling and silent servers, refused parameters, proxies, threads that hang."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from utils.errors import ProviderError
from utils.llm.adapter import LONGEST_MESSAGE, json_object, one_line
from utils.llm.base import ChatMessage
from utils.llm.event_loop import LoopThread
from utils.llm.factory import OwnedChatModel, make_adapter
from utils.llm.faults import Endpoint, retry_after_s, vendor_fault
from utils.llm.http_client import is_loopback
from utils.llm.worker_pool import WorkerPool

ASK = [ChatMessage("system", "be brief"), ChatMessage("user", "what?")]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
VENDORS = ("anthropic", "openai", "gemini")

Reply = Callable[[str, bytes, asyncio.StreamWriter], Any]


def chat_completion(content: str) -> dict[str, Any]:
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }  # fmt: skip


class Server:
    """One HTTP server on a thread; `reply` writes what it likes after each request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.gone = 0
        self.reply: Reply = self.silent
        self._thread = LoopThread("llm-test-server")
        self._server = self._thread.submit(self._start).result(10)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [
                    line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length:")
                ]
                body = await reader.readexactly(int(lengths[0]) if lengths else 0)
                self.requests.append((head, body))
                answering = asyncio.ensure_future(self.reply(head, body, writer))
                watching = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():  # the client left while it was being answered
                    self.gone += 1
                    answering.cancel()
                    return
                watching.cancel()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def silent(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    def close(self) -> None:
        self._thread.close()


async def send(writer: asyncio.StreamWriter, status: int, content: Any) -> None:
    data = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def model(vendor: str, server: Server, key: str = "SECRET-KEY") -> OwnedChatModel:
    suffix = "/v1" if vendor == "openai" else ""
    return OwnedChatModel(make_adapter(vendor, "m", key, f"http://127.0.0.1:{server.port}{suffix}"), 64)  # type: ignore[arg-type]


def reached(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.002)
    return condition()


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_deadline_holds_against_a_server_that_trickles_and_closes_its_connection(
    vendor: str, server: Server
) -> None:
    async def trickle(head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    server.reply = trickle
    made = model(vendor, server)
    begun = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        made.complete(ASK, SCHEMA, deadline_s=0.5)
    assert caught.value.kind == "timeout"
    assert time.monotonic() - begun < 1.5
    assert reached(lambda: server.gone == 1)
    made.close()


@pytest.mark.parametrize("vendor", VENDORS)
def test_cancelling_a_call_closes_its_connection_and_closing_leaves_no_thread(vendor: str, server: Server) -> None:
    before = {thread.name for thread in threading.enumerate()}
    made = model(vendor, server)
    future = made.submit(ASK, SCHEMA, deadline_s=60)
    assert reached(lambda: len(server.requests) == 1)
    future.cancel()
    assert reached(lambda: server.gone == 1)
    made.close()
    assert {thread.name for thread in threading.enumerate()} == before


@pytest.mark.parametrize("vendor", VENDORS)
def test_proxies_of_the_environment_do_not_stand_before_a_loopback_server(
    vendor: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def forbid(head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        await send(writer, 403, {"error": {"message": "no SECRET-KEY here"}})

    server.reply = forbid
    made = model(vendor, server)
    with pytest.raises(ProviderError) as caught:
        made.complete(ASK, SCHEMA)
    assert (caught.value.kind, len(server.requests)) == ("auth", 1)
    assert "SECRET-KEY" not in str(caught.value)
    made.close()


def test_a_server_without_structured_output_is_asked_in_words_and_remembered(server: Server) -> None:
    async def plain(head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if b"response_format" in body:
            await send(writer, 400, {"error": {"message": "'response_format.type' must be 'text'"}})
        else:
            await send(writer, 200, chat_completion('{"a": 1}'))

    server.reply = plain
    made = model("openai", server)
    assert [made.complete(ASK, SCHEMA).content for _ in range(2)] == [{"a": 1}, {"a": 1}]
    sent = [json.loads(body) for _, body in server.requests]
    assert ["response_format" in request for request in sent] == [True, False, False]
    assert '"additionalProperties": false' in sent[1]["messages"][0]["content"]
    made.close()


def test_a_model_that_takes_no_temperature_is_asked_without(server: Server) -> None:
    async def reasoning(head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if b'"temperature"' in body:
            await send(writer, 400, {"error": {"message": "Unsupported value: 'temperature'", "param": "temperature"}})
        else:
            await send(writer, 200, chat_completion('{"a": 1}'))

    server.reply = reasoning
    made = model("openai", server)
    assert [made.complete(ASK, SCHEMA, temperature=0.0).content["a"] for _ in range(2)] == [1, 1]
    assert len(server.requests) == 3
    made.close()


def test_any_other_refused_request_is_not_asked_again(server: Server) -> None:
    async def refuse(head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        await send(writer, 400, {"error": {"message": "context_length_exceeded"}})

    server.reply = refuse
    made = model("openai", server)
    with pytest.raises(ProviderError) as caught:
        made.complete(ASK, SCHEMA)
    assert (caught.value.kind, len(server.requests)) == ("request", 1)
    made.close()


def test_claude_is_never_sent_a_temperature(server: Server) -> None:
    async def refuse(head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        await send(writer, 400, {"error": {"message": "no"}})

    server.reply = refuse
    made = model("anthropic", server)
    with pytest.raises(ProviderError):
        made.complete(ASK, SCHEMA, temperature=0.0)
    sent = json.loads(server.requests[0][1])
    assert "temperature" not in sent
    assert (sent["system"], [turn["role"] for turn in sent["messages"]]) == ("be brief", ["user"])
    made.close()


def test_when_every_thread_of_the_old_gemini_sdk_hangs_new_calls_fail_at_once(server: Server) -> None:
    pytest.importorskip("google.generativeai", reason="needs the extra `gemini-legacy`")
    from utils.llm.gemini_legacy import LegacyGeminiAdapter

    made = OwnedChatModel(LegacyGeminiAdapter("m", "k", f"http://127.0.0.1:{server.port}", threads=1), 64)
    hung = made.submit(ASK, SCHEMA, deadline_s=0.5)
    assert reached(lambda: len(server.requests) == 1)
    with pytest.raises(ProviderError, match="every thread is held") as caught:
        made.complete(ASK, SCHEMA, deadline_s=0.4)
    assert caught.value.kind == "overload"
    assert hung.exception(5).kind == "timeout"  # type: ignore[union-attr]
    made.close()


def test_a_pool_runs_no_more_than_its_threads_and_leaves_cancelled_jobs_out() -> None:
    pool = WorkerPool(1, "pool-test")
    gate = threading.Event()
    first = pool.submit(gate.wait)
    assert reached(lambda: first.running())
    second, third = pool.submit(lambda: 2), pool.submit(lambda: 3)
    assert pool.is_full
    assert second.cancel()
    gate.set()
    assert (first.result(5), third.result(5)) == (True, 3)
    assert not pool.is_full
    pool.close()
    assert reached(lambda: "pool-test-0" not in {thread.name for thread in threading.enumerate()})


def test_a_job_that_raises_tells_whoever_waits() -> None:
    pool = WorkerPool(2, "pool-test")
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(5)
    pool.close()


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:80/v1", True), ("http://localhost", True), ("http://[::1]:1", True),
        ("https://api.openai.com/v1", False), ("http://127.0.0.1.example.com", False), ("http://10.0.0.1", False),
    ],
)  # fmt: skip
def test_loopback_is_told_from_elsewhere(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback


@pytest.mark.parametrize(
    "error", [TypeError("x"), AttributeError("x"), KeyError("x"), json.JSONDecodeError("x", "y", 0)]
)
def test_what_an_sdk_trips_over_in_a_reply_is_malformed(error: Exception) -> None:
    assert vendor_fault(Endpoint("openai", "m", "k"), error).kind == "malformed"


def test_an_error_message_is_one_short_line_without_the_key() -> None:
    fault = vendor_fault(Endpoint("openai", "m", "sk-secret"), RuntimeError("line\nsk-secret " + "x" * 500))
    assert (fault.kind, "sk-secret" in str(fault), "\n" in str(fault)) == ("fault", False, False)
    assert len(one_line("y " * 1000)) <= LONGEST_MESSAGE
    assert len(str(fault)) <= LONGEST_MESSAGE


class Refused(Exception):
    """What SDKs raise, as far as headers go."""

    def __init__(self, **headers: str) -> None:
        super().__init__("429")
        self.response = type("Response", (), {"headers": {k.replace("_", "-"): v for k, v in headers.items()}})()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "3"}, 3.0), ({"retry_after_ms": "250", "retry_after": "9"}, 0.25), ({"retry_after": "soon"}, None),
        ({"retry_after": "-1"}, None), ({"retry_after": "nan"}, None), ({"retry_after": "inf"}, None), ({}, None),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_read_in_every_form_and_nonsense_is_none(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(Refused(**headers)) == seconds


def test_deep_nesting_is_a_value_error_and_no_crash() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        json_object('{"a":' * 100_000)
