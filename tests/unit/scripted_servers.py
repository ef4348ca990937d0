"""Coordinators over scripted servers on a piece of the sample history, for tests of decisions through the workflow."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import pytest

from agents.policies.base import PolicyRequest
from agents.policies.rules import RulesNews, RulesTechnical
from data_pipeline.asof_store import AsOfStore
from data_pipeline.feeds.factory import build_feed
from orchestration.analysis import Analysis
from orchestration.coordinator import Coordinator
from orchestration.execution.portfolio import Portfolio
from utils.schema import OUTPUT_MODELS, AgentOutput, AgentType
from utils.settings import OrchestratorConfig

SYMBOLS = ("AAPL", "GOOG", "IBM", "MSFT")
AT = datetime(2012, 6, 4, 20, tzinfo=UTC)
CONFIG = OrchestratorConfig(streaming_symbols=SYMBOLS, replay_start="2012-06-04", replay_end="2012-06-06")

SEQUENTIAL = OrchestratorConfig(
    streaming_symbols=SYMBOLS,
    replay_start="2012-06-04",
    replay_end="2012-06-06",
    workflow={"mode": "sequential"},
)


@pytest.fixture(scope="module")
def market() -> Any:
    feed = build_feed(CONFIG)
    store = AsOfStore(feed.calendar)
    for update in feed.history():
        store.add(update)
    for instant in feed.instants():
        for update in instant.updates:
            store.add(update)
    return store, feed


class Server:
    """Stands for a model: says what it is told to, counts and records who asked."""

    name = "test:model"
    prompt_hash = "h1"
    reads_experiences = False

    def __init__(self, agent_type: AgentType, recommendation: str, confidence: float, *, waits: bool = True) -> None:
        self.agent_type = agent_type
        self.waits = waits
        self.said = (recommendation, confidence)
        self.asked: list[tuple[str, ...]] = []
        self.news: list[int] = []
        self.fail_at: int | None = None
        self.meeting: threading.Barrier | None = None
        self._lock = threading.Lock()

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        with self._lock:
            self.asked.append(tuple(request.snapshot.symbol for request in requests))
            self.news += [len(request.snapshot.news) for request in requests]
            if self.fail_at is not None and len(self.asked) >= self.fail_at:
                raise KeyboardInterrupt
        if self.meeting:
            self.meeting.wait()
        facts: list[AgentOutput] = [
            OUTPUT_MODELS[self.agent_type](
                agent_type=self.agent_type,
                symbol=r.snapshot.symbol,
                as_of=r.snapshot.as_of,
                recommendation="hold",
                confidence=0.5,
            )
            for r in requests
            if self.agent_type != "technical"
        ] or RulesTechnical().decide_many(requests)
        recommendation, confidence = self.said
        return [
            fact.model_copy(update={"recommendation": recommendation, "confidence": confidence, "policy": self.name})
            for fact in facts
        ]  # fmt: skip


def decide(market: Any, coordinator: Coordinator, symbols: Sequence[str] = SYMBOLS) -> list[Analysis]:
    store, feed = market
    coordinator.attach(store, feed.calendar, feed.symbols, Portfolio(cash=1e5))
    return coordinator.analyze(store.as_of(AT), date(2012, 6, 4), symbols, Portfolio(cash=1e5))


def with_policies(*policies: Any, config: OrchestratorConfig = CONFIG, **arguments: Any) -> Coordinator:
    coordinator = Coordinator(config, **arguments)
    for policy in policies:
        coordinator.set_policy(policy.agent_type, policy)
    return coordinator


def foreseeing(monkeypatch: pytest.MonkeyPatch, news: str, technical: str) -> None:
    """Let the rules beside the servers say what they are told to."""
    for name, policy, said in (("news", RulesNews, news), ("technical", RulesTechnical, technical)):

        def decided(self: Any, requests: Sequence[PolicyRequest], name: str = name, said: str = said) -> list[Any]:
            return [
                OUTPUT_MODELS["news"](symbol=r.snapshot.symbol, as_of=AT, recommendation=said, confidence=0.6)
                for r in requests
            ]

        monkeypatch.setattr(policy, "decide_many", decided)


def news_server(name: AgentType, recommendation: str, confidence: float) -> Server:
    server = Server(name, recommendation, confidence)

    def decide_many(requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        server.asked.append(tuple(r.snapshot.symbol for r in requests))
        return [
            OUTPUT_MODELS["news"](
                symbol=r.snapshot.symbol,
                as_of=AT,
                recommendation=recommendation,
                confidence=confidence,
                policy="test:model",
            )
            for r in requests
        ]

    server.decide_many = decide_many  # type: ignore[method-assign]
    return server
