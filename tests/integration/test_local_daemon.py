"""The daemon with `agents: local`: kills and another base model, a base that cannot be had, and a server of one's own.

Real processes and databases; the base model has random weights, so nothing here shows performance.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="needs the extra `training`")
pytest.importorskip("openai", reason="needs the extra `hosted`")

from daemon_runner import Daemon, lines, run_to_end
from fakes.dialect import Question
from fakes.lora_server import FakeLoraServer
from fakes.vendors import answering
from hosted_daemon_lab import ended, rows, started
from local_model_lab import micro_base

from agents.policies.local.decisions import cited_evidence
from utils.settings import ENVIRONMENT, OrchestratorConfig

pytestmark = pytest.mark.timeout(280)

SESSIONS = ("2010-03-01", "2010-03-19")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"))


def flags(home: Path, base_model: Path | str, name: str) -> tuple[str, ...]:
    settings = home / "local.yaml"
    settings.write_text(f"learning: {{base_model: {base_model}}}\nlocal: {{device: cpu, headlines: 0}}\n")
    return (
        "--enable_streaming", "--agents", "local", "--config", str(settings), "--exit_when_done",
        "--feed", "replay", "--replay_start", SESSIONS[0], "--replay_end", SESSIONS[1],
        "--decisions_jsonl", str(home / f"{name}.jsonl"),
    )  # fmt: skip


def policies(path: Path) -> set[str]:
    """Return which models thought for the strategist and the analysts."""
    return set(re.findall(r"local:[^\"]+", path.read_text()))


def test_a_kill_leaves_the_decisions_of_an_uninterrupted_run(home: Path, base: Path) -> None:
    whole, resumed = home / "whole.jsonl", home / "resumed.jsonl"
    reference = run_to_end(home, *flags(home, base, "whole"), data_dir=home / "reference")
    assert reference.exit_code == 0, reference.stderr
    with Daemon(home, *flags(home, base, "resumed")) as daemon:
        daemon.until(lambda: resumed.exists() and resumed.read_bytes().count(b"\n") >= 15, "the fifth session", 120)
        daemon.kill()
    assert 15 <= len(lines(resumed)) < 45
    last = run_to_end(home, *flags(home, base, "resumed"))
    assert last.exit_code == 0, last.stderr
    assert "Traceback" not in last.stderr
    assert resumed.read_bytes() == whole.read_bytes()
    assert len(policies(whole)) == 1


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)


def short(database_url: str, folder: Path, **fields: Any) -> OrchestratorConfig:
    """Return the settings of a replay of ten sessions in which local models think."""
    local = {"device": "cpu", "headlines": 0, **fields.pop("local", {})}
    return OrchestratorConfig(
        feed="replay", streaming_symbols=["AAPL", "MSFT"], replay_start="2012-01-03", replay_end="2012-01-17",
        agents="local", local=local, enable_learning_loop=False, metrics_port=0, database_url=database_url,
        data_dir=folder / "data", **fields,
    )  # fmt: skip


def test_decisions_of_another_base_model_are_another_run_wherever_its_folder_is(
    fresh_database: str, tmp_path: Path, base: Path, bare: None
) -> None:
    folder, runs = tmp_path / "base", []
    shutil.copytree(base, folder)
    for content in (None, None, '{"temperature": 0.5}'):
        if content is not None:
            (folder / "generation_config.json").write_text(content)
        with started(short(fresh_database, tmp_path, learning={"base_model": str(folder)})) as orchestrator:
            runs.append(ended(orchestrator).run_id)
    assert runs[0] == runs[1] != runs[2]
    thought = rows(
        fresh_database, "SELECT DISTINCT run_id, policy FROM trajectories WHERE policy LIKE 'local:%' ORDER BY policy"
    )
    assert {run for run, _ in thought} == set(runs)
    assert len(thought) == len({policy for _, policy in thought}) == 2


def test_a_base_model_that_cannot_be_had_ends_the_start_in_one_sentence(home: Path) -> None:
    last = run_to_end(home, *flags(home, home / "nowhere", "none"))
    assert last.exit_code == 3
    assert "Traceback" not in last.stderr
    (said,) = last.complaint.splitlines()
    assert "agents: no local model: base model" in said
    assert "nowhere" in said


def test_a_stop_is_not_kept_waiting_until_the_base_model_is_built(home: Path) -> None:
    with Daemon(home, *flags(home, "builtin:tiny", "none"), env={"MODEL_CACHE_DIR": str(home / "cache")}) as daemon:
        daemon.until(lambda: "building the small base model: step" in daemon.stderr, "first steps", 200)
        last, seconds = daemon.terminate()
    assert (last.exit_code, seconds < 30) == (0, True)
    assert "stopped while the small base model was built" in last.stderr
    assert "Traceback" not in last.stderr


@contextlib.contextmanager
def serving() -> Iterator[FakeLoraServer]:
    """A server whose model buys and cites each state truthfully."""

    def decide(question: Question) -> dict[str, Any]:
        agent = next(name for name in ("technical", "news", "fundamental", "strategist") if _cites(name, question.user))
        evidence = cited_evidence(agent, question.user)
        return {"recommendation": "buy", "confidence": 0.6, "evidence": evidence}

    with FakeLoraServer(answering(decide)) as server:
        yield server


def _cites(agent: str, state: str) -> bool:
    first = {"technical": "rsi:", "news": "score:", "fundamental": "value:", "strategist": "vote:"}[agent]
    return state.startswith(first)


def test_a_server_of_ones_own_thinks_for_every_seat_and_is_asked_about_the_states_that_are_recorded(
    fresh_database: str, tmp_path: Path, bare: None
) -> None:
    with serving() as server:
        config = short(fresh_database, tmp_path, local={"server_url": server.url, "served_model": "base"})
        with started(config) as orchestrator:
            said = ended(orchestrator)
        asked = {request.json["messages"][1]["content"] for request in server.completions}
    recorded = rows(
        fresh_database,
        "SELECT agent_type, policy, agent_inputs->'state'->>'text' FROM trajectories WHERE NOT abstained "
        "AND policy LIKE 'local:%'",
    )
    assert {agent for agent, _, _ in recorded} >= {"technical", "strategist"}
    assert {policy for _, policy, _ in recorded} == {"local:base"}
    assert {state for _, _, state in recorded} == asked
    assert said.summary["decisions"] == 20
    assert said.metric("llm_calls_total", provider="served", outcome="ok") >= len(asked)
    assert not (tmp_path / "data" / "decisions_in_hand.jsonl").read_text()
