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

    A training that gave the very bytes of the champion or challenger changes nothing: state and verdict of what serves, from
    which its trial takes the spread of differences, are those that it came by.

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
    holders = registry.holders(cursor, model.agent_type).get(model.agent_type, {})
    for held in (holders.get("champion"), holders.get("challenger")):
        if held is not None and held.model.version == model.version:
            return held.model.state
    reason = verdict.reasons[0] if verdict.reasons else "the gate"
    if state == "champion":
        registry.promote(cursor, model, at, reason)
    elif state == "shadow":
        rival = holders.get("challenger")
        if rival is not None:  # trained by hand, meanwhile
            registry.turn_down(cursor, rival.model, at, f"{model.version} took its place before its trial was over")
        registry.challenge(cursor, model, at, reason)
    return state
