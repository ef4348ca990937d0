"""Prometheus metrics of the daemon, declared in one table and kept in a registry of their own.

The orchestrator hands the collector to the lower layers as their `Telemetry`; the HTTP endpoint renders it. Labels have
few values by construction; an undefined figure leaves its series absent rather than NaN.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from monitoring.http_endpoint import HttpEndpoint
from utils.schema import AGENT_TYPES

_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
_SCORE_BUCKETS = tuple(range(0, 101, 10))
_RETURN_BUCKETS = (-0.2, -0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: name, kind (C counter, G gauge, H histogram), help text, labels and, for H, buckets."""

    name: str
    kind: Literal["C", "G", "H"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("agent_requests_total", "C", "Requests answered by an agent", ("agent_type",)),
    MetricSpec("agent_errors_total", "C", "Failures of an agent", ("agent_type", "error_type")),
    MetricSpec("agent_latency_seconds", "H", "Wall time of one answer", ("agent_type",), _LATENCY_BUCKETS),
    MetricSpec("agent_confidence", "G", "Conviction of the last answer, 0..1", ("agent_type",)),
    MetricSpec("judge_evaluations_total", "C", "Opinions graded", ("agent_type",)),
    MetricSpec("judge_scores", "H", "Final scores, 0..100", ("agent_type",), _SCORE_BUCKETS),
    MetricSpec("judge_disagreements_total", "C", "Panels whose scores lay further apart than the threshold"),
    MetricSpec("judge_effective_votes", "G", "Independent votes that the panel is worth"),
    MetricSpec("judge_alpha_ratio", "G", "Krippendorff's interval alpha of the last 200 items"),
    MetricSpec("judge_latency_seconds", "H", "Wall time of one panel", (), _LATENCY_BUCKETS),
    MetricSpec("judge_pending_items", "G", "Opinions that wait for a grade"),
    MetricSpec("judge_excluded_total", "C", "Judges left out of a panel", ("judge_id", "reason")),
    MetricSpec("training_runs_total", "C", "Training runs that ended", ("agent_type", "training_type")),
    MetricSpec("training_loss", "G", "Loss of the last training step", ("agent_type", "training_type")),
    MetricSpec("training_reward", "G", "Mean reward of the last training step", ("agent_type",)),
    MetricSpec("trajectories_stored_total", "C", "Trajectories made durable", ("agent_type",)),
    MetricSpec("trajectories_successful_total", "C", "Trajectories whose outcome was a success", ("agent_type",)),
    MetricSpec("trades_executed_total", "C", "Fills", ("symbol", "action")),
    MetricSpec(
        "trade_returns", "H", "Return of closed trades as a fraction, costs included", ("symbol",), _RETURN_BUCKETS
    ),
    MetricSpec("portfolio_value", "G", "Equity of the paper portfolio in USD"),
    MetricSpec("sharpe_ratio", "G", "Annualised Sharpe ratio of the daily returns so far; absent below 20 returns"),
    MetricSpec("portfolio_drawdown_ratio", "G", "Fall from the peak as a fraction, 0..1"),
    MetricSpec("library_size", "G", "Trajectories in the experience library"),
    MetricSpec("library_searches_total", "C", "Similarity searches by the method that answered", ("method",)),
    MetricSpec("experiences_retrieved_total", "C", "Past experiences given to agents", ("agent_type",)),
    MetricSpec("retrieval_seconds", "H", "Wall time of finding the experiences of one agent", (), _LATENCY_BUCKETS),
    MetricSpec("system_uptime_seconds", "G", "Seconds since the daemon started"),
    MetricSpec("active_components", "G", "Components that are running"),
    MetricSpec("component_up", "G", "1 while the component is running", ("component",)),
    MetricSpec("spool_size_bytes", "G", "Bytes in the local spool of writes"),
    MetricSpec("outcome_backlog_items", "G", "Decisions that wait for their outcome"),
    MetricSpec(
        "outcomes_unsettled_total", "C", "Decisions that can never settle: no bar within their horizon", ("symbol",)
    ),
    MetricSpec("queue_depth_items", "G", "Instants that wait for a decision"),
    MetricSpec("feed_lag_seconds", "G", "Age of the newest instant from the feed", ("feed",)),
    MetricSpec("feed_reconnects_total", "C", "Reconnections of a live feed", ("feed",)),
    MetricSpec("ticks_dropped_total", "C", "Ticks lost", ("feed",)),
    MetricSpec("ticks_conflated_total", "C", "Ticks replaced by a newer one before they were read", ("feed",)),
    MetricSpec("feed_records_rejected_total", "C", "Malformed records that were skipped", ("reason",)),
    MetricSpec("llm_cost_usd_total", "C", "Cost of hosted models in USD", ("provider",)),
    MetricSpec("llm_tokens_total", "C", "Tokens of hosted models", ("provider",)),
    MetricSpec("llm_calls_total", "C", "Calls of hosted models, by what came of them", ("provider", "outcome")),
    MetricSpec("llm_budget_left_usd", "G", "What hosted models may still cost today, in USD"),
    MetricSpec("market_regime_info", "G", "1 for the present regime of a symbol", ("symbol", "regime")),
    MetricSpec("change_points_total", "C", "Change points detected", ("symbol",)),
    MetricSpec("workflow_rewrites_total", "C", "Rewriting rules that fired", ("rule",)),
    MetricSpec("risk_clamps_total", "C", "Clamps and rejections by the risk gates", ("gate",)),
    MetricSpec("error_findings_total", "C", "Findings of fault localisation", ("category",)),
    MetricSpec("error_findings_severity_total", "C", "The same findings, by how grave they are", ("severity",)),
    MetricSpec("model_version_info", "G", "1 for the policy that serves an agent", ("agent_type", "version")),
    MetricSpec("model_promotions_total", "C", "Models that became champion", ("agent_type",)),
    MetricSpec(
        "model_rejections_total",
        "C",
        "Models that the gate rejected or their shadow stage turned down",
        ("agent_type",),
    ),
    MetricSpec("model_rollbacks_total", "C", "Champions that were rolled back", ("agent_type",)),
    MetricSpec(
        "model_trial_alarm_ratio",
        "G",
        "CUSUM of a version's live reward as a share of its alarm threshold; above 1 it falls",
        ("agent_type", "role"),
    ),
)
"""Every metric of the project; the dashboard and the tests are held against this table."""

_Metric = Counter | Gauge | Histogram


class MetricsCollector:
    """Collects and serves metrics.

    Parameters
    ----------
    port : int
        For `start` on its own (notebooks); the daemon serves everything from its one endpoint. 0 = any free port.
    host : str
        Address to bind; loopback by default.
    registry : CollectorRegistry, optional
        Its own by default, so that several collectors can live in one process.
    """

    def __init__(self, port: int = 9090, host: str = "127.0.0.1", registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()
        self.registry = registry or CollectorRegistry()
        self._endpoint = HttpEndpoint(host, port, metrics=self.render)
        self._metrics: dict[str, _Metric] = {spec.name: _build(spec, self.registry) for spec in METRICS}
        self._children: dict[tuple[object, ...], Any] = {}
        self._hidden = {spec.name for spec in METRICS if spec.kind == "G" and not spec.labels}
        self._info_lock = threading.Lock()
        self._info: dict[tuple[str, str], tuple[str, ...]] = {}
        for agent_type in AGENT_TYPES:
            for name in (
                "agent_requests_total",
                "trajectories_stored_total",
                "model_promotions_total",
                "model_rollbacks_total",
            ):
                self._metrics[name].labels(agent_type)

    @property
    def running(self) -> bool:
        """Whether `start` has opened an endpoint of the collector's own."""
        return self._endpoint.running

    @property
    def port(self) -> int:
        """The port in use."""
        return self._endpoint.port

    def start(self) -> None:
        """Serve /metrics from this object alone; ComponentStartError if the port is in use."""
        self._endpoint.start()

    def stop(self) -> None:
        """Close the endpoint; idempotent."""
        self._endpoint.stop()

    def render(self) -> bytes:
        """Return the exposition text of Prometheus."""
        return generate_latest(self.registry)

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        metric = self._labelled(name, labels)
        if isinstance(metric, Counter):
            metric.inc(amount)

    def gauge(self, name: str, value: float | None, **labels: str) -> None:
        """Set a gauge; None and non-finite values leave it as it was."""
        if value is not None and math.isfinite(value):
            metric = self._labelled(name, labels)
            if isinstance(metric, Gauge):
                metric.set(value)
                self._show(name, metric)

    def _show(self, name: str, metric: Gauge) -> None:
        """Register a gauge without labels at its first value: until then it is undefined, not zero."""
        if name in self._hidden:
            with self._info_lock:
                if name in self._hidden:
                    self._hidden.discard(name)
                    self.registry.register(metric)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put an observation into a histogram."""
        metric = self._labelled(name, labels)
        if isinstance(metric, Histogram) and math.isfinite(value):
            metric.observe(value)

    def set_info(self, name: str, key: str, **labels: str) -> None:
        """Set an info gauge to 1 for these labels and drop the series that `key` had before."""
        metric = self._metrics[name]
        spec = next(spec for spec in METRICS if spec.name == name)
        values = tuple(labels[label] for label in spec.labels)
        with self._info_lock:
            before = self._info.get((name, key))
            if before == values:
                return
            if before is not None:
                metric.remove(*before)
            self._info[name, key] = values
        metric.labels(*values).set(1)  # type: ignore[union-attr]

    def record_agent_request(self, agent_type: str, latency: float, confidence: float) -> None:
        """Record one answer of an agent: seconds, and conviction 0..1."""
        self.count("agent_requests_total", agent_type=agent_type)
        self.observe("agent_latency_seconds", latency, agent_type=agent_type)
        self.gauge("agent_confidence", confidence, agent_type=agent_type)

    def record_agent_error(self, agent_type: str, error_type: str) -> None:
        """Record a failure of an agent."""
        self.count("agent_errors_total", agent_type=agent_type, error_type=error_type)

    def record_judge_evaluation(self, agent_type: str, score: float) -> None:
        """Record a grade, 0..100."""
        self.count("judge_evaluations_total", agent_type=agent_type)
        self.observe("judge_scores", score, agent_type=agent_type)

    def record_judge_disagreement(self) -> None:
        """Record a panel that disagreed."""
        self.count("judge_disagreements_total")

    def record_training_run(self, agent_type: str, training_type: str) -> None:
        """Record a training run that ended."""
        self.count("training_runs_total", agent_type=agent_type, training_type=training_type)

    def record_trajectory_stored(self, agent_type: str) -> None:
        """Record a stored trajectory."""
        self.count("trajectories_stored_total", agent_type=agent_type)

    def record_trade_executed(self, symbol: str, action: str, trade_return: float | None = None) -> None:
        """Record a fill, and the return of the trade it closed (fraction)."""
        self.count("trades_executed_total", symbol=symbol, action=action)
        if trade_return is not None:
            self.observe("trade_returns", trade_return, symbol=symbol)

    def update_portfolio(self, value: float, drawdown: float, sharpe: float | None) -> None:
        """Update equity in USD, drawdown 0..1 and Sharpe ratio."""
        self.gauge("portfolio_value", value)
        self.gauge("portfolio_drawdown_ratio", drawdown)
        self.gauge("sharpe_ratio", sharpe)

    def update_training(self, agent_type: str, training_type: str, loss: float) -> None:
        """Update the loss of the training that runs."""
        self.gauge("training_loss", loss, agent_type=agent_type, training_type=training_type)

    def update_from_status(self, status: Mapping[str, Any]) -> None:
        """Update the system's gauges from `ProductionOrchestrator.get_status()`."""
        components: Mapping[str, str] = status.get("components", {})
        self.gauge("system_uptime_seconds", status.get("uptime_seconds"))
        self.gauge("active_components", sum(state == "running" for state in components.values()))
        for name, state in components.items():
            self.gauge("component_up", float(state in ("running", "finished")), component=name)
        portfolio = status.get("portfolio") or {}
        self.gauge("portfolio_value", portfolio.get("equity"))
        self.gauge("portfolio_drawdown_ratio", portfolio.get("drawdown"))
        self.gauge("sharpe_ratio", portfolio.get("sharpe"))
        self.gauge("library_size", (status.get("experience_library") or {}).get("trajectories"))
        self.gauge("outcome_backlog_items", (status.get("experience_library") or {}).get("outcome_backlog"))
        self.gauge("judge_pending_items", (status.get("experience_library") or {}).get("judge_pending"))
        self.gauge("spool_size_bytes", (status.get("spool") or {}).get("size_bytes"))
        feed = status.get("feed") or {}
        self.gauge("queue_depth_items", feed.get("queue_depth"))
        if feed.get("name"):
            self.gauge("feed_lag_seconds", feed.get("lag_seconds"), feed=feed["name"])
        for symbol, regime in (status.get("regime") or {}).items():
            self.set_info("market_regime_info", symbol, symbol=symbol, regime=regime)
        for agent_type, version in (status.get("models") or {}).items():
            self.set_info("model_version_info", agent_type, agent_type=agent_type, version=version)

    def get_current_metrics(self) -> dict[str, float]:
        """Return every sample by its name, labels in braces where it has any."""
        samples = {}
        for family in self.registry.collect():
            for sample in family.samples:
                labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return samples

    def _labelled(self, name: str, labels: dict[str, str]) -> Any:
        if not labels:
            return self._metrics[name]
        key = (name, *labels.items())
        child = self._children.get(key)
        if child is None:  # looking a child up by its labels costs as much as counting ten times
            child = self._children[key] = self._metrics[name].labels(**labels)
        return child


def _build(spec: MetricSpec, registry: CollectorRegistry) -> _Metric:
    if spec.kind == "C":
        return Counter(spec.name, spec.help, spec.labels, registry=registry)
    if spec.kind == "G":
        return Gauge(spec.name, spec.help, spec.labels, registry=registry if spec.labels else None)
    return Histogram(spec.name, spec.help, spec.labels, registry=registry, buckets=spec.buckets)
