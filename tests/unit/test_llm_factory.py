"""The models of a run: keys, instances, prices, probes, status and closing; and names that say their provider."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from monitoring import hosted_models
from utils.errors import ConfigError, ProviderError
from utils.llm.base import ChatMessage
from utils.llm.factory import ChatModels, chat_model, provider_of
from utils.settings import OrchestratorConfig

ASK = [ChatMessage("user", "what?")]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


class OpenAIServer:
    """Knows the model ``known``; lists it, and shows it unless `lists_only`; a key that begins with ``bad`` is refused."""

    def __init__(self) -> None:
        self.lists_only = False
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                if "Bearer bad" in self.headers["authorization"]:
                    self.send(401, {"error": {"message": "bad key"}})
                elif self.path == "/v1/models":
                    self.send(200, {"object": "list", "data": [{"id": "known", "object": "model"}]})
                elif self.path == "/v1/models/known" and not outer.lists_only:
                    self.send(200, {"id": "known", "object": "model"})
                else:
                    self.send(404, {"error": {"message": "not here"}})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.asked += 1
                choice = {"index": 0, "message": {"role": "assistant", "content": '{"a": 1}'}, "finish_reason": "stop"}
                usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
                self.send(200, {"id": "1", "object": "chat.completion", "created": 1, "model": "known",
                                "choices": [choice], "usage": usage})  # fmt: skip

            def send(self, status: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    made = OpenAIServer()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(autouse=True)
def _no_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no .env
    for provider in ("ANTHROPIC", "OPENAI", "GEMINI"):
        monkeypatch.delenv(f"{provider}_API_KEY", raising=False)
        monkeypatch.delenv(f"{provider}_BASE_URL", raising=False)


def models(server: OpenAIServer, tmp_path: Path, *, replay: bool = False, **more: Any) -> ChatModels:
    values = {"openai_api_key": "sk-test", "openai_base_url": server.url, "data_dir": tmp_path, **more}
    return ChatModels(OrchestratorConfig(**values), replay=replay)


def test_a_model_without_a_key_names_the_variable_to_set(server: OpenAIServer, tmp_path: Path) -> None:
    made = models(server, tmp_path)
    assert [made.has_key(name) for name in ("openai", "anthropic", "local")] == [True, False, True]
    with pytest.raises(ProviderError, match="ANTHROPIC_API_KEY") as caught:
        made.model("anthropic")
    assert caught.value.kind == "auth"
    made.close()


def test_there_is_one_instance_for_a_name_and_the_settings_name_the_default(
    server: OpenAIServer, tmp_path: Path
) -> None:
    made = models(server, tmp_path)
    assert made.model("openai") is made.model("openai", "gpt-5.4-mini")
    assert made.model("openai", "known").name == "openai:known"
    made.close()


def test_an_unknown_provider_names_the_nearest(server: OpenAIServer, tmp_path: Path) -> None:
    made = models(server, tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'openai'"):
        made.model("openia")
    made.close()


def test_a_wrong_table_of_prices_stops_the_start(server: OpenAIServer, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("as_of: 2026-01-01\n")
    with pytest.raises(ConfigError, match=r"p\.yaml.*prices"):
        models(server, tmp_path, llm={"prices": tmp_path / "p.yaml"})


@pytest.mark.parametrize(
    ("replay", "cache", "asked"), [(True, "auto", 1), (False, "auto", 2), (False, "on", 1), (True, "off", 2)]
)
def test_answers_are_kept_in_replays_or_where_asked_for(
    server: OpenAIServer, tmp_path: Path, replay: bool, cache: str, asked: int
) -> None:
    for _ in range(2):  # a restart between
        made = models(server, tmp_path, replay=replay, llm={"cache": cache})
        assert made.model("openai", "known").complete(ASK, SCHEMA).content == {"a": 1}
        made.close()
    assert server.asked == asked


def test_a_server_of_ones_own_costs_nothing_unless_the_table_has_the_model(
    server: OpenAIServer, tmp_path: Path
) -> None:
    made = models(server, tmp_path)
    assert made.model("openai", "known").complete(ASK, SCHEMA).cost_usd == 0
    assert made.model("openai", "gpt-5.4-mini").complete(ASK, SCHEMA).cost_usd == pytest.approx(0.0012)
    status = made.status()
    assert status["spent_today_usd"] == pytest.approx(0.0012)
    assert status["models"]["openai:known"] == {
        "state": "ready",
        "calls": 1,
        "failed": 0,
        "tokens": 1100,
        "cost_usd": 0,
    }
    assert json.loads(json.dumps(status)) == status
    made.close()
    again = models(server, tmp_path)
    assert again.budget.spent_today == pytest.approx(0.0012)
    again.close()


@pytest.mark.parametrize("lists_only", [False, True])
def test_the_probe_finds_what_is_there_and_turns_off_what_is_not(
    server: OpenAIServer, tmp_path: Path, lists_only: bool
) -> None:
    server.lists_only = lists_only
    made = models(server, tmp_path)
    gone = made.model("openai", "gone")
    made.model("openai", "known")
    found = made.probe()
    assert found["openai:known"] == "ready"
    assert found["openai:gone"].startswith("request: ")
    assert "llm.openai" in found["openai:gone"]
    with pytest.raises(ProviderError):
        gone.complete(ASK, SCHEMA)
    assert (server.asked, made.status()["models"]["openai:gone"]["state"]) == (0, "off: request")
    made.close()


def test_the_log_says_whether_a_model_that_the_probe_did_not_find_ready_is_asked_all_the_same(
    server: OpenAIServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = models(server, tmp_path)
    made.model("openai", "gone")
    hosted_models.probe(made)
    made.close()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        unreachable = models(server, tmp_path, openai_base_url=f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        unreachable.model("openai", "known")
        hosted_models.probe(unreachable)
    assert unreachable.status()["models"]["openai:known"]["state"] == "ready"
    unreachable.close()
    told = [record.getMessage().partition(": ")[0] for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        "openai:gone is off until the next start",
        "openai:known could not be checked and is asked all the same",
    ]


def test_the_probe_turns_a_refused_key_off(server: OpenAIServer, tmp_path: Path) -> None:
    made = models(server, tmp_path, openai_api_key="bad-key-of-a-user")
    made.model("openai", "known")
    found = made.probe()["openai:known"]
    assert found.startswith("auth: ")
    assert "bad-key" not in found
    assert made.status()["models"]["openai:known"]["state"] == "off: auth"
    made.close()


def test_closed_models_answer_with_kind_closed_and_leave_no_thread(server: OpenAIServer, tmp_path: Path) -> None:
    made = models(server, tmp_path)
    model = made.model("openai", "known")
    model.complete(ASK, SCHEMA)
    made.close()
    made.close()
    assert model.submit(ASK, SCHEMA).exception(1).kind == "closed"  # type: ignore[union-attr]
    assert made.probe()["openai:known"].startswith("closed: ")
    assert "llm" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ProviderError, match="closed"):
        made.model("openai", "known")


def test_a_notebook_gets_a_single_model(server: OpenAIServer) -> None:
    made = chat_model("known", provider="openai", api_key="k", base_url=server.url)
    assert made.complete(ASK, SCHEMA).content == {"a": 1}
    made.close()
    with pytest.raises(ProviderError, match="GEMINI_API_KEY"):
        chat_model("gemini-3.8-flash")


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("claude-haiku-5-5", "anthropic"),
        ("gpt-5", "openai"),
        ("o3-mini", "openai"),
        ("gemini-x", "gemini"),
        ("local:x", "local"),
    ],
)
def test_a_models_name_says_its_provider(model: str, provider: str) -> None:
    assert provider_of(model) == provider


def test_a_name_of_no_known_provider_lists_them() -> None:
    with pytest.raises(ConfigError, match="anthropic, openai, gemini, local"):
        provider_of("llama")


def test_no_module_of_the_package_imports_an_sdk_or_torch() -> None:
    names = ["factory", "hosted", "local", "gemini_legacy", "lookup"]
    code = f"""
import importlib, sys
for name in {names}: importlib.import_module("utils.llm." + name)
print(sorted({{"anthropic", "openai", "google.genai", "google.generativeai", "torch", "transformers", "httpx2"}} & set(sys.modules)))
"""
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert result.stdout.strip() == "[]"
