"""The arithmetic that the benchmarks judge by, and the sameness of the data that they judge on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from agents.policies.local.decisions import encode_decision
from agents.policies.local.states import state_values
from benchmarks.error_budget import BLOCK, HELD_OUT, HORIZON, Looks, promoted_at
from benchmarks.gate_trials import SPELL_SESSIONS, sides
from benchmarks.gates import Counted
from benchmarks.learning import (
    FRESH_SEED,
    ROUND_TRIP_COST,
    WITH_EDGE,
    Market,
    Move,
    market_of,
    promotes,
    rewards,
    scenario_of,
    sides_of,
)
from benchmarks.library_cases import Conditions, distances, filters
from benchmarks.library_data import AGENTS, REGIMES, generate, row_of, trajectory, trajectory_id
from benchmarks.library_searches import Figures, best_raw
from benchmarks.measure import TIE, Spread, percentile, recall, resampled
from benchmarks.simulated_edges import WARM_UP
from data_pipeline.feeds.simulated import SimulatedFeed
from data_pipeline.library.trajectories import validate
from evaluation.gate import GateEvidence, GateSettings, PairedDecision, evaluate_gate

ALL = np.ones(5, dtype=bool)
DISTANCES = np.array([0.5, 0.1, 0.3, 0.2, 0.4], dtype=np.float32)


def test_recall_is_the_share_of_the_exact_answer_that_was_found() -> None:
    assert recall([1, 3], DISTANCES, ALL, 2) == 1.0
    assert recall([1, 2], DISTANCES, ALL, 2) == 0.5
    assert recall([0, 4], DISTANCES, ALL, 2) == 0.0


def test_a_result_as_near_as_the_last_exact_one_is_right() -> None:
    tied = np.array([0.1, 0.2, 0.2 + TIE / 2, 0.2 + 0.01], dtype=np.float32)
    allowed = np.ones(4, dtype=bool)
    assert recall([0, 2], tied, allowed, 2) == 1.0
    assert recall([0, 3], tied, allowed, 2) == 0.5


def test_a_result_that_the_filter_forbids_is_wrong_however_near() -> None:
    allowed = np.array([True, False, True, True, True])
    assert recall([1, 3], DISTANCES, allowed, 2) == 0.5
    assert recall([3, 2], DISTANCES, allowed, 2) == 1.0


def test_a_result_given_twice_counts_once() -> None:
    assert recall([1, 1], DISTANCES, ALL, 2) == 0.5


def test_recall_asks_for_no_more_than_the_filter_lets_through() -> None:
    allowed = np.array([False, True, False, False, False])
    assert recall([1], DISTANCES, allowed, 10) == 1.0
    assert recall([], DISTANCES, allowed, 10) == 0.0
    assert recall([], DISTANCES, np.zeros(5, dtype=bool), 10) == 1.0


def test_percentiles_are_values_that_were_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert percentile(values, 50) == 3.0
    assert percentile(values, 99) == 5.0
    assert percentile([float(n) for n in range(1, 101)], 99) == 99.0
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)


def test_a_spread_is_the_median_and_the_range() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([1.0, 2.0]).text(1) == "1.5 [1.0 to 2.0]"
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_the_best_raw_method_is_the_fastest_that_finds_enough() -> None:
    methods = {"fast": Figures(1.0, 2.0, 0.5), "good": Figures(3.0, 4.0, 0.98), "slow": Figures(9.0, 9.0, 1.0)}
    assert best_raw(methods) == "good"
    with pytest.raises(ValueError, match="no raw method"):
        best_raw({"fast": methods["fast"]})


def test_equal_seeds_give_equal_experiences_and_other_seeds_others() -> None:
    first, again, other = generate(50, 1), generate(50, 1), generate(50, 2)
    assert np.array_equal(first.vectors, again.vectors)
    assert trajectory(first, 7).to_dict() == trajectory(again, 7).to_dict()
    assert not np.array_equal(first.vectors, other.vectors)


def test_generated_trajectories_can_be_stored_and_hold_about_as_much_as_the_daemons() -> None:
    data = generate(20, 1)
    item = trajectory(data, 13)
    validate(item)
    size = len(json.dumps([item.market_state, item.agent_inputs, item.workflow_trace, item.reasoning]))
    assert 1_500 <= size <= 2_200
    assert row_of(trajectory_id(13)) == 13
    assert np.allclose(np.linalg.norm(data.vectors, axis=1), 1.0, atol=1e-5)


def test_neighbours_share_agent_and_regime_as_those_of_real_states_do() -> None:
    data, queries = generate(20_000, 1), generate(50, 2)
    nearest = np.argsort(distances(data, queries), axis=1)[:, :10]
    assert (data.agent[nearest] == queries.agent[:, None]).mean() > 0.95
    assert (data.regime[nearest] == queries.regime[:, None]).mean() > 0.9
    shared_symbol = (data.symbol[nearest] == queries.symbol[:, None]).mean()
    assert 2 / 88 < shared_symbol < 0.5


def test_conditions_say_the_same_as_mask_arguments_and_sql() -> None:
    data = generate(500, 1)
    half = float(np.median(data.matured))
    conditions = Conditions(agent_type=AGENTS[3], success=True, min_reward=0.0, matured_before=half)
    expected = (data.agent == 3) & data.success & (data.reward >= 0.0) & (data.matured < half)
    assert np.array_equal(conditions.mask(data), expected)
    as_of = datetime.fromtimestamp(half, UTC)
    assert conditions.arguments() == {"agent_type": AGENTS[3], "success": True, "min_reward": 0.0, "as_of": as_of}
    assert conditions.sql() == (
        "agent_type = %s AND success = %s AND reward >= %s AND matured_at < %s",
        [AGENTS[3], True, 0.0, as_of],
    )


def test_the_filters_of_another_agent_and_regime_are_never_the_querys_own() -> None:
    data, queries = generate(500, 1), generate(100, 2)
    cases = {case.name: case.of for case in filters(data, queries)}
    assert all(cases["other agent"](q).agent_type != AGENTS[queries.agent[q]] for q in range(100))
    assert all(cases["other regime"](q).market_regime != REGIMES[queries.regime[q]] for q in range(100))
    assert cases["combined"](5).mask(data).sum() < 0.02 * len(data)


def test_a_resampled_interval_holds_the_statistic_and_narrows_with_more_values() -> None:
    rng = np.random.default_rng(4)
    few, many = rng.normal(5, 1, 30).tolist(), rng.normal(5, 1, 1000).tolist()
    wide, narrow = (resampled(values, lambda v: float(np.mean(v)), 1, 500) for values in (few, many))
    assert wide[1] < wide[0] < wide[2]
    assert narrow[0] == pytest.approx(float(np.mean(many)))
    assert narrow[2] - narrow[1] < (wide[2] - wide[1]) / 3
    with pytest.raises(ValueError, match="at least one value"):
        resampled([], lambda v: 0.0, 1)


def test_every_section_of_the_benchmarks_can_be_named() -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "benchmarks", "--help"]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    assert shown.returncode == 0, shown.stderr
    for name in ("daemon", "gates", "judges", "library", "taxonomy", "workflow"):
        assert name in shown.stdout


@pytest.mark.parametrize(
    ("count", "n", "low", "high"), [(0, 20, 0.0, 0.1684), (20, 20, 0.8316, 1.0), (5, 50, 0.0333, 0.2181)]
)
def test_intervals_of_a_rate_are_the_exact_ones_of_the_tables(count: int, n: int, low: float, high: float) -> None:
    assert Counted(count, n).interval() == pytest.approx((low, high), abs=1e-4)


def test_the_simulated_gates_of_the_error_budget_decide_as_the_gate_itself() -> None:
    rng = np.random.default_rng(3)
    noise = np.cumsum(rng.standard_normal((40, HELD_OUT + HORIZON)), axis=1)
    years = (noise[:, HORIZON:] - noise[:, :-HORIZON]) / math.sqrt(HORIZON)
    promoted = promoted_at({0: Looks.at(years, 0)}, [(0, 0.02)], 1.2, np.zeros(40, dtype=np.int64)) == 0
    first = date(2014, 1, 1)
    settings = GateSettings(min_decisions=HELD_OUT, return_margin=100.0)
    told = []
    for year in years + 1.2:
        rows = [
            PairedDecision(first + timedelta(days=day), "all", 0.0, value, 1.0, 1.0, True, True)
            for day, value in enumerate(year.tolist())
        ]
        verdict = evaluate_gate(GateEvidence(tuple(rows), HORIZON), settings)
        assert verdict.block == BLOCK
        told.append(verdict.promoted)
    assert 8 < sum(told) < 40
    assert (promoted == np.array(told)).sum() >= 37  # the quantile is the normal one there, and drawn here


def test_spells_of_a_policy_without_skill_know_nothing_and_last_as_long_as_they_say() -> None:
    drawn = sides(np.random.default_rng(5), 20_000, 3, "per-symbol")
    assert np.abs(drawn.mean(axis=0)).max() < 0.06
    # a turn draws a side anew, so every second one changes it
    assert (np.diff(drawn, axis=0) != 0).mean() == pytest.approx(0.5 / SPELL_SESSIONS, rel=0.1)
    assert np.ptp(sides(np.random.default_rng(5), 50, 3, "market-wide"), axis=1).max() == 0


def market(expected: list[float], sessions: list[int], scale: float = 0.04) -> Market:
    count = len(expected)
    return Market(tuple(sessions), ("",) * count, (0,) * count, np.array(expected), np.full(count, scale))


def test_the_reward_of_a_session_is_the_mean_of_its_decisions_net_of_costs_in_ordinary_moves() -> None:
    made = market([0.01, -0.01, 0.004, 0.0], [60, 60, 60, 61])
    bought, sold, held = (0.01 - ROUND_TRIP_COST) / 0.04, (0.01 - ROUND_TRIP_COST) / 0.04, 0.0
    assert rewards(made, [1, -1, 0, 1]) == pytest.approx([(bought + sold + held) / 3, -ROUND_TRIP_COST / 0.04])
    assert rewards(made, [0, 0, 0, 0]) == pytest.approx([0, 0])
    wrong = (-0.01 - ROUND_TRIP_COST) / 0.04
    assert rewards(made, [-1, 0, 0, 0]) == pytest.approx([wrong / 3, 0])


def test_each_decision_is_measured_by_the_volatility_of_its_own_session() -> None:
    made = Market((60, 61), ("", ""), (0, 0), np.array([0.01, 0.01]), np.array([0.02, 0.08]))
    calm, wild = rewards(made, [1, 1])
    assert calm == pytest.approx(4 * wild)


def test_an_answer_that_is_no_decision_takes_no_side() -> None:
    calls = ["strong_buy", "buy", "hold", "sell", "strong_sell"]
    texts = [encode_decision(call, 0.6, "rsi:50") for call in calls]
    assert sides_of([*texts, "", "buy", texts[0] + texts[0]]) == [1, 1, 0, -1, -1, 0, 0, 0]


def test_a_move_promotes_where_it_puts_a_version_into_service_whatever_its_reason_says() -> None:
    at = datetime(2014, 1, 2, tzinfo=UTC)
    assert promotes(Move(at, "champion", "v1", "none of the baselines is better"))
    assert not promotes(Move(at, "champion", None, "champion = v1 is withdrawn"))
    assert not promotes(Move(at, "challenger", "v1", "champion = v1"))
    assert str(Move(at, "champion", None, "withdrawn")) == "2014-01-02 champion = none: withdrawn"


def test_a_fresh_market_asks_every_session_and_symbol_that_has_a_past_and_a_horizon() -> None:
    scenario = scenario_of(FRESH_SEED, replace(WITH_EDGE, sessions=70), edge=True)
    made = market_of(scenario)
    symbols = len(scenario.symbols)
    rows = list(range(WARM_UP, 70 - scenario.horizon_sessions))
    assert made.sessions == tuple(row for row in rows for _ in range(symbols))
    truth = SimulatedFeed(scenario).market
    planted = [truth.expected_relative_return(name, truth.sessions[row]) for row in rows for name in scenario.symbols]
    assert made.expected == pytest.approx(planted)
    by_regime = {regime.name: regime.volatility * scenario.horizon_sessions**0.5 for regime in scenario.regimes}
    assert made.scale == pytest.approx(
        [by_regime[truth.regime(truth.sessions[row])] for row in rows for _ in range(symbols)]
    )
    assert all("rsi" in state_values(state) for state in made.states)
    assert rewards(made, np.sign(made.expected).astype(int).tolist()).mean() > rewards(made, made.rules).mean()
    assert rewards(made, np.ones(len(made.sessions), dtype=int).tolist()).max() < 0


def test_without_an_edge_the_planted_part_has_the_same_size_and_says_nothing() -> None:
    with_edge, without = (scenario_of(3, WITH_EDGE, edge=edge) for edge in (True, False))
    assert with_edge.replaced(shuffled=True) == without
    assert with_edge.seed == without.seed == 3
    assert not with_edge.shuffled
