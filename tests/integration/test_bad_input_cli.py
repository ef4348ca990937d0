"""Bad arguments, environments and files: each ends with the documented exit code and one line that says what to do.

Real processes. Those that fail on their configuration end before anything is created; about 90 s in all.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from daemon_runner import Daemon, Ended, lines, new_home, run_to_end
from generated_history import History, generate

pytestmark = pytest.mark.timeout(120)

SHORT = ("--enable_streaming", "--feed", "replay", "--replay_start", "2012-01-03", "--replay_end", "2012-01-10")
DONE = (*SHORT, "--exit_when_done")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """One home for every case that must not create anything in it."""
    with new_home() as folder:
        yield folder


@pytest.fixture(scope="module")
def history() -> History:
    return generate(3, ("AAA", "BBB"), date(2012, 1, 3), date(2012, 6, 29))


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    """The exit code, and one line on standard error with every word, without a traceback."""
    assert ended.exit_code == code, ended.stderr
    complaint = ended.complaint.splitlines()
    assert len(complaint) == 1, ended.stderr
    assert complaint[0].startswith("error: ")
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in complaint[0]
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steaming_symbols", "AAPL"], ["--steaming_symbols", "did you mean '--streaming_symbols'"]),
        (["--replay_strat=2012-01-03"], ["--replay_strat", "did you mean '--replay_start'"]),
        (["AAPL"], ["AAPL"]),
        (["--streaming_symbols"], ["--streaming_symbols"]),
        (["--streaming_symbols", "APL"], ["streaming_symbols: APL", "did you mean 'AAPL'"]),
        (["--streaming_symbols", "A APL"], ["streaming_symbols", "ticker symbol"]),
        (["--streaming_symbols", "../../etc/passwd"], ["streaming_symbols", "ticker symbol"]),
        (["--feed", "finhub"], ["feed", "finnhub"]),
        (["--feed", "finnhub"], ["feed", "replayed and simulated history only", "--feed replay"]),
        (["--feed", "polygon"], ["feed", "replayed and simulated history only", "--feed replay"]),
        (["--replay_dir", "/nowhere/at/all"], ["replay_dir", "/nowhere/at/all", "prices/SYMBOL.csv"]),
        (["--replay_start", "2012-13-45"], ["replay_start", "2012-13-45"]),
        (["--replay_start", "yesterday"], ["replay_start", "yesterday"]),
        (["--replay_start", "2012-05-02", "--replay_end", "2012-05-01"], ["replay_end", "replay_start", "before"]),
        (["--replay_start", "2030-01-02"], ["replay_start", "2013-03-01"]),
        (["--replay_start", "1999-01-04", "--replay_end", "1999-02-01"], ["replay_end", "2000-03-01"]),
        (["--replay_start", "2012-01-07", "--replay_end", "2012-01-08"], ["replay_start", "no session"]),
        (["--replay_speed", "0"], ["replay_speed", "max"]),
        (["--replay_speed", "fast"], ["replay_speed", "max"]),
        (["--replay_speed", "nan"], ["replay_speed", "max"]),
        (["--metrics_port", "70000"], ["metrics_port", "65535"]),
        (["--metrics_port", "ninety"], ["metrics_port", "ninety"]),
        (["--agents", "openai"], ["agents", "openai", "rules"]),
        (["--agents", "clever"], ["agents", "clever"]),
        (["--judges", "claude"], ["judges", "claude", "local"]),
        (["--record", "/tmp/somewhere"], ["record"]),
        (["--log_level", "LOUD"], ["log_level", "LOUD"]),
        (["--log_format", "xml"], ["log_format", "xml"]),
        (["--config", "/nowhere/system.yaml"], ["config_path", "/nowhere/system.yaml"]),
        (["--database_url", "http://not a database"], ["database_url", "postgresql://"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and value[0].startswith("--") else None,
)
def test_a_bad_flag_is_refused_in_one_line_with_exit_code_2(place: Path, flags: list[str], words: list[str]) -> None:
    given = {flag for flag in flags if flag.startswith("--")}
    period = () if given & {"--replay_start", "--replay_end"} else SHORT[3:]
    ended = run_to_end(place, "--exit_when_done", *period, *flags)
    assert_refused(ended, 2, *words)
    assert not (place / "data" / "database").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sft_min_trajectorys: 5\n", ["sft_min_trajectorys", "did you mean 'sft_min_trajectories'"]),
        ("risk: {max_drawdwn: 0.1}\n", ["max_drawdwn", "did you mean 'max_drawdown'"]),
        ("risk: {max_drawdown: 15}\n", ["risk.max_drawdown", "15"]),
        ("risk: 5\n", ["risk"]),
        ("agents: {nws: {enabled: false}}\n", ["nws", "news"]),
        ("execution: {allow_shorting: true}\n", ["allow_shorting", "false"]),
        ("execution: {slippage_bps: .nan}\n", ["execution.slippage_bps"]),
        ("decision: {horizon: 0d}\n", ["decision.horizon"]),
        ("decision: {horizon: 30min}\n", ["decision.horizon", "5d"]),
        ("decision: {cadence: 15min}\n", ["decision.cadence", "daily_close"]),
        ("feed: {calendar: XMOON}\n", ["XMOON"]),
        ("risk: [unclosed\n", ["not readable as YAML"]),
        ("- a\n- list\n", ["keys and values"]),
    ],
)
def test_a_bad_settings_file_is_refused_in_one_line_with_exit_code_2(place: Path, text: str, words: list[str]) -> None:
    settings = place / "settings.yaml"
    settings.write_text(text)
    assert_refused(run_to_end(place, "--config", str(settings), *DONE), 2, *words)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"METRICS_PORT": "http"}, ["metrics_port"]),
        ({"SFT_MIN_TRAJECTORIES": "0"}, ["sft_min_trajectories"]),
        ({"HEALTH_CHECK_INTERVAL": "-1"}, ["health_check_interval_seconds"]),
        ({"DB_PASSWORD_FILE": "/nowhere/secret"}, ["DB_PASSWORD_FILE", "/nowhere/secret"]),
        ({"FINNHUB_API_KEY": "c0ffee1234567890"}, ["finnhub", "--feed replay"]),
    ],
)
def test_a_bad_environment_is_refused_in_one_line_with_exit_code_2(
    place: Path, env: dict[str, str], words: list[str]
) -> None:
    flags = [flag for flag in DONE if flag not in ("--feed", "replay")]
    with Daemon(place, *flags, env=env, any_port="METRICS_PORT" not in env) as daemon:
        ended = daemon.wait()
    assert_refused(ended, 2, *words)
    assert "c0ffee" not in ended.stderr


def test_hyper_parameters_that_no_training_could_use_end_the_start_and_the_check(place: Path) -> None:
    """At the first training it would be too late: that is months into a replay."""
    settings, wrong = place / "learning.yaml", place / "grpo.yaml"
    wrong.write_text("defaults: {num_generation: 8}\n")
    for text, words in (
        ("learning: {sft_config: /nowhere/sft.yaml}\n", ["learning.sft_config", "/nowhere/sft.yaml", "null"]),
        (f"learning: {{rl_config: {wrong}}}\n", ["learning.rl_config", str(wrong), "did you mean 'num_generations'"]),
    ):
        settings.write_text(text)
        started = run_to_end(place, "--config", str(settings), *DONE, "--enable_learning_loop")
        assert_refused(started, 2, *words)
        assert_refused(run_to_end(place, "--config", str(settings), "--check_config"), 2, *words)
    assert not (place / "data" / "database").exists()


def test_a_folder_without_prices_is_refused(place: Path) -> None:
    for name, inside, words in (
        ("bare", None, "no subfolder prices"),
        ("empty", "prices", "SYMBOL.csv"),
    ):
        folder = place / name
        (folder / (inside or "")).mkdir(parents=True)
        assert_refused(run_to_end(place, *DONE, "--replay_dir", str(folder)), 2, "replay_dir", words)


def test_a_folder_with_only_broken_prices_is_refused(place: Path) -> None:
    prices = place / "broken" / "prices"
    prices.mkdir(parents=True)
    (prices / "AAA.csv").write_text("\x00\x01 not a price file")
    flags = ("--enable_streaming", "--exit_when_done", "--replay_dir", str(place / "broken"))
    assert_refused(run_to_end(place, *flags), 2, "replay_dir", "no valid bar")


@pytest.mark.parametrize("flag", ["--decisions_jsonl", "--summary_json"])
def test_an_output_file_that_cannot_be_written_is_refused_before_the_run(home: Path, flag: str) -> None:
    ended = run_to_end(home, *DONE, flag, str(home / "no" / "such" / "folder" / "file"))
    assert_refused(ended, 2, flag[2:])
    assert "decisions," not in ended.stdout


def test_a_data_directory_that_is_a_file_is_refused(home: Path) -> None:
    (home / "data").write_text("in the way")
    assert_refused(run_to_end(home, *DONE), 2, "data_dir")


def test_a_port_in_use_ends_with_exit_code_3_and_names_the_remedy(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run_to_end(home, *DONE, "--enable_monitoring", "--metrics_port", port)
    assert_refused(ended, 3, port, "--metrics_port")


def test_a_database_that_does_not_answer_ends_with_exit_code_3_and_hides_the_password(home: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    by_url = run_to_end(home, *DONE, "--database_url", f"postgresql://me:s3cretword@127.0.0.1:{port}/trading")
    assert_refused(by_url, 3, f"127.0.0.1:{port}", "DATABASE_URL")
    by_host = run_to_end(home, *DONE, env={"DB_HOST": "127.0.0.1", "DB_PORT": str(port), "DB_PASSWORD": "s3cretword"})
    assert_refused(by_host, 3, f"127.0.0.1:{port}", "DB_HOST")
    assert "s3cretword" not in by_url.stderr + by_host.stderr


def test_a_second_orchestrator_on_a_data_directory_ends_with_exit_code_3_and_leaves_the_first_alone(home: Path) -> None:
    with Daemon(home, *SHORT, "--enable_monitoring") as first:
        first.until(lambda: first.status().get("status") == "finished", "the end of the replay")
        assert_refused(run_to_end(home, *DONE), 3, "another orchestrator", "--data_dir")
        assert first.get("/health").status == 200
        assert first.terminate()[0].exit_code == 0


def test_what_a_kill_leaves_behind_does_not_prevent_the_next_start(home: Path) -> None:
    with Daemon(home, *SHORT, "--enable_monitoring", "--replay_speed", "200000") as daemon:
        daemon.until(lambda: daemon.status().get("progress", {}).get("decisions", 0) >= 3, "a decision")
        daemon.kill()
    ended = run_to_end(home, *DONE)
    assert ended.exit_code == 0, ended.stderr
    assert "Traceback" not in ended.stderr


def spoilt(rows: list[str]) -> tuple[list[str], dict[str, int]]:
    """Put bad rows among good ones; return the file and what each is to be counted as."""
    head, good = rows[0], rows[1:]
    fields = good[50].split(",")
    replacements = {
        10: (",".join([good[10].split(",")[0], "nan", "1", "1", "1", "1", "5"]), "not_a_number"),
        12: (",".join([good[12].split(",")[0], "inf", "inf", "1", "1", "1", "5"]), "not_a_number"),
        14: (",".join([good[14].split(",")[0], "-5", "6", "-6", "5", "5", "5"]), "price"),
        16: (",".join([good[16].split(",")[0], "0", "0", "0", "0", "0", "5"]), "price"),
        18: (",".join([good[18].split(",")[0], "10", "9", "11", "10", "10", "5"]), "high_below_low"),
        20: (",".join([*good[20].split(",")[:6], "-100"]), "volume"),
        22: ("2012-02-31,1,1,1,1,1,1", "date"),
        24: ("one,two", "columns"),
        26: (";".join(good[26].split(",")), "columns"),
    }
    added = {
        30: (good[30], "duplicate_date"),
        32: (good[20], "descending_date"),
        34: (",".join([(date.today() + timedelta(days=400)).isoformat(), *fields[1:]]), "future_date"),
        36: (",".join(["2012-03-03", *fields[1:]]), "not_a_session"),  # a Saturday
    }
    counts: dict[str, int] = {}
    lines_out = [head]
    for number, row in enumerate(good):
        text, reason = replacements.get(number, (row, ""))
        lines_out.append(text)
        if reason:
            counts[reason] = counts.get(reason, 0) + 1
        if number in added:
            extra, reason = added[number]
            lines_out.append(extra)
            counts[reason] = counts.get(reason, 0) + 1
    return lines_out, counts


def test_malformed_rows_are_counted_and_logged_and_the_run_goes_on(home: Path, history: History) -> None:
    folder = history.write(home / "folder")
    path = folder / "prices" / "AAA.csv"
    rows, counts = spoilt(path.read_text().splitlines())
    path.write_text("\n".join(rows) + "\n")
    news = folder / "news" / "BBB.jsonl"
    bad_news = [
        "{not json", '{"text": "no date at all", "symbol": "BBB"}', '{"published_at": "2012-03-01", "symbol": "BBB", "text": "naive"}',
        '{"published_at": "2099-01-01T00:00:00+00:00", "symbol": "BBB", "text": "tomorrow"}',
        '{"published_at": "2012-03-01T10:00:00+00:00", "symbol": "BBB", "text": ""}',
    ]  # fmt: skip
    news.write_text(news.read_text() + "\n".join(bad_news) + "\n")
    counts = {
        **counts,
        "not_json": 1,
        "undated": 2,
        "text": 1,
        "future_date": counts["future_date"] + 1,
    }
    summary, decisions = home / "summary.json", home / "decisions.jsonl"
    period = ("--replay_start", "2012-04-02", "--replay_end", "2012-05-31")
    outputs = ("--summary_json", str(summary), "--decisions_jsonl", str(decisions))
    ended = run_to_end(home, "--enable_streaming", "--exit_when_done", "--replay_dir", str(folder), *period, *outputs)
    assert ended.exit_code == 0, ended.stderr
    assert json.loads(summary.read_text())["rejected_records"] == counts
    assert "AAA.csv:12: skipped" in ended.stderr
    assert "Traceback" not in ended.stderr
    decided = lines(decisions)
    assert {line["symbol"] for line in decided} == {"AAA", "BBB"}
    assert json.loads(summary.read_text())["abstentions"] == 0


def test_an_empty_and_a_late_symbol_abstain_with_a_warning_each(home: Path, history: History) -> None:
    folder = history.write(home / "folder")
    (folder / "prices" / "CCC.csv").write_text("Date,Open,High,Low,Close,Adj Close,Volume\n")
    rows = (folder / "prices" / "BBB.csv").read_text().splitlines()
    (folder / "prices" / "DDD.csv").write_text("\n".join([rows[0], *rows[80:]]) + "\n")
    decisions = home / "decisions.jsonl"
    flags = (
        "--replay_dir",
        str(folder),
        "--replay_start",
        "2012-04-02",
        "--replay_end",
        "2012-05-31",
        "--exit_when_done",
    )
    ended = run_to_end(home, "--enable_streaming", *flags, "--decisions_jsonl", str(decisions))
    assert ended.exit_code == 0, ended.stderr
    warnings = [line for line in ended.stderr.splitlines() if "WARNING" in line]
    assert [sum(symbol in line for line in warnings) for symbol in ("CCC", "DDD")] == [1, 1]
    by_symbol = {
        symbol: [line["abstained"] for line in lines(decisions) if line["symbol"] == symbol]
        for symbol in ("CCC", "DDD")
    }
    assert all(by_symbol["CCC"])
    assert by_symbol["DDD"][0]


def test_a_placeholder_key_counts_as_unset_with_a_warning(home: Path) -> None:
    flags = [flag for flag in DONE if flag not in ("--feed", "replay")]
    ended = run_to_end(home, *flags, env={"FINNHUB_API_KEY": "your_key", "POLYGON_API_KEY": "your_polygon_key"})
    assert ended.exit_code == 0, ended.stderr
    assert "FINNHUB_API_KEY holds the placeholder" in ended.stderr
    assert "POLYGON_API_KEY holds the placeholder" in ended.stderr


def test_check_config_prints_the_masked_configuration_and_starts_nothing(place: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from-a-file-8471\n")
    env = {
        "ANTHROPIC_API_KEY": "sk-ant-not-shown-123", "DB_PASSWORD_FILE": str(secret), "SFT_MIN_TRAJECTORIES": "77", "METRICS_HOST": "0.0.0.0",
    }  # fmt: skip
    url = "postgresql://me:hidden-word@db.example:5433/trading"
    data_dir = place / "unused"
    flags = ("--check_config", "--metrics_host", "127.0.0.2", "--database_url", url)
    ended = run_to_end(place, *flags, env=env, data_dir=data_dir)
    assert (ended.exit_code, ended.complaint) == (0, "")
    shown = json.loads(ended.stdout)
    assert shown["sft_min_trajectories"] == 77
    assert shown["metrics_host"] == "127.0.0.2"  # a flag wins over the environment
    assert shown["anthropic_api_key"] == shown["db_password"] == shown["database_url"] == "********"
    for word in ("not-shown", "8471", "hidden-word"):
        assert word not in ended.stdout + ended.stderr
    assert not data_dir.exists()


def test_check_config_refuses_what_a_start_would_refuse(place: Path) -> None:
    assert_refused(run_to_end(place, "--check_config", "--replay_speed", "0"), 2, "replay_speed")


def test_version_is_one_line_on_standard_output(place: Path) -> None:
    ended = run_to_end(place, "--version")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout.startswith("stock-agents ")


def test_help_names_every_flag_of_the_documentation(place: Path) -> None:
    ended = run_to_end(place, "--help")
    assert ended.exit_code == 0
    documented = (
        "enable_streaming enable_learning_loop enable_monitoring streaming_symbols metrics_port metrics_host database_url config feed "
        "replay_dir replay_start replay_end replay_speed data_dir agents judges exit_when_done summary_json decisions_jsonl record fresh "
        "history_dir check_config version log_format log_level"
    )
    missing = [flag for flag in documented.split() if f"--{flag}" not in ended.stdout]
    assert missing == []
