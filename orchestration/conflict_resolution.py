"""Conflicts between agents, from detection to what was learned of them: the one import for whoever works with them.

What finds and resolves them lives below the agents' seats, in `agents.conflicts`, because the validator uses it.
"""

from __future__ import annotations

from agents.conflicts.detection import CONFLICT_TYPES, Conflict, ConflictDetector, ConflictType
from agents.conflicts.resolution import (
    STRATEGIES,
    AdvancedConflictResolver,
    ConflictResolution,
    ResolutionContext,
    ResolutionSettings,
    Strategy,
    StrategyPreference,
)
from orchestration.conflict_history import ConflictAnalyzer, PastConflict, RealisedOutcome, past_conflicts

__all__ = [
    "CONFLICT_TYPES",
    "STRATEGIES",
    "AdvancedConflictResolver",
    "Conflict",
    "ConflictAnalyzer",
    "ConflictDetector",
    "ConflictResolution",
    "ConflictType",
    "PastConflict",
    "RealisedOutcome",
    "ResolutionContext",
    "ResolutionSettings",
    "Strategy",
    "StrategyPreference",
    "past_conflicts",
]
