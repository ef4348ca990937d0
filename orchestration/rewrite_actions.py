"""The six things that a rewriting rule can do to a workflow."""

from __future__ import annotations

from enum import StrEnum


class WorkflowAction(StrEnum):
    """What a rule does with its targets."""

    SKIP_AGENT = "skip_agent"
    ADD_VALIDATOR = "add_validator"
    PARALLEL_EXECUTION = "parallel_execution"
    SEQUENTIAL_EXECUTION = "sequential_execution"
    EARLY_TERMINATION = "early_termination"
    RETRY_AGENT = "retry_agent"
