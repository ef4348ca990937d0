"""The technical rules: figures against independent formulas, clean levels and evidence, and sides that are taken."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_factory import AS_OF, make_bars, make_request, make_snapshot, window

from agents.policies.rules.technical import LEAST_CONFIDENCE, MOST_CONFIDENCE, RulesTechnical
from data_pipeline.chart import PATTERNS
from data_pipeline.indicators import MIN_BARS, UNITS
from utils.schema import BarWindow, MarketSnapshot, RegimeInputs, TechnicalOutput, direction

POLICY = RulesTechnical()


def decide(bars: BarWindow, **fields: object) -> TechnicalOutput:
    output = POLICY.decide_many([make_request(make_snapshot(bars, **fields))])[0]  # type: ignore[arg-type]
    assert isinstance(output, TechnicalOutput)
    return output


bar_windows = st.builds(
    make_bars,
    n=st.integers(MIN_BARS, 320),
    drift=st.floats(-0.02, 0.02),
    vol=st.sampled_from([0.0, 1e-5, 0.005, 0.015, 0.06]),
    seed=st.integers(0, 10_000),
    price=st.sampled_from([0.02, 0.9, 7.0, 120.0, 50_000.0]),
)


@pytest.fixture(scope="module")
def walks() -> list[TechnicalOutput]:
    """Opinions on 150 driftless walks."""
    return [decide(make_bars(seed=seed)) for seed in range(150)]


@settings(max_examples=60)
@given(bar_windows)
def test_every_opinion_validates_and_holds_only_finite_numbers(bars: BarWindow) -> None:
    output = decide(bars)
    again = TechnicalOutput.model_validate(output.model_dump())
    assert again == output
    numbers = [output.confidence, *output.signals.values(), *output.indicators.values(), *output.support_levels]
    numbers += [*output.resistance_levels, *(float(item.value) for item in output.evidence)]
    assert all(math.isfinite(number) for number in numbers)


@settings(max_examples=60)
@given(bar_windows)
def test_levels_lie_on_their_side_and_are_extremes_of_bars(bars: BarWindow) -> None:
    output = decide(bars)
    price = output.current_price or 0.0
    assert output.support_levels
    assert output.resistance_levels
    assert all(level <= price for level in output.support_levels)
    assert all(level >= price for level in output.resistance_levels)
    extremes = np.concatenate([bars.low, bars.high])
    for level in (*output.support_levels, *output.resistance_levels):
        assert np.min(np.abs(extremes / level - 1)) <= 0.01


@settings(max_examples=60)
@given(bar_windows, st.floats(-1, 1))
def test_no_opinion_stands_against_rsi_trend_strength_or_its_own_signal(bars: BarWindow, strength: float) -> None:
    output = decide(bars, inputs=RegimeInputs(0.4, strength, 0.0, 0.01))
    rsi = output.indicators.get("rsi_14", 50.0)
    side = direction(output.recommendation)
    assert (side, rsi > 70) != (1, True)
    assert (side, rsi < 30) != (-1, True)
    assert direction(output.signal) == side
    clear = "uptrend" if strength > 0.6 else "downtrend" if strength < -0.6 else output.trend
    assert output.trend == clear


@settings(max_examples=40)
@given(bar_windows)
def test_every_indicator_has_its_evidence_and_oscillators_stay_in_range(bars: BarWindow) -> None:
    output = decide(bars)
    evidence = {item.id: item for item in output.evidence}
    assert set(evidence) == {"bar:close", *(f"ind:{name}" for name in output.indicators)}
    assert len(evidence) == len(output.evidence)
    for name, value in output.indicators.items():
        item = evidence[f"ind:{name}"]
        assert (item.value, item.kind, item.unit, item.bar_interval) == (value, "indicator", UNITS[name], "1d")
        assert item.event_time <= item.available_at <= output.as_of
    for name in {"rsi_14", "stoch_k", "stoch_d", "mfi_14", "adx_14"} & output.indicators.keys():
        assert 0 <= output.indicators[name] <= 100
    assert len(output.indicators) >= 3


@settings(max_examples=40)
@given(bar_windows)
def test_every_number_of_the_reasoning_stands_in_the_evidence(bars: BarWindow) -> None:
    output = decide(bars)
    known = np.array([float(item.value) for item in output.evidence])
    words = output.reasoning.replace(",", " ").replace(";", " ").replace("(", " ").replace(")", " ").split()
    for word in words:
        text = word.rstrip(".")
        number = _number(text)
        assert number is None or np.min(np.abs(known - number)) <= 0.01 * max(abs(number), 1e-9)
    assert sum(character.isalpha() for character in output.reasoning) >= 50


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def test_indicators_equal_independent_formulas() -> None:
    bars = make_bars(n=250, seed=5)
    close = bars.close
    found = decide(bars).indicators
    assert found["sma_20"] == pytest.approx(close[-20:].mean(), rel=1e-5)
    assert found["sma_200"] == pytest.approx(close[-200:].mean(), rel=1e-5)
    assert found["bb_upper"] == pytest.approx(close[-20:].mean() + 2 * close[-20:].std(), rel=1e-5)
    moves = np.diff(close)
    gain, loss = np.maximum(moves, 0), np.maximum(-moves, 0)
    up, down = gain[:14].mean(), loss[:14].mean()
    for i in range(14, len(moves)):
        up, down = (13 * up + gain[i]) / 14, (13 * down + loss[i]) / 14
    assert found["rsi_14"] == pytest.approx(100 * up / (up + down), abs=1e-4)
    ema = close[:12].mean()
    for value in close[12:]:
        ema += 2 / 13 * (value - ema)
    assert found["ema_12"] == pytest.approx(ema, rel=1e-5)
    ranges = np.maximum(bars.high[1:], close[:-1]) - np.minimum(bars.low[1:], close[:-1])
    atr = ranges[:14].mean()
    for value in ranges[14:]:
        atr = (13 * atr + value) / 14
    assert found["atr_14"] == pytest.approx(atr, abs=1e-4)
    fast = [
        (close[i] - bars.low[i - 13 : i + 1].min()) / (bars.high[i - 13 : i + 1].max() - bars.low[i - 13 : i + 1].min())
        for i in range(len(close) - 5, len(close))
    ]
    slow = np.convolve(fast, np.ones(3) / 3, "valid")
    assert found["stoch_k"] == pytest.approx(100 * slow[-1], abs=1e-4)
    assert found["stoch_d"] == pytest.approx(100 * slow.mean(), abs=1e-4)


def test_the_long_average_needs_two_hundred_bars() -> None:
    assert "sma_200" not in decide(make_bars(n=199)).indicators
    assert "sma_200" in decide(make_bars(n=200)).indicators


@pytest.mark.parametrize("count", [0, 1, 49])
def test_fewer_than_fifty_bars_are_an_abstention(count: int) -> None:
    output = decide(make_bars(n=max(count, 1)) if count else window(np.empty(0)), inputs=RegimeInputs(0.5, 0, 0, 0))
    assert (output.abstained, output.recommendation, output.confidence) == (True, "hold", 0.0)
    assert str(count) in (output.abstain_reason or "")


def test_a_stale_snapshot_is_an_abstention() -> None:
    assert decide(make_bars(), stale=True).abstained


def test_a_price_that_never_moved_is_a_hold_without_invented_oscillators() -> None:
    output = decide(window(np.full(120, 50.0)))
    assert output.recommendation == "hold"
    assert not {"rsi_14", "stoch_k", "mfi_14"} & output.indicators.keys()


def test_without_volume_there_is_neither_money_flow_nor_a_volume_vote() -> None:
    bars = make_bars(seed=2)
    output = decide(window(bars.close, high=bars.high, low=bars.low, open=bars.open, volume=np.zeros(300)))
    assert "mfi_14" not in output.indicators
    assert "volume" not in output.signals


@pytest.mark.parametrize(("last", "sign"), [(2.0, 1), (0.4, -1)])
def test_the_volume_vote_has_the_sign_of_the_twenty_bar_ratio(last: float, sign: int) -> None:
    bars = make_bars(seed=4)
    volume = np.full(300, 1e6)
    volume[-1] *= last
    output = decide(window(bars.close, high=bars.high, low=bars.low, open=bars.open, volume=volume))
    assert math.copysign(1, output.signals["volume"]) == sign


def test_a_pullback_in_a_rising_trend_is_bought_and_a_bounce_in_a_falling_one_sold() -> None:
    rise = np.concatenate([100 * 1.003 ** np.arange(280), 100 * 1.003**279 * 0.992 ** np.arange(1, 7)])
    noise = 1 + 0.002 * np.sin(np.arange(286) * 2.1)
    assert direction(decide(window(rise * noise)).recommendation) == 1
    assert direction(decide(window(1e4 / (rise * noise))).recommendation) == -1


def test_sides_are_taken_on_about_six_days_in_ten(walks: list[TechnicalOutput]) -> None:
    # binomial: at 0.6 and 150 walks, three standard errors are 0.12
    share = np.mean([direction(output.recommendation) != 0 for output in walks])
    assert 0.45 <= share <= 0.75


def test_confidence_in_sides_spreads_between_its_bounds(walks: list[TechnicalOutput]) -> None:
    sided = [output.confidence for output in walks if direction(output.recommendation)]
    assert min(sided) >= LEAST_CONFIDENCE
    assert max(sided) <= MOST_CONFIDENCE
    assert np.std(sided) > 0.05
    assert len(set(sided)) > len(sided) * 0.7


def test_a_candle_pattern_is_named_when_it_is_there_and_only_then() -> None:
    close = 100 - 0.5 * np.arange(60.0)
    opened = close + 0.5
    opened[-2], close[-2] = 71.2, 70.7
    opened[-1], close[-1] = 70.5, 71.8
    engulfing = decide(window(close, open=opened))
    assert "bullish_engulfing" in engulfing.patterns
    close, opened = close.copy(), opened.copy()
    opened[-1], close[-1] = 70.9, 71.0
    assert "bullish_engulfing" not in decide(window(close, open=opened)).patterns


def test_known_pattern_names_are_unique() -> None:
    assert len({name for name, _, _ in PATTERNS}) == len(PATTERNS)


def test_equal_snapshots_give_equal_bytes_and_order_of_requests_is_kept() -> None:
    snapshots = [make_snapshot(make_bars(seed=seed), symbol=symbol) for seed, symbol in ((1, "AAPL"), (2, "MSFT"))]
    first = POLICY.decide_many([make_request(snapshot) for snapshot in snapshots])
    second = RulesTechnical().decide_many([make_request(snapshot) for snapshot in snapshots])
    assert [output.model_dump_json() for output in first] == [output.model_dump_json() for output in second]
    assert [output.symbol for output in first] == ["AAPL", "MSFT"]


def test_charts_that_differ_in_scale_alone_give_the_same_opinion() -> None:
    small, large = decide(make_bars(seed=9, price=20.0)), decide(make_bars(seed=9, price=400.0))
    assert small.recommendation == large.recommendation
    assert small.confidence == pytest.approx(large.confidence, abs=1e-3)


def test_the_snapshot_is_left_as_it_was() -> None:
    snapshot: MarketSnapshot = make_snapshot()
    before = [values.copy() for values in (snapshot.bars.close, snapshot.bars.volume)]
    POLICY.decide_many([make_request(snapshot)])
    assert np.array_equal(before[0], snapshot.bars.close)
    assert np.array_equal(before[1], snapshot.bars.volume)


def test_the_opinion_carries_the_time_of_the_snapshot() -> None:
    output = decide(make_bars())
    assert output.as_of == AS_OF
    assert (output.policy, output.latency_s) == ("rules", 0.0)
    assert output.as_of < datetime(2014, 6, 3, tzinfo=UTC)
