"""Calibrated convictions: the fit, whose calls count, what was known when, and where an opinion gets its probability."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from output_factory import news_output, technical_output
from scipy.optimize import isotonic_regression
from scripted_servers import AT, Server, decide, market, with_policies

from agents.policies.base import PolicyRequest
from data_pipeline.embeddings import FeatureHashingEmbedder
from data_pipeline.library.matured_calls import MaturedCalls, percent_of
from evaluation.isotonic import MIN_LABELS, Tally, isotonic_steps
from orchestration.calibration import ConvictionCalibrator
from orchestration.coordinator import Coordinator
from orchestration.records import open_decision, trajectories_of, trajectory_ids
from orchestration.step_journal import StepJournal
from utils.schema import AgentOutput, ValidatorOutput

__all__ = ["market"]

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)
NEXT_DAY = T0 + timedelta(days=1)

_TALLIES = st.dictionaries(
    st.integers(0, 100), st.tuples(st.integers(1, 400), st.floats(0, 1)), min_size=1, max_size=101
).map(lambda found: [Tally(value / 100, calls, round(share * calls)) for value, (calls, share) in found.items()])


@given(_TALLIES)
@settings(max_examples=300, deadline=None)
def test_the_steps_are_those_of_an_independent_implementation(tallies: list[Tally]) -> None:
    steps = isotonic_steps(tallies)
    ordered = sorted(tallies, key=lambda tally: tally.value)
    rates = [tally.successes / tally.calls for tally in ordered]
    oracle = isotonic_regression(rates, weights=[tally.calls for tally in ordered]).x
    assert np.allclose(np.repeat([s.rate for s in steps], [s.values for s in steps]), oracle, rtol=0, atol=1e-12)
    assert sum(s.values for s in steps) == len(tallies)
    assert all(a.rate < b.rate and a.value < b.value for a, b in pairwise(steps))


@given(_TALLIES, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_values_makes_no_difference(tallies: list[Tally], rng: random.Random) -> None:
    assert isotonic_steps(rng.sample(tallies, len(tallies))) == isotonic_steps(tallies)


@given(st.floats(0, 1))
def test_a_confidence_falls_into_the_nearest_percent(confidence: float) -> None:
    assert 0 <= percent_of(confidence) <= 100
    assert abs(percent_of(confidence) / 100 - confidence) <= 0.005 + 1e-12


def calls(percent: int, number: int, successes: int, at: datetime = T0, **changes: Any) -> MaturedCalls:
    kind = {"agent_type": "technical", "policy": "rules", "is_hold": False, **changes}
    return MaturedCalls(percent=percent, calls=number, successes=successes, matured_at=at, **kind)


def taught(*matured: MaturedCalls) -> ConvictionCalibrator:
    calibrator = ConvictionCalibrator()
    calibrator.learn(matured)
    return calibrator


def asked(calibrator: ConvictionCalibrator, confidence: float = 0.6, at: datetime = NEXT_DAY, **changes: Any) -> Any:
    return calibrator.p_correct(technical_output(confidence=confidence, as_of=at, **changes))


def test_below_two_hundred_matured_calls_nothing_is_said() -> None:
    assert MIN_LABELS == 200
    assert asked(ConvictionCalibrator()) is None
    assert asked(taught(calls(60, 199, 100))) is None
    assert asked(taught(calls(60, 200, 100))) == 0.5


def test_a_conviction_is_worth_what_such_convictions_were_worth() -> None:
    calibrator = taught(calls(50, 100, 40), calls(70, 100, 60), calls(90, 100, 50))
    pooled = (60 + 50) / 200
    assert asked(calibrator, 0.5) == asked(calibrator, 0.1) == 0.4
    assert asked(calibrator, 0.8) == asked(calibrator, 1.0) == pooled
    assert asked(calibrator, 0.65) == pytest.approx(0.4 + (pooled - 0.4) / 2)


def test_sides_and_holds_have_curves_of_their_own_and_each_needs_its_own_calls() -> None:
    calibrator = taught(calls(60, 200, 80), calls(60, 199, 190, is_hold=True))
    assert asked(calibrator, recommendation="buy") == asked(calibrator, recommendation="strong_sell") == 0.4
    assert asked(calibrator, recommendation="hold") is None
    calibrator.learn([calls(60, 1, 0, is_hold=True)])
    assert asked(calibrator, recommendation="hold") == 0.95
    assert asked(calibrator, recommendation="buy") == 0.4


def test_another_agent_or_another_policy_begins_a_curve_of_its_own() -> None:
    calibrator = taught(calls(60, 200, 80), calls(60, 200, 150, policy="local:technical@1"))
    assert asked(calibrator) == 0.4
    assert asked(calibrator, policy="local:technical@1") == 0.75
    assert asked(calibrator, policy="local:technical@2") is None
    assert calibrator.p_correct(news_output(as_of=NEXT_DAY)) is None


def test_an_abstention_has_no_probability() -> None:
    calibrator = taught(calls(0, 300, 200, is_hold=True))
    assert asked(calibrator, 0.0, recommendation="hold") == pytest.approx(2 / 3)
    assert asked(calibrator, abstained=True) is None


def test_what_matures_at_an_instant_counts_from_the_next_decision_on() -> None:
    calibrator = taught(calls(60, 200, 100), calls(60, 200, 200, T0 + timedelta(days=1)))
    assert asked(calibrator, at=NEXT_DAY) == 0.5
    assert asked(calibrator, at=NEXT_DAY + timedelta(seconds=1)) == 0.75


def test_of_a_time_before_what_is_counted_nothing_is_said() -> None:
    calibrator = taught(calls(60, 200, 100), calls(60, 1, 1, NEXT_DAY))
    assert asked(calibrator, at=T0) is None
    assert asked(calibrator, at=T0 - timedelta(days=9)) is None
    assert asked(calibrator, at=NEXT_DAY) == 0.5


@pytest.mark.parametrize("seed", range(12))
def test_neither_order_nor_a_restart_makes_a_difference(seed: int) -> None:
    rng = random.Random(seed)
    single = [
        calls(
            rng.randint(0, 100), 1, rng.randint(0, 1), T0 + timedelta(days=rng.randrange(7)), is_hold=rng.random() < 0.4
        )
        for _ in range(rng.randint(500, 900))
    ]
    live, restart_on = ConvictionCalibrator(), rng.randrange(7)
    said: list[list[float | None]] = []
    for day in range(8):
        at = T0 + timedelta(days=day)
        before = [one for one in single if one.matured_at < at]
        restarted = ConvictionCalibrator()
        restarted.restore(rng.sample(before, len(before)))
        questions = [technical_output(confidence=percent / 50, as_of=at) for percent in range(0, 51, 5)]
        said.append([live.p_correct(question) for question in questions])
        assert said[-1] == [restarted.p_correct(question) for question in questions]
        if day == restart_on:
            live.restore(before)
        live.learn(one for one in single if one.matured_at == at)
    assert said[0] == [None] * len(questions)
    assert None not in said[-1]
    assert said[-1] == [taught(*rng.sample(single, len(single))).p_correct(question) for question in questions]


def test_a_restart_knows_what_it_is_told_and_nothing_else() -> None:
    calibrator = taught(calls(60, 500, 500))
    assert asked(calibrator) == 1.0
    calibrator.restore([calls(60, 200, 50)])
    assert asked(calibrator) == 0.25
    calibrator.restore([])
    assert asked(calibrator) is None


class Listening(Server):
    """A strategist that remembers what it was told of the analysts."""

    heard: dict[str, float | None]

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        self.heard = {name: output.p_correct for name, output in requests[0].agent_outputs.items()}
        return super().decide_many(requests)


def conflicting(strategist: Server, *, waits: bool = False) -> Coordinator:
    """Return a coordinator whose analysts disagree, so that the validator speaks too, and that has learned of all of them."""
    coordinator = with_policies(
        Server("news", "sell", 0.8, waits=waits), Server("technical", "buy", 0.6, waits=waits), strategist
    )
    known = AT - timedelta(days=1)
    coordinator.calibrator.learn(
        calls(percent, 200, right, known, agent_type=agent, policy="test:model", is_hold=hold)
        for agent, percent, right, hold in (
            ("news", 80, 120, False),
            ("technical", 60, 90, False),
            ("strategist", 55, 140, False),
            ("validator", 60, 200, False),
            ("validator", 80, 200, False),
        )
    )
    return coordinator


@pytest.mark.parametrize("waits", [False, True])
def test_every_opinion_but_the_validators_gets_its_probability_before_others_read_it(market: Any, waits: bool) -> None:
    strategist = Listening("strategist", "buy", 0.55, waits=waits)
    coordinator = conflicting(strategist, waits=waits)
    (analysis,) = decide(market, coordinator, ("AAPL",))
    coordinator.close()
    decision = analysis.decision
    assert {name: output.p_correct for name, output in decision.agents.items()} == {
        "news": 0.6,
        "technical": 0.45,
        "fundamental": None,
    }
    assert isinstance(decision.validator, ValidatorOutput)
    assert decision.validator.p_correct is None
    assert strategist.heard["news"] == 0.6
    assert strategist.heard["technical"] == 0.45
    assert decision.strategist.p_correct == 0.7


def test_the_probability_is_stored_with_the_output_and_goes_into_the_reward_and_not_into_the_decisions_file(
    market: Any,
) -> None:
    (analysis,) = decide(market, conflicting(Server("strategist", "buy", 0.55, waits=False)), ("AAPL",))
    decision = analysis.decision
    identities = trajectory_ids("run", decision)
    rows = {
        row.agent_type: row.workflow_trace or {}
        for row in trajectories_of("run", identities, analysis, "5d", FeatureHashingEmbedder())
    }
    assert {name: trace["output"].get("p_correct") for name, trace in rows.items()} == {
        "news": 0.6,
        "technical": 0.45,
        "fundamental": None,
        "strategist": 0.7,
    }
    waiting = open_decision(identities, decision, analysis.snapshot)
    assert waiting is not None
    assert {o.agent_type: (o.p_correct, o.policy) for o in waiting.opinions if o.agent_type != "fundamental"} == {
        "news": (0.6, "test:model"),
        "technical": (0.45, "test:model"),
        "strategist": (0.7, "test:model"),
    }
    assert "p_correct" not in str(decision.canonical())


def test_a_coordinator_that_has_learned_nothing_says_nothing(market: Any) -> None:
    coordinator = with_policies(Server("technical", "buy", 0.6, waits=False))
    (analysis,) = decide(market, coordinator, ("AAPL",))
    outputs = (*analysis.decision.agents.values(), analysis.decision.strategist)
    assert [output.p_correct for output in outputs] == [None] * 4
    assert coordinator.analyze_symbol("AAPL", as_of=AT)["strategist_output"]["p_correct"] is None


def test_what_a_policy_says_of_itself_is_no_calibrated_probability(market: Any) -> None:
    class Boasting(Server):
        def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
            return [answer.model_copy(update={"p_correct": 0.99}) for answer in super().decide_many(requests)]

    coordinator = with_policies(Boasting("technical", "buy", 0.6, waits=False))
    (analysis,) = decide(market, coordinator, ("AAPL",))
    assert analysis.decision.agents["technical"].p_correct is None


def test_a_journal_keeps_answers_and_not_what_was_known_of_their_kind(market: Any, tmp_path: Path) -> None:
    def deciding(right: int) -> tuple[float | None, int]:
        journal = StepJournal(tmp_path / "journal.jsonl")
        server = Server("technical", "buy", 0.6)
        coordinator = with_policies(server, journal=journal)
        coordinator.calibrator.learn([calls(60, 200, right, AT - timedelta(days=1), policy="test:model")])
        (analysis,) = decide(market, coordinator, ("AAPL",))
        coordinator.close()
        return analysis.decision.agents["technical"].p_correct, len(server.asked)

    assert deciding(100) == (0.5, 1)
    assert deciding(150) == (0.75, 0)
