"""Metrics and traces for OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._distlock import __version__
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
    attributes_of,
)

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider, Observation
    from opentelemetry.trace import TracerProvider


class Spans(Sink):
    """The spans of one module."""

    def __init__(self, tracers: TracerProvider) -> None:
        from opentelemetry.trace import Status, StatusCode

        super().__init__()
        self._failure = Status(StatusCode.ERROR)
        self._tracer = tracers.get_tracer("score.distlock", __version__)

    def attempt(self, name: str | None, attempt: Attempt) -> None:
        """Creates a span that has already ended."""
        attributes: dict[str, Any] = {
            **attributes_of(
                name, distlock__acquire__outcome=attempt.outcome, error__type=attempt.error
            ),
            "distlock.acquire.duration": attempt.took,
        }
        if attempt.fence is not None:
            attributes["distlock.fence"] = attempt.fence
        title = "acquire" if name is None else f"acquire {name}"
        begun = attempt.at - int(attempt.took * 1e9)
        span = self._tracer.start_span(title, attributes=attributes, start_time=begun)
        if attempt.error is not None:
            span.set_status(self._failure)
        span.end(attempt.at)


class Meters(Sink):
    """The instruments of one provider."""

    def __init__(self, meters: MeterProvider) -> None:
        super().__init__()
        meter = meters.get_meter("score.distlock", __version__)
        self._acquire = meter.create_histogram(
            "distlock.acquire.duration",
            "s",
            ACQUIRE_TEXT,
            explicit_bucket_boundaries_advisory=ACQUIRE,
        )
        self._hold = meter.create_histogram(
            "distlock.hold.duration",
            "s",
            HOLD_TEXT,
            explicit_bucket_boundaries_advisory=HOLD,
        )
        self._margin = meter.create_histogram(
            "distlock.lease.margin",
            "s",
            MARGIN_TEXT,
            explicit_bucket_boundaries_advisory=MARGIN,
        )
        self._losses = meter.create_counter("distlock.losses", "{hold}", LOSSES_TEXT)
        create = meter.create_observable_up_down_counter
        create(
            "distlock.holds",
            [lambda _: self._observations(self.measured()[0])],
            "{hold}",
            HOLDS_TEXT,
        )
        create(
            "distlock.waiters",
            [lambda _: self._observations(self.measured()[1])],
            "{waiter}",
            WAITERS_TEXT,
        )
        create(
            "distlock.listener.connected",
            [lambda _: self._listeners()],
            "{listener}",
            LISTENER_TEXT,
        )

    @staticmethod
    def _observations(counts: Counts) -> list[Observation]:
        from opentelemetry.metrics import Observation

        return [Observation(count, attributes_of(name)) for name, count in counts.items()]

    def _listeners(self) -> list[Observation]:
        from opentelemetry.metrics import Observation

        listeners = self.measured()[2]
        return [Observation(sum(listeners))] if listeners else []

    def attempt(self, name: str | None, attempt: Attempt) -> None:
        """Counts the attempt by its outcome."""
        attributes = attributes_of(
            name, distlock__acquire__outcome=attempt.outcome, error__type=attempt.error
        )
        self._acquire.record(attempt.took, attributes)

    def extended(self, name: str | None, extended: Extended) -> None:
        """Records how much of the lease was left."""
        self._margin.record(extended.margin, attributes_of(name))

    def ended(self, name: str | None, ended: Ended) -> None:
        """Records how long the hold lasted, and its loss."""
        if ended.lost is not None:
            self._losses.add(1, attributes_of(name, distlock__loss__reason=ended.lost))
        self._margin.record(ended.margin, attributes_of(name))
        self._hold.record(ended.held, attributes_of(name, distlock__hold__outcome=ended.outcome))
