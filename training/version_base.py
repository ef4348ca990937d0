"""Whether a trained version lies on the base model that is configured: by name, and by content where that can be known.

Asked before a version is promoted by hand, and before reinforcement learning begins with one. Builds and downloads nothing:
a base model that is not on this machine yet is not compared.
"""

from __future__ import annotations

from pathlib import Path

from training.model_registry import ModelVersion
from training.small_base_model import Recipe
from utils.artifacts import ArtifactCorrupt, folder_digest, verify
from utils.settings import BUILTIN_TINY


def same_name(version: ModelVersion, base_model: str) -> bool:
    """Return whether a version was trained on what is called `base_model`, or on the same folder under another path."""
    if version.base_model == base_model:
        return True
    trained, configured = (Path(name).expanduser() for name in (version.base_model, base_model))
    return trained.exists() and configured.exists() and trained.resolve() == configured.resolve()


def same_content(version: ModelVersion, base_model: str, cache_dir: Path) -> bool | None:
    """Return whether a version was trained on the content that `base_model` has now; None where this machine cannot tell.

    The small model is compared with the one in the cache, and by its recipe where it is not built yet; a folder by its bytes.
    Of a repository of the model hub nothing is known before it is resolved.
    """
    if base_model == BUILTIN_TINY:
        built = cache_dir / Recipe().folder_name()
        try:
            return verify(built).digest == version.base_revision
        except ArtifactCorrupt:  # not built yet, or to be built anew
            trained = version.base_dir.name
            return False if Recipe.names(trained) and trained != built.name else None
    folder = Path(base_model).expanduser().resolve()
    return folder_digest(folder)[1] == version.base_revision if (folder / "config.json").is_file() else None
