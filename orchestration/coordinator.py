"""The coordinator: one decision on each symbol, from its snapshot to the strategist's word.

Inside the daemon it is handed as-of views and a portfolio and is pure. In a notebook it opens the configured feed by
itself and answers `analyze_symbol`; it never writes to the daemon's database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from agents.base_agent import Agent, narrowed
from agents.factory import LocalPolicies, build_agents, policy_kinds
from agents.policies.base import Policy
from agents.supervisor.router import FixedRouter
from data_pipeline.asof_store import NEWS_LOOKBACK, AsOfStore, AsOfView
from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.feeds.factory import build_feed
from orchestration.analysis import Analysis, documented
from orchestration.calibration import ConvictionCalibrator
from orchestration.conflict_history import ConflictAnalyzer
from orchestration.decision_steps import SPARE_STRATEGIST, DecisionSteps, OpenCase
from orchestration.dynamic_workflow import DynamicWorkflowManager, RewriteRule
from orchestration.examination import Examiner
from orchestration.execution.portfolio import Portfolio
from orchestration.execution.risk import Proposal, RiskGate
from orchestration.latencies import Latencies
from orchestration.records import decision_id
from orchestration.retrieval import ExperienceMemory
from orchestration.shadows import ShadowOpinion, Shadows
from orchestration.step_journal import StepJournal
from orchestration.workflow_graph import CONCURRENT_AT_FIRST, WorkflowGraph
from orchestration.workflow_run import WorkflowRun
from orchestration.workflow_state import VALIDATOR
from utils.clock import ensure_utc
from utils.errors import ConfigError, DataUnavailable, SystemFault, nearest
from utils.ids import ADHOC_RUN
from utils.llm.factory import HOSTED, ChatModels
from utils.llm.untrusted import replay_key
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import (
    JUNIOR_AGENTS,
    Decision,
    MarketSnapshot,
    PortfolioState,
    StrategistOutput,
    ValidatorOutput,
    direction,
)
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry


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
    timer : callable, optional
        Seconds on a monotonic wall clock; only live runs give one. The workflow's rules then see measured latencies, else
        those that outputs declare, so that a replay does not depend on wall time.
    journal : StepJournal, optional
        Where answers of models that were waited for outlive a crash, until `forget` says that their decision is durable.
    chat_models : ChatModels, optional
        Hosted models, which their owner closes. Where the configuration has agents think with one and none are given, the
        coordinator opens its own and ends them in `close`.
    local_policies : callable, optional
        Where seats that think with a local model get it, see `agents.factory.build_agents`.
    """

    def __init__(
        self,
        config: OrchestratorConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        agents: Mapping[str, Agent] | None = None,
        run_id: str = ADHOC_RUN,
        memory: ExperienceMemory | None = None,
        timer: Callable[[], float] | None = None,
        journal: StepJournal | None = None,
        chat_models: ChatModels | None = None,
        local_policies: LocalPolicies | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._config = _as_config(config)
        self._conflicts = ConflictAnalyzer()
        self._calibrator = ConvictionCalibrator()
        self._own_models: ChatModels | None = None
        if chat_models is None and agents is None and set(HOSTED) & set(policy_kinds(self._config).values()):
            chat_models = self._own_models = ChatModels(self._config, replay=True, telemetry=telemetry)
        prompt_key = None if timer is not None else replay_key(self._config.random_state)
        built = build_agents(
            self._config,
            telemetry=telemetry,
            preference=self._conflicts,
            chat_models=chat_models,
            prompt_key=prompt_key,
            local_policies=local_policies,
        )
        self._agents = {VALIDATOR: built[VALIDATOR], **(built if agents is None else agents)}
        self._workflows = DynamicWorkflowManager(
            self._config.workflow, timer=timer, max_workers=self._config.llm.concurrency, telemetry=telemetry
        )
        self._journal = journal
        self._live = timer is not None
        self._latencies = Latencies()
        self._router = FixedRouter(tuple(name for name in JUNIOR_AGENTS if self._config.agent(name).enabled))
        self._detector = MarketRegimeDetector()
        self._examiner = Examiner(self._config, self._agents, self._is_open)
        self._shadows = Shadows(self._examiner.found, telemetry)
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
        self._latencies.forget(agent_type)

    def serving(self, agent_type: str) -> Policy | None:
        """Return the policy that serves an agent, None for a seat that is empty."""
        agent = self._agents.get(agent_type)
        return None if agent is None else agent.policy

    def set_shadows(self, agent_type: str, policies: tuple[Policy, ...]) -> None:
        """Let other policies answer what an agent is asked too; see `shadow_opinions`."""
        self._shadows.set(agent_type, policies)

    def latencies_s(self, agent_type: str, policy: str) -> list[float]:
        """Return the seconds that a policy's newest answers took; live only, for a replay must not depend on them."""
        return self._latencies.of(agent_type, policy)

    @property
    def shadows(self) -> dict[str, list[str]]:
        """The names of the policies that answer in each agent's shadow."""
        return self._shadows.names

    def shadow_opinions(self, analyses: Sequence[Analysis]) -> list[list[ShadowOpinion]]:
        """Return what the shadows say to the questions behind these decisions; it changes nothing of them."""
        return self._shadows.opinions(analyses)

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
        return self._decide([self._case(view, symbol, session) for symbol in sorted(symbols)], portfolio)

    def _case(self, view: AsOfView, symbol: str, session: date, lookback_days: int = NEWS_LOOKBACK.days) -> OpenCase:
        """Return a decision that is to be taken, with the means to look farther back than its snapshot."""
        full = view.snapshot(symbol, session)
        snapshot = full
        if lookback_days < NEWS_LOOKBACK.days:
            oldest = view.at - timedelta(days=lookback_days)
            recent = tuple(item for item in full.news if item.available_at >= oldest)
            snapshot = narrowed(full, f"news of {lookback_days} days", news=recent)

        def known() -> MarketSnapshot:
            bars = view.bars(symbol, 2 * len(full.bars))
            return full if len(bars) == len(full.bars) else narrowed(full, f"bars:{len(bars)}", bars=bars)

        identity = decision_id(self._run_id, symbol, view.at)
        return OpenCase(identity, snapshot, known, self._detector.detect_regime(snapshot.inputs))

    def _decide(self, cases: Sequence[OpenCase], portfolio: Portfolio) -> list[Analysis]:
        """Run the analysts' workflow, then ask the strategist, about every case."""
        steps = DecisionSteps(
            self._agents,
            self._config,
            cases,
            calibrator=self._calibrator,
            memory=self._memory,
            journal=self._journal,
            latencies=self._latencies if self._live else None,
            telemetry=self._telemetry,
        )
        for index, case in enumerate(cases):
            case.run = self._begun(index, case, steps)
        self._workflows.drive([case.run for case in cases], steps)
        state = PortfolioState(portfolio.value(), portfolio.cash, portfolio.weights())
        sparing = self._config.workflow.mode == "adaptive" and steps.waits("strategist")
        for case in cases:
            case.conclude(state, sparing=sparing)
            if case.spared:
                self._telemetry.count("workflow_rewrites_total", rule=SPARE_STRATEGIST)
        self._workflows.drive([case.run for case in cases], steps)
        return [self._examiner.examined(case, self._decision(case)) for case in cases]

    def _begun(self, index: int, case: OpenCase, steps: DecisionSteps) -> WorkflowRun:
        """Return the analysts' run of a case.

        Where answers take time, an agent is held back only if it may be spared: the rules of the first two foresee whether
        they will take one side. If not, all start at once.
        """
        mode, agents = self._config.workflow.mode, self._router.route(case.regime)
        about: dict[str, Any] = {"mode": mode, "regime": case.regime.overall_regime}
        first = agents[:CONCURRENT_AT_FIRST]
        foreseen = steps.foreseen(index, first) if mode == "adaptive" and len(agents) > len(first) else {}
        graph = WorkflowGraph.routed(agents, mode)
        if foreseen:
            about["foreseen"] = {name: output.recommendation for name, output in foreseen.items()}
            sides = set(map(direction, about["foreseen"].values()))
            if len(sides) > 1 or 0 in sides:
                graph = WorkflowGraph.together(agents)
        return self._workflows.begin(graph, steps.variations(index), about, eager=bool(foreseen))

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
        case = self._case(market.store.as_of(at), symbol, session, lookback_days)
        analysis = self._decide([case], self._portfolio)[0]
        return documented(analysis)

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

    @property
    def conflicts(self) -> ConflictAnalyzer:
        """What is known of conflicts between agents; its `learn` takes in those whose outcomes have matured."""
        return self._conflicts

    @property
    def calibrator(self) -> ConvictionCalibrator:
        """How often calls have come true; its `learn` takes in those whose outcomes have matured. In a notebook it knows none."""
        return self._calibrator

    def add_rule(self, rule: RewriteRule) -> None:
        """Add a rewriting rule to every decision from now on; see `DynamicWorkflowManager.add_rule`."""
        self._workflows.add_rule(rule)

    def forget(self, decision_ids: Iterable[str]) -> None:
        """Drop what was kept of unfinished decisions, now that they are durable."""
        if self._journal is not None:
            self._journal.forget(decision_ids)

    def close(self) -> None:
        """Take no more calls of models; those in flight are dropped."""
        self._workflows.close()
        if self._own_models is not None:
            self._own_models.close()
        if self._journal is not None:
            self._journal.close()

    def _decision(self, case: OpenCase) -> Decision:
        snapshot = case.snapshot
        verdict = case.run.outputs.get("strategist")
        if not isinstance(verdict, StrategistOutput):
            reason = case.failures.get("strategist", "it was not asked")
            if verdict is not None:
                reason = f"it answered with a {type(verdict).__name__}"
            verdict = _abstaining(snapshot, f"the strategist failed: {reason}")
        opinions = dict(case.opinions)
        validator = opinions.pop(VALIDATOR, None)
        if isinstance(validator, ValidatorOutput):
            for resolved in validator.resolutions:
                self._conflicts.add_conflict(resolved, regime=case.regime.overall_regime)
        else:
            validator = None
        return Decision(
            case.decision_id,
            snapshot.symbol,
            snapshot.as_of,
            case.regime.overall_regime,
            verdict,
            opinions,
            snapshot.content_hash,
            case.trace,
            validator,
        )

    def _is_open(self, at: datetime) -> bool | None:
        """Return whether the exchange was open at an instant, None where no market is attached."""
        return self._market.calendar.is_open(at) if self._market else None

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


def _abstaining(snapshot: MarketSnapshot, reason: str) -> StrategistOutput:
    return StrategistOutput(
        symbol=snapshot.symbol,
        as_of=snapshot.as_of,
        recommendation="hold",
        confidence=0.0,
        abstained=True,
        abstain_reason=reason,
        policy="rules",
    )


def _session_of(calendar: ExchangeCalendar, at: datetime) -> date:
    """Return the last session that had closed at an instant; before the first that is known, the day itself."""
    day = at.date()
    if day <= calendar.first:
        return day
    if calendar.is_session(day) and calendar.close_time(day) <= at:
        return day
    return calendar.previous(day)
