"""The experience library: what every agent thought, what came of it, and what was alike.

The documented entry point for the daemon and for notebooks. Readers see only experiences whose outcome had matured
before the time they ask for, and only those of their own run (and of runs they name).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from data_pipeline.embedded_postgres import EmbeddedPostgres
from data_pipeline.embeddings import Embedder, FeatureHashingEmbedder
from data_pipeline.library import backfill, cycle, outcomes, similarity, trajectories, transfer
from data_pipeline.library.backfill import OnProgress
from data_pipeline.library.cycle import CycleBatch
from data_pipeline.library.outcomes import OutcomeUpdate, SessionTally
from data_pipeline.library.pool import Connection, Database
from data_pipeline.library.trajectories import Trajectory, check_embedding
from data_pipeline.library.transfer import ImportCounts, Selection
from utils.clock import ensure_utc
from utils.ids import ADHOC_RUN, generate_trajectory_id
from utils.telemetry import NO_TELEMETRY, Telemetry

__all__ = ["ExperienceLibraryPostgres", "Trajectory", "generate_trajectory_id"]


class ExperienceLibraryPostgres:
    """A library in a PostgreSQL database with pgvector; creates or migrates the schema.

    Parameters
    ----------
    host, port, database, user, password
        Of the server; ignored where `dsn` is given.
    dsn : str, optional
        A connection string or URL.
    pool_size : int
        Most connections at a time.
    run_id : str
        The run that what is written without one belongs to, and whose experiences are read.
    experience_sources : sequence of str
        Further runs whose experiences are read.
    embedder : Embedder, optional
        Feature hashing by default.

    Raises
    ------
    ComponentStartError
        If the server cannot be reached, is too old or lacks pgvector.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 5432,
        database: str = "trading_experience",
        user: str = "postgres",
        password: str = "postgres",  # noqa: S107 - the documented default
        *,
        dsn: str | None = None,
        pool_size: int = 8,
        run_id: str = ADHOC_RUN,
        experience_sources: Sequence[str] = (),
        embedder: Embedder | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        names = [quote(part, safe="") for part in (user, password, host, database)]
        self.database = Database(dsn or "postgresql://{0}:{1}@{2}:{4}/{3}".format(*names, port), pool_size)
        self.run_id = run_id
        self.embedder: Embedder = embedder or FeatureHashingEmbedder()
        self._sources = tuple(experience_sources)
        self._telemetry = telemetry
        self._server: EmbeddedPostgres | None = None

    @classmethod
    def embedded(cls, data_dir: str | Path, **options: Any) -> ExperienceLibraryPostgres:
        """Attach to the embedded server below `data_dir`, or start and own it until `close`."""
        server = EmbeddedPostgres(Path(data_dir))
        url = server.start()
        try:
            library = cls(dsn=url, **options)
        except BaseException:
            server.stop()
            raise
        library._server = server
        return library

    @property
    def location(self) -> str:
        """Where the database is, for people; holds no secret."""
        return f"embedded in {self._server.home}" if self._server else self.database.place

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection to another module that holds SQL; commits at the end."""
        with self.database.connection() as connection:
            yield connection

    def embed(self, state: Mapping[str, Any] | str) -> list[float]:
        """Return the embedding of a state or text, as `find_similar_trajectories` wants it."""
        return [float(value) for value in self.embedder.embed(state)]

    def store_trajectory(self, trajectory: Trajectory) -> bool:
        """Store a trajectory; True once it is durable. Storing the same content again changes nothing.

        A trajectory without an embedding gets one of its market state, at once if the embedder is quick enough for
        that, else by `backfill_embeddings`.

        Raises
        ------
        ValueError
            For a field that cannot be stored, named.
        LibraryConflict
            If other content is stored under the id.
        LibraryUnavailable
            If the database does not answer.
        """
        trajectories.validate(trajectory)
        row = trajectories.as_row(trajectory)
        try:
            with self.database.connection() as connection, connection.cursor() as cursor:
                if trajectories.insert_row(cursor, row) and not trajectory.abstained:
                    embedding = trajectory.embedding
                    if embedding is None and self.embedder.inline:
                        embedding = self.embed(trajectory.market_state)
                    if embedding is not None and any(
                        embedding
                    ):  # a zero vector has no direction: its similarity to anything is undefined
                        embedded = replace(trajectory, embedding=embedding)
                        similarity.insert_row(cursor, similarity.embedding_row(embedded, self.embedder.model))
        except psycopg.errors.ForeignKeyViolation:
            raise ValueError(f"run_id {trajectory.run_id!r} names no run of this database; open it first") from None
        self._telemetry.count("trajectories_stored_total", agent_type=trajectory.agent_type)
        return True

    def update_outcome(
        self,
        trajectory_id: str,
        actual_return: float,
        success: bool,
        reward: float,
        *,
        matured_at: datetime | None = None,
        benchmark_return: float | None = None,
        max_drawdown: float | None = None,
        costs: float | None = None,
        revise: bool = False,
    ) -> bool:
        """Store what came of a trajectory; False if there is no such trajectory.

        Raises
        ------
        LibraryConflict
            If another outcome is stored and `revise` is False.
        """
        for name, value in (
            ("actual_return", actual_return),
            ("reward", reward),
            ("benchmark_return", benchmark_return or 0.0),
            ("max_drawdown", max_drawdown or 0.0),
            ("costs", costs or 0.0),
        ):
            if not -float("inf") < value < float("inf"):
                raise ValueError(f"{name} must be finite, not {value!r}")
        update = OutcomeUpdate(
            trajectory_id,
            actual_return,
            success,
            reward,
            _instant(matured_at),
            benchmark_return,
            max_drawdown,
            costs,
        )
        with self.database.connection() as connection, connection.cursor() as cursor:
            return outcomes.update(cursor, update, revise=revise, dated=matured_at is not None)

    def get_trajectory(self, trajectory_id: str) -> Trajectory | None:
        """Return one trajectory, None if there is none."""
        with self.database.connection() as connection, connection.cursor() as cursor:
            found = trajectories.select(cursor, "t.trajectory_id = %s", [trajectory_id], "t.trajectory_id")
            return found[0] if found else None

    def get_successful_trajectories(
        self,
        agent_type: str | None = None,
        market_regime: str | None = None,
        min_reward: float = 0.0,
        limit: int = 100,
        *,
        as_of: datetime | None = None,
    ) -> list[Trajectory]:
        """Return successes with at least `min_reward` that had matured before `as_of` (now), best reward first."""
        where = ["t.success", "NOT t.shadow", "t.reward >= %s", "t.matured_at < %s", "t.run_id = ANY(%s)"]
        parameters: list[Any] = [min_reward, _instant(as_of), self._visible_runs]
        for column, value in (("agent_type", agent_type), ("market_regime", market_regime)):
            if value is not None:
                where.append(f"t.{column} = %s")
                parameters.append(value)
        with self.database.connection() as connection, connection.cursor() as cursor:
            return trajectories.select(cursor, " AND ".join(where), parameters, "t.reward DESC, t.trajectory_id", limit)

    def get_matured_trajectories(
        self, agent_type: str, *, as_of: datetime, decided_from: datetime | None = None
    ) -> list[Trajectory]:
        """Return every opinion of an agent, winners and losers, that had matured before `as_of`, oldest first."""
        where = "t.agent_type = %s AND t.matured_at < %s AND t.run_id = ANY(%s) AND NOT t.shadow"
        parameters: list[Any] = [agent_type, as_of, self._visible_runs]
        if decided_from is not None:
            where += " AND t.as_of >= %s"
            parameters.append(decided_from)
        with self.database.connection() as connection, connection.cursor() as cursor:
            return trajectories.select(cursor, where, parameters, 't.as_of, t.symbol COLLATE "C"')

    def tally_by_session(self, agent_type: str, *, as_of: datetime) -> list[SessionTally]:
        """Return an agent's calls that had matured before `as_of`, counted by decision time, oldest first."""
        with self.database.connection() as connection, connection.cursor() as cursor:
            return outcomes.tallies(cursor, self._visible_runs, agent_type, as_of)

    def find_similar_trajectories(
        self,
        query_embedding: Sequence[float],
        agent_type: str | None = None,
        limit: int = 10,
        *,
        as_of: datetime | None = None,
    ) -> list[tuple[Trajectory, float]]:
        """Return the nearest matured experiences with their cosine similarity, nearest first.

        Raises
        ------
        ValueError
            If the query has not exactly 384 finite values, or is zero and points nowhere; if `as_of` is naive.
        """
        check_embedding(query_embedding)
        if not any(query_embedding):
            raise ValueError("query_embedding has no direction: all its values are zero, nothing is similar to it")
        with self.database.connection() as connection, connection.cursor() as cursor:
            return similarity.find(
                cursor,
                query_embedding,
                self.embedder.model,
                self._visible_runs,
                agent_type=agent_type,
                limit=limit,
                as_of=_instant(as_of),
            )

    def get_statistics(self) -> dict[str, Any]:
        """Return counts and means: overall, by agent type, by market regime. Abstentions are no experiences."""
        query = """
            SELECT {group}, count(*), count(*) FILTER (WHERE success), avg(reward), avg(confidence),
                   count(*) FILTER (WHERE matured_at IS NULL)
            FROM trajectories WHERE run_id = ANY(%s) AND NOT abstained GROUP BY 1 ORDER BY 1
        """
        with self.database.connection() as connection:
            groups = {
                name: connection.execute(query.format(group=group), (self._visible_runs,)).fetchall()
                for name, group in (
                    ("overall", "1"),
                    ("by_agent_type", "agent_type"),
                    ("by_market_regime", "market_regime"),
                )
            }
        overall = groups.pop("overall")
        return {
            "overall": _statistics(overall[0] if overall else (1, 0, 0, None, None, 0)),
            **{name: {str(row[0]): _statistics(row) for row in rows} for name, rows in groups.items()},
        }

    def count_trajectories(self) -> int:
        """Return how many trajectories the visible runs have, abstentions among them."""
        with self.database.connection() as connection:
            row = connection.execute(
                "SELECT count(*) FROM trajectories WHERE run_id = ANY(%s)", (self._visible_runs,)
            ).fetchone()
        return int(row[0]) if row else 0

    def commit_cycle(self, batch: CycleBatch) -> None:
        """Commit one trading cycle; one that is stored already changes nothing, so that a lost answer may be asked again.

        Raises
        ------
        LibraryUnavailable
            If the database does not answer. Nothing is half-written.
        """
        with self.database.connection() as connection, connection.cursor() as cursor:
            cycle.commit(cursor, batch, self.embedder.model)

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
            with self.database.connection() as connection:
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
        with self.database.connection() as connection:
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
        with self.database.connection() as connection:
            return transfer.export(connection, Path(path), self._visible_runs, self.embedder.model, selection)

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
        return transfer.import_file(self.database.connection, Path(path), self.embedder, run_id)

    def revive(self) -> None:
        """Start the embedded server again if it is away."""
        if self._server is not None:
            self._server.ensure_running()

    def ping(self) -> float:
        """Return the seconds that the database takes to answer; raises LibraryUnavailable if it does not."""
        started = time.perf_counter()
        with self.database.connection() as connection:
            connection.execute("SELECT 1")
        return time.perf_counter() - started

    def close(self) -> None:
        """Close the connections and stop the embedded server if it is ours; idempotent."""
        self.database.close()
        if self._server is not None:
            self._server.stop()

    @property
    def _visible_runs(self) -> list[str]:
        return [self.run_id, *self._sources]


def _instant(at: datetime | None) -> datetime:
    """Return an instant in UTC, now where none is given; ValueError for a naive one."""
    return ensure_utc(at) if at is not None else datetime.now(UTC)


def _statistics(row: Sequence[Any]) -> dict[str, Any]:
    return {
        "total": row[1],
        "successful": row[2],
        "avg_reward": None if row[3] is None else float(row[3]),
        "avg_confidence": None if row[4] is None else float(row[4]),
        "pending": row[5],
    }
