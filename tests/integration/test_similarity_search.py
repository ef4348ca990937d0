"""The planner of the similarity search: every filter keeps its recall, whichever method answers, with and without an index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import search_plan
from data_pipeline.library.search_plan import SearchPlanner, index_name
from data_pipeline.library.similarity import Search, SearchFilter

ROWS = 4_000
QUERIES = 30
START = datetime(2015, 1, 1, tzinfo=UTC)
HALF = START + timedelta(hours=ROWS // 2)
AGENTS = ("technical", "news", "fundamental", "strategist")
REGIMES = ("bull_market", "bear_market", "neutral", "crash")
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "the query's own agent": {"agent_type": "technical"},
    "another agent": {"agent_type": "strategist"},
    "regime": {"market_regime": "crash"},
    "symbol": {"symbol": "S07"},
    "rare reward": {"min_reward": 2.0},
    "success and action": {"success": True, "recommendation": "buy"},
    "half of time": {"as_of": HALF},
    "all together": {
        "agent_type": "news", "market_regime": "crash", "success": True, "as_of": HALF, "recommendation": "buy",
    },
}  # fmt: skip


class Methods:
    """A telemetry that counts which method answered."""

    def __init__(self) -> None:
        self.used: Counter[str] = Counter()

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self.used[labels["method"]] += 1

    def gauge(self, name: str, value: float | None, **labels: str) -> None:
        raise AssertionError("a search sets no gauge")

    observe = gauge


def _trajectories() -> list[Trajectory]:
    """Agents form clusters, regimes weaker ones within; actions, symbols and outcomes none."""
    rng = np.random.default_rng(11)
    centres = {agent: rng.normal(size=384) for agent in AGENTS}
    shifts = {regime: 0.4 * rng.normal(size=384) for regime in REGIMES}
    rows = []
    for i in range(ROWS):
        agent, regime = AGENTS[rng.choice(4, p=(0.5, 0.2, 0.2, 0.1))], REGIMES[rng.integers(4)]
        vector = centres[agent] + shifts[regime] + 0.7 * rng.normal(size=384)
        at = START + timedelta(hours=i)
        reward = float(rng.normal())
        rows.append(
            Trajectory(
                trajectory_id=f"t{i:05d}", timestamp=at.timestamp(), symbol=f"S{i % 40:02d}", agent_type=agent,
                market_state={"regime": regime}, agent_inputs={}, reasoning="r", confidence=0.5, market_regime=regime,
                recommendation=("buy", "hold", "sell")[i % 3], actual_return=0.01, reward=reward, success=reward > 0,
                matured_at=at + timedelta(minutes=30), embedding=(vector / np.linalg.norm(vector)).astype(np.float32),
            )
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def library(module_database: str) -> Iterator[ExperienceLibraryPostgres]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_plan, "INDEX_ROWS", 1_000)
        patch.setattr(search_plan, "EXACT_ROWS", 100)
        library = ExperienceLibraryPostgres(dsn=module_database)
        library.store_trajectories(_trajectories())
        yield library
        library.close()


@pytest.fixture(scope="module")
def queries() -> list[np.ndarray]:
    return [np.asarray(t.embedding) for t in _trajectories() if t.agent_type == "technical"][:QUERIES]


@pytest.fixture(scope="module")
def indexed(library: ExperienceLibraryPostgres) -> ExperienceLibraryPostgres:
    assert library.maintain() is True
    return library


@pytest.fixture
def methods(library: ExperienceLibraryPostgres, monkeypatch: pytest.MonkeyPatch) -> Methods:
    counter = Methods()
    monkeypatch.setattr(library, "_telemetry", counter)
    return counter


def _expected(query: np.ndarray, limit: int, **wanted: Any) -> list[float]:
    """The similarities of a brute-force search in memory over what halfvec stores."""
    as_of = wanted.pop("as_of", datetime.max.replace(tzinfo=UTC))
    least = wanted.pop("min_reward", -np.inf)
    rows = [
        t
        for t in _trajectories()
        if t.matured_at is not None and t.matured_at < as_of and (t.reward or 0.0) >= least
        if all(getattr(t, name) == value for name, value in wanted.items())
    ]
    stored = np.stack([np.asarray(t.embedding).astype(np.float16).astype(np.float64) for t in rows])
    asked = query.astype(np.float16).astype(np.float64)
    cosine = stored @ asked / np.linalg.norm(stored, axis=1) / np.linalg.norm(asked)
    return sorted(cosine, reverse=True)[:limit]


@pytest.mark.parametrize("name", FILTERS)
def test_an_exact_search_finds_what_brute_force_finds(
    library: ExperienceLibraryPostgres, queries: list[np.ndarray], name: str
) -> None:
    found = library.find_similar_trajectories(queries[0], limit=10, exact=True, **FILTERS[name])
    assert [s for _, s in found] == pytest.approx(_expected(queries[0], 10, **FILTERS[name]), abs=1e-6)


@pytest.mark.parametrize("name", FILTERS)
def test_the_planner_keeps_recall_on_every_filter(
    indexed: ExperienceLibraryPostgres, queries: list[np.ndarray], methods: Methods, name: str
) -> None:
    hits = wanted = 0
    for query in queries:
        truth = indexed.find_similar_trajectories(query, limit=10, exact=True, **FILTERS[name])
        found = indexed.find_similar_trajectories(query, limit=10, exact=False, **FILTERS[name])
        assert len(found) == len(truth)
        wanted += len(truth)
        hits += len({t.trajectory_id for t, _ in truth} & {t.trajectory_id for t, _ in found})
    assert hits / wanted >= 0.98
    assert methods.used.total() == 2 * QUERIES


def test_dense_filters_use_the_index_and_those_elsewhere_do_not(
    indexed: ExperienceLibraryPostgres, queries: list[np.ndarray], methods: Methods
) -> None:
    for query in queries:
        indexed.find_similar_trajectories(query, limit=10)
        indexed.find_similar_trajectories(query, "technical", limit=10)
    assert methods.used["exact"] == 0
    methods.used.clear()
    for query in queries:
        indexed.find_similar_trajectories(query, "strategist", limit=10)
    assert methods.used["exact"] == QUERIES


def test_results_come_nearest_first_with_their_own_content(
    indexed: ExperienceLibraryPostgres, queries: list[np.ndarray]
) -> None:
    found = indexed.find_similar_trajectories(queries[3], "technical", limit=25, market_regime="bull_market")
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
    by_id = {t.trajectory_id: t for t in _trajectories()}
    for trajectory, _ in found:
        original = by_id[trajectory.trajectory_id]
        assert (trajectory.symbol, trajectory.reward) == (original.symbol, original.reward)
        assert (trajectory.agent_type, trajectory.market_regime) == ("technical", "bull_market")


def test_a_library_told_to_be_exact_never_uses_the_index(
    indexed: ExperienceLibraryPostgres, queries: list[np.ndarray], methods: Methods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexed, "exact_search", True)
    indexed.find_similar_trajectories(queries[0], limit=10)
    assert methods.used == {"exact": 1}


def test_more_results_than_the_index_looks_at_are_found_all_the_same(
    indexed: ExperienceLibraryPostgres, queries: list[np.ndarray]
) -> None:
    found = indexed.find_similar_trajectories(queries[0], "technical", limit=400, exact=False)
    truth = indexed.find_similar_trajectories(queries[0], "technical", limit=400, exact=True)
    assert len(found) == 400
    assert len({t.trajectory_id for t, _ in truth} & {t.trajectory_id for t, _ in found}) >= 392


def test_the_index_is_created_once_and_only_when_it_pays(
    indexed: ExperienceLibraryPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert indexed.maintain() is False
    planner = SearchPlanner("a-model-of-few-rows")
    with indexed.database.autocommit_connection() as connection:
        assert planner.maintain(connection) is False
        row = connection.execute("SELECT to_regclass(%s)", (index_name("a-model-of-few-rows"),)).fetchone()
    assert row == (None,)


def test_an_index_left_behind_by_a_cut_off_build_is_built_anew(fresh_database: str) -> None:
    library = ExperienceLibraryPostgres(dsn=fresh_database)
    try:
        name = index_name(library.embedder.model)
        with psycopg.connect(fresh_database, autocommit=True) as connection:
            connection.execute(
                f"CREATE INDEX {name} ON trajectory_embeddings USING hnsw (embedding halfvec_cosine_ops) "
                f"WHERE embedding_model = '{library.embedder.model}'"
            )
            connection.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search_plan, "INDEX_ROWS", 0)
            assert library.maintain() is True
        with psycopg.connect(fresh_database) as connection:
            row = connection.execute(
                f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{name}'::regclass"
            ).fetchone()
        assert row == (True,)
    finally:
        library.close()


def test_a_filtered_walk_of_the_index_passes_only_what_the_filter_lets_through(
    indexed: ExperienceLibraryPostgres, queries: list[np.ndarray]
) -> None:
    wanted = SearchFilter((indexed.run_id,), HALF, market_regime="neutral")
    with indexed.database.reading() as connection, connection.cursor() as cursor:
        walked = Search(cursor, queries[0].astype(np.float32), indexed.embedder.model, wanted, 10).filtered_scan()
    assert len(walked) == 10
    assert {t.market_regime for t, _ in walked} == {"neutral"}
    assert all(t.matured_at is not None and t.matured_at < HALF for t, _ in walked)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"limit": 0}, "limit"),
        ({"min_reward": float("nan")}, "min_reward"),
        ({"as_of": datetime(2020, 1, 1)}, "time zone"),
    ],
)
def test_a_search_that_cannot_be_meant_names_what_is_wrong(
    library: ExperienceLibraryPostgres, queries: list[np.ndarray], arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        library.find_similar_trajectories(queries[0], **arguments)


def test_an_idle_connection_that_the_server_closed_is_replaced_before_it_is_lent(
    library: ExperienceLibraryPostgres,
) -> None:
    with library.connection() as connection:
        pid = connection.info.backend_pid
    with psycopg.connect(library.database._dsn, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with library.connection() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connection.info.backend_pid != pid
