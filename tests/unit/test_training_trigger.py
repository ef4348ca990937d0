"""When a training starts: on tallies and past runs alone, a year of instants in no time."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from data_pipeline.library.outcomes import SessionTally
from evaluation.gate import GateEvidence, PairedDecision, evaluate_gate
from training.launcher import rl_command, sft_command
from training.pipelines.trigger import Readiness, RLPipelineConfig, SFTPipelineConfig, assess, check_hyper_parameters
from training.training_runs import TrainingRun
from utils.errors import ConfigError
from utils.settings import OrchestratorConfig

START = datetime(2014, 1, 1, 21, tzinfo=UTC)
HORIZON = timedelta(days=5)
CONFIG = SFTPipelineConfig()


def tallies(days: int, decisions: int = 10, successes: int = 5) -> list[SessionTally]:
    instants = (START + timedelta(days=day) for day in range(days))
    return [SessionTally(at, decisions, successes, at + HORIZON) for at in instants]


def run(state: str, started_at: datetime, data_cutoff: datetime | None = None) -> TrainingRun:
    return TrainingRun(
        uuid.uuid4(), "r", "technical", "sft", state, {}, None, data_cutoff, None, None, started_at, started_at
    )


def at(day: float) -> datetime:
    return START + timedelta(days=day)


def ready(days: int, past: list[TrainingRun], now: datetime, *, force: bool = False) -> Readiness:
    return assess(CONFIG, past, lambda: tallies(days), now, force=force)


def test_a_hundred_successes_before_the_held_out_period_make_it_ready() -> None:
    found = ready(90, [], at(95))
    assert found.ready
    assert found.new_calls == 20 * 5
    assert found.split is not None
    assert found.split.holdout_sessions == 60


@pytest.mark.parametrize(("horizon", "sessions"), [(1, 60), (5, 60), (6, 72), (20, 240)])
def test_a_long_horizon_holds_out_as_many_sessions_as_its_gate_needs_for_a_verdict(horizon: int, sessions: int) -> None:
    config = replace(CONFIG, horizon_sessions=horizon)

    def found(days: int) -> Readiness:
        return assess(config, [], lambda: tallies(days), at(days + horizon), force=True)

    split = found(400).split
    assert split is not None
    assert split.holdout_sessions == sessions
    short = found(sessions - 1)
    assert not short.ready
    assert f"needs {sessions} held-out sessions" in short.detail
    blank = tuple(
        PairedDecision((START + timedelta(days=day)).date(), f"S{symbol}", 0.0, 0.0, 0.0, 0.0, True, True)
        for day in range(sessions)
        for symbol in range(4)
    )
    assert evaluate_gate(GateEvidence(blank, horizon)).verdict == "reject"
    assert evaluate_gate(GateEvidence(blank[4:], horizon)).verdict == "insufficient_evidence"


def test_one_session_earlier_it_waits_and_counts() -> None:
    found = ready(89, [], at(94))
    assert not found.ready
    assert found.detail == "95 of 100 new successes before the held-out period"


def test_after_a_completed_run_only_what_it_has_not_seen_counts() -> None:
    last = run("completed", at(95), data_cutoff=at(25))
    found = ready(105, [last], at(110))
    assert not found.ready
    assert found.new_calls == 15 * 5
    assert ready(110, [last], at(115)).ready


def test_two_runs_lie_a_day_apart_whatever_the_count() -> None:
    last = run("completed", at(95), data_cutoff=at(0))
    assert "next after 24 h" in ready(200, [last], at(95) + timedelta(hours=23)).detail
    assert ready(200, [last], at(95) + timedelta(hours=24)).ready


@pytest.mark.parametrize(("failures", "hours"), [(1, 1), (2, 2), (3, 4), (5, 16), (6, 24), (9, 24)])
def test_failures_double_the_pause_up_to_a_day(failures: int, hours: int) -> None:
    past = [run("failed", at(95))] * failures
    assert f"{failures} failed in a row" in ready(200, past, at(95) + timedelta(hours=hours, seconds=-1)).detail
    assert ready(200, past, at(95) + timedelta(hours=hours)).ready


def test_a_blocked_run_pauses_like_a_failed_one_and_says_what_it_lacks() -> None:
    blocked = replace(run("blocked", at(95)), error="2 GB of memory are wanted")
    detail = ready(200, [blocked, run("failed", at(94))], at(95) + timedelta(hours=1)).detail
    assert detail == "blocked: 2 GB of memory are wanted; next try 2014-04-06T23:00:00Z"


def test_a_run_that_a_kill_cut_off_goes_on_without_waiting_for_its_trigger() -> None:
    found = ready(90, [run("running", at(95))], at(95))
    assert found.ready
    assert found.detail == "an interrupted run goes on"


def test_force_waits_for_nothing_but_a_verdict_that_can_be_given() -> None:
    last = run("completed", at(95), data_cutoff=at(25))
    assert ready(90, [last], at(96), force=True).ready
    assert "held-out sessions" in ready(60, [], at(66), force=True).detail


def test_the_experiences_are_not_counted_before_it_is_time() -> None:
    def never() -> list[SessionTally]:
        raise AssertionError("asked too early")

    assert not assess(CONFIG, [run("completed", at(95))], never, at(95.5)).ready


def test_reinforcement_learning_waits_for_500_decisions_won_or_lost_and_for_two_days() -> None:
    config = RLPipelineConfig()
    found = assess(config, [], lambda: tallies(119, successes=0), at(124))
    assert found.detail == "490 of 500 new matured decisions before the held-out period"
    found = assess(config, [], lambda: tallies(120, successes=0), at(125))
    assert (found.ready, found.new_calls) == (True, 500)
    last = run("completed", at(125), data_cutoff=at(55))
    assert "next after 48 h" in assess(config, [last], lambda: tallies(300), at(126.9)).detail
    assert assess(config, [last], lambda: tallies(300), at(127)).ready


def configured(folder: Path, setting: str, text: str | None, **changes: object) -> OrchestratorConfig:
    """Settings of which one names a file that holds the text, or that is not there."""
    path = folder / "hyper.yaml"
    if text is not None:
        path.write_text(text)
    return OrchestratorConfig(learning={setting: path}, **changes)


@pytest.mark.parametrize(
    ("setting", "text", "message"),
    [
        ("sft_config", None, r"learning\.sft_config: .*hyper\.yaml cannot be read.*No such file"),
        ("rl_config", None, r"learning\.rl_config: .*hyper\.yaml cannot be read.*No such file"),
        ("sft_config", "defaults: {epoch: 3}", "learning.sft_config: .*epoch.*did you mean 'epochs'"),
        ("rl_config", "defaults: {num_generation: 8}", "learning.rl_config: .*did you mean 'num_generations'"),
        ("sft_config", "profiles: {'builtin:tiny': {epochs: 0}}", "learning.sft_config: .*epochs.*greater than"),
        ("rl_config", "defaults: {epochs: 3}", "learning.rl_config: .*epochs"),
        ("sft_config", "hyper_parameters: {}", "learning.sft_config: .*sections defaults and profiles"),
        ("rl_config", "defaults: [unclosed", "learning.rl_config: .*cannot be read"),
    ],
)
def test_hyper_parameters_that_no_training_could_use_are_refused_in_one_line_that_names_the_setting(
    tmp_path: Path, setting: str, text: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        check_hyper_parameters(configured(tmp_path, setting, text))
    assert len(str(refused.value).splitlines()) == 1


def test_those_that_can_be_used_are_accepted_and_a_daemon_that_does_not_learn_is_not_asked(tmp_path: Path) -> None:
    check_hyper_parameters(OrchestratorConfig())
    check_hyper_parameters(configured(tmp_path, "sft_config", "defaults: {epochs: 1}"))
    check_hyper_parameters(configured(tmp_path, "rl_config", "defaults: {beta: 0.1}"))
    check_hyper_parameters(configured(tmp_path, "rl_config", "defaults: {beta: 0}", enable_learning_loop=False))


def test_an_accelerate_configuration_must_be_there_and_is_what_the_children_are_launched_by(tmp_path: Path) -> None:
    missing = tmp_path / "machines.yaml"
    with pytest.raises(ConfigError, match=r"learning\.accelerate_config: there is no file .*machines\.yaml"):
        check_hyper_parameters(OrchestratorConfig(learning={"accelerate_config": missing}))
    missing.write_text("num_processes: 2\n")
    settings = OrchestratorConfig(learning={"accelerate_config": missing})
    check_hyper_parameters(settings)
    for config in (
        SFTPipelineConfig.from_settings(settings, "news", derived_ids=True),
        RLPipelineConfig.from_settings(settings, "strategist", derived_ids=True),
    ):
        assert config.accelerate_config == missing
    for command in (sft_command(tmp_path / "job.json", missing), rl_command(tmp_path / "job.json", missing)):
        assert command[1:5] == ["-m", "accelerate.commands.launch", "--config_file", str(missing)]
