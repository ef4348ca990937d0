"""Versions and live decisions by hand: what a trial reads, without a model, a market or a training."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agents.policies.local.engine import Adapter
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.feeds.factory import build_feed
from data_pipeline.library import findings, trajectories
from data_pipeline.library.findings import Finding
from data_pipeline.library_access import open_library
from monitoring import recovery
from training import training_runs
from training.model_registry import ModelRegistry, ModelVersion
from utils.settings import OrchestratorConfig

START = datetime(2014, 1, 6, 21, tzinfo=UTC)
HORIZON = 5
SYMBOLS = tuple(f"S{number:02d}" for number in range(10))
GATE = {
    "verdict": "promote",
    "reward": {"standard_error": 0.02},
    "sessions": 250,
    "block": 1,
    "settings": {"level": 0.98},
}
"""A verdict by which a session's difference has a long-run deviation of about .32."""


def decided(session: int) -> datetime:
    """Return when the decisions of a session are taken."""
    return START + timedelta(days=session)


def matured(session: int) -> datetime:
    """Return when their outcomes are known."""
    return decided(session) + timedelta(days=HORIZON)


def add_version(
    library: ExperienceLibraryPostgres,
    name: str,
    *,
    adapter: Adapter | None = None,
    base_sha256: str = "0" * 64,
    base_dir: Path = Path("base"),
    gate: dict[str, Any] | None = GATE,
) -> ModelVersion:
    """Register a version under a training of its own; its agent stands in its name."""
    agent_type, training = name.split("@")[0], uuid.uuid4()
    nowhere = Path(tempfile.gettempdir()) / "versions-without-bytes" / name / "adapter"  # its card is written beside it
    model = ModelVersion(
        name, agent_type, training, adapter.folder if adapter else nowhere, adapter.sha256 if adapter else "0" * 64,
        "builtin:tiny", base_sha256, base_dir, gate, "trained",
    )  # fmt: skip
    with library.connection() as connection, connection.cursor() as cursor:
        training_runs.register_dataset(cursor, "0" * 64, "sft", agent_type, Path("data"), 1, (None, None), {}, ())
        training_runs.start(
            cursor, training, library.run_id, agent_type, "sft", trigger={}, config={}, data_cutoff=START,
            dataset_id="0" * 64, started_at=START,
        )  # fmt: skip
        training_runs.end(cursor, training, "completed", START)
        ModelRegistry(library).register(cursor, model)
    return model


def move(
    library: ExperienceLibraryPostgres, act: str, model: ModelVersion, at: datetime, reason: str = "by hand"
) -> None:
    """Move an alias, as a command line in another process would."""
    with library.connection() as connection, connection.cursor() as cursor:
        getattr(ModelRegistry(library), act)(cursor, model, at, reason)


def opinion(session: int, symbol: str, policy: str, right: bool, *, shadow: bool = False, **fields: Any) -> Trajectory:
    """One matured call on an instrument that rises by 3 %."""
    call = "buy" if right else "sell"
    return Trajectory(
        **{
            "trajectory_id": f"{policy}-{symbol}-{session}-{shadow}",
            "decision_id": f"{symbol}-{session}",
            "timestamp": decided(session).timestamp(),
            "as_of": decided(session),
            "symbol": symbol,
            "agent_type": "technical",
            "recommendation": call,
            "market_regime": "neutral",
            "market_state": {} if shadow else {"inputs": {"daily_volatility": 0.015}},
            "agent_inputs": {},
            "reasoning": "a guess",
            "confidence": 0.7,
            "policy": policy,
            "shadow": shadow,
            "actual_return": 0.03,
            "benchmark_return": 0.0,
            "reward": 1.0 if right else -1.0,
            "success": right,
            "costs": 0.0016,
            "matured_at": matured(session),
            **fields,
        }
    )


def store(library: ExperienceLibraryPostgres, rows: Sequence[Trajectory], found: Sequence[Finding] = ()) -> None:
    """Write rows and findings as a cycle's commit does."""
    with library.connection() as connection, connection.cursor() as cursor:
        trajectories.copy_rows(cursor, map(trajectories.as_row, rows))
        findings.copy_rows(cursor, found)


def decide(
    library: ExperienceLibraryPostgres,
    sessions: range,
    serving: tuple[str, bool],
    *shadows: tuple[str, bool],
    symbols: Sequence[str] = SYMBOLS,
    **fields: Any,
) -> None:
    """Store decisions: the policy that serves and those in its shadow, each with whether it is right.

    `fields` are the shadows'.
    """
    rows = []
    for session in sessions:
        for symbol in symbols:
            rows.append(opinion(session, symbol, *serving))
            rows += [opinion(session, symbol, *shadow, shadow=True, **fields) for shadow in shadows]
    store(library, rows)


def fatal(row: Trajectory) -> Finding:
    """A fatal finding in an opinion."""
    return Finding(row.trajectory_id, "schema.missing_field", "fatal", None, "/x", "broken", "mend it", "schema", {})


@contextlib.contextmanager
def prepared_run(config: OrchestratorConfig) -> Iterator[ExperienceLibraryPostgres]:
    """Open the database of a daemon that is yet to start, with the run that it will find to be its own."""
    library = open_library(config)
    try:
        feed = build_feed(config)
        identity = recovery.identify(config, feed, embedding=library.embedder.model, base_model=None)
        library.run_id = recovery.open_run(library, identity, fresh=False).run_id
        yield library
    finally:
        library.close()


def moves(library: ExperienceLibraryPostgres) -> list[tuple[Any, ...]]:
    """Return what the aliases of the run have done, but for the wall's time."""
    return [dataclasses.astuple(event) for event in ModelRegistry(library).events()]
