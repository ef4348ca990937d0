"""Three kinds of conflict and five ways to resolve one, each held against its formula."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opinion_factory import cited, opinion, silent

from orchestration.conflict_resolution import AdvancedConflictResolver, Conflict, ConflictDetector, ResolutionContext
from utils.errors import ConfigError
from utils.schema import RECOMMENDATIONS, AgentOutput, RegimeInputs

DETECTOR = ConflictDetector()
RESOLVER = AdvancedConflictResolver()
CALM = ResolutionContext(0.4, 0.0, 0.0)


def only(outputs: dict[str, AgentOutput]) -> Conflict:
    (conflict,) = DETECTOR.detect_conflicts(outputs)
    return conflict


def test_both_sides_are_a_conflict_of_full_severity_between_those_who_took_one() -> None:
    found = only({"news": opinion("strong_buy", 0.6), "technical": opinion("sell", 0.6), "other": opinion("hold", 0.6)})
    assert (found.conflict_type, found.agents, found.severity) == (
        "opposite_recommendations", ("news", "technical"), 1.0,
    )  # fmt: skip


def test_a_hold_or_an_abstention_opposes_nobody() -> None:
    assert DETECTOR.detect_conflicts({"a": opinion("buy", 0.6), "b": opinion("hold", 0.6), "c": silent()}) == []


def test_one_signal_read_both_ways_is_as_severe_as_the_means_add_up_to() -> None:
    outputs = {
        "a": opinion("hold", 0.6, {"x": 0.4}),
        "b": opinion("hold", 0.6, {"x": 0.6}),
        "c": opinion("hold", 0.6, {"x": -0.35}),
    }
    found = only(outputs)
    assert (found.conflict_type, found.signal, found.agents) == ("signal_conflict", "x", ("a", "b", "c"))
    assert found.severity == pytest.approx(0.85)


@pytest.mark.parametrize("low", [-0.3, 0.0])
def test_a_signal_of_three_tenths_is_not_beyond_it(low: float) -> None:
    assert (
        DETECTOR.detect_conflicts({"a": opinion("hold", 0.6, {"x": 0.9}), "b": opinion("hold", 0.6, {"x": low})}) == []
    )


def test_different_signals_do_not_conflict() -> None:
    outputs = {"a": opinion("hold", 0.6, {"x": 0.9}), "b": opinion("hold", 0.6, {"y": -0.9})}
    assert DETECTOR.detect_conflicts(outputs) == []


def test_certainty_beside_doubt_is_as_severe_as_the_spread() -> None:
    found = only({"a": opinion("buy", 0.9), "b": opinion("hold", 0.1)})
    assert (found.conflict_type, found.severity) == ("confidence_disagreement", pytest.approx(0.4))


def test_a_spread_of_three_tenths_or_less_is_no_disagreement() -> None:
    assert DETECTOR.detect_conflicts({"a": opinion("buy", 0.75), "b": opinion("buy", 0.35)}) == []
    assert DETECTOR.detect_conflicts({"a": opinion("buy", 1.0), "b": opinion("buy", 0.4)}) == []


def test_by_confidence_the_side_with_more_of_it_wins_and_its_share_is_the_confidence() -> None:
    outputs = {"news": opinion("buy", 0.8), "technical": opinion("sell", 0.6), "other": opinion("hold", 0.2)}
    found = RESOLVER.resolve_conflict(only(outputs), outputs, CALM)
    assert (found.strategy_used, found.final_recommendation) == ("confidence_weighted", "buy")
    assert found.final_confidence == pytest.approx(0.8 / 1.6)
    assert found.weights == pytest.approx({"news": 0.5, "technical": 0.375, "other": 0.125})
    assert found.contributing_agents == ("news", "other", "technical")


def test_a_tie_is_a_hold() -> None:
    outputs = {"news": opinion("buy", 0.7), "technical": opinion("sell", 0.7)}
    found = RESOLVER.resolve_conflict(only(outputs), outputs, CALM)
    assert (found.final_recommendation, found.final_confidence) == ("hold", pytest.approx(0.5))


@pytest.mark.parametrize(("volatility", "news_impact"), [(0.8, 0.0), (0.2, 0.8)])
def test_in_an_eventful_market_the_news_analyst_is_believed(volatility: float, news_impact: float) -> None:
    outputs = {"news": opinion("sell", 0.5), "technical": opinion("strong_buy", 0.9)}
    found = RESOLVER.resolve_conflict(only(outputs), outputs, RegimeInputs(volatility, 0.0, news_impact, 0.01))
    assert (found.strategy_used, found.final_recommendation) == ("domain_expertise", "sell")
    assert found.final_confidence == pytest.approx(0.45 / (0.45 + 0.18))


def test_expertise_without_an_entry_in_the_table_is_one_half() -> None:
    outputs = {"news": opinion("sell", 0.5), "oracle": opinion("buy", 1.0)}
    found = RESOLVER.resolve_conflict(only(outputs), outputs, {"volatility": 0.9})
    assert found.weights == pytest.approx({"news": 0.45 / 0.95, "oracle": 0.5 / 0.95})


def test_fresh_evidence_outweighs_stale() -> None:
    outputs = {
        "news": opinion("buy", 0.8, evidence=(cited("news", timedelta(hours=72)),)),
        "technical": opinion("sell", 0.6, evidence=(cited("indicator", timedelta(0), "1d"),)),
    }
    found = RESOLVER.resolve_conflict(only(outputs), outputs, {"volatility": 0.9})
    assert (found.strategy_used, found.final_recommendation) == ("temporal_priority", "sell")
    assert found.weights == pytest.approx({"news": 0.1 / 0.7, "technical": 0.6 / 0.7})


def test_age_counts_in_half_lives_of_the_evidence() -> None:
    outputs = {
        "news": opinion("buy", 0.8, evidence=(cited("news", timedelta(hours=12)),)),
        "fundamental": opinion("sell", 0.6, evidence=(cited("filing", timedelta(days=180)),)),
    }
    assert RESOLVER.resolve_conflict(only(outputs), outputs, CALM).strategy_used == "confidence_weighted"  # 0.5 and 2
    older = {**outputs, "fundamental": opinion("sell", 0.6, evidence=(cited("filing", timedelta(days=230)),))}
    assert RESOLVER.resolve_conflict(only(older), older, CALM).strategy_used == "temporal_priority"


def test_without_evidence_nobody_is_fresher() -> None:
    outputs = {
        "news": opinion("buy", 0.8, evidence=(cited("news", timedelta(days=6)),)),
        "technical": opinion("sell", 0.6),
    }
    assert RESOLVER.resolve_conflict(only(outputs), outputs, CALM).strategy_used == "confidence_weighted"


@pytest.mark.parametrize(
    ("values", "side", "strength"),
    [((0.9, -0.4), "buy", 0.65 / 1.3), ((-0.9, 0.4), "sell", 0.65 / 1.3), ((0.5, -0.5), "hold", 0.0)],
)
def test_a_signal_is_weighted_by_its_magnitude(values: tuple[float, float], side: str, strength: float) -> None:
    outputs = {"a": opinion("hold", 0.6, {"x": values[0]}), "b": opinion("hold", 0.6, {"x": values[1]})}
    found = RESOLVER.resolve_conflict(only(outputs), outputs, CALM)
    assert (found.strategy_used, found.final_recommendation) == ("signal_strength", side)
    assert found.final_confidence == pytest.approx(strength)


def test_a_majority_that_agrees_adds_a_fifth_and_one_that_does_not_takes_one() -> None:
    agreeing = {"a": opinion("buy", 0.9), "b": opinion("buy", 0.2), "c": opinion("hold", 0.15)}
    found = RESOLVER.resolve_conflict(only(agreeing), agreeing, CALM)
    assert (found.strategy_used, found.final_recommendation) == ("ensemble_voting", "buy")
    assert found.final_confidence == pytest.approx(min(1.0, 1.2 * 1.1 / 1.25))
    differing = {"a": opinion("buy", 0.9), "b": opinion("hold", 0.2), "c": opinion("hold", 0.15)}
    found = RESOLVER.resolve_conflict(only(differing), differing, CALM)
    assert found.final_recommendation == "buy"
    assert found.final_confidence == pytest.approx(0.8 * 0.9 / 1.25)


def test_every_strategy_says_what_it_would_have_said() -> None:
    outputs = {"news": opinion("sell", 0.5), "technical": opinion("strong_buy", 0.9)}
    said = RESOLVER.alternatives(only(outputs), outputs, {"volatility": 0.9})
    assert said == {
        "temporal_priority": "buy", "domain_expertise": "sell", "confidence_weighted": "buy", "signal_strength": "hold",
        "ensemble_voting": "buy",
    }  # fmt: skip


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="news_half_live"):
        AdvancedConflictResolver({"news_half_live": 3})


OPINIONS = st.builds(
    opinion,
    st.sampled_from(RECOMMENDATIONS),
    st.floats(0, 1),
    st.dictionaries(st.sampled_from(["x", "y"]), st.floats(-1, 1)),
)


@given(
    st.lists(st.one_of(OPINIONS, st.builds(silent)), min_size=2, max_size=4),
    st.floats(0, 1),
    st.floats(-1, 1),
    st.integers(0, 23),
)
def test_the_order_of_the_outputs_changes_neither_conflicts_nor_resolutions(
    said: list[AgentOutput], volatility: float, trend: float, turn: int
) -> None:
    names = ("news", "technical", "fundamental", "oracle")
    outputs = dict(zip(names, said, strict=False))
    orders = list(itertools.permutations(outputs))
    shuffled = {name: outputs[name] for name in orders[turn % len(orders)]}
    conflicts = DETECTOR.detect_conflicts(outputs)
    assert DETECTOR.detect_conflicts(shuffled) == conflicts
    assert len({conflict.key for conflict in conflicts}) == len(conflicts)
    context = {"volatility": volatility, "trend_strength": trend}
    for conflict in conflicts:
        resolution = RESOLVER.resolve_conflict(conflict, outputs, context)
        assert RESOLVER.resolve_conflict(conflict, shuffled, context) == resolution
        assert 0 <= resolution.final_confidence <= 1
        assert not any(outputs[name].abstained for name in resolution.contributing_agents)
