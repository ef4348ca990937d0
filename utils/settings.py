"""The configuration of a run: one frozen, documented model, filled from flags, environment, YAML and defaults.

Precedence: constructor argument or flag > environment (and `.env`) > ``config/system.yaml`` > default. A misspelt or
impossible setting is a `ConfigError` that names the field and the nearest valid one. Nothing is read at import time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from utils.errors import ConfigError, nearest
from utils.setting_sections import (
    AgentSettings,
    BudgetSettings,
    DecisionSettings,
    EmbeddingSettings,
    ExecutionSettings,
    FeedSettings,
    JudgeSettings,
    LearningSettings,
    LlmSettings,
    LocalSettings,
    NonNegative,
    Positive,
    RetentionSettings,
    RetrievalSettings,
    RiskSettings,
    SimulationSettings,
    WorkflowSettings,
    explained,
)

BUILTIN_TINY = "builtin:tiny"
"""The small causal LM that the project pre-trains from code."""

DEFAULT_CONFIG_PATH = Path("config/system.yaml")
_PLACEHOLDER = re.compile(r"^(your[_-].*|changeme|xxx+|<.*>)$", re.IGNORECASE)
_SYMBOL = re.compile(r"^[A-Z0-9][A-Z0-9.\-]{0,19}$")
_CONNECTION_STRING = re.compile(r"^(postgres(ql)?://|\w+\s*=)")


# field -> environment variable; every secret may also come from a file named by VARIABLE_FILE
ENVIRONMENT: dict[str, str] = {
    "finnhub_api_key": "FINNHUB_API_KEY",
    "polygon_api_key": "POLYGON_API_KEY",
    "anthropic_api_key": "ANTHROPIC_API_KEY",
    "openai_api_key": "OPENAI_API_KEY",
    "gemini_api_key": "GEMINI_API_KEY",
    "local_server_api_key": "LOCAL_SERVER_API_KEY",
    "anthropic_base_url": "ANTHROPIC_BASE_URL",
    "openai_base_url": "OPENAI_BASE_URL",
    "gemini_base_url": "GOOGLE_GEMINI_BASE_URL",
    "learning_check_interval_hours": "LEARNING_CHECK_INTERVAL",
    "sft_min_trajectories": "SFT_MIN_TRAJECTORIES",
    "rl_min_trajectories": "RL_MIN_TRAJECTORIES",
    "metrics_port": "METRICS_PORT",
    "metrics_host": "METRICS_HOST",
    "health_check_interval_seconds": "HEALTH_CHECK_INTERVAL",
    "db_host": "DB_HOST",
    "db_port": "DB_PORT",
    "db_name": "DB_NAME",
    "db_user": "DB_USER",
    "db_password": "DB_PASSWORD",
    "database_url": "DATABASE_URL",
    "data_dir": "DATA_DIR",
    "model_cache_dir": "MODEL_CACHE_DIR",
    "log_level": "LOG_LEVEL",
}
_SECRETS = (*(name for name in ENVIRONMENT if name.endswith("_api_key")), "db_password", "database_url")

_ADDED_LATER: dict[str, frozenset[str]] = {
    "budget": frozenset({"usd_per_decision", "tokens_per_decision"}),
    "llm": frozenset(LlmSettings.model_fields),
    "judge": frozenset({"hosted_agents", "method", "models", "weights"}),
    "local": frozenset(LocalSettings.model_fields),
}
"""Settings that earlier versions did not have, by section."""


class OrchestratorConfig(BaseModel):
    """Everything a run depends on. Arguments win over environment, environment over YAML, YAML over these defaults.

    Raises
    ------
    ConfigError
        On an unknown field, a value of the wrong type or out of range, an unreadable file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enable_streaming: bool = True
    enable_learning_loop: bool = True
    enable_monitoring: bool = True
    streaming_symbols: tuple[str, ...] = ("AAPL", "MSFT", "GOOGL")
    finnhub_api_key: SecretStr | None = None
    polygon_api_key: SecretStr | None = None
    anthropic_api_key: SecretStr | None = None
    openai_api_key: SecretStr | None = None
    gemini_api_key: SecretStr | None = None
    local_server_api_key: SecretStr | None = None
    learning_check_interval_hours: Positive = 6.0
    sft_min_trajectories: Annotated[int, Field(ge=1)] = 100
    rl_min_trajectories: Annotated[int, Field(ge=1)] = 500
    sft_retrain_interval_hours: NonNegative = 24.0
    rl_retrain_interval_hours: NonNegative = 48.0
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    metrics_host: str = "127.0.0.1"
    health_check_interval_seconds: Positive = 60.0
    db_host: str | None = None
    db_port: Annotated[int, Field(ge=1, le=65535)] = 5432
    db_name: str = "trading_experience"
    db_user: str = "postgres"
    db_password: SecretStr = SecretStr("postgres")
    database_url: SecretStr | None = None
    config_path: Path | None = None
    feed: Literal["auto", "finnhub", "polygon", "replay", "simulated"] = "auto"
    replay_dir: str = "sample"
    replay_start: date | None = None
    replay_end: date | None = None
    replay_speed: str = "max"
    data_dir: Path = Path("var")
    model_cache_dir: Path | None = None
    anthropic_base_url: str | None = None
    openai_base_url: str | None = None
    gemini_base_url: str | None = None
    agents: Literal["auto", "rules", "local", "anthropic", "openai", "gemini"] = "auto"
    judges: str = "auto"
    exit_when_done: bool = False
    summary_json: Path | None = None
    decisions_jsonl: Path | None = None
    record: Path | None = None
    fresh: bool = False
    history_dir: Path | None = None
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    random_state: Annotated[int, Field(ge=0)] = 42
    agent_settings: dict[Literal["news", "technical", "fundamental", "strategist", "validator"], AgentSettings] = {}
    decision: DecisionSettings = DecisionSettings()
    risk: RiskSettings = RiskSettings()
    execution: ExecutionSettings = ExecutionSettings()
    budget: BudgetSettings = BudgetSettings()
    llm: LlmSettings = LlmSettings()
    judge: JudgeSettings = JudgeSettings()
    workflow: WorkflowSettings = WorkflowSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    feed_settings: FeedSettings = FeedSettings()
    learning: LearningSettings = LearningSettings()
    local: LocalSettings = LocalSettings()
    retention: RetentionSettings = RetentionSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    simulation: SimulationSettings = SimulationSettings()

    def __init__(self, **arguments: Any) -> None:
        path = arguments.get("config_path")
        merged = {**_without_placeholders(_from_yaml(path)), **_from_environment(), **_without_placeholders(arguments)}
        try:
            super().__init__(**merged)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(item) for item in error.errors(include_url=False))) from None

    @field_validator("streaming_symbols", mode="before")
    @classmethod
    def _symbols(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else list(value)
        names = [str(name).upper() for name in names]
        for name in names:
            if not _SYMBOL.match(name):
                raise ValueError(f"{name!r} is not a ticker symbol: letters, digits, '.' and '-', at most 20")
        if not names:
            raise ValueError("name at least one symbol, for example AAPL")
        return tuple(dict.fromkeys(names))

    @field_validator("replay_start", "replay_end", mode="before")
    @classmethod
    def _date_or_none(cls, value: Any) -> Any:
        return None if value in ("first", "last") else value

    @field_validator("replay_speed", mode="before")
    @classmethod
    def _speed(cls, value: Any) -> str:
        text = str(value)
        try:
            valid = text == "max" or 0 < float(text) < float("inf")
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("must be max or a positive number of times real time, for example 3600")
        return text

    @field_validator("db_host", mode="before")
    @classmethod
    def _empty_host(cls, value: Any) -> Any:
        return value or None

    @field_validator("database_url")
    @classmethod
    def _connection_string(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _CONNECTION_STRING.match(value.get_secret_value()):
            raise ValueError(
                "is not a connection string; give for example postgresql://user:password@host:5432/trading_experience"
            )
        return value

    @field_validator("judges", mode="before")
    @classmethod
    def _judge_names(cls, value: Any) -> Any:
        return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _period(self) -> OrchestratorConfig:
        if self.replay_start and self.replay_end and self.replay_end < self.replay_start:
            raise ValueError(f"replay_end {self.replay_end} lies before replay_start {self.replay_start}")
        return self

    @property
    def base_model_cache(self) -> Path:
        """Where the small base model lies once it is built."""
        return self.model_cache_dir or self.data_dir / "models" / "base"

    @property
    def uses_embedded_database(self) -> bool:
        """Whether the database is ours to start: neither DB_HOST nor DATABASE_URL names one."""
        return self.db_host is None and self.database_url is None

    def agent(self, name: str) -> AgentSettings:
        """Return the settings of one agent, the defaults where none are given."""
        return {str(key): value for key, value in self.agent_settings.items()}.get(name, AgentSettings())

    def policy_of(self, agent_type: str) -> str:
        """Return how an agent is to think: its own choice, else that of all."""
        return self.agent(agent_type).policy or self.agents

    def headlines(self) -> int:
        """Return how many headlines a local news state quotes."""
        if self.local.headlines is not None:
            return self.local.headlines
        return 0 if self.learning.base_model == BUILTIN_TINY else 3

    def masked(self) -> dict[str, Any]:
        """Return the effective configuration as JSON values, secrets masked, for people and /status."""
        values = self.model_dump(mode="json")
        for name in _SECRETS:
            if getattr(self, name) is not None:
                values[name] = "********"
        return values

    def identity(self) -> dict[str, Any]:
        """Return what decisions depend on: the configuration without places, ports, secrets and output files.

        Symbols, period, source and simulated scenario are left to the feed's own identity, which has them as they take
        effect: sorted, cut to the data, resolved.
        """
        irrelevant = {
            "feed", "streaming_symbols", "replay_start", "replay_end",
            "metrics_port", "metrics_host", "health_check_interval_seconds", "db_host", "db_port", "db_name", "db_user",
            "config_path", "replay_dir", "replay_speed", "data_dir", "model_cache_dir", "exit_when_done",
            "summary_json", "decisions_jsonl", "record", "fresh", "history_dir", "log_format", "log_level",
            "enable_monitoring", "anthropic_base_url", "openai_base_url", "gemini_base_url", "simulation", *_SECRETS,
        }  # fmt: skip
        values = self.model_dump(mode="json", exclude=irrelevant)
        # settings that say the default are the default, whether a file spells them out or not
        values["agent_settings"] = {
            name: {key: value for key, value in kept.items() if (key, value) != ("policy", None)}
            for name, kept in values["agent_settings"].items()
            if kept != AgentSettings().model_dump(mode="json")
        }
        values["local"].pop("server_url")  # a place
        for section, added in _ADDED_LATER.items():  # where they keep their defaults, an older run is the same run
            default = type(self).model_fields[section].default.model_dump(mode="json")
            values[section] = {k: v for k, v in values[section].items() if k not in added or v != default[k]}
            if not values[section]:
                del values[section]
        if not self.retention.enabled:  # a run that began before there was retention is the same run
            del values["retention"]
        if self.embeddings.model == "hashing":
            del values["embeddings"]  # the default, whose vectors are the same in batches of any size
        return values


def _from_yaml(path: Any) -> dict[str, Any]:
    """Return the fields that the YAML file sets; its sections agents and feed hold a policy or source beside settings."""
    chosen = Path(path) if path else DEFAULT_CONFIG_PATH
    if not chosen.is_file():
        if path:
            raise ConfigError(f"config_path: there is no file {str(path)!r}; give the path of a YAML file")
        return {}
    try:
        content = yaml.safe_load(chosen.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{chosen}: not readable as YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{chosen}: the file must hold keys and values at its top level")
    for section, settings, choice in (("agents", "agent_settings", "policy"), ("feed", "feed_settings", "source")):
        value = content.get(section)
        if isinstance(value, dict):
            value = dict(value)
            del content[section]
            if choice in value:
                content[section] = value.pop(choice)
            content[settings] = value
    return {str(key): value for key, value in content.items() if value is not None}


def _from_environment() -> dict[str, Any]:
    """Return the fields that the environment sets, `.env` in the working directory included (the environment wins)."""
    values: Mapping[str, str | None] = {**dotenv_values(".env"), **os.environ} if Path(".env").is_file() else os.environ
    found: dict[str, Any] = {}
    for name, variable in ENVIRONMENT.items():
        text = values.get(variable)
        file = values.get(f"{variable}_FILE")
        if not text and file and name in _SECRETS:
            try:
                text = Path(file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(f"{variable}_FILE: cannot read {file!r}: {error.strerror}") from None
        if text:
            found[name] = text
    return _without_placeholders(found)


def _without_placeholders(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without keys that still hold a placeholder such as ``your_key``."""
    from utils.logs import logger

    kept = {}
    for name, value in values.items():
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if name.endswith("_api_key") and isinstance(text, str) and _PLACEHOLDER.match(text.strip()):
            logger.warning("%s holds the placeholder %r and counts as unset", ENVIRONMENT[name], text)
            continue
        kept[name] = value
    return kept


def _explain(item: Any) -> str:
    """Return one validation error as a sentence that names the field, the fault and the remedy."""
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        *parents, key = (str(part) for part in item["loc"])
        return f"unknown key {location!r}{nearest(key, _known_keys(parents))}"
    return explained(item, _SECRETS)


def _known_keys(parents: list[str]) -> list[str]:
    """Return the field names of the section that `parents` leads to."""
    if parents and parents[0] == "agent_settings":
        return (
            list(AgentSettings.model_fields)
            if len(parents) > 1
            else ["news", "technical", "fundamental", "strategist", "validator"]
        )
    model: type[BaseModel] = OrchestratorConfig
    for name in parents:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
