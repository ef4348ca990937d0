"""Where the base model of a training job is: the one built from code, a folder, or a repository of the model hub.

Training children call `resolve_base_model`. Only a hub id is ever downloaded, through the hub's own client and its cache
(HF_HOME, HF_HUB_OFFLINE); pickled weights are not fetched, and no code that comes with a model is fetched or run.
"""

from __future__ import annotations

import re
from pathlib import Path

from training.small_base_model import Recipe, StepProgress, build_base_model
from utils.artifacts import folder_digest, verify
from utils.errors import TrainingBlocked, TrainingFailed
from utils.settings import BUILTIN_TINY

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges.txt")
"""What is taken of a repository: configuration, weights, tokenizer and chat template."""

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_LONGEST_REASON = 200


def resolve_base_model(
    base_model: str, cache_dir: Path, recipe: Recipe | None = None, progress: StepProgress | None = None
) -> tuple[Path, str]:
    """Return the folder of a base model and the SHA-256 of its content.

    Parameters
    ----------
    base_model : str
        ``builtin:tiny``, a folder in Hugging Face format, or a hub id ``org/name`` with an optional ``@revision``: a branch,
        a tag or a commit. A folder of that name goes before the hub. Without a commit the content may change between runs.
    cache_dir : Path
        Of the model that is built.
    recipe : Recipe, optional
        Of ``builtin:tiny``; None is the default one.
    progress : callable, optional
        Of its pre-training.

    Raises
    ------
    TrainingBlocked
        If there is no such model, or it lacks safetensors weights.
    TrainingFailed
        If it lacks a tokenizer or a chat template.
    """
    if base_model == BUILTIN_TINY:
        folder = build_base_model(cache_dir, recipe or Recipe(), progress)
        return folder, verify(folder).digest
    folder = Path(base_model).expanduser().resolve()
    hub_id = _HUB_ID.fullmatch(base_model)
    if hub_id and not folder.exists():
        folder = _downloaded(hub_id.group(1), hub_id.group(2))
    if not (folder / "config.json").is_file():
        raise TrainingBlocked(
            f"base model {base_model!r} is neither {BUILTIN_TINY} nor a folder with a config.json nor a hub id of one"
        )
    if not any(folder.glob("*.safetensors")):
        raise TrainingBlocked(f"base model {base_model!r} has no *.safetensors weights")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingFailed(f"base model {base_model!r} has no usable tokenizer: {error}") from error
    if not tokenizer.chat_template:
        raise TrainingFailed(f"base model {base_model!r} has no chat template; take an instruction-tuned model")
    return folder, folder_digest(folder)[1]


def _downloaded(repository: str, revision: str | None) -> Path:
    """Return the folder of the hub's cache, filled from the hub where it lacks anything and the hub may be asked."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the client raises nearly anything: its own types, those of the HTTP client, OSError
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        named = f"{repository} --revision {revision}" if revision else repository
        raise TrainingBlocked(
            f"base model {repository} cannot be had from the model hub ({reason}); correct the name, or run "
            f"`hf download {named}` once with network (after `hf auth login` if it is not public), "
            "or give a folder that holds it"
        ) from error
