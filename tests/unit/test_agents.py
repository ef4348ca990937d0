"""The agents' seats: fallback, swapping, timing, and what `analyze` makes of its arguments."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from market_factory import AS_OF, make_bars, make_filing, make_news, make_request, make_snapshot

from agents.base_agent import Agent, SnapshotProvider, abstain, narrowed
from agents.junior.fundamental_agent import FundamentalAgent
from agents.junior.news_agent import NewsAgent
from agents.junior.technical_agent import TechnicalAgent
from agents.policies.base import Policy, PolicyRequest
from agents.policies.rules.fundamental import RulesFundamental
from agents.policies.rules.news import RulesNews
from agents.policies.rules.strategist import RulesStrategist
from agents.policies.rules.technical import RulesTechnical
from agents.senior.strategist_agent import StrategistAgent
from agents.supervisor.router import FixedRouter
from utils.errors import ConfigError, DataUnavailable, LookAheadError, ProviderError
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import AGENT_TYPES, AgentOutput, AgentType, MarketSnapshot, PortfolioState, RegimeInputs, direction


class Broken:
    """A policy whose provider is away."""

    agent_type: AgentType = "technical"
    name = "openai:gpt"

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        raise ProviderError("503 from the provider")


class Recording(RulesTechnical):
    """Rules that remember what they were asked, and answer under another name."""

    def __init__(self, name: str = "local:technical@1") -> None:
        self.name = name
        self.asked: list[PolicyRequest] = []

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        self.asked += requests
        return super().decide_many(requests)


class Forgetful(Recording):
    """Answers one request too few."""

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        return super().decide_many(requests)[1:]


class Counting:
    """Telemetry that keeps what it is told."""

    def __init__(self) -> None:
        self.counts: list[tuple[str, dict[str, str]]] = []

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self.counts.append((name, labels))

    def gauge(self, name: str, value: float | None, **labels: str) -> None: ...

    def observe(self, name: str, value: float, **labels: str) -> None: ...


def source(snapshot: MarketSnapshot) -> SnapshotProvider:
    """Return a provider that knows one symbol."""

    def snapshots(symbol: str, as_of: datetime | None) -> MarketSnapshot:
        if symbol != snapshot.symbol:
            raise DataUnavailable(f"{symbol} is not in the data")
        return snapshot if as_of is None else replace(snapshot, as_of=as_of)

    return snapshots


@pytest.mark.parametrize("agent_type", AGENT_TYPES)
def test_an_abstention_is_a_hold_without_confidence_and_with_a_reason(agent_type: AgentType) -> None:
    output = abstain(agent_type, "AAPL", AS_OF, "no data", "rules")
    assert (output.agent_type, output.abstained, output.abstain_reason) == (agent_type, True, "no data")
    assert (output.recommendation, output.confidence, output.policy) == ("hold", 0.0, "rules")


@pytest.mark.parametrize("policy", [Broken(), Forgetful()])
def test_a_provider_fault_falls_back_to_rules_visibly_and_is_counted(policy: Policy) -> None:
    telemetry = Counting()
    agent = TechnicalAgent(policy, fallback=RulesTechnical(), telemetry=telemetry)
    outputs = agent.decide_many([make_request(), make_request()])
    assert [output.policy for output in outputs] == ["rules", "rules"]
    assert telemetry.counts == [("agent_errors_total", {"agent_type": "technical", "error_type": "provider"})]


def test_without_a_fallback_the_fault_reaches_the_caller() -> None:
    with pytest.raises(ProviderError, match="503"):
        TechnicalAgent(Broken()).decide_many([make_request()])


def test_no_requests_are_no_question_to_the_policy() -> None:
    assert TechnicalAgent(Broken()).decide_many([]) == []


def test_a_policy_of_another_agent_is_refused() -> None:
    with pytest.raises(ConfigError, match="news"):
        TechnicalAgent(RulesNews())
    agent = TechnicalAgent(RulesTechnical())
    with pytest.raises(ConfigError, match="strategist"):
        agent.set_policy(RulesStrategist())
    assert agent.policy.name == "rules"


def test_a_swap_during_a_batch_takes_effect_on_the_next_batch() -> None:
    entered, release = threading.Event(), threading.Event()

    class Slow(Recording):
        def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
            entered.set()
            assert release.wait(10)
            return super().decide_many(requests)

    agent = TechnicalAgent(Slow("local:technical@1"))
    answers: list[AgentOutput] = []
    thread = threading.Thread(target=lambda: answers.extend(agent.decide_many([make_request()])))
    thread.start()
    assert entered.wait(10)
    agent.set_policy(Recording("local:technical@2"))
    release.set()
    thread.join(10)
    assert [output.policy for output in answers] == ["local:technical@1"]
    assert agent.decide_many([make_request()])[0].policy == "local:technical@2"


def test_latency_is_measured_only_where_a_timer_is_given() -> None:
    ticks = iter([10.0, 10.5])
    timed = TechnicalAgent(RulesTechnical(), timer=lambda: next(ticks)).decide_many([make_request(), make_request()])
    assert [output.latency_s for output in timed] == [0.25, 0.25]
    assert TechnicalAgent(RulesTechnical()).decide_many([make_request()])[0].latency_s == 0.0


def test_analyze_asks_the_data_for_the_upper_case_symbol_at_the_given_time() -> None:
    policy = Recording()
    earlier = AS_OF - timedelta(hours=3)
    agent = TechnicalAgent(policy, snapshots=source(make_snapshot()))
    assert agent.analyze("aapl", as_of=earlier).as_of == earlier
    assert policy.asked[0].regime == MarketRegimeDetector().detect_regime(policy.asked[0].snapshot.inputs)


def test_a_symbol_without_data_is_an_abstention_at_a_given_time_and_a_fault_without_one() -> None:
    agent = FundamentalAgent(RulesFundamental(), snapshots=source(make_snapshot()))
    output = agent.analyze("IBM", as_of=AS_OF)
    assert (output.abstained, output.symbol) == (True, "IBM")
    assert "not in the data" in (output.abstain_reason or "")
    with pytest.raises(DataUnavailable):
        agent.analyze("IBM")


def test_an_agent_without_market_data_says_so() -> None:
    with pytest.raises(ConfigError, match="snapshots"):
        TechnicalAgent(RulesTechnical()).analyze("AAPL")


@pytest.mark.parametrize(("period", "bars"), [("3mo", 252), ("1y", 252), ("2y", 504), ("max", 600)])
def test_a_period_bounds_the_bars_but_leaves_the_warm_up(period: str, bars: int) -> None:
    policy = Recording()
    snapshot = make_snapshot(make_bars(n=600))
    TechnicalAgent(policy, snapshots=source(snapshot)).analyze("AAPL", period)
    asked = policy.asked[0].snapshot
    assert len(asked.bars) == bars
    assert np.array_equal(asked.bars.close, snapshot.bars.close[-bars:])
    assert (asked.content_hash == snapshot.content_hash) == (bars == 600)


@pytest.mark.parametrize(("period", "interval"), [("7weeks", "1d"), ("3mo", "5m")])
def test_an_unknown_period_or_interval_is_refused(period: str, interval: str) -> None:
    with pytest.raises(ValueError, match=r"7weeks|5m"):
        TechnicalAgent(RulesTechnical(), snapshots=source(make_snapshot())).analyze("AAPL", period, interval)


def test_the_news_agent_reads_the_snapshot_within_the_lookback() -> None:
    items = (make_news("shares plunge after weak sales", 100), make_news("shares surge after record profit", 2))
    agent = NewsAgent(RulesNews(), snapshots=source(make_snapshot(news=items)))
    assert len(agent.analyze("AAPL").evidence) == 1
    assert agent.analyze("AAPL", lookback_days=7) != agent.analyze("AAPL", lookback_days=1)
    assert direction(agent.analyze("AAPL", lookback_days=1).recommendation) == 1


def test_the_news_agent_reads_given_articles_without_any_market_data() -> None:
    articles: list[Mapping[str, Any]] = [
        {"published_at": "2014-06-02T15:00:00Z", "text": "shares surge after record profit", "source": "wire"},
        {"published_at": AS_OF, "headline": "analysts upgrade on strong growth"},
    ]
    output = NewsAgent(RulesNews()).analyze("aapl", articles)
    assert (output.symbol, output.as_of) == ("AAPL", AS_OF)
    assert direction(output.recommendation) == 1
    assert {item.source for item in output.evidence} == {"wire", "given"}
    assert NewsAgent(RulesNews()).analyze("AAPL", [], as_of=AS_OF).abstained


def test_an_article_from_after_the_decision_is_a_look_ahead() -> None:
    with pytest.raises(LookAheadError):
        NewsAgent(RulesNews()).analyze("AAPL", [make_news("x")], as_of=AS_OF - timedelta(days=1))


@pytest.mark.parametrize(
    "article",
    [
        {"published_at": AS_OF},
        {"text": "x"},
        {"text": "x", "published_at": "2014-06-02T15:00:00"},
        {"text": " ", "published_at": AS_OF},
    ],
)
def test_an_article_without_text_or_time_is_refused(article: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"text|zone"):
        NewsAgent(RulesNews()).analyze("AAPL", [article])


def test_the_yearly_period_reads_one_filing_a_year() -> None:
    filings = [make_filing({"pe_ratio": 20.0, "revenue": 1.0}, day) for day in (date(2013, 12, 31), date(2014, 3, 31))]
    agent = FundamentalAgent(RulesFundamental(), snapshots=source(make_snapshot(filings=filings)))
    cited = {item.id.split(":")[0] for item in agent.analyze("AAPL", "A").evidence if item.kind == "filing"}
    assert cited == {"AAPL-2014-03-31"}
    with pytest.raises(ValueError, match="monthly"):
        agent.analyze("AAPL", "monthly")


def test_the_strategist_decides_on_given_market_data_and_portfolio() -> None:
    snapshot = make_snapshot(make_bars(seed=8), inputs=RegimeInputs(0.3, 0.0, 0.0, 0.012))
    junior = (
        RulesTechnical()
        .decide_many([make_request(snapshot)])[0]
        .model_copy(update={"recommendation": "sell", "confidence": 0.8})
    )
    agent = StrategistAgent(RulesStrategist())
    held = agent.analyze(
        "AAPL", {"technical": junior}, {"equity": 1e5, "cash": 9e4, "weights": {"AAPL": 0.1}}, snapshot
    )
    empty = agent.analyze("AAPL", {"technical": junior}, PortfolioState(1e5, 1e5), snapshot)
    assert (held.recommendation, empty.recommendation) == ("sell", "hold")


def test_a_portfolio_with_unknown_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="portfolio_state"):
        StrategistAgent(RulesStrategist()).analyze("AAPL", {}, {"equity": 1.0, "csh": 1.0}, make_snapshot())


def test_synthesis_is_repeatable_and_at_temperature_zero_the_decision_itself() -> None:
    snapshot = make_snapshot(make_bars(seed=8), inputs=RegimeInputs(0.3, 0.0, 0.0, 0.012))
    junior = (
        RulesTechnical()
        .decide_many([make_request(snapshot)])[0]
        .model_copy(update={"recommendation": "buy", "confidence": 0.8})
    )
    agent = StrategistAgent(RulesStrategist(), snapshots=source(snapshot))
    outputs = {"technical": junior}
    first = agent.synthesize("AAPL", outputs, None, 0.9, 1)
    assert agent.synthesize("AAPL", outputs, None, 0.9, 1) == first
    assert agent.synthesize("AAPL", outputs, None, 0.9, 2) != first
    assert agent.synthesize("AAPL", outputs, None, 0.0, 2) == agent.analyze("AAPL", outputs)


def test_a_policy_with_one_answer_cannot_be_sampled() -> None:
    class Single:
        agent_type: AgentType = "strategist"
        name = "local:strategist@1"

        def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
            return RulesStrategist().decide_many(requests)

    with pytest.raises(ConfigError, match="sampled"):
        StrategistAgent(Single()).synthesize("AAPL", {}, None, market_data=make_snapshot())


def test_a_narrowed_snapshot_has_an_identity_of_its_own() -> None:
    snapshot = make_snapshot()
    narrow = narrowed(snapshot, "news:none", news=())
    assert narrow.content_hash != snapshot.content_hash
    assert narrow.content_hash == narrowed(snapshot, "news:none", news=()).content_hash


def test_the_fixed_router_routes_every_enabled_junior_whatever_the_regime() -> None:
    router = FixedRouter(["technical", "news"])
    regimes = [make_request(make_snapshot(inputs=RegimeInputs(v, 0.0, 0.0, 0.01))).regime for v in (0.1, 0.9)]
    assert [router.route(regime) for regime in regimes] == [("news", "technical")] * 2
    assert router.status() == {"strategy": "fixed", "agents": ["news", "technical"], "routed": 2}


@pytest.mark.parametrize("names", [[], ["strategist"], ["tecnical"]])
def test_the_router_refuses_agents_that_are_no_juniors(names: list[str]) -> None:
    with pytest.raises(ConfigError):
        FixedRouter(names)


def test_every_seat_names_its_agent() -> None:
    seats: list[type[Agent]] = [NewsAgent, TechnicalAgent, FundamentalAgent, StrategistAgent]
    assert [seat.agent_type for seat in seats] == ["news", "technical", "fundamental", "strategist"]
