"""``python -m training.compare``: the paired comparison of ways of thinking on one history.

Every arm sees the same decisions: each symbol at each session of the period, on the same snapshot. Freezes its protocol
before the first answer, writes a page and a JSON file, changes nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import orjson

from evaluation.report.comparison_page import render_page
from evaluation.report.comparison_table import render_table
from training.arms import SEATS
from training.comparison import ComparisonSettings, compare
from utils.artifacts import write_atomically
from utils.errors import ConfigError, SystemFault
from utils.settings import OrchestratorConfig


def _writable(path: Path, flag: str) -> Path:
    """Return the path if a file can be written there; found out before hours of work, not after."""
    if path.is_dir():
        raise ConfigError(f"{flag}: {str(path)!r} is a folder; name a file")
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{flag}: cannot write to the folder {str(folder)!r}; create it or name another")
    return path


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"start, end: {text!r} is no date; give YYYY-MM-DD") from None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.compare",
        description="Compare ways of thinking on the same decisions of one history.",
        epilog="The first policy is the reference. Arms: rules, local, local:base, local:<agent>@<hash>, anthropic, openai, gemini, or a plug-in.",
    )
    parser.add_argument("--policies", required=True, metavar="NAME,NAME", help="arms, separated by commas")
    parser.add_argument(
        "--replay_dir", default=os.environ.get("REPLAY_DATA_DIR"), metavar="DIR",
        help="a replay folder, or sample; by default what REPLAY_DATA_DIR names",
    )  # fmt: skip
    parser.add_argument("--symbols", nargs="*", default=None, metavar="SYM", help="all of the folder by default")
    parser.add_argument("--start", metavar="DATE")
    parser.add_argument("--end", metavar="DATE")
    parser.add_argument("--data_dir", type=Path, metavar="DIR", help="the daemon's, whose registry holds local models")
    parser.add_argument("--agents", nargs="+", default=list(SEATS), metavar="AGENT", help=f"of {', '.join(SEATS)}")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes, 1 by default")
    parser.add_argument("--ray", metavar="ADDRESS", help="local, auto or HOST:PORT of a Ray cluster")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument("--json", type=Path, default=Path("report.json"), metavar="FILE")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--config", dest="config_path", metavar="FILE", help="YAML file, by default config/system.yaml")
    return parser.parse_args(arguments)


def _settings(options: argparse.Namespace) -> ComparisonSettings:
    if not options.replay_dir:
        raise ConfigError("replay_dir: name a replay folder, or sample")
    if options.symbols is not None and not options.symbols:
        raise ConfigError("symbols: name at least one, or leave the flag out to take all of the folder")
    if options.seed < 0:
        raise ConfigError(f"seed: must be at least 0, not {options.seed}")
    return ComparisonSettings(
        policies=tuple(name.strip() for name in options.policies.split(",") if name.strip()),
        replay_dir=options.replay_dir,
        symbols=tuple(options.symbols or ()),
        start=_date(options.start) if options.start else None,
        end=_date(options.end) if options.end else None,
        agents=tuple(dict.fromkeys(options.agents)),
        workers=options.workers,
        ray_address=options.ray,
        seed=options.seed,
    )


def _config(options: argparse.Namespace) -> OrchestratorConfig:
    given = {"data_dir": options.data_dir, "config_path": options.config_path}
    config = OrchestratorConfig(**{name: value for name, value in given.items() if value is not None})
    if options.data_dir is not None:  # the flag names a library; environment and file do not name another then
        config = config.model_copy(update={"database_url": None, "db_host": None})
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 done, 2 where something asked for cannot work."""
    options = _options(arguments)

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    try:
        settings, config = _settings(options), _config(options)
        page, figures = _writable(options.output, "output"), _writable(options.json, "json")
        report = compare(settings, config, say)
        write_atomically(figures, orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
        write_atomically(page, render_page(report))
    except SystemFault as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    sys.stdout.write(render_table(report))
    sys.stdout.write(f"report  {page}\nfigures {figures}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
