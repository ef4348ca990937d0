"""Runs a comparison: arms planned, the protocol frozen, everybody asked the same, calls settled, figures drawn.

`training.compare` is its command line; notebooks call `compare`. It opens models and reads history, and writes nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.feeds.replay import ReplayFeed
from evaluation.bootstrap import DEFAULT_BLOCK, MIN_BLOCKS
from evaluation.comparison import Resampling, adjusted, call_figures, paired_figures, random_figures, suspicions
from evaluation.report.comparison_report import (
    AgentRow,
    BaselineRow,
    ComparisonReport,
    PairRow,
    ServiceFigures,
    TimingRow,
)
from orchestration.history_walk import walk
from training.arms import SEATS, ArmPlan, SeatPlan, TrainedVersion, plan_arm, registered_versions
from training.comparison_outcomes import BASELINE_ARM, BASELINES, Expectations, Settled, settle
from training.comparison_work import CallRecord, Chunk, Job, Thought
from training.spread import check_ray, spread
from utils.errors import ConfigError, nearest
from utils.hashing import content_hash
from utils.schema import AgentType
from utils.settings import BUILTIN_TINY, OrchestratorConfig

BLOCK_HORIZONS = 4
"""A block of the bootstrap is this many horizons, or 20 sessions where that is longer."""

MAX_WORKERS = 256
GENERATED = "generated data: mechanics, not performance"
REPLAYED = "historical replay"


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """What to compare on what.

    Attributes
    ----------
    policies : tuple of str
        Names of arms, see `training.arms.plan_arm`; differences are taken against the first.
    replay_dir : str
        A replay folder, or ``sample``.
    symbols : tuple of str
        Empty takes all of the folder. All of them are the universe that returns are held against.
    start, end : date or None
        First and last session; the folder's by default. Nothing after the last is looked at, outcomes included.
    agents : tuple of str
        Whose calls are compared.
    workers : int
        Processes for policies that compute; hosted ones are asked from this process.
    ray_address : str or None
        See `training.spread.spread`.
    seed : int
        Of resampling and of the random baseline.
    """

    policies: tuple[str, ...]
    replay_dir: str
    symbols: tuple[str, ...] = ()
    start: date | None = None
    end: date | None = None
    agents: tuple[AgentType, ...] = SEATS
    workers: int = 1
    ray_address: str | None = None
    seed: int = 42


def compare(
    settings: ComparisonSettings,
    config: OrchestratorConfig,
    say: Callable[[str], None] = lambda line: None,
    versions: Callable[[], Sequence[TrainedVersion]] | None = None,
) -> ComparisonReport:
    """Run a comparison.

    Parameters
    ----------
    settings : ComparisonSettings
    config : OrchestratorConfig
        Horizon, costs, models and keys.
    say : callable
        Told of progress.
    versions : callable, optional
        See `plan_arm`.

    Raises
    ------
    ConfigError
        If an arm, a symbol, the period, the workers or Ray cannot work.
    ProviderError, ComponentStartError
        If a model or the registry cannot be opened.
    """
    begun = time.perf_counter()
    _check(settings)
    plans = _planned(settings.policies, config, versions)
    feed = _feed(settings)
    if settings.ray_address is not None:
        check_ray(settings.ray_address)
    expectations = Expectations.read(Path(settings.replay_dir), feed.symbols)
    how = Resampling(max(DEFAULT_BLOCK, BLOCK_HORIZONS * config.decision.horizon_sessions), seed=settings.seed)
    protocol = _protocol(settings, config, plans, feed, expectations, how)
    protocol_sha256 = content_hash(protocol)
    say(f"protocol {protocol_sha256[:12]}: {len(feed.symbols)} symbols, {' '.join(map(str, protocol['period']))}")
    thoughts = _thoughts(settings, config, plans, feed, say)
    settled = settle(feed, thoughts, config, expectations)
    if not settled.keys:
        raise ConfigError(
            f"start, end: no decision of the period has an outcome; it must reach at least "
            f"{config.decision.horizon_sessions} sessions beyond the first (decision.horizon)"
        )
    cost = 2 * config.execution.one_way_cost
    rows = [
        AgentRow(
            plan.name, agent, seat.policy, seat.note,
            call_figures(settled.calls[plan.name][agent], settled.outcomes, how),
            _service(thoughts, plan.name, agent),
            random_figures(settled.calls[plan.name][agent], settled.outcomes, cost, settings.seed),
        )
        for plan in plans
        for seat in plan.seats
        if (agent := seat.agent_type) in settled.calls[plan.name]
    ]  # fmt: skip
    baselines = tuple(
        BaselineRow(name, call_figures(settled.calls[BASELINE_ARM][name], settled.outcomes, how)) for name in BASELINES
    )
    return ComparisonReport(
        protocol=protocol,
        protocol_sha256=protocol_sha256,
        kind_of_result=GENERATED if expectations.returns else REPLAYED,
        decisions=settled.decisions,
        unsettled=settled.unsettled,
        sessions=len(settled.sessions),
        first_session=settled.sessions[0].isoformat(),
        last_session=settled.sessions[-1].isoformat(),
        block_sessions=how.block,
        expected_known=bool(expectations.returns),
        rows=tuple(rows),
        pairs=tuple(_pairs(plans, settled, how)),
        baselines=baselines,
        baseline_pairs=tuple(_against_baselines(plans, protocol["primary_agent"], settled, how)),
        warnings=tuple(_warnings(plans, rows, settled, how)),
        timing=tuple(_timing(thoughts, plan.name, agent) for plan in plans for agent in settled.calls[plan.name]),
        wall_s=round(time.perf_counter() - begun, 3),
    )


def _check(settings: ComparisonSettings) -> None:
    if not settings.policies:
        raise ConfigError("policies: name at least one, for example rules,local")
    twice = [name for name, count in Counter(settings.policies).items() if count > 1]
    if twice:
        raise ConfigError(f"policies: {twice[0]!r} is named twice; an arm against itself shows nothing")
    if not 1 <= settings.workers <= MAX_WORKERS:
        raise ConfigError(f"workers: must be 1 to {MAX_WORKERS}, not {settings.workers}")
    if settings.start and settings.end and settings.end < settings.start:
        raise ConfigError(f"start, end: {settings.end} lies before {settings.start}")
    for agent in settings.agents:
        if agent not in SEATS:
            raise ConfigError(f"agents: {agent!r} is none of {', '.join(SEATS)}{nearest(agent, SEATS)}")


def _feed(settings: ComparisonSettings) -> ReplayFeed:
    """Open the history; what is wrong with it is said in the words of this command's flags."""
    try:
        return ReplayFeed(settings.replay_dir, settings.symbols or None, settings.start, settings.end)
    except ConfigError as error:
        text = str(error).replace("streaming_symbols:", "symbols:").replace("replay_start, replay_end:", "start, end:")
        raise ConfigError(text) from None


def _planned(
    names: Sequence[str], config: OrchestratorConfig, versions: Callable[[], Sequence[TrainedVersion]] | None
) -> tuple[ArmPlan, ...]:
    """Plan the arms; the registry is opened once at most."""
    kept: list[Sequence[TrainedVersion]] = []

    def once() -> Sequence[TrainedVersion]:
        if not kept:
            kept.append((versions or (lambda: registered_versions(config)))())
        return kept[0]

    return tuple(plan_arm(name, config, once) for name in names)


def _protocol(
    settings: ComparisonSettings,
    config: OrchestratorConfig,
    plans: Sequence[ArmPlan],
    feed: ReplayFeed,
    expectations: Expectations,
    how: Resampling,
) -> dict[str, Any]:
    """Return all that the figures follow from, fixed before the first answer; workers and places have no part in it."""
    identity = feed.identity()
    agents = [agent for agent in SEATS if agent in settings.agents and config.agent(agent).enabled]
    primary = "strategist" if "strategist" in agents else (agents[0] if agents else "")
    if not primary:
        raise ConfigError("agents: the configuration has disabled every agent that is to be compared")
    return {
        "universe": list(feed.symbols),
        "period": identity["period"],
        "data_sha256": content_hash({**identity["data_hashes"], **expectations.hashes}),
        "arms": [plan.described() for plan in plans],
        "reference": plans[0].name,
        "agents": agents,
        "horizon_sessions": config.decision.horizon_sessions,
        "fill": "next session's open to the close of the horizon, dividends included",
        "benchmark": "the equal-weight universe over the same sessions",
        "portfolio": "Unknown to the strategist: a sale is a view on the share, and no decision depends on an earlier one",
        "costs": {
            "round_trip": 2 * config.execution.one_way_cost,
            "commission_bps": config.execution.commission_bps,
            "half_spread_bps": config.execution.half_spread_bps,
            "slippage_bps": config.execution.slippage_bps,
        },
        "reward": "return over volatility above the benchmark net of costs, conviction against the agent's own base rate, "
        "consistency, and for the strategist risk; without judges",
        "baselines": [*BASELINES, "random with the agent's own frequencies"],
        "primary_agent": primary,
        "primary_metric": f"the {primary}'s paired difference of realised reward against {plans[0].name}",
        "intervals": {
            "method": "circular block bootstrap over sessions",
            "block_sessions": how.block,
            "level": how.level,
            "draws": how.draws,
        },
        "multiple_testing": "Holm over reward and accuracy of all agents and arms; apart from them, over all baselines",
        "seed": settings.seed,
    }


def _thoughts(
    settings: ComparisonSettings,
    config: OrchestratorConfig,
    plans: Sequence[ArmPlan],
    feed: ReplayFeed,
    say: Callable[[str], None],
) -> list[Thought]:
    """Have all arms think; hosted ones from this process, whose budget and cache they share."""
    chunks = _chunks(feed)
    agents = tuple(agent for agent in SEATS if agent in settings.agents)
    merged: dict[str, Thought] = {}
    number = 0

    def done(thought: Thought) -> None:
        nonlocal number
        number += 1
        say(f"{number}/{len(chunks)} {thought.symbol}: {len(thought.sessions)} sessions")
        before = merged.get(thought.symbol)
        calls = {**(before.calls if before else {}), **thought.calls}
        merged[thought.symbol] = Thought(
            thought.symbol, thought.sessions, thought.as_of, thought.volatility,
            {plan.name: calls[plan.name] for plan in plans if plan.name in calls},
        )  # fmt: skip

    for hosted in (False, True):
        group = tuple(plan for plan in plans if plan.hosted is hosted)
        if not group:
            continue
        number = 0
        job = Job(settings.replay_dir, group, agents, config)
        if hosted:
            spread(job, chunks, done=done)
        else:
            spread(job, chunks, workers=settings.workers, ray_address=settings.ray_address, done=done)
    return list(merged.values())


def _chunks(feed: ReplayFeed) -> list[Chunk]:
    """Return one chunk a symbol that has a history in the period."""
    first: dict[str, date] = {}
    last: dict[str, date] = {}
    for close in walk(feed):
        for symbol in feed.symbols:
            bar = close.view.last_bar(symbol)
            if bar is not None:
                first.setdefault(symbol, close.session)
                if bar.session == close.session:
                    last[symbol] = close.session
    return [Chunk(symbol, first[symbol], last[symbol]) for symbol in feed.symbols if symbol in last]


def _records(thoughts: Sequence[Thought], arm: str, agent: str) -> list[CallRecord]:
    return [record for thought in thoughts for record in thought.calls[arm][agent]]


def _service(thoughts: Sequence[Thought], arm: str, agent: str) -> ServiceFigures:
    records = _records(thoughts, arm, agent)
    answered = [record for record in records if not record.abstained]
    return ServiceFigures(
        cost_usd=round(sum(record.cost_usd for record in records), 8),
        invalid=sum(record.invalid for record in records),
        answered_by_rules=sum(record.by_rules for record in records),
        grounded_share=sum(record.grounded for record in answered) / len(answered) if answered else None,
    )


def _timing(thoughts: Sequence[Thought], arm: str, agent: str) -> TimingRow:
    latencies = [record.latency_s for record in _records(thoughts, arm, agent)]
    if not latencies:
        return TimingRow(arm, agent, None, None)
    p50, p95 = (float(value) for value in np.quantile(latencies, (0.5, 0.95)))
    return TimingRow(arm, agent, p50, p95)


def _pairs(plans: Sequence[ArmPlan], settled: Settled, how: Resampling) -> list[PairRow]:
    reference, *others = plans
    found = [
        (plan.name, agent, paired_figures(calls, settled.calls[reference.name][agent], settled.outcomes, how))
        for plan in others
        for agent, calls in settled.calls[plan.name].items()
    ]
    return [
        PairRow(arm, reference.name, agent, figures)
        for (arm, agent, _), figures in zip(found, adjusted([pair for _, _, pair in found]), strict=True)
    ]


def _against_baselines(plans: Sequence[ArmPlan], agent: str, settled: Settled, how: Resampling) -> list[PairRow]:
    names = [(plan.name, baseline) for plan in plans for baseline in BASELINES]
    found = [
        paired_figures(settled.calls[arm][agent], settled.calls[BASELINE_ARM][baseline], settled.outcomes, how)
        for arm, baseline in names
    ]
    return [
        PairRow(arm, baseline, agent, figures) for (arm, baseline), figures in zip(names, adjusted(found), strict=True)
    ]


def _warnings(plans: Sequence[ArmPlan], rows: Sequence[AgentRow], settled: Settled, how: Resampling) -> list[str]:
    """Return what a reader must know before believing any figure."""
    found = []
    for row in rows:
        found += [f"{row.arm}, {row.agent}: {what}: look for a leak first." for what in suspicions(row.figures)]
    for plan in plans:
        if plan.hosted:
            found.append(
                f"{plan.name}: contaminated unless shown otherwise. A hosted model may remember this period; only dates after "
                "its training cut-off say anything of its skill."
            )
        found += [
            f"{plan.name}, {seat.agent_type}: the base model {seat.base_model} was trained elsewhere and may remember this period."
            for seat in plan.seats
            if seat.base_model not in (None, BUILTIN_TINY)
        ]
        found += [_seen(plan.name, seat, settled) for seat in plan.seats if _overlaps(seat, settled)]
    if len(settled.sessions) < MIN_BLOCKS * how.block:
        found.append(
            f"{len(settled.sessions)} sessions hold fewer than {MIN_BLOCKS} blocks of {how.block}: there are no intervals, and nothing can "
            "be concluded."
        )
    return found


def _overlaps(seat: SeatPlan, settled: Settled) -> bool:
    return seat.data_cutoff is not None and seat.data_cutoff.date() >= settled.sessions[0]


def _seen(arm: str, seat: SeatPlan, settled: Settled) -> str:
    return (
        f"{arm}, {seat.agent_type}: {seat.policy} was trained on outcomes until {seat.data_cutoff:%Y-%m-%d}, and the period "
        f"begins on {settled.sessions[0]}: what lies before is in its training data. Start after it."
    )
