"""The example of a plug-in thinks as its documentation says, and keeps what every policy must keep."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from market_factory import make_bars, make_request, make_snapshot, window
from plug_in_layout import EXAMPLE

from agents.junior.technical_agent import TechnicalAgent
from agents.policies.base import Policy, PolicyRequest
from agents.policies.rules import RulesNews, RulesTechnical
from evaluation.fault_localization import FaultLocalizationEngine
from evaluation.ground_truth import GroundTruth
from utils.errors import ConfigError
from utils.schema import AGENT_TYPES, AgentOutput, TechnicalOutput, direction
from utils.settings import OrchestratorConfig

CONFIG = OrchestratorConfig()
RULES = RulesTechnical()
OPINION = {"recommendation", "confidence", "signal", "signals", "reasoning", "policy"}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module("momentum_policy")


@pytest.fixture
def momentum(module: ModuleType) -> Policy:
    built: Policy = module.policy("technical", CONFIG, RULES)
    return built


def on(bars: Any, **more: Any) -> PolicyRequest:
    return make_request(make_snapshot(bars, **more))


def moving(drift: float) -> PolicyRequest:
    """A year and more of a steady drift in noise."""
    return on(make_bars(n=300, drift=drift, vol=0.01, seed=3))


def decided(policy: Policy, asked: PolicyRequest) -> AgentOutput:
    return policy.decide_many([asked])[0]


@pytest.mark.parametrize(("drift", "said"), [(0.003, "strong_buy"), (-0.003, "strong_sell"), (0.0, "hold")])
def test_the_side_is_that_of_the_years_return(momentum: Policy, drift: float, said: str) -> None:
    noise = np.tile([0.01, -0.01], 150)
    output = decided(momentum, on(window(100 * np.exp(np.cumsum(noise + drift)))))
    assert output.recommendation == said
    assert isinstance(output, TechnicalOutput)
    assert direction(output.signal) == direction(said)
    assert 0.5 <= output.confidence <= 0.7


def test_the_last_month_counts_for_nothing(momentum: Policy) -> None:
    rising = 100 * np.exp(np.cumsum(np.tile([0.012, -0.008], 150)))
    fallen = rising.copy()
    fallen[-21:] *= np.linspace(0.99, 0.6, 21)
    here, there = (decided(momentum, on(window(close))) for close in (rising, fallen))
    assert here.recommendation == there.recommendation == "strong_buy"
    assert here.signals["momentum_of_a_year"] == there.signals["momentum_of_a_year"]


@pytest.mark.parametrize("drift", [0.002, 0.0005, -0.002])
def test_facts_stay_the_rules(momentum: Policy, drift: float) -> None:
    asked = moving(drift)
    facts, output = decided(RULES, asked), decided(momentum, asked)
    assert output.model_dump(exclude=OPINION) == facts.model_dump(exclude=OPINION)
    assert facts.signals.items() < output.signals.items()
    assert output.policy == "momentum"
    assert TechnicalOutput.model_validate(output.model_dump()) == output


@pytest.mark.parametrize("drift", [0.002, 0.0, -0.002])
def test_an_opinion_has_no_fault_that_the_rules_facts_do_not_have(momentum: Policy, drift: float) -> None:
    asked = moving(drift)
    found = FaultLocalizationEngine().detect_faults(
        "technical", decided(momentum, asked), GroundTruth(asked.snapshot, market_open=False)
    )
    assert [(str(error.category), error.location) for error in found.errors] == []


@pytest.mark.parametrize(
    ("bars", "reason"),
    [
        (make_bars(n=252), "252 bars are known, momentum needs 253"),
        (window(np.full(300, 100.0)), "the price did not move for a year"),
    ],
    ids=["short", "still"],
)
def test_without_a_year_of_moves_it_abstains_under_its_own_name(momentum: Policy, bars: Any, reason: str) -> None:
    output = decided(momentum, on(bars))
    assert (output.abstained, output.recommendation, output.confidence) == (True, "hold", 0.0)
    assert (output.abstain_reason, output.policy) == (reason, "momentum")


def test_253_bars_are_enough(momentum: Policy) -> None:
    assert not decided(momentum, on(make_bars(n=253))).abstained


@pytest.mark.parametrize("asked", [on(make_bars(n=20)), on(make_bars(), stale=True)], ids=["few bars", "stale"])
def test_where_the_rules_abstain_so_does_it(momentum: Policy, asked: PolicyRequest) -> None:
    assert decided(momentum, asked) == decided(RULES, asked)
    assert decided(RULES, asked).abstained


def test_a_batch_is_answered_in_order_and_equal_requests_equally(momentum: Policy) -> None:
    requests = [moving(0.002), on(make_bars(n=20)), moving(-0.002), moving(0.002)]
    outputs = momentum.decide_many(requests)
    assert [output.as_of for output in outputs] == [asked.snapshot.as_of for asked in requests]
    assert [output.abstained for output in outputs] == [False, True, False, False]
    assert outputs[0] == outputs[3] != outputs[2]


@pytest.mark.parametrize("agent_type", [name for name in AGENT_TYPES if name != "technical"])
def test_a_seat_that_it_cannot_think_for_is_refused_by_name(module: ModuleType, agent_type: Any) -> None:
    with pytest.raises(ConfigError, match=f"thinks for the technical agent, not for {agent_type}"):
        module.policy(agent_type, CONFIG, RulesNews())


def test_it_sits_in_the_seat(momentum: Policy) -> None:
    agent = TechnicalAgent(momentum, fallback=RULES)
    assert not agent.waits
    assert agent.decide_many([moving(0.002)])[0].policy == "momentum"
