"""Where a base model comes from: the recipe, a folder, or a repository of the hub, and what each must hold."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.model_hub import COMMIT, FakeModelHub

from training.base_models import resolve_base_model
from training.small_base_model import Recipe, build_base_model
from utils.artifacts import verify
from utils.errors import TrainingFailed

pytest.importorskip("torch")
pytest.importorskip("huggingface_hub")

pytestmark = pytest.mark.timeout(120)

MICRO = Recipe(hidden_size=32, layers=1, heads=2, intermediate_size=32, steps=2, batch_size=2, warmup_steps=1)
REPOSITORY = "stock-lab/Tiny-1.5_Instruct"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base_model(tmp_path_factory.mktemp("built"), MICRO)


@pytest.fixture
def model(built: Path, tmp_path: Path) -> Path:
    """A copy of the built model as a user has it: weights, tokenizer, template, and files that are none of a model's."""
    folder = tmp_path / "mine"
    shutil.copytree(built, folder, ignore=shutil.ignore_patterns("manifest.json"))
    (folder / "modeling_tiny.py").write_text("raise SystemExit('code of a model was run')")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("A model.")
    return folder


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModelHub]:
    from huggingface_hub import constants

    with FakeModelHub(REPOSITORY, model, ("main", "v1.0")) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


def test_the_built_in_model_is_built_once_and_known_by_its_digest(built: Path) -> None:
    assert resolve_base_model("builtin:tiny", built.parent, MICRO) == (built, verify(built).digest)


def test_a_users_folder_is_taken_as_it_is(model: Path, tmp_path: Path) -> None:
    folder, digest = resolve_base_model(str(model), tmp_path)
    assert (folder, len(digest)) == (model, 64)
    (model / "model.safetensors").write_bytes(b"other weights")
    assert resolve_base_model(str(model), tmp_path)[1] != digest


@pytest.mark.parametrize(
    "missing, complaint",
    [
        ("chat_template.jinja", "no chat template"),
        ("model.safetensors", r"no .*weights"),
        ("config.json", "neither builtin:tiny nor a folder"),
        ("tokenizer.json", "no usable tokenizer"),
    ],
)
def test_a_folder_without_a_part_of_a_model_is_refused_by_the_part(
    model: Path, tmp_path: Path, missing: str, complaint: str
) -> None:
    (model / missing).unlink()
    with pytest.raises(TrainingFailed, match=complaint):
        resolve_base_model(str(model), tmp_path)


@pytest.mark.parametrize("name", ["/no/such/folder", "tiny", "./org/name", "org/name@", "a/b/c", "../x"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused_without_asking_the_hub(
    hub: FakeModelHub, tmp_path: Path, name: str
) -> None:
    with pytest.raises(TrainingFailed, match="neither builtin:tiny nor a folder"):
        resolve_base_model(name, tmp_path)
    assert hub.requests == []


def test_a_hub_id_is_downloaded_without_code_or_pickles_and_equals_its_folder(
    hub: FakeModelHub, model: Path, tmp_path: Path
) -> None:
    folder, digest = resolve_base_model(REPOSITORY, tmp_path)
    assert folder == tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / COMMIT
    wanted = {path.name for path in model.iterdir()} - {"modeling_tiny.py", "pytorch_model.bin", "README.md"}
    assert {path.name for path in folder.iterdir()} == hub.downloaded == wanted
    for name in ("modeling_tiny.py", "pytorch_model.bin", "README.md"):
        (model / name).unlink()
    assert resolve_base_model(str(model), tmp_path) == (model, digest)


def test_a_second_run_takes_the_cache_and_downloads_no_file_again(hub: FakeModelHub, tmp_path: Path) -> None:
    first = resolve_base_model(REPOSITORY, tmp_path)
    files = len([request for request in hub.requests if "/resolve/" in request.path])
    assert resolve_base_model(REPOSITORY, tmp_path) == first
    assert len([request for request in hub.requests if "/resolve/" in request.path]) == files


def test_a_revision_is_asked_for_by_its_name_and_an_unknown_one_is_refused(hub: FakeModelHub, tmp_path: Path) -> None:
    folder, _ = resolve_base_model(f"{REPOSITORY}@v1.0", tmp_path)
    assert folder.name == COMMIT
    assert any(request.path.endswith("/revision/v1.0") for request in hub.requests)
    assert resolve_base_model(f"{REPOSITORY}@{COMMIT}", tmp_path)[0] == folder
    with pytest.raises(TrainingFailed, match=r"hf download stock-lab/Tiny-1.5_Instruct --revision v2.0`"):
        resolve_base_model(f"{REPOSITORY}@v2.0", tmp_path)


def test_an_unknown_repository_is_refused_with_what_to_do(hub: FakeModelHub, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"cannot be had .*correct the name, .*hf auth login.*give a folder"):
        resolve_base_model("stock-lab/none", tmp_path)


def test_a_hub_that_is_away_is_not_missed_where_the_cache_is_whole(hub: FakeModelHub, tmp_path: Path) -> None:
    found = resolve_base_model(REPOSITORY, tmp_path)
    hub.close()
    assert resolve_base_model(REPOSITORY, tmp_path) == found
    with pytest.raises(TrainingFailed, match=r"hf download stock-lab/other` once with network"):
        resolve_base_model("stock-lab/other", tmp_path)


def test_offline_mode_asks_nobody(hub: FakeModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingFailed, match="once with network"):
        resolve_base_model(REPOSITORY, tmp_path)
    assert hub.requests == []


def test_a_repository_without_a_chat_template_is_refused_like_a_folder(
    hub: FakeModelHub, model: Path, tmp_path: Path
) -> None:
    (model / "chat_template.jinja").unlink()
    with pytest.raises(TrainingFailed, match="no chat template"):
        resolve_base_model(REPOSITORY, tmp_path)


def test_a_folder_of_the_name_goes_before_the_hub(
    hub: FakeModelHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stock-lab").mkdir()
    model.rename(tmp_path / REPOSITORY)
    monkeypatch.chdir(tmp_path)
    assert resolve_base_model(REPOSITORY, tmp_path)[0] == tmp_path / REPOSITORY
    assert hub.requests == []
