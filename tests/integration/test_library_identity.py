"""A spool belongs to one database; a database that takes no writes is one that is away; content hashes as it comes back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pytest

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library.cycle import CycleBatch
from data_pipeline.library.operations import CommitCycle, decode, encode
from data_pipeline.library.portfolio_log import GENESIS, PortfolioEvent
from utils.errors import ComponentStartError, LibraryUnavailable
from utils.ids import uuid7

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)


def _trajectory(name: str = "t", **changes: object) -> Trajectory:
    fields: dict = {
        "trajectory_id": name, "timestamp": T0.timestamp(), "symbol": "AAPL", "agent_type": "technical",
        "market_state": {"regime": "neutral"}, "agent_inputs": {}, "reasoning": "r", "confidence": 0.5,
    }  # fmt: skip
    return Trajectory(**{**fields, **changes})


def _read_only(url: str, *, on: bool) -> None:
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {'on' if on else 'off'}")
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            (name,),
        )


def test_writes_to_a_database_that_has_become_read_only_wait_in_the_spool(
    new_database: Callable[[], str], tmp_path: Path
) -> None:
    url = new_database()
    library = ExperienceLibraryPostgres(dsn=url, spool_dir=tmp_path / "spool")
    try:
        _read_only(url, on=True)
        assert library.store_trajectory(_trajectory())
        assert library.spool is not None
        assert library.spool.operations == 1
        _read_only(url, on=False)
        library.database._outage.answered()
        library.drain()
        assert library.get_trajectory("t") is not None
    finally:
        library.close()


def test_a_read_only_database_without_a_spool_is_unavailable(new_database: Callable[[], str]) -> None:
    url = new_database()
    library = ExperienceLibraryPostgres(dsn=url)
    try:
        _read_only(url, on=True)
        with pytest.raises(LibraryUnavailable, match="read-only"):
            library.store_trajectory(_trajectory())
    finally:
        library.close()


def test_what_waits_in_a_spool_is_not_given_to_another_database(
    new_database: Callable[[], str], tmp_path: Path
) -> None:
    url, other = new_database(), new_database()
    library = ExperienceLibraryPostgres(dsn=url, spool_dir=tmp_path / "spool")
    _read_only(url, on=True)
    assert library.store_trajectory(_trajectory())
    library.close()
    with pytest.raises(ComponentStartError, match="is another one"):
        ExperienceLibraryPostgres(dsn=other, spool_dir=tmp_path / "spool")
    _read_only(url, on=False)
    again = ExperienceLibraryPostgres(dsn=url, spool_dir=tmp_path / "spool")
    try:
        assert again.get_trajectory("t") is not None
    finally:
        again.close()


def test_a_trajectory_is_the_same_content_when_it_comes_back(new_database: Callable[[], str]) -> None:
    library = ExperienceLibraryPostgres(dsn=new_database())
    try:
        library.store_trajectory(_trajectory(similar_ids=("x", "y")))
        stored = library.get_trajectory("t")
        assert stored is not None
        assert library.store_trajectory(stored)
    finally:
        library.close()
    mark = PortfolioEvent.chained(uuid7(), "mark", T0, {}, GENESIS)
    direct = CommitCycle(CycleBatch("adhoc", T0, [mark], trajectories=[_trajectory(similar_ids=("x",))]), "model")
    spooled = decode(encode(direct))
    assert isinstance(spooled, CommitCycle)
    assert spooled.rows.rows[0][-1] == direct.rows.rows[0][-1]


def test_a_query_that_is_nothing_in_half_precision_is_refused_and_shadow_opinions_are_not_found(
    new_database: Callable[[], str],
) -> None:
    library = ExperienceLibraryPostgres(dsn=new_database())
    try:
        vector = np.eye(384, dtype=np.float32)[0]
        outcome = {"actual_return": 0.01, "success": True, "reward": 0.5, "matured_at": T0, "embedding": vector}
        library.store_trajectories([_trajectory("seen", **outcome), _trajectory("shadow", shadow=True, **outcome)])
        assert [t.trajectory_id for t, _ in library.find_similar_trajectories(vector)] == ["seen"]
        with pytest.raises(ValueError, match="half precision"):
            library.find_similar_trajectories([1e-9] * 384)
    finally:
        library.close()
