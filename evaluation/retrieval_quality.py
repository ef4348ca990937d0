"""The report on retrieval: ``python -m evaluation.retrieval_quality`` says what similar experiences foretell, or that they do not.

Reads the matured experiences of a run once and measures in memory (`retrieval_gain`). Changes nothing in the database
and claims a gain only where both scores show one on decisions that chose nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.library import matured_vectors
from data_pipeline.library.matured_vectors import MaturedVectors, VectorSet
from data_pipeline.library.pool import Connection
from data_pipeline.library_access import add_options, config_of, open_library
from evaluation.bootstrap import DEFAULT_BLOCK
from evaluation.retrieval_gain import ERROR_RATE, AgentReport, Difference, Shared, report_agent
from utils.artifacts import write_atomically
from utils.errors import ComponentStartError, ConfigError, DataUnavailable, LibraryUnavailable
from utils.logs import complain, configure_logging
from utils.setting_sections import DecisionSettings

DEFAULT_K = 10
DEFAULT_QUERIES = 2_000
_BLOCKS_A_HORIZON = 4
"""A block spans the overlap of outcomes several times over; see `evaluation.gate`."""


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """Retrieval in one run, agent by agent; `to_dict` gives JSON values."""

    run_id: str
    model: str
    k: int
    queries: int
    seed: int
    error_rate: float
    agents: tuple[AgentReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return dataclasses.asdict(self)


def report(
    source: VectorSet,
    agents: dict[str, MaturedVectors],
    *,
    k: int = DEFAULT_K,
    queries: int = DEFAULT_QUERIES,
    seed: int = 42,
) -> RetrievalReport:
    """Measure retrieval for every agent of a run.

    Parameters
    ----------
    k : int
        Neighbours that the neighbourhood is described by; those of the prediction are chosen on the earlier period.
    queries : int
        Most decisions looked at in each period of an agent.
    """
    found = tuple(
        report_agent(name, data, k=k, queries=queries, block=_block(data.horizon), agents=len(agents), seed=seed)
        for name, data in sorted(agents.items())
    )
    return RetrievalReport(source.run_id, source.model, k, queries, seed, ERROR_RATE, found)


def render(found: RetrievalReport) -> str:
    """Return the report as text."""
    lines = [
        f"Retrieval in run {found.run_id}, embeddings {found.model}",
        f"{found.k} nearest experiences that had matured before a decision; differences are base rate minus retrieval "
        "(above 0: retrieval is better), by session, with 95 % block-bootstrap intervals",
    ]
    for agent in found.agents:
        lines += ["", *_agent_lines(agent)]
    gains = [agent.agent_type for agent in found.agents if agent.verdict == "gain"]
    conclusion = (
        f"Retrieval foretells outcomes better than the base rate for: {', '.join(gains)}."
        if gains
        else "No gain: nothing here shows that similar experiences foretell outcomes better than the base rate."
    )
    return "\n".join([*lines, "", f"{conclusion} (false claims at most {found.error_rate:.0%} of runs)", ""])


def _agent_lines(agent: AgentReport) -> list[str]:
    head = f"{agent.agent_type}: {agent.verdict} ({agent.experiences:,} experiences"
    if agent.brier is None or agent.log_loss is None or agent.neighbourhood is None or agent.reported_from is None:
        return [f"{head}; too few matured early enough to tune on one period and report on a later one)"]
    since = datetime.fromtimestamp(agent.reported_from, UTC).date()
    around = agent.neighbourhood
    right, wrong = around.succeeded_where_right, around.succeeded_where_wrong
    return [
        f"{head}; tuned on {agent.tuned_on:,} decisions, reported on {agent.reported_on:,} of {agent.sessions} sessions since {since})",
        f"  neighbours share action {_shared(around.action)}, regime {_shared(around.regime)}, symbol {_shared(around.symbol)}",
        f"  those of the same action succeeded {_shared(around.same_action_succeeded)}; "
        f"where the decision came true {_percent(right)}, where not {_percent(wrong)}",
        f"  prediction by {agent.neighbours} neighbours of the same action, smoothing {agent.smoothing:g}, blocks of {agent.block} sessions",
        f"  Brier    {_difference(agent.brier)}",
        f"  log loss {_difference(agent.log_loss)}",
    ]


def _shared(found: Shared) -> str:
    return f"{_percent(found.neighbours)} (chance {_percent(found.chance)})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _difference(d: Difference) -> str:
    text = f"{d.base_rate:.4f} by base rate, {d.retrieval:.4f} by retrieval, difference {d.mean:+.5f}"
    if d.low is None or d.high is None:
        return f"{text}, too few sessions for an interval"
    return f"{text} [{d.low:+.5f}, {d.high:+.5f}], lower bound of the claim {d.claim_low:+.5f}"


def _block(horizon: str | None) -> int:
    """Return the sessions of a block for experiences of a horizon."""
    try:
        sessions = DecisionSettings(horizon=horizon).horizon_sessions if horizon else 1
    except (ConfigError, ValueError):  # minutes: outcomes overlap within a session only
        sessions = 1
    return max(DEFAULT_BLOCK, _BLOCKS_A_HORIZON * sessions)


def load(connection: Connection, run_id: str | None, model: str | None) -> tuple[VectorSet, dict[str, MaturedVectors]]:
    """Read the experiences of a run (the newest), under a model (the one with the most vectors).

    Raises
    ------
    DataUnavailable
        If there is none.
    """
    sets = matured_vectors.available(connection, run_id)
    chosen = next((found for found in sets if model is None or found.model == model), None)
    if chosen is None:
        known = ", ".join(sorted({found.model for found in sets})) or "none"
        raise DataUnavailable(
            f"no matured experience of {f'run {run_id}' if run_id else 'any run'} has an embedding"
            f"{f' of {model}; there are: {known}' if model else '; python -m data_pipeline.backfill makes them'}"
        )
    return chosen, dict(matured_vectors.read(connection, chosen.run_id, chosen.model))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 with a report, 2 wrong setting or nothing to report on, 3 database not to be reached."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.retrieval_quality",
        description="Say what similar experiences foretell, or that they do not.",
    )
    add_options(parser)
    parser.add_argument("--run", metavar="RUN_ID", help="default: the newest run with embeddings")
    parser.add_argument("--model", metavar="NAME", help="embedding model; default: the one with the most vectors")
    parser.add_argument("--k", type=_positive, default=DEFAULT_K, help=f"neighbours described, default {DEFAULT_K}")
    parser.add_argument(
        "--queries", type=_positive, default=DEFAULT_QUERIES, help=f"most decisions a period, default {DEFAULT_QUERIES}"
    )
    parser.add_argument("--seed", type=int, default=42, help="of the sample and the bootstrap, default 42")
    parser.add_argument(
        "--json", metavar="PATH", type=Path, help="write the report there too; - prints it instead of the text"
    )
    options = parser.parse_args(arguments)
    configure_logging()
    try:
        library = open_library(config_of(options))
        try:
            with library.connection() as connection:
                source, agents = load(connection, options.run, options.model)
        finally:
            library.close()
        found = report(source, agents, k=options.k, queries=options.queries, seed=options.seed)
        return _present(found, options.json)
    except (ConfigError, DataUnavailable) as error:
        return complain(error, 2)
    except (ComponentStartError, LibraryUnavailable) as error:
        return complain(error, 3)


def _present(found: RetrievalReport, path: Path | None) -> int:
    as_json = json.dumps(found.to_dict(), indent=1) + "\n"
    if path is not None and str(path) == "-":
        sys.stdout.write(as_json)
        return 0
    sys.stdout.write(render(found))
    if path is not None:
        try:
            write_atomically(path, as_json)
        except OSError as error:
            raise ConfigError(f"json: cannot write {path}: {error.strerror}") from None
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
