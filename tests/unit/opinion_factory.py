"""Opinions in a line: what agents say, as far as workflows and conflicts look at it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from utils.schema import AgentOutput, Evidence, NewsOutput

AS_OF = datetime(2014, 6, 3, 20, 0, tzinfo=UTC)


def cited(kind: str, age: timedelta, bar_interval: str | None = None) -> Evidence:
    """One piece of evidence of an age."""
    at = AS_OF - age
    return Evidence(
        id=f"{kind}{age}",
        kind=kind,
        value=1.0,
        event_time=at,
        available_at=at,
        source="test",
        bar_interval=bar_interval,
    )


def opinion(
    recommendation: str, confidence: float, signals: Mapping[str, float] | None = None, **more: Any
) -> AgentOutput:
    """An output that says this and nothing else."""
    return NewsOutput(
        symbol="AAPL", as_of=AS_OF, recommendation=recommendation, confidence=confidence, signals=dict(signals or {}), **more
    )  # fmt: skip


def silent() -> AgentOutput:
    """An abstention."""
    return NewsOutput(
        symbol="AAPL", as_of=AS_OF, recommendation="hold", confidence=0.0, abstained=True, abstain_reason="no data"
    )
