"""What the operators share: drawing the size of an error, comparing figures, finding evidence, rewriting text.

Pure helpers; a rule's threshold is always passed in by the operator that states it.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from evaluation.ground_truth import GroundTruth
from utils.json_pointer import join
from utils.schema import NewsItem

MARGIN = 1.1
"""Least size of a planted error in units of its rule's threshold: nearer, and rounding decides."""

LEAST_LETTERS = 50
"""Shorter reasoning explains nothing."""

_CURT = ("", "Buy the dip.", "Looks good on balance.", "The setup is clear.", "See the figures.", "n/a")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def side_of(output: Mapping[str, Any]) -> int:
    """Return +1 on the buy side, -1 on the sell side, else 0."""
    word = str(output.get("recommendation"))
    return 1 if word.endswith("buy") else -1 if word.endswith("sell") else 0


def opposite(word: str) -> str:
    """Return the recommendation of the other side with the same strength."""
    return word.replace("buy", "x").replace("sell", "buy").replace("x", "sell")


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Return a number between two positive ones, mild ones as likely as gross ones."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def relative_error(wrong: float, right: float) -> float:
    """Return |wrong - right| / |right|, infinite for a right value of 0."""
    return abs(wrong - right) / abs(right) if right else math.inf


def beyond(wrong: float, right: float, tolerance: float) -> bool:
    """Return whether an error exceeds a relative tolerance by the margin."""
    return relative_error(wrong, right) >= tolerance * MARGIN


def rounded(value: float) -> float:
    """Return a figure as agents write it: four decimals from one upwards, six significant digits below."""
    return round(value, 4) if abs(value) >= 1 else float(f"{value:.6g}")


def by_factor(rng: random.Random, value: float, tolerance: float, gross: float = 3.0) -> float:
    """Return a value that is wrong by between the tolerance's margin and the factor `gross`, up or down."""
    error = log_uniform(rng, tolerance * MARGIN * 1.01, gross - 1)
    return rounded(value * (1 + error) if rng.random() < 0.5 else value / (1 + error))


def digits_swapped(rng: random.Random, value: float) -> float | None:
    """Return the value with two neighbouring digits exchanged, None where that changes nothing."""
    text = f"{abs(value):.6g}"
    if "e" in text:
        text = f"{abs(value):.0f}"
    places = [
        (i, j)
        for i, j in zip(range(len(text)), range(1, len(text)), strict=False)
        if text[i].isdigit() and text[j].isdigit() and text[i] != text[j]
    ]
    if not places:
        return None
    first, second = rng.choice(places)
    digits = list(text)
    digits[first], digits[second] = digits[second], digits[first]
    return math.copysign(float("".join(digits)), value)


def evidence_of(output: Mapping[str, Any], *kinds: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield position and item of the evidence, of some kinds alone where any are named."""
    for index, item in enumerate(output.get("evidence") or ()):
        if not kinds or item.get("kind") in kinds:
            yield index, item


def evidence_for(output: Mapping[str, Any], name: str) -> tuple[int, dict[str, Any]] | None:
    """Return position and item of the newest evidence for an indicator or metric: its id ends in the name."""
    found = [(i, e) for i, e in evidence_of(output) if str(e.get("id", "")).rpartition(":")[2] == name]
    return max(found, key=lambda entry: str(entry[1]["event_time"]), default=None)


def written(value: float) -> str:
    """Return a figure as agents write it in prose."""
    return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"


def retold(output: Mapping[str, Any], old: float, new: float) -> dict[str, Any]:
    """Return the change of the reasoning that repeats a wrong figure, none where the text does not name it."""
    text = output.get("reasoning") or ""
    pattern = re.compile(rf"(?<![\d.]){re.escape(written(old))}(?![\d]|\.\d)")
    return {"/reasoning": pattern.sub(written(new), text)} if pattern.search(text) else {}


def carried_along(
    rng: random.Random, output: Mapping[str, Any], name: str, old: float, new: float
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the changes of a wrong figure beside its field, and the categories that they break too.

    Half of the mistakes happen on the way into the field: evidence and text stay right. The other half happen before, and
    evidence and text repeat them; the evidence is then inaccurate as well.
    """
    found = evidence_for(output, name)
    if found is None or rng.random() < 0.5:
        return {}, ("unsupported_claim",)
    changes = {join("evidence", found[0], "value"): new, **retold(output, old, new)}
    return changes, ("data_inaccuracy", "hallucination", "unsupported_claim")


def numbers_in(document: Any) -> Iterator[float]:
    """Yield every number of a document, those in its texts among them."""
    if isinstance(document, bool):
        return
    if isinstance(document, int | float):
        yield float(document)
    elif isinstance(document, str):
        yield from (float(text) for text in _NUMBER.findall(document))
    elif isinstance(document, Mapping):
        for value in document.values():
            yield from numbers_in(value)
    elif isinstance(document, list | tuple):
        for value in document:
            yield from numbers_in(value)


def unlike(rng: random.Random, draw: Callable[[], float], known: Collection[float], tolerance: float) -> float | None:
    """Return a drawn number that is near none of the known ones, nor a hundred times or a hundredth of one."""
    for _ in range(20):
        value = draw()
        scaled = [known_value * scale for known_value in known for scale in (0.01, 1.0, 100.0)]
        if all(beyond(abs(value), abs(other), tolerance) for other in scaled if other):
            return value
    return None


def articles_about(output: Mapping[str, Any], truth: GroundTruth) -> list[NewsItem]:
    """Return the articles about the output's symbol that the facts hold."""
    if truth.snapshot is None:
        return []
    symbol = output["symbol"]
    return [item for item in truth.snapshot.news if not item.tickers or symbol in item.tickers]


def event_of(item: NewsItem) -> dict[str, Any]:
    """Return the event that a news output makes of an article."""
    headline, at = " ".join(item.text.split()), time_text(item.event_time)
    return {"headline": headline, "source": item.source or "wire", "published_at": at, "evidence_id": item.item_id}


def cited_as(item: NewsItem) -> dict[str, Any]:
    """Return the evidence item that cites an article."""
    return {
        "id": item.item_id, "kind": "news", "value": " ".join(item.text.split()), "unit": "text",
        "event_time": time_text(item.event_time), "available_at": time_text(item.available_at), "source": item.source or "wire",
        "bar_interval": None, "sector": None, "tickers": list(item.tickers) or None,
    }  # fmt: skip


def time_text(at: datetime) -> str:
    """Return an instant as outputs write it."""
    return at.isoformat().replace("+00:00", "Z")


def curt_text(rng: random.Random, reasoning: str) -> str:
    """Return a reasoning that is too short: a stock phrase, or the first words of the real one."""
    words, text = reasoning.split(), ""
    letters = rng.randrange(8, int(LEAST_LETTERS / MARGIN))
    for word in words:
        if sum(map(str.isalpha, f"{text} {word}")) > letters:
            break
        text = f"{text} {word}".strip()
    return rng.choice((*_CURT, text, text))
