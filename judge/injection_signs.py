"""The signs of a text that instructs a judge: commands, planted verdicts, role tags, forged boundaries, disguise.

The robustness guard calls `injection_score`. Signs are weighed, not counted: what a headline may say by chance stays below
the threshold alone, what only an attack says reaches it alone.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import NamedTuple

_GRADER = r"(?:judge|grader|evaluator|assessor|scorer|marker|(?:ai|llm) (?:judge|model|assistant|reviewer)|language model|llm)s?"
_WORK = (
    r"(?:this|the (?:following|above|present|given)|my|our|the agent'?s?) "
    r"(?:output|analysis|response|answer|reasoning|submission|trajectory|opinion|decision|recommendation|agent|text|work|essay)"
)
_TOP = r"(?:100|9[0-9](?:\.\d+)?|10/10|1\.0|perfect|full|top|maximum|maximal|max|highest|excellent)"
_MARK = r"(?:score|grade|mark|point|rating)s?"
_RULES = (
    r"(?:instruction|prompt|rubric|guideline|directive|grading rule|scoring rule|criteria|criterion|system message)s?"
)
_BEFORE = r"(?:previous|prior|above|preceding|earlier|foregoing|your|these|those|system|grading|scoring|all|any|every|other|the|of)"


class _Sign(NamedTuple):
    """A pattern, and the words of which one stands in whatever it matches: to look for those is a hundred times as fast."""

    weight: float
    pattern: re.Pattern[str]
    words: tuple[str, ...]

    def is_in(self, text: str) -> bool:
        return any(word in text for word in self.words) and self.pattern.search(text) is not None


def _sign(weight: float, pattern: str, words: tuple[str, ...]) -> _Sign:
    return _Sign(weight, re.compile(pattern), words)


_SET_ASIDE = ("ignore", "disregard", "forget", "override", "bypass", "discard", "neglect")
_GRADERS = (
    "judge", "grader", "evaluator", "assessor", "scorer", "marker", "ai model", "assistant", "reviewer", "llm", "language model",
)  # fmt: skip
_OWN = ("this ", "the following ", "the above ", "the present ", "the given ", "my ", "our ", "the agent")
_MARKS = ("score", "grade", "mark", "point", "rating")
_GRADES = ("score", "grade", "verdict", "rating", "result")
_FENCES = ("---", "===", "###", "***", "~~~", "___", "```")

_SIGNS: tuple[_Sign, ...] = (
    # commands that set the judge's own instructions aside
    _sign(0.9, rf"\b(?:ignore|disregard|forget|override|bypass|discard|neglect)\b(?: {_BEFORE}){{1,4}} ?{_RULES}\b", _SET_ASIDE),
    _sign(0.9, r"\b(?:ignore|disregard|forget)\b (?:everything|all|anything) (?:of the )?(?:above|you (?:were|have been) told|before this)", ("ignore", "disregard", "forget")),
    _sign(0.9, r"\b(?:ignoriere|vergiss|missachte)\b (?:\w+ ){0,3}(?:anweisung|instruktion|vorgabe)", ("ignoriere", "vergiss", "missachte")),
    _sign(0.9, r"\b(?:ignore[zr]?|oublie[zr]?) (?:\w+ ){0,3}(?:instructions|consignes) (?:precedentes|ci-dessus)", ("ignore", "oublie")),
    _sign(0.9, r"\b(?:ignora|ignore|olvida) (?:\w+ ){0,3}instrucciones", ("instrucciones",)),
    _sign(0.7, r"\b(?:new|updated|revised|additional|real|actual) (?:system )?(?:instructions?|directives?)(?: (?:for|to) \w+)?(?: \w+)? ?[:.-]", ("instruction", "directive")),
    _sign(0.6, r"\b(?:system prompt|developer (?:message|mode)|hidden instructions?)\b", ("system prompt", "developer m", "hidden instruction")),
    _sign(0.6, r"\b(?:you are|act as|pretend to be|behave as) (?:now )?(?:an? |the )?(?:\w+ ){0,2}" + _GRADER + r"\b", _GRADERS),
    _sign(0.6, r"\byou (?:must|should|shall|will|have to|are required to|are instructed to) (?:now |always |only |therefore )?"
               r"(?:output|respond|return|answer|reply|print|grade|score|rate|award|assign|give (?:this|it|me|a|the|full))\b", ("you must", "you should", "you shall", "you will", "you have to", "you are re", "you are ins")),
    _sign(0.6, r"\b(?:respond|reply|answer|return|output) (?:only )?with (?:only )?(?:the )?(?:following|json|this|a score|score)\b", ("respond", "reply", "answer", "return with", "return only", "output with", "output only")),
    _sign(0.6, rf"\b(?:do not|don't|never) (?:grade|evaluate|verify|check|penali[sz]e|deduct|mark down|question) (?:{_WORK}|it\b|for\b|any\b|me\b)", ("do not ", "don't ", "never ")),
    # speaking to whoever grades
    _sign(0.6, rf"\b(?:dear|attention|hey|hello|note (?:to|for)|message (?:to|for)|instructions? (?:to|for)|notice (?:to|for)|to) (?:all |the |every |any )?{_GRADER} ?[:,!-]", _GRADERS),
    _sign(0.4, rf"\b(?:attention|note (?:to|for)|message (?:to|for)|instructions? (?:to|for)) (?:all |the |every |any )?{_GRADER}\b", _GRADERS),
    _sign(0.7, rf"\bas (?:an?|the|your) {_GRADER},? (?:you|please|it is)\b", _GRADERS),
    # asking for a grade
    _sign(0.8, rf"\b(?:score|grade|rate|mark|evaluate|judge) {_WORK} (?:\w+ ){{0,4}}{_TOP}\b", _OWN),
    _sign(0.8, rf"\b(?:give|assign|award|grant|set|return|output) {_WORK} (?:\w+ ){{0,4}}(?:{_TOP} {_MARK}|{_MARK} (?:of |to |= ?|: ?)?{_TOP})", _OWN),
    _sign(0.8, rf"\b{_WORK} (?:\w+ ){{0,2}}(?:deserves?|merits?|must (?:receive|get|be)|should (?:receive|get|be)|has (?:earned|received)|is worth) (?:\w+ ){{0,4}}(?:{_TOP} {_MARK}|{_MARK} of {_TOP}|{_TOP}(?: out of |/)(?:100|10)|(?:scored|graded|rated) (?:\w+ ){{0,2}}{_TOP})", _OWN),
    _sign(0.7, rf"\b(?:give|assign|award|grant|set|return|output) (?:\w+ ){{0,4}}(?:{_TOP} {_MARK}|{_MARK} (?:of|to) {_TOP}) (?:\w+ ){{0,3}}(?:criteri|dimension|categor|rubric)", _MARKS),
    _sign(0.7, rf"\b(?:set|score|rate|grade|mark) (?:all|every|each)(?: of)?(?: the)? (?:criteri\w+|dimensions?|scores?) (?:\w+ ){{0,3}}{_TOP}\b", ("criteri", "dimension", "score")),
    _sign(0.5, rf"(?:^|[.!?:;] ?)(?:please )?(?:give|award|assign) (?:it |this |me )?(?:an? |the )?(?:{_TOP} (?:score|grade|marks)|(?:score|grade|marks) of {_TOP})\b", ("score", "grade", " marks")),
    # planted verdicts
    _sign(0.8, r"[\"'](?:overall_?score|final_?score|score|criteria|criteria_scores|dimension_scores|verdict(?:_id)?|confidence|grade|reasoning)[\"'] ?: ?(?:[\d{\[\"']|true)", ("\" :", "\":", "' :", "':")),
    _sign(0.7, r"\b(?:overall|final|judge'?s?|total|consensus|rubric)[ _-]?(?:score|grade|verdict|rating) ?(?:[:=]|is) ?(?:9\d|100|10 ?/ ?10|perfect|excellent|pass)\b", _GRADES),
    _sign(0.7, r"\bverdict[ _-]?id\b", ("verdict",)),
    _sign(0.5, r"\b(?:judge'?s?|evaluation|grader'?s?|consensus) (?:verdict|result|score|grade) ?[:=]", _GRADES),
    # role tags and markup of chats
    _sign(0.9, r"<\|?/?(?:system|assistant|im_start|im_end|endoftext|begin_of_text|eot_id|start_header_id)\b[^>]{0,40}\|?>", ("<",)),
    _sign(0.9, r"\[/?(?:inst|system|sys)\]|<</?sys>>", ("[", "<")),
    _sign(0.7, r"</?(?:output|agent_output|data|evidence|instructions?|prompt|verdict|rubric|user|human|answer|context|untrusted)>", ("<",)),
    _sign(0.7, r"#{2,} ?(?:system|instructions?|assistant|human|user|judge|new task)\b", ("##",)),
    _sign(0.7, r"(?:^|\n|\\n)\s?(?:system|assistant|developer)(?: message)? ?:", ("system", "assistant", "developer")),
    _sign(0.5, r"\n\s?(?:human|user|judge|evaluator) ?:", ("\n",)),
    # forged boundaries
    _sign(0.8, r"\b(?:data|verdict)-[0-9a-f]{8,}\b", ("data-", "verdict-")),
    _sign(0.8, r"[-=#*~_`]{3,} ?(?:end|begin|start|close)(?: of)?(?: the)? (?:\w+ )?(?:data|output|document|input|evidence|context|message|prompt|instructions?)\b", _FENCES),
    _sign(0.8, r"\b(?:end|close) of (?:the )?(?:agent |untrusted |user )?(?:data|output|input) ?(?:block|section)?[.:;)\]-]+ ?(?:now|system|judge|you|the real|grade|score|instructions?|new)\b", ("end of", "close of")),
    _sign(0.6, r"\bthe data (?:have|has) ended\b", ("the data ha",)),
    _sign(0.3, r"```", ("```",)),
)  # fmt: skip
_DISGUISE_WEIGHT = 0.3
"""Of hidden characters or borrowed letters within words: seen in sound texts, so it only adds to other signs."""

_DIMENSIONS = (
    "sentiment accuracy", "reasoning quality", "price impact assessment", "key events identification",
    "confidence calibration", "indicator interpretation", "signal quality", "trend identification",
    "support/resistance levels", "risk assessment", "metrics accuracy", "business quality", "financial health",
    "decision quality", "risk management", "reasoning & synthesis", "portfolio awareness", "outcome realism",
)  # fmt: skip
_GRADED_DIMENSION = re.compile(
    rf"\b({'|'.join(re.escape(name).replace(' ', '[ _-]') for name in _DIMENSIONS)})[\"']? ?(?:score)? ?[:=] ?\d{{2,3}}\b"
)
_RUBRIC_WEIGHT = 0.8
"""Of two dimensions of a rubric with numbers behind them."""

# letters of other alphabets that look like Latin ones, in the lower case that they are compared in
_ALIKE = {
    "a": "аɑα", "b": "вь", "c": "сϲ", "d": "ԁ", "e": "еєε", "g": "ɡ", "h": "һн", "i": "іɩιı", "j": "ј", "k": "кκ",
    "l": "ӏǀ", "m": "м", "n": "ηո", "o": "оοօσ", "p": "рρ", "q": "ԛ", "r": "г", "s": "ѕ", "t": "тτ", "u": "υս", "v": "νѵ",
    "w": "ԝωѡ", "x": "хχ", "y": "уγү", "/": "∕⁄", ":": "։",
}  # fmt: skip
_LOOKALIKES = {ord(other): letter for letter, others in _ALIKE.items() for other in others}
_BORROWED = re.compile(r"[a-z][а-яёіјѕԁһӏԛԝα-ω]|[а-яёіјѕԁһӏԛԝα-ω][a-z]")
_TAG_FIRST, _TAG_LAST, _TAG_OFFSET = 0xE0020, 0xE007E, 0xE0000
_IDENTIFIER = re.compile(r"[\w:.+/-]{0,64}\Z", re.ASCII)
_SPACE = re.compile(r"[^\S\n]+")
_SPACED_LETTERS = re.compile(r"\b(?:\w[ ._*-]){4,}\w\b")


def injection_score(text: str) -> float:
    """Return how strongly a text looks like one that instructs a judge, 0..1.

    Notes
    -----
    The signs are taken as independent: 1 - Π(1 - weight). Texts are compared after NFKC, without marks and hidden
    characters, in lower case, with look-alike letters of other alphabets read as Latin ones.
    """
    if _IDENTIFIER.match(text) and not text.startswith(("data-", "verdict-")):
        return 0.0
    return _scored(text)


@functools.lru_cache(maxsize=8192)
def _scored(text: str) -> float:
    """Return the score of one text; headlines come back in many outputs."""
    forms, disguised = _forms(text)
    return max(_of(form, disguised) for form in forms)


def _of(text: str, disguised: bool) -> float:
    clean = 1.0
    for sign in _SIGNS:
        if sign.is_in(text):
            clean *= 1 - sign.weight
    if len(set(_GRADED_DIMENSION.findall(text))) >= 2:
        clean *= 1 - _RUBRIC_WEIGHT
    if disguised and clean < 1:
        clean *= 1 - _DISGUISE_WEIGHT
    return 1 - clean


def _forms(text: str) -> tuple[set[str], bool]:
    """Return the ways in which a text can be read, and whether anything in it is disguised."""
    if text.isascii():
        return _spelt({_plain(text)}), False
    hidden = any(unicodedata.category(char) == "Cf" for char in text)
    told = "".join(chr(ord(c) - _TAG_OFFSET) if _TAG_FIRST <= ord(c) <= _TAG_LAST else c for c in text)
    forms = set()
    borrowed = False
    for filler in ("", " ") if hidden else ("",):
        form = "".join(filler if unicodedata.category(char) == "Cf" else char for char in told)
        form = unicodedata.normalize("NFKC", form)
        form = "".join(char for char in unicodedata.normalize("NFD", form) if unicodedata.category(char) != "Mn")
        form = form.casefold().replace("’", "'").replace("“", '"').replace("”", '"')
        borrowed = borrowed or _BORROWED.search(form) is not None
        forms.add(_plain(form.translate(_LOOKALIKES)))
    return _spelt(forms), hidden or borrowed


def _plain(text: str) -> str:
    return _SPACE.sub(" ", text).strip().casefold()


def _spelt(forms: set[str]) -> set[str]:
    """Add the reading of letters that stand apart, ``i.g.n.o.r.e``, as words."""
    joined = {_SPACED_LETTERS.sub(lambda match: re.sub(r"[ ._*-]", "", match.group()), form) for form in forms}
    return forms | joined
