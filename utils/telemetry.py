"""The small object by which lower layers report what happened, without knowing of Prometheus.

`monitoring.metrics_collector.MetricsCollector` is the implementation of the daemon; everything else, notebooks and
tests among it, works with `NullTelemetry`.
"""

from __future__ import annotations

from typing import Protocol


class Telemetry(Protocol):
    """Receives events. Never raises and never blocks: a metric must not change a decision."""

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add `amount` to the counter `name`."""
        ...

    def gauge(self, name: str, value: float | None, **labels: str) -> None:
        """Set the gauge `name`; None (undefined) leaves the series absent or as it was."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put one observation into the histogram `name`."""
        ...


class NullTelemetry:
    """Forgets everything it is told."""

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Forget it."""

    def gauge(self, name: str, value: float | None, **labels: str) -> None:
        """Forget it."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Forget it."""


NO_TELEMETRY = NullTelemetry()
