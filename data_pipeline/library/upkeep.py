"""The part of the experience library that is not reading and writing experiences: its index, its size, its files.

A base of `ExperienceLibraryPostgres`, kept apart because people and commands use it, not decisions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from data_pipeline.embeddings import Embedder
from data_pipeline.library import backfill, retention, transfer
from data_pipeline.library.backfill import OnProgress
from data_pipeline.library.pool import Connection
from data_pipeline.library.retention import RetentionPolicy, RetentionReport
from data_pipeline.library.search_plan import SearchPlanner
from data_pipeline.library.spooled_database import SpooledDatabase
from data_pipeline.library.transfer import ImportCounts, Selection
from utils.clock import ensure_utc


class LibraryUpkeep(ABC):
    """Index, retention, back-fill, export and import."""

    database: SpooledDatabase
    embedder: Embedder
    run_id: str
    _planner: SearchPlanner

    @abstractmethod
    def connection(self) -> AbstractContextManager[Connection]:
        """Lend a connection that sees whatever was acknowledged; commits at the end."""

    @property
    @abstractmethod
    def _visible_runs(self) -> list[str]: ...

    def maintain(self) -> bool:
        """Create the vector index once it pays (10,000 experiences); return whether that was now.

        Takes half a minute to a minute for 100,000 experiences; writers and readers go on meanwhile.
        """
        with self.database.autocommit_connection() as connection:
            return self._planner.maintain(connection)

    def embed_stored(self, states: Mapping[str, Mapping[str, Any]], batch: int = 64) -> None:
        """Embed the states of stored trajectories, by identity, in the order of a back-fill; done ones stay as they are.

        Raises
        ------
        LibraryUnavailable
            If the database does not answer; batches before that are stored.
        """
        named = sorted(states)
        for start in range(0, len(named), batch):
            identities = named[start : start + batch]
            with self.connection() as connection:
                backfill.embed(connection, self.embedder, {identity: states[identity] for identity in identities})

    def backfill_embeddings(
        self,
        batch: int = 64,
        on_progress: OnProgress | None = None,
        *,
        all_runs: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Embed every trajectory that has no embedding of this library's model, oldest first; return how many.

        Parameters
        ----------
        batch : int
            States embedded and stored together, each batch in a transaction of its own: a kill loses at most one.
        on_progress : callable, optional
            Told a `BackfillProgress` at the start and after each batch.
        all_runs : bool
            Of every run of the database, not only of those whose experiences are read.
        stop : callable
            Asked before each batch.

        Raises
        ------
        LibraryUnavailable
            If the database does not answer; what was stored is not done again.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        runs = None if all_runs else self._visible_runs
        with self.connection() as connection:
            return backfill.run(connection, self.embedder, runs, batch, on_progress, stop)

    def export_trajectories(
        self,
        path: str | Path,
        *,
        agent_type: str | None = None,
        symbol: str | None = None,
        market_regime: str | None = None,
        recommendation: str | None = None,
        success: bool | None = None,
        min_reward: float | None = None,
        as_of: datetime | None = None,
    ) -> int:
        """Write trajectories of the visible runs with their embeddings to a file, in order of time; return how many.

        Parameters
        ----------
        path : str or Path
            ``.jsonl``: one `Trajectory.to_dict` a line in canonical JSON, and beside an embedding the name of its model
            (`embedding_model`), or ``.parquet`` with the same as columns. Written aside and renamed.
        as_of : datetime, optional
            Only those whose outcome had matured before; without it also pending ones and abstentions.

        Raises
        ------
        ValueError
            If the path cannot be written or ends otherwise; if `as_of` is naive.
        LibraryUnavailable
            If the database does not answer; a former file of the name stays.
        """
        until = None if as_of is None else ensure_utc(as_of)
        selection = Selection(agent_type, symbol, market_regime, recommendation, success, min_reward, until)
        visible = self._visible_runs
        with self.connection() as connection:
            return transfer.export(connection, Path(path), visible, self.embedder.model, selection)

    def import_trajectories(self, path: str | Path, *, run_id: str | None = None) -> ImportCounts:
        """Store the trajectories of an exported file, 500 in a transaction; what is stored already changes nothing.

        An outcome is added to a stored trajectory that has none. An embedding stays with the model that the file names
        (without a name: this library's); one of this library's model is made where it is missing, at once if the
        embedder is quick enough, else by `backfill_embeddings`.

        Parameters
        ----------
        run_id : str, optional
            The run that all of them are to belong to, in place of the file's.

        Raises
        ------
        ValueError
            For a malformed line or an unknown run, with file and line. The transaction it belongs to stores nothing;
            earlier ones stay, and importing again passes over them.
        LibraryConflict
            If other content or another outcome is stored under an id, with file and line.
        LibraryUnavailable
            If the database does not answer; earlier transactions stay.
        """
        return transfer.import_file(self.connection, Path(path), self.embedder, run_id)

    def apply_retention(
        self,
        policy: RetentionPolicy,
        *,
        as_of: datetime | None = None,
        dry_run: bool = False,
        progress: Callable[[RetentionReport], None] = lambda report: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> RetentionReport:
        """Remove experiences of this library's own run by age and reward, but none that something still needs.

        `data_pipeline.library.retention` says what `as_of`, `progress` and `stopped` do, and `protection` what stays.

        Raises
        ------
        ValueError
            If `as_of` is naive.
        LibraryUnavailable
            If the database does not answer; applied again, it goes on where it was.
        """
        at = None if as_of is None else ensure_utc(as_of)
        if dry_run:
            return retention.plan(self.connection, policy, [self.run_id], at)
        return retention.apply(self.connection, policy, [self.run_id], at, progress=progress, stopped=stopped)
