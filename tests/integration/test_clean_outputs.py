"""Outputs of the rules agents on real bars are clean: the detectors blame nothing that is computed as it should be."""

from __future__ import annotations

import pytest

from agents.policies.base import PolicyRequest
from agents.policies.rules import RulesFundamental, RulesNews, RulesStrategist, RulesTechnical
from data_pipeline.asof_store import AsOfStore
from data_pipeline.feeds.factory import build_feed
from evaluation.fault_localization import FaultLocalizationEngine
from evaluation.ground_truth import GroundTruth
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import AgentOutput, PortfolioState
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY

SYMBOLS = ["AAPL", "IBM", "FB"]
EVERY = 25
"""Sessions from one decision that is looked at to the next."""

Decided = list[tuple[str, AgentOutput, GroundTruth]]


@pytest.fixture(scope="module")
def decided() -> Decided:
    """Every output of a decision on each symbol, every 25 sessions of the sample history, with what was known."""
    pytest.importorskip("bokeh_sampledata", reason="needs the extra `sample`")
    feed = build_feed(OrchestratorConfig(feed="replay", streaming_symbols=SYMBOLS), NO_TELEMETRY)
    store = AsOfStore(feed.calendar)
    detector, strategist = MarketRegimeDetector(), RulesStrategist()
    juniors = {"news": RulesNews(), "technical": RulesTechnical(), "fundamental": RulesFundamental()}
    found: Decided = []
    for update in feed.history():
        store.add(update)
    for number, instant in enumerate(feed.instants()):
        for update in instant.updates:
            store.add(update)
        for symbol in SYMBOLS if number % EVERY == 0 else ():
            snapshot = store.as_of(instant.at).snapshot(symbol, instant.session)
            request = PolicyRequest(snapshot, detector.detect_regime(snapshot.inputs))
            outputs = {name: policy.decide_many([request])[0] for name, policy in juniors.items()}
            held = {symbol: 0.05} if number % 2 else {}
            portfolio = PortfolioState(100_000.0, 1_000.0 * (number % 60), held)
            decision = strategist.decide_many([PolicyRequest(snapshot, request.regime, outputs, portfolio)])[0]
            truth = GroundTruth(snapshot=snapshot, agent_outputs=outputs, portfolio=portfolio, market_open=False)
            found += [(name, output, truth) for name, output in {**outputs, "strategist": decision}.items()]
    return found


def test_outputs_on_real_history_have_no_fault(decided: Decided) -> None:
    engine = FaultLocalizationEngine()
    reports = [engine.detect_faults(name, output, truth) for name, output, truth in decided]
    assert sum(not output.abstained for _, output, _ in decided) > 400
    assert [(report.agent_type, error.category, error.location) for report in reports for error in report.errors] == []


def test_every_indicator_that_is_moved_by_a_tenth_is_found(decided: Decided) -> None:
    engine = FaultLocalizationEngine()
    checked = [(output, truth) for name, output, truth in decided if name == "technical" and not output.abstained][::20]
    for output, truth in checked:
        for name, value in output.indicators.items():  # type: ignore[attr-defined]
            moved = output.model_copy(update={"indicators": {**output.indicators, name: 1.1 * value}})  # type: ignore[attr-defined]
            errors = engine.detect_faults("technical", moved, truth).errors
            assert [(error.category, error.location) for error in errors] == [
                ("indicator_calculation_error", f"/indicators/{name}")
            ]
