"""The command line ``python -m training.model_registry``: list, show, promote and roll back trained models.

For operators, also beside a running daemon: aliases are moved in one transaction each, and the daemon follows. Trains and
judges nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import get_args

from data_pipeline.embedded_postgres import EmbeddedPostgres
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.runs import Run
from data_pipeline.library_access import open_library
from training import chosen_run, model_card, training_runs
from training.model_card_page import render_markdown
from training.model_expiry import expired
from training.model_registry import Alias, ModelRegistry, ModelVersion
from training.version_base import ConfiguredBase
from utils.artifacts import ArtifactCorrupt, verify
from utils.clock import isoformat
from utils.errors import ConfigError, SystemFault, nearest
from utils.logs import complain
from utils.schema import AgentType
from utils.settings import OrchestratorConfig

FOLLOWS = "a daemon that runs follows at its next check of the learning loop, any other at its start"
_SHOWN_RUN = 12  # digits of a run's id


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the common options may stand before or after the command."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--config", dest="config_path", metavar="FILE", help="YAML file, by default config/system.yaml")
    common.add_argument("--data_dir", type=Path, metavar="DIR", help="the daemon's data directory, with its database")
    common.add_argument(
        "--run", metavar="ID", help="whose aliases, the first digits suffice; by default of the newest run"
    )
    parser = argparse.ArgumentParser(
        prog="python -m training.model_registry",
        description="Trained models, how they were judged, and which of them serves.",
        parents=[common],
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,show,promote,rollback}")

    def add(name: str, words: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=words, description=words, parents=[common], allow_abbrev=False)

    listing = add("list", "every version, newest first")
    listing.add_argument("--agent", choices=get_args(AgentType), help="only versions of this agent")
    add("show", "the card of a version").add_argument("version")
    promote = add("promote", "let a version serve; the former champion becomes previous")
    promote.add_argument("version")
    rollback = add("rollback", "take a champion out of service; the previous version serves again, or the rules")
    rollback.add_argument("rolled_back", metavar="AGENT", choices=get_args(AgentType))
    rollback.add_argument(
        "--challenger", action="store_true", help="end the challenger's trial instead; the champion serves on"
    )
    for moving in (promote, rollback):
        moving.add_argument("--reason", default="by hand", help="recorded with the move")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 a wrong setting or what cannot be, 3 no database."""
    options = build_parser().parse_args(arguments)
    given = {name: getattr(options, name) for name in ("config_path", "data_dir") if hasattr(options, name)}
    try:
        config = OrchestratorConfig(**given)
        if config.uses_embedded_database and not EmbeddedPostgres(config.data_dir).cluster.is_dir():
            raise ConfigError(f"data_dir: there is no database below {config.data_dir}; give the daemon's --data_dir")
        library = open_library(config)
        try:
            with library.connection() as connection, connection.cursor() as cursor:
                run = chosen_run.choose(cursor, getattr(options, "run", None))
            library.run_id = run.run_id
            sys.stdout.write(_answer(options, config, library, run))
        finally:
            library.close()
    except ConfigError as error:
        return complain(error, 2)
    except SystemFault as error:
        return complain(error, 3)
    return 0


def _answer(
    options: argparse.Namespace, config: OrchestratorConfig, library: ExperienceLibraryPostgres, run: Run
) -> str:
    """Do what was asked and return what there is to say."""
    if options.command == "list":
        return _list(library, run, options.agent)
    if options.command == "show":
        return _show(library, options.version)
    if options.command == "promote":
        return _promote(config, library, run, options.version, options.reason)
    if options.challenger:
        return _turn_down(library, run, options.rolled_back, options.reason)
    return _roll_back(config, library, run, options.rolled_back, options.reason)


def _list(library: ExperienceLibraryPostgres, run: Run, agent_type: str | None) -> str:
    registry = ModelRegistry(library)
    models = [model for model in registry.versions() if agent_type in (None, model.agent_type)]
    with library.connection() as connection, connection.cursor() as cursor:
        cutoffs = training_runs.data_cutoffs(cursor, [model.training_run_id for model in models])
    held = _aliases(registry, {model.agent_type for model in models})
    head = f"run {run.run_id[:_SHOWN_RUN]} ({run.mode}, begun {isoformat(run.started_at.replace(microsecond=0))})\n"
    if not models:
        return head + "no model has been trained yet\n"
    rows = [("version", "agent", "state", "aliases", "verdict", "trained on data until", "files")]
    for model in models:
        cutoff = cutoffs.get(model.training_run_id)
        rows.append(
            (
                model.version, model.agent_type, model.state, ", ".join(held.get(model.version, ())) or "-",
                str((model.gate or {}).get("verdict", "none")), isoformat(cutoff) if cutoff else "-",
                "there" if model_card.has_bytes(model) else "gone",
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return head + "\n".join(lines) + "\n"


def _aliases(registry: ModelRegistry, agents: set[str]) -> dict[str, list[Alias]]:
    """Return the aliases that each version holds in the run."""
    held: dict[str, list[Alias]] = {}
    for agent_type in sorted(agents):
        for alias in get_args(Alias):
            if (model := registry.holder(agent_type, alias)) is not None:
                held.setdefault(model.version, []).append(alias)
    return held


def _show(library: ExperienceLibraryPostgres, version: str) -> str:
    registry = ModelRegistry(library)
    with library.connection() as connection, connection.cursor() as cursor:
        card = model_card.read(cursor, registry, version)
    if card is None:
        raise _unknown(registry, version)
    return render_markdown(card)


def _promote(
    config: OrchestratorConfig, library: ExperienceLibraryPostgres, run: Run, version: str, reason: str
) -> str:
    registry = ModelRegistry(library)
    with library.connection() as connection, connection.cursor() as cursor:
        model = registry.get(cursor, version)
    if model is None:
        raise _unknown(registry, version)
    notes = _check_base(config, model)  # reads all of a base model, before anybody has to wait for the lock
    with library.connection() as connection, connection.cursor() as cursor:
        registry.lock(cursor, model.agent_type)
        # until the commit no retention takes the bytes away
        cursor.execute("SELECT 1 FROM model_versions WHERE version = %s FOR SHARE", (version,))
        former = registry.held(cursor, model.agent_type, "champion")
        if former == version:
            raise ConfigError(
                f"{version} is the champion of {model.agent_type} in run {run.run_id[:_SHOWN_RUN]} already"
            )
        present = chosen_run.present(cursor, run)
        cutoff = training_runs.data_cutoffs(cursor, [model.training_run_id]).get(model.training_run_id)
        notes += _check_time(config, run, model, cutoff, present)
        if (damage := _damage(model)) is not None:
            raise ConfigError(f"{version} cannot serve: {damage}; take another version, or train anew")
        registry.promote(cursor, model, present, reason)
        cursor.execute(
            "SELECT r.run_id, r.mode FROM training_runs t JOIN runs r USING (run_id) WHERE t.training_run_id = %s",
            (model.training_run_id,),
        )
        origin, mode = cursor.fetchone() or (run.run_id, run.mode)
    for name in filter(None, (version, former)):
        model_card.write(library, name)
    said = [
        f"{version} is the champion of {model.agent_type} in run {run.run_id[:_SHOWN_RUN]} now; before: {former or 'the rules'}"
    ]
    verdict = str((model.gate or {}).get("verdict", "none"))
    if verdict != "promote":
        notes.insert(0, f"the gate's verdict on it is {verdict}; show {version} has its reasons")
    said += [f"note: {note}" for note in notes]
    if mode != run.mode:
        said.append(f"note: it was trained in the {mode} run {origin.strip()[:_SHOWN_RUN]}, and this run is {run.mode}")
    kind = config.policy_of(model.agent_type)
    if kind not in ("auto", "local"):
        said.append(f"note: the configuration lets {model.agent_type} be served by {kind}, so that no version serves")
    return "\n".join([*said, FOLLOWS]) + "\n"


def _check_time(
    config: OrchestratorConfig, run: Run, model: ModelVersion, cutoff: datetime | None, present: datetime
) -> list[str]:
    """Refuse a version that has seen what its run has not, or that is too old for it; return what could not be checked."""
    if cutoff is None:
        return ["its record does not say until when its data reach, so that neither look-ahead nor age was checked"]
    said = f"{model.version} was trained on data until {isoformat(cutoff)}, and run {run.run_id[:_SHOWN_RUN]}"
    if cutoff > present:
        raise ConfigError(
            f"{said} has reached {isoformat(present)} only, so that it would know the future; take a version whose data "
            "end before (list shows it), or train one with this run's experiences"
        )
    limit = config.learning.max_model_age_days
    if expired(cutoff, limit, present):
        raise ConfigError(
            f"{said} is at {isoformat(present)}: it would be withdrawn as older than learning.max_model_age_days, "
            f"{limit:g}; raise that, or train anew"
        )
    return []


def _check_base(config: OrchestratorConfig, model: ModelVersion) -> list[str]:
    """Refuse a version of another base model than the configured one; return what could not be checked."""
    base = config.learning.base_model
    configured = ConfiguredBase(base, config.base_model_cache)
    if not configured.has_name_of(model):
        raise ConfigError(
            f"{model.version} lies on the base model {model.base_model!r}, and learning.base_model is {base!r}; "
            "configure its own, or take another version"
        )
    if config.local.server_url is not None:
        return ["the content of the base model was not compared: the server at local.server_url has it"]
    same = configured.has_content_of(model)
    if same is None:
        return [f"the content of the base model was not compared: this machine does not have {base} yet"]
    if not same:
        raise ConfigError(
            f"{model.version} lies on a base model {base!r} of other content (SHA-256 {model.base_revision[:12]}) than the "
            "configured one has now; restore that, take another version, or train anew"
        )
    return []


def _foreign_base(config: OrchestratorConfig, model: ModelVersion) -> str | None:
    """Return why a version does not fit the configured base model, None where it does or that is not known."""
    try:
        _check_base(config, model)
    except ConfigError as error:
        return str(error)
    return None


def _roll_back(
    config: OrchestratorConfig, library: ExperienceLibraryPostgres, run: Run, agent_type: str, reason: str
) -> str:
    registry = ModelRegistry(library)
    with library.connection() as connection, connection.cursor() as cursor:
        registry.lock(cursor, agent_type)
        fallen = registry.held(cursor, agent_type, "champion")
        if fallen is None:
            raise ConfigError(f"{agent_type} has no champion in run {run.run_id[:_SHOWN_RUN]}; the rules serve already")
        previous = registry.held(cursor, agent_type, "previous")
        cursor.execute("SELECT 1 FROM model_versions WHERE version = %s FOR SHARE", (previous,))
        heir = registry.get(cursor, previous) if previous else None
        damage = _damage(heir) if heir is not None else None
        if heir is not None and damage is None:
            damage = _foreign_base(config, heir)
        heir = registry.withdraw(
            cursor, agent_type, chosen_run.present(cursor, run), reason, to_previous=damage is None
        )
    for name in filter(None, (fallen, previous)):
        model_card.write(library, name)
    said = [
        f"{fallen} no longer serves {agent_type} in run {run.run_id[:_SHOWN_RUN]}; {heir.version if heir else 'the rules'} will"
    ]
    if damage is not None:
        said.append(f"note: {previous} was previous and cannot serve: {damage}")
    return "\n".join([*said, FOLLOWS]) + "\n"


def _turn_down(library: ExperienceLibraryPostgres, run: Run, agent_type: str, reason: str) -> str:
    registry = ModelRegistry(library)
    with library.connection() as connection, connection.cursor() as cursor:
        registry.lock(cursor, agent_type)
        held = registry.holders(cursor, agent_type).get(agent_type, {}).get("challenger")
        if held is None:
            raise ConfigError(f"{agent_type} has no challenger in run {run.run_id[:_SHOWN_RUN]}; none is on trial")
        registry.turn_down(cursor, held.model, chosen_run.present(cursor, run), reason)
    version = held.model.version
    model_card.write(library, version)
    return f"{version} is no longer on trial for {agent_type} in run {run.run_id[:_SHOWN_RUN]}\n{FOLLOWS}\n"


def _unknown(registry: ModelRegistry, version: str) -> ConfigError:
    hint = nearest(version, [model.version for model in registry.versions()])
    return ConfigError(f"there is no version {version!r}{hint or '; list shows what there is'}")


def _damage(model: ModelVersion) -> str | None:
    """Return why a version's bytes cannot be served, None where each is the recorded one."""
    if not model_card.has_bytes(model):
        return f"its adapter is no longer stored at {model.path}"
    try:
        verify(model.path, model.sha256)
    except (ArtifactCorrupt, OSError) as error:
        return str(error)
    return None
