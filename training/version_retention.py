"""Which adapters stay on disk, and the removal of all others with what interrupted trainings left behind.

Called by the learning loop after a training has ended. A version's row, verdict and card always stay; its bytes stay while an
alias, a version or a training needs them. A folder is renamed aside before it is removed, so that a kill leaves it whole or
leaves what the next removal finishes.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training.resources import size_of
from utils.logs import logger

REMOVED = ".removed.aside"
"""What an adapter is renamed to before it goes."""


@dataclass(frozen=True, slots=True)
class Freed:
    """What a removal took away: adapters of versions, other folders, bytes of both."""

    versions: tuple[str, ...]
    leftovers: int
    size: int


# In every run: what an alias holds, and what that was trained from. The newest fine-tuned version of an agent is what
# reinforcement learning starts from without a champion, in this run or in one that may yet be resumed. A training under way
# reads the adapters that its job names.
_UNNEEDED = """
WITH held AS (SELECT DISTINCT version FROM model_aliases),
parents AS (SELECT r.config->>'parent_version' AS version FROM held JOIN model_versions USING (version)
    JOIN training_runs r USING (training_run_id)),
rejected AS (SELECT version, row_number() OVER (PARTITION BY v.agent_type ORDER BY r.started_at DESC, v.created_at DESC) AS place
    FROM model_versions v JOIN training_runs r USING (training_run_id) WHERE v.state = 'rejected'),
tuned AS (SELECT DISTINCT ON (r.run_id, v.agent_type) version FROM training_runs r
    JOIN model_versions v ON v.version = r.metrics->>'version' JOIN runs u ON u.run_id = r.run_id WHERE r.kind = 'sft' AND (u.run_id = %(run_id)s OR u.finished_at IS NULL)
    ORDER BY r.run_id, v.agent_type, r.started_at DESC, version),
read AS (SELECT config->>'champion_adapter' AS path FROM training_runs WHERE state = 'running'
    UNION SELECT config->>'start_adapter' FROM training_runs WHERE state = 'running')
SELECT v.version, v.path FROM model_versions v JOIN training_runs r USING (training_run_id)
WHERE r.state <> 'running'
    AND NOT EXISTS (SELECT 1 FROM held h WHERE h.version = v.version)
    AND NOT EXISTS (SELECT 1 FROM parents p WHERE p.version = v.version)
    AND NOT EXISTS (SELECT 1 FROM rejected j WHERE j.version = v.version AND j.place <= %(keep)s)
    AND NOT EXISTS (SELECT 1 FROM tuned t WHERE t.version = v.version)
    AND NOT EXISTS (SELECT 1 FROM read WHERE read.path = v.path)
"""


def tidy(library: ExperienceLibraryPostgres, data_dir: Path, keep_rejected: int) -> Freed:
    """Remove what no alias, version or training needs below a data directory, and say in one log line what was freed.

    Parameters
    ----------
    keep_rejected : int
        Newest rejected versions of each agent whose bytes stay.
    """
    root = (data_dir / "training").resolve()
    aside: list[tuple[str, Path]] = []
    with library.connection() as connection, connection.cursor() as cursor:
        asked = {"run_id": library.run_id, "keep": keep_rejected}
        cursor.execute(_UNNEEDED, asked)
        for version, path in cursor.fetchall():
            folder = Path(path)
            if folder.parent.parent.resolve() == root and folder.is_dir():
                aside += _put_aside(cursor, version, folder, asked)
        # a commit stands between the renaming and the removal: until then a promotion waits for the row's lock
    size = sum(size_of(folder) for _, folder in aside)
    for _, folder in aside:
        shutil.rmtree(folder, ignore_errors=True)
    leftovers = _leftovers(library, root)
    size += sum(map(size_of, leftovers))
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    freed = Freed(tuple(version for version, _ in aside), len(leftovers), size)
    if freed.versions or freed.leftovers:
        logger.info(
            "retention of versions: removed the adapters of %d versions and %d folders of trainings that do not run; %.1f MB freed",
            len(freed.versions), freed.leftovers, freed.size / 1e6,
        )  # fmt: skip
    return freed


def _put_aside(
    cursor: psycopg.Cursor[Any], version: str, folder: Path, asked: dict[str, Any]
) -> list[tuple[str, Path]]:
    """Rename a version's adapter if it is still unneeded once its row is locked against those who move aliases."""
    cursor.execute("SELECT 1 FROM model_versions WHERE version = %s FOR UPDATE SKIP LOCKED", (version,))
    if cursor.fetchone() is None:
        return []
    cursor.execute(
        f"SELECT 1 FROM ({_UNNEEDED}) AS unneeded WHERE version = %(version)s", {**asked, "version": version}
    )
    if cursor.fetchone() is None:
        return []
    target = folder.with_name(REMOVED)
    shutil.rmtree(target, ignore_errors=True)
    try:
        folder.rename(target)
    except OSError as error:
        logger.warning("the adapter of %s is not removed: %s", version, error)
        return []
    return [(version, target)]


def _leftovers(library: ExperienceLibraryPostgres, root: Path) -> list[Path]:
    """Return checkpoints and half-written folders of trainings that do not run, and adapters that no version names."""
    if not root.is_dir():
        return []
    with library.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT training_run_id, state FROM training_runs")
        states: dict[uuid.UUID, str] = dict(cursor.fetchall())
        cursor.execute("SELECT path FROM model_versions")
        named = {Path(row[0]).resolve() for row in cursor}
    found: list[Path] = []
    for folder in sorted(root.iterdir()):
        state = states.get(_identity(folder.name) or uuid.UUID(int=0))
        if state is None or state in ("queued", "running"):  # one that nobody has recorded is about to be
            continue
        found += [path for path in (folder / "work", *folder.glob(".*.aside")) if path.is_dir()]
        adapter = folder / "adapter"
        if adapter.is_dir() and adapter.resolve() not in named:
            found.append(adapter)
    return found


def _identity(name: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(name)
    except ValueError:
        return None
