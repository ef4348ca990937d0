"""A small HTTP/1.1 server for tests and benchmarks, in one thread, that can misbehave in every way a real one does.

The vendors' fakes are built on it. It listens on 127.0.0.1 alone, keeps connections alive, serves hundreds of them at a
time, and never raises into the test: a behaviour that fails is answered with status 500 and the exception's text.
"""

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_START_LIMIT_S = 10.0


@dataclass(frozen=True)
class Request:
    """What a client sent.

    Attributes
    ----------
    path : str
        Decoded, without the query.
    query : mapping
        Of each parameter the values, in order.
    headers : mapping
        By name in lower case.
    hung_up : threading.Event
        Set once the client has closed the connection before the reply to this request was complete.
    """

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    hung_up: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    @property
    def json(self) -> Any:
        """The body, parsed; None if there is none."""
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True)
class Reply:
    """What the server sends, and how.

    Attributes
    ----------
    body : bytes
    content_type : str
    headers : mapping
        Beside Content-Type and the framing.
    delay_s : float
        Before the first byte of the head.
    trickle : (int, float), optional
        So many bytes of the body at a time, and seconds before each portion.
    cut_after : int, optional
        Close the connection after so many bytes of the body, having announced all of them.
    silent : bool
        Never send anything; the connection stays open until the client or the server closes it.
    chunked : bool
        Send the body in chunks and not with a Content-Length.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    trickle: tuple[int, float] | None = None
    cut_after: int | None = None
    silent: bool = False
    chunked: bool = False

    def head(self) -> bytes:
        """Status line and headers, up to and including the empty line."""
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:  # 529 is in no register
            phrase = "Unregistered"
        lines = [f"HTTP/1.1 {self.status} {phrase}", f"Content-Type: {self.content_type}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines.append("Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def portions(self) -> list[bytes]:
        """The body as it is put on the wire, a portion a write."""
        size, _ = self.trickle or (max(len(self.body), 1), 0.0)
        portions = [self.body[at : at + size] for at in range(0, len(self.body), size)]
        if self.chunked:
            return [b"%x\r\n%b\r\n" % (len(portion), portion) for portion in portions] + [b"0\r\n\r\n"]
        return portions


def json_reply(value: Any, status: int = 200, **how: Any) -> Reply:
    """Return a reply with `value` as JSON; NaN and infinity become the bare words that Python writes."""
    return Reply(status, json.dumps(value, ensure_ascii=False).encode(), **how)


class HttpServer:
    """Serves until it is closed; a context manager.

    Parameters
    ----------
    behaviour : callable
        From a request to the reply. It runs on the server's thread and must not block.

    Attributes
    ----------
    url : str
        ``http://127.0.0.1:<port>``
    requests : list of Request
        All, in order of arrival.
    """

    def __init__(self, behaviour: Callable[[Request], Reply]) -> None:
        self.behaviour = behaviour
        self.requests: list[Request] = []
        self.connections_made = 0
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fake-http-server", daemon=True)
        self._port = 0
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread.start()
        if not self._started.wait(_START_LIMIT_S):
            raise RuntimeError(f"the server does not listen after {_START_LIMIT_S:g} s")
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    def close(self) -> None:
        """Cut all connections and end the thread; returns once both are done. May be called again."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._listen())
        finally:
            self._loop.close()

    async def _listen(self) -> None:
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=1024)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        await asyncio.sleep(0)  # who is in the queue is let in, to be told that it is over
        await asyncio.sleep(0)
        server.close()
        this = asyncio.current_task()
        while self._connections or asyncio.all_tasks() != {this}:  # a connection may be half made
            for connection in list(self._connections):
                connection.abort()
            await asyncio.sleep(0)

    def answer(self, request: Request) -> Reply:
        """Note the request and ask the behaviour."""
        self.requests.append(request)
        try:
            return self.behaviour(request)
        except Exception:  # whatever a test's behaviour raises must reach the client, not end the server
            return Reply(500, traceback.format_exc().encode(), "text/plain")


class _Connection(asyncio.Protocol):
    """One client: reads a request, replies, and reads the next."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._received = bytearray()
        self._reply: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server._connections.add(self)
        self._server.connections_made += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._connections.discard(self)
        if self._request is not None:
            self._request.hung_up.set()
        if self._reply is not None:
            self._reply.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._request is None:
            self._next_request()

    def abort(self) -> None:
        """Close without waiting for what is not sent yet."""
        self._transport.abort()

    def _next_request(self) -> None:
        head, separator, rest = bytes(self._received).partition(b"\r\n\r\n")
        if not separator:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "transfer-encoding" in headers:
            self._transport.write(Reply(411).head())
            self._transport.close()
            return
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._received = bytearray(rest[length:])
        method, target, _ = first.split(" ", 2)
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        self._request = Request(method, unquote(parts.path), query, headers, rest[:length])
        reply = self._server.answer(self._request)
        self._reply = asyncio.ensure_future(self._send(reply))

    async def _send(self, reply: Reply) -> None:
        if reply.silent:
            await asyncio.Event().wait()
        if reply.delay_s > 0:
            await asyncio.sleep(reply.delay_s)
        self._transport.write(reply.head())
        pause_s = reply.trickle[1] if reply.trickle else 0.0
        left = reply.cut_after
        for portion in reply.portions():
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            self._transport.write(portion if left is None else portion[:left])
            if left is not None:
                left -= len(portion)
                if left <= 0:
                    break
        self._request = None  # complete, or cut by the server: whoever closes now has not hung up on a reply
        if reply.cut_after is not None:
            self._transport.close()
        elif self._received:
            self._next_request()
