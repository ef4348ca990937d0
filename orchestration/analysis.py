"""A decision with everything that it was taken on, and its documented form as a dictionary.

Made by the coordinator; the trading cycle, the judges and notebooks read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agents.policies.base import PolicyRequest
from evaluation.error_taxonomy import ErrorReport
from judge.robustness_guard import GuardVerdict
from orchestration.workflow_state import VALIDATOR
from utils.clock import isoformat
from utils.market_regime_detector import RegimeDetection
from utils.schema import AgentOutput, Decision, MarketSnapshot, PortfolioState


@dataclass(frozen=True, slots=True)
class Analysis:
    """A decision with what it was taken on."""

    decision: Decision
    snapshot: MarketSnapshot
    regime: RegimeDetection
    similar: Mapping[str, tuple[str, ...]]
    """The experiences that each agent was given, by identity."""
    reports: Mapping[str, ErrorReport]
    """What fault localisation found in each agent's output."""
    portfolio: PortfolioState | None = None
    """What the strategist was told of the portfolio."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the instructions that a model answered by, by agent."""
    flags: Mapping[str, GuardVerdict] = field(default_factory=dict)
    """What the guard flagged in outputs that a model wrote, by agent."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Agents that were asked and failed, with what went wrong."""
    states: Mapping[str, str] = field(default_factory=dict)
    """What each agent's state was, as a local model reads it."""
    requests: Mapping[str, PolicyRequest] = field(default_factory=dict)
    """What each agent was asked, for those that answer in its shadow."""

    @property
    def fatal(self) -> str | None:
        """The first fatal finding in any output of the decision, in words; it must not be traded on. None without one."""
        for name, report in self.reports.items():
            for error in report.get_fatal_errors():
                return (
                    f"fatal finding in the {name} agent's output: {error.category} at {error.location or 'the output'}"
                )
        return None

    @property
    def quarantined(self) -> str | None:
        """The first text that speaks to a judge in place of the reader, in words; it must not be traded on. None without one."""
        for name, verdict in self.flags.items():
            if verdict.verdict == "quarantine":
                flag = verdict.flags[0]
                return f"quarantine: {flag.family} in the {name} agent's output at {flag.pointer}"
        return None


def documented(analysis: Analysis) -> dict[str, Any]:
    """Return the documented form of a decision."""
    decision, snapshot = analysis.decision, analysis.snapshot
    s = decision.strategist
    return {
        "symbol": decision.symbol,
        "decision_id": decision.decision_id,
        "as_of": isoformat(decision.as_of),
        "recommendation": s.recommendation,
        "confidence": s.confidence,
        "abstained": s.abstained,
        "reasoning": s.reasoning or (s.abstain_reason or ""),
        "position_size": s.position_size,
        "entry_target": s.entry_target,
        "stop_loss": s.stop_loss,
        "take_profit": s.take_profit,
        "risk_assessment": s.risk_assessment,
        "agent_outputs": _documented_outputs(analysis),
        "strategist_output": s.model_dump(mode="json"),
        "market_data": {
            "price": snapshot.price,
            "session": snapshot.session.isoformat(),
            "bars": len(snapshot.bars),
            "news": len(snapshot.news),
            "filings": len(snapshot.filings),
            "stale": snapshot.stale,
            "content_hash": snapshot.content_hash,
        },
        "regime": decision.regime,
        "workflow": decision.workflow,
        "findings": [
            {
                "agent": name,
                "category": str(e.category),
                "severity": e.severity.value,
                "location": e.location,
                "description": e.description,
                "suggested_fix": e.suggested_fix,
            }
            for name, report in analysis.reports.items()
            for e in report.errors
        ],
        "cost_usd": s.cost_usd + sum(out.cost_usd for out in decision.agents.values()),
    }


def _documented_outputs(analysis: Analysis) -> dict[str, Any]:
    """Return what every agent answered; one that failed has its error in place of an output."""
    decision = analysis.decision
    outputs: dict[str, AgentOutput] = dict(decision.agents)
    if decision.validator is not None:
        outputs[VALIDATOR] = decision.validator
    failed = {name: {"error": text} for name, text in analysis.failures.items() if name != "strategist"}
    return {**failed, **{name: out.model_dump(mode="json") for name, out in sorted(outputs.items())}}
