"""Metrics and traces of the locks, for OpenTelemetry and for Prometheus.

Nothing is measured before :func:`instrument` or :func:`prometheus` is called for a module. No
call of the locks runs code for it: what happens is noted, and told within a second or when
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

#: By their providers; `None` is the global one, whichever that becomes. What a meter has created
#: stays there, so it is used again.
_meters: dict[MeterProvider | None, Meters] = {}
#: By their registries.
_collectors: dict[CollectorRegistry, Prometheus] = {}


def instrument(
    conf: ConfiguredDistlockModule,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    name_attribute: NameAttribute = None,
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

    What has happened until now is told. A collector whose last module this was is unregistered.
    It does nothing if the module is not instrumented.

    :param conf: the configured module.
    :raises TypeError: if it is something else.
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
    """Tells what has happened until now, at once instead of within a second.

    Call it before ``force_flush()`` or ``shutdown()`` of a provider. Whoever collects metrics,
    ends the process, or calls :func:`uninstrument` need not.
    """
    tell_seen()
