"""Holds what an output claims in figures and words against its evidence: metrics, indicators, numbers with a unit.

Shared by all agents and run last: a figure that another rule has already found wrong is not reported a second time.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from evaluation.detectors.case import Case, differs, stated_price
from evaluation.detectors.evidence import names_of
from utils.json_pointer import join
from utils.schema import AgentOutput, Evidence

CLAIM_TOLERANCE = 0.01

PRICE_SPAN = 2.0
"""A number within this factor of the price may be another price."""

NEWS_READERS = frozenset(("news", "strategist"))
FILING_READERS = frozenset(("fundamental", "strategist"))
"""What an agent may know beyond its evidence: only what it is there to read."""

_MAPS = {"technical": "indicators", "fundamental": "key_metrics"}
_NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
_UNIT = r"\s?(%|percent\b|per cent\b|percentage points?\b|bps\b|basis points?\b|x\b|times\b|usd\b|dollars?\b|eur\b|euros?\b)"
_SCALE = r"(?:\s?(thousand|million|billion|trillion|bn|mn|[kmb])\b)?"
_QUANTITY = re.compile(rf"[$€£]\s?{_NUMBER}{_SCALE}|(?<![\w.$€£,]){_NUMBER}{_SCALE}{_UNIT}", re.IGNORECASE)
_HINTS = ("%", "$", "€", "£", "percent", "per cent", "bps", "basis", "times", "usd", "dollar", "eur")
_MULTIPLE = re.compile(r"\d\s?x\b")
_ANY_NUMBER = re.compile(_NUMBER)
_SCALES = {
    "thousand": 1e3, "k": 1e3, "million": 1e6, "mn": 1e6, "m": 1e6, "billion": 1e9, "bn": 1e9, "b": 1e9, "trillion": 1e12,
}  # fmt: skip
_TEXTS_READ = 30


def unsupported_claim(case: Case) -> None:
    """Report figures without evidence or against it, and numbers with a unit that match nothing."""
    name = _MAPS.get(case.agent_type)
    if name is not None and not case.broken & {name, "evidence"} and not case.found("missing_data"):
        _figures(case, name, getattr(case.output, name))
    if "reasoning" not in case.broken:
        _numbers(case)


def _figures(case: Case, field: str, figures: Mapping[str, float]) -> None:
    cited = names_of(case.output.evidence)
    # evidence that was found not to exist says what the figure rests on; that has been said once
    unknown = [error.location for error in case.errors if error.category == "hallucination"]
    lost = [item.value for i, item in enumerate(case.output.evidence) if unknown and f"/evidence/{i}/id" in unknown]
    bare = [name for name in figures if name not in cited]
    if len(bare) == len(figures) > 1:
        case.report(
            "unsupported_claim", f"/{field}", f"none of the {field.replace('_', ' ')} has evidence",
            found=", ".join(bare), expected="evidence for each",
        )  # fmt: skip
        return
    for name, value in figures.items():
        item = cited.get(name)
        if item is not None and item.value == value:
            continue
        at = join(field, name)
        if lost and any(isinstance(known, float) and not differs(value, known) for known in lost):
            continue
        if item is None:
            if not case.found_at(at):
                text = f"{name} has no evidence"
                case.report("unsupported_claim", at, text, found=value, expected="evidence for it")
        elif isinstance(item.value, float) and differs(value, item.value, CLAIM_TOLERANCE) and not case.found_at(at):
            _against_evidence(case, at, name, value, item)


def _against_evidence(case: Case, at: str, name: str, value: float, item: Evidence) -> None:
    index = next(i for i, other in enumerate(case.output.evidence) if other is item)
    if case.found_at(f"/evidence/{index}/value") or case.found_at(f"/evidence/{index}/unit"):
        return  # the evidence is what is wrong, and that has been said
    if item.unit in ("%", "percent") and not differs(value, float(item.value) / 100, CLAIM_TOLERANCE):
        return
    text = f"{name} is {value:.6g}, its evidence says {item.value:.6g}"
    case.report("unsupported_claim", at, text, found=value, expected=item.value, corrected=item.value)


def _numbers(case: Case) -> None:
    """Report the numbers with a unit in the reasoning that nothing known bears out."""
    text = case.output.reasoning
    small = text.lower()
    # most texts have no unit in them, and that is seen faster than that no number has one
    if not any(hint in small for hint in _HINTS) and not _MULTIPLE.search(small):
        return
    known: list[float] | None = None
    loose: list[str] = []
    for match in _QUANTITY.finditer(text):
        money, money_scale, plain, scale, unit = match.groups()
        digits = (money or plain).replace(",", "")
        value = float(digits) * _SCALES.get((money_scale or scale or "").lower(), 1.0)
        decimals = len(digits.partition(".")[2])
        # a printed number stands for its rounding interval
        reach = max(CLAIM_TOLERANCE * value, 0.5 * 10.0**-decimals * value / float(digits) if float(digits) else 0.0)
        if known is None:
            known = sorted({abs(number) for number in _known(case)})
        if not any(_near(known, value * share, reach * share + 1e-12) for share in _shares(unit)):
            loose.append(match.group(0).strip())
    if loose:
        case.report(
            "unsupported_claim", "/reasoning", f"{', '.join(loose)} in the reasoning match nothing known within 1 %",
            found=", ".join(loose), expected="numbers that stand in evidence or output",
        )  # fmt: skip


def _shares(unit: str | None) -> tuple[float, ...]:
    """Return by what a number with this unit may have to be multiplied to become the known one."""
    word = (unit or "").lower()
    if word in ("%", "percent", "per cent") or word.startswith("percentage"):
        return (0.01, 1.0)
    return (1e-4, 1.0) if word.startswith(("bps", "basis")) else (1.0,)


def _near(known: list[float], value: float, reach: float) -> bool:
    place = bisect_left(known, value - reach)
    return place < len(known) and known[place] <= value + reach


def _known(case: Case) -> Iterator[float]:
    """Yield every number that the reasoning may cite."""
    outputs: list[Any] = [case.output]
    if case.agent_type == "strategist":
        outputs += [other for other in case.truth.agent_outputs.values() if isinstance(other, AgentOutput)]
    for output in outputs:
        numbers = list(_of(output.__dict__.values()))
        yield from numbers
        fields = output.__dict__
        price = fields.get("entry_target") or fields.get("current_price") or stated_price(output)
        if price and price > 0:
            # distances between prices are said in percent
            near = [number for number in numbers if 1 / PRICE_SPAN <= number / price <= PRICE_SPAN]
            yield from (number / price - 1 for number in near)
            yield from (price / number - 1 for number in near)
        for item in output.evidence[:_TEXTS_READ]:
            if isinstance(item.value, str):
                yield from _of_text(item.value)
        for event in getattr(output, "key_events", ())[:_TEXTS_READ]:
            yield from _of_text(event.headline)
    yield from _of(error.corrected for error in case.errors)
    if case.facts is not None:
        yield from case.facts.citable_numbers(bars=case.agent_type != "news", filings=case.agent_type in FILING_READERS)
        if case.agent_type in NEWS_READERS:
            for article in case.facts.snapshot.news[-_TEXTS_READ:]:
                yield from _of_text(article.text)
        inputs = case.facts.snapshot.inputs
        yield from (inputs.volatility, inputs.trend_strength, inputs.news_impact, inputs.daily_volatility)
    if case.truth.portfolio is not None and case.agent_type == "strategist":
        portfolio = case.truth.portfolio
        yield from (portfolio.equity, portfolio.cash, *portfolio.weights.values())


def _of(values: Iterable[Any]) -> Iterator[float]:
    for value in values:
        if isinstance(value, Evidence):
            value = value.value
        if isinstance(value, dict):
            yield from _of(value.values())
        elif isinstance(value, (tuple, list)):
            yield from _of(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield float(value)


def _of_text(text: str) -> Iterator[float]:
    for digits in _ANY_NUMBER.findall(text):
        yield float(digits.replace(",", ""))
