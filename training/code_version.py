"""Which code a training ran with, for its record: the package's version, and the commit where it runs from a repository."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGE = "stock-agents"
_ROOT = Path(__file__).resolve().parents[1]
_GIT_TIMEOUT_S = 10.0


def code_version() -> str:
    """Return what lies on the disk now, which is what a training child imports: for example ``0.1.0+g1a2b3c4d5e6f``.

    ``.dirty`` follows where files differ from the commit.
    """
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        version = "0"
    commit = _commit()
    return f"{version}+g{commit}" if commit else version


def _commit() -> str | None:
    """Return the commit that the code lies in; None for an installed package, or without git."""
    git = shutil.which("git")
    if git is None or not (_ROOT / ".git").exists():
        return None
    describe = ["describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=.dirty"]
    try:
        done = subprocess.run(
            [git, "-C", str(_ROOT), *describe], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
