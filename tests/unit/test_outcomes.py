"""What became of a decision: entry, exit, dividends, splits, benchmark, and the reward each opinion earned by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any

import pytest

from data_pipeline.asof_store import AsOfStore
from data_pipeline.calendar import ExchangeCalendar
from judge.reward_calculator import RewardCalculator, RewardHistory, TradingOutcome
from orchestration.execution.outcomes import OpenDecision, Opinion, OutcomeTracker, Settlement
from utils.schema import Bar, MarketUpdate

CALENDAR = ExchangeCalendar("XNYS", start=date(2014, 1, 2), end=date(2014, 12, 31))
SESSIONS = CALENDAR.sessions(date(2014, 6, 2), date(2014, 7, 31))
FLAT = [100.0] * 12


class Market:
    """Bars by symbol: closes, and opens where they differ from the close before."""

    def __init__(self) -> None:
        self.store = AsOfStore(CALENDAR)
        self._bars: list[Bar] = []

    def add(
        self,
        symbol: str,
        closes: Sequence[float | None],
        opens: dict[int, float] | None = None,
        factors: dict[int, float] | None = None,
        lows: dict[int, float] | None = None,
        highs: dict[int, float] | None = None,
    ) -> Market:
        previous = closes[0] or 100.0
        for place, close in enumerate(closes):
            if close is None:
                continue
            day = SESSIONS[place]
            opened = (opens or {}).get(place, previous)
            high = (highs or {}).get(place, max(opened, close))
            low = (lows or {}).get(place, min(opened, close))
            at = CALENDAR.close_time(day)
            self._bars.append(
                Bar(
                    symbol, day, CALENDAR.open_time(day), at, at, opened, high, low, close, 1e6,
                    (factors or {}).get(place, 1.0), 1e-6,
                )
            )  # fmt: skip
            previous = close
        return self

    def view(self, place: int):
        """Load everything up to a session and look at its close."""
        store = AsOfStore(CALENDAR)
        for made in sorted(self._bars, key=lambda b: (b.available_at, b.symbol)):
            store.add(MarketUpdate(made.symbol, "bar", made, made.event_time, made.available_at, "test"))
        return store.as_of(CALENDAR.close_time(SESSIONS[place]))


def tracker(horizon: int = 5, cost: float = 0.0008, weight: float = 0.2, **calculator: Any) -> OutcomeTracker:
    return OutcomeTracker(CALENDAR, horizon, cost, RewardCalculator(**calculator), weight)


def decision(place: int = 0, symbol: str = "AAA", *opinions: Opinion) -> OpenDecision:
    made = opinions or (Opinion(f"{symbol}-{place}", "technical", "buy", 0.7),)
    day = SESSIONS[place]
    return OpenDecision(f"d-{symbol}-{place}", symbol, CALENDAR.close_time(day), day, 0.02, made)


def settle(made: OutcomeTracker, market: Market, place: int, universe: Sequence[str] = ("AAA",)) -> Settlement:
    at: datetime = CALENDAR.close_time(SESSIONS[place])
    return made.settle(market.view(place), SESSIONS[place], at, universe)


def test_nothing_settles_before_the_horizon_and_everything_at_it() -> None:
    made, market = tracker(), Market().add("AAA", FLAT)
    made.track(decision(0))
    for place in range(1, 5):
        assert settle(made, market, place).updates == []
    assert made.backlog == 1
    [update] = settle(made, market, 5).updates
    assert made.backlog == 0
    assert update.matured_at == CALENDAR.close_time(SESSIONS[5])
    assert settle(made, market, 5).updates == []


def test_holidays_and_weekends_are_no_sessions_of_the_horizon() -> None:
    made = tracker()
    thursday = SESSIONS.index(date(2014, 7, 3))  # the 4th of July and a weekend follow
    market = Market().add("AAA", [100.0] * 30)
    made.track(decision(thursday))
    assert settle(made, market, thursday + 4).updates == []
    [(_, outcome)] = settle(made, market, SESSIONS.index(date(2014, 7, 11))).outcomes
    assert outcome.entry_session == date(2014, 7, 7)


def test_entry_is_the_next_open_and_exit_the_close_of_the_horizon() -> None:
    market = Market().add("AAA", [100, 108, 109, 110, 111, 121, 500], opens={1: 110.0})
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 5).outcomes
    assert outcome.actual_return == pytest.approx(121 / 110 - 1)
    assert outcome.entry_session == SESSIONS[1]
    assert outcome.horizon_sessions == 5


def test_a_dividend_inside_the_horizon_belongs_to_the_return() -> None:
    market = Market().add("AAA", [100, 100, 100, 98, 98, 98], opens={3: 98.0}, factors={3: 1 / (1 - 2 / 100)})
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 5).outcomes
    assert outcome.actual_return == pytest.approx(0.0, abs=1e-6)


def test_a_dividend_on_the_day_of_entry_goes_to_the_seller() -> None:
    market = Market().add("AAA", [100, 98, 98, 98, 98, 98], opens={1: 98.0}, factors={1: 1 / (1 - 2 / 100)})
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 5).outcomes
    assert outcome.actual_return == pytest.approx(0.0, abs=1e-9)


def test_a_split_inside_the_horizon_changes_no_return() -> None:
    market = Market().add("AAA", [100, 100, 100, 25, 25, 27.5], opens={3: 25.0}, factors={3: 4.0})
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 5).outcomes
    assert outcome.actual_return == pytest.approx(0.1)
    assert outcome.max_drawdown == pytest.approx(0.0, abs=1e-9)


def test_a_dividend_before_a_split_is_counted_in_new_shares() -> None:
    market = Market().add(
        "AAA", [100, 100, 96, 24, 24, 24], opens={2: 96.0, 3: 24.0}, factors={2: 1 / (1 - 4 / 100), 3: 4.0}
    )
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 5).outcomes
    assert outcome.actual_return == pytest.approx(0.0, abs=1e-6)


def test_the_benchmark_is_the_mean_of_the_universe_each_symbol_alike() -> None:
    market = Market().add("AAA", [100, 100, 100, 100, 100, 110]).add("BBB", [10, 10, 10, 10, 10, 10])
    market.add("CCC", [500, 500, 500, 500, 500, 450])
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 5, ("AAA", "BBB", "CCC")).outcomes
    assert outcome.benchmark_return == pytest.approx((0.1 + 0.0 - 0.1) / 3, abs=1e-9)


def test_a_symbol_of_the_universe_without_bars_is_left_out_of_the_benchmark() -> None:
    market = Market().add("AAA", [100, 100, 100, 100, 100, 110])
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 5, ("AAA", "ZZZ")).outcomes
    assert outcome.benchmark_return == pytest.approx(0.1)


def test_a_decision_on_a_symbol_that_stopped_trading_is_counted_and_dropped() -> None:
    market = Market().add("AAA", [100.0, *[None] * 9]).add("BBB", FLAT)
    made = tracker()
    made.track(decision(0))
    made.track(decision(0, "BBB"))
    result = settle(made, market, 5, ("AAA", "BBB"))
    assert [open_decision.symbol for open_decision, _ in result.outcomes] == ["BBB"]
    assert [open_decision.symbol for open_decision in result.unsettled] == ["AAA"]
    assert made.backlog == 0


def test_a_halt_of_some_days_enters_at_the_first_open_there_is() -> None:
    market = Market().add("AAA", [100, None, None, 90, 90, 99], opens={3: 90.0})
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 5).outcomes
    assert outcome.entry_session == SESSIONS[3]
    assert outcome.actual_return == pytest.approx(0.1)


def test_a_decision_settled_late_is_measured_over_its_own_horizon() -> None:
    market = Market().add("AAA", [100, 100, 105, 105, 105, 110, 50, 40, 30], opens={1: 100.0})
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 8).outcomes
    assert outcome.entry_session == SESSIONS[1]
    assert outcome.actual_return == pytest.approx(0.1)


def test_drawdown_and_rise_are_measured_inside_the_horizon() -> None:
    market = Market().add(
        "AAA", [100, 100, 120, 100, 100, 100], opens={1: 100.0}, lows={3: 90.0}, highs={2: 125.0, 5: 108.0}
    )
    made = tracker()
    made.track(decision(0))
    [(_, outcome)] = settle(made, market, 5).outcomes
    assert outcome.max_drawdown == pytest.approx(90 / 120 - 1)
    assert outcome.max_rise == pytest.approx(0.25)


def test_a_seller_suffers_from_the_rise_and_a_buyer_from_the_fall() -> None:
    market = Market().add("AAA", [100, 100, 130, 100, 80, 100], opens={1: 100.0})
    made = tracker()
    opinions = (Opinion("b", "technical", "buy", 0.6), Opinion("s", "news", "sell", 0.6))
    made.track(decision(0, "AAA", *opinions))
    updates = {update.trajectory_id: update for update in settle(made, market, 5).updates}
    assert updates["b"].max_drawdown == pytest.approx(80 / 130 - 1)
    assert updates["s"].max_drawdown == pytest.approx(-0.3)


def test_a_side_pays_the_round_trip_and_a_hold_nothing() -> None:
    market = Market().add("AAA", FLAT)
    made = tracker(cost=0.001)
    opinions = (Opinion("buy", "technical", "buy", 0.6), Opinion("hold", "news", "hold", 0.6))
    made.track(decision(0, "AAA", *opinions))
    updates = {update.trajectory_id: update for update in settle(made, market, 5).updates}
    assert updates["buy"].costs == pytest.approx(0.002)
    assert not updates["buy"].success
    assert updates["hold"].costs == 0.0
    assert updates["hold"].success


@pytest.mark.parametrize(
    ("recommendation", "end", "success"),
    [
        ("buy", 101.0, True),
        ("strong_buy", 100.1, False),
        ("sell", 99.0, True),
        ("strong_sell", 101.0, False),
        ("hold", 101.9, True),
        ("hold", 102.1, False),
        ("hold", 97.9, False),
    ],
)
def test_success_is_the_right_side_after_costs_or_a_quiet_hold(recommendation, end, success) -> None:
    market = Market().add("AAA", [100, 100, 100, 100, 100, end])
    made = tracker()
    made.track(decision(0, "AAA", Opinion("t", "technical", recommendation, 0.6)))
    [update] = settle(made, market, 5).updates
    assert update.success is success


def test_the_grade_enters_the_reward_with_its_weight() -> None:
    market = Market().add("AAA", [100, 100, 100, 100, 100, 105])
    plain, graded, doubted = tracker(), tracker(), tracker()
    rewards = []
    for made, scores in ((plain, {}), (graded, {"AAA-0": 90.0, "someone-else": 10.0}), (doubted, {"AAA-0": 0.0})):
        made.track(decision(0))
        made.graded(scores)
        rewards.append(settle(made, market, 5).updates[0].reward)
    assert rewards[1] == pytest.approx(0.8 * rewards[0] + 0.2 * 0.8)
    assert rewards[2] == pytest.approx(0.8 * rewards[0] - 0.2)


def test_a_grade_that_comes_after_the_outcome_is_not_kept_for_anything() -> None:
    market = Market().add("AAA", [100, 100, 100, 100, 100, 105])
    late, plain = tracker(), tracker()
    for made in (late, plain):
        made.track(decision(0))
    assert settle(late, market, 5).updates[0].reward == settle(plain, market, 5).updates[0].reward
    late.graded({"AAA-0": 90.0})
    late.track(decision(0))
    plain.track(decision(0))
    assert settle(late, market, 5).updates[0].reward == settle(plain, market, 5).updates[0].reward


def test_the_reward_is_that_of_the_calculator_on_the_same_facts() -> None:
    market = Market().add("AAA", [100, 100, 100, 100, 100, 105]).add("BBB", FLAT)
    made = tracker(volatility_scaling=True)
    made.track(decision(0))
    [update] = settle(made, market, 5, ("AAA", "BBB")).updates
    outcome = TradingOutcome(
        "AAA", "buy", actual_return=0.05, max_drawdown=0.0, holding_period=5.0, predicted_confidence=0.7, costs=0.0016,
        volatility=0.02,
    )  # fmt: skip
    expected = RewardCalculator(volatility_scaling=True).calculate_reward(outcome, 0.025, apply_risk=False)
    assert update.reward == pytest.approx(expected.total_reward, abs=1e-9)


def test_only_the_strategist_answers_for_size_and_stop() -> None:
    market = Market().add("AAA", FLAT)
    made = tracker()
    opinions = (Opinion("t", "technical", "buy", 0.5), Opinion("s", "strategist", "buy", 0.5, None, 0.3))
    made.track(decision(0, "AAA", *opinions))
    technical, strategist = settle(made, market, 5).updates
    assert technical.reward - strategist.reward == pytest.approx(0.3 * (2 * (0.3 - 0.15) + 0.1))


def test_the_calibrated_probability_goes_before_the_stated_confidence() -> None:
    market = Market().add("AAA", [100, 100, 100, 100, 100, 110])
    stated, calibrated = tracker(), tracker()
    stated.track(decision(0, "AAA", Opinion("t", "technical", "buy", 0.9)))
    calibrated.track(decision(0, "AAA", Opinion("t", "technical", "buy", 0.2, p_correct=0.9)))
    assert settle(stated, market, 5).updates == settle(calibrated, market, 5).updates


def test_calls_that_mature_together_do_not_see_one_another() -> None:
    market = Market().add("AAA", [100, 100, 100, 100, 100, 110]).add("BBB", [100, 100, 100, 100, 100, 110])
    alone, together = tracker(), tracker()
    alone.track(decision(0, "BBB"))
    together.track(decision(0, "AAA"))
    together.track(decision(0, "BBB"))
    universe = ("AAA", "BBB")
    [expected] = settle(alone, market, 5, universe).updates
    assert settle(together, market, 5, universe).updates[1] == expected


def test_calls_that_matured_before_are_the_base_rate_of_the_next() -> None:
    market = Market().add("AAA", [100.0 * 1.05**place for place in range(12)])
    made = tracker()
    made.track(decision(0))
    made.track(decision(1))
    first = settle(made, market, 5).updates[0]
    second = settle(made, market, 6).updates[0]
    assert second.actual_return == pytest.approx(first.actual_return)
    # a right call where such calls were always right earns no more than its base rate: 4·((1 - 1)² - (.7 - 1)²)·.2
    assert second.reward - first.reward == pytest.approx(0.2 * 4 * (0.0 - 0.25), abs=1e-6)


def test_a_restored_history_is_worth_what_the_calls_themselves_were() -> None:
    market = Market().add("AAA", [100.0 * 1.01**place for place in range(12)])
    lived, restored = tracker(), tracker()
    lived.track(decision(0))
    [update] = settle(lived, market, 5).updates
    restored.restore_history("technical", [("buy", update.actual_return - (update.costs or 0.0), update.success)])
    for made in (lived, restored):
        made.track(decision(2))
    assert settle(lived, market, 7).updates == settle(restored, market, 7).updates
    assert isinstance(lived._histories["technical"], RewardHistory)


def test_successes_are_counted_by_agent() -> None:
    market = Market().add("AAA", [100, 100, 100, 100, 100, 110])
    made = tracker()
    opinions = (
        Opinion("a", "technical", "buy", 0.6),
        Opinion("b", "news", "sell", 0.6),
        Opinion("c", "strategist", "buy", 0.6),
    )
    made.track(decision(0, "AAA", *opinions))
    assert settle(made, market, 5).successes == {"technical": 1, "strategist": 1}


def test_a_grade_that_never_met_an_outcome_is_not_kept_for_ever() -> None:
    market = Market().add("AAA", [100.0, *[None] * 9])
    made = tracker()
    made.graded({"AAA-0": 50.0})
    made.track(decision(0))
    settle(made, market, 5)
    assert made._scores == {}


def test_a_shadows_opinion_is_settled_like_any_and_counts_for_nothing_else() -> None:
    served = Opinion("served", "technical", "sell", 0.7)
    shadow = Opinion("shadow", "technical", "buy", 0.9, policy="local:technical@1")
    with_shadow, alone, market = tracker(), tracker(), Market().add("AAA", [100.0 + place for place in range(12)])
    with_shadow.track(replace(decision(0, "AAA", served), shadows=(shadow,)))
    alone.track(decision(0, "AAA", served))
    with_shadow.graded({"shadow": 100.0})
    beside, without = settle(with_shadow, market, 5), settle(alone, market, 5)
    assert [update.trajectory_id for update in beside.updates] == ["served", "shadow"]
    assert beside.updates[:1] == without.updates
    assert beside.updates[1].success
    assert beside.updates[1].reward > 0
    assert (beside.matured, beside.successes) == (without.matured, without.successes) == (without.matured, {})
    for made in (with_shadow, alone):
        made.track(decision(1, "AAA", Opinion("next", "technical", "buy", 0.7)))
    assert settle(with_shadow, market, 6).updates == settle(alone, market, 6).updates
