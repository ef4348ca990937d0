"""What must hold beside the trigger for a training to begin: an error budget that allows its gate, disk and memory.

Asked by the training pipelines once the trigger is ready. Pure but for the measurement of disk and memory, which in a replay
blocks and is never recorded, so that no decision of a replay holds a figure of the machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime

from training import error_budget, resources
from training.error_budget import GateSpending
from training.pipelines.trigger import PipelineConfig, Readiness


def check(ready: Readiness, config: PipelineConfig, spent: Sequence[GateSpending], at: datetime) -> Readiness:
    """Return the readiness with what else keeps the training from beginning; one that goes on is not asked again.

    Parameters
    ----------
    spent : sequence of GateSpending
        By all gates of the agent.
    """
    if not ready.ready or ready.resumes is not None:
        return ready
    wait = error_budget.why_it_waits(config.error_budget_per_year, spent, at)
    if wait is not None:
        return dataclasses.replace(ready, ready=False, detail=f"{ready.detail}; {wait}")
    found = resources.measure(config.data_dir)
    lacking = resources.shortage(found, config.disk_budget_gb, config.free_memory_gb)
    if lacking is not None:
        return dataclasses.replace(ready, ready=False, detail=f"blocked: {lacking}", blocked=lacking)
    return ready
