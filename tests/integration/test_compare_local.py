"""Trained versions in a comparison, from the registry of an embedded library to the report, whatever the workers."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="needs the extra `training`")
pytest.importorskip("peft", reason="needs the extra `training`")

from generated_history import generate
from local_model_lab import micro_base, write_adapter

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training import compare as command
from training import training_runs
from training.model_registry import ModelRegistry, ModelVersion, version_name
from utils.artifacts import folder_digest
from utils.settings import ENVIRONMENT

pytestmark = pytest.mark.timeout(280)

TRAINED_UNTIL = datetime(2014, 3, 10, tzinfo=UTC)


def register(library: ExperienceLibraryPostgres, base: Path, folder: Path, agent: str, seed: int) -> ModelVersion:
    """Register an adapter with random weights as if a training had ended that the gate rejected."""
    adapter, base_sha256 = write_adapter(base, folder / f"a{seed}", seed), folder_digest(base)[1]
    training = uuid.uuid4()
    model = ModelVersion(
        version_name(agent, adapter.sha256), agent, training, adapter.folder, adapter.sha256, str(base), base_sha256, base,
        {"verdict": "reject"}, "rejected",
    )  # fmt: skip
    with library.connection() as connection, connection.cursor() as cursor:
        dataset = f"{seed:064d}"
        training_runs.register_dataset(cursor, dataset, "sft", agent, folder, 0, (None, None), {}, ())
        training_runs.start(
            cursor, training, library.run_id, agent, "sft", trigger={}, config={}, data_cutoff=TRAINED_UNTIL,
            dataset_id=dataset, started_at=TRAINED_UNTIL,
        )  # fmt: skip
        ModelRegistry(library).register(cursor, model)
    return model


def test_trained_versions_of_the_registry_are_compared_and_any_number_of_workers_finds_the_same(
    prepared_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (*ENVIRONMENT.values(), "REPLAY_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    base = micro_base(tmp_path / "base")
    library = ExperienceLibraryPostgres.embedded(prepared_data_dir)
    older, newest = (register(library, base, tmp_path, "technical", seed) for seed in (1, 2))
    library.close()
    history = generate(7, ("AAA", "BBB"), date(2014, 1, 2), date(2014, 5, 30), edge=0.006).write(tmp_path / "history")
    settings = tmp_path / "system.yaml"
    settings.write_text(json.dumps({"learning": {"base_model": str(base)}, "local": {"device": "cpu"}}))
    arm = f"local:{older.version[:18]}"
    given = [
        "--policies", f"rules,local,{arm}", "--replay_dir", str(history), "--data_dir", str(prepared_data_dir),
        "--config", str(settings), "--start", "2014-03-03", "--end", "2014-04-15", "--agents", "technical",
    ]  # fmt: skip
    reports: list[dict[str, Any]] = []
    for workers in ("1", "2"):
        files = [tmp_path / f"{workers}.{ending}" for ending in ("html", "json")]
        assert command.main([*given, "--workers", workers, "--output", str(files[0]), "--json", str(files[1])]) == 0
        reports.append(json.loads(files[1].read_text()))
        reports[-1].pop("timing")
    report = reports[0]
    assert report == reports[1]
    rows = {row["arm"]: row for row in report["rows"]}
    assert rows["local"]["policy"] == f"local:{newest.version}"
    assert rows[arm]["policy"] == f"local:{older.version}"
    for name in ("local", arm):
        assert rows[name]["note"] == "rejected; the gate said: reject"
        assert rows[name]["service"]["answered_by_rules"] == 0
        assert any(
            line.startswith(f"{name}, technical: {rows[name]['policy']} was trained on outcomes until 2014-03-10")
            for line in report["warnings"]
        )
    figures = [json.dumps(rows[name]["figures"]) for name in ("rules", "local", arm)]
    assert len(set(figures)) == 3
    seats = {described["name"]: described["seats"] for described in report["protocol"]["arms"]}
    assert seats[arm]["technical"]["adapter_sha256"] == older.sha256
    assert seats[arm]["strategist"]["policy"] == "rules"
