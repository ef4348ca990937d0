"""The age of what serves: a champion that was trained on nothing recent is retrained first, and in the end withdrawn.

Asked once a window by the learning loop, and by the pipelines' trigger. Ages are of the Clock and counted from the end of the
training data. Deploys nothing: the loop does for the agents that `ModelExpiry.check` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training import training_runs
from training.model_registry import ModelRegistry, ModelVersion
from utils.logs import logger

STALE_SHARE = 0.8
"""Of the greatest age: from here on there is a warning a week, and no minimum of new experiences holds for the next training."""

WARN_EVERY = timedelta(days=7)


def expired(data_cutoff: datetime, max_age_days: float | None, at: datetime) -> bool:
    """Return whether training data that end at `data_cutoff` are too old to serve at an instant; None is no limit."""
    return max_age_days is not None and at - data_cutoff > timedelta(days=max_age_days)


class StaleModels:
    """How old the champions of the library's run are."""

    def __init__(self, library: ExperienceLibraryPostgres) -> None:
        self._library = library
        self._registry = ModelRegistry(library)

    def champion(self, agent_type: str) -> tuple[ModelVersion, datetime] | None:
        """Return the champion and until when its data reach; None without one, or where nothing tells."""
        model = self._registry.holder(agent_type, "champion")
        if model is None:
            return None
        with self._library.connection() as connection, connection.cursor() as cursor:
            cutoff = training_runs.data_cutoffs(cursor, [model.training_run_id]).get(model.training_run_id)
        return None if cutoff is None else (model, cutoff)

    def is_stale(self, agent_type: str, max_age_days: float | None, at: datetime) -> bool:
        """Return whether the champion has reached `STALE_SHARE` of its greatest age; None is no limit."""
        if max_age_days is None:
            return False
        found = self.champion(agent_type)
        return found is not None and at - found[1] >= STALE_SHARE * timedelta(days=max_age_days)


class _Configured(Protocol):
    @property
    def agent_type(self) -> str: ...


class _Pipeline(Protocol):
    @property
    def config(self) -> _Configured: ...


P = TypeVar("P", bound=_Pipeline)


class ModelExpiry:
    """Withdraws champions that are too old.

    Parameters
    ----------
    library : ExperienceLibraryPostgres
    max_age_days : mapping of agent type to float or None
        Greatest age of the training data of what serves; None is no limit.
    """

    def __init__(self, library: ExperienceLibraryPostgres, max_age_days: Mapping[str, float | None]) -> None:
        self._library = library
        self._registry = ModelRegistry(library)
        self._stale = StaleModels(library)
        self._max_age_days = max_age_days
        self._warned: dict[str, datetime] = {}

    def check(self, at: datetime) -> list[str]:
        """Withdraw to the rules what is too old as of an instant; return the agents whose serving changed."""
        return [agent_type for agent_type in self._max_age_days if self._look_at(agent_type, at)]

    def stale_first(self, pipelines: Sequence[P], at: datetime) -> list[P]:
        """Return the pipelines with those of stale champions before the others, else in their order."""

        def fresh(pipeline: P) -> bool:
            agent_type = pipeline.config.agent_type
            return not self._stale.is_stale(agent_type, self._max_age_days.get(agent_type), at)

        return sorted(pipelines, key=fresh)

    def _look_at(self, agent_type: str, at: datetime) -> bool:
        limit = self._max_age_days[agent_type]
        found = self._stale.champion(agent_type) if limit is not None else None
        if limit is None or found is None:
            return False
        model, cutoff = found
        age = at - cutoff
        what = f"{model.version} was trained on nothing after {cutoff.date()}, {age / timedelta(days=1):.0f} days ago"
        if expired(cutoff, limit, at):
            reason = f"expired: {what}; learning.max_model_age_days is {limit:g}"
            with self._library.connection() as connection, connection.cursor() as cursor:
                self._registry.lock(cursor, agent_type)
                if self._registry.held(cursor, agent_type, "champion") != model.version:  # moved by hand meanwhile
                    return False
                self._registry.withdraw(cursor, agent_type, at, reason, to_previous=False)
            logger.warning("%s; the rules serve %s from now on", reason, agent_type)
            return True
        warned = self._warned.get(agent_type)
        if age >= STALE_SHARE * timedelta(days=limit) and (warned is None or at - warned >= WARN_EVERY):
            self._warned[agent_type] = at
            left = (timedelta(days=limit) - age) / timedelta(days=1)
            logger.warning("%s; unless retrained it serves %.0f more days (learning.max_model_age_days)", what, left)
        return False
