"""What a reinforcement-learning run is asked: the job file of `training.rl.train_policy`, its rows and hyper-parameters.

Written by the pipeline or by hand. Imports no model library, so that the daemon can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from judge.reward_calculator import relative_move
from training.job import CONFIG, Count, Frozen, HyperParameters, Positive, TrainingJob, read_hyper_parameters
from training.similar_states import NEIGHBOURS
from utils.settings import BUILTIN_TINY

GRPO_CONFIG = CONFIG / "rl" / "grpo_config.yaml"
PPO_CONFIG = CONFIG / "rl" / "ppo_config.yaml"

Weight = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

COMPONENTS = ("decision", "risk", "reasoning", "calibration")
"""Parts of a reward, in the order in which they are reported."""


class RewardWeights(Frozen):
    """What each part of the reward counts; the parts lie within -1..1, so the reward lies within the weights' sum."""

    decision: Weight = 0.4
    risk: Weight = 0.3
    reasoning: Weight = 0.2
    calibration: Weight = 0.1

    @model_validator(mode="after")
    def _grounding_counts(self) -> RewardWeights:
        if self.decision == 0 or self.reasoning == 0:
            raise ValueError(
                "decision and reasoning must be above 0: without the first nothing is learned, without the second the "
                "model stops reading its state"
            )
        return self


class RLHyperParameters(HyperParameters):
    """How the policy is trained; the keys of ``config/training/rl/*.yaml``, where each is explained."""

    base_model: str = "auto"
    learning_rate: Positive = 5e-6
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "constant"
    beta: Positive = 0.05
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
    num_generations: Annotated[int, Field(ge=2)] = 8
    num_iterations: Count = 1
    max_steps: Count = 1000
    batch_size: Count = 64
    max_completion_length: Count = 96
    temperature: Positive = 1.0
    neighbours: Count = NEIGHBOURS
    reward_weights: RewardWeights = RewardWeights()

    @model_validator(mode="after")
    def _whole_groups_and_batches(self) -> RLHyperParameters:
        if self.batch_size % self.num_generations:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of num_generations {self.num_generations}: a group is "
                "compared with itself, on one device"
            )
        for name in ("save_steps", "max_steps"):
            if getattr(self, name) % self.num_iterations:
                raise ValueError(
                    f"{name} {getattr(self, name)} must be a multiple of num_iterations {self.num_iterations}: a batch "
                    "that is used several times is never left in between"
                )
        return self


class Outcome(Frozen):
    """What became of the instrument after a decision, whatever was decided. Returns and costs are fractions.

    Attributes
    ----------
    weight : float
        Probability of this outcome; a realised one has 1, the outcomes of a simulated row add up to 1.
    volatility : float, optional
        Daily, as known at the decision; None where too few bars existed.
    base_rates : tuple of three floats
        Share of the outcomes known at the decision by which a sell, a hold, a buy would have been right.
    """

    actual_return: Finite
    benchmark_return: Finite = 0.0
    volatility: NonNegative | None = None
    horizon_sessions: Count = 5
    round_trip_cost: NonNegative = 0.0
    base_rates: tuple[Probability, Probability, Probability] = (0.5, 0.5, 0.5)
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def move(self) -> float:
        """The return against the market in ordinary moves of the instrument over the horizon, clamped as rewards are."""
        return relative_move(self.actual_return, self.benchmark_return, self.volatility or None, self.horizon_sessions)


class RLExample(Frozen):
    """One line of the data set: the conversation that asks, the state's last, and what came of it."""

    messages: tuple[dict[str, str], ...] = Field(min_length=1)
    outcomes: tuple[Outcome, ...] = Field(min_length=1)
    metadata: dict[str, str | float | None] = {}

    @model_validator(mode="after")
    def _one_world(self) -> RLExample:
        if self.messages[-1].get("role") != "user":
            raise ValueError("messages must end with the user's, which states what is decided on")
        if abs(sum(outcome.weight for outcome in self.outcomes) - 1) > 1e-6:
            raise ValueError("the weights of the outcomes must add up to 1")
        return self

    @property
    def state_text(self) -> str:
        """The state that is decided on."""
        return self.messages[-1]["content"]


class RLJob(TrainingJob):
    """One reinforcement-learning run; each line of its data set is an `RLExample`.

    Attributes
    ----------
    start_adapter : Path, optional
        The adapter that training begins with, and that the KL term stays near; a fresh one by default.
    """

    agent_type: Literal["technical", "news", "fundamental", "strategist"] = "strategist"
    start_adapter: Path | None = None
    hyper_parameters: RLHyperParameters = RLHyperParameters()

    @property
    def algorithm(self) -> str:
        """What the training is, in words for the record of the run."""
        passes = self.hyper_parameters.num_iterations
        if passes == 1:
            return "GRPO: one pass over each batch, advantages against the mean of the group, KL to the start"
        return (
            f"PPO's clipped surrogate: {passes} passes over each batch by GRPOTrainer, advantages against the mean of the "
            "group in place of a critic, KL to the start"
        )

    @property
    def starts_from(self) -> Path | None:
        """The adapter that training begins with."""
        return self.start_adapter


def load_rl_hyper_parameters(base_model: str, path: Path = GRPO_CONFIG) -> RLHyperParameters:
    """Read the hyper-parameters of reinforcement learning for a base model; `base_model` of the result is never auto.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key is unknown or its value impossible.
    """
    found = read_hyper_parameters(RLHyperParameters, base_model, path)
    if found.base_model == "auto":
        return found.model_copy(update={"base_model": base_model or BUILTIN_TINY})
    return read_hyper_parameters(RLHyperParameters, found.base_model, path)
