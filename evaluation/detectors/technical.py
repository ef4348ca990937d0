"""What a technical agent's output can get wrong about the chart: indicators, levels, patterns, volume, trend, RSI.

Figures are recomputed from the bars known at the decision by the functions that agents use.
"""

from __future__ import annotations

from collections import Counter

from data_pipeline.chart import BREAKDOWN, BREAKOUT, PATTERNS
from data_pipeline.indicators import UNITS, WINDOWS
from data_pipeline.rounding import clip, figure, price_figure
from evaluation.detectors.asof_facts import LEVEL_TOLERANCE
from evaluation.detectors.case import TOLERANCE, Case, differs
from utils.json_pointer import join
from utils.schema import direction

INDICATOR_TOLERANCE = 0.05
BOUNDED = ("rsi_14", "stoch_k", "stoch_d", "mfi_14", "adx_14")
OVERBOUGHT, OVERSOLD = 70.0, 30.0
CLEAR_TREND = 0.6
QUIET, BUSY = 0.8, 1.2
"""Volume over its 20-bar mean below and above which a session was quiet or busy."""

DAILY = "1d"

_ROUNDING = 2e-6
_KNOWN_PATTERNS = frozenset(name for name, _, _ in PATTERNS) | {BREAKOUT, BREAKDOWN}
_TREND = {"uptrend": 1, "downtrend": -1, "sideways": 0}


def current_price(case: Case) -> None:
    """Report a current price that is not the newest close: every level is measured from it."""
    stated, right = case.output.current_price, case.facts.price if case.facts else None
    if stated is not None and right is not None and differs(stated, right, TOLERANCE):
        text = f"the newest close is {right:.6g}, not {stated:.6g}"
        case.report("data_inaccuracy", "/current_price", text, found=stated, expected=right, corrected=right)


def indicator_misuse(case: Case) -> None:
    """Report indicators that do not exist, or that the bars are too few for."""
    count = len(case.facts.snapshot.bars) if case.facts else None
    for name in case.output.indicators:
        if name not in UNITS:
            text = f"{name} is no indicator that is known here"
            case.report("indicator_misuse", join("indicators", name), text, found=name, expected="a known indicator")
        elif count is not None and count < WINDOWS[name]:
            case.report(
                "indicator_misuse", f"/indicators/{name}", f"{name} needs {WINDOWS[name]} bars, {count} are known",
                found=count, expected=f"{WINDOWS[name]} bars",
            )  # fmt: skip
    if count is None:
        case.skip("indicator_misuse", "the number of bars is unknown; names were checked")


def indicator_calculation_error(case: Case) -> None:
    """Report oscillators out of their range and indicators that recomputation does not bear out."""
    facts, given = case.facts, case.truth.indicators
    recomputed = (facts.indicators or {}) if facts else {}
    if not recomputed and not given:
        case.skip("indicator_calculation_error", "no bars to recompute indicators from; ranges were checked")
    price = facts.price if facts and facts.price else 0.0
    floor = 1e-6 * price + _ROUNDING
    for name, value in case.output.indicators.items():
        right = given.get(name, recomputed.get(name))
        if value == right:
            continue
        if name in BOUNDED and not 0 <= value <= 100:
            case.report(
                "indicator_calculation_error", f"/indicators/{name}", f"{name} {value:.6g} lies outside 0..100",
                found=value, expected=right if right is not None else "0..100", corrected=right,
            )  # fmt: skip
        elif right is not None and differs(value, right, INDICATOR_TOLERANCE, floor):
            case.report(
                "indicator_calculation_error", join("indicators", name),
                f"{name} recomputes to {right:.6g}, not {value:.6g}", found=value, expected=right, corrected=right,
            )  # fmt: skip


def wrong_signal_interpretation(case: Case) -> None:
    """Report buying the overbought and selling the oversold, by the RSI that the bars have."""
    rsi = case.truth.indicators.get("rsi_14")
    if rsi is None and case.facts and case.facts.indicators:
        rsi = case.facts.indicators.get("rsi_14")
    if rsi is None:
        rsi = case.output.indicators.get("rsi_14")
    if rsi is None:
        case.skip("wrong_signal_interpretation", "no RSI is known")
        return
    forbidden = 1 if rsi > OVERBOUGHT else -1 if rsi < OVERSOLD else 0
    if not forbidden:
        return
    signal = direction(case.output.signal) if "signal" not in case.broken else 0
    for field, side in (("recommendation", case.side), ("signal", signal)):
        # a recommendation against its own signal is a contradiction, not a misread RSI
        if side == forbidden and field not in case.broken and not (field == "recommendation" and signal == -side):
            stated = getattr(case.output, field)
            text = f"{stated} at an RSI of {rsi:.4g}"
            case.report(
                "wrong_signal_interpretation",
                f"/{field}",
                text,
                found=stated,
                expected="hold",
                corrected="hold",
                rsi=rsi,
            )
            return


def timeframe_confusion(case: Case) -> None:
    """Report indicators whose bars are of another interval than those of the others."""
    stated = [(i, item.bar_interval) for i, item in enumerate(case.output.evidence) if item.bar_interval]
    counts = Counter(interval for _, interval in stated)
    if len(counts) < 2:
        return
    usual = max(counts, key=lambda interval: (counts[interval], interval == DAILY))
    if case.facts and case.facts.price and DAILY in counts:
        usual = DAILY  # the bars that are known are daily ones
    for i, interval in stated:
        if interval != usual:
            text = f"bars of {interval} among bars of {usual}"
            case.report(
                "timeframe_confusion",
                f"/evidence/{i}/bar_interval",
                text,
                found=interval,
                expected=usual,
                corrected=usual,
            )


def support_resistance_hallucination(case: Case) -> None:
    """Report levels on the wrong side of the price or where no bar has turned."""
    facts = case.facts
    price = facts.price if facts and facts.price else case.output.current_price
    if "current_price" in case.broken and not (facts and facts.price):
        price = None
    if facts is None or facts.price is None:
        case.skip("support_resistance_hallucination", "no bars to find extremes in; sides were checked")
    for field, side in (("support_levels", -1), ("resistance_levels", 1)):
        if field in case.broken:
            continue
        for i, level in enumerate(getattr(case.output, field)):
            nearest = facts.nearest_extreme(level) if facts else None
            right = price_figure(nearest) if nearest is not None else None
            word = field.partition("_")[0]
            if price is not None and side * (level - price) < -_ROUNDING * price:
                text = f"the {word} {level:.6g} lies {'above' if side < 0 else 'below'} the price {price:.6g}"
                expected = f"at {'most' if side < 0 else 'least'} {price:.6g}"
                case.report("support_resistance_hallucination", f"/{field}/{i}", text, found=level, expected=expected)
            elif right is not None and differs(right, level, LEVEL_TOLERANCE):
                case.report(
                    "support_resistance_hallucination", f"/{field}/{i}",
                    f"no bar turned within 1 % of {level:.6g}, the nearest at {right:.6g}", found=level, expected=right,
                    corrected=right if price is None or side * (right - price) >= 0 else None,
                )  # fmt: skip


def pattern_misidentification(case: Case) -> None:
    """Report named patterns that their detectors do not find at the newest bar."""
    found = case.facts.patterns if case.facts else None
    if found is None:
        if case.output.patterns:
            case.skip("pattern_misidentification", "too few bars to look for patterns")
        return
    for i, name in enumerate(case.output.patterns):
        plain = "_".join(name.lower().replace("-", " ").replace("_", " ").split())
        if plain not in _KNOWN_PATTERNS:
            case.skip("pattern_misidentification", f"there is no detector for {name}")
        elif plain not in found:
            seen = ", ".join(sorted(found)) or "none"
            case.report(
                "pattern_misidentification", f"/patterns/{i}", f"{plain} is not at the newest bar (found: {seen})",
                found=name, expected=f"patterns at the newest bar: {seen}",
            )  # fmt: skip


def volume_analysis_error(case: Case) -> None:
    """Report a volume signal that says busy of a quiet session, or quiet of a busy one."""
    ratio = case.facts.participation if case.facts else None
    for name, vote in case.output.signals.items():
        if "volume" not in name.lower():
            continue
        if ratio is None:
            case.skip("volume_analysis_error", "the 20-bar volume is unknown")
        elif (vote > 0 and ratio < QUIET) or (vote < 0 and ratio > BUSY):
            right = figure(clip((ratio - 1) / 2))
            text = f"the volume signal is {vote:.4g} at {ratio:.4g} times the usual volume"
            case.report(
                "volume_analysis_error", join("signals", name), text, found=vote, expected=right, corrected=right,
                ratio=ratio,
            )  # fmt: skip


def trend_misclassification(case: Case) -> None:
    """Report a trend against a clear trend strength."""
    if case.facts is None or "trend_strength" in case.facts.snapshot.inputs.flags:
        case.skip("trend_misclassification", "the trend strength is unknown")
        return
    strength, stated = case.facts.snapshot.inputs.trend_strength, case.output.trend
    if abs(strength) > CLEAR_TREND and _TREND[stated] * strength < 0:
        right = "uptrend" if strength > 0 else "downtrend"
        text = f"a {stated} at a trend strength of {strength:.3g}"
        case.report(
            "trend_misclassification", "/trend", text, found=stated, expected=right, corrected=right, strength=strength
        )
