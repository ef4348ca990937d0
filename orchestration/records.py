"""Turns a decision into the rows that remember it: one trajectory an agent, with what it saw and how it thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from agents.policies.local.decisions import recorded_state
from data_pipeline.embeddings import Embedder
from data_pipeline.library.findings import Finding
from data_pipeline.library.trajectories import Trajectory
from evaluation.error_catalogue import CATALOGUE
from evaluation.error_taxonomy import ErrorReport
from orchestration.analysis import Analysis
from orchestration.conflict_history import resolved_events
from orchestration.execution.outcomes import OpenDecision, Opinion
from orchestration.retrieval import state_before_decision
from orchestration.shadows import ShadowOpinion
from utils.clock import isoformat
from utils.ids import derived_id
from utils.market_regime_detector import RegimeDetection
from utils.schema import AgentOutput, Decision, MarketSnapshot, StrategistOutput, TechnicalOutput


def decision_id(run_id: str, symbol: str, as_of: datetime) -> str:
    """Return the identity of a decision."""
    return derived_id(run_id, "decision", symbol, isoformat(as_of))


def trajectory_ids(run_id: str, decision: Decision) -> dict[str, str]:
    """Return the identity of each agent's part in a decision."""
    return {name: derived_id(run_id, decision.decision_id, name) for name in (*decision.agents, "strategist")}


def trajectories_of(
    run_id: str, identities: Mapping[str, str], analysis: Analysis, horizon: str, embedder: Embedder
) -> list[Trajectory]:
    """Return the trajectories of a decision under their identities, the strategist's last.

    Abstentions carry no embedding, nor does any where the embedder works in the background.
    """
    decision, snapshot, portfolio = analysis.decision, analysis.snapshot, analysis.portfolio
    outputs: list[AgentOutput] = [*(decision.agents[name] for name in sorted(decision.agents)), decision.strategist]
    rows = []
    for output in outputs:
        state = _market_state(output, snapshot, analysis.regime)
        trace: dict[str, Any] = {"output": output.model_dump(mode="json", exclude_defaults=True)}
        inputs = _inputs(output.agent_type, snapshot)
        if output.agent_type in analysis.prompts:
            inputs["prompt"] = analysis.prompts[output.agent_type]
        if output.agent_type in analysis.states:
            inputs["state"] = recorded_state(analysis.states[output.agent_type])
        report = analysis.reports.get(output.agent_type)
        if report is not None and report.not_checked:
            trace["not_checked"] = sorted(map(str, report.not_checked))
        size = stop = take = None
        if isinstance(output, StrategistOutput):
            trace["decision"] = decision.canonical()
            trace["steps"] = decision.workflow
            inputs["agents"] = {name: identities[name] for name in sorted(decision.agents)}
            if portfolio is not None:
                inputs["portfolio"] = asdict(portfolio)
            size, stop, take = output.position_size, output.stop_loss, output.take_profit
        rows.append(
            Trajectory(
                trajectory_id=identities[output.agent_type],
                run_id=run_id,
                decision_id=decision.decision_id,
                timestamp=decision.as_of.timestamp(),
                as_of=decision.as_of,
                symbol=decision.symbol,
                agent_type=output.agent_type,
                recommendation=output.recommendation,
                market_regime=decision.regime,
                market_state=state,
                agent_inputs=inputs,
                reasoning=output.reasoning or (output.abstain_reason or ""),
                confidence=output.confidence,
                abstained=output.abstained,
                position_size=size,
                stop_loss=stop,
                take_profit=take,
                policy=output.policy,
                evidence_hash=snapshot.content_hash,
                workflow_trace=trace,
                similar_ids=analysis.similar.get(output.agent_type) or None,
                horizon=horizon,
                embedding=embedder.embed(state) if embedder.inline and not output.abstained else None,
            )
        )
    return rows


def shadow_trajectories(
    run_id: str, identities: Mapping[str, str], analysis: Analysis, shadows: Sequence[ShadowOpinion], horizon: str
) -> list[Trajectory]:
    """Return the rows of what shadows said: lean, for what they were asked stands in the row of whom they shadow."""
    decision = analysis.decision
    rows = []
    for shadow in shadows:
        output = shadow.output
        levels = output if isinstance(output, StrategistOutput) else None
        rows.append(
            Trajectory(
                trajectory_id=shadow_id(identities, shadow),
                run_id=run_id,
                decision_id=decision.decision_id,
                timestamp=decision.as_of.timestamp(),
                as_of=decision.as_of,
                symbol=decision.symbol,
                agent_type=output.agent_type,
                recommendation=output.recommendation,
                market_regime=decision.regime,
                market_state={},
                agent_inputs={"shadow_of": identities[output.agent_type], "snapshot": analysis.snapshot.content_hash},
                reasoning=output.reasoning or (output.abstain_reason or ""),
                confidence=output.confidence,
                abstained=output.abstained,
                shadow=True,
                position_size=levels.position_size if levels else None,
                stop_loss=levels.stop_loss if levels else None,
                take_profit=levels.take_profit if levels else None,
                policy=output.policy,
                evidence_hash=analysis.snapshot.content_hash,
                workflow_trace={"output": output.model_dump(mode="json", exclude_defaults=True)},
                horizon=horizon,
            )
        )
    return rows


def shadow_id(identities: Mapping[str, str], shadow: ShadowOpinion) -> str:
    """Return the identity of a shadow's opinion: it follows from the opinion that it stands beside and the policy's name."""
    return derived_id(identities[shadow.output.agent_type], "shadow", shadow.policy)


def shadow_findings(identities: Mapping[str, str], shadows: Sequence[ShadowOpinion]) -> list[Finding]:
    """Return what was found in the opinions of shadows, as rows of their trajectories."""
    return [row for shadow in shadows for row in findings_of({"": shadow_id(identities, shadow)}, {"": shadow.report})]


def findings_of(identities: Mapping[str, str], reports: Mapping[str, ErrorReport]) -> list[Finding]:
    """Return what was found in the outputs of a decision, as rows of their trajectories."""
    return [
        Finding(
            identities[name],
            str(error.category),
            error.severity.value,
            error.sub_code,
            error.location,
            error.description,
            error.suggested_fix,
            CATALOGUE[error.category].detector,
            error.evidence,
        )
        for name, report in reports.items()
        for error in report.errors
    ]


def open_decision(
    identities: Mapping[str, str],
    decision: Decision,
    snapshot: MarketSnapshot,
    shadows: Sequence[ShadowOpinion] = (),
) -> OpenDecision | None:
    """Return what waits for the outcome of a decision, None if every agent abstained."""
    opinions = tuple(
        _opinion(identities[output.agent_type], output)
        for output in (*(decision.agents[name] for name in sorted(decision.agents)), decision.strategist)
        if not output.abstained
    )
    if not opinions:
        return None
    return OpenDecision(
        decision.decision_id,
        decision.symbol,
        decision.as_of,
        snapshot.session,
        snapshot.inputs.daily_volatility,
        opinions,
        # of a strategist that abstains no outcome is stored, and what a restart could not learn is not learned
        () if decision.strategist.abstained else resolved_events(decision.workflow),
        tuple(_opinion(shadow_id(identities, s), s.output) for s in shadows if not s.output.abstained),
    )


def _opinion(identity: str, output: AgentOutput) -> Opinion:
    levels = output if isinstance(output, StrategistOutput) else None
    return Opinion(
        identity,
        output.agent_type,
        output.recommendation,
        output.confidence,
        output.p_correct,
        levels.position_size if levels else 0.0,
        levels.stop_loss if levels else None,
        levels.take_profit if levels else None,
        output.policy,
    )


def _inputs(agent_type: str, snapshot: MarketSnapshot) -> dict[str, Any]:
    """Return what an agent was given, by identity: the snapshot, and the part of it that is its own."""
    inputs: dict[str, Any] = {"snapshot": snapshot.content_hash, "session": snapshot.session.isoformat()}
    if agent_type == "technical":
        inputs["bars"] = len(snapshot.bars)
    elif agent_type == "news":
        inputs["news"] = [item.item_id for item in snapshot.news]
    elif agent_type == "fundamental":
        inputs["filings"] = [filing.filing_id for filing in snapshot.filings]
    return inputs


def _market_state(output: AgentOutput, snapshot: MarketSnapshot, regime: RegimeDetection) -> dict[str, Any]:
    """Return what the agent saw: scale-free inputs first, and for the technical agent its indicators."""
    state = {**state_before_decision(snapshot, regime), "signals": output.signals}
    if snapshot.price is not None:
        state["price"] = snapshot.price
    if isinstance(output, TechnicalOutput):
        state["indicators"] = output.indicators
        state["trend"] = output.trend
        state["current_price"] = output.current_price
    return state
