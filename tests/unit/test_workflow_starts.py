"""Who starts when, and who is not asked at all: analysts behind servers, by what rules foresee and what answers rule out."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from scripted_servers import SEQUENTIAL, Server, decide, foreseeing, market, news_server, with_policies

from agents.policies.base import PolicyRequest
from orchestration.analysis import Analysis
from orchestration.workflow_state import replay_trace
from utils.schema import AgentOutput

__all__ = ["market"]


def graph_of(analysis: Analysis) -> dict[str, list[str]]:
    return dict(analysis.decision.workflow[0]["steps"])


def test_where_the_rules_foresee_no_agreement_all_analysts_start_at_once(
    market: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreseeing(monkeypatch, "buy", "sell")
    servers = [news_server(name, "buy", 0.8) for name in ("news", "technical", "fundamental")]
    coordinator = with_policies(*servers)
    (analysis,) = decide(market, coordinator, ("AAPL",))
    coordinator.close()
    assert graph_of(analysis) == {"news": [], "technical": [], "fundamental": []}
    assert analysis.decision.workflow[0]["foreseen"] == {"news": "buy", "technical": "sell"}
    assert [len(server.asked) for server in servers] == [1, 1, 1]


def test_where_the_rules_foresee_agreement_the_third_is_held_back_and_spared(
    market: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreseeing(monkeypatch, "buy", "strong_buy")
    servers = [news_server(name, "buy", 0.8) for name in ("news", "technical", "fundamental")]
    coordinator = with_policies(*servers)
    (analysis,) = decide(market, coordinator, ("AAPL",))
    coordinator.close()
    assert graph_of(analysis)["fundamental"] == ["news", "technical"]
    assert [len(server.asked) for server in servers] == [1, 1, 0]
    assert "skip_redundant_high_agreement" in [e.get("rule") for e in analysis.decision.workflow]


def test_a_held_back_agent_starts_once_nothing_can_spare_it_any_more(
    market: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreseeing(monkeypatch, "buy", "buy")
    doubtful = news_server("technical", "buy", 0.6)
    gate = threading.Event()
    slow, last = news_server("news", "buy", 0.8), news_server("fundamental", "buy", 0.6)
    tell, wait = slow.decide_many, last.decide_many

    def slowly(requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        assert gate.wait(20), "the third agent did not start while the first was still asked"
        return tell(requests)

    def at_last(requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        gate.set()
        return wait(requests)

    slow.decide_many, last.decide_many = slowly, at_last  # type: ignore[method-assign]
    coordinator = with_policies(slow, doubtful, last, timer=time.perf_counter)
    (analysis,) = decide(market, coordinator, ("AAPL",))
    coordinator.close()
    rules = {e["rule"]: e["why"] for e in analysis.decision.workflow if e["event"] == "rewrite"}
    assert rules["start_unsparable"] == {"technical": 0.6}
    assert len(last.asked) == 1


def test_a_strategist_with_nothing_to_weigh_is_not_asked(market: Any) -> None:
    servers = [news_server(name, "hold", 0.6) for name in ("news", "technical", "fundamental", "strategist")]
    coordinator = with_policies(*servers)
    (analysis,) = decide(market, coordinator, ("AAPL",))
    coordinator.close()
    assert servers[3].asked == []
    assert analysis.decision.strategist.recommendation == "hold"
    assert analysis.decision.strategist.policy == "rules"
    event = next(e for e in analysis.decision.workflow if e.get("rule") == "spare_strategist")
    assert event["why"] == {"without_side": ["fundamental", "news", "technical"]}
    assert replay_trace(analysis.decision.workflow).rewrite_history[-1].rule == "spare_strategist"


def test_a_sequential_workflow_asks_everyone_and_the_strategist(market: Any) -> None:
    servers = [news_server(name, "hold", 0.6) for name in ("news", "technical", "fundamental")]
    strategist = Server("strategist", "hold", 0.6)
    coordinator = with_policies(*servers, strategist, config=SEQUENTIAL)
    (analysis,) = decide(market, coordinator, ("AAPL",))
    coordinator.close()
    assert [len(server.asked) for server in (*servers, strategist)] == [1, 1, 1, 1]
    assert graph_of(analysis)["fundamental"] == ["news", "technical"]


def test_a_strategist_is_asked_where_the_validator_reads_a_side_out_of_signals(market: Any) -> None:
    servers = [news_server(name, "hold", 0.6) for name in ("news", "technical", "fundamental")]
    for server, value in zip(servers, (0.9, -0.4, 0.0), strict=True):
        tell = server.decide_many

        def with_signal(requests: Sequence[PolicyRequest], tell: Any = tell, value: float = value) -> list[AgentOutput]:
            return [o.model_copy(update={"signals": {"flow": value}}) for o in tell(requests)]

        server.decide_many = with_signal  # type: ignore[method-assign]
    strategist = Server("strategist", "hold", 0.6)
    coordinator = with_policies(*servers, strategist)
    (analysis,) = decide(market, coordinator, ("AAPL",))
    coordinator.close()
    assert analysis.decision.validator is not None
    assert analysis.decision.validator.recommendation == "buy"
    assert len(strategist.asked) == 1
