"""The sections of the configuration: one frozen, documented model for each part of the system that can be set.

`utils.settings.OrchestratorConfig` holds one of each; parts are handed their own section.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from utils.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_DURATION = re.compile(r"^(\d+)\s*(d|min)$")


class Section(BaseModel):
    """What every section is: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AgentSettings(Section):
    """One agent of the workflow."""

    enabled: bool = True
    timeout_s: Positive = 10.0
    policy: str | None = Field(
        None, description="how this agent thinks, where not as the others: as --agents, or a plug-in's name"
    )


class DecisionSettings(Section):
    """When a decision is taken and how long it is given to come true."""

    cadence: str = Field("daily_close", description="daily_close; Nmin and on_bar need a live feed")
    horizon: str = Field("5d", description="sessions (5d) or minutes (30min) until the outcome")

    @field_validator("cadence")
    @classmethod
    def _known_cadence(cls, value: str) -> str:
        if value not in ("daily_close", "on_bar") and not re.match(r"^\d+min$", value):
            raise ValueError("must be daily_close, on_bar or a number of minutes such as 15min")
        return value

    @field_validator("horizon")
    @classmethod
    def _known_horizon(cls, value: str) -> str:
        match = _DURATION.match(value)
        if not match or int(match.group(1)) < 1:
            raise ValueError("must be sessions such as 5d or minutes such as 30min")
        return value

    @property
    def horizon_sessions(self) -> int:
        """The horizon in sessions.

        Raises
        ------
        ConfigError
            If it is given in minutes: bars of a session cannot settle it.
        """
        count, unit = re.findall(r"^(\d+)\s*(\w+)$", self.horizon)[0]
        if unit != "d":
            raise ConfigError(
                f"decision.horizon: {self.horizon!r} needs bars of a minute; daily bars settle sessions, for example 5d"
            )
        return int(count)


class RiskSettings(Section):
    """Limits of the risk gates, fractions of equity."""

    max_drawdown: Fraction = 0.15
    max_daily_loss: Fraction = 0.02
    max_position_size: Fraction = 0.10
    max_symbol_concentration: Fraction = 0.20
    max_gross_leverage: Positive = 1.0


class ExecutionSettings(Section):
    """The paper broker: costs in basis points of the traded value, cash in USD."""

    initial_cash: Positive = 100_000.0
    commission_bps: NonNegative = 1.0
    half_spread_bps: NonNegative = 2.0
    slippage_bps: NonNegative = 5.0
    participation: Annotated[float, Field(gt=0, le=1)] = 0.025
    interest_rate: NonNegative = 0.0
    allow_shorting: bool = False
    rebalance_band: Fraction = Field(0.25, description="a held position is left alone within this share of its target")

    @field_validator("allow_shorting")
    @classmethod
    def _long_only(cls, value: bool) -> bool:
        if value:
            raise ValueError("the paper broker trades long only; leave it false")
        return value

    @property
    def one_way_cost(self) -> float:
        """What one trade costs, as a fraction of its value."""
        return (self.commission_bps + self.half_spread_bps + self.slippage_bps) / 1e4


class BudgetSettings(Section):
    """What hosted models may cost: in a day of UTC, and for one decision, its agents and its judges each."""

    usd_per_day: NonNegative = 5.0
    usd_per_decision: NonNegative = 0.5
    tokens_per_decision: Annotated[int, Field(ge=0)] = 200_000


class LlmSettings(Section):
    """Hosted models, for agents and judges alike: which ones, and how they are called."""

    anthropic: Annotated[str, Field(min_length=1)] = "claude-haiku-5-5"
    openai: Annotated[str, Field(min_length=1)] = "gpt-5.4-mini"
    gemini: Annotated[str, Field(min_length=1)] = "gemini-3.8-flash"
    max_output_tokens: Annotated[int, Field(ge=64, le=65_536)] = 2048
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(16, description="calls a model may have open at a time")
    cache: Literal["auto", "on", "off"] = Field("auto", description="answers kept by content: auto in replays only")
    prices: Path | None = Field(None, description="YAML with USD per million tokens; None is config/llm/prices.yaml")

    def model(self, provider: str) -> str:
        """Return the model that serves for a provider: anthropic, openai or gemini."""
        return str(getattr(self, provider))


class JudgeSettings(Section):
    """The panel: deadline in seconds, scores 0..100, and the judges' weight in the reward."""

    deadline_s: Positive = 20.0
    quorum: Annotated[int, Field(ge=1)] = 2
    disagreement_threshold: NonNegative = 20.0
    weight: Fraction = 0.2
    method: Literal["weighted_average", "majority_vote", "median", "min", "max", "calibrated"] = "weighted_average"
    models: dict[Literal["anthropic", "openai", "gemini"], str] = Field(
        {}, description="a judge's model where it is not the one of section llm"
    )
    weights: dict[str, Positive] = Field(
        {}, description="by judge id: local, anthropic, openai, gemini; 1 if not named"
    )
    hosted_agents: tuple[Literal["news", "technical", "fundamental", "strategist"], ...] = Field(
        ("strategist",), description="agents whose opinions hosted judges grade; the local one grades all"
    )

    @field_validator("hosted_agents")
    @classmethod
    def _named_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one agent; for no hosted judges set judges to local")
        if len(set(value)) < len(value):
            raise ValueError("name each agent once")
        return tuple(sorted(value))


class WorkflowSettings(Section):
    """Thresholds of the workflow's rewriting rules."""

    mode: Literal["adaptive", "sequential"] = "adaptive"
    low_confidence_threshold: Fraction = 0.5
    very_low_confidence: Fraction = 0.3
    agreement_confidence: Fraction = 0.7
    max_latency_ms: Positive = 5000.0


class RetrievalSettings(Section):
    """Experiences in decisions: who is given them, and how many."""

    when: Literal["auto", "always", "never"] = Field("auto", description="auto: policies that read them")
    limit: Annotated[int, Field(ge=1, le=50)] = Field(5, description="experiences an agent is given")


class FeedSettings(Section):
    """The stream: how many instants may wait, and the exchange whose sessions count."""

    queue: Annotated[int, Field(ge=1)] = 10_000
    calendar: str = "XNYS"


class SimulationSettings(Section):
    """The generated market of ``--feed simulated``; what is left out keeps the scenario's own value."""

    scenario: Path | None = Field(None, description="YAML file with the fields of a scenario; None is the default one")
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = Field(
        None, description="None: that of the file, else random_state"
    )
    sessions: Annotated[int, Field(ge=10, le=20_000)] | None = None
    symbols: tuple[str, ...] | None = Field(None, description="streaming_symbols, where given, win")
    edge_bps: Annotated[float, Field(ge=-500, le=500, allow_inf_nan=False)] | None = Field(
        None, description="one edge for every agent in every regime; 0 leaves nothing to be earned"
    )


class EmbeddingSettings(Section):
    """What makes states comparable: hashing needs no model, an encoder works in the background."""

    model: Annotated[str, Field(min_length=1)] = Field(
        "hashing", description="hashing, minilm or a folder with a sentence-transformers model of 384 values"
    )
    batch: Annotated[int, Field(ge=1, le=4096)] = Field(64, description="states embedded and stored together")

    def replaced(self, **changes: Any) -> EmbeddingSettings:
        """Return the settings with some changed; a ConfigError for what cannot be."""
        try:
            return EmbeddingSettings(**{**self.model_dump(), **changes})
        except ValidationError as error:
            raise ConfigError(
                "; ".join(f"embeddings.{explained(item)}" for item in error.errors(include_url=False))
            ) from None


class LearningSettings(Section):
    """The learning loop beyond its triggers; see ``config/training`` for the trainers' own hyper-parameters."""

    sft_agents: tuple[Literal["news", "technical", "fundamental"], ...] = Field(
        ("news", "technical", "fundamental"), description="juniors that are fine-tuned"
    )
    rl_agents: tuple[Literal["news", "technical", "fundamental", "strategist"], ...] = Field(
        ("strategist",), description="agents whose local model learns by reinforcement"
    )
    holdout_sessions: Annotated[int, Field(ge=60)] = Field(
        60, description="sessions kept for the gate, at least 60; 12 horizons where that is more"
    )
    holdout_decisions: Annotated[int, Field(ge=200)] = Field(200, description="paired decisions the gate needs")
    base_model: str = Field(
        "builtin:tiny", description="builtin:tiny, a folder with a Hugging Face model, or a hub id: org/name@revision"
    )
    sft_config: Path | None = Field(None, description="hyper-parameters; null: config/training/sft_config.yaml")
    rl_config: Path | None = Field(
        None,
        description="hyper-parameters; null: config/training/rl/grpo_config.yaml; ppo_config.yaml is the clipped surrogate",
    )
    accelerate_config: Path | None = Field(
        None, description="of accelerate, for several GPUs or machines; null: one process"
    )
    train_timeout_s: Positive = 3600.0
    shadow_decisions: Annotated[int, Field(ge=0)] = Field(
        50, description="settled decisions of a challenger beside the champion before it may serve; 0: none"
    )
    shadow_sessions: Annotated[int, Field(ge=0)] = Field(5, description="and sessions of them; both 0: no shadow stage")
    false_alarm_years: Annotated[float, Field(ge=1, le=100)] = Field(
        10.0, description="mean time of 252 sessions until a champion no worse than its predecessor is rolled back"
    )
    error_budget_per_year: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.05, description="chance that an agent's gates of a year promote what is no better"
    )
    max_model_age_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        365.0, description="a champion trained on nothing newer no longer serves; null: no limit"
    )
    keep_rejected: Annotated[int, Field(ge=0)] = Field(10, description="rejected versions of an agent whose files stay")
    disk_budget_gb: Positive = Field(20.0, description="of datasets, trainings and versions; above it none begins")
    free_memory_gb: NonNegative = Field(2.0, description="that must be free for a training to begin")

    @property
    def shadow_stage(self) -> bool:
        """Whether a version proves itself in shadow before it serves."""
        return self.shadow_decisions > 0 or self.shadow_sessions > 0


class LocalSettings(Section):
    """Local models: where they run, and in which form; the model itself is `learning.base_model`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: float32 on the CPU")
    quantization: Literal["none", "4bit"] = Field("none", description="4bit needs CUDA and bitsandbytes")
    max_batch: Annotated[int, Field(ge=1, le=1024)] = Field(64, description="questions generated together")
    merge_window_ms: NonNegative = Field(5.0, description="live: how long a question may wait for others to join it")
    headlines: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None,
        description="quoted in a news state, of the 3 that its rules cite at most; null: 3, and 0 for builtin:tiny, which "
        "is too small to read them",
    )
    server_url: str | None = Field(
        None,
        description="OpenAI-compatible server with LoRA adapters, such as http://localhost:8000/v1; null: this process",
    )
    served_model: str | None = Field(
        None, description="the base model's name on that server; null: learning.base_model"
    )


class RetentionSettings(Section):
    """What the daemon removes once a day of its Clock, of its own run; off by default. Needs an age or a reward.

    The ages have a floor: the gate's 60 held-out sessions and the two horizons before them are about 110 days, and a
    library that remembers less can never train.
    """

    enabled: bool = False
    max_age_days: Annotated[float, Field(ge=120, allow_inf_nan=False)] | None = Field(
        730, description="decided longer ago: removed; null for no limit"
    )
    min_reward: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="earned less: removed once old enough; null for no limit"
    )
    min_reward_after_days: Annotated[float, Field(ge=120, allow_inf_nan=False)] = 180
    batch_rows: Annotated[int, Field(ge=1, le=100_000)] = Field(1000, description="rows of one transaction")

    @model_validator(mode="after")
    def _by_something(self) -> RetentionSettings:
        if self.enabled and self.max_age_days is None and self.min_reward is None:
            raise ValueError("enabled, but there is nothing to remove by; set max_age_days or min_reward")
        return self


def explained(item: Any, secrets: tuple[str, ...] = ()) -> str:
    """Return one validation error as field, fault and the value that was given, unless the field is secret."""
    location = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    hidden = isinstance(value, dict) or value is None or (item["loc"][:1] and item["loc"][0] in secrets)
    shown = "" if hidden else f" (got {value!r})"
    return f"{location}: {message}{shown}" if location else message
