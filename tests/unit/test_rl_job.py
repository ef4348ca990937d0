"""The job of reinforcement learning: its configuration files, its examples, the order in which they are met."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agents.policies.local.decisions import recorded_state
from data_pipeline.library.trajectories import Trajectory
from training.launcher import rl_command
from training.rl.dataset import base_rates, counterfactual_examples
from training.rl.job import GRPO_CONFIG, PPO_CONFIG, RLHyperParameters, RLJob, load_rl_hyper_parameters
from training.rl.train_policy import figures, training_order
from utils.errors import ConfigError

ROOT = Path(__file__).parents[2]
START = datetime(2014, 1, 6, 21, tzinfo=UTC)


def test_the_defaults_and_the_profile_of_the_small_model_are_those_of_the_specification() -> None:
    model = load_rl_hyper_parameters("/models/qwen")
    assert (model.learning_rate, model.num_generations, model.beta, model.epsilon) == (5e-6, 8, 0.05, 0.2)
    assert (model.num_iterations, model.max_steps) == (1, 1000)
    weights = model.reward_weights
    assert (weights.decision, weights.risk, weights.reasoning, weights.calibration) == (0.4, 0.3, 0.2, 0.1)
    tiny = load_rl_hyper_parameters("builtin:tiny")
    assert (tiny.learning_rate, tiny.beta, tiny.max_steps, tiny.batch_size, tiny.use_cpu) == (2e-3, 0.02, 30, 128, True)
    assert (tiny.base_model, model.base_model) == ("builtin:tiny", "/models/qwen")


def test_ppo_is_the_same_with_four_passes_over_a_batch_and_says_so() -> None:
    ppo = load_rl_hyper_parameters("/models/qwen", PPO_CONFIG)
    assert (ppo.learning_rate, ppo.num_iterations) == (1e-5, 4)
    grpo = load_rl_hyper_parameters("/models/qwen", GRPO_CONFIG)
    same = {"learning_rate", "num_iterations", "save_steps"}
    assert ppo.model_dump(exclude=same) == grpo.model_dump(exclude=same)
    assert load_rl_hyper_parameters("builtin:tiny", PPO_CONFIG).num_iterations == 4

    def algorithm(hyper: RLHyperParameters) -> str:
        return RLJob(
            job_id="j", cache_dir=Path("c"), dataset=Path("d"), output_dir=Path("o"), hyper_parameters=hyper
        ).algorithm

    assert "4 passes" in algorithm(ppo)
    assert "in place of a critic" in algorithm(ppo)
    assert algorithm(grpo).startswith("GRPO")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 0", "beta.*greater than 0"),
        ("num_generation: 8", "did you mean 'num_generations'"),
        ("{batch_size: 60, num_generations: 8}", "multiple of num_generations 8"),
        ("{num_iterations: 4, save_steps: 50}", "save_steps 50 must be a multiple of num_iterations 4"),
        ("reward_weights: {reasoning: 0}", "stops reading its state"),
        ("reward_weights: {luck: 0.5}", "luck"),
        ("epsilon: 1.5", "epsilon"),
    ],
)
def test_a_wrong_configuration_is_refused_and_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "grpo.yaml"
    path.write_text(f"defaults: {text}\n" if text.startswith("{") else f"defaults: {{{text}}}\n")
    with pytest.raises(ConfigError, match=message):
        load_rl_hyper_parameters("builtin:tiny", path)


def test_a_named_base_model_goes_before_that_of_the_learning_loop_and_brings_its_profile(tmp_path: Path) -> None:
    path = tmp_path / "grpo.yaml"
    path.write_text("defaults: {base_model: org/name@v1}\nprofiles: {org/name: {max_steps: 7}}\n")
    found = load_rl_hyper_parameters("builtin:tiny", path)
    assert (found.base_model, found.max_steps) == ("org/name@v1", 7)


def test_the_job_needs_no_model_library() -> None:
    code = (
        "import sys, training.pipelines.online_learning_loop, training.pipelines.by_hand; "
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'datasets') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_command_runs_the_policy_child_alone_or_through_accelerate(tmp_path: Path) -> None:
    assert rl_command(tmp_path / "job.json")[1:] == ["-m", "training.rl.train_policy", str(tmp_path / "job.json")]
    command = rl_command(tmp_path / "job.json", tmp_path / "accelerate.yaml")
    assert command[command.index("--config_file") + 1] == str(tmp_path / "accelerate.yaml")


def test_the_order_of_the_prompts_is_laid_out_before_the_first_step_pass_after_pass() -> None:
    order = training_order(5, 12, 42)
    assert order == training_order(5, 12, 42)
    assert order != training_order(5, 12, 43)
    assert Counter(order[:5]) == Counter(order[5:10]) == Counter(range(5))
    assert len(order) == 12


def test_a_step_that_uses_a_batch_again_reports_no_reward() -> None:
    first = figures(
        {"loss": 0.1, "reward": 0.2, "kl": 0.01, "decision": 0.3, "risk": -0.1, "frac_reward_zero_std": 0.5}
    )
    assert first == {"reward": 0.2, "kl": 0.01, "no_signal_share": 0.5, "components": {"decision": 0.3, "risk": -0.1}}
    assert figures({"loss": 0.1, "kl": 0.01}) == {"kl": 0.01}


def matured(
    day: int, moved: float | None = 0.05, state: dict[str, object] | None = None, **changes: object
) -> Trajectory:
    as_of = START + timedelta(days=day)
    fields: dict[str, object] = {
        "trajectory_id": str(uuid.UUID(int=day)),
        "timestamp": as_of.timestamp(),
        "as_of": as_of,
        "symbol": "AAPL",
        "agent_type": "strategist",
        "recommendation": "hold",
        "market_regime": "bull",
        "market_state": {"inputs": {"daily_volatility": 0.015}},
        "agent_inputs": {"state": recorded_state("vote:0.5 tech:buy") if state is None else state},
        "reasoning": "",
        "confidence": 0.5,
        "actual_return": moved,
        "benchmark_return": 0.01,
        "reward": 0.0,
        "success": False,
        "matured_at": as_of + timedelta(days=5),
        **changes,
    }
    return Trajectory(**fields)  # type: ignore[arg-type]


def test_an_example_holds_the_state_and_what_came_of_the_instrument_whatever_was_decided() -> None:
    rows = [
        matured(0),
        matured(1, state={"language": 0, "text": "old words"}),
        matured(2, moved=None),
        matured(3, market_regime="bear"),
    ]
    (first, second) = counterfactual_examples(rows, horizon_sessions=5, round_trip_cost=0.0016)
    assert first.state_text == "vote:0.5 tech:buy"
    (outcome,) = first.outcomes
    assert (outcome.actual_return, outcome.benchmark_return, outcome.volatility) == (0.05, 0.01, 0.015)
    assert (outcome.horizon_sessions, outcome.round_trip_cost, outcome.weight) == (5, 0.0016, 1)
    assert first.metadata["trajectory_id"] == rows[0].trajectory_id
    assert "hold" not in first.model_dump_json()
    chosen = counterfactual_examples(rows, "bear", horizon_sessions=5, round_trip_cost=0.0016)
    assert [row.metadata["trajectory_id"] for row in chosen] == [second.metadata["trajectory_id"]]


def test_base_rates_know_only_outcomes_that_had_matured_before_the_decision() -> None:
    rows = [matured(day, moved) for day, moved in enumerate([0.05, 0.05, -0.05, 0.001, 0.05, 0.05, 0.05, 0.05])]
    rates = list(base_rates(rows, 0.0016))
    # the outcome of day 0 matures on day 5 and is known from day 6 on
    assert rates[:6] == [(0.5, 0.5, 0.5)] * 6
    assert rates[6] == (0.0, 0.0, 1.0)
    assert rates[7] == (0.0, 0.0, 1.0)
    later = list(base_rates([*rows, matured(10)], 0.0016))[-1]
    assert later == (0.2, 0.2, 0.6)
