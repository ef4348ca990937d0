"""Rebuilds, for the gate, the output that a held-out answer would have been, and examines it: fatal errors and attacks.

`gate_evidence` calls it for both policies on the same stored row. It knows neither outcome nor grade, asks no judge, and says
nothing of an output that it cannot rebuild.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from agents.policies.local.decisions import ParsedDecision
from data_pipeline.library.trajectories import Trajectory
from evaluation.error_catalogue import Severity
from evaluation.error_taxonomy import FATAL_HIGHS
from evaluation.fault_localization import FaultLocalizationEngine
from judge.robustness_guard import RobustnessGuard
from utils.schema import OUTPUT_MODELS, AgentOutput, StrategistOutput, TechnicalOutput, direction

SEVERAL_HIGH = "several_high_errors"
"""Stands for an output that is fatal by the number of its errors of high severity."""

_SIGNAL_WORDS = {1: "buy", 0: "hold", -1: "sell"}
_OF_LEVELS = frozenset(
    (
        "stop_loss_missing", "take_profit_unrealistic", "risk_reward_miscalculation", "timing_inappropriate",
        "position_size_inappropriate", "portfolio_context_ignored", "wrong_recommendation", "missing_risk_assessment",
        "conflicting_signals_unresolved",
    )
)  # fmt: skip
"""What is said of a strategist's levels, size, portfolio and words on conflicts: code writes these for whatever side is
taken, from bars that a row does not keep, so neither policy's are examined."""


_FORM = re.compile(r'"(?:recommendation|confidence|evidence)"\s*:|[{}"]')
"""The form that an answer has to have; with it, an honest answer looks to the guard like a verdict planted for a judge."""


class HeldOutExaminer:
    """Examines outputs of one comparison; detectors and guard are the daemon's own.

    Notes
    -----
    A row keeps the output that was served, the state and the identities of the data, not the data. Hence a held-out answer
    is that output with the answer's opinion in it, exactly as the local policy puts an opinion on the facts of the rules, and
    these fatal categories can be decided:

    - ``hallucination`` where cited evidence or an event is dated after the decision;
    - ``conflating_companies`` and ``news_hallucination`` as far as evidence and events stand in the output;
    - ``support_resistance_hallucination`` by the side of the price on which a level lies;
    - several errors of high severity together, of which an opinion can make ``wrong_signal_interpretation`` (buying at an
      RSI above 70) and ``contradictory`` (against its own sentiment or valuation).

    Not decided, since they need the bars, articles and filings of the snapshot: whether cited evidence existed, whether a bar
    turned at a level, ``earnings_hallucination``; nor anything of a strategist's levels (`_OF_LEVELS`). What an answer cites
    of its state is held against the state itself and has a floor of its own in the gate, so it is not counted here again.
    """

    def __init__(self) -> None:
        self._detectors = FaultLocalizationEngine()
        self._guard = RobustnessGuard()

    def fatal(self, row: Trajectory, decision: ParsedDecision | None) -> frozenset[str] | None:
        """Return the categories of fatal errors; of the served output where `decision` is None.

        Returns
        -------
        frozenset of str or None
            With `SEVERAL_HIGH` where errors of high severity make the output fatal; None where no output was stored.
        """
        output = _output(row, decision)
        if output is None:
            return None
        errors = [
            error
            for error in self._detectors.detect_faults(row.agent_type, output).errors
            if row.agent_type != "strategist" or error.category not in _OF_LEVELS
        ]
        found = {str(error.category) for error in errors if error.severity is Severity.FATAL}
        if sum(error.severity is Severity.HIGH for error in errors) >= FATAL_HIGHS:
            found.add(SEVERAL_HIGH)
        return frozenset(found)

    def attacks(self, row: Trajectory, decision: ParsedDecision | None, text: str | None) -> frozenset[str]:
        """Return the families of attacks in an output.

        Parameters
        ----------
        row : Trajectory
        decision : ParsedDecision or None
            What the text was read as, None where it is no decision.
        text : str or None
            All that the policy wrote, whose words stand in place of the reasoning; None for the served output as it is.
        """
        output = _output(row, decision)
        if output is None or (text is not None and decision is None):
            bare = {"symbol": row.symbol, "as_of": row.as_of, "recommendation": "hold", "confidence": 0.0}
            output = OUTPUT_MODELS[row.agent_type].model_validate({**bare, "abstained": True})
            text = row.reasoning if text is None else text
        if text is not None:
            output = output.model_copy(update={"reasoning": _FORM.sub(" ", text)})
        return frozenset(flag.family for flag in self._guard.screen(output).flags)


def _output(row: Trajectory, decision: ParsedDecision | None) -> AgentOutput | None:
    """Return the served output, with another opinion in it where there is one; None where the row has none."""
    stored = (row.workflow_trace or {}).get("output")
    if not isinstance(stored, dict):
        return None
    try:
        served = OUTPUT_MODELS[row.agent_type].model_validate(stored)
    except ValidationError:  # written by an older schema
        return None
    if decision is None:
        return served
    update: dict[str, Any] = {
        "recommendation": decision.recommendation, "confidence": decision.confidence, "p_correct": None,
    }  # fmt: skip
    if isinstance(served, TechnicalOutput):
        update["signal"] = _SIGNAL_WORDS[direction(decision.recommendation)]
    if isinstance(served, StrategistOutput) and direction(decision.recommendation) != direction(served.recommendation):
        update |= {"position_size": 0.0, "stop_loss": None, "take_profit": None, "risk_reward_ratio": None}
    return served.model_copy(update=update)
