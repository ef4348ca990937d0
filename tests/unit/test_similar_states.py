"""Which states are taken as alike: distances against plain arithmetic, ties, and what is unknown or constant."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from matured_factory import technical_state

from agents.policies.local.states import state_line, state_values
from training.similar_states import nearest


def found(
    states: Sequence[str], asked: Sequence[int], neighbours: int = 256, agent: str = "technical"
) -> list[list[int]]:
    return [alike.tolist() for _, alike in nearest(agent, states, asked, neighbours)]


def scattered(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        technical_state(
            rsi=rng.uniform(0, 100),
            macd=rng.gauss(0, 3),
            sma20=rng.gauss(0, 2) if rng.random() < 0.8 else None,
            trend=rng.choice(["up", "down", "flat", None]),
            regime="neutral",
        )
        for _ in range(count)
    ]


def test_the_nearest_are_those_of_plain_arithmetic_over_standardised_numbers_and_labels() -> None:
    states = scattered(96, 1)
    stated = [state_values(state) for state in states]
    fields = {}
    for name in ("rsi", "macd", "sma20"):
        known = [float(values[name]) for values in stated if name in values]
        fields[name] = (float(np.mean(known)), float(np.std(known)))

    def place(number: int) -> list[float]:
        values = stated[number]
        numbers = [(float(values[n]) - mean) / sd if n in values else 0.0 for n, (mean, sd) in fields.items()]
        return [*numbers, *(math.sqrt(2) * (values.get("trend") == word) for word in ("up", "down", "flat"))]

    for number, alike in nearest("technical", states, range(96)):
        distances = [math.dist(place(number), place(other)) for other in range(96)]
        assert alike[0] == number
        assert len(set(alike.tolist())) == 12
        assert [distances[other] for other in alike] == pytest.approx(sorted(distances)[:12])


def test_an_eighth_of_all_states_is_alike_at_most_and_one_at_least() -> None:
    states = scattered(40, 2)
    assert [len(alike) for alike in found(states, [0, 39])] == [5, 5]
    assert [len(alike) for alike in found(states, [0], neighbours=3)] == [3]
    assert found(states[:15], [7]) == [[7]]
    assert found(states[:16], [7])[0][0] == 7
    assert found(states[:1], [0]) == [[0]]


def test_nobody_asked_is_nobody_answered() -> None:
    assert found(scattered(20, 3), []) == []
    assert found([], []) == []


def test_states_are_answered_in_the_order_in_which_they_are_asked_whoever_is_asked_beside_them() -> None:
    """More than two of the portions in which distances are computed."""
    states = scattered(600, 4)
    together = dict(zip(range(600), found(states, range(600), 20), strict=True))
    assert [number for number, _ in nearest("technical", states, [599, 3, 300])] == [599, 3, 300]
    assert found(states, [599, 3, 300], 20) == [together[599], together[3], together[300]]


def test_of_equal_states_each_comes_before_the_others_and_these_from_the_oldest_on() -> None:
    assert found([technical_state(rsi=55, macd=-3.3, trend="up")] * 32, [0, 2, 20]) == [
        [0, 1, 2, 3],
        [2, 0, 1, 3],
        [20, 0, 1, 2],
    ]


def test_equally_far_on_either_side_the_older_is_nearer() -> None:
    states = [technical_state(rsi=rsi) for rsi in (40, 60, 50, *[0, 100] * 7)]
    assert len(states) == 17
    assert found(states, [2]) == [[2, 0]]
    states[0], states[1] = states[1], states[0]
    assert found(states, [2]) == [[2, 0]]


def test_what_is_unknown_lies_at_the_mean() -> None:
    states = [technical_state(rsi=rsi) for rsi in (None, 75, 50, *[0, 100] * 6, 75)]
    assert found(states, [0]) == [[0, 2]]


@pytest.mark.parametrize(("rsi", "nearer"), [(70, "same word"), (90, "same number")])
def test_another_word_is_as_far_as_two_standard_deviations(rsi: int, nearer: str) -> None:
    numbers = [20, 20, rsi, *[20, 80] * 7]
    words = ["up", "down", "up", *["flat"] * 14]
    deviations = (rsi - 20) / float(np.std(numbers))
    assert (deviations < 2) is (nearer == "same word")
    states = [technical_state(rsi=number, trend=word) for number, word in zip(numbers, words, strict=True)]
    assert found(states, [0]) == [[0, 2 if nearer == "same word" else 1]]


def test_a_field_that_never_differs_separates_nothing_from_what_does_not_state_it() -> None:
    """Of twelve times 0.1 the computed deviation is not 0."""
    assert np.array([0.1] * 12).std() > 0
    states = [technical_state(rsi=50, bb=0.1)] * 12 + [technical_state(rsi=50)] * 12
    assert found(states, [23, 0]) == [[23, 0, 1], [0, 1, 2]]


def test_texts_that_a_state_quotes_are_no_part_of_it() -> None:
    lines = [state_line("news", {"score": score}) for score in (1.0, -1.0, 1.0, *[-2, 2] * 7)]
    quoting = [f"{lines[0]}\nscore:-1.0 says a headline", *lines[1:]]
    assert found(quoting, [0], agent="news") == found(lines, [0], agent="news") == [[0, 2]]
