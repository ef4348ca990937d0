"""The command lines ``python -m training.sft`` and ``python -m training.rl``: one training on a daemon's experiences, now.

Shows the child's progress on the terminal and the gate's verdict at the end. Decides nothing that the pipeline does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library_access import open_library
from training import chosen_run
from training.pipelines.automated_rl_pipeline import AutomatedRLPipeline
from training.pipelines.automated_sft_pipeline import AutomatedSFTPipeline
from training.pipelines.training_pipeline import TrainingPipeline
from training.pipelines.trigger import RLPipelineConfig, SFTPipelineConfig
from utils.clock import Clock
from utils.errors import ConfigError, SystemFault
from utils.settings import OrchestratorConfig

DRAWN_EVERY_S = 1.0
_AGENTS = {"sft": ("technical", ("news", "technical", "fundamental")), "rl": ("strategist", ("news", "technical", "fundamental", "strategist"))}  # fmt: skip
_DOES = {"sft": "Fine-tune an agent's local model", "rl": "Train an agent's local model by reinforcement"}


def main(kind: str, arguments: Sequence[str] | None = None) -> int:
    """Train once and print the verdict.

    Returns
    -------
    int
        0 after a verdict, 1 if the training failed, 2 if the command cannot be carried out, 3 if it is not time to train,
        or error budget, disk or memory do not allow it, 130 after an interruption.
    """
    options = _options(kind, arguments)
    try:
        settings = _settings(options)
        library = open_library(settings)
    except SystemFault as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    try:
        clock = chosen_run.enter(library, options.run)
        pipeline = _pipeline(kind, settings, library, clock, options)
        pipeline.on_progress = _Terminal().show

        def stop(number: int, frame: FrameType | None) -> None:
            pipeline.stop_event.set()

        former = signal.signal(signal.SIGINT, stop)
        try:
            result = pipeline.run_pipeline(options.market_regime, options.force)
        finally:
            signal.signal(signal.SIGINT, former)
    except SystemFault as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        library.close()
    return _report(result, stopped=pipeline.stop_event.is_set())


def _options(kind: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    default, agents = _AGENTS[kind]
    parser = argparse.ArgumentParser(
        prog=f"python -m training.{kind}", description=f"{_DOES[kind]} once, and let the gate judge it."
    )
    parser.add_argument("--data_dir", type=Path, metavar="DIR", help="the daemon's data directory, with its database")
    parser.add_argument("--agent", choices=agents, default=default)
    parser.add_argument("--force", action="store_true", help="neither wait for the interval nor for new experiences")
    parser.add_argument("--config", dest="config_path", metavar="FILE", help="YAML file, by default config/system.yaml")
    parser.add_argument("--hyper_parameters", type=Path, metavar="FILE", help=f"YAML file, by default {_default(kind)}")
    parser.add_argument("--market_regime", metavar="LABEL", help="train on decisions of this regime only")
    parser.add_argument(
        "--run", metavar="ID", help="whose experiences, the first digits suffice; by default the newest run"
    )
    return parser.parse_args(arguments)


def _default(kind: str) -> str:
    return "config/training/sft_config.yaml" if kind == "sft" else "config/training/rl/grpo_config.yaml"


def _settings(options: argparse.Namespace) -> OrchestratorConfig:
    given: dict[str, Any] = {"config_path": options.config_path} if options.config_path else {}
    if options.data_dir is not None:
        given["data_dir"] = options.data_dir
    settings = OrchestratorConfig(**given)
    if settings.uses_embedded_database and not settings.data_dir.is_dir():
        raise ConfigError(f"data_dir: there is no folder {str(settings.data_dir)!r}; give the one of the daemon")
    return settings


def _pipeline(
    kind: str,
    settings: OrchestratorConfig,
    library: ExperienceLibraryPostgres,
    clock: Clock,
    options: argparse.Namespace,
) -> TrainingPipeline[Any]:
    chosen = {"hyper_parameters": options.hyper_parameters} if options.hyper_parameters else {}
    if kind == "sft":
        tuning = SFTPipelineConfig.from_settings(settings, options.agent)
        return AutomatedSFTPipeline(dataclasses.replace(tuning, **chosen), library, clock=clock)
    reinforcing = RLPipelineConfig.from_settings(settings, options.agent)
    return AutomatedRLPipeline(dataclasses.replace(reinforcing, **chosen), library, clock=clock)


class _Terminal:
    """Writes progress: one line that is redrawn on a terminal, a line for each whole tenth elsewhere."""

    def __init__(self) -> None:
        self._redraws = sys.stderr.isatty()
        self._drawn_at = 0.0
        self._tenth: tuple[str, int] | None = None

    def show(self, event: Mapping[str, Any]) -> None:
        """Write one event."""
        step, steps = event["step"], event["steps"]
        done = step == steps
        tenth = (event["stage"], 10 * step // max(1, steps))
        now = time.monotonic()
        if self._redraws:
            if not done and now - self._drawn_at < DRAWN_EVERY_S:
                return
        elif tenth == self._tenth:
            return
        self._drawn_at, self._tenth = now, tenth
        named = ("loss", "reward", "kl", "entropy", "valid_share", "grounded_share")
        figures = {**{name: event.get(name) for name in named}, **event.get("components", {})}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
        line = f"{event['stage']:9} {step:5}/{steps}  {shown}"
        sys.stderr.write(f"\r\x1b[K{line}{chr(10) * done}" if self._redraws else f"{line}\n")
        sys.stderr.flush()


def _report(result: Mapping[str, Any], *, stopped: bool) -> int:
    if "verdict" in result:
        sys.stdout.write(f"{result['verdict']} (run {result['run_id']}, {result['duration']:.0f} s)\n")
        sys.stdout.write("".join(f"  {reason}\n" for reason in result["reasons"]))
        return 0
    if "error" in result:
        sys.stderr.write(f"error: {result['error']}\n")
        return 1
    sys.stdout.write(f"nothing was trained: {result['skipped']}\n" if not stopped else "stopped\n")
    return 130 if stopped else 3
