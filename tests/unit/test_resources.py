"""Whether disk and memory allow a training: words that name the setting and the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.code_version import code_version
from training.resources import Resources, measure, shortage, size_of

PLENTY = Resources(used=0, free_disk=50_000_000_000, available_memory=8_000_000_000)


def test_enough_of_everything_lacks_nothing() -> None:
    assert shortage(PLENTY, 20, 2) is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Resources(20_000_000_000, 50_000_000_000, 8_000_000_000), ["20.00 GB", "learning.disk_budget_gb is 20"]),
        (Resources(0, 900_000_000, 8_000_000_000), ["0.90 GB free", "wants 1", "learning.disk_budget_gb"]),
        (Resources(0, 50_000_000_000, 1_500_000_000), ["1.50 GB of memory", "learning.free_memory_gb is 2"]),
    ],
)
def test_what_is_too_little_is_named_with_its_setting_and_its_figures(found: Resources, words: list[str]) -> None:
    lacking = shortage(found, 20, 2)
    assert lacking is not None
    assert all(word in lacking for word in words)


def test_only_data_sets_and_trainings_count_against_the_disk_budget(tmp_path: Path) -> None:
    for name, size in (("datasets", 1000), ("training/a/adapter", 200), ("models/base", 5000)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"x" * size)
    (tmp_path / "training" / "gone").symlink_to(tmp_path / "nowhere")
    found = measure(tmp_path)
    assert 1200 <= found.used < 1400
    assert found.free_disk > 0
    assert found.available_memory > 0
    assert size_of(tmp_path / "models") == 5000


def test_a_data_directory_that_is_not_there_yet_uses_nothing(tmp_path: Path) -> None:
    assert measure(tmp_path / "new" / "place").used == 0


def test_the_version_of_the_code_names_package_and_commit() -> None:
    assert code_version().startswith("0.")
    assert "\n" not in code_version()
