"""JSON pointers (RFC 6901) into outputs: reading, setting and removing a place, and what differs between two outputs.

Used by the fault operators and the harness; never changes what it was given but in `put`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "ABSENT"

    def __deepcopy__(self, memo: Any) -> _Absent:
        return self

    def __copy__(self) -> _Absent:
        return self


ABSENT: Final = _Absent()
"""Stands for a place that is not there; as a value to put, it removes the place."""


def parts(pointer: str) -> list[str]:
    """Return the unescaped tokens of a pointer; the empty pointer, the whole document, has none."""
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def join(*tokens: str | int) -> str:
    """Return the pointer of these tokens."""
    return "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens)


def get(document: Any, pointer: str) -> Any:
    """Return what stands at a pointer, `ABSENT` where nothing does."""
    for part in parts(pointer):
        if isinstance(document, dict):
            document = document.get(part, ABSENT)
        elif isinstance(document, list) and part.isdigit() and int(part) < len(document):
            document = document[int(part)]
        else:
            return ABSENT
    return document


def put(document: Any, pointer: str, value: Any) -> None:
    """Set a place, in place; `ABSENT` removes it, an index at the end of a list or the token ``-`` appends.

    Raises
    ------
    KeyError
        If the place's parent is no container.
    """
    *path, last = parts(pointer)
    parent = get(document, join(*path))
    if isinstance(parent, dict):
        if value is ABSENT:
            parent.pop(last, None)
        else:
            parent[last] = value
    elif isinstance(parent, list):
        index = len(parent) if last == "-" else int(last)
        if value is ABSENT:
            del parent[index : index + 1]
        elif index == len(parent):
            parent.append(value)
        else:
            parent[index] = value
    else:
        raise KeyError(pointer)


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
