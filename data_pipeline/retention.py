"""The command that shows and does retention: ``python -m data_pipeline.retention --data_dir var --dry_run``.

For operators; the daemon has its own daily removal. Says what would go and what stays for which reason before it
removes anything, may run beside the daemon, and may be interrupted and started again at any time.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from data_pipeline.embedded_postgres import EmbeddedPostgres
from data_pipeline.library import retention, runs
from data_pipeline.library.protection import IN_WORDS
from data_pipeline.library.retention import RetentionPolicy, RetentionReport
from data_pipeline.library_access import open_library
from utils.errors import ConfigError, SystemFault
from utils.logs import complain
from utils.settings import OrchestratorConfig

REASONS = {"age": "older than {max_age_days:g} days", "reward": "earned less than {min_reward:g}, and older than "
           "{min_reward_after_days:g} days", "abstention": "abstentions older than {max_age_days:g} days"}  # fmt: skip
_POLICY_FLAGS = ("max_age_days", "min_reward", "min_reward_after_days", "batch_rows")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; a flag that is not given leaves its field to environment, YAML and default."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.retention",
        description="Remove old and poor experiences that nothing needs any more. Datasets, models in use, open decisions and "
        "whatever a start goes on from always stay, and so does the portfolio log.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--data_dir", metavar="DIR", help="of the daemon whose embedded database is meant; default ./var"
    )
    place.add_argument("--database_url", metavar="URL", help="an external PostgreSQL")
    parser.add_argument("--config", dest="config_path", metavar="FILE", help="YAML file, by default config/system.yaml")
    parser.add_argument("--run", dest="run_ids", action="append", metavar="ID", help="only this run; may be repeated")
    parser.add_argument("--max_age_days", type=float, metavar="N", help="remove what was decided longer ago")
    parser.add_argument("--min_reward", type=float, metavar="X", help="remove what earned less, once it is old enough")
    parser.add_argument(
        "--min_reward_after_days", type=float, metavar="N", help="old enough for --min_reward; default 180"
    )
    parser.add_argument("--batch_rows", type=int, metavar="N", help="rows of one transaction; default 1000")
    parser.add_argument("--dry_run", action="store_true", help="only say what would go and what would stay")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 a wrong setting, 3 no database, 130 interrupted."""
    given = vars(build_parser().parse_args(arguments))
    dry_run, run_ids = given.pop("dry_run", False), given.pop("run_ids", None)
    changes = {name: given.pop(name) for name in _POLICY_FLAGS if name in given}
    try:
        config = OrchestratorConfig(**given)
        policy = _policy(config, changes)
        _refuse_an_empty_place(config)
        return _work(config, policy, run_ids, dry_run=dry_run)
    except ConfigError as error:
        return complain(error, 2)
    except SystemFault as error:
        return complain(error, 3)


def _policy(config: OrchestratorConfig, changes: dict[str, Any]) -> RetentionPolicy:
    """Return the configured policy with what the flags change."""
    settings = {name: getattr(config.retention, name) for name in _POLICY_FLAGS}
    try:
        policy = RetentionPolicy(**{**settings, **changes})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if policy.max_age_days is None and policy.min_reward is None:
        raise ConfigError("there is nothing to remove by; give --max_age_days or --min_reward")
    return policy


def _refuse_an_empty_place(config: OrchestratorConfig) -> None:
    """Say that there is no database where an embedded one would otherwise be created."""
    if config.uses_embedded_database and not EmbeddedPostgres(config.data_dir).cluster.is_dir():
        raise ConfigError(
            f"data_dir: there is no database below {config.data_dir}; give the daemon's --data_dir or --database_url"
        )


def _work(config: OrchestratorConfig, policy: RetentionPolicy, run_ids: list[str] | None, *, dry_run: bool) -> int:
    library = open_library(config)
    try:
        with library.connection() as connection, connection.cursor() as cursor:
            unknown = [name for name in run_ids or () if runs.get(cursor, name) is None]
        if unknown:
            raise ConfigError(f"run: the database at {library.location} has no run {unknown[0]!r}")
        planned = retention.plan(library.connection, policy, run_ids, None)
        sys.stdout.write(_describe(planned, policy, library.location))
        if dry_run or not planned.removed:
            sys.stdout.write("nothing was removed (--dry_run)\n" if dry_run else "there is nothing to remove\n")
            return 0
        total = planned.removed.total()
        done = retention.apply(
            library.connection, policy, run_ids, None,
            progress=lambda report: _show_progress(report.removed.total(), total),
        )  # fmt: skip
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: whole batches are removed, the rest is untouched; the same command goes on\n")
        return 130
    finally:
        library.close()
    went = ", ".join(f"{number:,} {table.replace('_', ' ')}" for table, number in done.children.items() if number)
    sys.stdout.write(
        f"removed {done.removed.total():,} experiences" + (f", and with them {went}" if went else "") + "\n"
    )
    return 0


def _describe(planned: RetentionReport, policy: RetentionPolicy, place: str) -> str:
    """Return what the plan means, for people."""
    limits = {name: getattr(policy, name) for name in _POLICY_FLAGS if getattr(policy, name) is not None}
    lines = [
        f"database    {place}",
        f"experiences {planned.rows:,}",
        f"to remove   {planned.removed.total():,}",
        *(f"  {number:>10,}  {REASONS[reason].format(**limits)}" for reason, number in planned.removed.most_common()),
        f"to keep     {planned.kept.total():,} that are as old or poor, because",
        *(f"  {number:>10,}  {IN_WORDS[protection]}" for protection, number in planned.kept.most_common()),
    ]
    return "\n".join(lines) + "\n"


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:,} of {total:,} removed" + ("\n" if done >= total else ""))
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
