"""A daemon in this process whose hosted models are fake servers of three vendors, and what it leaves behind.

Used by the end-to-end tests of hosted models. Answers derive from their questions alone, so that a run is the same however
its calls interleave; what a vendor charges is added up here by the table of prices, apart from the code under test.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from fakes.dialect import Question
from fakes.http_server import Reply
from fakes.vendors import Behaviour, FakeAnthropic, FakeGemini, FakeOpenAI, FakeVendor
from hosted_questions import opinion

from monitoring.production_orchestrator import OrchestratorConfig, ProductionOrchestrator
from utils.settings import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"anthropic": "sk-ant-e2e-4f1c", "openai": "sk-oai-e2e-9b2d", "gemini": "AIza-e2e-77aa"}
MODELS = {"anthropic": "claude-haiku-5-5", "openai": "gpt-5.4-mini", "gemini": "gemini-3.8-flash"}
_URL_VARIABLES = {
    "anthropic": "ANTHROPIC_BASE_URL",
    "openai": "OPENAI_BASE_URL",
    "gemini": "GOOGLE_GEMINI_BASE_URL",
}
_FAKES: dict[str, type[FakeVendor]] = {"anthropic": FakeAnthropic, "openai": FakeOpenAI, "gemini": FakeGemini}
_TABLES = (
    "runs", "trajectories", "judge_evaluations", "error_findings", "portfolio_events", "regime_events", "training_runs",
    "model_versions", "spool_applied", "spool_dead_letter", "bandit_state",
)  # fmt: skip
LIMIT_S = 60.0


def is_judging(question: Question) -> bool:
    """Whether a question asks for a verdict, and not for an agent's opinion."""
    return "verdict_id" in (question.schema or {}).get("properties", {})


def agent_of(question: Question) -> str:
    """Return which agent a question asks to think for."""
    asked = (question.schema or {}).get("properties", {})
    tells = {"sentiment_score": "news", "trend": "technical", "financial_health": "fundamental"}
    return next((agent for name, agent in tells.items() if name in asked), "strategist")


def rng_of(question: Question) -> random.Random:
    """Return random numbers that depend on nothing but vendor and question."""
    text = f"{question.dialect.name}\0{question.system}\0{question.user}"
    return random.Random(hashlib.sha256(text.encode()).hexdigest())


def verdict(question: Question, **changes: Any) -> dict[str, Any]:
    """Return a sound verdict, its scores 55 to 95."""
    rng = rng_of(question)
    found = re.search(r"verdict-[0-9a-f]+", question.system)
    assert found is not None
    criteria = (question.schema or {})["properties"]["criteria"]["properties"]
    sound = {
        "verdict_id": found.group(),
        "reasoning": "the reasons hold",
        "criteria": {name: rng.randint(55, 95) for name in criteria},
        "confidence": 0.8,
        "strengths": [],
        "weaknesses": [],
        "suggestions": [],
    }
    return {**sound, **changes}


def sound(question: Question) -> Any:
    """Return what a model that works answers, as a judge or as an agent."""
    if is_judging(question):
        return verdict(question)
    return opinion(agent_of(question), question.user, confidence=round(rng_of(question).uniform(0.5, 0.95), 2))


class Lab:
    """Fake vendors that the environment points at, and daemons started beside them; all of a test's own.

    Attributes
    ----------
    vendors : dict of str to FakeVendor
    used : dict of str to list of (int, int)
        By vendor, the input and output tokens of each completion that was sent.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.vendors: dict[str, FakeVendor] = {}
        self.used: dict[str, list[tuple[int, int]]] = {}
        self._patch = patch
        self._stack = stack

    def open(self, *names: str, key: str | None = None, **answers: Callable[[Question], Any]) -> None:
        """Start vendors and set their variables; `answers` are what they say by name, and `key` the only one they take."""
        for name in names:
            server = self._stack.enter_context(_FAKES[name](self.replying(name, answers.get(name, sound)), key=key))
            self.vendors[name] = server
            self._patch.setenv(ENVIRONMENT[f"{name}_api_key"], KEYS[name])
            self._patch.setenv(_URL_VARIABLES[name], server.url)

    def replying(self, name: str, answer: Callable[[Question], Any]) -> Behaviour:
        """Return a behaviour with token counts that differ by question; a `Reply` is sent as it is, without any."""
        used = self.used.setdefault(name, [])

        def behave(question: Question) -> Reply:
            content = answer(question)
            if isinstance(content, Reply):
                return content
            rng = rng_of(question)
            tokens = (rng.randint(500, 1500), rng.randint(50, 300))
            used.append(tokens)
            return question.dialect.answer(
                content, input_tokens=tokens[0], output_tokens=tokens[1], model=question.model
            )

        return behave

    def config(self, database_url: str, data: str = "data", **fields: Any) -> OrchestratorConfig:
        """Return the settings of a short replay of one symbol with rules for agents, whose every opinion all judges grade."""
        judge = {"hosted_agents": ["news", "technical", "fundamental", "strategist"], **fields.pop("judge", {})}
        short = {
            "feed": "replay",
            "streaming_symbols": ["AAPL"],
            "replay_start": "2012-01-03",
            "replay_end": "2012-01-17",
            "agents": "rules",
            "enable_learning_loop": False,
            "metrics_port": 0,
        }
        places = {"database_url": database_url, "data_dir": self.folder / data}
        return OrchestratorConfig(**{**short, "judge": judge, **places, **fields})

    def run(self, database_url: str, data: str = "data", **fields: Any) -> Ended:
        """Run a daemon to the end of its replay, stop it, and return what it said before that."""
        with started(self.config(database_url, data, **fields)) as orchestrator:
            return ended(orchestrator)

    def completions(self) -> dict[str, int]:
        """Return how many completions each vendor was asked for."""
        return {name: len(server.completions) for name, server in self.vendors.items()}

    def charged_usd(self, name: str) -> float:
        """Return what a vendor's completions cost by the table of prices."""
        table = yaml.safe_load((ROOT / "config/llm/prices.yaml").read_text(encoding="utf-8"))["prices"]
        day = datetime.now(UTC).date()
        rows = [
            row for row in table if row["provider"] == name and MODELS[name] == row["prefix"] and row.get("from", day) <= day
        ]  # fmt: skip
        row = max(rows, key=lambda row: row.get("from", date.min))
        return sum(read * row["input"] + written * row["output"] for read, written in self.used[name]) / 1e6


def new_lab(folder: Path, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> Lab:
    """Return a lab without keys or settings of whoever runs the tests."""
    for sdk in ("anthropic", "openai", "google.genai"):
        pytest.importorskip(sdk, reason="needs the extra `hosted`")
    for variable in ENVIRONMENT.values():
        patch.delenv(variable, raising=False)
    return Lab(folder, patch, stack)


@dataclass(frozen=True)
class Ended:
    """What a daemon said at the end of its replay, while it still served."""

    summary: dict[str, Any]
    status: dict[str, Any]
    metrics: dict[str, float]
    pages: str
    run_id: str

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels; 0 without any."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics.items()
            if sample.partition("{")[0] == name and all(label in sample for label in wanted)
        )

    @property
    def judges(self) -> dict[str, Any]:
        """What the status says of each judge."""
        return dict(self.status["judges"]["judges"])


@contextlib.contextmanager
def started(config: OrchestratorConfig) -> Iterator[ProductionOrchestrator]:
    """Start a daemon and stop it at the end."""
    orchestrator = ProductionOrchestrator(config)
    try:
        orchestrator.start()
        yield orchestrator
    finally:
        orchestrator.stop()


def ended(orchestrator: ProductionOrchestrator) -> Ended:
    """Wait for the end of the replay and return what the daemon then says."""
    until(lambda: orchestrator.finished.is_set() or orchestrator.failed.is_set(), "end of the replay")
    assert orchestrator.summary is not None, orchestrator.status
    assert orchestrator.run is not None
    status = orchestrator.get_status()
    collector = orchestrator.get_component("metrics")
    assert collector is not None
    collector.update_from_status(status)
    pages = "".join(
        urllib.request.urlopen(f"http://127.0.0.1:{orchestrator.metrics_port}{path}", timeout=10).read().decode()
        for path in ("/status", "/metrics", "/")
    )
    return Ended(orchestrator.summary, status, collector.get_current_metrics(), pages, orchestrator.run.run_id)


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait until a condition holds; fail after a deadline."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {limit_s:g} s"
        time.sleep(0.02)


def left_behind(before: set[threading.Thread]) -> list[str]:
    """Return the threads that were not there before and do not end within a moment."""
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return sorted(thread.name for thread in left)


@dataclass(frozen=True)
class Graded:
    """An opinion with its evaluation, as the database holds them."""

    as_of: datetime
    agent_type: str
    policy: str
    output: Mapping[str, Any]
    price: float
    reward: float | None
    actual_return: float | None
    status: str
    final_score: float | None
    scores: list[dict[str, Any]]
    excluded: list[dict[str, Any]]
    attempts: int
    next_retry_at: datetime | None
    cost_usd: float

    @property
    def judges(self) -> set[str]:
        """Who graded it."""
        return {score["judge_id"] for score in self.scores}

    def reason(self, judge_id: str) -> str:
        """Return why a judge, or the guard, was left out; empty if it was not."""
        return next((item["reason"] for item in self.excluded if item["judge_id"] == judge_id), "")


def rows(database_url: str, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with psycopg.connect(database_url) as connection:
        return connection.execute(sql).fetchall()


def graded(database_url: str) -> list[Graded]:
    """Return every opinion that was evaluated, oldest first."""
    found = rows(
        database_url,
        "SELECT as_of, agent_type, policy, workflow_trace->'output', (market_state->>'price')::float8, reward, actual_return, "
        "status, final_score, scores, excluded, attempts, next_retry_at, e.cost_usd FROM trajectories "
        "JOIN judge_evaluations e USING (trajectory_id) ORDER BY as_of, agent_type",
    )
    return [Graded(*row) for row in found]


def opinions(database_url: str) -> int:
    """Return how many opinions are no abstentions."""
    return int(rows(database_url, "SELECT count(*) FROM trajectories WHERE NOT abstained")[0][0])


def everything_stored(database_url: str, folder: Path) -> str:
    """Return the text of all rows and of all files below a folder."""
    tables = [str(rows(database_url, f"SELECT t::text FROM {table} t")) for table in _TABLES]
    files = [path.read_bytes().decode("utf-8", "replace") for path in sorted(folder.rglob("*")) if path.is_file()]
    return "\n".join(tables + files)


def data_of(question: Question) -> dict[str, Any]:
    """Return the JSON object that a judge is shown."""
    start = question.user.index('{"output"')
    value, _ = json.JSONDecoder().raw_decode(question.user, start)
    assert isinstance(value, dict)
    return value


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each key of a JSON value, lists' items under their list's, with the text or number there."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, dict):
            waiting += node.items()
        elif isinstance(node, list):
            waiting += [(name, item) for item in node]
        else:
            yield name, node


@dataclass(frozen=True)
class Observed:
    """A run with three keys and all that it left behind."""

    lab: Lab
    ended: Ended
    found: list[Graded]
    log: str
    stored: str
    decisions: str
    threads: list[str]


class KeptLog(logging.Handler):
    """Keeps the text of every record, of whatever library and level."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.texts.append(self.format(record))


def overloaded(question: Question) -> Reply:
    """Answer as a vendor that is away."""
    return question.dialect.fault("unavailable")


def rewards(found: list[Graded]) -> dict[tuple[datetime, str], float]:
    """Return the rewards there are, by instant and agent."""
    return {(row.as_of, row.agent_type): row.reward for row in found if row.reward is not None}
