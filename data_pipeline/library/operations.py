"""The library's write operations as values: applied now, or written to the spool and applied later, with the same result.

Each knows how to apply itself to a cursor so that a second time changes nothing, and how to become JSON and be read back
as it was. Made by `data_pipeline.experience_library_postgres`; none of them opens a connection or commits.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar, Protocol

import numpy as np
import orjson
import psycopg

from data_pipeline.library import cycle, evaluations, outcomes
from data_pipeline.library.cycle import CycleBatch, RegimeChange
from data_pipeline.library.evaluations import Evaluation
from data_pipeline.library.findings import Finding
from data_pipeline.library.outcomes import OutcomeUpdate
from data_pipeline.library.portfolio_log import PortfolioEvent, PositionRow
from data_pipeline.library.rows import PreparedRows, joined, prepare, store
from data_pipeline.library.trajectories import Trajectory, json_text
from utils.errors import LibraryConflict

_EMBEDDINGS: dict[str, np.dtype[Any]] = {"f4": np.dtype("<f4"), "f8": np.dtype("<f8")}


class Operation(Protocol):
    """A write of the library.

    Failure contract: making one of values that cannot be stored is a ValueError that names the field. `apply` leaves it
    to the caller to commit; applied again it changes nothing; what is stored already with other content is a
    LibraryConflict, what the database refuses a psycopg error.

    Attributes
    ----------
    kind : str
        Its name in the spool.
    must_write : bool
        Whether having written nothing means that it was refused.
    assumed : int
        What `apply` is taken to have returned while the operation waits in the spool.
    """

    kind: ClassVar[str]
    must_write: ClassVar[bool]

    @property
    def assumed(self) -> int:
        """The result that is given before it is known."""
        ...

    def apply(self, cursor: psycopg.Cursor[Any]) -> int:
        """Write it; return how much was written (outcomes: 0 if there is no such trajectory)."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        ...


@dataclass(frozen=True, slots=True)
class StoreTrajectories:
    """Store trajectories, all or none; one that is stored already stays as it is."""

    trajectories: tuple[Trajectory, ...]
    embedding_model: str
    rows: PreparedRows = field(init=False, repr=False, compare=False)
    kind: ClassVar[str] = "store_trajectories"
    must_write: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", prepare(self.trajectories, self.embedding_model))

    @property
    def assumed(self) -> int:
        """All of them, as if all were new."""
        return len(self.trajectories)

    def apply(self, cursor: psycopg.Cursor[Any]) -> int:
        """Write those that are new; return how many."""
        return store(cursor, self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"model": self.embedding_model, "trajectories": [_trajectory_json(t) for t in self.trajectories]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StoreTrajectories:
        """Read it back."""
        return cls(tuple(map(_trajectory_of, data["trajectories"])), data["model"])


@dataclass(frozen=True, slots=True)
class UpdateOutcome:
    """Write what came of a trajectory. Where `dated` is False, the time it matured was not given but taken."""

    update: OutcomeUpdate
    revise: bool
    dated: bool
    kind: ClassVar[str] = "update_outcome"
    must_write: ClassVar[bool] = True

    @property
    def assumed(self) -> int:
        """One, as if the trajectory were there."""
        return 1

    def apply(self, cursor: psycopg.Cursor[Any]) -> int:
        """Write it; return 0 if there is no such trajectory."""
        return int(outcomes.update(cursor, self.update, revise=self.revise, dated=self.dated))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"update": _outcome_json(self.update), "revise": self.revise, "dated": self.dated}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> UpdateOutcome:
        """Read it back."""
        return cls(_outcome_of(data["update"]), data["revise"], data["dated"])


@dataclass(frozen=True, slots=True)
class CommitCycle:
    """Commit one trading cycle, all or nothing."""

    batch: CycleBatch
    embedding_model: str
    rows: PreparedRows = field(init=False, repr=False, compare=False)
    kind: ClassVar[str] = "commit_cycle"
    must_write: ClassVar[bool] = False

    def __post_init__(self) -> None:
        cycle.check(self.batch)
        object.__setattr__(self, "rows", prepare(self.batch.trajectories, self.embedding_model))
        if len(self.rows.rows) < len(self.batch.trajectories):
            raise ValueError("trajectories: a cycle has each trajectory_id once")

    @property
    def assumed(self) -> int:
        """One cycle."""
        return 1

    def apply(self, cursor: psycopg.Cursor[Any]) -> int:
        """Write it unless its mark is stored."""
        cycle.commit(cursor, self.batch, self.rows)
        return 1

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        batch = self.batch
        return {
            "model": self.embedding_model,
            "run_id": batch.run_id,
            "as_of": batch.as_of.isoformat(),
            "events": [
                {"event_id": str(e.event_id), "kind": e.kind, "as_of": e.as_of.isoformat(), "payload": e.payload,
                 "prev_hash": e.prev_hash, "hash": e.hash}
                for e in batch.events
            ],
            "positions": [[p.symbol, p.quantity, p.avg_price, p.realised_pnl] for p in batch.positions],
            "trajectories": [_trajectory_json(t) for t in batch.trajectories],
            "outcomes": [_outcome_json(o) for o in batch.outcomes],
            "regime_changes": [
                [c.symbol, c.as_of.isoformat(), c.old, c.new, c.inputs, c.confidence] for c in batch.regime_changes
            ],
            "findings": [asdict(finding) for finding in batch.findings],
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CommitCycle:
        """Read it back."""
        batch = CycleBatch(
            data["run_id"],
            datetime.fromisoformat(data["as_of"]),
            tuple(
                PortfolioEvent(
                    uuid.UUID(e["event_id"]), e["kind"], datetime.fromisoformat(e["as_of"]), e["payload"], e["prev_hash"], e["hash"]
                )
                for e in data["events"]
            ),
            tuple(PositionRow(*row) for row in data["positions"]),
            tuple(map(_trajectory_of, data["trajectories"])),
            tuple(map(_outcome_of, data["outcomes"])),
            tuple(RegimeChange(row[0], datetime.fromisoformat(row[1]), *row[2:]) for row in data["regime_changes"]),
            tuple(Finding(**finding) for finding in data["findings"]),
        )  # fmt: skip
        return cls(batch, data["model"])


@dataclass(frozen=True, slots=True)
class StoreEvaluations:
    """Store grades; see `evaluations.store`."""

    evaluations: tuple[Evaluation, ...]
    kind: ClassVar[str] = "store_evaluations"
    must_write: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for place, evaluation in enumerate(self.evaluations):
            evaluations.check(evaluation, f"evaluations[{place}].")

    @property
    def assumed(self) -> int:
        """All of them."""
        return len(self.evaluations)

    def apply(self, cursor: psycopg.Cursor[Any]) -> int:
        """Write those that are new; return how many."""
        return evaluations.store(cursor, self.evaluations)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"evaluations": [_evaluation_json(e) for e in self.evaluations]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StoreEvaluations:
        """Read it back."""
        return cls(tuple(map(_evaluation_of, data["evaluations"])))


_READERS: dict[str, Callable[[Mapping[str, Any]], Operation]] = {
    kind.kind: kind.from_json for kind in (StoreTrajectories, UpdateOutcome, CommitCycle, StoreEvaluations)
}


def apply_all(cursor: psycopg.Cursor[Any], batch: Sequence[Operation]) -> None:
    """Apply operations in order, neighbouring stores of trajectories at once.

    Raises
    ------
    ValueError, LibraryConflict, psycopg.Error
        What the first that is refused raises; the caller must roll back what was written before it.
    """
    for stores, run in groupby(batch, key=lambda operation: isinstance(operation, StoreTrajectories)):
        if stores:
            store(cursor, joined(operation.rows for operation in run if isinstance(operation, StoreTrajectories)))
            continue
        for operation in run:
            if not operation.apply(cursor) and operation.must_write:
                raise ValueError("it names no trajectory that is stored")


def encode(operation: Operation) -> bytes:
    """Return an operation as the spool keeps it.

    Raises
    ------
    ValueError
        If something in it is no JSON, or holds a NUL character, which no database would take later.
    """
    return json_text(operation.kind, {"kind": operation.kind, **operation.to_json()}, limit_bytes=None).encode()


def decode(payload: bytes) -> Operation:
    """Read an operation back.

    Raises
    ------
    ValueError
        If it is none that this version knows.
    """
    try:
        data = orjson.loads(payload)
        return _READERS[data["kind"]](data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"this is no JSON: {error}") from None
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"this is no operation of the library: {error!r}") from None


def as_named_fault(error: psycopg.Error) -> ValueError | LibraryConflict:
    """Return what a caller is told of a row that the database refuses: the field, and why."""
    told = error.diag
    detail = told.message_detail or told.message_primary or str(error)
    if isinstance(error, psycopg.errors.ForeignKeyViolation):
        column = (told.constraint_name or "").removeprefix(f"{told.table_name}_").removesuffix("_fkey")
        what = {"run_id": "names no run of this database; open it first"}.get(column, "names nothing that is stored")
        return ValueError(f"{column} {what} ({detail})")
    if isinstance(error, psycopg.errors.UniqueViolation):
        return LibraryConflict(f"{told.table_name}: {detail}")
    return ValueError(f"{told.column_name or told.constraint_name or 'a value'} cannot be stored: {detail}")


def _trajectory_json(t: Trajectory) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in zip(_FIELDS, _VALUES_OF(t), strict=True):
        if isinstance(value, datetime):
            values[name] = value.isoformat()
        elif isinstance(value, np.bool_):
            values[name] = bool(value)
        elif value is not None:
            values[name] = value
    if t.embedding is not None:
        given = t.embedding
        kind = "f4" if isinstance(given, np.ndarray) and given.dtype == np.float32 else "f8"
        data = np.asarray(given, dtype=_EMBEDDINGS[kind]).tobytes()
        values["embedding"] = {kind: base64.b64encode(data).decode()}
    return values


def _trajectory_of(data: Mapping[str, Any]) -> Trajectory:
    t = Trajectory.from_dict(data)
    if not isinstance(t.embedding, dict):
        return t
    ((kind, text),) = t.embedding.items()
    vector = np.frombuffer(base64.b64decode(text), dtype=_EMBEDDINGS[kind])
    return replace(t, embedding=vector if kind == "f4" else vector.tolist())


_FIELDS = tuple(f.name for f in fields(Trajectory))
_VALUES_OF = attrgetter(*_FIELDS)


def _outcome_json(o: OutcomeUpdate) -> dict[str, Any]:
    plain = {f.name: getattr(o, f.name) for f in fields(OutcomeUpdate)}
    return {**plain, "success": bool(o.success), "matured_at": o.matured_at.isoformat()}


def _outcome_of(data: Mapping[str, Any]) -> OutcomeUpdate:
    return OutcomeUpdate(**{**data, "matured_at": datetime.fromisoformat(data["matured_at"])})


def _evaluation_json(e: Evaluation) -> dict[str, Any]:
    plain = {f.name: getattr(e, f.name) for f in fields(Evaluation)}
    retry = e.next_retry_at.isoformat() if e.next_retry_at else None
    return {**plain, "evaluation_id": str(e.evaluation_id), "next_retry_at": retry}


def _evaluation_of(data: Mapping[str, Any]) -> Evaluation:
    retry = data["next_retry_at"]
    return Evaluation(
        **{
            **data,
            "evaluation_id": uuid.UUID(data["evaluation_id"]),
            "next_retry_at": datetime.fromisoformat(retry) if retry else None,
        }
    )
