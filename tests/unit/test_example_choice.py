"""How examples are chosen: each key once, cells evenly, nothing by chance."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.example_choice import balanced, without_duplicates

Item = tuple[str, int]
items = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 50)), max_size=60)


def cell(item: Item) -> str:
    return item[0]


def test_of_each_key_the_first_stays_in_order() -> None:
    assert without_duplicates(["aX", "bX", "aY", "cX", "bY"], lambda word: word[0]) == ["aX", "bX", "cX"]
    assert without_duplicates([], hash) == []
    assert without_duplicates([0, False, None, 0.0], lambda value: value) == [0, None]


def test_a_small_cell_is_taken_whole_and_what_it_leaves_goes_to_the_others() -> None:
    made = [("a", i) for i in range(100)] + [("b", i) for i in range(2)] + [("c", i) for i in range(100)]
    chosen = balanced(made, 20, cell)
    assert Counter(map(cell, chosen)) == {"a": 9, "b": 2, "c": 9}
    assert [number for name, number in chosen if name == "a"] == list(range(9))


def test_all_fit_where_the_limit_allows() -> None:
    made = [("a", 1), ("b", 1), ("a", 2)]
    assert sorted(balanced(made, 3, cell)) == sorted(balanced(made, 1000, cell)) == sorted(made)
    assert balanced([], 5, cell) == []


@pytest.mark.parametrize("limit", [0, -1])
def test_no_room_takes_nothing(limit: int) -> None:
    assert balanced([("a", 1), ("b", 1)], limit, cell) == []


@given(items, st.integers(0, 70))
def test_no_cell_has_two_more_than_one_that_is_not_exhausted(made: list[Item], limit: int) -> None:
    chosen = balanced(made, limit, cell)
    assert len(chosen) == min(limit, len(made))
    assert not Counter(chosen) - Counter(made)
    there, taken = Counter(map(cell, made)), Counter(map(cell, chosen))
    unserved = [name for name in there if taken[name] < there[name]]
    assert all(taken[name] <= taken[other] + 1 for name in there for other in unserved)
    for name in there:
        assert [i for i in chosen if cell(i) == name] == [i for i in made if cell(i) == name][: taken[name]]


@given(items, st.integers(0, 70))
def test_the_order_in_which_cells_first_appear_changes_nothing(made: list[Item], limit: int) -> None:
    by_cell = sorted(made, key=cell)
    assert balanced(by_cell, limit, cell) == balanced(made, limit, cell)
