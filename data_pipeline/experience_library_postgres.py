"""The experience library: what every agent thought, what came of it, and what was alike.

The documented entry point for the daemon and for notebooks. Readers see only experiences whose outcome had matured
before the time they ask for, and only those of their own run (and of runs they name).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from data_pipeline.embedded_postgres import EmbeddedPostgres
from data_pipeline.embeddings import Embedder, FeatureHashingEmbedder
from data_pipeline.library import findings, outcomes, runs, trajectories
from data_pipeline.library.cycle import CycleBatch
from data_pipeline.library.evaluations import Evaluation
from data_pipeline.library.findings import Finding
from data_pipeline.library.operations import CommitCycle, StoreEvaluations, StoreTrajectories, UpdateOutcome
from data_pipeline.library.outcomes import OutcomeUpdate, SessionTally
from data_pipeline.library.pool import Connection
from data_pipeline.library.search_plan import SearchPlanner
from data_pipeline.library.similarity import Search, SearchFilter
from data_pipeline.library.spooled_database import SpooledDatabase, SpoolStatus
from data_pipeline.library.trajectories import Trajectory, check_embedding, has_direction
from data_pipeline.library.upkeep import LibraryUpkeep
from utils.clock import ensure_utc
from utils.errors import LibraryUnavailable
from utils.ids import ADHOC_RUN, generate_trajectory_id
from utils.telemetry import NO_TELEMETRY, Telemetry

DRAIN_PATIENCE_S = 1.0
"""How long closing, reviving and supervision help to drain: each has other things to do, and the next one goes on."""

__all__ = ["ExperienceLibraryPostgres", "Trajectory", "generate_trajectory_id"]


class ExperienceLibraryPostgres(LibraryUpkeep):
    """A library in a PostgreSQL database with pgvector; creates or migrates the schema.

    Parameters
    ----------
    host, port, database, user, password
        Of the server; ignored where `dsn` is given.
    dsn : str, optional
        A connection string or URL.
    spool_dir : str or Path, optional
        A directory of this process alone for what is written while the database is away: it counts as durable, waits
        there in order, and is applied exactly once. Without it such a write raises LibraryUnavailable.
    pool_size : int
        Most connections at a time.
    run_id : str
        The run that what is written without one belongs to, and whose experiences are read.
    experience_sources : sequence of str
        Further runs whose experiences are read. They must be there, and of the mode of `run_id`, else every read raises
        ConfigError: what was lived through in a simulation is nothing to a live run.
    embedder : Embedder, optional
        Feature hashing by default.

    Attributes
    ----------
    exact_search : bool
        Whether searches never use the approximate index; a replay sets it, so that it depends on no index.

    Raises
    ------
    ComponentStartError
        If the server cannot be reached, is too old or lacks pgvector; if another process owns `spool_dir`.
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
        spool_dir: str | Path | None = None,
        pool_size: int = 8,
        run_id: str = ADHOC_RUN,
        experience_sources: Sequence[str] = (),
        embedder: Embedder | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        names = [quote(part, safe="") for part in (user, password, host, database)]
        self.database = SpooledDatabase(dsn or "postgresql://{0}:{1}@{2}:{4}/{3}".format(*names, port), pool_size)
        self.run_id = run_id
        self.embedder: Embedder = embedder or FeatureHashingEmbedder()
        self.exact_search = False
        self._planner = SearchPlanner(self.embedder.model)
        self._sources = tuple(experience_sources)
        self._checked_for: str | None = None
        self._telemetry = telemetry
        self._server: EmbeddedPostgres | None = None
        if spool_dir is not None:
            try:
                self.open_spool(spool_dir)
            except BaseException:
                self.database.close()
                raise

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
        """Lend a connection to another module that holds SQL; commits at the end. It sees all that was written before."""
        with self.database.connection() as connection:
            yield connection

    def embed(self, state: Mapping[str, Any] | str) -> list[float]:
        """Return the embedding of a state or text, as `find_similar_trajectories` wants it."""
        return [float(value) for value in self.embedder.embed(state)]

    def store_trajectory(self, trajectory: Trajectory) -> bool:
        """Store a trajectory; True once it is durable. Storing the same content again changes nothing.

        A trajectory without an embedding gets one of its market state, at once if the embedder is quick enough for
        that, else by `backfill_embeddings`; a zero vector has no direction and is not indexed. A text or a JSON field has
        8 Mi characters at most.

        Raises
        ------
        ValueError
            For a field that cannot be stored, named.
        LibraryConflict
            If other content is stored under the id.
        LibraryUnavailable
            If the database does not answer, and there is no spool or it is full.
        """
        self.store_trajectories((trajectory,))
        return True

    def store_trajectories(self, batch: Sequence[Trajectory]) -> int:
        """Store trajectories, all or none, as `store_trajectory` does each; returns how many were new.

        While the database is away all of a batch count as new.

        Raises
        ------
        ValueError, LibraryConflict
            As `store_trajectory`, with the place in the batch before the field; nothing is written then.
        LibraryUnavailable
            If the database does not answer, and there is no spool or it is full.
        """
        if not batch:
            return 0
        new = self.database.write(StoreTrajectories(tuple(map(self._embedded, batch)), self.embedder.model))
        for agent_type, number in Counter(t.agent_type for t in batch).items():
            self._telemetry.count("trajectories_stored_total", number, agent_type=agent_type)
        return new

    def _embedded(self, t: Trajectory) -> Trajectory:
        if (
            t.embedding is not None
            or t.abstained
            or not self.embedder.inline
            or not isinstance(t.market_state, Mapping)
        ):
            return t
        try:
            return replace(t, embedding=self.embedder.embed(t.market_state))
        except (UnicodeEncodeError, RecursionError):  # no JSON either: the check of the fields names it
            return t

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
        LibraryUnavailable
            If the database does not answer, and there is no spool or it is full.

        While the database is away nobody can tell whether there is such a trajectory: the answer is True, and the outcome
        of one that there is not ends in the table spool_dead_letter.
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
        trajectories.check_text("trajectory_id", trajectory_id, 1)
        update = OutcomeUpdate(
            trajectory_id,
            float(actual_return),
            bool(success),
            float(reward),
            _instant(matured_at),
            benchmark_return,
            max_drawdown,
            costs,
        )
        return bool(self.database.write(UpdateOutcome(update, revise, dated=matured_at is not None)))

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

    def get_findings(self, trajectory_ids: Sequence[str]) -> dict[str, list[Finding]]:
        """Return what fault localisation found in each of these trajectories that has findings."""
        with self.connection() as connection, connection.cursor() as cursor:
            return findings.of_trajectories(cursor, trajectory_ids)

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

    def tally_by_session(
        self, agent_type: str, *, as_of: datetime, state_language: int | None = None
    ) -> list[SessionTally]:
        """Return an agent's calls that had matured before `as_of`, counted by decision time, oldest first.

        With `state_language` only those count that were stored with a state of that language.
        """
        visible = self._visible_runs
        with self.database.connection() as connection, connection.cursor() as cursor:
            return outcomes.tallies(cursor, visible, agent_type, as_of, state_language)

    def find_similar_trajectories(
        self,
        query_embedding: Sequence[float],
        agent_type: str | None = None,
        limit: int = 10,
        *,
        as_of: datetime | None = None,
        symbol: str | None = None,
        market_regime: str | None = None,
        recommendation: str | None = None,
        success: bool | None = None,
        min_reward: float | None = None,
        exact: bool | None = None,
    ) -> list[tuple[Trajectory, float]]:
        """Return the nearest matured experiences with their cosine similarity, nearest first.

        Parameters
        ----------
        query_embedding : sequence of float
            384 values, as `embed` gives them.
        agent_type, symbol, market_regime, recommendation, success : optional
            Only experiences that equal it.
        limit : int
            Most experiences returned, at least 1.
        as_of : datetime, optional
            Aware; only what had matured before. None is now.
        min_reward : float, optional
            Least reward of an experience.
        exact : bool, optional
            Compare with every matching experience; by default as the library was told (`exact_search`).

        Raises
        ------
        ValueError
            If the query has not exactly 384 finite values, or is zero and points nowhere; if `as_of` is naive, `limit` below
            1 or `min_reward` not a number.
        """
        check_embedding(query_embedding)
        embedding = np.asarray(query_embedding, dtype=np.float32)
        if not has_direction(embedding):
            raise ValueError(
                "query_embedding has no direction: all its values are zero in half precision, nothing is similar to it"
            )
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        if min_reward is not None and math.isnan(min_reward):
            raise ValueError("min_reward must be a number, not NaN")
        filter_by = SearchFilter(
            tuple(self._visible_runs), _instant(as_of), agent_type, symbol, market_regime, recommendation, success, min_reward
        )  # fmt: skip
        with self.database.reading() as connection, connection.cursor() as cursor:
            search = Search(cursor, embedding, self.embedder.model, filter_by, limit)
            found = self._planner.search(search, exact=self.exact_search if exact is None else exact)
        self._telemetry.count("library_searches_total", method=found.method)
        return found.experiences

    def get_statistics(self) -> dict[str, Any]:
        """Return counts and means: overall, by agent type, by market regime. Abstentions and shadow opinions are no experiences."""
        query = """
            SELECT {group}, count(*), count(*) FILTER (WHERE success), avg(reward), avg(confidence),
                   count(*) FILTER (WHERE matured_at IS NULL)
            FROM trajectories WHERE run_id = ANY(%s) AND NOT abstained AND NOT shadow GROUP BY 1 ORDER BY 1
        """
        visible = self._visible_runs
        with self.database.connection() as connection:
            groups = {
                name: connection.execute(query.format(group=group), (visible,)).fetchall()
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
        """Return how many trajectories the visible runs have, abstentions among them and shadow opinions not."""
        visible = self._visible_runs
        with self.database.connection() as connection:
            row = connection.execute(
                "SELECT count(*) FROM trajectories WHERE run_id = ANY(%s) AND NOT shadow", (visible,)
            ).fetchone()
        return int(row[0]) if row else 0

    def commit_cycle(self, batch: CycleBatch) -> None:
        """Commit one trading cycle; one that is stored already changes nothing, so that a lost answer may be asked again.

        Raises
        ------
        LibraryUnavailable
            If the database does not answer, and there is no spool or it is full. Nothing is half-written.
        LibraryConflict
            If it does not follow the last cycle that its run has stored.
        """
        self.database.write(CommitCycle(batch, self.embedder.model))

    def store_evaluations(self, evaluations: Sequence[Evaluation]) -> None:
        """Store grades, all or none; one that is stored already stays as it is, unless it was pending and this is a later attempt.

        Raises
        ------
        ValueError
            For a field that cannot be stored, named; for a grade of an unknown trajectory.
        LibraryUnavailable
            If the database does not answer, and there is no spool or it is full.
        """
        if evaluations:
            self.database.write(StoreEvaluations(tuple(evaluations)))

    def open_spool(self, directory: str | Path) -> None:
        """Put a spool behind the database, as `spool_dir` does, and drain what an earlier process left in it.

        For whoever must first make sure that the database is its own.

        Raises
        ------
        ComponentStartError
            If another process owns the directory.
        """
        self.database.open_spool(Path(directory))

    @property
    def away(self) -> str | None:
        """Why the database is taken to be away, None while it answers; known only where there is a spool."""
        return self.database.away

    @property
    def spool(self) -> SpoolStatus | None:
        """What waits in the spool, None without one."""
        return self.database.spool_status

    def drain(self, patience_s: float | None = None) -> None:
        """Apply what waits in the spool, for so many seconds (to the end); LibraryUnavailable while the database is away."""
        self.database.drain(patience_s=patience_s)

    def count_dead_letters(self) -> int:
        """Return how many operations of the spool the database has refused for good."""
        with self.database.connection() as connection:
            row = connection.execute("SELECT count(*) FROM spool_dead_letter").fetchone()
        return int(row[0]) if row else 0

    def revive(self) -> None:
        """Start the embedded server again if it is away, and apply what waits in the spool if the database is back."""
        if self._server is not None:
            self._server.ensure_running()
        with contextlib.suppress(LibraryUnavailable):
            self.database.drain(patience_s=DRAIN_PATIENCE_S, ask_now=self._server is not None)

    def ping(self) -> float:
        """Return the seconds that the database takes to answer; raises LibraryUnavailable if it does not."""
        started = time.perf_counter()
        with self.database.undrained() as connection:
            connection.execute("SELECT 1")
        return time.perf_counter() - started

    def close(self) -> None:
        """Close the connections and stop the embedded server if it is ours; idempotent. What waits in the spool stays."""
        with contextlib.suppress(LibraryUnavailable):
            self.database.drain(patience_s=DRAIN_PATIENCE_S)
        self.database.close()
        if self._server is not None:
            self._server.stop()

    @property
    def _visible_runs(self) -> list[str]:
        """The runs whose experiences are read; takes a connection of its own until the sources have been checked."""
        if self._sources and self._checked_for != self.run_id:
            with self.database.connection() as connection, connection.cursor() as cursor:
                runs.check_sources(cursor, self.run_id, self._sources)
            self._checked_for = self.run_id  # a run's mode never changes
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
