"""The daemon from outside over the bundled sample and over a folder of one's own: what it prints, writes, serves, keeps.

Real processes and a real embedded database. About 30 s, and 15 s more with REPLAY_DATA_DIR.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import exchange_calendars
import pytest
from daemon_runner import Daemon, Ended, database, lines, new_home, query, run_to_end

pytestmark = pytest.mark.timeout(120)

START, END = date(2011, 3, 1), date(2011, 6, 30)
SYMBOLS = ("AAPL", "GOOGL", "MSFT")
PERIOD = ("--feed", "replay", "--replay_start", START.isoformat(), "--replay_end", END.isoformat())
NO_LEARNING = ("--enable_streaming", "--enable_monitoring")
HORIZON = 5

SUMMARY_KEYS = {
    "run_id", "period", "symbols", "decisions", "abstentions", "trajectories", "outcomes", "pending_outcomes", "evaluations",
    "mean_score", "fills", "risk_clamps", "risk_rejections", "costs_usd", "llm_cost_usd", "findings", "data_hash", "config_hash",
    "performance", "trainings", "rejected_records", "feed", "kind_of_result", "equity_usd", "halted", "database",
}  # fmt: skip
DECISION_KEYS = {
    "as_of", "symbol", "recommendation", "confidence", "abstained", "position_size", "entry_target", "stop_loss", "take_profit",
    "regime", "agents",
}  # fmt: skip
STATUS_KEYS = {
    "started_at", "uptime_seconds", "components", "learning_loop", "experience_library", "metrics", "health", "feed", "regime",
    "portfolio", "models", "spool", "config",
}  # fmt: skip


@cache
def sessions(start: date, end: date) -> list[date]:
    calendar = exchange_calendars.get_calendar("XNYS", start=start - timedelta(days=10), end=end + timedelta(days=10))
    return [stamp.date() for stamp in calendar.sessions_in_range(start.isoformat(), end.isoformat())]


@dataclass(frozen=True)
class Run:
    home: Path
    ended: Ended
    summary: dict[str, Any]

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    @property
    def decisions(self) -> Path:
        return self.home / "decisions.jsonl"


def run(home: Path, *flags: str, name: str = "") -> Run:
    summary = home / f"summary{name}.json"
    outputs = ("--decisions_jsonl", str(home / f"decisions{name}.jsonl"), "--summary_json", str(summary))
    ended = run_to_end(home, *NO_LEARNING, "--exit_when_done", *outputs, *flags)
    return Run(home, ended, json.loads(summary.read_text()) if ended.exit_code == 0 else {})


@pytest.fixture(scope="module")
def finished() -> Iterator[Run]:
    with new_home() as home:
        yield run(home, *PERIOD, "--streaming_symbols", *SYMBOLS)


def test_a_replay_ends_with_exit_code_0_a_printed_summary_and_no_traceback(finished: Run) -> None:
    assert finished.ended.exit_code == 0
    assert finished.ended.complaint == ""
    assert "Traceback" not in finished.ended.stderr
    assert finished.summary["run_id"][:12] in finished.ended.stdout
    assert "WARNING" not in finished.ended.stderr


def test_the_decisions_file_has_one_canonical_line_a_symbol_and_session_in_order(finished: Run) -> None:
    text = finished.decisions.read_text(encoding="utf-8")
    found = lines(finished.decisions)
    expected = [(day.isoformat(), symbol) for day in sessions(START, END) for symbol in SYMBOLS]
    assert [(line["as_of"][:10], line["symbol"]) for line in found] == expected
    assert {frozenset(line) for line in found} == {frozenset(DECISION_KEYS)}
    canonical = "".join(
        json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n" for line in found
    )
    assert text == canonical
    assert {frozenset(agent) for line in found for agent in line["agents"].values()} == {
        frozenset({"recommendation", "confidence", "abstained", "policy"})
    }


def test_decisions_fall_on_the_close_of_the_exchange_summer_time_included(finished: Run) -> None:
    hours = {line["as_of"][:10]: line["as_of"][11:] for line in lines(finished.decisions)}
    assert hours["2011-03-11"] == "21:00:00Z"  # New York changed its clocks on 13 March
    assert hours["2011-03-14"] == "20:00:00Z"


def test_the_summary_has_the_documented_keys_and_consistent_counts(finished: Run) -> None:
    summary, decided = finished.summary, lines(finished.decisions)
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["period"] == [START.isoformat(), END.isoformat()]
    assert summary["symbols"] == list(SYMBOLS)
    assert summary["decisions"] == len(sessions(START, END)) * len(SYMBOLS) == len(decided)
    assert summary["abstentions"] == sum(line["abstained"] for line in decided)
    assert summary["trajectories"] == 4 * summary["decisions"]
    # the sample has prices only: technical and strategist speak, each decision older than the horizon is settled
    speaking = sum(
        (not line["abstained"]) + sum(not agent["abstained"] for agent in line["agents"].values()) for line in decided
    )
    last = {day.isoformat() for day in sessions(START, END)[-HORIZON:]}
    late = sum(
        (not line["abstained"]) + sum(not agent["abstained"] for agent in line["agents"].values())
        for line in decided
        if line["as_of"][:10] in last
    )
    assert (summary["outcomes"], summary["pending_outcomes"]) == (speaking - late, late)
    assert summary["evaluations"] == speaking
    assert summary["rejected_records"] == {}
    assert summary["trainings"] == []


def test_the_performance_is_reported_with_intervals_and_against_buying_and_holding(finished: Run) -> None:
    performance = finished.summary["performance"]
    assert {
        "strategy",
        "benchmark",
        "sharpe_difference",
        "win_rate",
        "level",
        "block",
        "sessions",
    } <= performance.keys()
    sharpe = performance["strategy"]["sharpe"]
    assert sharpe["low"] < sharpe["value"] < sharpe["high"]
    assert performance["level"] == 0.95
    assert performance["strategy"]["total_return"] == pytest.approx(finished.summary["equity_usd"] / 100_000 - 1)


def test_the_rows_of_the_database_agree_with_file_and_summary(finished: Run) -> None:
    summary = finished.summary
    with database(finished.data_dir) as library, library.connection() as connection:

        def one(sql: str) -> tuple[Any, ...]:
            row = connection.execute(sql, {"run": summary["run_id"]}).fetchone()
            assert row is not None
            return row

        rows = connection.execute(
            "SELECT to_char(as_of AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), symbol, recommendation, abstained, position_size "
            "FROM trajectories WHERE agent_type = 'strategist' AND run_id = %s ORDER BY as_of, symbol COLLATE \"C\"",
            (summary["run_id"],),
        ).fetchall()
        assert rows == [
            tuple(d[k] for k in ("as_of", "symbol", "recommendation", "abstained", "position_size"))
            for d in lines(finished.decisions)
        ]
        assert one("SELECT count(*) FROM trajectories WHERE run_id = %(run)s") == (summary["trajectories"],)
        assert one("SELECT count(*) FROM trajectories WHERE matured_at IS NOT NULL") == (summary["outcomes"],)
        assert one("SELECT count(*) FROM judge_evaluations WHERE status = 'ok'") == (summary["evaluations"],)
        assert one("SELECT count(*) FROM fills") == (summary["fills"],)
        assert one("SELECT count(*) FROM portfolio_events WHERE kind = 'fill'") == (summary["fills"],)
        assert one("SELECT count(*) FROM portfolio_events WHERE kind = 'mark'") == (len(sessions(START, END)),)
        assert one("SELECT finished_at IS NOT NULL FROM runs WHERE run_id = %(run)s") == (True,)
        assert one("SELECT count(*) FROM trajectory_embeddings") == (summary["evaluations"],)
        assert one("SELECT sum(commission + spread + slippage) FROM fills")[0] == pytest.approx(summary["costs_usd"])


def test_orders_fill_at_the_next_open_and_never_on_the_bar_they_were_decided_on(finished: Run) -> None:
    rows = query(
        finished.data_dir,
        "SELECT o.as_of, f.as_of, f.payload->>'reason' FROM portfolio_events o JOIN portfolio_events f ON f.kind = 'fill' "
        "AND f.payload->>'order_id' = o.payload->>'order_id' WHERE o.kind = 'order' AND f.payload->>'reason' = 'open'",
    )
    days = sessions(START, END)
    assert len(rows) >= 5
    assert {days.index(filled.date()) - days.index(ordered.date()) for ordered, filled, _ in rows} == {1}


def test_a_finished_run_started_again_reports_at_once_and_writes_nothing_new(finished: Run) -> None:
    counts = (
        "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM trajectories), (SELECT count(*) FROM judge_evaluations), "
        "(SELECT max(seq) FROM portfolio_events), (SELECT max(created_at) FROM trajectories), "
        "(SELECT max(created_at) FROM judge_evaluations), (SELECT max(created_at) FROM portfolio_events), "
        "(SELECT max(created_at) FROM regime_events), (SELECT max(finished_at) FROM runs), (SELECT count(*) FROM training_runs)"
    )
    before = query(finished.data_dir, counts)
    again = run(finished.home, *PERIOD, "--streaming_symbols", *SYMBOLS, name="-again")
    assert again.ended.exit_code == 0
    assert "finished" in again.ended.stderr
    assert again.summary == finished.summary
    assert (finished.home / "decisions-again.jsonl").read_bytes() == finished.decisions.read_bytes()
    assert query(finished.data_dir, counts) == before


def test_symbols_in_another_order_and_a_source_by_its_default_were_taken_for_another_run(finished: Run) -> None:
    period = ("--replay_start", START.isoformat(), "--replay_end", END.isoformat())
    shuffled = run(finished.home, *period, "--streaming_symbols", "msft", "GOOGL", "AAPL", "MSFT", name="-shuffled")
    assert shuffled.summary == finished.summary


def test_fresh_runs_a_finished_run_anew_under_a_new_id_with_the_same_bytes(finished: Run) -> None:
    anew = run(finished.home, *PERIOD, "--streaming_symbols", *SYMBOLS, "--fresh", name="-fresh")
    assert anew.ended.exit_code == 0
    assert anew.summary["run_id"] != finished.summary["run_id"]
    assert (finished.home / "decisions-fresh.jsonl").read_bytes() == finished.decisions.read_bytes()
    same = ("decisions", "outcomes", "evaluations", "mean_score", "fills", "equity_usd", "performance", "data_hash")
    assert {key: anew.summary[key] for key in same} == {key: finished.summary[key] for key in same}
    counts = query(finished.data_dir, "SELECT run_id, count(*) FROM trajectories GROUP BY 1")
    assert {(run_id, count) for run_id, count in counts} == {
        (finished.summary["run_id"], finished.summary["trajectories"]),
        (anew.summary["run_id"], anew.summary["trajectories"]),
    }


def test_http_answers_while_it_runs_and_a_finished_daemon_serves_until_sigterm(home: Path) -> None:
    # at this speed a day takes 0.17 s
    slow = ("--replay_start", "2012-01-03", "--replay_end", "2012-01-31", "--replay_speed", "500000")
    with Daemon(home, *NO_LEARNING, "--feed", "replay", *slow) as daemon:
        assert daemon.until(lambda: daemon.status().get("progress", {}).get("decisions", 0) >= 6, "six decisions")
        working = daemon.status()
        assert working["status"] == "running"
        assert working.keys() >= STATUS_KEYS
        assert set(working["components"].values()) == {"running"}
        assert daemon.get("/ready").status == 200
        health = daemon.get("/health")
        assert (health.status, health.json()["overall_healthy"]) == (200, True)
        metrics = daemon.get("/metrics").text
        assert 'agent_requests_total{agent_type="technical"}' in metrics
        assert "system_uptime_seconds" in metrics
        page = daemon.get("/")
        assert page.status == 200
        assert "<html" in page.text
        assert daemon.get("/nothing").status == 404
        assert working["config"]["db_password"] == "********"
        daemon.until(lambda: daemon.status().get("status") == "finished", "the end of the replay")
        assert daemon.get("/health").status == 200
        assert daemon.status()["progress"]["decisions"] == 20 * 3
        assert daemon.process.poll() is None
        ended, seconds = daemon.terminate()
    assert ended.exit_code == 0
    assert seconds < 10
    assert "Traceback" not in ended.stderr


def exposed(daemon: Daemon) -> dict[str, float]:
    """Return the samples of /metrics by name and labels."""
    rows = [line.rpartition(" ") for line in daemon.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def test_the_metrics_of_a_replay_move_and_agree_with_the_summary(home: Path) -> None:
    summary = home / "summary.json"
    flags = ("--replay_start", "2011-03-01", "--replay_end", "2011-05-31", "--summary_json", str(summary))
    with Daemon(home, *NO_LEARNING, "--feed", "replay", *flags) as daemon:
        daemon.until(summary.exists, "the summary")
        told = json.loads(summary.read_text())
        daemon.until(  # gauges are refreshed once a second
            lambda: exposed(daemon)["portfolio_value"] == pytest.approx(told["equity_usd"], abs=0.01), "the last equity"
        )
        values = exposed(daemon)
    assert values['agent_requests_total{agent_type="strategist"}'] == told["decisions"]
    stored = sum(value for name, value in values.items() if name.startswith("trajectories_stored_total{"))
    assert stored == told["trajectories"]
    judged = sum(value for name, value in values.items() if name.startswith("judge_evaluations_total{"))
    assert judged == told["evaluations"]
    traded = sum(value for name, value in values.items() if name.startswith("trades_executed_total{"))
    assert traded == told["fills"] > 0
    outcomes = sum(value for name, value in values.items() if name.startswith("trajectories_successful_total{"))
    assert 0 < outcomes < told["outcomes"]


@pytest.mark.skipif("REPLAY_DATA_DIR" not in os.environ, reason="REPLAY_DATA_DIR names no folder of history")
def test_a_folder_without_named_symbols_is_replayed_whole_with_its_news(home: Path) -> None:
    folder = os.environ["REPLAY_DATA_DIR"]
    period = ("--replay_start", "2014-03-03", "--replay_end", "2014-04-30")
    done = run(home, "--replay_dir", folder, *period)
    assert done.ended.exit_code == 0, done.ended.stderr
    present = sorted(path.stem for path in Path(folder, "prices").glob("*.csv"))
    decided = lines(done.decisions)
    assert done.summary["symbols"] == present
    assert len(present) >= 45
    days = sessions(date(2014, 3, 3), date(2014, 4, 30))
    assert [(d["as_of"][:10], d["symbol"]) for d in decided] == [(day.isoformat(), s) for day in days for s in present]
    spoken = Counter(name for d in decided for name, agent in d["agents"].items() if not agent["abstained"])
    assert spoken["news"] > 200
    assert spoken["technical"] > 0.9 * len(decided)
    assert "Traceback" not in done.ended.stderr
