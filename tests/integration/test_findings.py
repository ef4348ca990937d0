"""Findings in the loop: a broken agent's decisions are examined, a fatal one is not traded, and all can be read afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from agents.base_agent import Agent
from agents.factory import build_agents
from agents.policies.base import PolicyRequest
from agents.policies.rules.technical import RulesTechnical
from data_pipeline.asof_store import AsOfStore
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.feeds.factory import build_feed
from data_pipeline.library import findings as finding_rows
from judge.reward_calculator import RewardCalculator
from orchestration.commit_lane import CommitLane
from orchestration.coordinator import Coordinator
from orchestration.execution.outcomes import OutcomeTracker
from orchestration.execution.paper_broker import PaperBroker
from orchestration.execution.portfolio import Ledger
from orchestration.records import trajectory_ids
from orchestration.trading_cycle import CycleResult, TradingCycle
from utils.schema import AgentOutput, StrategistOutput
from utils.settings import OrchestratorConfig

pytestmark = pytest.mark.timeout(120)


class Dreaming(RulesTechnical):
    """Cites a level far from anything that was ever traded, and an RSI that cannot be."""

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        return [
            output
            if output.abstained
            else output.model_copy(
                update={
                    "support_levels": (output.current_price * 7,),  # type: ignore[attr-defined]
                    "indicators": {**output.indicators, "rsi_14": 140.0},  # type: ignore[attr-defined]
                }
            )
            for output in super().decide_many(requests)
        ]


class Buying:
    """A strategist's policy that buys whatever it is shown."""

    agent_type = "strategist"
    name = "rules"
    reads_experiences = False
    waits = False
    prompt_hash: str | None = None

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        return [self._buy(request) for request in requests]

    def _buy(self, request: PolicyRequest) -> StrategistOutput:
        price = round(request.snapshot.price or 0.0, 2)
        return StrategistOutput(
            symbol=request.snapshot.symbol, as_of=request.snapshot.as_of, recommendation="buy", confidence=0.7,
            reasoning="The technical analyst sees an uptrend and the others do not object to a small position.",
            position_size=0.05, entry_target=price, stop_loss=round(price * 0.97, 2), take_profit=round(price * 1.05, 2),
            expected_return=0.02, risk_reward_ratio=5 / 3, key_factors=("technical: buy",),
            risk_assessment="A fall through the stop would cost three percent of the position.",
        )  # fmt: skip


@pytest.fixture(scope="module")
def library(module_database: str) -> Iterator[ExperienceLibraryPostgres]:
    opened = ExperienceLibraryPostgres(dsn=module_database)
    yield opened
    opened.close()


def _run(
    library: ExperienceLibraryPostgres, tmp_path: Any, policies: dict[str, Any]
) -> tuple[list[CycleResult], Ledger]:
    """Decide on two sessions of the bundled history and commit them."""
    config = OrchestratorConfig(streaming_symbols=["AAPL"], replay_start="2012-06-04", replay_end="2012-06-06")
    agents: dict[str, Agent] = build_agents(config)
    for name, policy in policies.items():
        agents[name].set_policy(policy)
    feed = build_feed(config)
    store, ledger, commits = AsOfStore(feed.calendar), Ledger(library.run_id), CommitLane(library)
    for update in feed.history():
        store.add(update)
    coordinator = Coordinator(config, agents=agents, run_id=f"{library.run_id}-{tmp_path.name}")
    coordinator.attach(store, feed.calendar, feed.symbols, ledger.portfolio)
    cycle = TradingCycle(
        config, library.run_id, feed.symbols, store=store, calendar=feed.calendar, coordinator=coordinator,
        broker=PaperBroker(ledger, config.execution, library.run_id), ledger=ledger,
        tracker=OutcomeTracker(feed.calendar, 5, 0.0, RewardCalculator(), 0.2), embedder=library.embedder, commits=commits,
        halt_file=tmp_path / "HALT",
    )  # fmt: skip
    results = [cycle.run(instant) for instant in feed.instants()]
    commits.flush()
    return results, ledger


def test_findings_of_every_agent_are_stored_with_the_decision_and_a_fatal_one_is_not_traded(
    library: ExperienceLibraryPostgres, tmp_path: Any
) -> None:
    results, ledger = _run(library, tmp_path, {"technical": Dreaming(), "strategist": Buying()})
    analysis = results[0].analyses[0]
    assert analysis.fatal is not None
    assert "support_resistance_hallucination" in analysis.fatal
    assert ledger.portfolio.held("AAPL") == 0
    with library.connection() as connection, connection.cursor() as cursor:
        rejections = cursor.execute(
            "SELECT payload->>'reason' FROM portfolio_events WHERE kind = 'reject' AND payload->>'gate' = 'unfit'"
        ).fetchall()
        counted = finding_rows.counts(cursor, library.run_id)
    assert len(rejections) == len(results)
    assert all("fatal finding in the technical agent's output" in row[0] for row in rejections)
    identity = trajectory_ids(library.run_id, analysis.decision)["technical"]
    stored = library.get_findings([identity])[identity]
    assert {(f.category, f.pointer) for f in stored} == {
        ("support_resistance_hallucination", "/support_levels/0"),
        ("indicator_calculation_error", "/indicators/rsi_14"),
    }
    assert stored[0].evidence["found"] is not None
    assert counted["support_resistance_hallucination", "fatal"] == len(results)


def test_sound_outputs_leave_no_finding_and_are_traded(fresh_database: str, tmp_path: Any) -> None:
    library = ExperienceLibraryPostgres(dsn=fresh_database)
    try:
        results, ledger = _run(library, tmp_path, {"strategist": Buying()})
        assert [a.fatal for r in results for a in r.analyses] == [None] * len(results)
        assert ledger.portfolio.held("AAPL") > 0
    finally:
        library.close()


def test_what_was_found_is_stored_whatever_it_holds(fresh_database: str) -> None:
    odd = finding_rows.Finding(
        "t", "invalid_value", "medium", None, "/a\x00b", "found \ud800", "set it",
        "schema", {"found": [float("nan"), float("inf"), datetime(2020, 1, 2, tzinfo=UTC), {"\x00": {1, }}, 10**30, b"x"]},
    )  # fmt: skip
    assert odd.pointer == "/a\\x00b"
    assert odd.description == "found \\ud800"
    assert odd.evidence["found"] == ["nan", "inf", "2020-01-02T00:00:00+00:00", {"\\x00": [1]}, str(10**30), "b'x'"]
