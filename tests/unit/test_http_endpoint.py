"""The one HTTP endpoint: what it answers, what it refuses, and that it lets go of its port."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from monitoring.http_endpoint import HttpEndpoint
from utils.errors import ComponentStartError


@pytest.fixture
def views() -> dict[str, tuple[int, dict[str, Any]]]:
    return {
        "/health": (200, {"overall_healthy": True}),
        "/ready": (503, {"ready": False}),
        "/status": (200, {"a": [1]}),
    }


@pytest.fixture
def endpoint(views) -> Iterator[HttpEndpoint]:
    def broken() -> tuple[int, dict[str, Any]]:
        raise RuntimeError("a view broke")

    made = HttpEndpoint(
        "127.0.0.1",
        0,
        metrics=lambda: b"up 1\n",
        views={**{path: (lambda path=path: views[path]) for path in views}, "/broken": broken},
    )
    made.start()
    yield made
    made.stop()


def ask(endpoint: HttpEndpoint, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_metrics_are_given_as_text_of_prometheus(endpoint) -> None:
    status, headers, body = ask(endpoint, "/metrics")
    assert (status, body) == (200, b"up 1\n")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize("path", ["/health", "/ready", "/status"])
def test_views_answer_with_their_status_and_json(endpoint, views, path) -> None:
    status, headers, body = ask(endpoint, path)
    assert (status, json.loads(body)) == views[path]
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"


def test_views_are_asked_anew_each_time(endpoint, views) -> None:
    assert ask(endpoint, "/ready")[0] == 503
    views["/ready"] = (200, {"ready": True})
    assert ask(endpoint, "/ready")[0] == 200


def test_a_query_does_not_hide_the_path(endpoint) -> None:
    assert ask(endpoint, "/health?verbose=1")[0] == 200


def test_the_page_for_people_is_html_and_may_load_nothing_from_elsewhere(endpoint) -> None:
    status, headers, body = ask(endpoint, "/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"</html>" in body
    assert b'src="http' not in body


def test_head_has_the_headers_and_no_body(endpoint) -> None:
    status, headers, body = ask(endpoint, "/status", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/../etc/passwd", "/%2e%2e/etc/passwd"])
def test_an_unknown_path_is_not_found_and_names_those_there_are(endpoint, path) -> None:
    status, _, body = ask(endpoint, path)
    assert status == 404
    assert "/metrics" in json.loads(body)["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_is_read_only(endpoint, method) -> None:
    assert ask(endpoint, "/status", method)[0] == 501


def test_a_view_that_breaks_does_not_take_the_others_with_it(endpoint) -> None:
    assert ask(endpoint, "/broken")[0] == 500
    assert ask(endpoint, "/health")[0] == 200


def test_before_anything_is_ready_the_views_say_503() -> None:
    endpoint = HttpEndpoint("127.0.0.1", 0)
    endpoint.start()
    try:
        assert {ask(endpoint, path)[0] for path in ("/health", "/ready", "/status")} == {503}
    finally:
        endpoint.stop()


def test_a_client_that_says_nothing_does_not_keep_others_waiting(endpoint) -> None:
    silent = http.client.HTTPConnection("127.0.0.1", endpoint.port)
    silent.connect()
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(ask(endpoint, "/health")[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    silent.close()
    assert results == [200] * 8


def test_a_taken_port_is_a_start_error_that_names_the_remedy(endpoint) -> None:
    with pytest.raises(ComponentStartError, match=rf"127\.0\.0\.1:{endpoint.port}.*--metrics_port"):
        HttpEndpoint("127.0.0.1", endpoint.port).start()


def test_an_address_that_is_none_is_a_start_error() -> None:
    with pytest.raises(ComponentStartError, match="--metrics_port"):
        HttpEndpoint("203.0.113.7", 0).start()


def test_stop_frees_the_port_and_may_be_called_twice() -> None:
    first = HttpEndpoint("127.0.0.1", 0)
    first.stop()
    first.start()
    first.start()
    port = first.port
    first.stop()
    first.stop()
    assert not first.running
    second = HttpEndpoint("127.0.0.1", port)
    second.start()
    assert second.port == port
    second.stop()
