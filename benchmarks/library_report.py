"""The printed form of the section `library`, and the same figures as plain values for JSON.

Called at the end of the section. Judges nothing but figure against aim, and says "missed" where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.library_peers import PeerResult
from benchmarks.library_searches import ENOUGH_RECALL, Answers, Figures, Truth, best_raw
from benchmarks.measure import Spread
from benchmarks.write_rounds import BATCH, INDEXED_ROUNDS, ROUNDS, Writes
from data_pipeline.experience_library_postgres import Trajectory
from utils.hashing import canonical_json

WRITE_AIM = 0.8
"""Of executemany's rows a second."""

SEARCH_AIM = 1.2
"""Times the median of the best raw method that finds enough."""

LIBRARY = "library"


def report(
    sample: Trajectory,
    writes: Writes,
    answers: Mapping[str, Mapping[str, Answers]],
    peers: Sequence[PeerResult],
    truth: Truth,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Print everything and return the figures."""
    json_bytes = sum(
        len(canonical_json(value)) for value in (sample.market_state, sample.agent_inputs, sample.workflow_trace)
    )
    print("\nversions: " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"a row: {json_bytes + len(sample.reasoning):,} bytes of JSON and text, 384 values of embedding\n")
    searches = {
        name: {who: truth.figures(name, given) for who, given in contenders.items()}
        for name, contenders in answers.items()
    }
    figures: dict[str, Any] = {
        "versions": dict(versions),
        "writes": _writes(writes),
        "searches": _searches(searches, answers, truth),
    }
    figures["peers"] = _peers(peers, searches, truth, writes)
    return figures


def _writes(w: Writes) -> dict[str, Any]:
    found: dict[str, Any] = {"aim": WRITE_AIM, "library_maintain_s": w.library_maintain_s, "raw_hnsw_s": w.raw_hnsw_s}
    blocks = [("no HNSW index before", w.rates, w.rows_a_round, ROUNDS, False)]
    if w.indexed_rates:
        blocks.append(("into indexed vectors", w.indexed_rates, w.indexed_rows_a_round, INDEXED_ROUNDS, True))
    for title, rates, rows, rounds, indexed in blocks:
        print(f"writes, {title}: rows/s, median [range] of {rounds} rounds of {rows:,} rows, batches of {BATCH}")
        for name, values in rates.items():
            print(f"  {name:18}{Spread.of(values).text():>32}")
        ratio = w.ratio(indexed)
        verdict = _verdict(ratio.median >= WRITE_AIM)
        print(f"  library / executemany {ratio.text(2):>28}   aim at least {WRITE_AIM}: {verdict}\n")
        found[title] = {"rows_a_round": rows, "rates": rates, "ratio": asdict(ratio), "met": ratio.median >= WRITE_AIM}
    if w.hnsw_since_round is not None:
        print(f"  the library indexed its vectors in round {w.hnsw_since_round}; the others were indexed for the next")
    print(
        f"  library.maintain() after the load {w.library_maintain_s:6.1f} s; HNSW index by raw SQL {w.raw_hnsw_s:6.1f} s\n"
    )
    return found


def _searches(
    searches: Mapping[str, Mapping[str, Figures]], answers: Mapping[str, Mapping[str, Answers]], truth: Truth
) -> dict[str, Any]:
    n = len(next(iter(answers.values()))[LIBRARY].ms)
    print(f"searches, 10 nearest with their whole rows: p50/p99 ms and recall@10, n = {n} queries a filter, by turns")
    print(f"  best raw: the fastest raw method with a recall of at least {ENOUGH_RECALL}")
    print(
        f"  {'filter':18}{'rows %':>8}{'library':>16}{'recall':>8}  {'aim .98':8}{'best raw':>16}  {'ratio':>6}  {'aim 1.2':8}which"
    )
    found: dict[str, Any] = {}
    for name, contenders in searches.items():
        ours = contenders[LIBRARY]
        raw = {who: given for who, given in contenders.items() if who != LIBRARY}
        best = best_raw(raw)
        ratio = ours.p50_ms / raw[best].p50_ms
        enough, fast = ours.recall >= ENOUGH_RECALL, ratio <= SEARCH_AIM
        print(
            f"  {name:18}{truth.share(name) * 100:8.2f}{_times(ours):>16}{ours.recall:8.3f}  {_verdict(enough):8}"
            f"{_times(raw[best]):>16}  {ratio:6.2f}  {_verdict(fast):8}{best}"
        )
        found[name] = {
            "share": truth.share(name), "n": n, "best_raw": best, "ratio": ratio, "recall_met": enough, "ratio_met": fast,
            "contenders": {who: asdict(given) for who, given in contenders.items()},
        }  # fmt: skip
    names = list(raw)
    print("\n  every raw method: p50/p99 ms, recall@10")
    for number, method in enumerate(names, 1):
        print(f"    ({number}) {method}")
    print(f"  {'filter':18}" + "".join(f"{f'({number})':>20}" for number in range(1, len(names) + 1)))
    for name, contenders in searches.items():
        print(f"  {name:18}" + "".join(f"{_cell(contenders[method]):>20}" for method in names))
    print()
    return found


def _peers(
    peers: Sequence[PeerResult], searches: Mapping[str, Mapping[str, Figures]], truth: Truth, writes: Writes
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    columns: dict[str, dict[str, Figures]] = {"library": {name: one[LIBRARY] for name, one in searches.items()}}
    if not peers:
        return found
    print("peers, each in its own environment and process, one after the other; insert and index, rows/s")
    rows = writes.rows_a_round * ROUNDS
    for name, index_s in ((LIBRARY, writes.library_maintain_s), ("raw executemany", writes.raw_hnsw_s)):
        inserted_s = sum(writes.rows_a_round / rate for rate in writes.rates[name])
        print(f"  {name:22}{rows / (inserted_s + index_s):8,.0f}")
        found[name] = {"rows": rows, "insert_s": inserted_s, "index_s": index_s}
    for result in peers:
        name = result.peer.name
        found[name] = {"versions": result.versions, "skipped": result.skipped}
        if result.rows:
            versions = ", ".join(f"{package} {number}" for package, number in result.versions.items())
            print(f"  {name:22}{result.rows_per_s:8,.0f}   {versions}")
            found[name] |= {"rows": result.rows, "insert_s": result.insert_s, "index_s": result.index_s}
        if result.skipped:
            print(f"  {name:22} left out: {result.skipped}")
        for setting, answers in result.answers.items():
            columns[f"{name}, {setting}"] = {case: truth.figures(case, given) for case, given in answers.items()}
            found[name][setting] = {
                case: asdict(one) | {"n": len(answers[case].ms)} for case, one in columns[f"{name}, {setting}"].items()
            }
    print(
        f"\n  searches of the peers: p50/p99 ms, recall@10, {_counts(peers)};\n"
        "  iterative scan is hnsw.iterative_scan = relaxed_order set on the database, since none has an option for it;\n"
        "  chromadb keeps its own files and has no such setting"
    )
    for number, name in enumerate(columns):
        print(f"    ({number}) {name}")
    print(f"  {'filter':18}" + "".join(f"{f'({number})':>20}" for number in range(len(columns))))
    for case in searches:
        print(f"  {case:18}" + "".join(f"{_cell(column[case]):>20}" for column in columns.values()))
    print()
    return found


def _times(figures: Figures) -> str:
    return f"{_ms(figures.p50_ms)}/{_ms(figures.p99_ms)}"


def _counts(peers: Sequence[PeerResult]) -> str:
    """Say how many queries the peers answered: fewer where a filter took them too long."""
    counts = [len(given.ms) for result in peers for answers in result.answers.values() for given in answers.values()]
    return f"n = {min(counts)} to {max(counts)} queries a filter" if counts else "no answers"


def _cell(figures: Figures) -> str:
    return f"{_times(figures)} {figures.recall:.3f}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"
