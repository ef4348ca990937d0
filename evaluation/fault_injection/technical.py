"""Faults of the technical analyst: indicators of wrong value, window or interval, misread signals, levels and patterns.

Listed in `registry`. A wrong indicator stays where it was alone in half of the cases and is repeated by evidence and text
in the other half.
"""

from __future__ import annotations

from typing import Any

from evaluation.fault_injection.drawing import (
    MARGIN,
    beyond,
    by_factor,
    carried_along,
    digits_swapped,
    evidence_of,
    log_uniform,
    rounded,
    side_of,
)
from evaluation.fault_injection.model import Case, Mutant, operators
from evaluation.fault_injection.pointers import join
from evaluation.fault_injection.stale_indicators import indicator_value, wrong_windows

INDICATOR_TOLERANCE = 0.05
LEVEL_TOLERANCE = 0.01
CLEAR_TREND = 0.6
OVERBOUGHT, OVERSOLD = 70.0, 30.0
THIN, HEAVY = 0.8, 1.2
VOLUME_BARS = 20
NEAR_ZERO = 1e-4
"""Smallest share of the price from which a relative error of MACD means anything."""

BOUNDED = ("rsi_14", "stoch_k", "stoch_d", "mfi_14")
SWAPS = {
    "macd": "macd_signal", "macd_signal": "macd", "bb_upper": "bb_lower", "bb_lower": "bb_upper", "stoch_k": "stoch_d",
    "stoch_d": "stoch_k", "sma_20": "sma_50", "sma_50": "sma_200", "sma_200": "sma_20", "ema_12": "ema_26",
    "ema_26": "ema_12", "rsi_14": "mfi_14", "mfi_14": "rsi_14", "adx_14": "rsi_14", "atr_14": "macd",
}  # fmt: skip
"""Columns that are taken for one another."""

CANDLES = ("bullish_engulfing", "bearish_engulfing", "hammer", "shooting_star", "morning_star", "evening_star")
_MIRRORED = {
    "bullish_engulfing": "bearish_engulfing", "hammer": "shooting_star", "morning_star": "evening_star",
    "breakout": "breakdown",
}  # fmt: skip


def _by_factor(case: Case) -> Mutant | None:
    return _miscomputed(case, lambda name, value: by_factor(case.rng, value, INDICATOR_TOLERANCE))


def _digits_swapped(case: Case) -> Mutant | None:
    return _miscomputed(case, lambda name, value: digits_swapped(case.rng, value))


def _of_earlier_bar(case: Case) -> Mutant | None:
    """Take the value of up to 120 bars ago."""
    bars_ago = int(log_uniform(case.rng, 1, 120))
    snapshot = case.truth.snapshot
    return None if snapshot is None else _miscomputed(case, lambda n, v: indicator_value(snapshot.bars, n, bars_ago))


def _over_wrong_window(case: Case) -> Mutant | None:
    snapshot = case.truth.snapshot

    def wrong(name: str, value: float) -> float | None:
        windows = wrong_windows(name)
        if snapshot is None or not windows:
            return None
        return indicator_value(snapshot.bars, name, 0, case.rng.choice(windows))

    return _miscomputed(case, wrong)


def _of_another_symbol(case: Case) -> Mutant | None:
    other = case.peer.output["indicators"] if case.peer is not None else {}
    return _miscomputed(case, lambda name, value: other.get(name))


def _of_another_column(case: Case) -> Mutant | None:
    return _miscomputed(case, lambda name, value: case.output["indicators"].get(SWAPS.get(name, "")))


def _out_of_scale(case: Case) -> Mutant | None:
    """Write an oscillator of 0..100 beyond its range."""
    names = [name for name in BOUNDED if name in case.output["indicators"]]
    wrong = case.rng.choice(
        (case.rng.uniform(101.0, 160.0), case.rng.uniform(-60.0, -1.0), case.rng.uniform(300, 9900))
    )
    return _miscomputed(case, lambda name, value: wrong, names)


def _sign_lost(case: Case) -> Mutant | None:
    names = [name for name in ("macd", "macd_signal", "obv") if name in case.output["indicators"]]
    return _miscomputed(case, lambda name, value: -value, names)


def _miscomputed(case: Case, wrong: Any, names: list[str] | None = None) -> Mutant | None:
    """Return the output with one indicator off, unless that would make its signal wrong as well."""
    indicators = case.output["indicators"]
    names = sorted(indicators) if names is None else names
    if not names:
        return None
    name = case.rng.choice(names)
    right = indicators[name]
    value = wrong(name, right)
    if value is None or abs(right) < NEAR_ZERO * case.output["current_price"]:
        return None
    value = rounded(value)
    side = side_of(case.output)
    if name == "rsi_14" and ((side > 0 and value > OVERBOUGHT) or (side < 0 and value < OVERSOLD)):
        return None
    if not beyond(value, right, INDICATOR_TOLERANCE):
        return None
    pointer = join("indicators", name)
    changes, broken = carried_along(case.rng, case.output, name, right, value)
    same = tuple(place for place in changes if place.endswith("/value"))
    return case.mutant(pointer, {pointer: value, **changes}, same=same, consequences=broken)


def _overbought_bought(case: Case) -> Mutant | None:
    return _against_rsi(case, "buy")


def _oversold_sold(case: Case) -> Mutant | None:
    return _against_rsi(case, "sell")


def _extreme_chased(case: Case) -> Mutant | None:
    rsi = case.output["indicators"].get("rsi_14", 50.0)
    return _against_rsi(case, "strong_buy" if rsi > 50 else "strong_sell")


def _against_rsi(case: Case, recommendation: str) -> Mutant | None:
    """Take a side that RSI speaks against, with signal and conviction to match."""
    rsi = case.output["indicators"].get("rsi_14")
    if rsi is None or (rsi <= OVERBOUGHT + 0.2 if "buy" in recommendation else rsi >= OVERSOLD - 0.2):
        return None
    changes = {
        "/recommendation": recommendation,
        "/signal": recommendation.removeprefix("strong_"),
        "/confidence": round(case.rng.uniform(0.55, 0.85), 3),
    }
    return case.mutant("/recommendation", changes, same=("/signal", "/indicators/rsi_14"))


def _one_hourly(case: Case) -> Mutant | None:
    return _other_interval(case, ("1h", "4h", "60min"))


def _one_intraday(case: Case) -> Mutant | None:
    return _other_interval(case, ("5min", "15min", "1min"))


def _one_weekly(case: Case) -> Mutant | None:
    return _other_interval(case, ("1wk", "1mo"))


def _other_interval(case: Case, intervals: tuple[str, ...]) -> Mutant | None:
    items = [index for index, _ in evidence_of(case.output, "indicator")]
    if len(items) < 3:
        return None
    index = case.rng.choice(items)
    place = join("evidence", index)
    name = str(case.output["evidence"][index]["id"]).rpartition(":")[2]
    wrong = case.rng.choice(intervals)
    same = (place, join("indicators", name), "/indicators")
    return case.mutant(f"{place}/bar_interval", {f"{place}/bar_interval": wrong}, same=same)


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


_T = "technical"
OPERATORS = (
    *operators(
        "indicator_calculation_error", _T, _by_factor, _digits_swapped, _of_earlier_bar, _over_wrong_window,
        _of_another_symbol, _of_another_column, _out_of_scale, _sign_lost,
    ),
    *operators("wrong_signal_interpretation", _T, _overbought_bought, _oversold_sold, _extreme_chased),
    *operators("timeframe_confusion", _T, _one_hourly, _one_intraday, _one_weekly),
    *operators(
        "support_resistance_hallucination", _T, _support_above, _resistance_below, _support_invented, _resistance_invented
    ),
    *operators("pattern_misidentification", _T, _candle_imagined, _breakout_imagined, _pattern_mirrored),
    *operators("volume_analysis_error", _T, _volume_sign_lost, _volume_overstated, _volume_of_earlier_bar),
    *operators("trend_misclassification", _T, _trend_turned, _trend_turned_throughout, _trend_turned_in_the_text),
)  # fmt: skip
