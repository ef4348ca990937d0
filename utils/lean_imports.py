"""Imports a library without the optional integrations that it would pull in by itself.

For libraries that import pandas (75 MB of memory, half a second) only to recognise its types, where ours never pass any.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def import_without(name: str, *absent: str) -> Any:
    """Import module `name` as if the `absent` ones were not installed; what is loaded already stays as it is.

    Call it at import time only: another thread that imports an absent module meanwhile would not find it.
    """
    hidden = [module for module in absent if module not in sys.modules]
    for module in hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        for module in hidden:
            del sys.modules[module]
