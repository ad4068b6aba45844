"""Metrics and traces of the locks, for OpenTelemetry and for Prometheus.

Nothing is measured until :func:`instrument` or :func:`prometheus` is called for a module. Lock
calls run no telemetry code: the core records events, and reports them within a second or when
somebody collects the metrics. See :doc:`metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._distlock import ConfiguredDistlockModule, _observe
from ._events import tell_seen
from ._measuring import (
    NameAttribute,
    add,
    already,
    checked,
    dispatches,
    naming,
)
from ._opentelemetry import Meters, Spans
from ._prometheus import Prometheus

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

__all__ = ("flush", "instrument", "prometheus", "uninstrument")

#: By provider; `None` is the global one, whichever that becomes. A meter keeps the instruments that
#: it has created, so we reuse it.
_meters: dict[MeterProvider | None, Meters] = {}
#: By registry.
_collectors: dict[CollectorRegistry, Prometheus] = {}


def instrument(
    conf: ConfiguredDistlockModule,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    name_attribute: NameAttribute = None,
) -> None:
    """Reports to OpenTelemetry, from now on, what happens to the locks of a module.

    A second call only warns, whatever its providers. Modules that share a meter provider
    add up. Units and names follow OpenTelemetry's semantic conventions:
    https://opentelemetry.io/docs/specs/semconv/general/metrics/

    :param conf: the configuration.
    :param tracer_provider: an ``opentelemetry.trace.TracerProvider``; the global one by default.
    :param meter_provider: an ``opentelemetry.metrics.MeterProvider``; the global one by default.
    :param name_attribute: the value of the attribute ``distlock.lock.name``. Either a template
        such as ``'order-{id}'``, or several: the value is the first template that matches the name
        (the template itself, so there are no more values than templates). Or a function from
        :class:`str` to :class:`str` or ``None``. By default, and for names that no template
        matches, the attribute is omitted.
    :raises ImportError: if ``opentelemetry-api`` is not installed; it comes with the extra
        ``opentelemetry``.
    :raises TypeError: if `conf` or `name_attribute` is of another type.
    :raises ValueError: if a template has no field or is malformed.
    """
    checked(conf)
    name_of = naming(name_attribute)
    try:
        from opentelemetry.metrics import get_meter_provider
        from opentelemetry.trace import get_tracer_provider
    except ImportError as error:
        raise ImportError(
            "OpenTelemetry is not installed: pip install 'score.distlock[opentelemetry]'"
        ) from error
    if already(conf, lambda sink: isinstance(sink, Spans), "OpenTelemetry"):
        return
    meters = _meters.get(meter_provider)
    if meters is None:
        meters = _meters[meter_provider] = Meters(meter_provider or get_meter_provider())
    spans = Spans(tracer_provider or get_tracer_provider())
    for sink in (spans, meters):
        add(conf, sink, name_of)


def prometheus(
    conf: ConfiguredDistlockModule,
    registry: CollectorRegistry | None = None,
    name_attribute: NameAttribute = None,
) -> None:
    """Registers a collector with Prometheus for the locks of a module.

    Each registry gets one collector. A second call with the same registry only warns; several
    modules add up. Names follow Prometheus' conventions, with seconds as the unit:
    https://prometheus.io/docs/practices/naming/

    :param conf: the configuration.
    :param registry: a ``prometheus_client.CollectorRegistry``; ``prometheus_client.REGISTRY``
        by default.
    :param name_attribute: the value of the label ``lock``, see :func:`instrument`. By default,
        and for names that no template matches, it is empty, which Prometheus treats as no label.
    :raises ImportError: if ``prometheus-client`` is not installed; it comes with the extra
        ``prometheus``.
    :raises TypeError: if `conf` or `name_attribute` is of another type.
    :raises ValueError: if a template has no field or is malformed; or if the registry already
        has metrics with these names.
    """
    checked(conf)
    name_of = naming(name_attribute)
    try:
        from prometheus_client import REGISTRY
    except ImportError as error:
        raise ImportError(
            "prometheus_client is not installed: pip install 'score.distlock[prometheus]'"
        ) from error
    registry = REGISTRY if registry is None else registry
    if already(conf, lambda sink: sink is _collectors.get(registry), "this registry"):
        return
    sink = _collectors.get(registry)
    if sink is None:
        sink = _collectors[registry] = Prometheus(registry)
    add(conf, sink, name_of)


def uninstrument(conf: ConfiguredDistlockModule) -> None:
    """Undoes :func:`instrument` and :func:`prometheus` for a module.

    Reports what has happened so far. Unregisters a collector if this was its last module.
    Does nothing if the module is not instrumented.

    :param conf: the configuration.
    :raises TypeError: if it is anything else.
    """
    checked(conf)
    dispatch = dispatches.pop(conf, None)
    if dispatch is None:
        return
    _observe(conf, None)
    flush()
    for sink in dispatch.sinks:
        sink.names.pop(conf, None)
        if isinstance(sink, Prometheus) and not sink.names:
            sink.forget()
            _collectors.pop(sink._registry, None)
    dispatch.sinks.clear()


def flush() -> None:
    """Reports what has happened so far, immediately instead of within a second.

    Call it before ``force_flush()`` or ``shutdown()`` of a provider. It is not needed before
    collecting metrics, ending the process, or calling :func:`uninstrument`.
    """
    tell_seen()
