"""A daemon with an encoder: trajectories are stored first and embedded beside the decisions; a replay waits for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra `training`")

from daemon_runner import Daemon, new_home, query, run_to_end
from encoder_factory import write_encoder

pytestmark = pytest.mark.timeout(290)

PERIOD = ("--feed", "replay", "--streaming_symbols", "AAPL", "MSFT", "--replay_start", "2008-09-02", "--exit_when_done")
VECTORS = (
    "SELECT t.trajectory_id, e.embedding_model, e.embedding::text, e.success, e.reward, e.matured_at FROM trajectories t "
    "LEFT JOIN trajectory_embeddings e USING (trajectory_id) WHERE NOT t.abstained ORDER BY t.trajectory_id"
)


@pytest.fixture
def settings(home: Path) -> Path:
    folder = write_encoder(home / "tiny-bert")
    path = home / "settings.yaml"
    path.write_text(f"embeddings: {{model: {folder}, batch: 4}}\n")
    return path


def test_a_replay_ends_with_every_opinion_embedded_and_a_killed_one_leaves_the_same_vectors(
    home: Path, settings: Path
) -> None:
    flags = ("--enable_streaming", *PERIOD, "--replay_end", "2008-10-10", "--config", str(settings))
    ended = run_to_end(home, *flags)
    assert ended.exit_code == 0, ended.stderr
    whole: list[tuple[Any, ...]] = query(home / "data", VECTORS)
    assert len(whole) > 50
    assert {row[1] for row in whole} == {whole[0][1]}
    assert whole[0][1].startswith("tiny-bert-")
    assert {row[3] for row in whole} >= {True, False}  # outcomes are mirrored
    with new_home() as place:
        with Daemon(place, *flags, "--enable_monitoring", "--replay_speed", "400000") as daemon:
            daemon.until(lambda: daemon.status().get("progress", {}).get("decisions", 0) > 10, "ten decisions")
            daemon.kill()
        ended = run_to_end(place, *flags)
        assert ended.exit_code == 0, ended.stderr
        assert query(place / "data", VECTORS) == whole


def test_an_encoder_that_cannot_be_used_is_one_line_and_exit_code_2(home: Path) -> None:
    path = home / "settings.yaml"
    path.write_text("embeddings: {model: /nowhere/at/all}\n")
    ended = run_to_end(home, "--check_config", "--config", str(path))
    assert ended.exit_code == 2
    assert "embeddings.model" in ended.complaint
    assert "/nowhere/at/all" in ended.complaint
