"""Where a setting comes from, what a wrong one says, what never shows, and what makes two runs the same."""

from __future__ import annotations

import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from utils.errors import ConfigError
from utils.settings import ENVIRONMENT, OrchestratorConfig


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path) -> Path:
    """No environment, no .env, no config/system.yaml: an empty working directory."""
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(f"{variable}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def system_yaml(folder: Path, text: str) -> None:
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "system.yaml").write_text(text)


def test_the_documented_defaults() -> None:
    config = OrchestratorConfig()
    assert config.streaming_symbols == ("AAPL", "MSFT", "GOOGL")
    assert (config.metrics_port, config.metrics_host, config.health_check_interval_seconds) == (9090, "127.0.0.1", 60)
    assert (config.learning_check_interval_hours, config.sft_min_trajectories, config.rl_min_trajectories) == (
        6,
        100,
        500,
    )
    assert (config.db_host, config.db_port, config.db_name, config.db_user) == (
        None,
        5432,
        "trading_experience",
        "postgres",
    )
    assert config.db_password.get_secret_value() == "postgres"
    assert (config.feed, config.agents, config.judges) == ("auto", "auto", "auto")
    assert (config.replay_dir, config.replay_start, config.replay_end, config.replay_speed) == (
        "sample",
        None,
        None,
        "max",
    )
    assert config.data_dir == Path("var")
    assert config.random_state == 42
    assert config.enable_streaming and config.enable_learning_loop and config.enable_monitoring
    assert not config.exit_when_done and not config.fresh
    assert (config.log_format, config.log_level) == ("console", "INFO")
    assert config.uses_embedded_database


def test_the_documented_limits_and_costs() -> None:
    config = OrchestratorConfig()
    risk, execution = config.risk, config.execution
    assert (risk.max_drawdown, risk.max_daily_loss, risk.max_position_size) == (0.15, 0.02, 0.10)
    assert (risk.max_symbol_concentration, risk.max_gross_leverage) == (0.20, 1.0)
    assert (execution.commission_bps, execution.half_spread_bps, execution.slippage_bps) == (1, 2, 5)
    assert (execution.participation, execution.initial_cash) == (0.025, 100_000)
    assert execution.one_way_cost == pytest.approx(8e-4)
    assert (config.judge.deadline_s, config.judge.quorum, config.judge.weight) == (20, 2, 0.2)
    assert config.judge.hosted_agents == ("strategist",)
    assert (config.decision.cadence, config.decision.horizon, config.decision.horizon_sessions) == (
        "daily_close",
        "5d",
        5,
    )
    assert (config.feed_settings.queue, config.feed_settings.calendar) == (10_000, "XNYS")
    assert config.budget.usd_per_day == 5
    assert config.agent("news").enabled
    assert config.agent("news").timeout_s == 10


def test_argument_beats_environment_beats_dotenv_beats_yaml_beats_default(bare, monkeypatch) -> None:
    seen = [OrchestratorConfig().metrics_port]
    system_yaml(bare, "metrics_port: 1001\n")
    seen.append(OrchestratorConfig().metrics_port)
    (bare / ".env").write_text("METRICS_PORT=1002\n")
    seen.append(OrchestratorConfig().metrics_port)
    monkeypatch.setenv("METRICS_PORT", "1003")
    seen.append(OrchestratorConfig().metrics_port)
    seen.append(OrchestratorConfig(metrics_port=1004).metrics_port)
    assert seen == [9090, 1001, 1002, 1003, 1004]


@pytest.mark.parametrize(("name", "variable"), ENVIRONMENT.items())
def test_every_documented_variable_reaches_its_field(name, variable, monkeypatch) -> None:
    text = {"log_level": "ERROR", "metrics_host": "localhost", "database_url": "postgresql://h/d"}.get(name, "7")
    monkeypatch.setenv(variable, text)
    value = getattr(OrchestratorConfig(), name)
    shown = value.get_secret_value() if isinstance(value, SecretStr) else value
    assert str(shown).removesuffix(".0") == text


def test_a_secret_may_come_from_a_file_and_the_variable_itself_wins(bare, monkeypatch) -> None:
    (bare / "secret").write_text("from-the-file\n")
    monkeypatch.setenv("ANTHROPIC_API_KEY_FILE", str(bare / "secret"))
    monkeypatch.setenv("DB_PASSWORD_FILE", str(bare / "secret"))
    config = OrchestratorConfig()
    assert config.anthropic_api_key is not None
    assert config.anthropic_api_key.get_secret_value() == "from-the-file"
    assert config.db_password.get_secret_value() == "from-the-file"
    monkeypatch.setenv("DB_PASSWORD", "direct")
    assert OrchestratorConfig().db_password.get_secret_value() == "direct"


def test_a_secret_file_that_is_not_there_is_a_named_fault(monkeypatch) -> None:
    monkeypatch.setenv("POLYGON_API_KEY_FILE", "/no/such/file")
    with pytest.raises(ConfigError, match=r"POLYGON_API_KEY_FILE.*/no/such/file"):
        OrchestratorConfig()


@pytest.mark.parametrize(
    "placeholder", ["your_key", "your-api-key-here", "YOUR_FINNHUB_KEY", "changeme", "xxxx", "<key>"]
)
@pytest.mark.parametrize("source", ["argument", "environment", "dotenv", "yaml"])
def test_a_placeholder_counts_as_unset_with_a_warning(bare, monkeypatch, caplog, placeholder, source) -> None:
    arguments: dict[str, Any] = {}
    if_from = {
        "argument": lambda: arguments.update(finnhub_api_key=placeholder),
        "environment": lambda: monkeypatch.setenv("FINNHUB_API_KEY", placeholder),
        "dotenv": lambda: (bare / ".env").write_text(f"FINNHUB_API_KEY={placeholder}\n"),
        "yaml": lambda: system_yaml(bare, f"finnhub_api_key: {json.dumps(placeholder)}\n"),
    }
    if_from[source]()
    with caplog.at_level(logging.WARNING):
        assert OrchestratorConfig(**arguments).finnhub_api_key is None
    assert "FINNHUB_API_KEY" in caplog.text


def test_a_placeholder_in_an_argument_leaves_the_environment_its_say(monkeypatch) -> None:
    monkeypatch.setenv("FINNHUB_API_KEY", "real-key")
    key = OrchestratorConfig(finnhub_api_key="your_key").finnhub_api_key
    assert key is not None and key.get_secret_value() == "real-key"


def test_an_empty_variable_counts_as_unset(monkeypatch) -> None:
    monkeypatch.setenv("DB_HOST", "")
    monkeypatch.setenv("METRICS_PORT", "")
    config = OrchestratorConfig()
    assert config.uses_embedded_database
    assert config.metrics_port == 9090


@pytest.mark.parametrize(("field", "value"), [("db_host", "db.example"), ("database_url", "postgresql://h/d")])
def test_naming_a_server_turns_the_embedded_database_off(field, value) -> None:
    assert not OrchestratorConfig(**{field: value}).uses_embedded_database


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"metrics_prot": 1}, r"unknown key 'metrics_prot'; did you mean 'metrics_port'\?"),
    "an unknown key of a section": ({"risk": {"max_drawdwn": 0.1}}, r"'risk.max_drawdwn'; did you mean 'max_drawdown'\?"),
    "an unknown key of an agent": ({"agent_settings": {"news": {"enable": True}}}, r"did you mean 'enabled'\?"),
    "an unknown agent": ({"agent_settings": {"newss": {}}}, r"newss.*news"),
    "an unknown key of the local section": ({"local": {"devise": "cpu"}}, r"'local.devise'; did you mean 'device'\?"),
    "a device that is none": ({"local": {"device": "tpu"}}, "local.device"),
    "a form of numbers that is none": ({"local": {"dtype": "int8"}}, "local.dtype"),
    "a quantization that is none": ({"local": {"quantization": "8bit"}}, "local.quantization"),
    "an empty batch": ({"local": {"max_batch": 0}}, "local.max_batch"),
    "a window that ends before it begins": ({"local": {"merge_window_ms": -1}}, "local.merge_window_ms"),
    "more headlines than rules ever cite": ({"local": {"headlines": 4}}, "local.headlines"),
    "a policy of an agent that is no name": ({"agent_settings": {"news": {"policy": 5}}}, "agent_settings.news.policy"),
    "a port beyond the last": ({"metrics_port": 65536}, "metrics_port"),
    "a port in words": ({"metrics_port": "http"}, "metrics_port"),
    "an unknown feed": ({"feed": "yahoo"}, "feed"),
    "an unknown policy": ({"agents": "grok"}, "agents"),
    "a limit above one": ({"risk": {"max_drawdown": 15}}, "risk.max_drawdown"),
    "a cost that is no number": ({"execution": {"slippage_bps": float("nan")}}, "execution.slippage_bps"),
    "shorting": ({"execution": {"allow_shorting": True}}, "long only"),
    "a speed of zero": ({"replay_speed": 0}, "replay_speed"),
    "a speed in words": ({"replay_speed": "fast"}, "max or a positive number"),
    "a date that is none": ({"replay_start": "2013-02-30"}, "replay_start"),
    "a period that runs backwards": ({"replay_start": "2013-01-02", "replay_end": "2012-01-02"}, "replay_end 2012-01-02 lies before"),
    "a symbol that is none": ({"streaming_symbols": ["AA PL"]}, "ticker symbol"),
    "no symbol at all": ({"streaming_symbols": []}, "at least one symbol"),
    "a horizon of nothing": ({"decision": {"horizon": "0d"}}, "decision.horizon"),
    "an unknown cadence": ({"decision": {"cadence": "hourly"}}, "decision.cadence"),
    "too small a holdout": ({"learning": {"holdout_sessions": 59}}, "learning.holdout_sessions"),
    "a missing file": ({"config_path": "/no/such.yaml"}, r"config_path.*no/such\.yaml"),
    "a negative interval": ({"health_check_interval_seconds": -1}, "health_check_interval_seconds"),
    "an unknown level": ({"log_level": "LOUD"}, "log_level"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=[name.replace(" ", "_") for name in WRONG])
def test_a_wrong_setting_is_a_config_error_that_names_it(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        OrchestratorConfig(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["metrics_port: [", "- a\n- b\n", "just words", "metrics_prot: 1\n", "risk: {max_drawdwn: 1}\n", "risk: 5\n"],
)
def test_a_wrong_yaml_file_is_a_config_error(bare, text) -> None:
    system_yaml(bare, text)
    with pytest.raises(ConfigError):
        OrchestratorConfig()


def test_a_yaml_file_that_is_no_text_is_a_config_error(bare) -> None:
    system_yaml(bare, "")
    (bare / "config" / "system.yaml").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ConfigError, match="not readable"):
        OrchestratorConfig()


def test_an_error_never_shows_the_secret_it_is_about() -> None:
    with pytest.raises(ConfigError) as caught:
        OrchestratorConfig(openai_api_key=["sk-very-secret"])
    assert "openai_api_key" in str(caught.value)
    assert "sk-very-secret" not in str(caught.value)


def test_yaml_sections_hold_settings_beside_the_choice_of_policy_and_source(bare) -> None:
    system_yaml(
        bare,
        "agents: {policy: rules, news: {enabled: false, timeout_s: 3}}\nfeed: {source: replay, queue: 5}\nrisk: {max_drawdown: 0.3}\n",
    )
    config = OrchestratorConfig()
    assert (config.agents, config.feed) == ("rules", "replay")
    assert not config.agent("news").enabled
    assert config.agent("technical").enabled
    assert config.feed_settings.queue == 5
    assert config.risk.max_drawdown == 0.3


def test_an_agent_thinks_as_it_is_told_else_as_all(bare) -> None:
    system_yaml(bare, "agents: {policy: rules, technical: {policy: momentum}, news: {policy: null}}\n")
    config = OrchestratorConfig()
    seats = ("news", "technical", "fundamental", "strategist", "validator")
    assert {name: config.policy_of(name) for name in seats} == {
        **dict.fromkeys(seats, "rules"),
        "technical": "momentum",
    }
    assert OrchestratorConfig(agents="local").policy_of("technical") == "momentum"
    assert OrchestratorConfig(agent_settings={"news": {"policy": "local"}}).policy_of("technical") == "rules"


def test_the_section_local_has_documented_defaults_and_is_read_from_yaml(bare) -> None:
    assert OrchestratorConfig().local.model_dump() == {
        "device": "auto", "dtype": "auto", "quantization": "none", "max_batch": 64, "merge_window_ms": 5.0, "headlines": None,
        "server_url": None, "served_model": None,
    }  # fmt: skip
    system_yaml(
        bare, "local: {device: cuda, quantization: 4bit, headlines: 2, server_url: 'http://localhost:8000/v1'}\n"
    )
    local = OrchestratorConfig().local
    assert (local.device, local.quantization, local.headlines) == ("cuda", "4bit", 2)
    assert (local.server_url, local.max_batch) == ("http://localhost:8000/v1", 64)


@pytest.mark.parametrize(
    ("base_model", "headlines", "quoted"),
    [("builtin:tiny", None, 0), ("some/model", None, 3), ("builtin:tiny", 2, 2), ("some/model", 0, 0)],
)
def test_headlines_are_quoted_to_models_that_can_read_them_unless_a_number_is_given(
    base_model, headlines, quoted
) -> None:
    config = OrchestratorConfig(learning={"base_model": base_model}, local={"headlines": headlines})
    assert config.headlines() == quoted


def test_the_shipped_configuration_says_the_defaults() -> None:
    shipped = Path(__file__).parents[2] / "config" / "system.yaml"
    assert OrchestratorConfig(config_path=shipped).identity() == OrchestratorConfig().identity()


def test_symbols_are_upper_case_and_unique_and_one_may_stand_alone() -> None:
    assert OrchestratorConfig(streaming_symbols=["aapl", "MSFT", "AAPL", "brk.b"]).streaming_symbols == (
        "AAPL",
        "MSFT",
        "BRK.B",
    )
    assert OrchestratorConfig(streaming_symbols="ibm").streaming_symbols == ("IBM",)


def test_first_and_last_mean_the_whole_period() -> None:
    config = OrchestratorConfig(replay_start="first", replay_end="last")
    assert (config.replay_start, config.replay_end) == (None, None)
    assert OrchestratorConfig(replay_start="2010-03-01").replay_start == date(2010, 3, 1)


def test_a_horizon_in_minutes_cannot_be_settled_by_daily_bars() -> None:
    config = OrchestratorConfig(decision={"horizon": "30min"})
    with pytest.raises(ConfigError, match="30min"):
        _ = config.decision.horizon_sessions


def test_a_run_that_began_before_hosted_agents_could_be_named_is_the_same_run() -> None:
    assert "hosted_agents" not in OrchestratorConfig().identity()["judge"]
    named = [
        OrchestratorConfig(judge={"hosted_agents": names}).identity()
        for names in (["news", "strategist"], ["strategist", "news"])
    ]
    assert named[0] == named[1]


@pytest.mark.parametrize("names", [[], ["validator"], ["news", "news"], ["analyst"]])
def test_hosted_judges_grade_known_agents_and_at_least_one(names) -> None:
    with pytest.raises(ConfigError, match=r"judge\.hosted_agents"):
        OrchestratorConfig(judge={"hosted_agents": names})


def test_hashing_in_batches_of_any_size_is_the_same_run_and_an_encoder_in_other_batches_is_not() -> None:
    assert OrchestratorConfig(embeddings={"batch": 7}).identity() == OrchestratorConfig().identity()
    encoded = [OrchestratorConfig(embeddings={"model": "minilm", "batch": batch}).identity() for batch in (7, 8)]
    assert encoded[0] != encoded[1]


@pytest.mark.parametrize("embeddings", [{"model": ""}, {"batch": 0}, {"modell": "minilm"}])
def test_an_impossible_embedding_setting_is_named(embeddings) -> None:
    with pytest.raises(ConfigError, match=r"embeddings\.mode|embeddings\.batch"):
        OrchestratorConfig(embeddings=embeddings)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        OrchestratorConfig().metrics_port = 1


SECRETS = {
    "finnhub_api_key", "polygon_api_key", "anthropic_api_key", "openai_api_key", "gemini_api_key", "db_password", "database_url",
}  # fmt: skip


def test_what_people_see_is_json_without_any_secret() -> None:
    config = OrchestratorConfig(
        **{name: f"hidden-{name}" for name in SECRETS - {"database_url"}}, database_url="postgresql://u:hidden@h/d"
    )
    shown = json.dumps(config.masked())
    assert "hidden" not in shown
    assert {name for name, value in config.masked().items() if value == "********"} == SECRETS
    assert "hidden" not in repr(config)
    assert OrchestratorConfig().masked()["openai_api_key"] is None


def test_places_ports_and_secrets_do_not_make_another_run() -> None:
    elsewhere = OrchestratorConfig(
        data_dir="/elsewhere", metrics_port=0, metrics_host="0.0.0.0", db_host="h", db_password="p", replay_dir="copy",
        log_level="DEBUG", summary_json="s.json", decisions_jsonl="d.jsonl", exit_when_done=True, fresh=True,
        enable_monitoring=False, openai_api_key="k", replay_speed="100", health_check_interval_seconds=5,
    )  # fmt: skip
    assert elsewhere.identity() == OrchestratorConfig().identity()
    json.dumps(elsewhere.identity())


SPELLED_OUT: list[dict[str, Any]] = [
    {"agent_settings": {"news": {}}},
    {"agent_settings": {"news": {"policy": None}, "technical": {"enabled": True, "timeout_s": 10.0}}},
    {"local": {}},
    {"local": OrchestratorConfig.model_fields["local"].default.model_dump()},
    {"local": {"server_url": "http://localhost:8000/v1"}},
    {"local": {"device": "auto", "headlines": None}},
]


@pytest.mark.parametrize("settings", SPELLED_OUT, ids=str)
def test_settings_that_say_the_default_and_places_leave_an_older_run_the_same_run(settings) -> None:
    identity = OrchestratorConfig(**settings).identity()
    assert identity == OrchestratorConfig().identity()
    assert "local" not in identity
    assert identity["agent_settings"] == {}


def test_an_agents_settings_without_a_policy_are_those_of_a_run_that_knew_of_none() -> None:
    identity = OrchestratorConfig(agent_settings={"news": {"enabled": False}}).identity()
    assert identity["agent_settings"] == {"news": {"enabled": False, "timeout_s": 10.0}}


@pytest.mark.parametrize(
    "change",
    [
        {"local": {"dtype": "bfloat16"}},
        {"local": {"quantization": "4bit"}},
        {"local": {"headlines": 2}},
        {"local": {"served_model": "another"}},
        {"agent_settings": {"technical": {"policy": "momentum"}}},
        {"agent_settings": {"strategist": {"policy": "rules"}}},
        {"risk": {"max_drawdown": 0.2}},
        {"execution": {"slippage_bps": 6}},
        {"decision": {"horizon": "3d"}},
        {"random_state": 1},
        {"agents": "rules"},
        {"agent_settings": {"news": {"enabled": False}}},
        {"judge": {"weight": 0.3}},
        {"judge": {"hosted_agents": ["strategist", "news"]}},
        {"enable_learning_loop": False},
        {"sft_min_trajectories": 5},
        {"embeddings": {"model": "minilm"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decisions_depend_on_makes_another_run(change) -> None:
    assert OrchestratorConfig(**change).identity() != OrchestratorConfig().identity()


@pytest.mark.parametrize("judges", [["anthropic", "local"], ("anthropic", "local"), "anthropic local"])
def test_judges_may_be_given_as_a_list_or_in_one_word(judges: Any) -> None:
    assert OrchestratorConfig(judges=judges).judges == "anthropic local"
