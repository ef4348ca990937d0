"""The daemon's one HTTP endpoint: /metrics, /health, /ready, /status and a page for people. Read-only, no secrets.

Answers from the first moment of the start (503 until ready), from immutable snapshots handed in as functions; it never
waits for the work of another thread.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from utils.errors import ComponentStartError
from utils.logs import logger

JsonView = Callable[[], tuple[int, dict[str, Any]]]


def _nothing() -> tuple[int, dict[str, Any]]:
    return 503, {"ready": False}


class HttpEndpoint:
    """Serves the given views.

    Parameters
    ----------
    host, port
        Address to bind; port 0 takes any free one.
    metrics : callable
        Returns the exposition text of Prometheus.
    views : mapping of path to callable
        Each returns a status code and a JSON object.

    Raises
    ------
    ComponentStartError
        From `start`, if the address cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Callable[[], bytes] = lambda: b"",
        views: dict[str, JsonView] | None = None,
    ) -> None:
        self._address = (host, port)
        self._metrics = metrics
        self._views: dict[str, JsonView] = {
            "/health": _nothing,
            "/ready": _nothing,
            "/status": _nothing,
            **(views or {}),
        }
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether the endpoint answers."""
        return self._server is not None

    @property
    def port(self) -> int:
        """The port in use, the configured one before the start."""
        return self._server.server_address[1] if self._server else self._address[1]

    def start(self) -> None:
        """Bind and answer from a thread of its own."""
        if self._server is not None:
            return
        try:
            server = _Server(self._address, _handler(self._metrics, self._views))
        except OSError as error:
            host, port = self._address
            raise ComponentStartError(
                f"cannot serve metrics on {host}:{port}: {error.strerror}; choose another by --metrics_port (0 takes any free one)"
            ) from None
        server.daemon_threads = True
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and end the thread; idempotent."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(5)
        self._server = self._thread = None


class _Server(ThreadingHTTPServer):
    """Logs what goes wrong with a client in place of printing a traceback."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, (ConnectionError, TimeoutError)):
            logger.debug("http: a client went away: %s", error)
        else:
            logger.error("http: %s", error, exc_info=error)


def _handler(metrics: Callable[[], bytes], views: dict[str, JsonView]) -> type[BaseHTTPRequestHandler]:
    page = resources.files("monitoring").joinpath("status_page", "index.html").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "stock-agents"
        sys_version = ""
        timeout = 10

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/metrics":
                self._send(200, "text/plain; version=0.0.4; charset=utf-8", metrics())
            elif path == "/":
                self._send(200, "text/html; charset=utf-8", page)
            elif path in views:
                try:
                    status, body = views[path]()
                except Exception:  # a fault of a view must not look like a dead daemon
                    logger.exception("http: %s failed", path)
                    status, body = 500, {"error": f"{path} failed; the log has the reason"}
                self._send(status, "application/json", json.dumps(body, default=str, allow_nan=False).encode())
            else:
                known = ", ".join(("/", "/metrics", *views))
                self._send(404, "application/json", json.dumps({"error": f"no such path; there are {known}"}).encode())

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks up

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header(
                "Content-Security-Policy",
                "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'",
            )
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not news."""

    return Handler
