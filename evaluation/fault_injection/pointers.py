"""What differs between two outputs, and which places lie within one another, as JSON pointers.

Used by the fault operators' tests and the harness.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from utils.json_pointer import ABSENT, join


def differing(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """Yield the pointers at which two documents differ: of a value, a missing or an added place the shallowest one.

    Lists of different lengths differ as a whole.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from differing(before.get(key, ABSENT), after.get(key, ABSENT), at + join(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differing(old, new, at + join(index))
    elif before is not after and (type(before) is not type(after) or before != after):
        yield at


def overlap(some: Iterable[str], others: Iterable[str]) -> bool:
    """Return whether any place of one set lies at, above or below one of the other."""
    others = [other + "/" for other in others]
    return any((one + "/").startswith(other) or other.startswith(one + "/") for one in some for other in others)
