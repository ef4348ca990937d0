"""Every documented metric exists with its labels, moves when its event comes, and is absent while undefined."""

from __future__ import annotations

import math
import threading
import urllib.request
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from monitoring.metrics_collector import METRICS, MetricsCollector
from utils.errors import ComponentStartError

DOCUMENTED = """
agent_requests_total C agent_type
agent_latency_seconds H agent_type
agent_confidence G agent_type
agent_errors_total C agent_type,error_type
judge_evaluations_total C agent_type
judge_scores H agent_type
judge_disagreements_total C
judge_effective_votes G
judge_alpha_ratio G
judge_latency_seconds H
judge_pending_items G
judge_excluded_total C judge_id,reason
training_runs_total C agent_type,training_type
training_loss G agent_type,training_type
training_reward G agent_type
trajectories_stored_total C agent_type
trajectories_successful_total C agent_type
trades_executed_total C symbol,action
trade_returns H symbol
portfolio_value G
sharpe_ratio G
portfolio_drawdown_ratio G
library_size G
system_uptime_seconds G
active_components G
spool_size_bytes G
outcome_backlog_items G
queue_depth_items G
feed_lag_seconds G feed
feed_reconnects_total C feed
ticks_dropped_total C feed
ticks_conflated_total C feed
llm_cost_usd_total C provider
llm_tokens_total C provider
market_regime_info G symbol,regime
change_points_total C symbol
workflow_rewrites_total C rule
risk_clamps_total C gate
error_findings_total C category
model_version_info G agent_type,version
model_promotions_total C agent_type
model_rollbacks_total C agent_type
"""
TABLE = [[*line.split(), ""][:3] for line in DOCUMENTED.strip().splitlines()]


@pytest.fixture
def collector() -> MetricsCollector:
    return MetricsCollector()


def value(collector: MetricsCollector, name: str) -> float | None:
    return collector.get_current_metrics().get(name)


@pytest.mark.parametrize(("name", "kind", "labels"), TABLE, ids=[row[0] for row in TABLE])
def test_a_documented_metric_exists_with_its_kind_and_labels_and_moves(collector, name, kind, labels) -> None:
    [spec] = [spec for spec in METRICS if spec.name == name]
    assert (spec.kind, ",".join(spec.labels)) == (kind, labels)
    given = dict.fromkeys(spec.labels, "x")
    report = {"C": collector.count, "G": collector.gauge, "H": collector.observe}[kind]
    before = collector.get_current_metrics()
    report(name, 3.0, **given)
    changed = {key for key, now in collector.get_current_metrics().items() if before.get(key) != now}
    sample = {"C": name, "G": name, "H": f"{name}_count"}[kind]
    assert any(key.split("{")[0] == sample for key in changed)


def test_every_metric_has_help_and_a_unique_name() -> None:
    assert len({spec.name for spec in METRICS}) == len(METRICS)
    assert all(spec.help for spec in METRICS)


def test_buckets_are_the_documented_ones() -> None:
    buckets = {spec.name: spec.buckets for spec in METRICS}
    latency = buckets["agent_latency_seconds"]
    assert (latency[0], latency[-1]) == (0.005, 30)
    assert buckets["judge_scores"] == tuple(range(0, 101, 10))
    assert (buckets["trade_returns"][0], buckets["trade_returns"][-1]) == (-0.2, 0.2)
    assert all(list(b) == sorted(b) for b in buckets.values())


def test_documented_record_methods_reach_their_metrics(collector) -> None:
    collector.record_agent_request("news", 0.02, 0.7)
    collector.record_agent_error("news", "timeout")
    collector.record_judge_evaluation("news", 88.0)
    collector.record_judge_disagreement()
    collector.record_training_run("technical", "sft")
    collector.record_trajectory_stored("news")
    collector.record_trade_executed("AAPL", "buy")
    collector.record_trade_executed("AAPL", "sell", 0.03)
    collector.update_portfolio(101_000.0, 0.05, 1.2)
    collector.update_training("technical", "sft", 0.5)
    metrics = collector.get_current_metrics()
    expected = {
        'agent_requests_total{agent_type="news"}': 1,
        'agent_latency_seconds_count{agent_type="news"}': 1,
        'agent_latency_seconds_bucket{agent_type="news",le="0.025"}': 1,
        'agent_latency_seconds_bucket{agent_type="news",le="0.01"}': 0,
        'agent_confidence{agent_type="news"}': 0.7,
        'agent_errors_total{agent_type="news",error_type="timeout"}': 1,
        'judge_evaluations_total{agent_type="news"}': 1,
        'judge_scores_bucket{agent_type="news",le="90.0"}': 1,
        'judge_scores_bucket{agent_type="news",le="80.0"}': 0,
        "judge_disagreements_total": 1,
        'training_runs_total{agent_type="technical",training_type="sft"}': 1,
        'trajectories_stored_total{agent_type="news"}': 1,
        'trades_executed_total{symbol="AAPL",action="buy"}': 1,
        'trades_executed_total{symbol="AAPL",action="sell"}': 1,
        'trade_returns_count{symbol="AAPL"}': 1,
        'trade_returns_bucket{symbol="AAPL",le="0.05"}': 1,
        'trade_returns_bucket{symbol="AAPL",le="0.02"}': 0,
        "portfolio_value": 101_000.0,
        "portfolio_drawdown_ratio": 0.05,
        "sharpe_ratio": 1.2,
        'training_loss{agent_type="technical",training_type="sft"}': 0.5,
    }
    assert {name: metrics.get(name) for name in expected} == expected


STATUS: dict[str, Any] = {
    "uptime_seconds": 12.5,
    "components": {"broker": "running", "streaming": "finished", "judge": "degraded: away"},
    "portfolio": {"equity": 99_000.0, "drawdown": 0.01, "sharpe": None},
    "experience_library": {"trajectories": 400, "outcome_backlog": 15, "judge_pending": 2},
    "feed": {"name": "replay", "queue_depth": 3, "lag_seconds": 0.4},
    "regime": {"AAPL": "bull_market"},
    "models": {"technical": "rules"},
    "spool": {"size_bytes": 4096, "operations": 2, "oldest": "2014-06-02T20:00:00Z", "dead_letters": 0},
}


def test_the_status_sets_the_gauges_of_the_system(collector) -> None:
    collector.update_from_status(STATUS)
    metrics = collector.get_current_metrics()
    expected = {
        "system_uptime_seconds": 12.5, "active_components": 1, "portfolio_value": 99_000.0, "portfolio_drawdown_ratio": 0.01,
        "library_size": 400, "outcome_backlog_items": 15, "judge_pending_items": 2, "queue_depth_items": 3,
        "spool_size_bytes": 4096,
        'feed_lag_seconds{feed="replay"}': 0.4, 'market_regime_info{symbol="AAPL",regime="bull_market"}': 1,
        'model_version_info{agent_type="technical",version="rules"}': 1, 'component_up{component="judge"}': 0,
        'component_up{component="streaming"}': 1,
    }  # fmt: skip
    assert {name: metrics.get(name) for name in expected} == expected


def test_a_status_with_nothing_in_it_is_taken(collector) -> None:
    collector.update_from_status({})
    collector.update_from_status({"portfolio": None, "feed": None, "experience_library": None, "regime": None})
    assert value(collector, "active_components") == 0


def test_an_info_gauge_switches_and_never_shows_two_at_once(collector) -> None:
    for regime in ("bull_market", "crash", "crash", "recovery"):
        collector.update_from_status({**STATUS, "regime": {"AAPL": regime, "MSFT": "neutral"}})
    shown = [name for name in collector.get_current_metrics() if name.startswith("market_regime_info")]
    assert sorted(shown) == [
        'market_regime_info{symbol="AAPL",regime="recovery"}',
        'market_regime_info{symbol="MSFT",regime="neutral"}',
    ]


@pytest.mark.parametrize("undefined", [None, math.nan, math.inf, -math.inf])
def test_an_undefined_figure_leaves_a_labelled_series_absent_and_a_known_one_as_it_was(collector, undefined) -> None:
    collector.gauge("agent_confidence", undefined, agent_type="news")
    assert value(collector, 'agent_confidence{agent_type="news"}') is None
    collector.gauge("portfolio_value", 5.0)
    collector.gauge("portfolio_value", undefined)
    assert value(collector, "portfolio_value") == 5.0


@pytest.mark.parametrize("undefined", [math.nan, math.inf])
def test_an_undefined_observation_does_not_spoil_a_histogram(collector, undefined) -> None:
    collector.observe("judge_scores", 70.0, agent_type="news")
    collector.observe("judge_scores", undefined, agent_type="news")
    assert value(collector, 'judge_scores_sum{agent_type="news"}') == 70.0
    assert value(collector, 'judge_scores_count{agent_type="news"}') == 1


def test_the_sharpe_ratio_is_absent_until_it_is_defined(collector) -> None:
    collector.update_portfolio(1.0, 0.0, None)
    assert value(collector, "sharpe_ratio") is None
    collector.update_portfolio(1.0, 0.0, 0.7)
    assert value(collector, "sharpe_ratio") == 0.7


def test_two_collectors_in_one_process_do_not_share_a_number() -> None:
    one, two = MetricsCollector(), MetricsCollector()
    one.count("judge_disagreements_total")
    assert value(one, "judge_disagreements_total") == 1
    assert value(two, "judge_disagreements_total") == 0


def test_a_registry_of_ones_own_is_used() -> None:
    registry = CollectorRegistry()
    MetricsCollector(registry=registry).count("judge_disagreements_total")
    assert registry.get_sample_value("judge_disagreements_total") == 1


def test_the_text_is_what_prometheus_reads(collector) -> None:
    collector.record_trade_executed('BRK"B\\', "buy", -0.5)
    families = {family.name: family for family in text_string_to_metric_families(collector.render().decode())}
    [sample] = families["trades_executed"].samples
    assert sample.labels == {"symbol": 'BRK"B\\', "action": "buy"}


def test_counting_from_many_threads_loses_nothing(collector) -> None:
    def work() -> None:
        for _ in range(500):
            collector.count("risk_clamps_total", gate="halt")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(collector, 'risk_clamps_total{gate="halt"}') == 2000


def test_on_its_own_it_serves_its_metrics_and_stops() -> None:
    collector = MetricsCollector(port=0)
    assert not collector.running
    collector.start()
    try:
        assert collector.running
        collector.count("judge_disagreements_total")
        with urllib.request.urlopen(f"http://127.0.0.1:{collector.port}/metrics") as answer:
            assert b"judge_disagreements_total 1.0" in answer.read()
        with pytest.raises(ComponentStartError, match="--metrics_port"):
            MetricsCollector(port=collector.port).start()
    finally:
        collector.stop()
        collector.stop()
    assert not collector.running
