"""The command that gives stored trajectories the embeddings they lack: ``python -m data_pipeline.backfill``.

For after a change of the embedder, an import, or an outage. May run beside the daemon and be stopped at any time: what
was stored is not done again. Shows one line of progress, never a traceback for a wrong flag or a database that is away.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time

from data_pipeline.embedder_factory import build_embedder
from data_pipeline.library.backfill import BackfillProgress
from data_pipeline.library_access import add_options, config_of, open_library
from utils.errors import ComponentStartError, ConfigError, LibraryUnavailable
from utils.logs import complain, configure_logging
from utils.patience import patiently

_TERMINAL_EVERY_S = 0.5
_LINE_EVERY_S = 10.0


class ProgressText:
    """Writes where a back-fill stands to standard error: one line that is rewritten, or a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._latest: BackfillProgress | None = None

    def __call__(self, progress: BackfillProgress) -> None:
        """Show the progress if it is time to."""
        self._latest = progress
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (_TERMINAL_EVERY_S if self._terminal else _LINE_EVERY_S)
            self._write(progress)

    def end(self) -> None:
        """Show the last state and end the line."""
        if self._latest is not None:
            self._write(self._latest)
        if self._terminal:
            sys.stderr.write("\n")

    def _write(self, progress: BackfillProgress) -> None:
        sys.stderr.write(f"\r\x1b[K{line(progress)}" if self._terminal else line(progress) + "\n")
        sys.stderr.flush()


def line(progress: BackfillProgress) -> str:
    """Return the progress in words."""
    share = progress.done / progress.total if progress.total else 1.0
    text = f"{progress.done:,} of {progress.total:,} embedded ({share:.0%}), {progress.rows_per_s:,.1f} a second"
    left = progress.total - progress.done
    if left and progress.done:
        text += f", about {left / progress.rows_per_s / 60:.1f} min left"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 done or stopped, 2 wrong setting, 3 database not to be reached."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.backfill", description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--model", metavar="NAME", help="hashing, minilm or a folder; default: as configured")
    parser.add_argument("--batch", metavar="N", type=int, help="states embedded and stored together")
    options = parser.parse_args(arguments)
    configure_logging()
    try:
        return _run(options)
    except ConfigError as error:
        return complain(error, 2)
    except (ComponentStartError, LibraryUnavailable) as error:
        return complain(error, 3)


def _run(options: argparse.Namespace) -> int:
    config = config_of(options)
    chosen = {name: getattr(options, name) for name in ("model", "batch") if getattr(options, name) is not None}
    settings = config.embeddings.replaced(**chosen)
    library = open_library(config, embedder=build_embedder(settings))
    stop = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    progress = ProgressText()

    def work() -> None:
        library.backfill_embeddings(settings.batch, progress, all_runs=True, stop=stop.is_set)

    try:
        patiently("the back-fill", work, stop, library.revive)
    finally:
        progress.end()
        signal.signal(signal.SIGINT, previous)
        library.close()
    sys.stdout.write(f"{library.embedder.model}: {'stopped; a new start goes on' if stop.is_set() else 'complete'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
