"""What the checks of the local judge have in common: the output read once, and checks that hold for every agent.

`Facts` is made once for an output; a check takes it and returns how well the output does, 0..1, or None where it does
not apply. Nothing here knows an outcome.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from evaluation.error_taxonomy import ErrorInstance
from utils.schema import AgentOutput, direction

NUMBER_TOLERANCE = 0.01
SIZABLE_WORDS = 12
"""Distinct words that a specific explanation has at least."""
LONG_WORDS = 250
"""Words beyond which an explanation of one symbol on one day begins to pad."""
SMALL_COUNT = 10
"""Whole numbers up to this are counts or windows in words; they are not held against the evidence."""

_WORD = re.compile(r"[a-z][a-z'&-]*[a-z]")
_WINDOWS = frozenset((12.0, 14.0, 20.0, 26.0, 30.0, 50.0, 60.0, 90.0, 100.0, 200.0, 252.0, 365.0))
"""Usual look-backs: a number that names a window is no claim about the market."""

Check = Callable[["Facts"], float | None]


class Rule(NamedTuple):
    """A check, how much it counts within its dimension, and what is said where it fails."""

    check: Check
    weight: float
    failure: str


class Facts:
    """An output with what can be read from it.

    Attributes
    ----------
    output : AgentOutput
        Of the agent whose checks are run.
    side : int
        +1 buy side, -1 sell side, 0 hold.
    context : mapping
        As `JudgeRequest.known` gives it.
    words : list of str
        The words of the reasoning, lower case, in order.
    named : dict of str to float
        Numeric evidence by id, by the last part of its id, and by kind where only one item has it.
    texts : list of str
        Texts among the evidence.
    cited : tuple of two ints
        How many numbers of the reasoning match something known, and how many there are.
    """

    __slots__ = ("_reported", "cited", "context", "named", "output", "side", "texts", "words")

    def __init__(self, output: Any, context: Mapping[str, Any], errors: Iterable[ErrorInstance] = ()) -> None:
        self.output = output
        self.side = direction(output.recommendation)
        self.context = context
        self.words, numbers = _tokens(output.reasoning)
        self.named, self.texts = _evidence(output)
        self.cited = _cited(numbers, self)
        self._reported = frozenset((str(error.category), error.location) for error in errors)

    def reports(self, category: str, location: str | None = None) -> bool:
        """Return whether an error of a category was found, at a place; what it costs is not charged a second time."""
        if location is not None:
            return (category, location) in self._reported
        return any(found == category for found, _ in self._reported)


def _tokens(text: str) -> tuple[list[str], list[str]]:
    """Return the words of a text, and what begins with a digit; single characters are neither."""
    words: list[str] = []
    numbers: list[str] = []
    for raw in text.lower().split():
        token = raw.strip(_PUNCTUATION)
        if len(token) > 1:
            if token[0].isalpha():
                words.append(token)
            elif token[0].isdigit() and token.isascii():
                numbers.append(token)
    return words, numbers


def _evidence(output: AgentOutput) -> tuple[dict[str, float], list[str]]:
    named: dict[str, float] = {}
    texts: list[str] = []
    kinds: dict[str, float | None] = {}
    for item in output.evidence:
        value = item.value
        if isinstance(value, str):
            texts.append(value)
            continue
        named[item.id] = value
        _, colon, tail = item.id.rpartition(":")
        if colon:
            named.setdefault(tail, value)
        kinds[item.kind] = None if item.kind in kinds else value
    for kind, only in kinds.items():
        if only is not None:
            named.setdefault(kind, only)
    return named, texts


def _magnitudes(facts: Facts) -> list[float]:
    """Return every number that the reasoning may cite, by size."""
    values = {abs(value) for value in facts.named.values()}
    for name, value in facts.output.__dict__.items():
        if isinstance(value, float):
            values.add(abs(value))
        elif name in _NUMERIC_MAPS:
            values.update(map(abs, value.values()))
        elif name in _NUMERIC_LISTS:
            values.update(value)
    values.add(float(len(facts.output.evidence)))
    for other in (facts.context.get("agent_outputs") or {}).values():
        values.add(other.confidence)
    return sorted(values)


def _cited(tokens: list[str], facts: Facts) -> tuple[int, int]:
    """Count the numbers among the tokens, and those that match something known, as they are or as percent."""
    known: list[float] = []
    matched = total = 0
    for token in tokens:
        digits = token.replace(",", "")
        whole, _, decimals = digits.partition(".")
        if not (whole + decimals).isdigit():
            continue
        value = float(digits)
        if not decimals and (value <= SMALL_COUNT or value in _WINDOWS or 1990 <= value <= 2100):
            continue
        total += 1
        # a printed number stands for its rounding interval; one digit alone stands for too much
        rounding = 0.5 * 10.0 ** -len(decimals) if len((whole + decimals).lstrip("0")) > 1 else 0.0
        reach = max(NUMBER_TOLERANCE * value, rounding) + 1e-12
        known = known or _magnitudes(facts)
        matched += _near(known, value, reach) or _near(known, value / 100, reach / 100)
    return matched, total


def _near(known: list[float], value: float, reach: float) -> bool:
    place = bisect_left(known, value - reach)
    return place < len(known) and known[place] <= value + reach


_PUNCTUATION = ".,;:!?()[]{}<>\"'`%$+-=~*/|"
_NUMERIC_MAPS = frozenset(("indicators", "key_metrics", "signals"))
_NUMERIC_LISTS = frozenset(("support_levels", "resistance_levels"))


def ramp(value: float, worst: float, best: float) -> float:
    """Return 0 at `worst`, 1 at `best`, linear between; either may be the larger."""
    return max(0.0, min(1.0, (value - worst) / (best - worst)))


def sign(value: float, dead: float = 0.0) -> int:
    """Return -1, 0 or 1; 0 within the dead band."""
    return (value > dead) - (value < -dead)


def substance(facts: Facts) -> float:
    """Enough distinct words, counted once however often they stand there."""
    return ramp(len(set(facts.words)), 3, SIZABLE_WORDS)


def no_padding(facts: Facts) -> float:
    """No repetition and no flood of words; a text of nothing has nothing to its credit."""
    count = len(facts.words)
    if count == 0:
        return 0.0
    # vocabulary grows more slowly than a text (Heaps' law), so long texts may repeat words more
    expected = 0.75 if count <= 40 else 0.75 * (count / 40) ** -0.35
    variety = ramp(len(set(facts.words)) / count, 0.5 * expected, expected)
    return variety * ramp(count, 2 * LONG_WORDS, LONG_WORDS)


def numbers_match(facts: Facts) -> float | None:
    """Share of the numbers in the reasoning that match evidence or output within 1 %."""
    matched, total = facts.cited
    return matched / total if total and not facts.reports("unsupported_claim", "/reasoning") else None


def cites_something(facts: Facts) -> float:
    """At least two figures that match, or as many telling words from the texts in evidence."""
    matched, _ = facts.cited
    if matched < 2 and facts.texts:
        known = {word for text in facts.texts[:_TEXTS_READ] for word in _WORD.findall(text.lower()) if len(word) > 4}
        matched += len(known.intersection(facts.words)) // 2
    return min(1.0, matched / 2)


_TEXTS_READ = 20


def calibration(confidence: float, breadth: float, agreement: float) -> float:
    """Return how well a conviction fits its evidence.

    Parameters
    ----------
    confidence : float
        0..1, as stated.
    breadth : float
        Number of independent pieces of evidence.
    agreement : float
        0..1: 1 where all of them say what the output says.

    Notes
    -----
    What can be borne grows from .45 without evidence to .95 with many that agree, by the square root of their number as
    a standard error shrinks. Conviction above it costs more than below: overstating is what sizes positions wrongly.
    """
    borne = 0.45 + 0.5 * agreement * (1 - 1 / (1 + breadth) ** 0.5)
    excess = confidence - borne
    return ramp(excess, 0.45, 0.10) if excess > 0 else ramp(-excess, 0.80, 0.35)


def calibrated_by_signals(facts: Facts, votes: list[float]) -> float:
    """Return the calibration of the stated confidence against votes of -1..1."""
    breadth = max(len(votes), len(facts.output.evidence) / 2)
    if not votes:
        return calibration(facts.output.confidence, 0.0, 0.0)
    mean = sum(votes) / len(votes)
    agreement = max(0.0, facts.side * mean) if facts.side else 1 - abs(mean)
    # votes are seldom at their extremes: half strength on average already is broad agreement
    return calibration(facts.output.confidence, breadth, min(1.0, 2 * agreement) if facts.side else agreement)


def reasoning_rules(scale: float = 1.0) -> tuple[Rule, ...]:
    """Return the rules for the text of an explanation, weighing `scale` together."""
    return (
        Rule(substance, 0.30 * scale, "the reasoning has too few distinct words"),
        Rule(no_padding, 0.20 * scale, "the reasoning repeats itself or is padded"),
        Rule(cites_something, 0.25 * scale, "the reasoning cites nothing from its evidence"),
        Rule(numbers_match, 0.25 * scale, "numbers in the reasoning match no evidence within 1 %"),
    )
