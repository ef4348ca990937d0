"""Peers of the library, each in an environment and a process of its own: sets them up, hands them the rows, reads what they found.

Called by the section `library`. A peer that cannot be installed or fails is left out with the reason, never guessed at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from benchmarks.library_cases import LIMIT, Filter
from benchmarks.library_data import AGENTS, RECOMMENDATIONS, REGIMES, SYMBOLS, Experiences, trajectory
from benchmarks.library_searches import Answers
from utils.hashing import canonical_json, sha256_hex

CACHE = Path(__file__).parent.parent / ".bench-peers"
_SCRIPTS = Path(__file__).parent / "peers"
_INSTALL_S = 900
_STAGE_S = 1800
"""A peer that needs longer for one stage is left out."""


@dataclass(frozen=True)
class Peer:
    """A peer: what is installed for it, its script, and whether it works on our server (and so can scan iteratively)."""

    name: str
    script: str
    requirements: tuple[str, ...]
    on_server: bool = True


PEERS = (
    Peer("langchain-postgres", "run_langchain_postgres.py", ("langchain-postgres==0.0.19", "langchain-core==1.8.3")),
    Peer(
        "llama-index",
        "run_llama_index.py",
        ("llama-index-vector-stores-postgres==0.9.0", "llama-index-core==0.14.25"),
    ),
    Peer("chromadb", "run_chromadb.py", ("chromadb==1.5.9",), on_server=False),
    Peer("mem0", "run_mem0.py", ("mem0ai==2.2.1", "psycopg[binary,pool]==3.3.9")),
)


@dataclass
class PeerResult:
    """What a peer did; `answers` by setting, then by filter. `skipped` says why there is nothing."""

    peer: Peer
    versions: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    insert_s: float = float("nan")
    index_s: float = float("nan")
    answers: dict[str, dict[str, Answers]] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def rows_per_s(self) -> float:
        """Rows a second until they can be searched by index."""
        return self.rows / (self.insert_s + self.index_s)


def write_exchange(folder: Path, data: Experiences, queries: Experiences, cases: Sequence[Filter]) -> None:
    """Write what every peer reads: rows, vectors, queries and the plan of the searches."""
    np.save(folder / "vectors.npy", data.vectors)
    np.save(folder / "queries.npy", queries.vectors)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as lines:
        for row in range(len(data)):
            lines.write(canonical_json({"text": _text(data, row), "metadata": _metadata(data, row)}) + "\n")
    plan = {
        "limit": LIMIT,
        "cases": [
            {"name": case.name, "conditions": [case.of(query).triples() for query in range(len(queries))]}
            for case in cases
        ],
    }
    (folder / "plan.json").write_text(json.dumps(plan))


def run_peer(
    peer: Peer, exchange: Path, server: str, url_of: Callable[[str], str], progress: Callable[[str], None]
) -> PeerResult:
    """Load the rows and search them, at the peer's defaults and, on our server, with iterative scans as well."""
    result = PeerResult(peer)
    folder = exchange / sha256_hex(peer.name)[:8]
    folder.mkdir()
    for name in ("vectors.npy", "queries.npy", "rows.jsonl", "plan.json"):
        (folder / name).symlink_to(exchange / name)
    database = "peer_" + peer.name.replace("-", "_")
    try:
        progress(f"{peer.name}: environment")
        python = _environment(peer)
        if peer.on_server:
            _execute(server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
            _execute(url_of(database), sql.SQL("CREATE EXTENSION vector"))
        progress(f"{peer.name}: inserting and indexing")
        loaded = _stage(python, peer, "load", folder, url_of(database))
        result.versions = loaded["versions"]
        result.rows, result.insert_s, result.index_s = loaded["rows"], loaded["insert_s"], loaded["index_s"]
        if peer.on_server:
            _execute(url_of(database), sql.SQL("VACUUM ANALYZE"))
        for setting in ("defaults", "iterative scan") if peer.on_server else ("defaults",):
            if setting == "iterative scan":
                # none of them has an option for it; a setting of the database reaches every session
                _execute(
                    server,
                    sql.SQL("ALTER DATABASE {} SET hnsw.iterative_scan = 'relaxed_order'").format(
                        sql.Identifier(database)
                    ),
                )
            progress(f"{peer.name}: searching, {setting}")
            found = _stage(python, peer, "search", folder, url_of(database))["answers"]
            result.answers[setting] = {name: Answers(one["ms"], one["rows"]) for name, one in found.items()}
    except (subprocess.SubprocessError, OSError, psycopg.Error) as error:
        result.skipped = _reason(error)
    finally:
        if peer.on_server:
            _execute(server, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))
    return result


def _text(data: Experiences, row: int) -> str:
    """Return what a trajectory holds besides its filters, as the one text that peers store."""
    item = trajectory(data, row)
    return canonical_json(
        {
            "market_state": item.market_state,
            "agent_inputs": item.agent_inputs,
            "workflow_trace": item.workflow_trace,
            "reasoning": item.reasoning,
        }
    )


def _metadata(data: Experiences, row: int) -> dict[str, Any]:
    return {
        "agent_type": AGENTS[data.agent[row]],
        "market_regime": REGIMES[data.regime[row]],
        "symbol": SYMBOLS[data.symbol[row]],
        "recommendation": RECOMMENDATIONS[data.recommendation[row]],
        "success": int(data.success[row]),
        "reward": float(data.reward[row]),
        "matured": float(data.matured[row]),
    }


def _environment(peer: Peer) -> Path:
    """Return the Python of the peer's environment, made once for each set of requirements."""
    home = CACHE / f"{peer.name}-{sha256_hex(' '.join(peer.requirements))[:8]}"
    python = home / "bin" / "python"
    ready = home / ".ready"
    if not ready.exists():
        CACHE.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True, capture_output=True, text=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements],
            check=True, capture_output=True, text=True, timeout=_INSTALL_S,
        )  # fmt: skip
        ready.touch()
    return python


def _stage(python: Path, peer: Peer, stage: str, folder: Path, url: str) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"BENCH_DATABASE_URL": url, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(
        [str(python), str(_SCRIPTS / peer.script), stage, str(folder)],
        check=True, capture_output=True, text=True, timeout=_STAGE_S, env=environment,
    )  # fmt: skip
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def _execute(url: str, statement: sql.Composable) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def _reason(error: Exception) -> str:
    """Return the last line of what went wrong, for people."""
    output = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
    lines = (output or str(error)).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__
