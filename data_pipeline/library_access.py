"""Opens the experience library that the configuration names, an embedded database or an external one.

The orchestrator and the command lines that read or repair a library come through here; `add_options` and
`config_of` are the latter's two flags. Decides nothing about what is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_pipeline.embeddings import Embedder
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from utils.errors import ConfigError
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry


def open_library(
    config: OrchestratorConfig, telemetry: Telemetry = NO_TELEMETRY, embedder: Embedder | None = None
) -> ExperienceLibraryPostgres:
    """Open the configured database.

    Raises
    ------
    ConfigError
        If the data directory cannot be created.
    ComponentStartError
        If the database cannot be reached or started.
    """
    try:
        config.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data_dir: cannot create the folder {config.data_dir}: {error.strerror}") from None
    if config.uses_embedded_database:
        return ExperienceLibraryPostgres.embedded(config.data_dir, telemetry=telemetry, embedder=embedder)
    if config.database_url is not None:
        dsn = config.database_url.get_secret_value()
        return ExperienceLibraryPostgres(dsn=dsn, telemetry=telemetry, embedder=embedder)
    return ExperienceLibraryPostgres(
        config.db_host or "localhost",
        config.db_port,
        config.db_name,
        config.db_user,
        config.db_password.get_secret_value(),
        telemetry=telemetry,
        embedder=embedder,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a library; without any, environment and configuration file name it."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data_dir", metavar="DIR", type=Path, help="the daemon's data directory, with its database")
    where.add_argument("--database_url", metavar="URL", help="an external database")


def config_of(options: argparse.Namespace) -> OrchestratorConfig:
    """Return the configuration that the flags of `add_options` lead to; a flag wins over environment and file.

    Raises
    ------
    ConfigError
        If the data directory is not there: these commands create none.
    """
    if options.database_url is not None:
        return OrchestratorConfig(database_url=options.database_url)
    if options.data_dir is None:
        config = OrchestratorConfig()
    else:
        config = OrchestratorConfig(data_dir=options.data_dir).model_copy(
            update={"database_url": None, "db_host": None}
        )
    if config.uses_embedded_database and not config.data_dir.is_dir():
        raise ConfigError(f"data_dir: there is no folder {str(config.data_dir)!r}; give the one of the daemon")
    return config
