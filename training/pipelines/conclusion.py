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
    registry: ModelRegistry, cursor: psycopg.Cursor[Any], model: ModelVersion, verdict: GateVerdict, at: datetime
) -> ModelVersion | None:
    """Register a version with its verdict and move the aliases; return it if it serves from now on."""
    state = {"promote": "champion", "reject": "rejected"}.get(verdict.verdict, "trained")
    model = dataclasses.replace(model, gate=verdict.to_dict(), state=state)
    registry.register(cursor, model)
    if not verdict.promoted:
        return None
    registry.promote(cursor, model, at, verdict.reasons[0] if verdict.reasons else "the gate")
    return model
