"""A collector for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._errors import REASONS
from ._measuring import (
    ACQUIRE,
    ACQUIRE_TEXT,
    HOLD,
    HOLD_TEXT,
    HOLDS_TEXT,
    LISTENER_TEXT,
    LOSSES_TEXT,
    MARGIN,
    MARGIN_TEXT,
    WAITERS_TEXT,
    Attempt,
    Counts,
    Ended,
    Extended,
    Sink,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


class Prometheus(Sink):
    """A collector, for one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Histogram

        super().__init__()
        self._registry = registry

        def histogram(what: str, text: str, labels: list[str], buckets: Any) -> Histogram:
            name = f"distlock_{what}_seconds"
            return Histogram(name, text, labels, registry=None, buckets=buckets)

        self._acquire = histogram("acquire_duration", ACQUIRE_TEXT, ["outcome", "lock"], ACQUIRE)
        self._hold = histogram("hold_duration", HOLD_TEXT, ["outcome", "lock"], HOLD)
        self._margin = histogram("lease_margin", MARGIN_TEXT, ["lock"], MARGIN)
        self._losses = Counter("distlock_losses", LOSSES_TEXT, ("reason", "lock"), registry=None)
        for reason in REASONS:
            # Otherwise increase() would miss a first loss that creates the series.
            self._losses.labels(reason, "")
        registry.register(self)

    def forget(self) -> None:
        """Unregisters the collector."""
        self._registry.unregister(self)

    def describe(self) -> Iterator[Metric]:
        """The families, for the registry."""
        return self._families({}, {}, [])

    def collect(self) -> Iterator[Metric]:
        """The families with their samples, for the registry."""
        return self._families(*self.measured())

    def _families(
        self,
        holds: Counts,
        waiters: Counts,
        listeners: list[bool],
    ) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        for metric in (self._acquire, self._hold, self._margin, self._losses):
            yield from metric.collect()
        for name, text, counts in (
            ("distlock_holds", HOLDS_TEXT, holds),
            ("distlock_waiters", WAITERS_TEXT, waiters),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["lock"])
            for lock, count in counts.items():
                gauge.add_metric([lock or ""], count)
            yield gauge
        gauge = GaugeMetricFamily("distlock_listener_connected", LISTENER_TEXT)
        if listeners:
            gauge.add_metric([], sum(listeners))
        yield gauge

    def attempt(self, name: str | None, attempt: Attempt) -> None:
        """Counts the attempt by its outcome."""
        self._acquire.labels(attempt.outcome, name or "").observe(attempt.took)

    def extended(self, name: str | None, extended: Extended) -> None:
        """Records how much of the lease was left."""
        self._margin.labels(name or "").observe(extended.margin)

    def ended(self, name: str | None, ended: Ended) -> None:
        """Records how long the hold lasted, and its loss."""
        if ended.lost is not None:
            self._losses.labels(ended.lost, name or "").inc()
        self._margin.labels(name or "").observe(ended.margin)
        self._hold.labels(ended.outcome, name or "").observe(ended.held)
