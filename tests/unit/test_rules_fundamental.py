"""The fundamental rules: every figure filed or derived, valuation against the company's own past, honest abstention."""

from __future__ import annotations

import math
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_factory import AS_OF, make_bars, make_filing, make_request, make_snapshot, window

from agents.policies.rules.fundamental import RulesFundamental
from data_pipeline.filing_figures import MAX_DERIVED, UNITS
from utils.schema import BarWindow, Filing, FundamentalOutput, direction

POLICY = RulesFundamental()
NEWEST = date(2014, 3, 31)
STILL = window(np.full(300, 100.0))
SOUND = {
    "revenue_growth": 0.12,
    "profit_margin": 0.2,
    "debt_to_equity": 0.3,
    "current_ratio": 1.8,
    "interest_cover": 9.0,
}
WEAK = {
    "revenue_growth": -0.1,
    "profit_margin": -0.05,
    "debt_to_equity": 3.0,
    "current_ratio": 0.8,
    "interest_cover": 0.9,
}


def decide(*filings: Filing, bars: BarWindow = STILL, stale: bool = False) -> FundamentalOutput:
    output = POLICY.decide_many([make_request(make_snapshot(bars, filings=filings, stale=stale))])[0]
    assert isinstance(output, FundamentalOutput)
    return output


def quarters(multiples: list[float], newest: dict[str, float]) -> list[Filing]:
    """Return filings a quarter apart with these price/earnings ratios, the last with more figures."""
    days = [NEWEST - timedelta(days=91 * i) for i in reversed(range(len(multiples)))]
    filings = [make_filing({"pe_ratio": multiple}, day) for multiple, day in zip(multiples, days, strict=True)]
    return [*filings[:-1], make_filing({"pe_ratio": multiples[-1], **newest}, days[-1])]


numbers = st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 1e-300, -1e-9, 1e12, 1e300]))
filings_of_any_kind = st.lists(
    st.builds(
        make_filing,
        st.dictionaries(st.sampled_from([*UNITS, "unheard_of"]), numbers, max_size=8),
        st.integers(0, 800).map(lambda days: NEWEST - timedelta(days=days)),
    ),
    max_size=8,
    unique_by=lambda filing: filing.filing_id,
)


@settings(max_examples=150)
@given(filings_of_any_kind)
def test_every_opinion_validates_and_every_metric_has_evidence(filings: list[Filing]) -> None:
    output = decide(*filings)
    assert FundamentalOutput.model_validate(output.model_dump()) == output
    evidence = {item.id.rsplit(":", 1)[1]: item for item in reversed(output.evidence)}
    assert output.key_metrics.keys() <= evidence.keys()
    assert all(evidence[name].value == value for name, value in output.key_metrics.items())
    assert all(item.available_at <= AS_OF for item in output.evidence)
    assert len({item.id for item in output.evidence}) == len(output.evidence)
    side = direction(output.recommendation)
    assert (side, output.valuation) not in {(1, "overvalued"), (-1, "undervalued")}
    assert 0 < output.key_metrics.get("pe_ratio", 1.0) <= 1000
    assert output.price_target is None or 0 < output.price_target <= 500.0
    assert all(math.isfinite(value) for value in (*output.key_metrics.values(), *output.signals.values()))
    assert output.financial_health <= 0.7 or 0 <= output.key_metrics.get("debt_to_equity", 0.0) <= 2


def test_no_filing_is_an_abstention() -> None:
    output = decide()
    assert (output.abstained, output.recommendation, output.confidence) == (True, "hold", 0.0)


def test_filings_that_are_too_old_or_hold_nothing_known_are_an_abstention() -> None:
    assert decide(make_filing(SOUND, date(2012, 12, 31))).abstained
    assert decide(make_filing({"number_of_employees": 5.0}, NEWEST)).abstained


@pytest.mark.parametrize(
    ("multiples", "figures", "valuation", "side"),
    [
        ([20, 20, 21, 19, 12], SOUND, "undervalued", 1),
        ([20, 20, 21, 19, 33], WEAK, "overvalued", -1),
        ([20, 20, 21, 19, 20], SOUND, "fairly_valued", 1),
        ([20, 20, 21, 19, 40], SOUND, "overvalued", 0),
        ([20, 20, 21, 19, 12], WEAK, "undervalued", 0),
        ([20, 12], {}, "fairly_valued", 0),
    ],
)
def test_valuation_is_against_the_own_history_and_no_side_stands_against_it(
    multiples: list[float], figures: dict[str, float], valuation: str, side: int
) -> None:
    output = decide(*quarters(multiples, figures))
    assert (output.valuation, direction(output.recommendation)) == (valuation, side)


def test_a_multiple_follows_the_price_since_its_filing() -> None:
    filings = quarters([20, 20, 20, 20], {})
    filed = filings[-1].available_at.date()
    risen = np.where(STILL.sessions > np.datetime64(filed), 150.0, 100.0)
    assert decide(*filings).valuation == "fairly_valued"
    assert decide(*filings, bars=window(risen)).valuation == "overvalued"
    assert decide(*filings, bars=window(risen), stale=True).valuation == "fairly_valued"


def test_the_price_target_is_where_the_multiple_would_be_usual_again() -> None:
    assert decide(*quarters([20, 20, 20, 16], SOUND)).price_target == pytest.approx(125.0)
    assert decide(*quarters([20, 20, 20, 5], SOUND)).price_target == pytest.approx(140.0)
    assert decide(*quarters([20, 20, 20, 16], SOUND), stale=True).price_target is None


def test_margin_and_growth_are_derived_from_filed_figures_and_cite_their_parts() -> None:
    before = make_filing({"revenue": 800.0}, NEWEST - timedelta(days=365))
    newest = make_filing({"revenue": 1000.0, "net_income": 150.0}, NEWEST)
    output = decide(before, newest)
    assert output.key_metrics["profit_margin"] == pytest.approx(0.15)
    assert output.key_metrics["revenue_growth"] == pytest.approx(0.25)
    cited = {item.id: (item.value, item.kind) for item in output.evidence}
    assert cited[f"{before.filing_id}:revenue"] == (800.0, "filing")
    assert cited["derived:revenue_growth"] == (0.25, "derived")


def test_growth_needs_a_period_one_year_before() -> None:
    output = decide(make_filing({"revenue": 800.0}, date(2013, 12, 31)), make_filing({"revenue": 1000.0}, NEWEST))
    assert "revenue_growth" not in output.key_metrics


def test_growth_from_next_to_nothing_is_not_computed() -> None:
    before = make_filing({"revenue": 1.0}, NEWEST - timedelta(days=365))
    output = decide(before, make_filing({"revenue": MAX_DERIVED * 10}, NEWEST))
    assert "revenue_growth" not in output.key_metrics


def test_a_filed_key_metric_is_never_left_out() -> None:
    output = decide(*quarters([18.0], SOUND))
    assert {"pe_ratio", "revenue_growth", "profit_margin", "debt_to_equity"} <= output.key_metrics.keys()


@pytest.mark.parametrize("multiple", [-8.0, 0.0, 1500.0])
def test_a_meaningless_multiple_is_a_risk_and_not_a_metric(multiple: float) -> None:
    output = decide(make_filing({"pe_ratio": multiple, **SOUND}, NEWEST))
    assert "pe_ratio" not in output.key_metrics
    assert any("price/earnings" in risk for risk in output.key_risks)


def test_high_debt_caps_health_and_is_named_as_a_risk() -> None:
    output = decide(make_filing({**SOUND, "debt_to_equity": 4.0}, NEWEST))
    assert output.financial_health <= 0.6
    assert "high leverage" in output.key_risks
    assert "little debt" not in output.key_strengths


def test_health_and_growth_order_sound_before_weak_companies() -> None:
    sound, weak = decide(make_filing(SOUND, NEWEST)), decide(make_filing(WEAK, NEWEST))
    assert sound.financial_health > 0.7 > 0.3 > weak.financial_health
    assert sound.growth_quality > weak.growth_quality


def test_the_same_call_on_older_filings_is_made_with_less_confidence() -> None:
    fresh = decide(*quarters([20, 20, 20, 12], SOUND))
    old = [make_filing(f.metrics, f.period_end - timedelta(days=200)) for f in quarters([20, 20, 20, 12], SOUND)]
    stale = decide(*old)
    assert fresh.recommendation == stale.recommendation
    assert stale.confidence < fresh.confidence <= 0.8


def test_the_reasoning_is_long_enough_and_its_figures_stand_in_the_evidence() -> None:
    output = decide(*quarters([20, 20, 20, 12], SOUND), bars=make_bars())
    assert sum(character.isalpha() for character in output.reasoning) >= 50
    assert "price/earnings 12" in output.reasoning
    assert "debt to equity 0.3" in output.reasoning
