"""No secret reaches a log, whoever logs it and in whatever form."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from utils.logs import RedactingFilter, configure_logging, logger

SECRET = "sk-live-0123456789"


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, own = root.handlers[:], root.level, logger.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logger.setLevel(own)


def logged(monkeypatch, style: str, write, level: str = "INFO") -> str:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging(level, style, (SECRET,))
    write()
    return stream.getvalue()


LEAKS = {
    "a known secret in the message": lambda: logger.info("key %s used", SECRET),
    "a known secret in an argument object": lambda: logger.info("%r", {"key": SECRET}),
    "a query token": lambda: logger.info("GET wss://ws.finnhub.io?token=%s&x=1", SECRET[3:]),
    "an api key in a query": lambda: logger.info("https://host/path?apiKey=%s", SECRET[3:]),
    "a bearer token": lambda: logger.info("Authorization: Bearer %s", SECRET[3:]),
    "a password in a URL": lambda: logger.info("postgresql://user:%s@host/db", SECRET[3:]),
    "a password in a connection string": lambda: logger.info("host=x password=%s dbname=y", SECRET[3:]),
    "another library's logger": lambda: logging.getLogger("websockets.client").error("token=%s", SECRET[3:]),
}


@pytest.mark.parametrize("style", ["console", "json"])
@pytest.mark.parametrize("write", LEAKS.values(), ids=[name.replace(" ", "_") for name in LEAKS])
def test_a_secret_is_struck_out(monkeypatch, restored, write, style) -> None:
    text = logged(monkeypatch, style, write)
    assert "0123456789" not in text
    assert "********" in text


def fail_with_a_secret() -> None:
    try:
        raise RuntimeError(f"cannot connect to postgresql://user:{SECRET[3:]}@host/db with {SECRET}")
    except RuntimeError:
        logger.exception("it failed")


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_secret_in_a_traceback_is_struck_out(monkeypatch, restored, style) -> None:
    text = logged(monkeypatch, style, fail_with_a_secret)
    assert "RuntimeError" in text
    assert "0123456789" not in text


def test_what_is_no_secret_stays_readable(monkeypatch, restored) -> None:
    text = logged(monkeypatch, "console", lambda: logger.info("status page: http://127.0.0.1:9090/ at 12:30:00"))
    assert "http://127.0.0.1:9090/ at 12:30:00" in text


def test_short_secrets_do_not_shred_the_log() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "a cat sat", (), None)
    assert RedactingFilter(("a",)).filter(record)
    assert record.getMessage() == "a cat sat"


def test_json_lines_are_one_object_each_with_their_fields(monkeypatch, restored) -> None:
    def write() -> None:
        logger.warning("first\nline %d", 2)
        fail_with_a_secret()

    lines = logged(monkeypatch, "json", write).splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == 2
    assert entries[0]["message"] == "first\nline 2"
    assert entries[0]["level"] == "WARNING"
    assert entries[0]["thread"] == "MainThread"
    assert entries[0]["time"].endswith("+00:00")
    assert "RuntimeError" in entries[1]["exception"]


def test_the_level_is_kept_and_noisy_libraries_are_quiet(monkeypatch, restored) -> None:
    def write() -> None:
        logger.info("not this")
        logging.getLogger("httpx").info("nor this")
        logger.warning("this")

    text = logged(monkeypatch, "console", write, level="WARNING")
    assert "this" in text
    assert "not this" not in text
    assert "nor this" not in text


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_a_request_to_a_hosted_model_writes_no_line_with_its_address(monkeypatch, restored, library) -> None:
    text = logged(monkeypatch, "console", lambda: logging.getLogger(library).info("HTTP Request: POST https://a.b/c"))
    assert text == ""


def test_configuring_twice_does_not_double_the_lines(monkeypatch, restored) -> None:
    configure_logging()
    text = logged(monkeypatch, "console", lambda: logger.info("once"))
    assert text.count("once") == 1
