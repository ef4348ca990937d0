"""Trained versions for tests without a training: a sealed folder of a few bytes, its training run and its row."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training import training_runs
from training.model_registry import ModelRegistry, ModelVersion, version_name
from utils.artifacts import seal
from utils.hashing import sha256_hex

CUTOFF = datetime(2014, 3, 10, 21, tzinfo=UTC)

GATE: dict[str, Any] = {
    "verdict": "reject",
    "reasons": ["The challenger is <not> shown to earn more reward."],
    "decisions": 612, "sessions": 61, "first_session": "2014-01-02", "last_session": "2014-03-31", "horizon_sessions": 5,
    "reward": {"champion_mean": 0.1125, "challenger_mean": 0.2375, "mean": 0.125, "standard_error": 0.0521,
               "lower_bound": -0.03125, "minimum_detectable_edge": 0.2047},
    "net_return": {"champion_mean": 0.0002, "challenger_mean": 0.0008, "mean": 0.0006, "standard_error": 0.0003,
                   "lower_bound": -0.000725, "minimum_detectable_edge": 0.0015},
    "validity": 0.9876, "grounding": 0.9321, "champion_activity": 0.5, "challenger_activity": 0.4567,
    "block": 20, "few_blocks_factor": 2.0123, "power": 0.8,
    "settings": {"level": 0.98, "min_validity": 0.9, "min_grounding": 0.8, "min_activity": 0.25, "return_margin": 0.0016},
    "by_regime": [{"regime": "bull & calm", "decisions": 301, "sessions": 30, "mean_difference": 0.1515, "lower_bound": None}],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Made:
    """A version and the folder of its training."""

    model: ModelVersion
    folder: Path


def make_version(
    library: ExperienceLibraryPostgres,
    data_dir: Path,
    seed: int,
    *,
    agent: str = "technical",
    kind: str = "sft",
    state: str = "rejected",
    base_model: str = "builtin:tiny",
    cutoff: datetime = CUTOFF,
    started_at: datetime | None = None,
    config: dict[str, Any] | None = None,
    gate: dict[str, Any] | None = GATE,
    metrics: dict[str, Any] | None = None,
    training_state: str = "completed",
) -> Made:
    """Write an adapter below `data_dir`/training and register it as a training that has ended would have."""
    training = uuid.UUID(int=seed)
    folder = (data_dir / "training" / str(training)).resolve()
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(seed.to_bytes(4, "big") * 1000)
    digest = seal(adapter, {"base_sha256": "b" * 64}).digest
    model = ModelVersion(
        version_name(agent, digest), agent, training, adapter, digest, base_model, "b" * 64, data_dir, gate, state
    )
    dataset = sha256_hex(f"data set {seed}")
    begun = started_at or cutoff
    with library.connection() as connection, connection.cursor() as cursor:
        training_runs.register_dataset(
            cursor, dataset, kind, agent, data_dir / "d.jsonl", 321, (CUTOFF, CUTOFF), {}, ()
        )
        training_runs.start(
            cursor, training, library.run_id, agent, kind, trigger={"new_successes": 120, "needed": 100},
            config={"algorithm": "by hand", "code_version": "0.1.0+gabc", "seed": 42, **(config or {})}, data_cutoff=cutoff,
            dataset_id=dataset, started_at=begun,
        )  # fmt: skip
        if training_state != "running":
            training_runs.end(
                cursor, training, training_state, begun, metrics={"version": model.version, **(metrics or {})}
            )
        ModelRegistry(library).register(cursor, model)
    return Made(model, folder)


def promote(
    library: ExperienceLibraryPostgres, made: Made, at: datetime = CUTOFF, reason: str = "for this test"
) -> None:
    """Make a version the champion of the library's run."""
    with library.connection() as connection, connection.cursor() as cursor:
        ModelRegistry(library).promote(cursor, made.model, at, reason)
