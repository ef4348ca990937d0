"""Does the learning loop find an edge that is there, and leave alone what has none: ``python -m benchmarks.learning``.

Each seed is one whole run of the daemon on a generated market: rules decide, outcomes mature, models are trained, the gate
and the shadow stage decide on them. What serves at the end is then compared with the base model on a market that neither has
seen, by the known expected returns, so that no luck is in the comparison. These are mechanics, never performance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from agents.policies.base import PolicyRequest
from agents.policies.local.decisions import parse_decision, prompt_messages
from agents.policies.local.states import StateWriter
from agents.policies.rules import RulesTechnical
from benchmarks.simulated_edges import ROUND_TRIP_COST, WARM_UP
from data_pipeline.asof_store import AsOfStore
from data_pipeline.feeds.simulated import SimulatedFeed
from data_pipeline.library_access import open_library
from data_pipeline.simulation.scenario import Regime, Scenario, generated_symbols
from evaluation.bootstrap import Interval, lower_bound, mean_interval
from training import training_runs
from training.examiner import Examiner
from training.model_registry import ModelRegistry, ModelVersion
from training.rl.job import GRPO_CONFIG
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import direction
from utils.schema.market import FloatArray
from utils.settings import BUILTIN_TINY, OrchestratorConfig

AGENT = "technical"
HORIZON = 3
REGIMES = (
    Regime(name="calm", volatility=0.025, mean_sessions=120.0, news_rate=0.75),
    Regime(name="turbulent", volatility=0.035, mean_sessions=60.0, news_rate=1.5),
)
EDGE_BPS = {"calm": 60.0, "turbulent": 84.0}
"""Planted for the technical agent, the only junior of these runs: about as much as a direction that can be told in at most 60 % allows."""


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Attributes
    ----------
    holdout_sessions : int
        Of each gate.
    successes, decisions : int
        Before the held-out period, at which fine-tuning and reinforcement learning begin; fine-tuning comes first.
    """

    symbols: int
    sessions: int
    holdout_sessions: int
    successes: int
    decisions: int


WITH_EDGE = Size(16, 450, 90, 1600, 4000)
"""For a whole run of less than five minutes on two cores."""

WITHOUT_EDGE = Size(8, 260, 60, 250, 900)
"""Many loops matter more here than long ones; the gate has the least that it accepts."""

RL_STEPS = 10
"""A third of the profile's own, for the same reasons."""

ERROR_BUDGET = 0.1
"""Twice the default, so that fine-tuning and reinforcement learning each meet a gate of the full level of 2 % at once. No model
expires: of what is held out alone, the first session is eight months old when a model begins to serve."""

FRESH_SESSIONS, FRESH_SEED = 240, 1_000_000
"""Of the market on which before and after are compared; its seed lies that far from the run's."""

LEVEL = 0.975
BLOCK = 20
LIMIT_S = 900.0


@dataclass(frozen=True)
class Move:
    """An alias that was put on a version, or on none, and why."""

    at: datetime
    alias: str
    version: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d} {self.alias} = {self.version or 'none'}: {self.reason}"


@dataclass(frozen=True)
class Loop:
    """What one run of the daemon led to."""

    seed: int
    wall_s: float
    trainings: tuple[tuple[str, str, str], ...] = ()
    """Kind, state, verdict; oldest first."""
    moves: tuple[Move, ...] = ()
    champion: ModelVersion | None = None
    """What serves at the end."""
    promoted: ModelVersion | None = None
    """The first that was put into service."""


@dataclass(frozen=True)
class Market:
    """Decisions to be taken on a market with known expected returns."""

    sessions: tuple[int, ...]
    states: tuple[str, ...]
    rules: tuple[int, ...]
    expected: FloatArray
    scale: FloatArray


def scenario_of(seed: int, size: Size, *, edge: bool) -> Scenario:
    """Return the market of a seed; without an edge the planted part is there, and no signal says anything about it."""
    return Scenario(
        seed=seed,
        symbols=generated_symbols(size.symbols),
        sessions=size.sessions,
        regimes=REGIMES,
        horizon_sessions=HORIZON,
        edges={AGENT: EDGE_BPS},
        shuffled=not edge,
    )


def run_loop(folder: Path, scenario: Scenario, size: Size, cache_dir: Path, *, costs: bool = True) -> Loop:
    """Run the daemon once from an empty directory, as its users do, and read what its database says."""
    data_dir, market, config = folder / "data", folder / "scenario.yaml", folder / "system.yaml"
    market.write_text(yaml.safe_dump(scenario.model_dump(mode="json")), encoding="utf-8")
    learning: dict[str, Any] = {
        "sft_agents": [AGENT],
        "rl_agents": [AGENT],
        "holdout_sessions": size.holdout_sessions,
        "error_budget_per_year": ERROR_BUDGET,
        "max_model_age_days": None,
        "rl_config": str(_shortened(folder, RL_STEPS)),
    }
    settings = {
        "data_dir": str(data_dir),
        "feed": "simulated",
        "simulation": {"scenario": str(market)},
        "decision": {"horizon": f"{HORIZON}d"},
        "agents": {"news": {"enabled": False}, "fundamental": {"enabled": False}},
        "model_cache_dir": str(cache_dir),
        "sft_min_trajectories": size.successes,
        "rl_min_trajectories": size.decisions,
        "learning": learning,
    }
    if not costs:
        settings["execution"] = {"commission_bps": 0.0, "half_spread_bps": 0.0, "slippage_bps": 0.0}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [
        sys.executable, "-m", "monitoring.production_orchestrator", "--config", str(config), "--exit_when_done",
        "--metrics_port", "0",
    ]  # fmt: skip
    started = time.monotonic()
    with (folder / "daemon.log").open("wb") as log:
        ended = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    wall_s = time.monotonic() - started
    if ended.returncode:
        tail = (folder / "daemon.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"the daemon of seed {scenario.seed} ended with {ended.returncode}:\n{tail}")
    return _read(config, scenario.seed, wall_s)


def _shortened(folder: Path, steps: int) -> Path:
    """Write the hyper-parameters of reinforcement learning with another number of steps."""
    content = yaml.safe_load(GRPO_CONFIG.read_text(encoding="utf-8"))
    content["profiles"][BUILTIN_TINY] |= {"max_steps": steps, "save_steps": steps}
    path = folder / "rl.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _read(config: Path, seed: int, wall_s: float) -> Loop:
    library = open_library(OrchestratorConfig(config_path=config))
    try:
        with library.connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT run_id FROM training_runs ORDER BY started_at DESC LIMIT 1")
            row = cursor.fetchone()
            if row is None:
                return Loop(seed, wall_s)
            found = training_runs.of_run(cursor, row[0])
            cursor.execute(
                "SELECT alias, new_version, as_of, reason FROM alias_events WHERE run_id = %s ORDER BY id", (row[0],)
            )
            moves = tuple(Move(at, alias, version, reason) for alias, version, at, reason in cursor)
            cursor.execute(
                "SELECT version FROM model_aliases WHERE run_id = %s AND agent_type = %s AND alias = 'champion'",
                (row[0], AGENT),
            )
            champion = cursor.fetchone()
            promoted = next((move.version for move in moves if promotes(move)), None)
            registry = ModelRegistry(library)
            serving = registry.get(cursor, champion[0]) if champion else None
            served_first = registry.get(cursor, promoted) if promoted else None
    finally:
        library.close()
    trainings = tuple(
        (run.kind, run.state, str((run.metrics or {}).get("verdict") or run.error)) for run in reversed(found)
    )
    return Loop(seed, wall_s, trainings, moves, serving, served_first)


def market_of(scenario: Scenario) -> Market:
    """Return the states of the technical agent on every session and symbol of a market, and what they are worth."""
    feed = SimulatedFeed(scenario)
    store, detector, rules, writer = AsOfStore(feed.calendar), MarketRegimeDetector(), RulesTechnical(), StateWriter()
    for update in feed.history():
        store.add(update)
    sessions: list[int] = []
    states: list[str] = []
    sides: list[int] = []
    expected: list[float] = []
    scale: list[float] = []
    paths = feed.market.paths
    volatility = [regime.volatility * math.sqrt(scenario.horizon_sessions) for regime in scenario.regimes]
    for row, instant in enumerate(feed.instants()):
        for update in instant.updates:
            store.add(update)
        if not WARM_UP <= row < scenario.sessions - scenario.horizon_sessions:
            continue
        view = store.as_of(instant.at)
        requests = []
        for symbol in feed.symbols:
            snapshot = view.snapshot(symbol, instant.session)
            requests.append(PolicyRequest(snapshot, detector.detect_regime(snapshot.inputs)))
        worth = paths.expected[row] - paths.expected[row].mean()
        for place, (request, facts) in enumerate(zip(requests, rules.decide_many(requests), strict=True)):
            sessions.append(row)
            states.append(writer.write(facts, request))
            sides.append(direction(facts.recommendation))
            expected.append(float(worth[place]))
            scale.append(volatility[paths.regimes[row]])
    return Market(tuple(sessions), tuple(states), tuple(sides), np.array(expected), np.array(scale))


def rewards(market: Market, sides: Sequence[int]) -> FloatArray:
    """Return the mean expected reward of each session, net of costs, in ordinary moves of the horizon."""
    taken = np.array(sides, dtype=float)
    each = (taken * market.expected - np.abs(taken) * ROUND_TRIP_COST) / market.scale
    numbers = np.array(market.sessions)
    return np.array([each[numbers == session].mean() for session in np.unique(numbers)])


def sides_of(answers: Sequence[str]) -> list[int]:
    """Return the sides of answers; what is no decision takes none."""
    return [direction(decision.recommendation) if (decision := parse_decision(text)) else 0 for text in answers]


def sides_taken(market: Market, base_dir: Path, *adapters: Path | None) -> list[list[int]]:
    """Return the sides that adapters on a base model take on a market; None is the base model itself."""
    asked = [prompt_messages(AGENT, state) for state in market.states]
    with Examiner(base_dir, "cpu") as examiner:
        return [sides_of(examiner.answers(AGENT, asked, adapter)) for adapter in adapters]


def planted(seeds: Sequence[int], cache_dir: Path, keep: Path | None) -> dict[str, Any]:
    """Run a loop a seed on markets with an edge, and compare what serves in the end with the base model."""
    fresh = dataclasses.replace(WITH_EDGE, sessions=FRESH_SESSIONS)
    oracle = scenario_of(seeds[0], WITH_EDGE, edge=True).oracle()
    print(
        f"edge for the {AGENT} agent: the best possible policy is right in {oracle.accuracy.value:.1%} and earns a reward of "
        f"{oracle.reward.value:+.4f} a decision, net"
    )
    figures: dict[str, Any] = {
        "oracle_accuracy": oracle.accuracy.value,
        "oracle_reward": oracle.reward.value,
        "seeds": [],
    }
    for seed in seeds:
        folder = _folder(keep, f"planted-{seed}")
        loop = run_loop(folder, scenario_of(seed, WITH_EDGE, edge=True), WITH_EDGE, cache_dir)
        _show_loop(loop)
        if loop.champion is None:
            print(f"seed {seed}: nothing was deployed")
            figures["seeds"].append({"seed": seed, "wall_s": loop.wall_s, "deployed": None})
            continue
        market = market_of(scenario_of(seed + FRESH_SEED, fresh, edge=True))
        champion = loop.champion
        before, after = (
            rewards(market, sides) for sides in sides_taken(market, champion.base_dir, None, champion.path)
        )
        bound = lower_bound(after - before, BLOCK, LEVEL, 4000, 42)
        by_rules = rewards(market, market.rules)
        beyond = lower_bound(after - by_rules, BLOCK, LEVEL, 4000, 42)
        print(
            f"seed {seed}: {len(market.states)} decisions on {len(before)} sessions; rules {_text(mean_interval(by_rules))}, base model "
            f"{_text(mean_interval(before))}, {loop.champion.version} {_text(mean_interval(after))}; gain "
            f"{bound.estimate:+.4f}, {LEVEL:.1%} lower bound {bound.low:+.4f} (beyond the rules {beyond.estimate:+.4f}, {beyond.low:+.4f}); run {loop.wall_s:.0f} s",
            flush=True,
        )
        figures["seeds"].append(
            {
                "seed": seed,
                "wall_s": loop.wall_s,
                "deployed": loop.champion.version,
                "decisions": len(market.states),
                "before": float(before.mean()),
                "after": float(after.mean()),
                "gain": bound.estimate,
                "lower_bound": bound.low,
                "gain_beyond_rules": beyond.estimate,
                "lower_bound_beyond_rules": beyond.low,
                "trainings": loop.trainings,
            }
        )
    shown = sum(1 for one in figures["seeds"] if one.get("lower_bound", 0) > 0)
    print(f"the gain is shown in {shown} of {len(seeds)} seeds")
    return figures


def no_edge(seeds: Sequence[int], cache_dir: Path, keep: Path | None) -> dict[str, Any]:
    """Run a loop a seed on markets without an edge and without costs, and count what is promoted all the same.

    With costs a model that takes fewer sides than the rules is truly better, edge or not, and rightly promoted.
    """
    fresh = dataclasses.replace(WITHOUT_EDGE, sessions=FRESH_SESSIONS)
    verdicts: Counter[str] = Counter()
    promoted: list[dict[str, Any]] = []
    for seed in seeds:
        folder, scenario = _folder(keep, f"no-edge-{seed}"), scenario_of(seed, WITHOUT_EDGE, edge=False)
        loop = run_loop(folder, scenario, WITHOUT_EDGE, cache_dir, costs=False)
        _show_loop(loop)
        verdicts.update(f"{kind}: {verdict}" for kind, _, verdict in loop.trainings)
        if loop.promoted is None:
            continue
        version = loop.promoted
        market = market_of(scenario_of(seed + FRESH_SEED, fresh, edge=False))
        (sides,) = sides_taken(market, version.base_dir, version.path)
        acting, by_rules = float(np.mean(np.abs(sides))), float(np.mean(np.abs(market.rules)))
        print(
            f"  {version.version} takes a side in {acting:.1%} of {len(sides)} fresh decisions, the rules in {by_rules:.1%}; none is "
            "worth anything",
            flush=True,
        )
        promoted.append({"seed": seed, "acting": acting, "acting_rules": by_rules})
    print(f"{len(promoted)} of {len(seeds)} loops put a model into service; {dict(verdicts)}")
    return {"loops": len(seeds), "promotions": len(promoted), "promoted": promoted, "verdicts": dict(verdicts)}


def promotes(move: Move) -> bool:
    """Return whether a move puts a version into service, whatever its reason says."""
    return move.alias == "champion" and move.version is not None


def _folder(keep: Path | None, name: str) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix=f"{name}-"))
    folder = keep / name
    folder.mkdir(parents=True)
    return folder


def _show_loop(loop: Loop) -> None:
    print(f"seed {loop.seed}: {loop.wall_s:.0f} s")
    for kind, state, verdict in loop.trainings:
        print(f"  {kind}: {state}, {verdict}")
    for move in loop.moves:
        print(f"  {move}")
    sys.stdout.flush()


def _text(interval: Interval) -> str:
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def main() -> int:
    """Run one of the studies."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("study", choices=("planted", "no_edge"))
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--cache_dir", type=Path, default=Path("var/models/base"), help="of the base model")
    parser.add_argument("--keep", type=Path, help="folder that keeps each run's data directory and log")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    study = planted if options.study == "planted" else no_edge
    figures = study(options.seeds, options.cache_dir.resolve(), options.keep)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
