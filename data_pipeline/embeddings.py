"""Embeddings of experiences: where two market states are alike, their vectors point the same way.

The default needs no model: signed feature hashing of scale-free numbers and of words, deterministic on every machine;
encoders are in `embeddings_encoder`. Used by the experience library; vectors of different `model`s are never compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from utils.hashing import sha256_hex

DIMENSION = 384
Vector = NDArray[np.float32]
State = Mapping[str, Any] | str
_WORD = re.compile(r"[a-z]{3,}")
# what carries a scale (dollars, shares) says nothing about another symbol
SCALED_KEYS = frozenset(
    "price current_price open high low close volume indicators support_levels resistance_levels".split()
)
_CATEGORY_WEIGHT = 1.0
_NUMBER_WEIGHT = 1.5
_WORD_WEIGHT = 0.15


class Embedder(Protocol):
    """Turns a state or a text into 384 numbers of length 1.

    Failure contract: an empty state gives the zero vector; anything that is neither text nor a mapping is a TypeError.
    Equal calls give equal vectors; another split into batches may change the last digits.

    Attributes
    ----------
    model : str
        Stored with each vector.
    inline : bool
        Whether a vector is cheap enough to be made while a decision is on its way; if not, it is made in the background.
    """

    model: str
    inline: bool

    def embed(self, state: State) -> Vector:
        """Return the embedding, shape (384,), float32."""
        ...

    def embed_many(self, states: Sequence[State]) -> Vector:
        """Return the embeddings in order, shape (n, 384), float32."""
        ...


class FeatureHashingEmbedder:
    """Signed feature hashing (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009).

    A number adds its value (squashed beyond ±1) at the place of its name, a label adds 1 at the place of name and
    label, a word a small constant. Keys that hold prices or volumes are left out.
    """

    model = "feature-hashing-v1"
    inline = True

    def embed(self, state: State) -> Vector:
        """Return the embedding, shape (384,), float32, Euclidean length 1 (0 for an empty state)."""
        vector = np.zeros(DIMENSION, dtype=np.float32)
        if isinstance(state, str):
            _add_words(vector, state)
        elif isinstance(state, Mapping):
            _add_state(vector, "", state)
        else:
            raise TypeError(f"a state must be a mapping or text, not {type(state).__name__}")
        length = math.sqrt(float(vector @ vector))
        if length == 0 and vector.any():  # values so small that their squares vanish
            vector /= np.abs(vector).max()
            length = math.sqrt(float(vector @ vector))
        return vector / np.float32(length) if length > 0 else vector

    def embed_many(self, states: Sequence[State]) -> Vector:
        """Return the embeddings in order, shape (n, 384), float32."""
        return np.stack([self.embed(state) for state in states]) if states else np.zeros((0, DIMENSION), np.float32)


def _add_state(vector: Vector, prefix: str, state: Mapping[str, Any]) -> None:
    for key, value in state.items():
        if key in SCALED_KEYS:
            continue
        name = f"{prefix}{key}"
        if isinstance(value, (bool, str)):
            index, sign = _place(f"{name}={value}")
            vector[index] += sign * _CATEGORY_WEIGHT
        elif isinstance(value, (int, float)):
            if -math.inf < value < math.inf:
                squashed = value if abs(value) <= 1 else math.copysign(1 + math.log(abs(value)), 1 if value > 0 else -1)
                index, sign = _place(name)
                vector[index] += sign * squashed * _NUMBER_WEIGHT
        elif isinstance(value, Mapping):
            _add_state(vector, f"{name}.", value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, str):
                    _add_words(vector, item)


def _add_words(vector: Vector, text: str) -> None:
    for word in _WORD.findall(text.lower()):
        index, sign = _place(word)
        vector[index] += sign * _WORD_WEIGHT


@lru_cache(maxsize=65_536)
def _place(token: str) -> tuple[int, float]:
    """Return the index and sign of a token."""
    value = int(sha256_hex(token)[:16], 16)
    return value % DIMENSION, 1.0 if value >> 32 & 1 else -1.0
