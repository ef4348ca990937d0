"""Builds the embedder that the configuration names: feature hashing, the packaged MiniLM, or a folder's encoder.

Asked by the orchestrator and by the command lines; `check_embedder` is what ``--check_config`` asks. Loads a model only
when one is to be used.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.embeddings import Embedder, FeatureHashingEmbedder
from data_pipeline.embeddings_encoder import EncoderFolder, SentenceEmbedder, minilm_folder, read_folder
from utils.setting_sections import EmbeddingSettings

HASHING = "hashing"
MINILM = "minilm"


def build_embedder(settings: EmbeddingSettings) -> Embedder:
    """Return the embedder; an encoder takes seconds to load.

    Raises
    ------
    ConfigError
        If the folder or package is missing or does not hold a usable model.
    """
    folder = check_embedder(settings)
    return FeatureHashingEmbedder() if folder is None else SentenceEmbedder(folder, settings.batch)


def check_embedder(settings: EmbeddingSettings) -> EncoderFolder | None:
    """Check the setting without loading a model; return the encoder's folder, None for feature hashing.

    Raises
    ------
    ConfigError
        As `build_embedder`, for all that can be seen without loading.
    """
    if settings.model == HASHING:
        return None
    return minilm_folder() if settings.model == MINILM else read_folder(Path(settings.model).expanduser())
