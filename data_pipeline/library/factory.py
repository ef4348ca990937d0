"""Opens the database that the configuration names: the one way in for the daemon, its pipelines and the commands.

Opening makes nobody the orchestrator; that is a step of its own, and only the daemon takes it.
"""

from __future__ import annotations

from typing import Any

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from utils.settings import OrchestratorConfig


def open_library(config: OrchestratorConfig, **options: Any) -> ExperienceLibraryPostgres:
    """Open the configured database, embedded or external; `options` are those of `ExperienceLibraryPostgres`.

    Raises
    ------
    ComponentStartError
        If the server cannot be reached or started, is too old or lacks pgvector.
    """
    if config.uses_embedded_database:
        return ExperienceLibraryPostgres.embedded(config.data_dir, **options)
    if config.database_url is not None:
        return ExperienceLibraryPostgres(dsn=config.database_url.get_secret_value(), **options)
    return ExperienceLibraryPostgres(
        config.db_host or "localhost",
        config.db_port,
        config.db_name,
        config.db_user,
        config.db_password.get_secret_value(),
        **options,
    )
