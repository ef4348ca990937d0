"""One contract for every embedder, and what an encoder's folder must hold. The encoder is a tiny BERT made here."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra `training`")

from encoder_factory import write_encoder

from data_pipeline.embedder_factory import build_embedder, check_embedder
from data_pipeline.embeddings import DIMENSION, Embedder, FeatureHashingEmbedder
from data_pipeline.embeddings_encoder import MINILM_PACKAGE, SentenceEmbedder, read_folder, state_text
from utils.errors import ConfigError
from utils.setting_sections import EmbeddingSettings

BULL = {"regime": "bull_market", "inputs": {"volatility": 0.25, "trend_strength": 0.5}, "signals": {"trend": 0.5}}
CRASH = {"regime": "crash", "inputs": {"volatility": 0.95, "trend_strength": -0.8}, "signals": {"trend": -0.9}}
STATES = [BULL, CRASH, "record sales lift the shares", {}, {"notes": ["beats estimates"]}]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert")


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> SentenceEmbedder:
    return SentenceEmbedder(encoder_folder, batch=2)


@pytest.fixture(params=["hashing", "encoder"])
def embedder(request) -> Embedder:
    return FeatureHashingEmbedder() if request.param == "hashing" else request.getfixturevalue("encoder")


def test_a_vector_has_384_single_floats_and_length_one(embedder) -> None:
    vector = embedder.embed(BULL)
    assert vector.shape == (DIMENSION,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


def test_many_states_are_embedded_in_order_like_one_by_one(embedder) -> None:
    vectors = embedder.embed_many(STATES)
    assert vectors.shape == (len(STATES), DIMENSION)
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, [embedder.embed(state) for state in STATES], atol=1e-5)
    assert embedder.embed_many([]).shape == (0, DIMENSION)


def test_the_same_call_gives_the_same_bytes(embedder) -> None:
    assert embedder.embed_many(STATES).tobytes() == embedder.embed_many(STATES).tobytes()


def test_the_order_of_keys_does_not_count(embedder) -> None:
    turned = dict(reversed(list(BULL.items())))
    assert np.allclose(embedder.embed(turned), embedder.embed(BULL), atol=1e-6)


def test_other_states_point_elsewhere(embedder) -> None:
    assert embedder.embed(BULL) @ embedder.embed(CRASH) < 0.999


@pytest.mark.parametrize("empty", [{}, "", "  ", {"price": 3.0}, {"inputs": {}}, {"x": None}, {"x": float("nan")}])
def test_an_empty_state_is_the_zero_vector_also_among_others(embedder, empty) -> None:
    assert not embedder.embed(empty).any()
    assert [bool(row.any()) for row in embedder.embed_many([BULL, empty, CRASH])] == [True, False, True]


@pytest.mark.parametrize("other", [None, 3, [1, 2], b"bytes"])
def test_what_is_neither_state_nor_text_is_a_type_error(embedder, other) -> None:
    with pytest.raises(TypeError, match=type(other).__name__):
        embedder.embed(other)
    with pytest.raises(TypeError, match=type(other).__name__):
        embedder.embed_many([BULL, other])


def test_hashing_may_run_inline_and_an_encoder_belongs_in_the_background(encoder) -> None:
    assert FeatureHashingEmbedder().inline
    assert not encoder.inline


# --- the encoder


def test_padding_beside_a_longer_text_does_not_count(encoder) -> None:
    alone = encoder.embed("bull market")
    beside = encoder.embed_many(["bull market", "crash " * 60])[0]
    assert np.allclose(alone, beside, atol=1e-5)


def test_the_name_of_a_model_changes_with_its_weights_and_not_with_its_place(encoder_folder, tmp_path) -> None:
    copy = shutil.copytree(encoder_folder, tmp_path / "elsewhere" / encoder_folder.name)
    assert read_folder(copy).model == read_folder(encoder_folder).model
    assert read_folder(copy).model.startswith("tiny-bert-")
    other = write_encoder(tmp_path / "other" / encoder_folder.name, seed=1)
    assert read_folder(other).model != read_folder(encoder_folder).model


def test_a_folder_that_pools_by_its_first_token_is_read_so(encoder, tmp_path) -> None:
    folder = write_encoder(tmp_path / "tiny-bert", pooling={"pooling_mode_cls_token": True})
    assert read_folder(folder).pooling == "cls"
    other = SentenceEmbedder(folder)
    assert other.model != encoder.model
    assert not np.allclose(other.embed(BULL), encoder.embed(BULL), atol=1e-2)


def test_a_text_beyond_the_encoders_window_is_cut(encoder) -> None:
    assert np.array_equal(encoder.embed("market " * 500), encoder.embed("market " * 900))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "sentence-transformers model"),
        (lambda folder: (folder / "config.json").write_text("[]"), "sentence-transformers model"),
        (lambda folder: (folder / "modules.json").write_text('[{"type": "models.Dense", "path": "2"}]'), "'Dense'"),
        (lambda folder: (folder / "modules.json").write_text('{"a": 1}'), "sentence-transformers model"),
        (lambda folder: (folder / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}'), "max_tokens"),
        (lambda folder: (folder / "1_Pooling/config.json").write_text("{}"), "pools by nothing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"), "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_folder_without_a_usable_model_is_a_config_error_that_names_it(
    encoder_folder, tmp_path, break_it, message
) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "broken")
    break_it(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        SentenceEmbedder(folder)
    assert "broken" in str(caught.value)
    assert "embeddings.model" in str(caught.value)


def test_a_model_of_another_size_is_a_config_error_that_names_it(tmp_path) -> None:
    folder = write_encoder(tmp_path / "too-small", size=128)
    with pytest.raises(ConfigError, match=r"too-small gives 128 values.*384"):
        SentenceEmbedder(folder)


def test_code_that_comes_with_a_model_is_not_run(encoder_folder, tmp_path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "with-code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    with pytest.raises(ConfigError, match="with-code"):
        SentenceEmbedder(folder)
    assert not (folder / "ran").exists()


def test_the_text_of_a_state_names_what_it_holds_without_prices() -> None:
    state = {
        "price": 101.5,
        "regime": "bull_market",
        "inputs": {"volatility": 0.25123, "count": 3, "huge": 10**400},
        "halted": False,
        "notes": ["beats estimates", 5],
        "nothing": None,
    }
    assert state_text(state) == (
        f"halted: no; inputs count: 3; inputs huge: 1{'0' * 19}; inputs volatility: 0.251; notes: beats estimates; regime: bull market"
    )


# --- the choice


def test_the_setting_chooses_the_embedder(encoder_folder, encoder) -> None:
    assert build_embedder(EmbeddingSettings()).model == FeatureHashingEmbedder.model
    assert build_embedder(EmbeddingSettings(model=str(encoder_folder))).model == encoder.model
    assert check_embedder(EmbeddingSettings()) is None


def test_a_folder_that_is_not_there_is_a_config_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*hashing, minilm"):
        check_embedder(EmbeddingSettings(model=str(tmp_path / "nowhere")))


@pytest.mark.skipif(importlib.util.find_spec(MINILM_PACKAGE) is not None, reason="the extra `minilm` is installed")
def test_minilm_without_its_package_is_a_config_error_that_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"stock-agents\[minilm\]"):
        check_embedder(EmbeddingSettings(model="minilm"))


@pytest.mark.skipif(importlib.util.find_spec(MINILM_PACKAGE) is None, reason="needs the extra `minilm`")
def test_the_packaged_minilm_knows_what_texts_mean() -> None:
    embedder = build_embedder(EmbeddingSettings(model="minilm"))
    assert embedder.model.startswith("all-minilm-l6-v2-")
    query, near, far = embedder.embed_many(
        ["Profits beat expectations", "Earnings exceeded estimates", "It rained in the mountains"]
    )
    assert query @ near > query @ far + 0.3
    assert embedder.embed(BULL) @ embedder.embed({**BULL, "inputs": {"volatility": 0.26}}) > 0.8
