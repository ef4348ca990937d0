"""A process of its own with three fake vendors that judge and decide: started by the sections, told to end by a closed pipe.

The model's name says how long an answer takes: ``uniform`` .2 to 1.5 s, ``realistic`` log-normal with median .4 s, ``fixed``
.2 s, ``none``.
Delays follow from the question, so that whoever asks can compute them. A process apart, so that servers do not take the
interpreter from those that are measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNIFORM_S = (0.2, 1.5)
MEDIAN_S, SIGMA = 0.4, 0.7
"""Of the realistic latencies, a tenth of what hosted models take."""

FIXED_S = 0.2
VENDORS = ("anthropic", "openai", "gemini")
_TESTS = Path(__file__).resolve().parent.parent / "tests"


def delay_s(vendor: str, model: str, user: str) -> float:
    """Return the seconds before a vendor answers a question."""
    rng = random.Random(hashlib.sha256(f"{vendor}\0{user}".encode()).digest())
    if model.endswith("uniform"):
        return rng.uniform(*UNIFORM_S)
    if model.endswith("fixed"):
        return FIXED_S
    return MEDIAN_S * math.exp(SIGMA * rng.gauss(0, 1)) if model.endswith("realistic") else 0.0


def verdict(system: str, schema: dict[str, Any], user: str) -> dict[str, Any]:
    """Return a valid verdict with grades that follow from the question."""
    rng = random.Random(user)
    found = re.search(r"Verdict id: (\S+)", system)
    criteria = schema["properties"]["criteria"]["properties"]
    return {
        "verdict_id": found.group(1) if found else "",
        "reasoning": "Grounded in its evidence, with a fitting conviction.",
        "criteria": {name: round(rng.uniform(65, 90), 1) for name in criteria},
        "confidence": round(rng.uniform(0.5, 0.9), 2),
        "strengths": ["Cites figures"],
        "weaknesses": [],
        "suggestions": [],
    }


def _answer(question: Any, opinion: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Return a verdict to a judge's question and a sound opinion to an agent's."""
    schema = dict(question.schema or {})
    properties = schema.get("properties", {})
    if "verdict_id" in properties:
        return verdict(question.system, schema, question.user)
    marks = {"sentiment_score": "news", "trend": "technical", "financial_health": "fundamental"}
    return opinion(next((name for mark, name in marks.items() if mark in properties), "strategist"), question.user)


def main() -> None:
    """Serve until standard input ends; the first line of output holds the addresses as JSON."""
    sys.path.insert(0, str(_TESTS))
    from fakes.vendors import FakeAnthropic, FakeGemini, FakeOpenAI, answering
    from hosted_questions import opinion

    made = {}
    for name, kind in zip(VENDORS, (FakeAnthropic, FakeOpenAI, FakeGemini), strict=True):
        made[name] = kind(
            answering(lambda question: _answer(question, opinion)),
            latency_s=lambda question, name=name: delay_s(name, question.model, question.user),
        )
    print(json.dumps({name: vendor.url for name, vendor in made.items()}), flush=True)
    sys.stdin.read()
    for vendor in made.values():
        vendor.close()


if __name__ == "__main__":
    main()
