"""The worth of retrieval: a planted gain is found, none is claimed where there is none, and nothing of the future is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_pipeline.library.matured_vectors import MaturedVectors, VectorSet
from evaluation import retrieval_gain
from evaluation.retrieval_gain import ERROR_RATE, History, brier_scores, log_losses, probabilities, walk
from evaluation.retrieval_quality import RetrievalReport, render, report

DAY = 86_400.0
SOURCE = VectorSet("r" * 32, "model-v1", 0)


def experiences(sessions: int, a_day: int, seed: int, *, width: int = 16, horizon: int = 5) -> MaturedVectors:
    """Decisions without any structure: `a_day` symbols a session, random vectors, fair outcomes."""
    rng = np.random.default_rng(seed)
    n = sessions * a_day
    day = np.repeat(np.arange(sessions), a_day)
    vectors = rng.normal(size=(n, width)).astype(np.float32)
    return MaturedVectors(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        as_of=day * DAY + 72_000.0,
        matured_at=(day + horizon) * DAY + 72_000.0,
        decision_id=np.array([f"d{number}" for number in range(n)]),
        symbol=np.array([f"S{number % a_day}" for number in range(n)]),
        market_regime=np.array(["bull", "bear"])[rng.integers(0, 2, n)],
        recommendation=np.array(["buy", "sell", "hold"])[rng.integers(0, 3, n)],
        success=rng.random(n) < 0.5,
        horizon=f"{horizon}d",
    )


def planted(data: MaturedVectors, strength: float, seed: int) -> MaturedVectors:
    """Let success depend on the side of the first axis that a vector points to."""
    rng = np.random.default_rng(seed)
    p = 0.5 + strength * np.sign(data.vectors[:, 0])
    return replace(data, success=rng.random(len(p)) < p)


def measured(data: MaturedVectors, **options: Any) -> RetrievalReport:
    return report(SOURCE, {"technical": data}, **{"queries": 1_500, **options})


def test_a_planted_gain_is_found_with_its_size() -> None:
    (agent,) = measured(planted(experiences(500, 6, 1), 0.3, 2)).agents
    assert agent.verdict == "gain"
    assert agent.brier.claim_low > 0
    assert agent.brier.low <= agent.brier.mean <= agent.brier.high
    assert agent.brier.mean == pytest.approx(agent.brier.base_rate - agent.brier.retrieval)
    # the base rate costs .25; who knew the sign would pay .25 - .3² = .16
    assert agent.brier.base_rate == pytest.approx(0.25, abs=0.01)
    assert 0.02 < agent.brier.mean < 0.09
    around = agent.neighbourhood
    assert around.succeeded_where_right > around.succeeded_where_wrong + 0.05


def test_shuffled_outcomes_are_claimed_to_be_a_gain_no_more_often_than_stated() -> None:
    trials = 60
    claims = 0
    data = planted(experiences(260, 4, 3), 0.3, 4)
    rng = np.random.default_rng(5)
    for _ in range(trials):
        shuffled = replace(data, success=rng.permutation(data.success))
        claims += measured(shuffled, queries=500).agents[0].verdict == "gain"
    # with a true rate of 2 %, more than 4 of 60 come up less than once in a hundred times
    assert claims <= 4
    assert ERROR_RATE == 0.02


def test_outcomes_that_a_market_shares_are_no_gain_of_retrieval() -> None:
    trials, sessions, a_day = 40, 260, 4
    claims = 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        # outcomes over 5 overlapping sessions, the same for all symbols of a day; states that drift slowly
        market = np.convolve(rng.normal(size=sessions + 4), np.ones(5), "valid")
        drift = np.cumsum(rng.normal(size=(sessions, 16)), axis=0) / 4
        vectors = np.repeat(drift, a_day, axis=0) + rng.normal(size=(sessions * a_day, 16)) / 2
        data = replace(
            experiences(sessions, a_day, seed),
            vectors=(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
            success=np.repeat(market > 0, a_day),
            recommendation=np.full(sessions * a_day, "buy"),
        )
        claims += measured(data, queries=500).agents[0].verdict == "gain"
    assert claims <= 3  # more than 3 of 40 at 2 % come up less than once in a hundred times


def test_neighbours_are_those_of_a_search_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(retrieval_gain, "_CHUNK", 7)
    data = experiences(40, 3, 6)
    history = History(data)
    queries = np.flatnonzero(history.known >= 20)
    known = walk(history, queries, k=4, depth=8)
    for row, query in enumerate(queries):
        before = [
            place
            for place in range(len(data.success))
            if data.matured_at[place] < data.as_of[query] and data.decision_id[place] != data.decision_id[query]
        ]
        before.sort(key=lambda place: -float(data.vectors[place] @ data.vectors[query]))
        assert list(known.nearest[row]) == before[:4]
        alike = [place for place in before if data.recommendation[place] == data.recommendation[query]][:8]
        assert known.found[row] == len(alike)
        assert known.hits[row, -1] == data.success[alike].sum()
        assert known.hits[row, 2] == data.success[alike[:3]].sum()


def test_what_had_not_matured_by_a_decision_cannot_change_what_is_said_of_it() -> None:
    data = planted(experiences(120, 4, 7), 0.3, 8)
    history = History(data)
    cut = 80 * DAY
    queries = np.flatnonzero((history.known >= 100) & (data.as_of < cut))
    later = data.matured_at >= cut
    poisoned = replace(
        data,
        success=np.where(later, ~data.success, data.success),
        vectors=np.where((data.as_of >= cut)[:, None], -data.vectors, data.vectors),
        recommendation=np.where(data.as_of >= cut, "strong_buy", data.recommendation),
    )
    known, again = walk(history, queries, 5), walk(History(poisoned), queries, 5)
    assert np.array_equal(known.base, again.base)
    assert np.array_equal(known.hits, again.hits)
    assert np.array_equal(known.nearest, again.nearest)


def test_outcomes_of_the_reported_period_choose_nothing() -> None:
    data = planted(experiences(300, 4, 9), 0.3, 10)
    (first,) = measured(data).agents
    late = data.matured_at >= first.reported_from
    (second,) = measured(replace(data, success=np.where(late, ~data.success, data.success))).agents
    assert (second.neighbours, second.smoothing) == (first.neighbours, first.smoothing)
    assert second.brier != first.brier


def test_a_decision_is_never_its_own_neighbour_even_where_several_rows_share_it() -> None:
    data = experiences(60, 4, 11)
    data = replace(data, decision_id=np.array([f"d{number // 8}" for number in range(len(data.success))]))
    data = replace(data, matured_at=data.as_of + 60)  # so that a later row could see an earlier one of its decision
    history = History(data)
    queries = np.flatnonzero(history.known >= 20)
    known = walk(history, queries, 10)
    neighbours = data.decision_id[known.nearest]
    assert (known.nearest >= 0).all()
    assert not (neighbours == data.decision_id[queries][:, None]).any()


def test_the_base_rate_is_the_trailing_one_of_the_action_drawn_to_the_agents() -> None:
    data = experiences(60, 4, 12)
    history = History(data)
    query = np.array([150])
    before = data.matured_at < data.as_of[150]
    same = before & (data.recommendation == data.recommendation[150])
    overall = (data.success[before].sum() + 1) / (before.sum() + 2)
    expected = (data.success[same].sum() + 20 * overall) / (same.sum() + 20)
    assert history.base_rate(query)[0] == pytest.approx(expected)
    assert history.counts("action", query)[0] == same.sum()


def test_smoothing_draws_the_neighbours_rate_to_the_base_rate() -> None:
    known = retrieval_gain.Walk(
        np.array([0.4]), np.array([[1.0, 2.0, 2.0, 2.0, 2.0]]), np.array([3]), np.zeros((1, 1), int)
    )
    assert probabilities(known, 2, 10.0)[0] == pytest.approx((2 + 4) / 12)
    assert probabilities(known, 5, 10.0)[0] == pytest.approx((2 + 4) / 13)  # only three were found


def test_scores_are_those_of_the_books() -> None:
    p, y = np.array([0.8, 0.8]), np.array([1.0, 0.0])
    assert brier_scores(p, y) == pytest.approx([0.04, 0.64])
    assert log_losses(p, y) == pytest.approx([-np.log(0.8), -np.log(0.2)])
    assert np.isfinite(log_losses(np.array([0.0]), np.array([1.0]))).all()


@pytest.mark.parametrize(("sessions", "a_day"), [(3, 2), (40, 4), (70, 4)])
def test_a_short_run_is_said_to_be_short(sessions, a_day) -> None:
    found = measured(experiences(sessions, a_day, 13))
    assert found.agents[0].verdict == "too little data"
    assert "No gain" in render(found)


def test_the_report_says_plainly_what_was_found() -> None:
    text = render(measured(experiences(260, 4, 14)))
    assert "technical: no gain" in text or "technical: loss" in text
    assert "No gain: nothing here shows" in text
    text = render(measured(planted(experiences(500, 6, 1), 0.3, 2)))
    assert "technical: gain" in text
    assert "better than the base rate for: technical" in text


def test_the_same_seed_gives_the_same_report_and_the_sample_is_bounded() -> None:
    data = experiences(260, 4, 15)
    first, second = (measured(data, queries=100).to_dict() for _ in range(2))
    assert first == second
    assert first["agents"][0]["reported_on"] == 100
    assert measured(data, queries=100, seed=1).to_dict() != first


def test_neighbours_that_share_a_label_are_counted_against_chance() -> None:
    data = experiences(260, 4, 16)
    vectors = np.eye(16, dtype=np.float32)[[int(symbol[1:]) for symbol in data.symbol]]
    (agent,) = measured(replace(data, vectors=vectors)).agents
    assert agent.neighbourhood.symbol.neighbours == 1.0
    assert agent.neighbourhood.symbol.chance == pytest.approx(0.25, abs=0.01)
    assert agent.neighbourhood.regime.neighbours == pytest.approx(0.5, abs=0.1)
