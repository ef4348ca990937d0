"""Feature hashing: the same everywhere, free of scale, and near for states that are alike."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.embeddings import DIMENSION, FeatureHashingEmbedder

EMBEDDER = FeatureHashingEmbedder()


def state(**changes: Any) -> dict[str, Any]:
    return {
        "regime": "bull_market",
        "inputs": {"volatility": 0.3, "trend_strength": 0.6, "news_impact": 0.1},
        "signals": {"trend": 0.5, "momentum": 0.4},
        **changes,
    }


def test_an_embedding_is_a_unit_vector_of_384_single_floats() -> None:
    vector = EMBEDDER.embed(state())
    assert vector.shape == (DIMENSION,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)


def test_another_process_with_another_hash_seed_gives_the_same_bytes() -> None:
    code = (
        "from data_pipeline.embeddings import FeatureHashingEmbedder as E;"
        "print(E().embed({'regime': 'crash', 'inputs': {'volatility': 0.9}, 'note': ['beats estimates']}).tobytes().hex())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    here = EMBEDDER.embed({"regime": "crash", "inputs": {"volatility": 0.9}, "note": ["beats estimates"]})
    assert seen == {here.tobytes().hex() + "\n"}


@pytest.mark.parametrize("empty", [{}, "", "12 34 !", {"price": 3.0}, {"inputs": {}}, {"x": None}, {"x": float("nan")}])
def test_a_state_without_features_is_the_zero_vector(empty) -> None:
    assert not EMBEDDER.embed(empty).any()


def test_prices_levels_and_volumes_do_not_count() -> None:
    priced = state(price=10.0, current_price=10.0, volume=1e6, indicators={"sma_20": 9.5}, support_levels=[9.0])
    dear = state(price=1e4, current_price=1e4, volume=1e9, indicators={"sma_20": 9.5e3}, support_levels=[9e3])
    assert np.array_equal(EMBEDDER.embed(priced), EMBEDDER.embed(dear))
    assert np.array_equal(EMBEDDER.embed(priced), EMBEDDER.embed(state()))


def test_the_order_of_keys_does_not_count() -> None:
    turned = dict(reversed(list(state().items())))
    assert np.allclose(EMBEDDER.embed(turned), EMBEDDER.embed(state()), atol=1e-7)


def test_a_state_is_nearer_to_a_slightly_moved_one_than_to_another_regime() -> None:
    origin = EMBEDDER.embed(state())
    moved = EMBEDDER.embed(state(inputs={"volatility": 0.33, "trend_strength": 0.55, "news_impact": 0.1}))
    opposite = EMBEDDER.embed(
        state(regime="crash", inputs={"volatility": 0.95, "trend_strength": -0.8, "news_impact": 0.9})
    )
    assert origin @ moved > 0.98
    assert origin @ moved > origin @ opposite + 0.3


def test_nearness_falls_as_a_number_moves_away() -> None:
    origin = EMBEDDER.embed(state())
    similarities = [
        float(origin @ EMBEDDER.embed(state(inputs={"volatility": 0.3, "trend_strength": t, "news_impact": 0.1})))
        for t in (0.6, 0.3, 0.0, -0.3, -0.6)
    ]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == pytest.approx(1.0, abs=1e-6)


def test_texts_that_share_words_are_nearer_than_texts_that_do_not() -> None:
    query = EMBEDDER.embed("Apple beats estimates on record iPhone sales")
    near = EMBEDDER.embed("record iPhone sales lift Apple above estimates")
    far = EMBEDDER.embed("oil producers agree to cut output")
    assert query @ near > query @ far + 0.3


@pytest.mark.parametrize("other", [None, 3, [1, 2], b"bytes"])
def test_what_is_neither_state_nor_text_is_a_type_error(other) -> None:
    with pytest.raises(TypeError, match=type(other).__name__):
        EMBEDDER.embed(other)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150)
@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=6))
def test_any_json_state_gives_a_finite_vector_of_length_one_or_zero(made) -> None:
    vector = EMBEDDER.embed(made)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-4) or not vector.any()
