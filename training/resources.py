"""Whether disk and memory allow a training to begin, by the configured budgets and in words that name setting and figures.

Asked by the training pipelines before they begin. Frees nothing: `training.version_retention` does.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

GB = 1e9

FREE_SHARE = 0.05
"""Of `learning.disk_budget_gb`, that must be free on the disk itself: what is written before anyone can free anything."""

STORED = ("datasets", "training")
"""Folders below the data directory that the disk budget counts."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What is used and free now, bytes."""

    used: int
    free_disk: int
    available_memory: int


def measure(data_dir: Path) -> Resources:
    """Measure a data directory, which need not exist yet, its disk and the machine's memory."""
    existing = next(folder for folder in (data_dir.resolve(), *data_dir.resolve().parents) if folder.is_dir())
    used = sum(size_of(data_dir / name) for name in STORED)
    return Resources(used, shutil.disk_usage(existing).free, psutil.virtual_memory().available)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; what goes away meanwhile, or is not there, counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def shortage(found: Resources, disk_budget_gb: float, free_memory_gb: float) -> str | None:
    """Return what is too little for a training to begin, None where everything is there.

    Parameters
    ----------
    disk_budget_gb : float
        For data sets, trainings and versions, 10^9 bytes; `FREE_SHARE` of it must be free on the disk.
    free_memory_gb : float
        That must be available.
    """
    if found.used >= disk_budget_gb * GB:
        return (
            f"datasets and trainings take {found.used / GB:.2f} GB, and learning.disk_budget_gb is {disk_budget_gb:g}; "
            "raise it, or lower learning.keep_rejected"
        )
    if found.free_disk < FREE_SHARE * disk_budget_gb * GB:
        return (
            f"the disk has {found.free_disk / GB:.2f} GB free, and a training wants {FREE_SHARE * disk_budget_gb:g} "
            f"({FREE_SHARE:.0%} of learning.disk_budget_gb); make room, or lower it"
        )
    if found.available_memory < free_memory_gb * GB:
        return (
            f"{found.available_memory / GB:.2f} GB of memory are available, and learning.free_memory_gb is "
            f"{free_memory_gb:g}; lower it, or end what takes the memory"
        )
    return None
