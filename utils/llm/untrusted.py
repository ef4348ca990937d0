"""Untrusted text on its way into a prompt: nothing hidden in it, its length capped visibly, between boundaries nobody can guess.

Policies and judges write their questions with it. What it changes of a text it shows: escapes and cuts stay readable.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata

TOKEN_CHARS = 24
_HIDDEN_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories that a reader does not see: controls, formats (bidi, zero width, tags), private use, unassigned."""

# letters and marks by category, yet drawn as nothing: joiners, fillers and variation selectors
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_PLAIN_ASCII = re.compile(r"[ -~]*\Z")


def replay_key(random_state: int) -> bytes:
    """Return the key that a replay derives its tokens from, so that equal requests have equal bytes; live runs take a random one."""
    return hashlib.sha256(f"boundaries of untrusted text|{random_state}".encode()).digest()


def visible(text: str) -> str:
    r"""Return a text with every character that a reader does not see as its JSON escape ``\uXXXX``, line ends included."""
    if _PLAIN_ASCII.match(text):
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _HIDDEN_CATEGORIES or _UNSEEN.match(c) else c for c in text)


def capped(text: str, longest: int) -> str:
    """Return a text that is cut, with a mark that says by how much, where it is longer than `longest` characters."""
    return text if len(text) <= longest else f"{text[:longest]} [cut: {len(text) - longest} more characters]"


def token(key: bytes, purpose: str, content: str) -> str:
    """Return a mark that whoever wrote `content` could not know: HMAC-SHA256 of purpose and content under a secret key.

    A text that quotes the mark of an earlier question has changed its own thereby.
    """
    message = f"{purpose}\0{content}".encode("utf-8", "backslashreplace")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:TOKEN_CHARS]


def _escape(char: str) -> str:
    code = ord(char)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
