"""The benchmark section ``taxonomy``: how well the fault detectors find planted faults, and how fast.

Outputs are the project's own on real history; what is generated or added is named in the report. Categories and parts of
categories that only judges decide are listed, never measured.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from benchmarks.clean_outputs import clean_outputs
from evaluation.fault_injection import TaxonomyMeasurement, evaluate
from evaluation.fault_injection.harness import Detect
from evaluation.fault_injection.scores import F1, CategoryScore, Rate, Share
from evaluation.ground_truth import GroundTruth

SEED = 42
MUTANTS = 60
"""Faults a category; the aim asks for at least 50."""

SHARE_OF_FOLDER, SHARE_OF_SAMPLE = 0.05, 0.4
"""Of all symbols and sessions; the sample has five symbols, a folder is taken to have dozens."""

SPEED_OUTPUTS = 800
"""Outputs whose inspection is timed; held in memory, unlike the rest."""

CONFUSIONS = 3


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the fault detectors, print the table and return its totals."""
    detect = _detectors()
    folder = os.environ.get("REPLAY_DATA_DIR")
    share = SHARE_OF_FOLDER if folder else SHARE_OF_SAMPLE
    measured = evaluate(detect, clean_outputs(folder, SEED, share), SEED, MUTANTS)
    print("error detectors on planted faults")
    print(f"  outputs: the rules agents' on {'REPLAY_DATA_DIR' if folder else 'the bundled sample'}; fundamental and")
    print("  strategist outputs rest on generated filings; peers and present multiples are added (enriched)")
    if not folder:
        print("  REPLAY_DATA_DIR is not set: the sample holds no news, so the news analyst is not measured")
    print_measurement(measured)
    outputs = islice(clean_outputs(folder, SEED + 1, share), SPEED_OUTPUTS)
    timed = [(sample.agent_type, sample.output, sample.truth) for sample in outputs]
    speed = outputs_per_s(detect, timed)
    print(f"  throughput on sound outputs, CPU time of one core  {speed:6.0f} /s   aim 2,000 /s (n {len(timed)})\n")
    return {**_figures(measured), "outputs_per_s": speed, "generated_filings": True, "replay_folder": bool(folder)}


def print_measurement(measured: TaxonomyMeasurement) -> None:
    """Print the table by category, the totals beside their aims, and what is not measured."""
    print(f"  damaged outputs {measured.damaged} ({measured.two_faults} with two faults), sound ones {measured.clean}")
    print("  shares with 95 % Wilson intervals; F1's are those of tp/(tp+fp+fn) carried over; pointer: of those found")
    print("  repair: findings that vanish with the originals back in place\n")
    titles = ("n", "precision", "recall", "F1", "pointer", "joint", "repair", "sub-code", "alarms on sound")
    print(f"  {'category':34}{titles[0]:>5}" + "".join(f"{title:>21}" for title in titles[1:]))
    for name, score in measured.categories.items():
        cells = (
            score.precision,
            score.recall,
            score.f1,
            score.pointer,
            score.joint_accuracy,
            score.repair,
            score.sub_code,
        )
        on_clean = f"{score.on_clean}/{measured.clean}"
        print(f"  {name:34}{score.n:>5}" + "".join(f"{_cell(cell):>21}" for cell in cells) + f"{on_clean:>21}")
    print("\n  what was reported instead, and the operators that were missed")
    for name, score in measured.categories.items():
        _print_misses(name, score)
    print("\n  needs a real model, not measured here")
    for name, what in measured.needs_a_model.items():
        print(f"    {name}: {what}")
    thin = [name for name, score in measured.categories.items() if score.n < 50]
    print(f"\n  categories with fewer than 50 faults: {', '.join(thin) or 'none'}")
    print(f"  macro F1                                {measured.macro_f1:.4f}")
    print(
        f"  joint accuracy (category and pointer)   {_cell(measured.joint_accuracy)}   aim >= 0.95 (n {measured.joint_accuracy.n})"
    )
    print(f"  findings silenced by the repair         {_cell(measured.repair)} (n {measured.repair.n})")
    print(
        f"  false alarms a sound output             {_cell(measured.false_alarms)}   aim <= 0.02 (n {measured.clean})"
    )
    print(f"  sound outputs with any false alarm      {_cell(measured.alarmed)}")
    for label, (alarmed, n) in sorted(measured.clean_by_label.items()):
        print(f"    {label:52}{_cell(Share(alarmed, n))} (n {n})")


def outputs_per_s(detect: Detect, outputs: Sequence[tuple[str, dict[str, Any], GroundTruth]]) -> float:
    """Return how many outputs a CPU second the detector looks at, the best of three passes.

    CPU time, since other processes may share the core.
    """
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        for agent_type, output, truth in outputs:
            detect(agent_type, output, truth)
        best = min(best, time.process_time() - started)
    return len(outputs) / best


def _figures(measured: TaxonomyMeasurement) -> dict[str, Any]:
    """Return the totals and, by category, n, F1, pointer match and joint accuracy, each with its interval."""

    def bounds(figure: Share | F1 | Rate) -> list[float]:
        return [figure.value, figure.low, figure.high]

    return {
        "damaged": measured.damaged,
        "sound": measured.clean,
        "joint_accuracy": bounds(measured.joint_accuracy),
        "false_alarms_a_sound_output": bounds(measured.false_alarms),
        "macro_f1": measured.macro_f1,
        "repair": bounds(measured.repair),
        "categories": {
            name: {
                "n": score.n,
                "f1": bounds(score.f1),
                "pointer": bounds(score.pointer),
                "joint": bounds(score.joint_accuracy),
                "on_sound": score.on_clean,
            }
            for name, score in measured.categories.items()
        },
        "needs_a_real_model": measured.needs_a_model,
    }


def _print_misses(name: str, score: CategoryScore) -> None:
    if score.joint == score.n:
        return
    missed = sorted(((n - hits, operator) for operator, (hits, n) in score.operators.items() if hits < n), reverse=True)
    instead = ", ".join(f"{what} {count}" for what, count in score.instead.most_common(CONFUSIONS))
    operators = ", ".join(f"{operator} {misses}" for misses, operator in missed[:CONFUSIONS])
    print(f"    {name}: {instead} (missed: {operators})")


def _cell(figure: Share | F1 | Rate) -> str:
    """Return a figure with its interval, a dash where there is none."""
    return "-" if figure.value != figure.value else f"{figure.value:.3f} [{figure.low:.3f},{figure.high:.3f}]"


def _detectors() -> Detect:
    from evaluation.fault_localization import FaultLocalizationEngine

    engine = FaultLocalizationEngine()

    def detect(agent_type: str, output: dict[str, Any], truth: GroundTruth) -> Iterable[Any]:
        found: Iterable[Any] = engine.detect_faults(agent_type, output, truth).errors
        return found

    return detect
