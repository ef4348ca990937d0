"""Faults of what the technical analyst sees in a chart: levels, patterns, volume and trend that the bars do not show.

Listed in `registry`. Only the named field is wrong; the figures that would contradict it stay.
"""

from __future__ import annotations

from typing import Any

from evaluation.fault_injection.drawing import (
    MARGIN,
    log_uniform,
    rounded,
)
from evaluation.fault_injection.model import Case, Mutant, operators
from utils.json_pointer import join

LEVEL_TOLERANCE = 0.01
CLEAR_TREND = 0.6
THIN, HEAVY = 0.8, 1.2
VOLUME_BARS = 20
CANDLES = ("bullish_engulfing", "bearish_engulfing", "hammer", "shooting_star", "morning_star", "evening_star")
_MIRRORED = {
    "bullish_engulfing": "bearish_engulfing", "hammer": "shooting_star", "morning_star": "evening_star",
    "breakout": "breakdown",
}  # fmt: skip


def _support_above(case: Case) -> Mutant | None:
    return _level(case, "support_levels", _extremes(case, above=True))


def _resistance_below(case: Case) -> Mutant | None:
    return _level(case, "resistance_levels", _extremes(case, above=False))


def _support_invented(case: Case) -> Mutant | None:
    return _level(case, "support_levels", _untouched(case, below=True))


def _resistance_invented(case: Case) -> Mutant | None:
    return _level(case, "resistance_levels", _untouched(case, below=False))


def _extremes(case: Case, *, above: bool) -> list[float]:
    """Return extremes of the newest bars on one side of the price, clear of it."""
    price, bars = case.output["current_price"], case.truth.snapshot.bars if case.truth.snapshot else None
    if bars is None:
        return []
    values = [float(value) for value in (bars.high if above else bars.low)[-120:]]
    return [v for v in values if (v > price * 1.005 if above else v < price * 0.995)]


def _untouched(case: Case, *, below: bool) -> list[float]:
    """Return prices on one side that no bar's extreme comes near."""
    price, bars = case.output["current_price"], case.truth.snapshot.bars if case.truth.snapshot else None
    if bars is None:
        return []
    extremes = [float(value) for value in (*bars.low, *bars.high)]
    draws = [price * (1 - case.rng.uniform(0.02, 0.6) if below else 1 + case.rng.uniform(0.02, 1.5)) for _ in range(30)]
    near = LEVEL_TOLERANCE * MARGIN * 1.1
    return [v for v in draws if all(abs(v - extreme) > near * max(v, extreme) for extreme in extremes)][:3]


def _level(case: Case, field: str, values: list[float]) -> Mutant | None:
    levels = case.output[field]
    if not values or not levels:
        return None
    index = case.rng.randrange(len(levels))
    pointer = join(field, index)
    return case.mutant(pointer, {pointer: rounded(case.rng.choice(values))}, same=(f"/{field}",))


def _candle_imagined(case: Case) -> Mutant | None:
    return _pattern(case, [name for name in CANDLES if name not in case.output["patterns"]])


def _breakout_imagined(case: Case) -> Mutant | None:
    return _pattern(case, [name for name in ("breakout", "breakdown") if name not in case.output["patterns"]])


def _pattern_mirrored(case: Case) -> Mutant | None:
    """Name the opposite of a pattern that is there."""
    mirrored = {**_MIRRORED, **{value: key for key, value in _MIRRORED.items()}}
    found = [(index, name) for index, name in enumerate(case.output["patterns"]) if name in mirrored]
    if not found or case.output["patterns"].count(mirrored[found[0][1]]):
        return None
    pointer = join("patterns", found[0][0])
    return case.mutant(pointer, {pointer: mirrored[found[0][1]]}, same=("/patterns",))


def _pattern(case: Case, names: list[str]) -> Mutant | None:
    if not names:
        return None
    pointer = join("patterns", len(case.output["patterns"]))
    return case.mutant(pointer, {pointer: case.rng.choice(names)}, same=("/patterns",))


def _volume_sign_lost(case: Case) -> Mutant | None:
    value = case.output["signals"].get("volume", 0.0)
    return _volume(case, -value)


def _volume_overstated(case: Case) -> Mutant | None:
    ratio = _volume_ratio(case)
    return None if ratio is None else _volume(case, (1 if ratio < 1 else -1) * case.rng.uniform(0.3, 1.0))


def _volume_of_earlier_bar(case: Case) -> Mutant | None:
    ratio = _volume_ratio(case, int(log_uniform(case.rng, 1, 30)))
    return None if ratio is None else _volume(case, max(-1.0, min(1.0, (ratio - 1) / 2)))


def _volume_ratio(case: Case, bars_ago: int = 0) -> float | None:
    snapshot = case.truth.snapshot
    if snapshot is None or len(snapshot.bars) < VOLUME_BARS + bars_ago + 1:
        return None
    volume = snapshot.bars.volume[: len(snapshot.bars) - bars_ago]
    usual = float(volume[-VOLUME_BARS:].mean())
    return float(volume[-1]) / usual if usual > 0 else None


def _volume(case: Case, value: float) -> Mutant | None:
    """Return the output with a volume signal against the volume, whether its 20 bars include the newest or not."""
    with_newest, snapshot = _volume_ratio(case), case.truth.snapshot
    if with_newest is None or snapshot is None or "volume" not in case.output["signals"]:
        return None
    before = float(snapshot.bars.volume[-VOLUME_BARS - 1 : -1].mean())
    ratios = (with_newest, float(snapshot.bars.volume[-1]) / before if before > 0 else 1.0)
    thin = all(ratio < THIN / 1.02 for ratio in ratios) and value >= 0.05
    heavy = all(ratio > HEAVY * 1.02 for ratio in ratios) and value <= -0.05
    return case.mutant("/signals/volume", {"/signals/volume": round(value, 6)}) if thin or heavy else None


def _trend_turned(case: Case) -> Mutant | None:
    return _trend(case, {})


def _trend_turned_throughout(case: Case) -> Mutant | None:
    """Turn the momentum with the trend."""
    up = case.output["trend"] == "downtrend"
    return _trend(case, {"/momentum": "bullish" if up else "bearish"})


def _trend_turned_in_the_text(case: Case) -> Mutant | None:
    text = case.output["reasoning"]
    old, new = ("an uptrend", "a downtrend") if case.output["trend"] == "uptrend" else ("a downtrend", "an uptrend")
    return _trend(case, {"/reasoning": text.replace(old, new)}) if old in text else None


def _trend(case: Case, more: dict[str, Any]) -> Mutant | None:
    snapshot = case.truth.snapshot
    strength = snapshot.inputs.trend_strength if snapshot is not None else 0.0
    if abs(strength) < CLEAR_TREND * 1.01:
        return None
    wrong = "downtrend" if strength > 0 else "uptrend"
    return case.mutant("/trend", {"/trend": wrong, **more}) if case.output["trend"] != wrong else None


OPERATORS = (
    *operators(
        "support_resistance_hallucination",
        "technical",
        _support_above,
        _resistance_below,
        _support_invented,
        _resistance_invented,
    ),
    *operators("pattern_misidentification", "technical", _candle_imagined, _breakout_imagined, _pattern_mirrored),
    *operators("volume_analysis_error", "technical", _volume_sign_lost, _volume_overstated, _volume_of_earlier_bar),
    *operators(
        "trend_misclassification", "technical", _trend_turned, _trend_turned_throughout, _trend_turned_in_the_text
    ),
)
