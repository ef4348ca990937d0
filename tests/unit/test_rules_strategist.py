"""The strategist's rules: votes into one signal, sound levels, sizes that fit volatility and portfolio, named conflicts."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from market_factory import AS_OF, make_bars, make_request, make_snapshot

from agents.base_agent import abstain
from agents.policies.rules.levels import LevelSettings, price_levels
from agents.policies.rules.strategist import NO_CONVICTION, RulesStrategist
from agents.policies.rules.technical import RulesTechnical
from utils.schema import (
    RECOMMENDATIONS,
    AgentOutput,
    FundamentalOutput,
    NewsOutput,
    PortfolioState,
    RegimeInputs,
    StrategistOutput,
    TechnicalOutput,
    direction,
)

POLICY = RulesStrategist()
CASH = PortfolioState(100_000.0, 100_000.0)
HOLDING = PortfolioState(100_000.0, 90_000.0, {"AAPL": 0.1})
QUIET = RegimeInputs(0.3, 0.0, 0.0, 0.012)
BARS = make_bars(n=60, seed=1)
PRICE = round(float(BARS.close[-1]), 4)


def technical(recommendation: str = "buy", confidence: float = 0.8, atr: float | None = 1.5) -> TechnicalOutput:
    return TechnicalOutput(
        symbol="AAPL",
        as_of=AS_OF,
        recommendation=recommendation,
        confidence=confidence,
        current_price=PRICE,
        indicators={} if atr is None else {"atr_14": atr},
    )


def news(recommendation: str = "buy", confidence: float = 0.7) -> NewsOutput:
    return NewsOutput(symbol="AAPL", as_of=AS_OF, recommendation=recommendation, confidence=confidence)


def fundamental(recommendation: str = "hold", confidence: float = 0.6) -> FundamentalOutput:
    return FundamentalOutput(symbol="AAPL", as_of=AS_OF, recommendation=recommendation, confidence=confidence)


def decide(
    *outputs: AgentOutput, portfolio: PortfolioState | None = CASH, inputs: RegimeInputs = QUIET, stale: bool = False
) -> StrategistOutput:
    snapshot = make_snapshot(BARS, inputs=inputs, stale=stale)
    named = {str(output.agent_type): output for output in outputs}
    answer = POLICY.decide_many([make_request(snapshot, named, portfolio)])[0]
    assert isinstance(answer, StrategistOutput)
    return answer


calls = st.sampled_from(RECOMMENDATIONS)
convictions = st.floats(0, 1)
portfolios = st.one_of(
    st.none(),
    st.builds(
        lambda equity, cash, weight: PortfolioState(equity, cash * equity, {"AAPL": weight}),
        st.sampled_from([0.0, 1e3, 1e6]),
        convictions,
        st.sampled_from([0.0, 0.02, 0.1, 0.2]),
    ),
)
regimes = st.builds(
    RegimeInputs, convictions, st.floats(-1, 1), convictions, st.sampled_from([0.0, 1e-6, 0.005, 0.02, 0.2])
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[AgentOutput], PortfolioState | None, RegimeInputs]:
    """Return any mixture of opinions and abstentions, any portfolio, any regime."""
    outputs: list[AgentOutput] = []
    for build in (news, fundamental):
        if draw(st.booleans()):
            outputs.append(build(draw(calls), draw(convictions)))
    atr = draw(st.sampled_from([None, 0.0, 0.01, 1.0, 30.0, 500.0]))
    outputs.append(
        draw(
            st.sampled_from([technical(draw(calls), draw(convictions), atr), abstain("technical", "AAPL", AS_OF, "x")])
        )
    )
    return outputs, draw(portfolios), draw(regimes)


Question = tuple[list[AgentOutput], PortfolioState | None, RegimeInputs]

firm = st.floats(0.7, 1)


@st.composite
def leaning_questions(draw: st.DrawFn) -> Question:
    """Return firm opinions on one side: nearly every answer to them is a side, so that hardly any is filtered out."""
    side = st.sampled_from(draw(st.sampled_from([("buy", "strong_buy"), ("sell", "strong_sell")])))
    atr = draw(st.sampled_from([None, 0.0, 1.0, 30.0]))
    outputs: list[AgentOutput] = [technical(draw(side), draw(firm), atr)]
    outputs += [build(draw(side), draw(firm)) for build in (news, fundamental) if draw(st.booleans())]
    volatility = draw(st.sampled_from([0.005, 0.02, 0.2]))
    inputs = RegimeInputs(draw(convictions), draw(st.floats(-1, 1)), draw(convictions), volatility)
    return outputs, draw(st.sampled_from([None, HOLDING])), inputs


@settings(max_examples=200)
@given(questions())
def test_every_decision_validates_and_says_why(question: Question) -> None:
    outputs, portfolio, inputs = question
    decision = decide(*outputs, portfolio=portfolio, inputs=inputs)
    assert StrategistOutput.model_validate(decision.model_dump()) == decision
    assert 0 <= decision.position_size <= 0.10
    assert decision.abstained == all(output.abstained or output.confidence < NO_CONVICTION for output in outputs)
    assert decision.abstained or decision.key_factors
    assert decision.abstained or sum(character.isalpha() for character in decision.reasoning) >= 50


@settings(max_examples=200)
@given(leaning_questions())
def test_every_side_has_sound_levels_ratio_and_expected_return(question: Question) -> None:
    outputs, portfolio, inputs = question
    decision = decide(*outputs, portfolio=portfolio, inputs=inputs)
    side = direction(decision.recommendation)
    assume(side)
    entry, stop, take = decision.entry_target, decision.stop_loss, decision.take_profit
    assert entry is not None
    assert stop is not None
    assert take is not None
    assert (entry - stop) * side > 0
    assert (take - entry) * side > 0
    assert decision.risk_reward_ratio == pytest.approx(abs(take - entry) / abs(entry - stop), abs=1e-4)
    reach = 4 * inputs.daily_volatility * math.sqrt(5) if inputs.daily_volatility else 1.0
    assert abs(take / entry - 1) <= reach + 1e-6
    assert decision.expected_return * side > 0
    assert decision.confidence >= 0.5
    assert sum(character.isalpha() for character in decision.risk_assessment) >= 20


@settings(max_examples=150)
@given(questions())
def test_every_hold_has_neither_size_nor_levels(question: Question) -> None:
    outputs, portfolio, inputs = question
    decision = decide(*outputs, portfolio=portfolio, inputs=inputs)
    assume(direction(decision.recommendation) == 0)
    assert decision.position_size == 0
    assert (decision.entry_target, decision.stop_loss, decision.take_profit) == (None, None, None)


def test_all_abstaining_is_an_abstention() -> None:
    decision = decide(abstain("news", "AAPL", AS_OF, "x"), abstain("technical", "AAPL", AS_OF, "x"))
    assert (decision.abstained, decision.recommendation, decision.confidence) == (True, "hold", 0.0)
    assert decide().abstained


def test_a_stale_price_is_an_abstention() -> None:
    assert decide(news(), stale=True).abstained


def test_an_abstention_is_no_neutral_vote() -> None:
    alone = decide(technical("buy", 0.8))
    beside = decide(technical("buy", 0.8), abstain("news", "AAPL", AS_OF, "x"))
    neutral = decide(technical("buy", 0.8), news("hold", 0.7))
    assert alone.confidence == beside.confidence == pytest.approx(0.8)
    assert neutral.confidence < alone.confidence


def test_agreement_is_a_buy_with_a_stop_two_and_a_target_four_ranges_away() -> None:
    decision = decide(technical("buy", 0.8, atr=1.0), news("buy", 0.7))
    assert decision.recommendation == "buy"
    assert decision.stop_loss == pytest.approx(PRICE - 2, abs=1e-3)
    assert decision.take_profit == pytest.approx(PRICE + 4, abs=1e-3)
    assert decision.risk_reward_ratio == pytest.approx(2.0, abs=1e-3)
    assert decision.position_size > 0


def test_without_a_range_stop_and_target_are_five_and_fifteen_percent_away() -> None:
    decision = decide(news("strong_buy", 0.8), inputs=RegimeInputs(0.3, 0.0, 0.0, 0.03))
    assert decision.stop_loss == pytest.approx(PRICE * 0.95, abs=1e-3)
    assert decision.take_profit == pytest.approx(PRICE * 1.15, abs=1e-3)


def test_low_confidence_is_a_hold_without_a_position() -> None:
    decision = decide(technical("buy", 0.45))
    assert (decision.recommendation, decision.position_size) == ("hold", 0.0)
    assert any("confidence" in factor for factor in decision.key_factors)


def test_selling_what_is_not_held_becomes_a_hold_with_the_reason() -> None:
    decision = decide(technical("sell", 0.8), news("sell", 0.8), portfolio=CASH)
    assert decision.recommendation == "hold"
    assert any("nothing is held" in factor for factor in decision.key_factors)


def test_selling_closes_what_is_held_with_the_stop_above() -> None:
    decision = decide(technical("sell", 0.8), news("sell", 0.8), portfolio=HOLDING)
    assert direction(decision.recommendation) == -1
    assert decision.position_size == 0
    assert (decision.stop_loss or 0) > PRICE > (decision.take_profit or 0)
    assert decision.expected_return < 0


def test_a_conflict_is_named_with_its_resolution() -> None:
    decision = decide(technical("strong_buy", 0.85), news("sell", 0.6))
    conflict = [factor for factor in decision.key_factors if "conflict" in factor]
    assert len(conflict) == 1
    assert "technical (buy) with news (sell)" in conflict[0]
    assert "resolved" in conflict[0]


def test_equal_camps_cancel_to_a_hold() -> None:
    inputs = RegimeInputs(0.3, 0.0, 0.0, 0.012)
    decision = decide(technical("buy", 0.5), news("strong_sell", 0.99), fundamental("strong_sell", 0.4), inputs=inputs)
    assert decision.recommendation == "hold"


def test_the_market_decides_whose_voice_counts() -> None:
    outputs = (technical("strong_buy", 0.8), news("strong_sell", 0.8))
    calm = decide(*outputs, inputs=RegimeInputs(0.3, 0.0, 0.0, 0.012), portfolio=HOLDING)
    eventful = decide(*outputs, inputs=RegimeInputs(0.9, 0.0, 0.9, 0.012), portfolio=HOLDING)
    assert calm.signals["consensus"] > 0.2
    assert eventful.signals["consensus"] < -0.2


def test_size_falls_with_volatility_and_grows_with_confidence() -> None:
    calm = decide(technical("buy", 0.8), inputs=RegimeInputs(0.3, 0.0, 0.0, 0.01))
    wild = decide(technical("buy", 0.8), inputs=RegimeInputs(0.3, 0.0, 0.0, 0.04))
    sure = decide(technical("buy", 0.85), inputs=RegimeInputs(0.3, 0.0, 0.0, 0.01))
    assert wild.position_size < calm.position_size < sure.position_size <= 0.10
    assert wild.position_size == pytest.approx(calm.position_size / 4, rel=0.25)


def test_a_purchase_never_costs_more_than_there_is_cash() -> None:
    decision = decide(technical("buy", 0.85), portfolio=PortfolioState(100_000.0, 1_000.0, {"MSFT": 0.99}))
    assert 0 < decision.position_size <= 0.01
    broke = decide(technical("buy", 0.85), portfolio=PortfolioState(100_000.0, 0.0, {"MSFT": 1.0}))
    assert broke.recommendation == "hold"
    assert any("cash" in factor for factor in broke.key_factors)


def test_the_evidence_is_the_price_and_what_the_analysts_rest_on() -> None:
    snapshot = make_snapshot(BARS, inputs=QUIET)
    opinion = RulesTechnical().decide_many([make_request(snapshot)])[0]
    decision = POLICY.decide_many([make_request(snapshot, {"technical": opinion}, CASH)])[0]
    ids = [item.id for item in decision.evidence]
    assert {"bar:close", "ind:atr_14"} <= set(ids)
    assert len(ids) == len(set(ids))
    assert set(decision.evidence) <= set(opinion.evidence)


def test_a_sample_is_repeatable_and_varies_with_its_state() -> None:
    request = make_request(make_snapshot(BARS, inputs=QUIET), {"technical": technical("strong_buy", 0.8)}, CASH)
    samples = [POLICY.sample(request, 0.8, state) for state in range(6)]
    assert POLICY.sample(request, 0.8, 3) == samples[3]
    assert len({sample.model_dump_json() for sample in samples}) == 6
    assert POLICY.sample(request, 0.0, 7) == POLICY.decide_many([request])[0]


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        POLICY.sample(make_request(), temperature, 1)


@settings(max_examples=200)
@given(
    st.sampled_from([-1, 1]),
    st.floats(0.01, 1e5),
    st.one_of(st.none(), st.floats(1e-4, 1e5)),
    st.floats(0, 0.5),
    st.floats(0.2, 10),
    st.floats(0.2, 10),
)
def test_levels_are_positive_and_on_their_side_at_any_price(
    side: int, entry: float, atr: float | None, volatility: float, stop: float, take: float
) -> None:
    entry = round(entry, 4)
    levels = price_levels(side, entry, atr, volatility, LevelSettings(stop, take))
    assume(levels is not None)
    assert levels is not None
    assert (entry - levels.stop) * side > 0
    assert (levels.take - entry) * side > 0
    assert min(levels.stop, levels.take) > 0
    assert levels.ratio == pytest.approx(abs(levels.take - entry) / abs(entry - levels.stop), rel=0.01, abs=1e-4)


def test_a_price_that_hardly_moves_has_no_levels() -> None:
    assert price_levels(1, 100.0, 0.001, 1e-6, LevelSettings()) is None
