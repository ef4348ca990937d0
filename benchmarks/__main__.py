"""``make bench``: prints every figure with its aim and its floor. Figures of a shared machine: read the ratios.

``python -m benchmarks [section ...]`` runs some sections alone; by default all of them run.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import daemon_report, taxonomy

SECTIONS = {"daemon": daemon_report.report, "taxonomy": taxonomy.report}


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen sections."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("sections", nargs="*", metavar="section", help=f"any of {', '.join(SECTIONS)}; default all")
    chosen = parser.parse_args(arguments).sections
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    for name in chosen or SECTIONS:
        SECTIONS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
