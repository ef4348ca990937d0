"""Live progress for the person at the terminal: one line that is rewritten, or a log line now and then without one."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

from utils.logs import logger

if TYPE_CHECKING:
    from monitoring.production_orchestrator import ProductionOrchestrator

_TERMINAL_EVERY_S = 0.5
_LOG_EVERY_S = 15.0
_BAR_WIDTH = 20


class ProgressLine:
    """Shows where a run stands."""

    def __init__(self, orchestrator: ProductionOrchestrator) -> None:
        self._orchestrator = orchestrator
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._drawn = False

    def show(self) -> None:
        """Show the present state if it is time to."""
        now = time.monotonic()
        if now < self._next or self._orchestrator.finished.is_set():
            return
        self._next = now + (_TERMINAL_EVERY_S if self._terminal else _LOG_EVERY_S)
        text = self._text()
        if text is None:
            return
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[K" + text[:width])
            sys.stderr.flush()
            self._drawn = True
        else:
            logger.info("%s", text)

    def clear(self) -> None:
        """Remove the line from the terminal."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False

    def _text(self) -> str | None:
        pipeline = self._orchestrator.pipeline
        if pipeline is None:
            return None
        p = pipeline.progress
        share = p.done / p.total if p.total else None
        bar = "" if share is None else f"[{'#' * int(share * _BAR_WIDTH):.<{_BAR_WIDTH}}] {share:4.0%} "
        at = p.at.date().isoformat() if p.at else "warming up"
        text = f"{bar}{at}  {p.decisions:,} decisions, {p.outcomes:,} outcomes, equity {pipeline.ledger.portfolio.equity:,.0f} USD"
        learning = self._orchestrator.get_component("learning_loop")
        event = learning.progress if learning is not None else None
        if event:
            steps = f" {event['step']}/{event['steps']}" if event.get("steps") else ""
            text += f"  training: {event.get('stage', '')}{steps}"
        return text
