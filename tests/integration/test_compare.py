"""The comparison of policies from command line to report: equal decisions, honest outcomes, skill found and luck not."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, date, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fakes.dialect import Question
from generated_history import generate
from hosted_daemon_lab import Lab, agent_of, new_lab, overloaded, rng_of
from hosted_questions import opinion

from data_pipeline.feeds.replay import ReplayFeed
from orchestration.history_walk import walk
from training import compare as command
from training.arms import TrainedVersion, open_arm, plan_arm
from training.comparison import ComparisonSettings, compare
from training.comparison_outcomes import Expectations, settle
from training.comparison_work import CallRecord, Chunk, Job, Thinker, Thought
from training.model_registry import ModelVersion
from utils.hashing import content_hash
from utils.settings import ENVIRONMENT, OrchestratorConfig

pytestmark = pytest.mark.timeout(240)

SYMBOLS = ("AAA", "BBB", "CCC")
START, END = date(2014, 1, 2), date(2014, 9, 30)
FROM, UNTIL = date(2014, 3, 3), date(2014, 7, 31)
EDGE = 0.006


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history in which good news foretells five good sessions."""
    return generate(7, SYMBOLS, START, END, edge=EDGE).write(tmp_path_factory.mktemp("planted"))


@dataclass(frozen=True)
class Compared:
    """What one run of the command left."""

    figures: dict[str, Any]
    page: str
    printed: str
    told: str


@pytest.fixture(scope="module")
def compared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """The rules on the planted history."""
    out = tmp_path_factory.mktemp("compared")
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as printed,
        redirect_stderr(StringIO()) as told,
    ):
        alone(patch, out)
        figures = run(folder, out)
    return Compared(figures, (out / "report.html").read_text(), printed.getvalue(), told.getvalue())


def alone(patch: pytest.MonkeyPatch, place: Path) -> None:
    """Keep settings of whoever runs the tests out."""
    for variable in (*ENVIRONMENT.values(), "REPLAY_DATA_DIR"):
        patch.delenv(variable, raising=False)
    patch.chdir(place)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone(monkeypatch, tmp_path)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield new_lab(tmp_path, monkeypatch, stack)


def flags(folder: Path, out: Path, *more: str) -> list[str]:
    period = ["--start", FROM.isoformat(), "--end", UNTIL.isoformat()]
    files = ["--output", str(out / "report.html"), "--json", str(out / "report.json")]
    return ["--policies", "rules", "--replay_dir", str(folder), *period, *files, *more]


def run(folder: Path, out: Path, *more: str) -> dict[str, Any]:
    assert command.main(flags(folder, out, *more)) == 0
    return dict(json.loads((out / "report.json").read_text()))


def config(tmp_path: Path, **fields: Any) -> OrchestratorConfig:
    return OrchestratorConfig(**{"data_dir": tmp_path / "var", **fields})


def coin(question: Question) -> Any:
    """Answer without looking: buy or sell, by the question's hash."""
    word = rng_of(question).choice(("buy", "sell"))
    signal = {"signal": word} if agent_of(question) == "technical" else {}
    impact = {"price_impact": "bullish" if word == "buy" else "bearish"} if agent_of(question) == "news" else {}
    score = {"sentiment_score": 0.5 if word == "buy" else -0.5} if agent_of(question) == "news" else {}
    return opinion(agent_of(question), question.user, recommendation=word, **signal, **impact, **score)


def row_of(report: Mapping[str, Any], arm: str, agent: str) -> dict[str, Any]:
    (row,) = [row for row in report["rows"] if (row["arm"], row["agent"]) == (arm, agent)]
    return dict(row)


def test_the_command_writes_a_page_and_figures_and_prints_a_table(folder: Path, compared: Compared) -> None:
    report = compared.figures
    sessions = ReplayFeed(folder, None, FROM, UNTIL).calendar.sessions(FROM, UNTIL)
    assert report["decisions"] == len(sessions) * len(SYMBOLS)
    assert report["unsettled"] == 5 * len(SYMBOLS)
    assert (report["first_session"], report["last_session"]) == (sessions[0].isoformat(), sessions[-6].isoformat())
    assert {row["agent"] for row in report["rows"]} == {"news", "technical", "fundamental", "strategist"}
    assert row_of(report, "rules", "fundamental")["figures"]["abstention_share"] == 1.0
    assert report["protocol_sha256"] == content_hash(report["protocol"])
    assert report["protocol_sha256"] in compared.page
    assert not re.search(r"(src|href)\s*=|@import|url\(", compared.page)
    assert "rules     strategist" in compared.printed
    assert "report.html" in compared.printed
    assert report["protocol_sha256"][:12] in compared.told


def test_any_number_of_workers_finds_the_same_to_the_last_byte(folder: Path, tmp_path: Path) -> None:
    found = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        out.mkdir()
        report = run(folder, out, "--workers", workers, "--end", "2014-05-02")
        assert report.pop("timing")["rows"]
        found.append(json.dumps(report, sort_keys=True))
    assert found[0] == found[1]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")
def test_tasks_of_a_ray_cluster_find_the_same(folder: Path, tmp_path: Path) -> None:
    found = []
    for name, more in (("here", ()), ("ray", ("--ray", "local", "--workers", "2"))):
        out = tmp_path / name
        out.mkdir()
        report = run(folder, out, *more, "--end", "2014-04-15")
        report.pop("timing")
        found.append(report)
    assert found[0] == found[1]


def test_news_that_foretell_prices_are_found_to_beat_a_coin(folder: Path, tmp_path: Path, lab: Lab) -> None:
    lab.open("anthropic", anthropic=coin)
    settings = ComparisonSettings(("anthropic", "rules"), str(folder), (), FROM, END, ("news",))
    report = compare(settings, config(tmp_path))
    (pair,) = report.pairs
    assert (pair.arm, pair.reference, pair.agent) == ("rules", "anthropic", "news")
    assert pair.figures.reward.value.low is not None
    assert pair.figures.reward.value.low > 0
    assert pair.figures.accuracy.value.low is not None
    assert pair.figures.accuracy.value.low > 0
    assert pair.figures.reward.p_holm is not None
    assert pair.figures.reward.p_holm < 0.02
    assert any("leak" in warning for warning in report.warnings)
    assert any("may remember this period" in warning for warning in report.warnings)


def test_one_coin_is_not_found_to_beat_another(folder: Path, tmp_path: Path, lab: Lab) -> None:
    lab.open("anthropic", "openai", anthropic=coin, openai=coin)
    settings = ComparisonSettings(("anthropic", "openai"), str(folder), (), FROM, END, ("news",))
    report = compare(settings, config(tmp_path))
    (pair,) = report.pairs
    assert pair.figures.decisions > 300
    assert pair.figures.reward.p_holm is not None
    assert pair.figures.reward.p_holm > 0.05


def test_both_arms_take_the_same_decisions_and_what_a_vendor_charged_is_reported(
    folder: Path, tmp_path: Path, lab: Lab
) -> None:
    lab.open("openai", openai=coin)
    settings = ComparisonSettings(("rules", "openai"), str(folder), ("AAA",), FROM, date(2014, 4, 30), ("technical",))
    report = compare(settings, config(tmp_path))
    rows = {row.arm: row for row in report.rows}
    assert rows["rules"].figures.decisions == rows["openai"].figures.decisions == report.decisions - report.unsettled
    assert rows["rules"].figures.abstention_share == rows["openai"].figures.abstention_share
    assert rows["openai"].service.cost_usd == pytest.approx(lab.charged_usd("openai"))
    assert rows["rules"].service.cost_usd == 0
    assert rows["openai"].policy == "openai:gpt-5.4-mini"
    assert report.protocol["arms"][1]["seats"]["technical"]["prompt_sha256"]
    assert {row.arm for row in report.timing} == {"rules", "openai"}


def test_answers_of_no_use_and_answers_by_rules_are_counted_apart(folder: Path, tmp_path: Path, lab: Lab) -> None:
    lab.open("openai", "anthropic", openai=lambda question: "no JSON", anthropic=overloaded)
    settings = ComparisonSettings(
        ("openai", "anthropic"), str(folder), ("AAA",), date(2014, 7, 1), date(2014, 7, 14), ("technical",)
    )
    report = compare(settings, config(tmp_path))
    rows = {row.arm: row for row in report.rows}
    assert rows["openai"].service.invalid == report.decisions
    assert rows["openai"].figures.abstention_share == 1.0
    assert rows["anthropic"].service.answered_by_rules == report.decisions
    assert rows["anthropic"].service.invalid == 0


def test_nothing_after_the_last_session_changes_a_figure(tmp_path: Path, compared: Compared) -> None:
    cut = generate(7, SYMBOLS, START, END, edge=EDGE).mapped(
        lambda _, bar: bar if bar.session <= UNTIL else None,
        lambda _, article: article if article.published_at.date() <= UNTIL else None,
    )
    short = run(cut.write(tmp_path / "cut"), tmp_path)
    varying = ("timing", "protocol", "protocol_sha256")  # the data's hash is part of the protocol
    whole, found = ({k: v for k, v in report.items() if k not in varying} for report in (compared.figures, short))
    assert whole == found


def test_an_answer_does_not_depend_on_which_other_symbols_are_compared(folder: Path, tmp_path: Path) -> None:
    settings = config(tmp_path)
    plan = plan_arm("rules", settings)
    thinker = Thinker(Job(str(folder), (plan,), ("technical", "strategist"), settings))
    thought = thinker.think(Chunk("BBB", FROM, UNTIL))
    feed = ReplayFeed(folder, None, FROM, UNTIL)
    closes = {close.session: close.view.snapshot("BBB", close.session).inputs.daily_volatility for close in walk(feed)}
    assert dict(zip(thought.sessions, thought.volatility, strict=True)) == closes


def constant(symbol: str, sessions: tuple[date, ...], instants: tuple[datetime, ...], word: str) -> Thought:
    record = CallRecord(word, 0.6, None, False, 0.05, None, None, False, False, True, 0.0, 0.0)
    return Thought(
        symbol, sessions, instants, (0.01,) * len(sessions), {"arm": {"technical": (record,) * len(sessions)}}
    )


def test_an_outcome_runs_from_the_next_open_to_the_close_of_the_horizon_above_the_universe(
    folder: Path, tmp_path: Path
) -> None:
    feed = ReplayFeed(folder, None, FROM, UNTIL)
    closes = list(walk(feed))
    sessions, instants = tuple(c.session for c in closes), tuple(c.at for c in closes)
    thoughts = [constant(symbol, sessions, instants, "buy") for symbol in SYMBOLS]
    settled = settle(feed, thoughts, config(tmp_path), Expectations({}, {}))
    bars = {symbol: [closes[-1].view.bar(symbol, session) for session in sessions] for symbol in SYMBOLS}
    moves = {}
    for symbol in SYMBOLS:
        first, last = bars[symbol][1], bars[symbol][5]
        assert first is not None
        assert last is not None
        moves[symbol] = last.close / first.open - 1
    universe = sum(moves.values()) / len(moves)
    assert settled.keys[:3] == tuple((FROM, symbol) for symbol in SYMBOLS)
    assert settled.outcomes.actual[:3] == pytest.approx([moves[symbol] for symbol in SYMBOLS], abs=1e-9)
    assert settled.outcomes.benchmark[0] == pytest.approx(universe, abs=1e-9)
    calls = settled.calls["arm"]["technical"]
    assert calls.net_return[1] == pytest.approx(moves["BBB"] - universe - 0.0016, abs=1e-9)


def test_what_a_generated_history_expects_gives_the_expected_reward(tmp_path: Path) -> None:
    folder = generate(1, SYMBOLS, START, END).write(tmp_path / "made")
    (folder / "expected").mkdir()
    sessions = [close.session for close in walk(ReplayFeed(folder, None, FROM, UNTIL))]
    for symbol, value in zip(SYMBOLS, (0.03, 0.0, -0.03), strict=True):
        lines = "".join(f"{session},{value}\n" for session in sessions)
        (folder / "expected" / f"{symbol}.csv").write_text("Date,ExpectedReturn\n" + lines)
    feed = ReplayFeed(folder, None, FROM, UNTIL)
    closes = list(walk(feed))
    thoughts = [
        constant(symbol, tuple(sessions), tuple(c.at for c in closes), word)
        for symbol, word in zip(SYMBOLS, ("buy", "hold", "buy"), strict=True)
    ]
    settled = settle(feed, thoughts, config(tmp_path), Expectations.read(folder, SYMBOLS))
    scale = 0.01 * 5**0.5
    expected = settled.calls["arm"]["technical"].expected_reward[:3]
    assert expected == pytest.approx([(0.03 - 0.0016) / scale, 0.0, (-0.03 - 0.0016) / scale])
    report = run(folder, tmp_path)
    assert report["expected_known"] is True
    assert report["kind_of_result"].startswith("generated data")
    assert row_of(report, "rules", "technical")["figures"]["expected_reward"]["value"] is not None


def test_a_real_history_says_that_the_expected_reward_is_not_known(compared: Compared) -> None:
    assert row_of(compared.figures, "rules", "technical")["figures"]["expected_reward"] is None
    assert "not known on real history" in " ".join(compared.page.split())


def version(agent: str, digits: str, state: str, day: int) -> TrainedVersion:
    sha256 = digits * 64
    model = ModelVersion(
        f"{agent}@{sha256[:12]}", agent, uuid.UUID(int=day), Path("adapters") / digits, sha256, "builtin:tiny", "b" * 64,
        Path("base"), {"verdict": "reject"}, state,
    )  # fmt: skip
    return TrainedVersion(model, datetime(2014, 2, day, tzinfo=UTC))


NEWEST, CHAMPION = version("technical", "c", "rejected", 3), version("technical", "a", "champion", 1)


@pytest.mark.parametrize(
    ("name", "known", "policy"),
    [
        ("local", [NEWEST, CHAMPION], f"local:technical@{'a' * 12}"),
        ("local", [NEWEST], f"local:technical@{'c' * 12}"),
        ("local", [], "local:base"),
        ("local:base", [NEWEST, CHAMPION], "local:base"),
        ("local:technical@cc", [NEWEST, CHAMPION], f"local:technical@{'c' * 12}"),
    ],
)
def test_a_local_arm_takes_the_champion_else_the_newest_else_the_base_model(
    tmp_path: Path, name: str, known: list[TrainedVersion], policy: str
) -> None:
    plan = plan_arm(name, config(tmp_path), lambda: known)
    seats = {seat.agent_type: seat for seat in plan.seats}
    assert seats["technical"].policy == policy
    assert plan.local is True
    assert plan.hosted is False


def test_the_plan_of_a_local_arm_says_what_the_gate_said_and_until_when_it_was_trained(tmp_path: Path) -> None:
    (seat,) = [s for s in plan_arm("local", config(tmp_path), lambda: [NEWEST]).seats if s.agent_type == "technical"]
    described = seat.described()
    assert described["gate_verdict"] == "reject"
    assert described["state"] == "rejected"
    assert described["trained_on_outcomes_until"].startswith("2014-02-03")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            (
                "--policies",
                "ruled",
            ),
            "did you mean 'rules'",
        ),
        (
            (
                "--policies",
                "rules,rules",
            ),
            "named twice",
        ),
        (
            (
                "--policies",
                ",",
            ),
            "name at least one",
        ),
        (
            (
                "--policies",
                "anthropic",
            ),
            "ANTHROPIC_API_KEY",
        ),
        (
            (
                "--policies",
                "local",
            ),
            "data_dir: there is no folder",
        ),
        (("--symbols",), "symbols: name at least one"),
        (
            (
                "--symbols",
                "AAB",
            ),
            "symbols: AAB",
        ),
        (
            (
                "--start",
                "2019-01-01",
                "--end",
                "2019-02-01",
            ),
            "holds no session with data",
        ),
        (
            (
                "--start",
                "2014-05-01",
                "--end",
                "2014-04-01",
            ),
            "lies before",
        ),
        (
            (
                "--start",
                "soon",
            ),
            "YYYY-MM-DD",
        ),
        (
            (
                "--start",
                "2014-03-03",
                "--end",
                "2014-03-05",
            ),
            "no decision of the period has an outcome",
        ),
        (
            (
                "--workers",
                "0",
            ),
            "workers: must be 1",
        ),
        (
            (
                "--agents",
                "technica",
            ),
            "did you mean 'technical'",
        ),
        (
            (
                "--output",
                "/nowhere/report.html",
            ),
            "output: cannot write",
        ),
        (
            (
                "--json",
                "/tmp",
            ),
            "json: '/tmp' is a folder",
        ),
        (
            (
                "--replay_dir",
                "/nowhere",
            ),
            "there is no folder '/nowhere'",
        ),
        (
            (
                "--seed",
                "-1",
            ),
            "seed: must be",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence_and_exit_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: tuple[str, ...], said: str
) -> None:
    assert command.main(flags(folder, tmp_path, *changes)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(flags(folder, tmp_path, "--ray", "local")) == 2
    assert "stock-agents[ray]" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")
def test_a_ray_cluster_that_cannot_be_started_is_an_error_that_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file where Ray wants a folder")
    monkeypatch.setenv("RAY_TMPDIR", str(taken))
    assert command.main(flags(folder, tmp_path, "--ray", "local")) == 2
    assert "error: ray: no cluster could be had at 'local'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")
def test_a_ray_address_where_nothing_answers_is_refused_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert command.main(flags(folder, tmp_path, "--ray", f"127.0.0.1:{port}")) == 2
    assert f"nothing answers at '127.0.0.1:{port}'" in capsys.readouterr().err


def test_a_file_of_expectations_in_another_form_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = generate(1, SYMBOLS, START, END).write(tmp_path / "made")
    (folder / "expected").mkdir()
    (folder / "expected" / "BBB.csv").write_text("Date,Return\n2014-03-03,0.1\n")
    assert command.main(flags(folder, tmp_path)) == 2
    assert "BBB.csv: needs lines of Date,ExpectedReturn" in capsys.readouterr().err


def test_an_arm_opens_to_a_policy_for_each_seat(tmp_path: Path) -> None:
    arm = open_arm("rules", config(tmp_path))
    assert {name: policy.name for name, policy in arm.policies.items()} == dict.fromkeys(
        ("news", "technical", "fundamental", "strategist"), "rules"
    )
    arm.close()


PLUG_IN = """
class Bold:
    reads_experiences, waits, prompt_hash, name = False, False, None, "bold"

    def __init__(self, agent_type, config, rules):
        self.agent_type, self._rules = agent_type, rules

    def decide_many(self, requests):
        said = self._rules.decide_many(requests)
        return [o.model_copy(update={"policy": self.name, **({} if o.abstained else {"confidence": 0.9})}) for o in said]
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_plug_in_takes_the_seat_that_its_arm_names_wherever_the_work_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    package = tmp_path / "package"
    (package / "bold-1.0.dist-info").mkdir(parents=True)
    (package / "bold_policy.py").write_text(PLUG_IN)
    (package / "bold-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bold\nVersion: 1.0\n")
    (package / "bold-1.0.dist-info" / "entry_points.txt").write_text(
        "[stock_agents.policies]\nbold = bold_policy:Bold\n"
    )
    monkeypatch.syspath_prepend(str(package))
    more = ("--agents", "technical", "--end", "2014-04-30", "--symbols", "AAA", "BBB", "--workers", workers)
    report = run(folder, tmp_path, "--policies", "rules,bold:technical", *more)
    rules, bold = (row_of(report, arm, "technical") for arm in ("rules", "bold:technical"))
    assert bold["policy"] == "bold"
    assert [stated["stated"] for stated in bold["figures"]["conviction"]["bins"]] == [pytest.approx(0.9)]
    assert bold["figures"]["net_return"] == rules["figures"]["net_return"]
    assert bold["service"]["answered_by_rules"] == 0
    (pair,) = report["pairs"]
    assert pair["figures"]["accuracy"]["value"]["value"] == 0.0
