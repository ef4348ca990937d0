"""How good or bad a short financial text sounds, by a lexicon with negation and intensifiers.

The regime's news input and the news agent ask it, often for the same text on seven days running, hence the cache. It
reads words, not meaning: irony, questions and other companies' news pass it unnoticed.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from data_pipeline.sentiment_lexicon import INTENSIFIERS, NEGATORS, PHRASE_WEIGHTS, WORD_WEIGHTS

NEGATION_WINDOW = 3
"""Words after a negator whose direction is turned."""

NEGATION_FACTOR = -0.74
""""Not good" is less bad than "bad": the scalar that Hutto and Gilbert (ICWSM 2014) measured for VADER."""

SATURATION = 1.0
"""Sum of squared weights at which the score reaches 1/√2 of its range, in units of one strongest word."""

CACHED_TEXTS = 8_192
"""A week's news of a hundred symbols; a text is not asked about again once it is older."""

# a cashtag is one token and never a word: "$ low" is a company; hyphens part words, so that "all-time-high" is a phrase
_TOKEN = re.compile(r"\$ ?[a-z.]+|n't|[a-z]+(?:'[a-z]+)?|\d+|[.;!?]+(?=\s|$)")


def _by_first_word() -> dict[str, list[tuple[tuple[str, ...], float]]]:
    """Return the phrases by their first word, the longest first."""
    found: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for words, weight in sorted(PHRASE_WEIGHTS.items(), key=lambda entry: -len(entry[0])):
        found.setdefault(words[0], []).append((words, weight))
    return found


_PHRASES = _by_first_word()


@lru_cache(maxsize=CACHED_TEXTS)
def score_text(text: str) -> float:
    """Return the sentiment of a text.

    Parameters
    ----------
    text : str
        Plain or tokenised ("do n't", "$ msft"), of any case.

    Returns
    -------
    float
        -1 (bad) to 1 (good); 0 where nothing in it carries a direction.

    Notes
    -----
    score = s / √(s² + α) with s the sum of weights, as in VADER (Hutto and Gilbert, ICWSM 2014), α = `SATURATION`.
    """
    total = 0.0
    for weight in _weights(tokenise(text)):
        total += weight
    return total / math.sqrt(total * total + SATURATION) if total else 0.0


def tokenise(text: str) -> list[str]:
    """Return the lower-case tokens of a text: words, numbers, cashtags, and what ends a sentence."""
    return _TOKEN.findall(text.lower().replace("\u2019", "'"))


def _weights(tokens: list[str]) -> list[float]:
    """Return the signed weight of every word or phrase that has one."""
    weights = []
    negated_until = -1
    index, count = 0, len(tokens)
    while index < count:
        token = tokens[index]
        width = 1
        weight = WORD_WEIGHTS.get(token)
        candidates = _PHRASES.get(token)
        if candidates is not None:
            for words, phrase_weight in candidates:
                if tuple(tokens[index : index + len(words)]) == words:
                    weight, width = phrase_weight, len(words)
                    break
        if weight:
            if index and (factor := INTENSIFIERS.get(tokens[index - 1])) is not None:
                weight *= factor
            weights.append(weight * NEGATION_FACTOR if index <= negated_until else weight)
        elif token in NEGATORS:
            negated_until = index + NEGATION_WINDOW
        elif token[0] in ".;!?":
            negated_until = -1
        index += width
    return weights
