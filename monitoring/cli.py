"""The command line of the daemon: flags, signals, progress on a terminal, the summary, and the exit code.

0 done or stopped by a signal, 1 internal error, 2 configuration, 3 an enabled part could not start. A user sees one
line, never a traceback; an internal error's traceback goes to a file that the line names.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from monitoring.production_orchestrator import ProductionOrchestrator
from monitoring.progress import ProgressLine
from monitoring.scope import refuse_what_is_not_there
from monitoring.summary import render, write_summary
from utils.errors import ComponentStartError, ConfigError, SystemFault, nearest
from utils.logs import complain, configure_logging, logger
from utils.settings import OrchestratorConfig

ENABLE = ("enable_streaming", "enable_learning_loop", "enable_monitoring")


class _Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line, with the nearest valid one."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized arguments") and unknown[0].startswith("-"):
            flags = [flag for action in self._actions for flag in action.option_strings]
            message = f"unknown flag {unknown[0]}{nearest(unknown[0].split('=')[0], flags)}; --help lists them all"
        raise ConfigError(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; a flag that is not given leaves its field to environment, YAML and default."""
    parser = _Parser(
        prog="python -m monitoring.production_orchestrator",
        description="Stream market data, let agents decide, trade on paper, judge, learn, deploy only what is better.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name in ENABLE:
        parser.add_argument(
            f"--{name}", action="store_true", help=f"{name.replace('_', ' ')} (without any --enable flag: all three)"
        )
    parser.add_argument(
        "--streaming_symbols",
        nargs="+",
        metavar="SYM",
        help="symbols; default AAPL MSFT GOOGL, or all of a --replay_dir",
    )
    parser.add_argument("--feed", help="auto, finnhub, polygon, replay or simulated")
    parser.add_argument(
        "--replay_dir",
        metavar="DIR",
        help="folder with prices/*.csv and news/*.jsonl[.gz]; default: the bundled sample",
    )
    parser.add_argument("--replay_start", metavar="DATE", help="first day to decide on, for example 2010-03-01")
    parser.add_argument("--replay_end", metavar="DATE", help="last day to decide on")
    parser.add_argument("--replay_speed", metavar="N|max", help="times real time, or max")
    parser.add_argument("--agents", help="auto, rules, local, anthropic, openai or gemini")
    parser.add_argument(
        "--judges", nargs="+", metavar="auto|LIST", help="auto, or some of anthropic, openai, gemini, local"
    )
    parser.add_argument(
        "--metrics_port", metavar="N", help="port of /metrics, /health, /ready, /status and /; 0 = any free"
    )
    parser.add_argument("--metrics_host", metavar="HOST", help="address to bind; default 127.0.0.1")
    parser.add_argument(
        "--database_url", metavar="URL", help="PostgreSQL 15+ with pgvector; default: an embedded one below --data_dir"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="embedded database, models, HALT; default ./var")
    parser.add_argument("--config", dest="config_path", metavar="PATH", help="YAML file; default config/system.yaml")
    parser.add_argument(
        "--exit_when_done", action="store_true", help="end when the feed has ended and outcomes are settled"
    )
    parser.add_argument("--summary_json", metavar="PATH", help="write the summary there")
    parser.add_argument("--decisions_jsonl", metavar="PATH", help="write one canonical line a decision there")
    parser.add_argument("--record", metavar="DIR", help="write incoming live data as a replay folder")
    parser.add_argument("--history_dir", metavar="DIR", help="warm-up bars for live feeds")
    parser.add_argument("--fresh", action="store_true", help="start a finished run anew")
    parser.add_argument(
        "--check_config", action="store_true", help="validate, print the effective configuration and exit"
    )
    parser.add_argument("--log_format", help="console or json")
    parser.add_argument("--log_level", help="DEBUG, INFO, WARNING or ERROR")
    parser.add_argument("--version", action="version", version=f"stock-agents {_version()}")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; returns the exit code."""
    try:
        options = vars(build_parser().parse_args(arguments))
        check_only = options.pop("check_config", False)
        if any(name in options for name in ENABLE):
            options.update({name: name in options for name in ENABLE})
        configure_logging()
        config = OrchestratorConfig(**options)
    except ConfigError as error:
        return complain(error, 2)
    configure_logging(config.log_level, config.log_format, _secrets(config))
    if check_only:
        try:
            refuse_what_is_not_there(config)
        except ConfigError as error:
            return complain(error, 2)
        sys.stdout.write(json.dumps(config.masked(), indent=1, sort_keys=True) + "\n")
        return 0
    return _run(config)


def _run(config: OrchestratorConfig) -> int:
    """Start, wait, stop; turn whatever happens into an exit code."""
    stop = threading.Event()
    received: list[int] = []
    _listen(stop, received)
    orchestrator = ProductionOrchestrator(config, stop)
    progress = ProgressLine(orchestrator)
    try:
        _refuse_unwritable(config.summary_json)
        orchestrator.start()
        _spare_the_collector()
        _announce(orchestrator)
        _wait(orchestrator, stop, progress, exit_when_done=config.exit_when_done)
        progress.clear()
        return _conclude(orchestrator, config, received)
    except ConfigError as error:
        return complain(error, 2)
    except ComponentStartError as error:
        if stop.is_set():
            logger.info("stopped before everything had started: %s", error)
            return 0
        return complain(error, 3)
    except SystemFault as error:
        return complain(error, 1)
    except Exception as error:
        report = _write_report(config.data_dir)
        return complain(f"internal error: {type(error).__name__}: {error}; the traceback is in {report}", 1)
    finally:
        progress.clear()
        orchestrator.stop()


def _refuse_unwritable(summary_json: Path | None) -> None:
    """Say before a long run, and not after it, that its summary has no place."""
    if summary_json is None:
        return
    folder = summary_json.absolute().parent
    if summary_json.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"summary_json: cannot write {summary_json}; give a file in a folder that exists")


def _wait(
    orchestrator: ProductionOrchestrator, stop: threading.Event, progress: ProgressLine, *, exit_when_done: bool
) -> None:
    """Return when told to stop, when a part was given up, or when a replay is done and is to end."""
    shown = False
    while not stop.wait(0.25):
        progress.show()
        if orchestrator.failed.is_set():
            return
        if orchestrator.finished.is_set() and not shown:
            progress.clear()
            shown = True
            _present(orchestrator)
            if exit_when_done:
                return
            logger.info("the replay is over; still serving until stopped (Ctrl-C)")


def _conclude(orchestrator: ProductionOrchestrator, config: OrchestratorConfig, received: list[int]) -> int:
    if orchestrator.failed.is_set():
        return complain(
            f"{orchestrator.status.removeprefix('failed: ')}; nothing that was stored is lost, a new start goes on from there",
            1,
        )
    if received and not orchestrator.finished.is_set():
        logger.info(
            "stopping on %s; the next start goes on from the last committed instant", signal.Signals(received[0]).name
        )
    return 0


def _present(orchestrator: ProductionOrchestrator) -> None:
    """Print the summary and write it where it was asked for."""
    if orchestrator.summary is None:
        return
    sys.stdout.write(render(orchestrator.summary))
    sys.stdout.flush()
    if orchestrator.config.summary_json is not None:
        try:
            write_summary(orchestrator.summary, orchestrator.config.summary_json)
        except OSError as error:
            raise ConfigError(
                f"summary_json: cannot write {orchestrator.config.summary_json}: {error.strerror}"
            ) from None


def _spare_the_collector() -> None:
    """Exempt what was loaded at the start from garbage collection, and collect less often.

    The history stays until the end, and walking through its hundred thousand objects again and again took an eighth of
    the time of a decision.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _announce(orchestrator: ProductionOrchestrator) -> None:
    if (library := orchestrator.get_component("experience_library")) is not None:
        logger.info("database: %s", library.location)
    if orchestrator.metrics_port is not None:
        logger.info("status page: http://%s:%d/", orchestrator.config.metrics_host, orchestrator.metrics_port)


def _listen(stop: threading.Event, received: list[int]) -> None:
    """The first signal asks for an orderly stop, the second ends the process at once."""

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def _write_report(data_dir: Path) -> Path:
    """Write the traceback below the data directory, or where temporary files go if that cannot be written."""
    for folder in (data_dir, Path(tempfile.gettempdir())):
        path = folder / "last_error.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(traceback.format_exc(), encoding="utf-8")
        except OSError:
            continue
        return path
    return Path("(nowhere: no folder can be written)")


def _secrets(config: OrchestratorConfig) -> tuple[str, ...]:
    found = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        if hasattr(value, "get_secret_value") and value.get_secret_value() != "postgres":
            found.append(value.get_secret_value())
    return tuple(found)


def _version() -> str:
    try:
        return metadata.version("stock-agents")
    except metadata.PackageNotFoundError:
        return "0.1.0 (not installed)"
