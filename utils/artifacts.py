"""Folders of files that exist whole or not at all, and say what they hold: base models, adapters, checkpoints.

A folder is written aside, listed in a manifest with the SHA-256 of each file, forced to disk and renamed. Called by
whatever writes or loads a model; a folder without a manifest that fits it is never loaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import SystemFault
from utils.hashing import content_hash, file_sha256

MANIFEST = "manifest.json"


class ArtifactCorrupt(SystemFault):
    """A stored folder is not what its manifest or its owner says. Reaction: refuse it; rebuild or use the former one."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder holds: SHA-256 by relative path, the `digest` over all of them, and the writer's own `meta`."""

    files: Mapping[str, str]
    digest: str
    meta: Mapping[str, Any]


def folder_digest(folder: Path) -> tuple[dict[str, str], str]:
    """Return the SHA-256 of each file below a folder (the manifest left out) and one digest over names and hashes."""
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    return files, content_hash(files)


def seal(folder: Path, meta: Mapping[str, Any] | None = None) -> Manifest:
    """Write the manifest of a finished folder and force everything to disk."""
    files, digest = folder_digest(folder)
    for name in files:
        _sync(folder / name)
    manifest = Manifest(files, digest, dict(meta or {}))
    aside = folder / f".{MANIFEST}.aside"
    aside.write_text(json.dumps({"files": files, "digest": digest, "meta": manifest.meta}, indent=1, sort_keys=True))
    _sync(aside)
    aside.replace(folder / MANIFEST)
    _sync(folder)
    return manifest


def publish(aside: Path, final: Path) -> None:
    """Rename a sealed folder to its name; what stood there before is removed."""
    if final.exists():
        shutil.rmtree(final)
    aside.replace(final)
    _sync(final.parent)


def read_manifest(folder: Path) -> Manifest:
    """Return what a folder says of itself, none of it checked.

    Raises
    ------
    ArtifactCorrupt
        If the manifest is missing or unreadable.
    """
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Manifest(dict(stored["files"]), str(stored["digest"]), dict(stored["meta"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactCorrupt(f"{folder} has no readable manifest ({error})") from error


def verify(folder: Path, expected_digest: str | None = None) -> Manifest:
    """Check every byte of a folder against its manifest, and the manifest against what the caller expects.

    Raises
    ------
    ArtifactCorrupt
        If the manifest is missing or unreadable, or a file is missing, added or altered.
    """
    manifest = read_manifest(folder)
    files, digest = folder_digest(folder)
    if files != dict(manifest.files) or digest != manifest.digest:
        wrong = sorted(
            name for name in files.keys() | manifest.files.keys() if files.get(name) != manifest.files.get(name)
        )
        raise ArtifactCorrupt(f"{folder} does not match its manifest: {', '.join(wrong) or 'digest'}")
    if expected_digest is not None and digest != expected_digest:
        raise ArtifactCorrupt(f"{folder} has SHA-256 {digest[:12]}, expected {expected_digest[:12]}")
    return manifest


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one and nothing between."""
    data = content.encode() if isinstance(content, str) else content
    with written_aside(path) as aside:
        aside.write_bytes(data)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Lend a path beside `path` to write to; at the end it is forced to disk and renamed, after an error removed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        yield aside
        _sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
