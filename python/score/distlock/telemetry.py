"""Metrics and traces of the locks, for OpenTelemetry and for Prometheus.

Nothing is measured before :func:`instrument` or :func:`prometheus` is called for a module. No
call of the locks runs code for it: what happens is noted, and told within a second or when
somebody collects the metrics. See :doc:`metrics`.
"""

from __future__ import annotations

import atexit
import logging
import re
import string
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ._distlock import ConfiguredDistlockModule, __version__, _measured, _observe
from ._events import tell_seen

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider, Observation
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

__all__ = ("flush", "instrument", "prometheus", "uninstrument")

_logger = logging.getLogger("score.distlock")

_NameAttribute = str | Iterable[str] | Callable[[str], str | None] | None
_Name = Callable[[str], str | None]
_Counts = dict[str | None, int]

#: The boundaries of the buckets, in seconds.
_ACQUIRE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_HOLD = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600)
_MARGIN = (0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 300, 1800)
#: What the metrics are, for people.
_ACQUIRE_TEXT = "How long attempts to acquire a lock took."
_HOLD_TEXT = "How long holds lasted."
_MARGIN_TEXT = "What was left of the lease when a hold was extended or ended."
_LOSSES_TEXT = "Holds that were lost."
_HOLDS_TEXT = "Holds that this process has now."
_WAITERS_TEXT = "Threads and coroutines of this process that wait for a lock."
_LISTENER_TEXT = "Whether the connection that wakes waiters works; nothing while nobody waits."


def _matching(template: str) -> Callable[[str], bool]:
    """Whether a name is one that the template could have made."""
    if not isinstance(template, str):
        raise TypeError(f"name_attribute: {type(template).__name__} is no template")
    parts = list(string.Formatter().parse(template))
    if all(field is None for _, field, _, _ in parts):
        raise ValueError(
            f"name_attribute: {template!r} has no field; write 'order-{{id}}' for instance"
        )
    pattern = "".join(
        re.escape(text) + ("" if field is None else ".+?") for text, field, _, _ in parts
    )
    compiled = re.compile(pattern, re.DOTALL)
    return lambda name: compiled.fullmatch(name) is not None


def _naming(asked: _NameAttribute) -> _Name:
    """What is told of a name."""
    if asked is None:
        return lambda name: None
    if callable(asked):
        return asked
    if not isinstance(asked, (str, Iterable)) or isinstance(asked, bytes):
        raise TypeError(
            "name_attribute must be a template such as 'order-{id}', several of them, a function "
            f"or None, not {type(asked).__name__}"
        )
    templates = [asked] if isinstance(asked, str) else list(asked)
    matching = [(template, _matching(template)) for template in templates]

    def name_of(name: str) -> str | None:
        return next((template for template, matches in matching if matches(name)), None)

    return name_of


class _Attempt(NamedTuple):
    """An attempt to acquire has ended, at a time in nanoseconds since 1970."""

    outcome: str
    took: float
    fence: int | None
    error: str | None
    at: int


class _Extended(NamedTuple):
    """A hold was extended when so much was left of its lease."""

    margin: float


class _Ended(NamedTuple):
    """A hold has ended, when so much was left of its lease; why it was lost, if it was."""

    held: float
    margin: float
    lost: str | None

    @property
    def outcome(self) -> str:
        """How."""
        return "released" if self.lost is None else "lost"


#: By what the core calls them, which is also the method of a sink.
_EVENTS: dict[str, type[_Attempt | _Extended | _Ended]] = {
    "attempt": _Attempt,
    "extended": _Extended,
    "ended": _Ended,
}


class _Sink:
    """Whoever measures: one for each provider or registry, for any number of modules."""

    def __init__(self) -> None:
        self.names: weakref.WeakKeyDictionary[ConfiguredDistlockModule, _Name] = (
            weakref.WeakKeyDictionary()
        )
        # What was there once is told as 0 when it is gone.
        self._known: tuple[set[str | None], set[str | None]] = (set(), set())

    def attempt(self, name: str | None, attempt: _Attempt) -> None:
        """An attempt to acquire has ended."""

    def extended(self, name: str | None, extended: _Extended) -> None:
        """A hold was extended."""

    def ended(self, name: str | None, ended: _Ended) -> None:
        """A hold has ended."""

    def measured(self) -> tuple[_Counts, _Counts, list[bool]]:
        """The holds and the waiters by what is told of their names, and the listeners."""
        tell_seen()
        holds, waiters = (dict.fromkeys(known, 0) for known in self._known)
        listeners = []
        for conf, name_of in list(self.names.items()):
            names, waiting, listening = _measured(conf)
            for name in names:
                told = _told(name_of, name)
                holds[told] = holds.get(told, 0) + 1
            for name, count in waiting:
                told = _told(name_of, name)
                waiters[told] = waiters.get(told, 0) + count
            if listening is not None:
                listeners.append(listening)
        for known, counts in zip(self._known, (holds, waiters), strict=True):
            known.update(counts)
        return holds, waiters, listeners


_failed: set[str] = set()


def _failure(what: str) -> None:
    """Logs an exception of somebody else's code, once for each kind of code."""
    if what not in _failed:
        _failed.add(what)
        _logger.exception("%s failed; the locks are not concerned, and it is not told again", what)


def _told(name_of: _Name, name: str) -> str | None:
    try:
        told = name_of(name)
        return told if told is None else str(told)
    except Exception:
        _failure("the function name_attribute")
        return None


class _Dispatch:
    """What the core tells of one module. It must not keep that alive."""

    def __init__(self) -> None:
        self.sinks: dict[_Sink, _Name] = {}

    def __call__(self, kind: str, name: str, *arguments: Any) -> None:
        event = _EVENTS[kind](*arguments)
        for sink, name_of in list(self.sinks.items()):
            try:
                getattr(sink, kind)(_told(name_of, name), event)
            except Exception:
                _failure(f"what measures ({type(sink).__name__.strip('_').lower()})")


_dispatches: weakref.WeakKeyDictionary[ConfiguredDistlockModule, _Dispatch] = (
    weakref.WeakKeyDictionary()
)


def _add(conf: ConfiguredDistlockModule, sink: _Sink, name_of: _Name) -> None:
    dispatch = _dispatches.get(conf)
    if dispatch is None:
        dispatch = _dispatches[conf] = _Dispatch()
        _observe(conf, dispatch)
    dispatch.sinks[sink] = name_of
    sink.names[conf] = name_of
    # Before those of the providers, which are there already.
    atexit.unregister(flush)
    atexit.register(flush)


def _already(conf: ConfiguredDistlockModule, of: Callable[[_Sink], bool], what: str) -> bool:
    dispatch = _dispatches.get(conf)
    already = dispatch is not None and any(of(sink) for sink in dispatch.sinks)
    if already:
        _logger.warning("this module is instrumented already, for %s", what)
    return already


def _checked(conf: object) -> None:
    if not isinstance(conf, ConfiguredDistlockModule):
        raise TypeError(f"conf must be a ConfiguredDistlockModule, not {type(conf).__name__}")


def _attributes(name: str | None, **more: str | None) -> dict[str, str]:
    """OpenTelemetry's attributes, with two underscores for a dot."""
    told = {key.replace("__", "."): value for key, value in more.items() if value is not None}
    return told if name is None else {**told, "distlock.lock.name": name}


class _Spans(_Sink):
    """The spans of one module."""

    def __init__(self, tracers: TracerProvider) -> None:
        from opentelemetry.trace import Status, StatusCode

        super().__init__()
        self._failure = Status(StatusCode.ERROR)
        self._tracer = tracers.get_tracer("score.distlock", __version__)

    def attempt(self, name: str | None, attempt: _Attempt) -> None:
        """A span that has ended."""
        attributes: dict[str, Any] = {
            **_attributes(
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


class _Meters(_Sink):
    """The instruments of one provider."""

    def __init__(self, meters: MeterProvider) -> None:
        super().__init__()
        meter = meters.get_meter("score.distlock", __version__)
        self._acquire = meter.create_histogram(
            "distlock.acquire.duration",
            "s",
            _ACQUIRE_TEXT,
            explicit_bucket_boundaries_advisory=_ACQUIRE,
        )
        self._hold = meter.create_histogram(
            "distlock.hold.duration",
            "s",
            _HOLD_TEXT,
            explicit_bucket_boundaries_advisory=_HOLD,
        )
        self._margin = meter.create_histogram(
            "distlock.lease.margin",
            "s",
            _MARGIN_TEXT,
            explicit_bucket_boundaries_advisory=_MARGIN,
        )
        self._losses = meter.create_counter("distlock.losses", "{hold}", _LOSSES_TEXT)
        create = meter.create_observable_up_down_counter
        create(
            "distlock.holds",
            [lambda _: self._observations(self.measured()[0])],
            "{hold}",
            _HOLDS_TEXT,
        )
        create(
            "distlock.waiters",
            [lambda _: self._observations(self.measured()[1])],
            "{waiter}",
            _WAITERS_TEXT,
        )
        create(
            "distlock.listener.connected",
            [lambda _: self._listeners()],
            "{listener}",
            _LISTENER_TEXT,
        )

    @staticmethod
    def _observations(counts: _Counts) -> list[Observation]:
        from opentelemetry.metrics import Observation

        return [Observation(count, _attributes(name)) for name, count in counts.items()]

    def _listeners(self) -> list[Observation]:
        from opentelemetry.metrics import Observation

        listeners = self.measured()[2]
        return [Observation(sum(listeners))] if listeners else []

    def attempt(self, name: str | None, attempt: _Attempt) -> None:
        """Counts it by its outcome."""
        attributes = _attributes(
            name, distlock__acquire__outcome=attempt.outcome, error__type=attempt.error
        )
        self._acquire.record(attempt.took, attributes)

    def extended(self, name: str | None, extended: _Extended) -> None:
        """Records what was left."""
        self._margin.record(extended.margin, _attributes(name))

    def ended(self, name: str | None, ended: _Ended) -> None:
        """Records how long it lasted, and the loss."""
        if ended.lost is not None:
            self._losses.add(1, _attributes(name, distlock__loss__reason=ended.lost))
        self._margin.record(ended.margin, _attributes(name))
        self._hold.record(ended.held, _attributes(name, distlock__hold__outcome=ended.outcome))


class _Prometheus(_Sink):
    """A collector, for one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Histogram

        super().__init__()
        self._registry = registry
        self._acquire = Histogram(
            "distlock_acquire_duration_seconds",
            _ACQUIRE_TEXT,
            ("outcome", "lock"),
            registry=None,
            buckets=_ACQUIRE,
        )
        self._hold = Histogram(
            "distlock_hold_duration_seconds",
            _HOLD_TEXT,
            ("outcome", "lock"),
            registry=None,
            buckets=_HOLD,
        )
        self._margin = Histogram(
            "distlock_lease_margin_seconds",
            _MARGIN_TEXT,
            ("lock",),
            registry=None,
            buckets=_MARGIN,
        )
        self._losses = Counter("distlock_losses", _LOSSES_TEXT, ("reason", "lock"), registry=None)
        registry.register(self)

    def forget(self) -> None:
        """Unregisters it."""
        self._registry.unregister(self)

    def describe(self) -> Iterator[Metric]:
        """The families, for the registry."""
        return self._families({}, {}, [])

    def collect(self) -> Iterator[Metric]:
        """The families with their samples, for the registry."""
        return self._families(*self.measured())

    def _families(
        self,
        holds: _Counts,
        waiters: _Counts,
        listeners: list[bool],
    ) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        for metric in (self._acquire, self._hold, self._margin, self._losses):
            yield from metric.collect()
        for name, text, counts in (
            ("distlock_holds", _HOLDS_TEXT, holds),
            (
                "distlock_waiters",
                _WAITERS_TEXT,
                waiters,
            ),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["lock"])
            for lock, count in counts.items():
                gauge.add_metric([lock or ""], count)
            yield gauge
        gauge = GaugeMetricFamily(
            "distlock_listener_connected",
            _LISTENER_TEXT,
        )
        if listeners:
            gauge.add_metric([], sum(listeners))
        yield gauge

    def attempt(self, name: str | None, attempt: _Attempt) -> None:
        """Counts it by its outcome."""
        self._acquire.labels(attempt.outcome, name or "").observe(attempt.took)

    def extended(self, name: str | None, extended: _Extended) -> None:
        """Records what was left."""
        self._margin.labels(name or "").observe(extended.margin)

    def ended(self, name: str | None, ended: _Ended) -> None:
        """Records how long it lasted, and the loss."""
        if ended.lost is not None:
            self._losses.labels(ended.lost, name or "").inc()
        self._margin.labels(name or "").observe(ended.margin)
        self._hold.labels(ended.outcome, name or "").observe(ended.held)


#: By their providers; `None` is the global one, whichever that becomes. What a meter has created
#: stays there, so it is used again.
_meters: dict[MeterProvider | None, _Meters] = {}
#: By their registries.
_prometheus: dict[CollectorRegistry, _Prometheus] = {}


def instrument(
    conf: ConfiguredDistlockModule,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    name_attribute: _NameAttribute = None,
) -> None:
    """Tells OpenTelemetry what happens to the locks of a module, from now on.

    A second call does nothing but warn, whatever its providers. Several modules with the same
    meter provider add up. Units and names follow OpenTelemetry's semantic conventions:
    https://opentelemetry.io/docs/specs/semconv/general/metrics/

    :param conf: the configured module.
    :param tracer_provider: an ``opentelemetry.trace.TracerProvider``; the global one by default.
    :param meter_provider: an ``opentelemetry.metrics.MeterProvider``; the global one by default.
    :param name_attribute: what the attribute ``distlock.lock.name`` is to be. A template such as
        ``'order-{id}'``, or several: the first one that fits the name, itself, so that there are
        no more values than templates. Or a function from :class:`str` to :class:`str` or
        ``None``. By default, and where no template fits, there is no such attribute.
    :raises ImportError: if ``opentelemetry-api`` is not there; it comes with the extra
        ``opentelemetry``.
    :raises TypeError: if `conf` or `name_attribute` is something else.
    :raises ValueError: if a template has no field, or is none.
    """
    _checked(conf)
    name_of = _naming(name_attribute)
    try:
        from opentelemetry.metrics import get_meter_provider
        from opentelemetry.trace import get_tracer_provider
    except ImportError as error:
        raise ImportError(
            "OpenTelemetry is not installed: pip install 'score.distlock[opentelemetry]'"
        ) from error
    if _already(conf, lambda sink: isinstance(sink, _Spans), "OpenTelemetry"):
        return
    meters = _meters.get(meter_provider)
    if meters is None:
        meters = _meters[meter_provider] = _Meters(meter_provider or get_meter_provider())
    spans = _Spans(tracer_provider or get_tracer_provider())
    for sink in (spans, meters):
        _add(conf, sink, name_of)


def prometheus(
    conf: ConfiguredDistlockModule,
    registry: CollectorRegistry | None = None,
    name_attribute: _NameAttribute = None,
) -> None:
    """Registers a collector with Prometheus for the locks of a module.

    There is one collector for each registry. A second call with the same registry does nothing
    but warn; several modules add up. Names follow Prometheus' conventions, in seconds:
    https://prometheus.io/docs/practices/naming/

    :param conf: the configured module.
    :param registry: a ``prometheus_client.CollectorRegistry``; ``prometheus_client.REGISTRY``
        by default.
    :param name_attribute: what the label ``lock`` is to be, see :func:`instrument`. By default,
        and where no template fits, it is empty, which to Prometheus is no label.
    :raises ImportError: if ``prometheus-client`` is not there; it comes with the extra
        ``prometheus``.
    :raises TypeError: if `conf` or `name_attribute` is something else.
    :raises ValueError: if a template has no field, or is none; or if the registry has metrics
        of these names already.
    """
    _checked(conf)
    name_of = _naming(name_attribute)
    try:
        from prometheus_client import REGISTRY
    except ImportError as error:
        raise ImportError(
            "prometheus_client is not installed: pip install 'score.distlock[prometheus]'"
        ) from error
    registry = REGISTRY if registry is None else registry
    if _already(conf, lambda sink: sink is _prometheus.get(registry), "this registry"):
        return
    sink = _prometheus.get(registry)
    if sink is None:
        sink = _prometheus[registry] = _Prometheus(registry)
    _add(conf, sink, name_of)


def uninstrument(conf: ConfiguredDistlockModule) -> None:
    """Undoes :func:`instrument` and :func:`prometheus` for a module.

    What has happened until now is told. A collector whose last module this was is unregistered.
    It does nothing if the module is not instrumented.

    :param conf: the configured module.
    :raises TypeError: if it is something else.
    """
    _checked(conf)
    dispatch = _dispatches.pop(conf, None)
    if dispatch is None:
        return
    _observe(conf, None)
    flush()
    for sink in dispatch.sinks:
        sink.names.pop(conf, None)
        if isinstance(sink, _Prometheus) and not sink.names:
            sink.forget()
            _prometheus.pop(sink._registry, None)
    dispatch.sinks.clear()


def flush() -> None:
    """Tells what has happened until now, at once instead of within a second.

    Call it before ``force_flush()`` or ``shutdown()`` of a provider. Whoever collects metrics,
    ends the process, or calls :func:`uninstrument` need not.
    """
    tell_seen()
