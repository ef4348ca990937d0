"""The regime table, its borders, its confidence and its refusals."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import ConfigError
from utils.market_regime_detector import (
    REGIME_LABELS,
    MarketRegimeDetector,
    RegimeConfig,
    detect_regime,
)
from utils.schema import RegimeInputs

DETECTOR = MarketRegimeDetector()
VOLATILITY = {"low": 0.1, "medium": 0.4, "high": 0.6, "extreme": 0.9}
TREND = {"strong_bear": -0.8, "bear": -0.4, "sideways": 0.0, "bull": 0.4, "strong_bull": 0.8}
NEWS = {"low": 0.1, "medium": 0.5, "high": 0.9}

unit = st.floats(0, 1)
signed = st.floats(-1, 1)


def inputs(volatility: float, trend: float, news: float) -> RegimeInputs:
    return RegimeInputs(volatility, trend, news, 0.01)


@pytest.mark.parametrize(
    ("volatility", "trend", "news", "label"),
    [
        ("extreme", "bull", "high", "crash"),
        ("extreme", "strong_bear", "low", "crash"),
        ("high", "strong_bear", "high", "news_driven_volatility"),
        ("high", "bull", "high", "news_driven_volatility"),
        ("extreme", "bull", "medium", "recovery"),
        ("high", "strong_bull", "low", "recovery"),
        ("high", "sideways", "medium", "range_bound_high_vol"),
        ("extreme", "sideways", "low", "range_bound_high_vol"),
        ("high", "strong_bear", "low", "high_volatility"),
        ("extreme", "bear", "low", "high_volatility"),
        ("low", "strong_bull", "high", "strong_trend_low_vol"),
        ("low", "strong_bear", "low", "strong_trend_low_vol"),
        ("medium", "strong_bear", "low", "strong_trend_high_vol"),
        ("low", "bull", "high", "bull_market"),
        ("medium", "bear", "low", "bear_market"),
        ("low", "sideways", "high", "range_bound_low_vol"),
        ("medium", "sideways", "low", "neutral"),
    ],
)
def test_the_table_names_the_regime(volatility: str, trend: str, news: str, label: str) -> None:
    found = DETECTOR.detect_regime(inputs(VOLATILITY[volatility], TREND[trend], NEWS[news]))
    assert (found.volatility_regime, found.trend_regime, found.news_impact_regime) == (volatility, trend, news)
    assert found.overall_regime == label


def test_every_combination_of_levels_has_a_label_and_every_label_occurs() -> None:
    found = {
        DETECTOR.detect_regime(inputs(v, t, n)).overall_regime
        for v in VOLATILITY.values()
        for t in TREND.values()
        for n in NEWS.values()
    }
    assert found == set(REGIME_LABELS)
    assert len(REGIME_LABELS) == 11


@pytest.mark.parametrize(
    ("volatility", "level"),
    [
        (0.0, "low"),
        (np.nextafter(0.25, 0), "low"),
        (0.25, "medium"),
        (0.5, "high"),
        (0.75, "extreme"),
        (1.0, "extreme"),
    ],
)
def test_a_volatility_edge_belongs_to_the_upper_level(volatility: float, level: str) -> None:
    assert DETECTOR.detect_regime(inputs(volatility, 0.0, 0.0)).volatility_regime == level


@pytest.mark.parametrize(
    ("trend", "level"),
    [
        (-1.0, "strong_bear"),
        (np.nextafter(-0.6, -1), "strong_bear"),
        (-0.6, "bear"),
        (-0.2, "sideways"),
        (0.2, "sideways"),
        (np.nextafter(0.2, 1), "bull"),
        (0.6, "bull"),
        (np.nextafter(0.6, 1), "strong_bull"),
        (1.0, "strong_bull"),
    ],
)
def test_a_trend_edge_belongs_to_the_level_nearer_zero(trend: float, level: str) -> None:
    assert DETECTOR.detect_regime(inputs(0.1, trend, 0.0)).trend_regime == level


@pytest.mark.parametrize(("news", "level"), [(0.0, "low"), (0.3, "medium"), (0.7, "high"), (1.0, "high")])
def test_a_news_edge_belongs_to_the_upper_level(news: float, level: str) -> None:
    assert DETECTOR.detect_regime(inputs(0.1, 0.0, news)).news_impact_regime == level


def test_confidence_is_half_on_a_border_to_another_label_and_grows_with_the_distance() -> None:
    assert DETECTOR.detect_regime(inputs(0.5, 0.0, 0.0)).confidence == 0.5
    assert DETECTOR.detect_regime(inputs(0.53, 0.0, 0.0)).confidence == pytest.approx(0.5 + 0.5 * 0.03 / 0.15)
    assert DETECTOR.detect_regime(inputs(0.1, 0.0, 0.0)).confidence == pytest.approx(1.0)


def test_a_level_border_that_leaves_the_label_does_not_lower_confidence() -> None:
    # low and medium volatility are both a bull market; the nearest other label is 0.15 away, at trend 0.2 or 0.6
    assert DETECTOR.detect_regime(inputs(0.25, 0.4, 0.29)).confidence == pytest.approx(1.0)


def test_confidence_looks_past_a_neighbour_with_the_same_label() -> None:
    # at low volatility, news changes nothing; the only exits of range_bound_low_vol are volatility .25 and trend ±.2
    found = DETECTOR.detect_regime(inputs(0.2, 0.12, 0.69))
    assert found.confidence == pytest.approx(0.5 + 0.5 * 0.05 / 0.15)


@settings(max_examples=150)
@given(unit, signed, unit)
def test_confidence_equals_a_brute_force_search_over_single_input_changes(v: float, t: float, n: float) -> None:
    found = DETECTOR.detect_regime(inputs(v, t, n))
    step = 0.002
    nearest = math.inf
    for axis, (low, high) in enumerate(((0.0, 1.0), (-1.0, 1.0), (0.0, 1.0))):
        for other in np.arange(low, high + step / 2, step):
            changed = [v, t, n]
            changed[axis] = float(min(max(other, low), high))
            if DETECTOR.detect_regime(inputs(*changed)).overall_regime != found.overall_regime:
                nearest = min(nearest, abs(changed[axis] - (v, t, n)[axis]))
    assert found.confidence == pytest.approx(0.5 + 0.5 * min(1.0, nearest / 0.15), abs=0.5 * step / 0.15 + 1e-6)


@pytest.mark.parametrize(
    ("volatility", "trend", "news", "agents"),
    [
        ("low", "bull", "high", ("news", "fundamental")),
        ("high", "bull", "low", ("news", "fundamental")),
        ("extreme", "sideways", "low", ("news", "fundamental")),
        ("low", "strong_bear", "low", ("technical", "fundamental")),
        ("medium", "sideways", "medium", ("technical", "fundamental")),
        ("medium", "strong_bull", "low", ("news", "technical", "fundamental")),
        ("low", "bear", "low", ("news", "technical", "fundamental")),
    ],
)
def test_the_regime_recommends_agents(volatility: str, trend: str, news: str, agents: tuple[str, ...]) -> None:
    found = DETECTOR.detect_regime(inputs(VOLATILITY[volatility], TREND[trend], NEWS[news]))
    assert found.recommended_agents == agents


@pytest.mark.parametrize("field", ["volatility", "trend_strength", "news_impact"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1.5, -1.5, None, "high", True])
def test_an_impossible_input_is_refused_by_name(field: str, bad: object) -> None:
    data: dict[str, object] = {"volatility": 0.5, "trend_strength": 0.0, "news_impact": 0.0}
    with pytest.raises(ValueError, match=field):
        DETECTOR.detect_regime({**data, field: bad})


def test_a_missing_input_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="news_impact"):
        DETECTOR.detect_regime({"volatility": 0.5, "trend_strength": 0.0})


def test_a_mapping_and_regime_inputs_give_the_same_detection() -> None:
    mapping = {"volatility": 0.6, "trend_strength": 0.3, "news_impact": 0.2}
    assert DETECTOR.detect_regime(mapping) == DETECTOR.detect_regime(inputs(0.6, 0.3, 0.2))


def test_the_function_returns_strings_only() -> None:
    found = detect_regime({"volatility": 0.9, "trend_strength": -0.9, "news_impact": 0.0})
    assert found == {
        "volatility_regime": "extreme",
        "trend_regime": "strong_bear",
        "news_impact_regime": "low",
        "overall_regime": "crash",
    }


def test_inputs_held_at_their_default_are_named_in_the_reasoning() -> None:
    found = DETECTOR.detect_regime(RegimeInputs(0.5, 0.0, 0.0, 0.0, ("volatility", "news_impact")))
    assert "volatility, news_impact" in found.reasoning


def test_configured_edges_move_the_labels() -> None:
    wide = MarketRegimeDetector({"trend": (0.5, 0.9)})
    assert wide.detect_regime(inputs(0.4, 0.4, 0.0)).overall_regime == "neutral"
    assert wide.config == RegimeConfig(trend=(0.5, 0.9))


@pytest.mark.parametrize("config", [{"volatilty": (0.1, 0.2, 0.3)}, {"news": (0.7, 0.3)}, {"trend": (0.2, 1.5)}])
def test_a_wrong_configuration_is_a_config_error(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MarketRegimeDetector(config)


def test_a_misspelt_key_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'volatility'"):
        MarketRegimeDetector({"volatilty": (0.1, 0.2, 0.3)})


def test_one_detection_costs_microseconds() -> None:
    data = inputs(0.6, 0.3, 0.2)
    best = min(_seconds(data) for _ in range(5))
    assert best < 100e-6  # the budget is 20 microseconds; the margin is for a machine that is busy


def _seconds(data: RegimeInputs) -> float:
    start = time.perf_counter()
    for _ in range(200):
        DETECTOR.detect_regime(data)
    return (time.perf_counter() - start) / 200
