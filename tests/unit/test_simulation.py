"""The simulated market: what is planted is what is earned, nothing more, and the past never depends on what comes after.

Statistical claims are tested on seeded independent markets, with intervals of three standard errors: about three false
alarms in a thousand seeds, none with these.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from datetime import date, timedelta
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.policies.base import PolicyRequest
from agents.policies.rules import RulesFundamental, RulesNews, RulesTechnical
from data_pipeline.asof_store import AsOfStore
from data_pipeline.feeds.factory import build_feed
from data_pipeline.feeds.replay import ReplayFeed
from data_pipeline.feeds.simulated import SimulatedFeed
from data_pipeline.sentiment import score_text
from data_pipeline.simulation.__main__ import main
from data_pipeline.simulation.export import export
from data_pipeline.simulation.generator import generate
from data_pipeline.simulation.headlines import TONES, sentence
from data_pipeline.simulation.history import SimulatedHistory, written
from data_pipeline.simulation.paths import Paths, simulate
from data_pipeline.simulation.scenario import AGENTS, MAX_ACCURACY, Agent, Regime, Scenario, generated_symbols
from data_pipeline.simulation.schedule import regime_schedule
from data_pipeline.simulation.settings import configured_scenario
from data_pipeline.simulation.signals import SIGNALS
from utils.errors import ConfigError
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import direction
from utils.setting_sections import SimulationSettings
from utils.settings import OrchestratorConfig

STEADY = (Regime(name="steady", volatility=0.014, news_rate=1.25),)
MARKETS = 16


def steady(sessions: int = 400, **edges: float) -> Scenario:
    return Scenario(regimes=STEADY, sessions=sessions, edges={agent: {"steady": edge} for agent, edge in edges.items()})


def relative(returns: np.ndarray) -> np.ndarray:
    return returns - returns.mean(axis=1, keepdims=True)


def realised(paths: Paths, horizon: int = 5) -> np.ndarray:
    """Returns from the open after a session to the close of the horizon, as far as they are known."""
    sessions = len(paths.close)
    return paths.close[horizon:] / paths.open[1 : sessions - horizon + 1] - 1


@lru_cache(maxsize=2)
def independent_markets(scenario: str, markets: int) -> list[Paths]:
    return [simulate(Scenario.model_validate_json(scenario).replaced(seed=seed)) for seed in range(markets)]


def over_markets(scenario: Scenario, figure: Callable[[Paths], float], markets: int = MARKETS) -> tuple[float, float]:
    """Return mean and standard error of a figure over independent markets."""
    values = [figure(paths) for paths in independent_markets(scenario.model_dump_json(), markets)]
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(markets))


def followed(agent: Agent, returns: Callable[[Paths], np.ndarray]) -> Callable[[Paths], float]:
    """Return what acting on the side of a signal earns in basis points, on the decisions that have one."""

    def figure(paths: Paths) -> float:
        earned = returns(paths)
        sides = np.sign(paths.signals[agent][: len(earned)])
        return 1e4 * float((sides * earned)[sides != 0].mean())

    return figure


def expected_relative(paths: Paths) -> np.ndarray:
    return relative(paths.expected)


def realised_relative(paths: Paths) -> np.ndarray:
    return relative(realised(paths))


@cache
def default_feed() -> SimulatedFeed:
    return SimulatedFeed(Scenario(sessions=160))


def loaded(feed: ReplayFeed) -> AsOfStore:
    store = AsOfStore(feed.calendar)
    for update in feed.history():
        store.add(update)
    for instant in feed.instants():
        for update in instant.updates:
            store.add(update)
    return store


# --- the same and the past


def test_equal_scenarios_give_equal_markets_and_another_seed_another() -> None:
    one, two, other = (simulate(Scenario(sessions=60, seed=seed)) for seed in (5, 5, 6))
    assert np.array_equal(one.close, two.close)
    assert one.filings[0].metrics == two.filings[0].metrics
    assert not np.array_equal(one.close, other.close)
    assert not np.array_equal(one.articles, other.articles)


def test_a_longer_market_begins_with_the_shorter_one() -> None:
    short, long = (generate(Scenario(sessions=sessions)) for sessions in (90, 140))
    for name in ("regimes", "open", "high", "low", "close", "volume", "articles", "tone", "expected"):
        assert np.array_equal(getattr(short.paths, name), getattr(long.paths, name)[:90]), name
    for one, two in zip(*(SimulatedHistory(market).news("SIMA").lines[:-1] for market in (short, long)), strict=False):
        assert one == two
    filings = [written(SimulatedHistory(market).fundamentals("SIMB")) for market in (short, long)]
    assert filings[1].startswith(filings[0])


def test_what_happens_after_a_session_leaves_everything_up_to_it_as_it_was() -> None:
    def switched(at: int, edge: float) -> Paths:
        regimes = (Regime(name="calm", starts=(0,)), Regime(name="wild", starts=(at,), volatility=0.03, news_rate=2.5))
        edges = {"technical": {"calm": 30.0, "wild": edge}, "news": {"wild": edge}}
        return simulate(Scenario(regimes=regimes, sessions=160, edges=edges))

    early, late = switched(100, 20.0), switched(130, -40.0)
    for name in ("open", "high", "low", "close", "volume", "articles", "tone"):
        assert np.array_equal(getattr(early, name)[:100], getattr(late, name)[:100]), name
    assert not np.array_equal(early.close[100:], late.close[100:])
    assert np.array_equal(early.signals["technical"][:100], late.signals["technical"][:100])


# --- regimes and noise


def test_fixed_switch_points_are_met_to_the_session() -> None:
    regimes = (Regime(name="calm", starts=(0, 70), volatility=0.01), Regime(name="wild", starts=(40,), volatility=0.03))
    market = generate(Scenario(regimes=regimes, sessions=100, edges={}))
    found = [(point.session, point.old, point.new) for point in market.change_points()]
    assert found == [(market.sessions[40], "calm", "wild"), (market.sessions[70], "wild", "calm")]
    assert [market.regime(market.sessions[row]) for row in (39, 40, 69, 70)] == ["calm", "wild", "wild", "calm"]


def test_prices_change_their_volatility_exactly_at_the_switch() -> None:
    regimes = (Regime(name="calm", starts=(0,), volatility=0.01), Regime(name="wild", starts=(40,), volatility=0.04))
    scenario = Scenario(regimes=regimes, sessions=60, edges={}, market_share=0.0, symbols=generated_symbols(200))
    returns = np.diff(np.log(simulate(scenario).close), axis=0)
    deviations = returns.std(axis=1)
    assert deviations[:39] == pytest.approx(np.full(39, 0.01), rel=0.25)
    assert deviations[39:] == pytest.approx(np.full(20, 0.04), rel=0.25)


def test_drawn_spells_have_the_stated_mean_length_and_never_stay_in_their_regime() -> None:
    regimes = tuple(Regime(name=name, mean_sessions=mean) for name, mean in (("a", 20), ("b", 40), ("c", 80)))
    schedule = regime_schedule(Scenario(regimes=regimes, edges={}, sessions=20_000), 60_000)
    ends = np.flatnonzero(np.diff(schedule))
    spells = np.diff(ends)
    reigning = schedule[ends[1:]]
    for index, mean in enumerate((20, 40, 80)):
        own = spells[reigning == index]
        assert abs(own.mean() - mean) < 3 * mean / math.sqrt(len(own))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_symbols_are_correlated_by_the_share_of_the_market(share: float) -> None:
    scenario = Scenario(regimes=STEADY, edges={}, market_share=share, sessions=2000)
    returns = np.diff(np.log(simulate(scenario).close), axis=0)
    correlations = np.corrcoef(returns.T)[np.triu_indices(8, 1)]
    assert correlations.mean() == pytest.approx(share, abs=0.04)
    assert returns.std() == pytest.approx(0.014, rel=0.03)


# --- the edge


@pytest.mark.parametrize("agent", AGENTS)
def test_acting_on_a_signal_earns_the_stated_edge(agent: Agent) -> None:
    scenario = steady(**{agent: 40.0})
    mean, error = over_markets(scenario, followed(agent, expected_relative))
    assert error < 1.5
    assert (
        abs(mean - 40) < 3 * error + 0.4
    )  # the technical deviation leaves out a drift of the mean, below one per cent
    mean, error = over_markets(scenario, followed(agent, realised_relative))
    assert error < 5
    assert abs(mean - 40) < 3 * error


def test_every_signal_earns_its_own_edge_beside_the_others_also_where_it_is_none_or_misleads() -> None:
    scenario = steady(news=-30.0, technical=0.0, fundamental=40.0)
    for agent, edge in (("news", -30.0), ("technical", 0.0), ("fundamental", 40.0)):
        mean, error = over_markets(scenario, followed(agent, expected_relative))
        assert error < 1.5, agent
        assert abs(mean - edge) < 3 * error + 0.5, agent


def test_the_edge_belongs_to_its_regime() -> None:
    regimes = (Regime(name="calm", mean_sessions=150), Regime(name="wild", mean_sessions=150, volatility=0.02))
    scenario = Scenario(regimes=regimes, edges={"technical": {"calm": 40.0}, "news": {"wild": 40.0}}, sessions=600)

    def within(agent: Agent, regime: int) -> Callable[[Paths], float]:
        def figure(paths: Paths) -> float:
            sides = np.sign(paths.signals[agent])
            inside = np.array([set(paths.regimes[row : row + 6]) == {regime} for row in range(len(sides))])
            chosen = (sides != 0) & inside[:, None]
            return 1e4 * float((sides * expected_relative(paths))[chosen].mean()) if chosen.any() else math.nan

        return figure

    for agent, regime, edge in (("technical", 0, 40.0), ("technical", 1, 0.0), ("news", 0, 0.0), ("news", 1, 40.0)):
        values = np.array(
            [within(agent, regime)(paths) for paths in independent_markets(scenario.model_dump_json(), 16)]
        )
        known = values[np.isfinite(values)]
        assert len(known) >= 10
        assert abs(known.mean() - edge) < 3 * known.std(ddof=1) / math.sqrt(len(known)) + 1.5, (agent, regime)


def test_returns_come_as_expected() -> None:
    scenario = steady(news=40.0, technical=40.0, fundamental=30.0)

    def slope(paths: Paths) -> float:
        came = realised_relative(paths)
        foreseen = expected_relative(paths)[: len(came)]
        return float((foreseen * came).sum() / (foreseen * foreseen).sum())

    mean, error = over_markets(scenario, slope, 24)
    assert error < 0.1
    assert abs(mean - 1) < 3 * error


def test_the_expected_return_reaches_from_the_next_open_to_the_close_of_the_horizon() -> None:
    drifting = Scenario(regimes=(Regime(name="steady", drift_bps=10.0),), edges={}, sessions=50, allow_predictable=True)
    market = generate(drifting)
    assert market.expected_return("SIMC", market.sessions[20]) == pytest.approx(math.expm1(5 * 10e-4), abs=1e-12)
    assert market.expected_relative_return("SIMC", market.sessions[20]) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ConfigError, match="SIMC"):
        market.expected_return("SIMCC", market.sessions[20])
    with pytest.raises(ConfigError, match="session"):
        market.expected_return("SIMC", date(1999, 1, 4))


# --- no edge


def momentum(paths: Paths) -> float:
    came = realised_relative(paths)
    past = np.log(paths.close[20:]) - np.log(paths.close[:-20])
    sides = np.sign(past[: len(came) - 20])
    return 1e4 * float((sides * came[20:]).mean())


@pytest.mark.parametrize("scenario", [steady(), steady(news=40, technical=30, fundamental=30).replaced(shuffled=True)])
def test_without_an_edge_neither_signals_nor_momentum_earn_anything(scenario: Scenario) -> None:
    assert np.abs(expected_relative(simulate(scenario))).max() < 1e-12
    for figure in (*(followed(agent, realised_relative) for agent in AGENTS), momentum):
        mean, error = over_markets(scenario, figure)
        assert error < 6
        assert abs(mean) < 3 * error


def test_a_shuffled_market_is_another_of_the_same_daily_volatility() -> None:
    scenario = steady(news=20, technical=20, fundamental=20)
    planted, shuffled = (simulate(kind) for kind in (scenario, scenario.replaced(shuffled=True)))
    assert np.array_equal(planted.articles, shuffled.articles)
    assert not np.array_equal(planted.close, shuffled.close)
    daily = [np.diff(np.log(paths.close), axis=0).std() for paths in (planted, shuffled)]
    assert daily[1] == pytest.approx(daily[0], rel=0.03)


def test_without_an_edge_the_rules_earn_nothing() -> None:
    policies = {"news": RulesNews(), "technical": RulesTechnical(), "fundamental": RulesFundamental()}
    detector = MarketRegimeDetector()
    earned: dict[str, list[float]] = {agent: [] for agent in AGENTS}
    for seed in range(3):
        feed = SimulatedFeed(steady(160).replaced(seed=seed))
        store = loaded(feed)
        came = realised_relative(feed.market.paths)
        for row in range(60, len(came), 5):
            session = feed.market.sessions[row]
            view = store.as_of(feed.calendar.close_time(session))
            snapshots = [view.snapshot(symbol, session) for symbol in feed.symbols]
            requests = [PolicyRequest(snapshot, detector.detect_regime(snapshot.inputs)) for snapshot in snapshots]
            for agent, policy in policies.items():
                sides = np.array([direction(answer.recommendation) for answer in policy.decide_many(requests)])
                earned[agent].append(float((sides * came[row]).mean()))
    for agent, values in earned.items():
        assert np.abs(values).sum() > 0, agent
        assert abs(np.mean(values)) < 3 * np.std(values, ddof=1) / math.sqrt(len(values)), agent


# --- how much can be known


def test_the_best_policy_is_right_as_often_as_the_oracle_says() -> None:
    scenario = Scenario(sessions=300)

    def right(paths: Paths) -> float:
        came = realised_relative(paths)
        return float((np.sign(expected_relative(paths)[: len(came)]) == np.sign(came)).mean())

    mean, error = over_markets(scenario, right, 24)
    stated = scenario.oracle().relative_accuracy
    assert 0.5 < stated.low < stated.value < stated.high < MAX_ACCURACY
    assert error < 0.008
    assert abs(mean - stated.value) < 3 * error + (stated.high - stated.low)


def test_the_oracle_earns_nothing_where_nothing_can_be_known() -> None:
    oracle = steady().oracle(replicates=3)
    assert oracle.relative_accuracy.value == pytest.approx(0.5)
    assert oracle.gross_return.value == pytest.approx(0.0, abs=1e-12)
    assert oracle.reward.value == 0.0
    assert oracle.acting.value == 0.0


def test_costs_take_their_share_of_what_the_oracle_earns() -> None:
    free, paid = (steady(technical=40.0).oracle(cost, 3) for cost in (0.0, 0.0016))
    assert free.net_return.value == pytest.approx(free.gross_return.value)
    assert 0 < paid.net_return.value < free.net_return.value - 0.0008
    assert paid.acting.value < free.acting.value


def test_a_market_that_can_be_foretold_too_often_is_refused_unless_it_is_allowed() -> None:
    scenario = steady(60, news=100.0, fundamental=100.0)
    with pytest.raises(ConfigError, match=r"allow_predictable"):
        generate(scenario)
    assert generate(scenario.replaced(allow_predictable=True)).paths.close.shape == (60, 8)


def test_an_edge_that_would_tear_the_prices_apart_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"edges .*'steady'.* lower them"):
        simulate(steady(60, technical=400.0))


def test_a_drift_that_gives_the_direction_away_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="drift_bps"):
        generate(Scenario(regimes=(Regime(name="up", drift_bps=40.0),), edges={}, sessions=60))


# --- what the agents see


def test_every_signal_can_be_read_from_what_the_agents_see() -> None:
    feed = default_feed()
    store = loaded(feed)
    seen: dict[Agent, list[tuple[float, float]]] = {agent: [] for agent in AGENTS}
    for session in feed.market.sessions[120::3]:
        view = store.as_of(feed.calendar.close_time(session))
        for symbol in feed.symbols:
            snapshot = view.snapshot(symbol, session)
            for agent in AGENTS:
                seen[agent].append((SIGNALS[agent](snapshot), feed.market.signal(agent, symbol, session)))
    for agent, pairs in seen.items():
        visible, planted = np.array(pairs).T
        assert np.abs(planted).max() > 0.5, agent
        assert np.abs(visible).max() <= 1, agent
        assert visible == pytest.approx(planted, abs=0.02), agent


def test_the_feed_rejects_none_of_its_own_records_and_infers_no_corporate_action() -> None:
    feed = default_feed()
    store = loaded(feed)
    at = feed.calendar.close_time(feed.market.sessions[-1])
    assert feed.rejected == {}
    for symbol in feed.symbols:
        assert store.as_of(at).actions(symbol, date.min) == ()
        assert len(store.as_of(at).bars(symbol, 1000)) == 160
        assert len(store.as_of(at).filings(symbol)) >= 5


def test_bars_are_ordered_and_traded_and_their_open_leaves_a_gap() -> None:
    paths = simulate(Scenario(sessions=300))
    assert np.all(paths.low <= np.minimum(paths.open, paths.close))
    assert np.all(paths.high >= np.maximum(paths.open, paths.close))
    assert np.all(paths.volume > 0)
    gaps, moves = np.log(paths.open[1:] / paths.close[:-1]), np.diff(np.log(paths.close), axis=0)
    assert gaps.var() / moves.var() == pytest.approx(0.2, abs=0.03)


def test_the_lexicon_hears_the_tone_of_every_headline() -> None:
    for tone, templates in TONES.items():
        for choice in np.linspace(0, 0.999, 6 * 48):
            assert tone * score_text(sentence("SIMA", tone, float(choice), 12, 1)) > 0.3, (tone, choice)
        assert len(set(templates)) == 6


def test_articles_come_within_their_sessions_and_none_is_repeated() -> None:
    feed = default_feed()
    news = [update for instant in feed.instants() for update in instant.updates if update.update_type == "news"]
    assert len(news) > 500
    for update in news:
        session = update.event_time.date()
        assert feed.calendar.open_time(session) <= update.event_time < feed.calendar.close_time(session)
    assert len({(update.symbol, update.data.text) for update in news}) == len(news)


def test_news_comes_as_often_as_the_regime_says_alone_or_in_chorus() -> None:
    paths = simulate(Scenario(regimes=STEADY, edges={}, sessions=1500))
    assert paths.articles.mean() == pytest.approx(1.25, abs=0.06)
    assert set(np.unique(paths.articles)) == {0, 1, 3, 4, 5}
    assert (paths.articles == 1).mean() == pytest.approx((paths.articles >= 3).mean(), abs=0.02)
    assert not simulate(Scenario(regimes=(Regime(name="quiet", news_rate=0),), edges={}, sessions=50)).articles.any()


def test_filings_come_once_a_quarter_and_five_are_known_by_the_first_quarter() -> None:
    market = generate(Scenario(sessions=140))
    for filings in market.paths.filings:
        assert set(np.diff(filings.sessions)) == {63}
        assert filings.sessions[0] < -189
        assert all(set(metrics) == set(filings.metrics[0]) for metrics in filings.metrics)
    days = [market.filing_session(number) for number in market.paths.filings[0].sessions.tolist()]
    assert all(timedelta(80) < later - earlier < timedelta(100) for earlier, later in pairwise(days))


# --- the feed and its identity


def test_the_feed_is_simulated_in_name_mode_and_every_update() -> None:
    feed = default_feed()
    first = next(feed.instants())
    assert feed.mode == "simulated"
    assert feed.name == "simulated:seed 42"
    assert {update.source for update in first.updates} == {feed.name}
    assert feed.identity()["feed"] == "simulated"
    assert feed.total_instants == 160


@pytest.mark.parametrize(
    "change",
    [{"seed": 43}, {"edges": {}}, {"horizon_sessions": 6}, {"shuffled": True}, {"allow_predictable": True}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_the_scenario_states_is_part_of_the_data_s_identity(change: dict[str, Any]) -> None:
    scenario = Scenario(sessions=20)
    one, two = SimulatedFeed(scenario).identity(), SimulatedFeed(scenario.replaced(**change)).identity()
    assert one["period"] == two["period"]
    assert one["data_hashes"] != two["data_hashes"]


def test_the_period_cuts_the_simulation_as_it_does_a_replay() -> None:
    feed = SimulatedFeed(Scenario(sessions=60), date(2005, 2, 1), date(2005, 2, 28))
    assert feed.total_instants == 19
    assert any(update.update_type == "bar" for update in feed.history())


def test_a_market_that_reaches_into_the_future_is_refused() -> None:
    with pytest.raises(ConfigError, match="start earlier"):
        SimulatedFeed(Scenario(sessions=60, start=date.today() - timedelta(days=30)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"edges": {"news": {"clam": 5}}}, ["edges.news", "clam", "calm"]),
        ({"edges": {"oracle": {"calm": 5}}}, ["edges", "oracle"]),
        ({"symbols": ("ONE",), "edges": {"news": {"calm": 5}}}, ["symbols", "two or more"]),
        ({"symbols": ("../x", "B")}, ["symbols", "ticker symbol"]),
        ({"regimes": (), "edges": {}}, ["regimes"]),
        ({"regimes": ({"name": "a", "starts": (3,)},), "edges": {}}, ["regimes", "session 0"]),
        ({"regimes": ({"name": "a"}, {"name": "a"}), "edges": {}}, ["regimes", "twice"]),
        ({"regimes": ({"name": "a", "starts": (0,)}, {"name": "b", "starts": (0,)}), "edges": {}}, ["same session"]),
        ({"regimes": ({"name": "a", "news_rate": 3},), "edges": {}}, ["news_rate"]),
        ({"horizon_sessions": 2}, ["horizon_sessions"]),
        ({"sesions": 100}, ["sesions"]),
    ],
)
def test_a_scenario_that_cannot_work_is_refused_in_one_line(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Scenario(**fields)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_one_symbol_alone_may_be_simulated_without_an_edge() -> None:
    assert simulate(Scenario(symbols=("one",), edges={}, sessions=20)).close.shape == (20, 1)


def test_settings_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("sessions: 70\nseed: 9\nmarket_share: 0.5\n")
    found = configured_scenario(SimulationSettings(scenario=path, sessions=80, edge_bps=12), seed=3)
    assert (found.sessions, found.seed, found.market_share) == (80, 9, 0.5)
    assert {edge for by_regime in found.edges.values() for edge in by_regime.values()} == {12}
    assert configured_scenario(SimulationSettings(), seed=3) == Scenario(seed=3)
    assert configured_scenario(SimulationSettings(seed=4, symbols=("a", "b")), ("X", "Y"), 3).symbols == ("X", "Y")


def test_the_feed_of_a_configuration_is_the_scenario_s(tmp_path: Path) -> None:
    config = OrchestratorConfig(
        feed="simulated", streaming_symbols=["bbb", "aaa"], random_state=7, simulation={"sessions": 30, "edge_bps": 0}
    )
    feed = build_feed(config)
    assert isinstance(feed, SimulatedFeed)
    assert feed.symbols == ("AAA", "BBB")
    assert feed.market.scenario == Scenario(seed=7, sessions=30, symbols=("AAA", "BBB")).with_edge(0)
    assert config.identity() == OrchestratorConfig(random_state=7).identity()  # the feed's own identity has it


@pytest.mark.parametrize("symbols", [("ONE",), ("ONE", "TWO"), ("ONE", "TWO", "THREE")])
def test_the_default_edges_suit_a_market_of_few_symbols(symbols: tuple[str, ...]) -> None:
    scenario = configured_scenario(SimulationSettings(symbols=symbols, sessions=30))
    assert generate(scenario).scenario.edge("technical", "calm") == pytest.approx(
        30e-4 * (len(symbols) - 1) / len(symbols) / (7 / 8), abs=1e-5
    )


@pytest.mark.parametrize("text", ["- 1\n", "seed: [\n", "sessions: many\n"])
def test_a_scenario_file_that_cannot_be_read_names_what_is_wrong(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="scenario"):
        configured_scenario(SimulationSettings(scenario=path))


# --- the export


def test_the_export_is_byte_for_byte_what_the_feed_reads_and_tells_the_truth_beside_it(tmp_path: Path) -> None:
    feed = SimulatedFeed(Scenario(sessions=90))
    folder = tmp_path / "market"
    export(feed.market, folder)
    replay = ReplayFeed(folder)
    hashes = feed.identity()["data_hashes"]
    assert replay.identity()["data_hashes"] == {name: value for name, value in hashes.items() if name != "scenario"}
    pairs = list(zip(feed.instants(), replay.instants(), strict=True))
    assert len(pairs) == 90
    for one, two in pairs:
        assert (one.at, one.session) == (two.at, two.session)
        assert [update.data for update in one.updates] == [update.data for update in two.updates]
    with (folder / "expected" / "SIMD.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [date.fromisoformat(row["Date"]) for row in rows] == list(feed.market.sessions)
    for row, session in zip(rows, feed.market.sessions, strict=True):
        assert float(row["ExpectedReturn"]) == pytest.approx(feed.expected_return("SIMD", session), abs=1e-9)
    with (folder / "change_points.csv").open() as file:
        switches = [(row["Date"], row["From"], row["To"]) for row in csv.DictReader(file)]
    assert switches == [(point.session.isoformat(), point.old, point.new) for point in feed.change_points()]
    assert switches
    assert Scenario.from_yaml(folder / "scenario.yaml") == feed.market.scenario


def test_the_command_exports_a_market_and_says_what_can_be_earned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main(["--output", str(folder), "--sessions", "30", "--seed", "3", "--symbols", "4", "--edge_bps", "0"]) == 0
    said = capsys.readouterr().out
    assert "generated data" in said
    assert "against the market in 50.0%" in said
    assert sorted(path.name for path in (folder / "prices").iterdir()) == [f"SIM{letter}.csv" for letter in "ABCD"]
    assert main(["--output", str(folder)]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--sessions", "3"], ["--start", "tomorrow"], ["--scenario", "/nowhere.yaml"], ["--symbols", "0"]]
)
def test_a_wrong_setting_of_the_command_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["--output", str(tmp_path / "out"), *arguments]) == 2
    assert arguments[0].removeprefix("--") in capsys.readouterr().err
