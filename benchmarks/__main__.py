"""``make bench``: prints every figure with its aim and its floor. Figures of a shared machine: read the ratios."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    daemon_report,
    error_budget,
    gates,
    judges,
    library,
    local_inference,
    taxonomy,
    training,
    workflow,
)

SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "daemon": daemon_report.run,
    "error_budget": error_budget.run,
    "gates": gates.run,
    "judges": judges.run,
    "library": library.run,
    "local": local_inference.run,
    "taxonomy": taxonomy.run,
    "training": training.run,
    "workflow": workflow.run,
}
"""Name of a section to what runs and prints it and returns its figures."""


def main() -> int:
    """Run the sections that are named, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"any of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    library.add_arguments(parser)
    options = parser.parse_args()
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    figures = {name: SECTIONS[name](options) for name in options.sections or SECTIONS}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
