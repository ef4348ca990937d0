"""The coordinator: one decision on each symbol, from its snapshot to the strategist's word.

Inside the daemon it is handed as-of views and a portfolio and is pure. In a notebook it opens the configured feed by
itself and answers `analyze_symbol`; it never writes to the daemon's database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from agents.base_agent import Agent, narrowed
from agents.factory import build_agents
from agents.policies.base import Policy, PolicyRequest
from agents.supervisor.router import FixedRouter
from data_pipeline.asof_store import NEWS_LOOKBACK, AsOfStore, AsOfView
from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.feeds.factory import build_feed
from evaluation.error_taxonomy import ErrorReport
from evaluation.fault_localization import FaultLocalizationEngine
from evaluation.ground_truth import GroundTruth
from orchestration.execution.portfolio import Portfolio
from orchestration.execution.risk import Proposal, RiskGate
from orchestration.records import decision_id
from orchestration.retrieval import ExperienceMemory
from utils.clock import ensure_utc, isoformat
from utils.errors import ConfigError, DataUnavailable, SystemFault, nearest
from utils.ids import ADHOC_RUN
from utils.market_regime_detector import MarketRegimeDetector, RegimeDetection
from utils.schema import (
    JUNIOR_AGENTS,
    AgentOutput,
    Decision,
    MarketSnapshot,
    PortfolioState,
    StrategistOutput,
    direction,
)
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry


@dataclass(frozen=True, slots=True)
class Analysis:
    """A decision with what it was taken on."""

    decision: Decision
    snapshot: MarketSnapshot
    regime: RegimeDetection
    similar: Mapping[str, tuple[str, ...]]
    """The experiences that each agent was given, by identity."""
    reports: Mapping[str, ErrorReport]
    """What fault localisation found in each agent's output."""

    @property
    def fatal(self) -> str | None:
        """The first fatal finding in any output of the decision, in words; it must not be traded on. None without one."""
        for name, report in self.reports.items():
            for error in report.get_fatal_errors():
                return (
                    f"fatal finding in the {name} agent's output: {error.category} at {error.location or 'the output'}"
                )
        return None


@dataclass(frozen=True, slots=True)
class _Market:
    """A store with everything that the feed holds, and the feed's calendar and symbols."""

    store: AsOfStore
    calendar: ExchangeCalendar
    symbols: tuple[str, ...]


class Coordinator:
    """Runs the agents on symbols.

    Parameters
    ----------
    config : OrchestratorConfig, dict, path of a YAML file, or None
        None takes environment, ``config/system.yaml`` and defaults.
    agents : mapping of agent type to Agent, optional
        Built from the configuration by default.
    run_id : str
        Decision identities derive from it.
    memory : ExperienceMemory, optional
        Where agents are given experiences from; without it they decide on the market alone.
    """

    def __init__(
        self,
        config: OrchestratorConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        agents: Mapping[str, Agent] | None = None,
        run_id: str = ADHOC_RUN,
        memory: ExperienceMemory | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._config = _as_config(config)
        self._agents = dict(agents or build_agents(self._config, telemetry=telemetry))
        self._router = FixedRouter(tuple(name for name in JUNIOR_AGENTS if self._config.agent(name).enabled))
        self._detector = MarketRegimeDetector()
        self._engine = FaultLocalizationEngine()
        self._run_id = run_id
        self._memory = memory
        self._telemetry = telemetry
        self._market: _Market | None = None
        self._portfolio = Portfolio(cash=self._config.execution.initial_cash)

    @property
    def router(self) -> FixedRouter:
        """The supervisor's choice of agents."""
        return self._router

    @property
    def policies(self) -> dict[str, str]:
        """The policy that serves each agent."""
        return {name: agent.policy.name for name, agent in sorted(self._agents.items())}

    def attach(
        self, store: AsOfStore, calendar: ExchangeCalendar, symbols: tuple[str, ...], portfolio: Portfolio
    ) -> None:
        """Use the daemon's store and portfolio for the documented calls too."""
        self._market = _Market(store, calendar, symbols)
        self._portfolio = portfolio

    def set_policy(self, agent_type: str, policy: Policy) -> None:
        """Swap how an agent thinks, between two decisions."""
        self._agents[agent_type].set_policy(policy)

    def analyze(self, view: AsOfView, session: date, symbols: Sequence[str], portfolio: Portfolio) -> list[Analysis]:
        """Decide on every symbol, in order of symbols.

        Parameters
        ----------
        view : AsOfView
            The market as of the decision.
        session : date
            The session that has just closed.
        symbols : sequence of str
        portfolio : Portfolio
            As it stands before any order of this instant.
        """
        return self._decide([view.snapshot(symbol, session) for symbol in sorted(symbols)], portfolio)

    def _decide(self, snapshots: Sequence[MarketSnapshot], portfolio: Portfolio) -> list[Analysis]:
        """Ask the agents, then the strategist, about every snapshot."""
        regimes = [self._detector.detect_regime(snapshot.inputs) for snapshot in snapshots]
        outputs: list[dict[str, AgentOutput]] = [{} for _ in snapshots]
        similar: list[dict[str, tuple[str, ...]]] = [{} for _ in snapshots]
        requests = [PolicyRequest(s, r) for s, r in zip(snapshots, regimes, strict=True)]
        routes = [self._router.route(regime) for regime in regimes]
        for name in JUNIOR_AGENTS:
            chosen = [index for index, route in enumerate(routes) if name in route]
            asked = self._remembering(name, [requests[index] for index in chosen])
            for index, request, answer in zip(chosen, asked, self._ask(name, asked), strict=True):
                outputs[index][name] = answer
                similar[index][name] = tuple(e.trajectory_id for e in request.experiences)
        state = PortfolioState(portfolio.value(), portfolio.cash, portfolio.weights())
        asked = self._remembering(
            "strategist",
            [PolicyRequest(s, r, o, state) for s, r, o in zip(snapshots, regimes, outputs, strict=True)],
        )
        for index, request in enumerate(asked):
            similar[index]["strategist"] = tuple(e.trajectory_id for e in request.experiences)
        return [
            self._examined(self._decision(request, given, verdict), request, known)
            for request, given, verdict, known in zip(
                asked, outputs, self._ask("strategist", asked), similar, strict=True
            )
        ]

    def _examined(self, decision: Decision, request: PolicyRequest, similar: Mapping[str, tuple[str, ...]]) -> Analysis:
        """Look for errors in every output of a decision, on what was known when it was taken."""
        snapshot = request.snapshot
        truth = GroundTruth(
            snapshot,
            agent_outputs=decision.agents,
            workflow=decision.workflow,
            portfolio=request.portfolio,
            market_open=self._market.calendar.is_open(snapshot.as_of) if self._market else None,
        )
        outputs = {**decision.agents, "strategist": decision.strategist}
        reports = {name: self._engine.detect_faults(name, output, truth) for name, output in sorted(outputs.items())}
        return Analysis(decision, snapshot, request.regime, similar, reports)

    def analyze_symbol(
        self, symbol: str, use_supervisor: bool = True, lookback_days: int = 7, as_of: datetime | None = None
    ) -> dict[str, Any]:
        """Analyse one symbol as of an instant (the latest of the store by default).

        Parameters
        ----------
        symbol : str
        use_supervisor : bool
            Whether the supervisor chooses the agents; the present one always chooses every enabled agent.
        lookback_days : int
            News older than this is not read; at most 7, the span of a snapshot.
        as_of : datetime, optional
            Aware; nothing that became available later is used.

        Returns
        -------
        dict
            symbol, decision_id, as_of, recommendation, confidence, abstained, reasoning, position_size, entry_target,
            stop_loss, take_profit, risk_assessment, agent_outputs, strategist_output, market_data, regime, workflow,
            findings, cost_usd.

        Raises
        ------
        ConfigError
            If the feed has no such symbol.
        """
        if not 1 <= lookback_days <= NEWS_LOOKBACK.days:
            raise ConfigError(f"lookback_days: must lie in 1..7, not {lookback_days}")
        market = self._opened(symbol)
        at = ensure_utc(as_of) if as_of else market.store.latest_instant
        if at is None:
            raise DataUnavailable("the feed holds no data at all")
        session = _session_of(market.calendar, at)
        snapshot = market.store.as_of(at).snapshot(symbol, session)
        if lookback_days < NEWS_LOOKBACK.days:
            oldest = at - timedelta(days=lookback_days)
            recent = tuple(item for item in snapshot.news if item.available_at >= oldest)
            snapshot = narrowed(snapshot, f"news of {lookback_days} days", news=recent)
        analysis = self._decide([snapshot], self._portfolio)[0]
        return _documented(analysis)

    def batch_analyze(self, symbols: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Analyse several symbols; one that fails yields ``{"error": ...}`` and the others go on."""
        results: dict[str, dict[str, Any]] = {}
        for symbol in symbols:
            try:
                results[symbol] = self.analyze_symbol(symbol)
            except SystemFault as error:
                results[symbol] = {"error": str(error)}
        return results

    def execute_decision(self, symbol: str, decision: Mapping[str, Any], dry_run: bool = True) -> dict[str, Any]:
        """Say what the risk gates would let through of a decision of `analyze_symbol`.

        Parameters
        ----------
        dry_run : bool
            True only says it. Orders are placed by the daemon alone, so that two writers never trade one portfolio.

        Returns
        -------
        dict
            symbol, side, quantity (shares), clamps, dry_run.

        Raises
        ------
        ConfigError
            With ``dry_run=False``.
        """
        if not dry_run:
            raise ConfigError(
                "dry_run: only the daemon places orders; call with dry_run=True to see what it would order"
            )
        side = direction(str(decision["recommendation"]))
        entry = decision.get("entry_target")
        if side == 0 or not entry:
            return {"symbol": symbol, "side": None, "quantity": 0.0, "clamps": [], "dry_run": True}
        proposal = Proposal(symbol, "buy" if side > 0 else "sell", float(decision["position_size"]), float(entry))
        verdict = RiskGate(self._config.risk, self._config.execution).check(proposal, self._portfolio, 0.0)
        clamps = [{"gate": c.gate, "before": c.before, "after": c.after, "reason": c.reason} for c in verdict.clamps]
        return {"symbol": symbol, "side": verdict.side, "quantity": verdict.quantity, "clamps": clamps, "dry_run": True}

    def get_portfolio_summary(self) -> dict[str, Any]:
        """Return equity and cash in USD, positions in shares, and weights of equity."""
        portfolio = self._portfolio
        return {
            "equity": portfolio.value(),
            "cash": portfolio.cash,
            "positions": {p.symbol: p.quantity for p in portfolio.positions.values() if p.quantity},
            "weights": portfolio.weights(),
        }

    def stop_waiting_on(self, stop: threading.Event) -> None:
        """Wait for experiences only until `stop` is set."""
        if self._memory is not None:
            self._memory.stop = stop

    @property
    def remembers(self) -> bool:
        """Whether any agent is given experiences: its next decision then depends on what is stored of the last."""
        memory = self._memory
        return memory is not None and any(memory.serves(agent.policy) for agent in self._agents.values())

    def _remembering(self, name: str, requests: list[PolicyRequest]) -> list[PolicyRequest]:
        """Return the requests with what the agent has lived through in markets like theirs."""
        memory = self._memory
        if memory is None or not memory.serves(self._agents[name].policy):
            return requests
        return [replace(r, experiences=memory.recall(name, r.snapshot, r.regime)) for r in requests]

    def _ask(self, name: str, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Ask one agent about all symbols at once, and tell the metrics."""
        if not requests:
            return []
        started = time.perf_counter()
        answers = self._agents[name].decide_many(requests)
        each = (time.perf_counter() - started) / len(requests)
        self._telemetry.count("agent_requests_total", len(answers), agent_type=name)
        for _ in answers:
            self._telemetry.observe("agent_latency_seconds", each, agent_type=name)
        self._telemetry.gauge("agent_confidence", answers[-1].confidence, agent_type=name)
        return answers

    def _decision(self, request: PolicyRequest, agents: dict[str, AgentOutput], verdict: AgentOutput) -> Decision:
        snapshot, regime = request.snapshot, request.regime
        if not isinstance(verdict, StrategistOutput):
            raise TypeError(f"the strategist answered with a {type(verdict).__name__}")
        steps = [{"step": "agents", "ran": sorted(agents)}, {"step": "strategist", "ran": ["strategist"]}]
        return Decision(
            decision_id(self._run_id, snapshot.symbol, snapshot.as_of),
            snapshot.symbol,
            snapshot.as_of,
            regime.overall_regime,
            verdict,
            agents,
            snapshot.content_hash,
            steps,
        )

    def _opened(self, symbol: str) -> _Market:
        """Return the market, loaded from the configured feed on first use."""
        if self._market is None:
            feed = build_feed(self._config, self._telemetry)
            store = AsOfStore(feed.calendar)
            for update in feed.history():
                store.add(update)
            for instant in feed.instants():
                for update in instant.updates:
                    store.add(update)
            self._market = _Market(store, feed.calendar, feed.symbols)
        if symbol not in self._market.symbols:
            known = ", ".join(self._market.symbols)
            raise ConfigError(
                f"symbol: the feed has no {symbol!r}{nearest(symbol, self._market.symbols)}; it has {known}"
            )
        return self._market


def _as_config(config: OrchestratorConfig | Mapping[str, Any] | str | Path | None) -> OrchestratorConfig:
    if isinstance(config, OrchestratorConfig):
        return config
    if isinstance(config, Mapping):
        return OrchestratorConfig(**{str(key): value for key, value in config.items()})
    return OrchestratorConfig(**({} if config is None else {"config_path": config}))


def _session_of(calendar: ExchangeCalendar, at: datetime) -> date:
    """Return the last session that had closed at an instant."""
    day = at.date()
    if calendar.is_session(day) and calendar.close_time(day) <= at:
        return day
    return calendar.previous(day)


def _documented(analysis: Analysis) -> dict[str, Any]:
    """Return the documented form of a decision."""
    decision, snapshot = analysis.decision, analysis.snapshot
    s = decision.strategist
    return {
        "symbol": decision.symbol,
        "decision_id": decision.decision_id,
        "as_of": isoformat(decision.as_of),
        "recommendation": s.recommendation,
        "confidence": s.confidence,
        "abstained": s.abstained,
        "reasoning": s.reasoning or (s.abstain_reason or ""),
        "position_size": s.position_size,
        "entry_target": s.entry_target,
        "stop_loss": s.stop_loss,
        "take_profit": s.take_profit,
        "risk_assessment": s.risk_assessment,
        "agent_outputs": {name: out.model_dump(mode="json") for name, out in sorted(decision.agents.items())},
        "strategist_output": s.model_dump(mode="json"),
        "market_data": {
            "price": snapshot.price,
            "session": snapshot.session.isoformat(),
            "bars": len(snapshot.bars),
            "news": len(snapshot.news),
            "filings": len(snapshot.filings),
            "stale": snapshot.stale,
            "content_hash": snapshot.content_hash,
        },
        "regime": decision.regime,
        "workflow": decision.workflow,
        "findings": [
            {
                "agent": name,
                "category": str(e.category),
                "severity": e.severity.value,
                "location": e.location,
                "description": e.description,
                "suggested_fix": e.suggested_fix,
            }
            for name, report in analysis.reports.items()
            for e in report.errors
        ],
        "cost_usd": s.cost_usd + sum(out.cost_usd for out in decision.agents.values()),
    }
