"""Templated news sentences whose tone the project's lexicon reads, each worded once: a repeated text is one opinion only.

The generator asks for every article. The words carry a direction and nothing else; the company is named by its cashtag.
"""

from __future__ import annotations

_GOOD = (
    "{0} reports strong growth in {1}, and the outlook improves",
    "analysts upgrade {0} on robust demand in {1}",
    "{0} beats expectations in {1} and gains ground",
    "{0} wins a lucrative contract in {1}",
    "profits at {0} climb as {1} keeps expanding",
    "{0} raises guidance after a record season in {1}",
)
_BAD = (
    "{0} reports weak results in {1}, and the outlook worsens after losses",
    "analysts downgrade {0} on declining sales in {1}",
    "{0} misses expectations in {1} and loses ground",
    "{0} faces a lawsuit over failures in {1}",
    "losses at {0} widen as {1} keeps shrinking and struggling",
    "{0} cuts guidance after a disappointing season in {1}",
)
_FIELDS = (
    "its home region", "the northern division", "its overseas business", "the service unit", "the components unit",
    "its online channel", "the licensing arm", "the logistics unit",
)  # fmt: skip

TONES = {1: _GOOD, -1: _BAD}
"""The templates by tone; {0} is the company, {1} the part of it."""


def sentence(symbol: str, tone: int, choice: float, session: int, place: int) -> str:
    """Return an article's text.

    Parameters
    ----------
    symbol : str
    tone : {1, -1}
    choice : float
        0..1, a uniform draw that picks the wording.
    session, place : int
        Of the article, for a reference that no other text of the symbol has.
    """
    templates = TONES[tone]
    template, field = divmod(int(choice * len(templates) * len(_FIELDS)), len(_FIELDS))
    text = templates[template].format(f"${symbol}", _FIELDS[field])
    return f"{text[0].upper()}{text[1:]} (ref {session}-{place})."
