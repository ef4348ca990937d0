"""What a sampled decision earns: every part by hand, and what cannot be earned by tricks."""

from __future__ import annotations

import json
import math
import random
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.policies.local.decisions import cited_evidence, encode_decision, prompt_messages
from agents.policies.local.states import state_line
from judge.reward_calculator import RETURN_CLAMP, RewardCalculator, TradingOutcome, ordinary_move
from training.executable import executable
from training.rl.job import Outcome, RewardWeights, RLExample
from training.rl.neighbours import pooled_outcomes
from training.rl.rewards import CounterfactualReward, Score, batch_figures, decision_scale
from utils.schema import RECOMMENDATIONS

WEIGHTS = RewardWeights()
STATE = state_line("strategist", {"vote": 0.5, "tech": "buy", "held": 10, "cash": 50, "vol": 2.0, "regime": "neutral"})


def example(state: str = STATE, agent: str = "strategist", *outcomes: Outcome, **changes: Any) -> RLExample:
    """A row whose ordinary move over five sessions is .02·√5 = .0447."""
    given: dict[str, Any] = {"actual_return": 0.0447213595, "volatility": 0.02, "round_trip_cost": 0.0, **changes}
    return RLExample(messages=tuple(prompt_messages(agent, state)), outcomes=outcomes or (Outcome(**given),))


def score(
    answer: str, row: RLExample | None = None, agent: str = "strategist", weights: RewardWeights = WEIGHTS
) -> Score:
    row = row or example(agent=agent)
    return CounterfactualReward(agent, [row], weights).score(row, answer)


def answer(
    recommendation: str = "buy", confidence: float = 0.8, evidence: str | None = None, state: str = STATE
) -> str:
    cited = cited_evidence("strategist", state) if evidence is None else evidence
    return encode_decision(recommendation, confidence, cited)


def test_without_a_scale_the_decision_part_is_the_relative_return_of_the_side_in_ordinary_moves_over_the_clamp() -> (
    None
):
    assert score(answer("buy")).decision == pytest.approx(1 / 3)
    assert score(answer("sell")).decision == pytest.approx(-1 / 3)
    assert score(answer("hold")).decision == 0
    relative = example(actual_return=0.0447213595, benchmark_return=0.0447213595)
    assert score(answer("buy"), relative).decision == pytest.approx(0)


def test_costs_are_paid_by_a_side_and_not_by_a_hold() -> None:
    row = example(actual_return=0.0, round_trip_cost=0.00447213595)
    assert score(answer("buy"), row).decision == pytest.approx(-0.1 / 3)
    assert score(answer("sell"), row).decision == pytest.approx(-0.1 / 3)
    assert score(answer("hold"), row).decision == 0


def test_the_calibration_part_is_the_skill_of_the_confidence_over_the_base_rate_of_the_side() -> None:
    row = example(base_rates=(0.4, 0.5, 0.6))
    # a right buy: (.6 - 1)² - (.8 - 1)² = .16 - .04
    assert score(answer("buy", 0.8), row).calibration == pytest.approx(0.12)
    # a wrong sell: (.4 - 0)² - (.8 - 0)² = .16 - .64
    assert score(answer("sell", 0.8), row).calibration == pytest.approx(-0.48)
    # a wrong hold, since 4.5 % is outside the band of 2 %: .25 - .09
    assert score(answer("hold", 0.3), row).calibration == pytest.approx(0.16)


@given(st.sampled_from([i / 10 for i in range(11)]), st.sampled_from([i / 10 for i in range(11)]))
def test_no_confidence_is_expected_to_earn_more_than_the_true_probability(truth: float, stated: float) -> None:
    """Of a sell, which the executable form leaves alone for an agent that only advises."""

    def expected(confidence: float) -> float:
        return sum(
            share * score(answer("sell", confidence, "rsi:60"), example(actual_return=moved), "technical").calibration
            for share, moved in ((truth, -0.05), (1 - truth, 0.05))
        )

    assert expected(stated) <= expected(truth) + 1e-12


def test_risk_is_exposure_to_extreme_volatility_and_losses_of_the_tail() -> None:
    assert score(answer("buy")).risk == 0
    wild = example(volatility=0.045, actual_return=0.3)  # 2.25 times the typical 2 %: half the way from 1.5 to 3
    assert score(answer("buy"), wild).risk == pytest.approx(-0.25)
    assert score(answer("hold"), wild).risk == 0
    lost = example(actual_return=-2 * 0.0447213595)  # two ordinary moves: half the way from 1 to 3
    assert score(answer("buy"), lost).risk == pytest.approx(-0.25)
    assert score(answer("sell"), lost).risk == 0
    technical = example("rsi:60 trend:up", "technical", volatility=0.09, actual_return=-0.5)
    assert score(answer("buy", 0.8, "rsi:60 trend:up"), technical, "technical").risk == 0


@pytest.mark.parametrize(
    ("evidence", "reasoning", "errors"),
    [
        ("vote:0.5 tech:buy", 1.0, ()),
        ("vote:0.5", 0.0, ("incomplete_analysis",)),
        ("", 0.0, ("unsupported_claim",)),
        ("vote:0.6 tech:buy", -1.0, ("hallucination",)),
        ("vote:0.5 tech:buy nconf:0.9", -1.0, ("hallucination", "invalid_value")),
        ("vote:0.5 tech:buy held:10", 0.0, ("invalid_value",)),
    ],
)
def test_reasoning_is_what_the_cited_words_are_worth(evidence: str, reasoning: float, errors: tuple[str, ...]) -> None:
    found = score(answer(evidence=evidence))
    assert (found.reasoning, found.errors) == (reasoning, errors)


def test_a_state_with_nothing_to_cite_is_answered_truthfully_without_citations() -> None:
    bare = state_line("strategist", {"held": 10, "cash": 50, "vol": 2.0})
    assert score(answer(evidence="", state=bare), example(bare)).reasoning == 1
    assert score(answer(evidence="vote:0.5", state=bare), example(bare)).reasoning == -1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "buy",
        STATE,
        answer() + answer(),
        answer()[:-1],
        '{"recommendation":"moon","confidence":0.8,"evidence":"vote:0.5 tech:buy"}',
        '{"recommendation":"buy","confidence":1.8,"evidence":"vote:0.5 tech:buy"}',
    ],
)
def test_what_is_no_decision_earns_the_floor(text: str) -> None:
    found = score(text)
    assert (found.decision, found.risk, found.reasoning, found.calibration) == (-1, -1, -1, -1)
    assert found.total == pytest.approx(-1)
    assert not found.valid


@given(
    st.sampled_from(RECOMMENDATIONS),
    st.sampled_from([i / 10 for i in range(11)]),
    st.sampled_from(["", "vote:0.5 tech:buy", "vote:0.9"]),
    st.floats(-0.9, 3),
    st.floats(0, 0.5),
)
def test_every_part_of_a_decision_lies_within_its_range_and_above_the_floor(
    recommendation: str, confidence: float, evidence: str, moved: float, volatility: float
) -> None:
    found = score(answer(recommendation, confidence, evidence), example(actual_return=moved, volatility=volatility))
    assert all(-1 <= part <= 1 for part in (found.decision, found.reasoning, found.calibration))
    assert -1 <= found.risk <= 0
    assert found.total >= -1
    parts = 0.4 * found.decision + 0.3 * found.risk + 0.2 * found.reasoning + 0.1 * found.calibration
    assert found.total == pytest.approx(parts)


def test_outcomes_of_a_simulated_row_count_by_their_probability() -> None:
    up, down = (
        Outcome(actual_return=0.0447213595, volatility=0.02, weight=0.75),
        Outcome(actual_return=-0.0447213595, volatility=0.02, weight=0.25),
    )
    assert score(answer("buy"), example(STATE, "strategist", up, down)).decision == pytest.approx(0.5 / 3)
    with pytest.raises(ValueError, match="add up to 1"):
        example(STATE, "strategist", up, up)


@pytest.mark.parametrize(
    ("changes", "wanted", "confidence", "becomes"),
    [
        ({"held": 0}, "sell", 0.9, "hold"),
        ({"held": 10}, "sell", 0.9, "sell"),
        ({"held": 0, "cash": 0}, "strong_buy", 0.9, "hold"),
        ({"held": 0, "cash": 50}, "strong_buy", 0.9, "strong_buy"),
        ({"held": 10, "cash": 50}, "buy", 0.4, "hold"),
        ({}, "sell", 0.9, "sell"),
    ],
)
def test_a_strategists_side_stands_only_where_it_could_be_taken(
    changes: dict[str, float], wanted: str, confidence: float, becomes: str
) -> None:
    state = state_line("strategist", {"vote": 0.5, "tech": "buy", **changes})
    assert executable("strategist", state, wanted, confidence) == becomes
    assert executable("technical", state, wanted, confidence) == wanted


def test_a_sale_of_what_is_not_held_earns_no_return_and_is_an_error() -> None:
    state = state_line("strategist", {"vote": 0.5, "tech": "buy", "held": 0, "cash": 50})
    found = score(answer("sell", state=state), example(state, actual_return=-0.2))
    assert (found.decision, found.side) == (0, 0)
    assert found.errors == ("portfolio_context_ignored",)


def world(count: int, seed: int) -> list[RLExample]:
    """Rows in which the vote says what comes, two times in three."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        vote = rng.choice([-0.5, 0.5])
        right = rng.random() < 2 / 3
        moved = (0.03 if right == (vote > 0) else -0.03) + rng.gauss(0, 0.01)
        state = state_line("strategist", {"vote": vote, "tech": "buy", "held": 10, "cash": 50, "vol": 2.0})
        rows.append(example(state, actual_return=moved, round_trip_cost=0.0016))
    return rows


def earned(rows: list[RLExample], policy: Any) -> float:
    reward = CounterfactualReward("strategist", rows, WEIGHTS)
    return fmean(reward.score(row, policy(row.state_text)).total for row in rows)


def test_following_the_state_earns_more_than_always_buying_always_holding_or_copying() -> None:
    rows = world(600, 3)

    def following(state: str) -> str:
        return answer("buy" if "vote:0.5" in state else "sell", 0.7, state=state)

    honest = earned(rows, following)
    always_buying = earned(rows, lambda state: answer("buy", 0.5, state=state))
    always_holding = earned(rows, lambda state: answer("hold", 0.1, state=state))
    assert honest > always_holding + 0.02
    assert honest > always_buying + 0.02
    # a constant side pays its costs and its tail for nothing; a hold earns what its citation and its humility earn
    assert always_buying < 0.2
    assert always_holding == pytest.approx(0.2 + 0.1 * (0.25 - 0.01), abs=0.02)
    # the state copied whole, said twice, or a phrase that was right elsewhere
    assert earned(rows, lambda state: state) == pytest.approx(-1)
    assert earned(rows, lambda state: following(state).replace('evidence":"', f'evidence":"{state} ')) < honest - 0.3
    assert earned(rows, lambda state: answer("buy", 0.7, state.replace("na", "0"))) < always_holding
    assert earned(rows, lambda state: answer("buy", 0.7, "vote:0.5 tech:buy")) < always_buying


def test_overstating_confidence_lowers_the_reward_of_a_policy_that_is_right_two_times_in_three() -> None:
    rows = world(600, 4)

    def stating(confidence: float) -> float:
        return earned(rows, lambda s: answer("buy" if "vote:0.5" in s else "sell", confidence, state=s))

    assert stating(0.7) > stating(1.0) + 0.005
    assert stating(0.7) > stating(0.5)


def test_the_figures_of_a_batch_are_means_over_all_completions() -> None:
    scores = [score(answer("buy")), score(answer("sell")), score("nothing"), score(answer("buy", evidence="vote:0.9"))]
    figures = batch_figures(scores)
    assert figures["decision"] == pytest.approx((1 / 3 - 1 / 3 - 1 + 1 / 3) / 4)
    assert (figures["valid"], figures["grounded"], figures["buys"], figures["sells"]) == (0.75, 0.5, 0.5, 0.25)
    assert figures["errors/hallucination"] == 0.25


def test_a_batch_is_scored_by_the_rows_that_were_asked() -> None:
    rows = [example(actual_return=0.0447213595), example(actual_return=-0.0447213595)]
    logged: dict[str, float] = {}
    said = [[{"role": "assistant", "content": answer("buy")}]] * 2
    rewards = CounterfactualReward("strategist", rows, WEIGHTS)(said, [1, 0], logged.__setitem__)
    assert rewards[1] > rewards[0]
    assert logged["decision"] == pytest.approx(0)
    assert json.loads(json.dumps(logged)) == logged


@pytest.mark.parametrize(("scale", "decision"), [(2.0, 0.5), (1.0, 1.0), (0.25, 1.0)])
def test_the_decision_part_is_measured_by_the_scale_and_clamped(scale: float, decision: float) -> None:
    row = example(actual_return=0.0447213595)
    reward = CounterfactualReward("strategist", [row], WEIGHTS, scale=scale)
    assert reward.score(row, answer("buy")).decision == pytest.approx(decision)
    assert reward.score(row, answer("sell")).decision == pytest.approx(-decision)
    assert reward.score(row, answer("hold")).decision == 0
    assert reward.score(row, "nothing").total == pytest.approx(-1)


@given(
    st.floats(-0.9, 3),
    st.floats(-0.5, 0.5),
    st.one_of(st.none(), st.floats(0, 0.5)),
    st.integers(1, 60),
)
def test_a_move_is_what_a_buy_without_costs_is_rewarded_by(
    moved: float, market: float, volatility: float | None, horizon: int
) -> None:
    outcome = Outcome(
        actual_return=moved,
        benchmark_return=market,
        volatility=volatility,
        horizon_sessions=horizon,
        round_trip_cost=0.01,
    )
    bought = TradingOutcome("AAA", "buy", actual_return=moved, volatility=volatility or None, holding_period=horizon)
    rewarded = RewardCalculator(volatility_scaling=True).calculate_reward(bought, market)
    assert outcome.move == pytest.approx(rewarded.return_reward)


def test_an_ordinary_move_grows_with_the_root_of_the_sessions_and_has_a_floor_and_a_default() -> None:
    assert ordinary_move(0.03, 4) == pytest.approx(0.06)
    assert ordinary_move(None, 4) == pytest.approx(0.04)
    assert ordinary_move(0.0, 4) == ordinary_move(0.001, 4) == pytest.approx(0.002)
    assert ordinary_move(0.03, None) == ordinary_move(0.03, 0.25) == ordinary_move(0.03, 0) == 0.03


def outcome_of(moves: float, weight: float = 1.0) -> Outcome:
    """An outcome of so many ordinary moves."""
    return Outcome(actual_return=moves * 0.02 * math.sqrt(5), volatility=0.02, weight=weight)


def test_the_scale_is_two_standard_deviations_of_what_states_lead_to() -> None:
    states = [
        (outcome_of(1.0, 0.75), outcome_of(-1.0, 0.25)),
        (outcome_of(-0.5),),
        (outcome_of(2.0, 0.5), outcome_of(-1.0, 0.5)),
    ]
    assert decision_scale(states) == pytest.approx(2 * pstdev([0.5, -0.5, 0.5]))


def test_where_states_do_not_differ_or_there_are_none_the_scale_is_the_clamp() -> None:
    assert decision_scale([]) == RETURN_CLAMP
    assert decision_scale([(outcome_of(0.7),)] * 5) == RETURN_CLAMP
    assert decision_scale(iter([(outcome_of(0.7),)])) == RETURN_CLAMP


def test_what_a_state_is_rewarded_by_are_its_own_and_the_outcomes_of_its_like_by_their_share() -> None:
    rows = world(160, 5)
    pooled = pooled_outcomes("strategist", rows, [7, 3, 7], 256)
    assert pooled.keys() == {3, 7}
    for number, outcomes in pooled.items():
        assert len(outcomes) == 20
        assert math.fsum(outcome.weight for outcome in outcomes) == pytest.approx(1)
        assert rows[number].outcomes[0].actual_return == outcomes[0].actual_return
        like = {row.outcomes[0].actual_return for row in rows if row.state_text == rows[number].state_text}
        assert {outcome.actual_return for outcome in outcomes} <= like


def test_simulated_outcomes_keep_their_probabilities_where_they_are_pooled() -> None:
    rows = [example(STATE, "strategist", outcome_of(1.0, 0.75), outcome_of(-1.0, 0.25)) for _ in range(16)]
    assert [outcome.weight for outcome in pooled_outcomes("strategist", rows, [0], 256)[0]] == [0.375, 0.125] * 2


@pytest.mark.parametrize(("count", "neighbours"), [(160, 1), (15, 256), (1, 256)])
def test_one_neighbour_or_few_examples_leave_each_its_own_outcome(count: int, neighbours: int) -> None:
    rows = world(count, 6)
    pooled = pooled_outcomes("strategist", rows, range(count), neighbours)
    assert pooled == {number: row.outcomes for number, row in enumerate(rows)}


def test_the_pooled_outcomes_tell_the_better_side_far_more_often_than_single_ones() -> None:
    """The vote is right two times in three; over all rows the neighbours say so nearly always."""
    rows = world(400, 7)
    pooled = pooled_outcomes("strategist", rows, range(400), 256)

    def right(outcomes: Any) -> float:
        reward = CounterfactualReward("strategist", rows, WEIGHTS, outcomes, decision_scale(outcomes.values()))
        votes = [1 if "vote:0.5" in row.state_text else -1 for row in rows]
        said = [
            answer("buy" if vote > 0 else "sell", state=row.state_text) for vote, row in zip(votes, rows, strict=True)
        ]
        return fmean(
            reward.score(row, text, outcomes[number]).decision > 0
            for number, (row, text) in enumerate(zip(rows, said, strict=True))
        )

    assert 0.55 < right({number: row.outcomes for number, row in enumerate(rows)}) < 0.75
    assert right(pooled) > 0.99


def asked(reward: CounterfactualReward, texts: list[str], numbers: list[int]) -> list[float]:
    said = [[{"role": "assistant", "content": text}] for text in texts]
    return reward(said, numbers, lambda name, value: None)


def test_the_trainer_is_given_the_rewards_of_the_pooled_outcomes() -> None:
    row = example(actual_return=0.0447213595)
    pooled = {0: (outcome_of(-1.0, 0.5), outcome_of(-0.5, 0.5))}
    reward = CounterfactualReward("strategist", [row], WEIGHTS, pooled, 1.5)
    (given_to_trainer,) = asked(reward, [answer("buy")], [0])
    assert given_to_trainer == reward.score(row, answer("buy"), pooled[0]).total
    assert reward.score(row, answer("buy"), pooled[0]).decision == pytest.approx(-0.5)
    assert reward.score(row, answer("buy")).decision == pytest.approx(1 / 1.5)


def test_an_answer_that_was_scored_before_earns_the_same_and_only_on_its_own_row() -> None:
    rows = [example(actual_return=0.03), example(actual_return=-0.03)]
    reward = CounterfactualReward("strategist", rows, WEIGHTS)
    texts, numbers = [answer("buy"), answer("buy"), answer("sell"), answer("buy"), "no"], [0, 1, 0, 0, 1]
    first = asked(reward, texts, numbers)
    assert asked(reward, texts, numbers) == first
    assert first == [reward.score(rows[number], text).total for text, number in zip(texts, numbers, strict=True)]
    assert first[0] == first[3] > first[1]
