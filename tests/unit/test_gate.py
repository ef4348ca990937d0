"""The gate: rarely wrong without skill, sees a clear edge, and is not fooled by what only looks better."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest

from evaluation.gate import (
    Answered,
    Criterion,
    GateEvidence,
    GateSettings,
    GateVerdict,
    PairedDecision,
    evaluate_gate,
)

START = date(2014, 1, 2)
QUICK = GateSettings(draws=400)
SYMBOLS = ("AAPL", "GOOG", "IBM", "MSFT")


def evidence_of(
    champion: np.ndarray,
    challenger: np.ndarray,
    *,
    valid: np.ndarray | None = None,
    grounded: np.ndarray | None = None,
    regimes: list[str] | None = None,
) -> GateEvidence:
    """Pair net returns of shape (sessions, symbols); the reward is the return in units of two percent."""
    sessions, symbols = champion.shape
    return GateEvidence(
        tuple(
            PairedDecision(
                START + timedelta(days=day),
                SYMBOLS[column],
                50 * float(champion[day, column]),
                50 * float(challenger[day, column]),
                float(champion[day, column]),
                float(challenger[day, column]),
                True if valid is None else bool(valid[day, column]),
                True if grounded is None else bool(grounded[day, column]),
                None if regimes is None else regimes[day],
            )
            for day in range(sessions)
            for column in range(symbols)
        )
    )


def returns_of(rng: np.random.Generator, sessions: int, mean: float = 0.0) -> np.ndarray:
    return rng.normal(mean, 0.02, (sessions, len(SYMBOLS)))


def clear_edge(sessions: int = 160, **options: np.ndarray | list[str]) -> GateEvidence:
    rng = np.random.default_rng(11)
    return evidence_of(returns_of(rng, sessions), returns_of(rng, sessions, 0.01), **options)  # type: ignore[arg-type]


def at_most(trials: int, rate: float) -> int:
    """Return the count that a true `rate` exceeds with a probability below .1 % (normal bound with continuity)."""
    return int(trials * rate + 3.09 * (trials * rate * (1 - rate)) ** 0.5 + 0.5)


def test_without_skill_on_independent_decisions_promotions_are_as_rare_as_the_level_says() -> None:
    rng = np.random.default_rng(1)
    trials = 300
    promoted = sum(
        evaluate_gate(evidence_of(returns_of(rng, 60), returns_of(rng, 60)), QUICK).promoted for _ in range(trials)
    )
    # level .98: at most 2 % of 300 by the binomial bound of .1 %
    assert promoted <= at_most(trials, 0.02)


def test_without_skill_on_dependent_decisions_with_a_common_daily_factor_promotions_stay_rare() -> None:
    rng = np.random.default_rng(2)
    trials, sessions = 300, 120
    promoted = 0
    for _ in range(trials):
        daily = rng.normal(0, 0.01, sessions + 4)
        market = np.convolve(daily, np.ones(5), "valid")  # five-session outcomes that overlap
        bets = np.sign(np.convolve(rng.normal(size=sessions + 9), np.ones(10), "valid"))  # a market-wide, lasting bet
        own = rng.normal(0, 0.02, (2, sessions, len(SYMBOLS)))
        champion = market[:, None] + own[0]
        challenger = bets[:, None] * market[:, None] + own[1]
        promoted += evaluate_gate(evidence_of(champion, challenger), QUICK).promoted
    # measured over 1,500 trials: 2.7 % with blocks of 20, 16 % where sessions are taken for independent
    assert promoted <= at_most(trials, 0.035)


def test_a_clear_edge_is_found_with_the_power_that_the_verdict_states() -> None:
    rng = np.random.default_rng(3)
    trials, sessions = 150, 200
    first = evaluate_gate(evidence_of(returns_of(rng, sessions), returns_of(rng, sessions)), QUICK)
    assert first.reward is not None
    edges = []
    found = 0
    for _ in range(trials):
        verdict = evaluate_gate(evidence_of(returns_of(rng, sessions), returns_of(rng, sessions, 0.0035)), QUICK)
        assert verdict.reward is not None
        edges.append(verdict.reward.minimum_detectable_edge)
        found += verdict.promoted
    # planted: 35 bp, in reward 50·.0035 = .175; the stated edge lies near it, so about .80 must be found
    assert np.median(edges) == pytest.approx(0.175, rel=0.15)
    assert 0.65 <= found / trials <= 0.92


def test_a_clear_edge_is_promoted_with_reasons_and_every_number() -> None:
    verdict = evaluate_gate(clear_edge())
    assert verdict.verdict == "promote"
    assert (verdict.decisions, verdict.sessions, verdict.block) == (640, 160, 20)
    assert verdict.reward is not None
    assert verdict.reward.mean == pytest.approx(verdict.reward.challenger_mean - verdict.reward.champion_mean)
    assert 0 < verdict.reward.lower_bound < verdict.reward.mean
    assert len(verdict.reasons) == 5
    assert all(reason.endswith(".") and reason[0].isupper() for reason in verdict.reasons)


def test_the_verdict_is_the_same_for_the_same_seed_and_order_does_not_matter() -> None:
    evidence = clear_edge()
    shuffled = GateEvidence(tuple(reversed(evidence.decisions)))
    first, again, turned = (evaluate_gate(item) for item in (evidence, evidence, shuffled))
    assert first == again
    assert first.reward == turned.reward
    assert evaluate_gate(evidence, GateSettings(seed=7)).reward != first.reward


def test_the_verdict_is_json() -> None:
    values = json.loads(json.dumps(evaluate_gate(clear_edge()).to_dict(), allow_nan=False))
    assert values["first_session"] == "2014-01-02"
    assert values["settings"]["draws"] == 4000
    assert {"seed", "level", "return_margin", "min_validity", "min_grounding"} <= set(values["settings"])
    assert {"mean", "standard_error", "lower_bound", "minimum_detectable_edge"} <= set(values["reward"])
    assert values["overlap_factor"] == pytest.approx(1.0426, abs=1e-4)
    criteria = {item["name"]: item for item in values["criteria"]}
    assert criteria["validity"] == {
        "name": "validity", "met": True, "figures": {"share": 1.0, "floor": 0.9},
        "text": "The share of valid outputs is 100.0%, at or above the floor of 90%.",
    }  # fmt: skip
    assert len(criteria) == 12


@pytest.mark.parametrize(("sessions", "symbols", "lack"), [(59, 4, "59 sessions"), (65, 3, "195 paired decisions")])
def test_too_little_evidence_is_no_verdict_however_clear_the_edge(sessions: int, symbols: int, lack: str) -> None:
    rng = np.random.default_rng(4)
    champion = returns_of(rng, sessions)[:, :symbols]
    verdict = evaluate_gate(evidence_of(champion, champion + 0.05))
    assert verdict.verdict == "insufficient_evidence"
    assert lack in verdict.reasons[0]


def test_long_horizons_need_more_sessions() -> None:
    evidence = dataclasses.replace(clear_edge(100), horizon_sessions=10)
    verdict = evaluate_gate(evidence)
    assert (verdict.verdict, verdict.block) == ("insufficient_evidence", 40)
    assert "100 sessions hold fewer than 3 blocks of 40" in verdict.reasons[0]
    assert verdict.reward is not None
    assert verdict.reward.lower_bound is None


def test_no_evidence_at_all_is_insufficient() -> None:
    verdict = evaluate_gate(GateEvidence(()))
    assert (verdict.verdict, verdict.reward, verdict.validity) == ("insufficient_evidence", None, None)
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_generated_data_may_declare_its_sessions_independent() -> None:
    verdict = evaluate_gate(clear_edge(60), GateSettings(independent_sessions=True))
    assert (verdict.block, verdict.verdict) == (1, "promote")


def criterion(verdict: GateVerdict, name: str) -> Criterion:
    (found,) = (item for item in verdict.criteria if item.name == name)
    return found


def rejected_for(verdict: GateVerdict, words: str) -> bool:
    return verdict.verdict == "reject" and len(verdict.reasons) == 1 and words in verdict.reasons[0]


def test_a_challenger_that_always_holds_does_not_beat_a_losing_champion() -> None:
    champion = returns_of(np.random.default_rng(5), 160, -0.01)
    verdict = evaluate_gate(evidence_of(champion, np.zeros_like(champion)))
    assert verdict.reward is not None
    assert verdict.reward.lower_bound > 0
    assert rejected_for(verdict, "takes a side in 0.0% of the decisions")


def test_a_challenger_that_always_holds_does_not_beat_a_good_champion() -> None:
    champion = returns_of(np.random.default_rng(5), 160, 0.01)
    assert not evaluate_gate(evidence_of(champion, np.zeros_like(champion))).promoted


def test_a_side_that_the_champion_took_in_place_of_an_invalid_answer_is_no_call_of_the_challenger() -> None:
    """Holding nine times in ten and invalid once in ten, the challenger would else pass for a quarter as active."""
    rng = np.random.default_rng(12)
    champion = returns_of(rng, 160, -0.01)
    champion[:, 1:] = 0.0  # one symbol in four is traded
    invalid = np.arange(160) % 3 == 0
    challenger = np.zeros_like(champion)
    challenger[invalid] = champion[invalid]
    valid = np.ones_like(champion, dtype=bool)
    valid[invalid, 0] = False
    verdict = evaluate_gate(evidence_of(champion, challenger, valid=valid))
    assert verdict.validity is not None
    assert verdict.validity >= 0.9
    assert verdict.challenger_activity == 0
    assert rejected_for(verdict, "takes a side in 0.0% of the decisions")


def test_an_exact_copy_of_the_champion_is_not_better() -> None:
    champion = returns_of(np.random.default_rng(6), 160)
    verdict = evaluate_gate(evidence_of(champion, champion))
    assert rejected_for(verdict, "not shown to earn more reward")


@pytest.mark.parametrize(("share", "promoted"), [(0.11, False), (0.09, True)])
def test_invalid_outputs_above_a_tenth_are_rejected_whatever_they_earn(share: float, promoted: bool) -> None:
    valid = (np.arange(640) >= round(640 * share)).reshape(160, 4)
    verdict = evaluate_gate(clear_edge(valid=valid))
    assert verdict.promoted is promoted
    assert verdict.validity == pytest.approx(1 - share, abs=0.001)


def test_copied_phrases_without_grounding_are_rejected_whatever_they_earn() -> None:
    grounded = (np.arange(640) % 4 != 0).reshape(160, 4)
    assert rejected_for(evaluate_gate(clear_edge(grounded=grounded)), "grounded in their evidence is 75.0%")


def test_an_invalid_output_cannot_be_grounded() -> None:
    valid = (np.arange(640) % 12 != 0).reshape(160, 4)
    assert evaluate_gate(clear_edge(valid=valid)).grounding == pytest.approx(586 / 640)


def test_more_reward_at_the_price_of_net_return_is_rejected() -> None:
    rng = np.random.default_rng(7)
    evidence = evidence_of(returns_of(rng, 160), returns_of(rng, 160, -0.004))
    better = tuple(dataclasses.replace(d, challenger_reward=d.champion_reward + 1) for d in evidence.decisions)
    assert rejected_for(evaluate_gate(GateEvidence(better)), "not shown to be not inferior")


def test_many_symbols_a_day_count_as_one_session() -> None:
    rng = np.random.default_rng(8)
    daily = rng.normal(0.002, 0.02, (160, 1))
    champion = np.zeros((160, 4)) + rng.normal(0, 1e-6, (160, 4))
    one = evaluate_gate(evidence_of(champion[:, :1].repeat(4, axis=1), daily.repeat(4, axis=1)))
    alone = evaluate_gate(evidence_of(champion[:, :1], daily), GateSettings(min_decisions=100))
    assert one.reward is not None
    assert alone.reward is not None
    assert one.reward.standard_error == pytest.approx(alone.reward.standard_error)


def test_regimes_are_reported_and_those_with_too_few_sessions_are_not_judged() -> None:
    verdict = evaluate_gate(clear_edge(regimes=["bull_market"] * 100 + ["crash"] * 60))
    assert [(f.regime, f.decisions, f.sessions) for f in verdict.by_regime] == [
        ("bull_market", 400, 100),
        ("crash", 240, 60),
    ]
    short = evaluate_gate(clear_edge(regimes=["bull_market"] * 120 + ["crash"] * 40))
    assert short.by_regime[1].lower_bound is None
    assert short.verdict == verdict.verdict == "promote"
    found = criterion(short, "regimes")
    assert (found.met, found.figures["judged"], found.figures["not_judged"]) == (True, ["bull_market"], ["crash"])
    assert "Too few sessions to be judged: crash (40 sessions)" in found.text
    assert criterion(evaluate_gate(clear_edge()), "regimes").met is None


def test_a_longer_held_out_period_asks_for_no_longer_regimes() -> None:
    evidence = clear_edge(regimes=["bull_market"] * 100 + ["crash"] * 60)
    verdict = evaluate_gate(evidence, GateSettings(min_sessions=160))
    assert [figures.lower_bound is not None for figures in verdict.by_regime] == [True, True]


def in_two_regimes(rng: np.random.Generator, first: float, second: float, sessions: int = 240) -> GateEvidence:
    """Edges in two regimes that take turns every ten sessions; symbols move on their own."""
    crash = np.arange(sessions) // 10 % 2 == 1
    edge = np.where(crash, second, first)[:, None]
    champion, challenger = returns_of(rng, sessions), returns_of(rng, sessions) + edge
    return evidence_of(champion, challenger, regimes=["crash" if bad else "bull_market" for bad in crash])


def test_a_challenger_that_buys_one_regime_with_losses_in_another_is_rejected() -> None:
    verdict = evaluate_gate(in_two_regimes(np.random.default_rng(12), 0.02, -0.01))
    assert verdict.reward is not None
    assert verdict.reward.lower_bound > 0
    assert criterion(verdict, "regimes").figures["worse"] == ["crash"]
    assert "inferior in a regime by more than 0.05" in " ".join(verdict.reasons)


def test_a_regime_without_any_edge_does_not_stop_a_challenger_more_often_than_the_level_says() -> None:
    rng, trials = np.random.default_rng(13), 150
    stopped = sum(
        criterion(evaluate_gate(in_two_regimes(rng, 0.01, -0.001), QUICK), "regimes").met is False
        for _ in range(trials)
    )
    # a true loss at the margin (.001 is .05 of reward here) in one of two judged regimes: half of 2 %
    assert stopped <= at_most(trials, 0.01)


def test_doubled_or_infinite_records_are_refused() -> None:
    one = clear_edge().decisions[0]
    with pytest.raises(ValueError, match="twice"):
        GateEvidence((one, one))
    with pytest.raises(ValueError, match="not finite"):
        GateEvidence((dataclasses.replace(one, challenger_reward=float("nan")),))


SIDES = ("buy", "hold", "sell")


def answering(
    champion: Callable[[int], Answered], challenger: Callable[[int], Answered], states: int = 640
) -> GateVerdict:
    """Give a clear edge to a challenger that answers so in each of its different states."""
    decisions = tuple(
        dataclasses.replace(
            item,
            state=f"state {number % states}",
            champion_answer=champion(number % states),
            challenger_answer=challenger(number % states),
        )
        for number, item in enumerate(clear_edge().decisions)
    )
    return evaluate_gate(GateEvidence(decisions))


def varied(number: int, **changes: Any) -> Answered:
    """What a policy that reads its state says: all sides, several confidences, and citations that differ."""
    values = {"cited": f"rsi:{number % 20}", "truthful": f"rsi:{number % 20}", "fatal": frozenset[str](), **changes}
    return Answered(SIDES[number % 3], 0.5 + 0.1 * (number % 4), **values)


def test_a_policy_that_reads_its_state_passes_every_criterion_on_answers() -> None:
    verdict = answering(varied, varied)
    assert verdict.verdict == "promote"
    assert [item.met for item in verdict.criteria].count(True) == 11  # no regimes here


def test_one_new_fatal_error_is_enough_and_an_old_one_is_not() -> None:
    def broken(number: int) -> Answered:
        return varied(number, fatal=frozenset({"hallucination"}) if number == 5 else frozenset())

    assert answering(broken, broken).promoted
    assert answering(broken, varied).promoted
    assert rejected_for(answering(varied, broken), "fatal errors that the champion did not make: hallucination in 1")


def test_a_fatal_error_elsewhere_is_new_even_where_the_champion_has_more() -> None:
    def often(number: int) -> Answered:
        return varied(number, fatal=frozenset({"hallucination"}) if number < 50 else frozenset())

    def once(number: int) -> Answered:
        return varied(number, fatal=frozenset({"hallucination"}) if number == 60 else frozenset())

    verdict = answering(often, once)
    assert rejected_for(verdict, "hallucination in 1; 1 of 640 outputs have any, 50 of the champion's")


def test_outputs_that_cannot_be_rebuilt_are_said_to_be_unexamined() -> None:
    verdict = answering(varied, lambda number: varied(number, fatal=None))
    assert verdict.promoted
    assert criterion(verdict, "fatal_errors").met is None


def test_one_more_hit_of_the_guard_is_enough_in_any_family() -> None:
    def hit(family: str, place: int) -> Callable[[int], Answered]:
        return lambda number: varied(number, attacks=frozenset({family}) if number == place else frozenset())

    assert answering(hit("buzzword_salad", 1), hit("buzzword_salad", 2)).promoted
    swapped = answering(hit("buzzword_salad", 1), hit("instruction_injection", 1))
    assert rejected_for(swapped, "more often (instruction_injection): in 1 of 640 outputs, 1 of the champion's")


def test_an_answer_that_ignores_the_state_is_rejected_though_it_is_not_quite_constant() -> None:
    def deaf(number: int) -> Answered:
        return dataclasses.replace(varied(number), recommendation="sell" if number % 15 == 0 else "buy", confidence=0.7)

    verdict = answering(varied, deaf)
    assert rejected_for(verdict, "the answer hardly changes when the state does")
    assert "69.8% of its sides paid: a base rate" in criterion(verdict, "same_confidence").text


@pytest.mark.parametrize(("stated", "honest"), [(0.6, True), (0.8, True), (0.9, False), (0.4, False)])
def test_one_confidence_is_honest_where_sides_pay_as_often_as_it_says(stated: float, honest: bool) -> None:
    verdict = answering(varied, lambda number: dataclasses.replace(varied(number), confidence=stated))
    assert criterion(verdict, "same_confidence").figures["sides_that_paid"] == pytest.approx(0.698, abs=1e-3)
    assert (criterion(verdict, "same_confidence").met, verdict.promoted) == (honest, honest)


def test_what_the_champion_earned_in_place_of_invalid_answers_does_not_make_a_confidence_honest() -> None:
    decisions = tuple(
        dataclasses.replace(
            item,
            state=f"state {number}",
            champion_answer=varied(number),
            challenger_answer=dataclasses.replace(varied(number), confidence=0.7),
            challenger_valid=number % 12 > 0,
            challenger_net_return=-0.01 if number % 12 == 0 else item.challenger_net_return,
        )
        for number, item in enumerate(clear_edge().decisions)
    )
    own = [item.challenger_net_return > 0 for item in decisions if item.challenger_valid]
    verdict = evaluate_gate(GateEvidence(decisions))
    assert criterion(verdict, "same_confidence").figures["sides_that_paid"] == pytest.approx(sum(own) / len(own))


def test_a_pupil_of_a_champion_with_one_confidence_may_know_one_as_well_but_not_one_side() -> None:
    def even(number: int) -> Answered:
        return dataclasses.replace(varied(number), confidence=0.7)

    def constant(number: int) -> Answered:
        return dataclasses.replace(varied(number), recommendation="buy")

    assert answering(even, even).promoted
    assert rejected_for(answering(constant, constant), "says buy on 100.0% of the different states")


def test_repeated_phrases_are_told_from_citations_though_most_of_them_are_true() -> None:
    def rare(number: int) -> str:
        return f"articles:{number if number % 12 == 0 else 0}"

    verdict = answering(varied, lambda number: varied(number, cited="articles:0", truthful=rare(number)))
    assert verdict.grounding == 1.0  # nine in ten would be: the floor alone does not see it
    assert rejected_for(verdict, "take 1 forms where the states' own words take 54")


@pytest.mark.parametrize("states", [1, 7])
def test_a_handful_of_states_says_nothing_about_how_answers_follow_them(states: int) -> None:
    verdict = answering(varied, lambda number: dataclasses.replace(varied(0)), states)
    assert verdict.promoted
    assert all(criterion(verdict, name).met is None for name in ("same_side", "same_confidence", "response"))


def test_equal_policies_whose_means_differ_by_rounding_alone_are_not_promoted() -> None:
    champion = np.zeros((160, 4))
    verdict = evaluate_gate(evidence_of(champion, champion + 1e-17))
    assert rejected_for(verdict, "not shown to earn more reward")


@pytest.mark.parametrize(
    "field", ["level", "regime_level", "return_margin", "regime_margin", "min_validity", "min_variety", "draws"]
)
def test_impossible_settings_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        GateSettings(**{field: -1})
