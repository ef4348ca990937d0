"""Whether a trained version lies on the base model that is configured: by name, and by content where that can be known.

Asked before a version is promoted by hand, and before reinforcement learning begins with one. Builds and downloads nothing:
a base model that is not on this machine yet is not compared.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from training.model_registry import ModelVersion
from training.small_base_model import Recipe
from utils.artifacts import ArtifactCorrupt, folder_digest, verify
from utils.settings import BUILTIN_TINY


class ConfiguredBase:
    """The base model that a configuration names; its bytes are read when they are first asked for, and once.

    Parameters
    ----------
    base_model : str
        As `training.base_models.resolve_base_model` takes it.
    cache_dir : Path
        Of the model that is built.
    """

    def __init__(self, base_model: str, cache_dir: Path) -> None:
        self.base_model = base_model
        self._cache_dir = cache_dir

    def fits(self, version: ModelVersion) -> bool:
        """Return whether a version was trained on this name and not, as far as can be known, on other content."""
        return self.has_name_of(version) and self.has_content_of(version) is not False

    def has_name_of(self, version: ModelVersion) -> bool:
        """Return whether a version was trained on what has this name, or on the same folder under another path."""
        if version.base_model == self.base_model:
            return True
        trained, configured = (Path(name).expanduser() for name in (version.base_model, self.base_model))
        return trained.exists() and configured.exists() and trained.resolve() == configured.resolve()

    def has_content_of(self, version: ModelVersion) -> bool | None:
        """Return whether a version was trained on the present content; None where this machine cannot tell.

        The small model is compared with the one in the cache, and by its recipe where it is not built yet; a folder by its
        bytes. Of a repository of the model hub nothing is known before it is resolved.
        """
        if self._sha256 is not None:
            return self._sha256 == version.base_revision
        trained = version.base_dir.name
        other = self.base_model == BUILTIN_TINY and Recipe.names(trained) and trained != Recipe().folder_name()
        return False if other else None

    @cached_property
    def _sha256(self) -> str | None:
        if self.base_model == BUILTIN_TINY:
            try:
                return verify(self._cache_dir / Recipe().folder_name()).digest
            except ArtifactCorrupt:  # not built yet, or to be built anew
                return None
        folder = Path(self.base_model).expanduser().resolve()
        return folder_digest(folder)[1] if (folder / "config.json").is_file() else None
