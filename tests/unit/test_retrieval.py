"""Experiences in decisions: who is given them, as of when, and what happens while the database is away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from market_factory import AS_OF, DETECTOR, make_request, make_snapshot

from agents.policies.base import PastExperience
from agents.policies.rules.strategist import RulesStrategist
from agents.policies.rules.technical import RulesTechnical
from data_pipeline.embeddings import FeatureHashingEmbedder
from data_pipeline.library.spooled_database import SpoolStatus
from data_pipeline.library.trajectories import Trajectory
from orchestration.retrieval import ExperienceMemory, state_before_decision
from utils.errors import LibraryUnavailable
from utils.setting_sections import RetrievalSettings

SNAPSHOT = make_snapshot()
REGIME = DETECTOR.detect_regime(SNAPSHOT.inputs)


class Library:
    """The part of the library that a memory asks; `faults` are raised first, one a search."""

    def __init__(self, faults: Sequence[Exception] = (), waiting: int = 0) -> None:
        self.spool = SpoolStatus(0, waiting, None, 0)
        self.asked: list[dict[str, Any]] = []
        self.revived = 0
        self._faults = list(faults)

    def embed(self, state: Any) -> list[float]:
        return [float(x) for x in FeatureHashingEmbedder().embed(state)]

    def find_similar_trajectories(
        self, query: list[float], agent_type: str, limit: int, *, as_of: datetime
    ) -> list[tuple[Trajectory, float]]:
        if self._faults:
            raise self._faults.pop(0)
        self.asked.append({"query": query, "agent_type": agent_type, "limit": limit, "as_of": as_of})
        known = Trajectory(
            trajectory_id="earlier", timestamp=0.0, symbol="MSFT", agent_type=agent_type, market_state={}, agent_inputs={},
            reasoning="", confidence=0.7, recommendation="buy", market_regime="crash", actual_return=0.02, reward=0.4,
            success=True, matured_at=as_of - timedelta(days=1),
        )  # fmt: skip
        return [(known, 0.9)]

    def revive(self) -> None:
        self.revived += 1


def _memory(library: Library, *, waits: bool = False, **settings: Any) -> ExperienceMemory:
    return ExperienceMemory(library, RetrievalSettings(**settings), waits=waits)  # type: ignore[arg-type]


def test_an_agent_is_given_its_own_experiences_as_of_the_decision() -> None:
    library = Library()
    (found,) = _memory(library, limit=3).recall("technical", SNAPSHOT, REGIME)
    assert found == PastExperience("earlier", 0.9, "MSFT", "crash", "buy", 0.7, True, 0.4, 0.02)
    (asked,) = library.asked
    assert (asked["agent_type"], asked["limit"], asked["as_of"]) == ("technical", 3, AS_OF)
    assert asked["query"] == library.embed(state_before_decision(SNAPSHOT, REGIME))


@pytest.mark.parametrize(
    ("when", "reads", "served"),
    [
        ("auto", False, False),
        ("auto", True, True),
        ("always", False, True),
        ("never", True, False),
    ],
)
def test_who_is_given_experiences_is_a_setting(when: str, reads: bool, served: bool) -> None:
    policy = RulesTechnical()
    policy.reads_experiences = reads
    assert _memory(Library(), when=when).serves(policy) is served


def test_live_decisions_go_on_without_experiences_while_the_database_is_away() -> None:
    library = Library([LibraryUnavailable("away"), LibraryUnavailable("away")])
    memory = _memory(library)
    assert memory.recall("news", SNAPSHOT, REGIME) == ()
    assert memory.recall("news", SNAPSHOT, REGIME) == ()
    assert len(memory.recall("news", SNAPSHOT, REGIME)) == 1


def test_live_decisions_do_not_wait_until_a_long_spool_has_drained() -> None:
    library = Library(waiting=1_000)
    assert _memory(library).recall("news", SNAPSHOT, REGIME) == ()
    assert library.asked == []


def test_a_replay_waits_for_the_database_and_finds_the_same() -> None:
    library = Library([LibraryUnavailable("away")])
    assert len(_memory(library, waits=True).recall("news", SNAPSHOT, REGIME)) == 1
    assert library.revived == 1


def test_a_replay_that_is_told_to_stop_waits_no_longer() -> None:
    memory = _memory(Library([LibraryUnavailable("away")]), waits=True)
    memory.stop.set()
    with pytest.raises(LibraryUnavailable):
        memory.recall("news", SNAPSHOT, REGIME)


@pytest.fixture
def decide() -> Callable[[tuple[PastExperience, ...]], Any]:
    junior = RulesTechnical().decide_many([make_request(SNAPSHOT)])[0]
    request = make_request(SNAPSHOT, {"technical": junior})
    return lambda experiences: RulesStrategist().decide_many([replace(request, experiences=experiences)])[0]


def test_rules_tell_people_of_experiences_and_decide_as_without_them(decide: Callable[..., Any]) -> None:
    one = PastExperience("a", 0.9, "MSFT", "crash", "buy", 0.7, True, 0.4, 0.02)
    plain, remembering = decide(()), decide((one, replace(one, success=False)))
    assert remembering.key_factors[-1] == "1 of 2 earlier decisions in markets like this came true"
    unchanged = remembering.model_copy(update={"key_factors": plain.key_factors})
    assert unchanged == plain
