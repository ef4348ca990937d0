"""What follows from the gate's verdict on a trained version: its state and the aliases, inside the caller's transaction.

Every training pipeline concludes here and nowhere else.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import psycopg

from evaluation.gate import GateVerdict
from training.model_registry import ModelRegistry, ModelVersion


def conclude(
    registry: ModelRegistry,
    cursor: psycopg.Cursor[Any],
    model: ModelVersion,
    verdict: GateVerdict,
    at: datetime,
    *,
    shadow_stage: bool = True,
) -> str:
    """Register a version with its verdict and move the aliases.

    Parameters
    ----------
    shadow_stage : bool
        Whether a version that the gate has passed proves itself in shadow before it serves.

    Returns
    -------
    str
        The version's state: rejected, trained (without enough evidence for a verdict), shadow or champion.
    """
    state = {"promote": "shadow" if shadow_stage else "champion", "reject": "rejected"}.get(verdict.verdict, "trained")
    model = dataclasses.replace(model, gate=verdict.to_dict(), state=state)
    registry.lock(cursor, model.agent_type)
    registry.register(cursor, model)
    if registry.held(cursor, model.agent_type, "champion") == model.version:
        return "champion" if verdict.verdict == "promote" else state  # the very bytes that serve, trained again
    reason = verdict.reasons[0] if verdict.reasons else "the gate"
    if state == "champion":
        registry.promote(cursor, model, at, reason)
    elif state == "shadow":
        rival = registry.holders(cursor, model.agent_type).get(model.agent_type, {}).get("challenger")
        if rival is not None and rival.model.version != model.version:  # trained by hand, meanwhile
            registry.turn_down(cursor, rival.model, at, f"{model.version} took its place before its trial was over")
        registry.challenge(cursor, model, at, reason)
    return state
