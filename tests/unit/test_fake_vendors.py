"""The fake servers keep what tests rely on: valid examples of any schema, and nothing left behind when they close."""

from __future__ import annotations

import random
import socket
import threading
from typing import Annotated, Literal

import pytest
from fakes.http_server import HttpServer, Reply
from fakes.schema_example import schema_example
from fakes.vendors import FakeAnthropic, FakeGemini, FakeOpenAI, FakeVendor
from pydantic import BaseModel, ConfigDict, Field


class Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    index: Annotated[int, Field(ge=3, lt=5)]
    fault: Literal["none", "logic"]
    rank: Literal[4]


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    score: Annotated[float, Field(ge=0, le=0.5)]
    change: Annotated[float, Field(gt=-1, lt=1)]
    why: Annotated[str, Field(min_length=20, max_length=30)]
    sound: bool
    symbol: str | None
    steps: Annotated[list[Step], Field(min_length=1, max_length=2)]


@pytest.mark.parametrize("seed", range(50))
def test_an_example_is_valid_for_its_schema(seed: int) -> None:
    example = schema_example(Verdict.model_json_schema(), random.Random(seed))
    assert Verdict.model_validate(example, strict=True).model_dump() == example


@pytest.mark.parametrize("schema", [{}, {"type": "integer", "minimum": 2, "maximum": 1}, {"type": "file"}])
def test_a_schema_without_values_has_no_example(schema: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        schema_example(schema, random.Random(0))


@pytest.mark.parametrize("vendor", [FakeAnthropic, FakeOpenAI, FakeGemini])
def test_a_closed_server_leaves_no_thread_and_frees_its_port(vendor: type[FakeVendor]) -> None:
    before = set(threading.enumerate())
    server = vendor()
    port = int(server.url.removeprefix("http://127.0.0.1:").partition("/")[0])
    client = socket.create_connection(("127.0.0.1", port), 5)
    server.close()
    client.settimeout(5)
    assert client.recv(1) == b""
    client.close()
    assert set(threading.enumerate()) == before
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_client_that_leaves_before_the_reply_is_noticed() -> None:
    with HttpServer(lambda request: Reply(silent=True)) as server:
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 5) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /next HTTP/1.1\r\n\r\n")
            client.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
            [request] = server.requests
            assert not request.hung_up.is_set()
        assert request.hung_up.wait(5)


def test_requests_on_one_connection_are_answered_in_order() -> None:
    with HttpServer(lambda request: Reply(body=request.path.encode(), chunked=request.path == "/b")) as server:
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 5) as client:
            client.sendall(b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in (b"/a", b"/b", b"/c")))
            client.settimeout(5)
            received = b""
            while not received.endswith(b"/c"):
                received += client.recv(4096)
        assert received.count(b"HTTP/1.1 200 OK") == 3
        assert b"2\r\n/b\r\n0\r\n\r\nHTTP/1.1" in received
        assert server.connections_made == 1
