"""JSON pointers (RFC 6901): how findings name the place in an output, and how a place is read, set and removed.

Used by the parser, the detectors, the judge that corrects outputs and the fault operators; only `put` changes what it is
given.
"""

from __future__ import annotations

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


def tokens(pointer: str) -> list[str]:
    """Return the unescaped tokens of a pointer; the empty pointer, the whole document, has none.

    Raises
    ------
    ValueError
        If it neither is empty nor begins with a slash.
    """
    if pointer and not pointer.startswith("/"):
        raise ValueError(f"{pointer!r} is no JSON pointer: it must begin with a slash")
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def is_index(token: str) -> bool:
    """Return whether a token is a position in a list."""
    return token.isascii() and token.isdecimal()


def join(*steps: str | int) -> str:
    """Return the pointer of these tokens."""
    return "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in steps)


def get(document: Any, pointer: str) -> Any:
    """Return what stands at a pointer, `ABSENT` where nothing does or where it is none."""
    if pointer and not pointer.startswith("/"):
        return ABSENT
    for part in tokens(pointer):
        if isinstance(document, dict):
            document = document.get(part, ABSENT)
        elif isinstance(document, list) and is_index(part) and int(part) < len(document):
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
    *path, last = tokens(pointer)
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
