"""Everything is measured once, and telemetry breaks no lock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry, generate_latest

import score.distlock
from score.distlock import (
    CouldNotAcquireLock,
    DatabaseUnavailable,
    LockExpired,
    _measuring,
    _prometheus,
    telemetry,
)

from .conftest import PROJECT, python
from .support.line import outlive, until, wait_until_waiting
from .support.proxy import Proxy

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
Attributes = tuple[tuple[str, Any], ...]

ACQUIRE = "distlock.acquire.duration"
HOLD = "distlock.hold.duration"
HOLDS = "distlock.holds"
LOSSES = "distlock.losses"
MARGIN = "distlock.lease.margin"
WAITERS = "distlock.waiters"
LISTENER = "distlock.listener.connected"


class Seen:
    """What the exporters receive."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))

    def instrument(self, conf: Conf, **options: Any) -> None:
        telemetry.instrument(
            conf, tracer_provider=self.tracers, meter_provider=self.meters, **options
        )

    def metrics(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        scopes = (
            [scope for one in data.resource_metrics for scope in one.scope_metrics] if data else []
        )
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name: str) -> dict[Attributes, float]:
        """Counts or sums, by attributes."""
        metric = self.metrics().get(name)
        points = metric.data.data_points if metric else ()
        found: dict[Attributes, float] = {}
        for point in points:
            value = point.count if hasattr(point, "count") else point.value
            found[tuple(sorted(point.attributes.items()))] = value
        return found

    def outcomes(self) -> dict[str, float]:
        """The number of attempts, by outcome."""
        found: dict[str, float] = {}
        for attributes, count in self.points(ACQUIRE).items():
            outcome = dict(attributes)["distlock.acquire.outcome"]
            found[outcome] = found.get(outcome, 0) + count
        return found

    def ended(self) -> dict[str, float]:
        """The number of holds, by how they ended."""
        return {
            dict(attributes)["distlock.hold.outcome"]: count
            for attributes, count in self.points(HOLD).items()
        }

    def lost(self) -> dict[str, float]:
        return {
            dict(attributes)["distlock.loss.reason"]: count
            for attributes, count in self.points(LOSSES).items()
        }

    def holds(self) -> float:
        return sum(self.points(HOLDS).values())

    def spans(self) -> tuple[ReadableSpan, ...]:
        telemetry.flush()
        return self._exporter.get_finished_spans()


@pytest.fixture
def seen(conf: Conf) -> Iterator[Seen]:
    seen = Seen()
    seen.instrument(conf)
    yield seen
    telemetry.uninstrument(conf)


def blocks(conf: Conf) -> None:
    with conf.get("name"):
        pass


def calls(conf: Conf) -> None:
    lock = conf.get("name")
    lock.acquire()
    lock.release()


def attempts(conf: Conf) -> None:
    lock = conf.get("name")
    assert lock.try_acquiring()
    lock.release()


def tokens(conf: Conf) -> None:
    conf.release("name", conf.acquire("name"))


def token_attempts(conf: Conf) -> None:
    conf.release("name", conf.try_acquiring("name"))


def holds(conf: Conf) -> None:
    with conf.get("name").hold(timeout=1, autoextend=True, note="note"):
        pass


def several(conf: Conf) -> None:
    with conf.acquire_all(["name"], timeout=1):
        pass


def functions(conf: Conf) -> None:
    conf.locked("name")(lambda: None)()


def transferred(conf: Conf) -> None:
    conf.release("name", conf.transfer("name", conf.acquire("name")))


def raising(conf: Conf) -> None:
    with contextlib.suppress(ZeroDivisionError), conf.get("name"):
        raise ZeroDivisionError


async def aio_blocks(conf: Conf) -> None:
    async with conf.aio.get("name"):
        pass


async def aio_calls(conf: Conf) -> None:
    lock = conf.aio.get("name")
    await lock.acquire()
    await lock.release()


async def aio_tokens(conf: Conf) -> None:
    await conf.aio.release("name", await conf.aio.acquire("name"))


async def aio_holds(conf: Conf) -> None:
    async with conf.aio.get("name").hold(timeout=1, autoextend=True):
        pass


async def aio_several(conf: Conf) -> None:
    async with conf.aio.acquire_all(["name"], timeout=1):
        pass


async def aio_functions(conf: Conf) -> None:
    async def work() -> None: ...

    await conf.locked("name")(work)()


SYNC = [blocks, calls, attempts, tokens, token_attempts, holds, several, functions]
SYNC += [transferred, raising]
ASYNC = [aio_blocks, aio_calls, aio_tokens, aio_holds, aio_several, aio_functions]


@pytest.mark.parametrize("way", [*SYNC, *ASYNC], ids=lambda way: way.__name__)
def test_each_way_to_take_a_lock_is_counted_once(conf: Conf, seen: Seen, way: Any) -> None:
    for count in (1, 2):
        if way in ASYNC:
            asyncio.run(way(conf))
        else:
            way(conf)
        assert seen.outcomes() == {"acquired": count}
        assert seen.ended() == {"released": count}
        assert seen.holds() == 0
        assert seen.lost() == {}
        assert len(seen.spans()) == count


def test_a_hold_is_there_until_it_ends(conf: Conf, seen: Seen) -> None:
    assert seen.points(HOLDS) == {}
    with conf.get("one"):
        token = conf.acquire("two")
        assert seen.points(HOLDS) == {(): 2}
        with conf.get("one"):  # re-entering is not another hold
            assert seen.points(HOLDS) == {(): 2}
        assert seen.points(HOLDS) == {(): 2}
        assert seen.outcomes() == {"acquired": 2, "reentered": 1}
    assert seen.points(HOLDS) == {(): 1}
    conf.release("two", token)
    assert seen.holds() == 0
    assert seen.ended() == {"released": 2}


def test_who_is_refused_holds_nothing(conf: Conf, seen: Seen) -> None:
    token = conf.acquire("name")
    assert conf.try_acquiring("name") is None
    with pytest.raises(CouldNotAcquireLock):
        conf.get("name").acquire(timeout="10ms")
    assert asyncio.run(conf.aio.try_acquiring("name")) is None
    assert seen.outcomes() == {"acquired": 1, "refused": 3}
    assert seen.holds() == 1
    assert [span.status.status_code for span in seen.spans()] == [StatusCode.UNSET] * 4
    conf.release("name", token)


def test_a_cancelled_wait(conf: Conf, seen: Seen, db: Db) -> None:
    token = conf.acquire("name")

    async def main() -> None:
        wait = asyncio.ensure_future(conf.aio.acquire("name", timeout=None))
        await asyncio.to_thread(wait_until_waiting, db, 1)
        assert seen.points(WAITERS) == {(): 1}
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait

    asyncio.run(main())
    conf.release("name", token)
    until(lambda: seen.outcomes() == {"acquired": 1, "cancelled": 1})
    assert seen.ended() == {"released": 1}
    assert seen.holds() == 0
    assert sum(seen.points(WAITERS).values()) == 0
    conf.release("name", conf.acquire("name"))  # nothing was left behind
    assert seen.ended() == {"released": 2}


def test_an_interrupted_wait(conf: Conf, seen: Seen, db: Db) -> None:
    import signal

    token = conf.acquire("name")

    def interrupt() -> None:
        wait_until_waiting(db, 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        conf.get("name").acquire(timeout=None)
    thread.join()
    assert seen.outcomes() == {"acquired": 1, "cancelled": 1}
    conf.release("name", token)


def test_waiters_and_the_listener(conf: Conf, seen: Seen, db: Db) -> None:
    assert seen.points(LISTENER) == {}  # nobody listens, as nobody waits
    token = conf.acquire("name")
    thread = threading.Thread(
        target=lambda: conf.release("name", conf.acquire("name", timeout=None))
    )
    thread.start()
    wait_until_waiting(db, 1)
    assert seen.points(WAITERS) == {(): 1}
    until(lambda: seen.points(LISTENER) == {(): 1})
    conf.release("name", token)
    thread.join()
    assert seen.outcomes() == {"acquired": 2}
    assert seen.points(WAITERS) == {(): 0}
    conf.close()
    assert seen.points(LISTENER) == {}


def test_a_lost_hold_is_told_once_with_its_reason(url: str, db: Db) -> None:
    seen = Seen()
    ways: tuple[Callable[[Conf], Any], ...] = (
        lambda conf: conf.get("name").hold(),
        lambda conf: conf.get("name").hold(autoextend=True),
        lambda conf: conf.get("name").hold(on_lost=lambda lock: None),
        lambda conf: conf.get("name"),
    )
    for ours in ways:
        conf = score.distlock.connect(url)
        seen.instrument(conf)
        before = seen.lost().get("released", 0)
        with pytest.raises(LockExpired), ours(conf):
            assert conf.revoke("name")
        assert seen.lost() == {"released": before + 1}
        assert seen.ended() == {"lost": before + 1}
        assert seen.holds() == 0
    token = conf.acquire("name")
    db.execute("DELETE FROM _score_distlock")
    with pytest.raises(LockExpired):
        conf.extend("name", token)
    with pytest.raises(LockExpired):
        conf.release("name", token)
    assert sum(seen.lost().values()) == before + 2
    assert seen.ended() == {"lost": before + 2}


def test_a_block_that_outlived_its_lease(brief: Conf, db: Db) -> None:
    seen = Seen()
    seen.instrument(brief)
    with pytest.raises(LockExpired), brief.get("name"):
        outlive(db)
        assert seen.holds() == 0  # nobody has the lock, though nobody was told
    assert seen.lost() == {"expired": 1}
    assert seen.ended() == {"lost": 1}


def test_a_loss_that_autoextend_finds(brief: Conf, db: Db) -> None:
    seen = Seen()
    seen.instrument(brief)
    lost = threading.Event()
    with (
        pytest.raises(LockExpired),
        brief.get("name").hold(autoextend=True, on_lost=lambda lock: lost.set()),
    ):
        db.execute("DELETE FROM _score_distlock")
        assert lost.wait(60)
        assert sum(seen.lost().values()) == 1
    assert sum(seen.lost().values()) == 1
    assert seen.ended() == {"lost": 1}


def test_extensions_tell_what_was_left(conf: Conf, seen: Seen) -> None:
    token = conf.acquire("token")
    with conf.get("name") as lock:
        lock.extend()
        conf.extend("token", token)
        assert seen.points(MARGIN) == {(): 2}
    assert seen.points(MARGIN) == {(): 3}
    conf.release("token", token)
    margin = seen.metrics()[MARGIN].data.data_points[0]
    assert margin.count == 4
    assert 0 < margin.min <= margin.max <= 60


def test_renewals_tell_what_was_left(brief: Conf) -> None:
    seen = Seen()
    seen.instrument(brief)
    with brief.get("name").hold(autoextend=True):
        until(lambda: seen.points(MARGIN).get((), 0) >= 2)


def gone(proxy: Proxy) -> None:
    """Makes the database unreachable."""
    proxy.refuse(True)
    proxy.cut_all()


def test_an_outage_is_an_error(through: Callable[..., Conf], proxy: Proxy) -> None:
    conf, seen = through("300ms"), Seen()
    seen.instrument(conf)
    with pytest.raises(DatabaseUnavailable), conf.get("an outage"):
        gone(proxy)
    with pytest.raises(DatabaseUnavailable):
        conf.acquire("an outage")
    assert seen.outcomes() == {"acquired": 1, "error": 1}
    [error] = [dict(point) for point in seen.points(ACQUIRE) if "error.type" in dict(point)]
    assert error["error.type"] == "score.distlock.DatabaseUnavailable"
    assert seen.ended() == {"released": 1}  # the release is pending, and nobody claims the hold
    assert seen.holds() == 0
    failed = seen.spans()[-1]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "score.distlock.DatabaseUnavailable"
    assert "distlock.fence" not in failed.attributes


def test_spans(conf: Conf, seen: Seen) -> None:
    tracer = seen.tracers.get_tracer("test")
    with tracer.start_as_current_span("request") as request, conf.get("name") as lock:
        fence = lock.fence
    with tracer.start_as_current_span("other") as other:
        asyncio.run(aio_blocks(conf))
    spans = [span for span in seen.spans() if span.name not in ("request", "other")]
    assert [span.name for span in spans] == ["acquire", "acquire"]
    for span, parent in zip(spans, (request, other), strict=True):
        assert span.parent is not None
        assert span.parent.span_id == parent.get_span_context().span_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert parent.start_time <= span.start_time <= span.end_time  # type: ignore[attr-defined]
        assert span.end_time <= parent.end_time  # type: ignore[attr-defined]
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "score.distlock"
    attributes = dict(spans[0].attributes or {})
    assert attributes.pop("distlock.acquire.duration") >= 0  # type: ignore[operator]
    assert attributes == {"distlock.acquire.outcome": "acquired", "distlock.fence": fence}


def test_units_and_kinds(conf: Conf, seen: Seen, db: Db) -> None:
    test_waiters_and_the_listener(conf, seen, db)
    with contextlib.suppress(LockExpired), conf.get("name"):
        conf.revoke("name")
    token = conf.acquire("name")
    thread = threading.Thread(target=lambda: conf.acquire("name", timeout=None))
    thread.start()
    wait_until_waiting(db, 1)
    metrics = seen.metrics()
    conf.release("name", token)
    thread.join()
    assert {name: metric.unit for name, metric in metrics.items()} == {
        ACQUIRE: "s",
        HOLD: "s",
        MARGIN: "s",
        HOLDS: "{hold}",
        LOSSES: "{hold}",
        WAITERS: "{waiter}",
        LISTENER: "{listener}",
    }
    monotonic = {
        n: m.data.is_monotonic for n, m in metrics.items() if hasattr(m.data, "is_monotonic")
    }
    assert monotonic == {HOLDS: False, WAITERS: False, LISTENER: False, LOSSES: True}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, [None, None]),
        ("order-{id}", ["order-{id}", None]),
        (["order-{id}", "{anything}"], ["order-{id}", "{anything}"]),
        ("{what}-17\n", ["{what}-17\n", None]),
        (lambda name: name[:5], ["order", "secre"]),
        (len, ["9", "6"]),
        (lambda name: None, [None, None]),
        (lambda name: 1 / 0, [None, None]),
    ],
)
def test_names_are_told_only_on_request(conf: Conf, asked: Any, found: list[str | None]) -> None:
    seen, registry = Seen(), CollectorRegistry()
    seen.instrument(conf, name_attribute=asked)
    telemetry.prometheus(conf, registry, name_attribute=asked)
    for name, shown in zip(["order-17\n", "secret"], found, strict=True):
        with conf.get(name):
            during = seen.points(HOLDS)
            assert registry.get_sample_value("distlock_holds", {"lock": shown or ""}) == 1
        expected = () if shown is None else (("distlock.lock.name", shown),)
        assert during[expected] == 1
        assert seen.points(HOLDS).get(expected, 0) == 0  # the same attributes, up and down
        assert seen.spans()[-1].name == ("acquire" if shown is None else f"acquire {shown}")
    told = repr(seen.metrics()) + "".join(span.to_json() for span in seen.spans())
    assert "order-17" not in told


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("{", "'{'"),
        ("order", "'order' has no field"),
        ("", "'' has no field"),
        (b"x", "or None, not bytes"),
        (3, "or None, not int"),
        (["{a}", 3], "int is not a template"),
    ],
)
def test_a_bad_template_is_refused(conf: Conf, asked: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        telemetry.instrument(conf, name_attribute=asked)
    with pytest.raises((ValueError, TypeError), match=message):
        telemetry.prometheus(conf, CollectorRegistry(), name_attribute=asked)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="conf must be a ConfiguredDistlockModule, not str"):
        telemetry.instrument("postgresql:///")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="conf must be a ConfiguredDistlockModule, not NoneType"):
        telemetry.prometheus(None, CollectorRegistry())  # type: ignore[arg-type]


def test_no_secret_is_told(through: Callable[..., Conf], proxy: Proxy) -> None:
    conf, seen, registry = through("300ms", "?password=sesame"), Seen(), CollectorRegistry()
    seen.instrument(conf, name_attribute="{name}")
    telemetry.prometheus(conf, registry, name_attribute="{name}")
    token = conf.acquire("name")
    moved = conf.transfer("name", token)
    conf.extend("name", moved)
    conf.revoke("name")
    with pytest.raises(LockExpired):
        conf.release("name", moved)
    gone(proxy)
    with pytest.raises(DatabaseUnavailable):
        conf.acquire("name")
    told = repr(seen.metrics()) + "".join(span.to_json() for span in seen.spans())
    told += generate_latest(registry).decode()
    assert "distlock_losses_total" in told
    for secret in ("sesame", token, moved, token[:16], moved[:16]):
        assert secret not in told


class Broken(MeterProvider):
    """A provider whose instruments fail."""

    def get_meter(self, *args: Any, **options: Any) -> Any:
        meter = super().get_meter(*args, **options)
        made = meter.create_histogram

        def create(*args: Any, **options: Any) -> Any:
            histogram = made(*args, **options)
            histogram.record = _fail  # type: ignore[method-assign]
            return histogram

        meter.create_histogram = create  # type: ignore[method-assign]
        return meter


def _fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("broken instrument")


def test_an_observer_that_raises_breaks_nothing(
    conf: Conf, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_measuring, "_failed", set())
    registry = CollectorRegistry()
    telemetry.instrument(conf, meter_provider=Broken([]))
    telemetry.prometheus(conf, registry)
    with caplog.at_level(logging.DEBUG):
        for way in SYNC:
            way(conf)
        asyncio.run(aio_blocks(conf))
        telemetry.flush()
    failures = [record for record in caplog.records if record.exc_info]
    assert len(failures) == 1
    assert failures[0].name == "score.distlock"
    # The other sink still gets the event.
    labels = {"outcome": "released", "lock": ""}
    value = registry.get_sample_value("distlock_hold_duration_seconds_count", labels)
    assert value == len(SYNC) + 1
    telemetry.uninstrument(conf)


def test_a_function_for_names_that_raises_is_told_once(
    conf: Conf, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_measuring, "_failed", set())
    telemetry.prometheus(conf, CollectorRegistry(), name_attribute=lambda name: str(1 / 0))
    for _ in range(2):
        blocks(conf)
        telemetry.flush()
    [failure] = [record for record in caplog.records if record.exc_info]
    assert failure.getMessage().startswith("the function name_attribute failed")


@pytest.mark.parametrize("where", ["sink", "name_attribute"])
def test_a_signal_handler_may_raise_while_events_are_told(
    conf: Conf, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What it raises ends the call in which it was raised, and is not taken for a sink's error."""

    class TimeIsUp(Exception):
        pass

    def handler(number: int, frame: Any) -> None:
        raise TimeIsUp

    def signalled(*arguments: Any) -> str:
        # The library's own thread may be the one that tells.
        if threading.current_thread() is threading.main_thread() and not raised:
            signal.raise_signal(signal.SIGUSR1)
        return "name"

    raised = False
    monkeypatch.setattr(_measuring, "_failed", set())
    options: dict[str, Any] = {}
    if where == "sink":
        monkeypatch.setattr(_prometheus.Prometheus, "attempt", signalled)
    else:
        options["name_attribute"] = signalled
    telemetry.prometheus(conf, CollectorRegistry(), **options)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        while not raised:  # limited by the test's own timeout
            try:
                blocks(conf)
                telemetry.flush()
            except TimeIsUp:
                raised = True
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not _measuring._failed
    telemetry.uninstrument(conf)


def test_what_is_measured_meanwhile_is_not_waited_for(conf: Conf) -> None:
    """Otherwise `flush`, and the end of the process, would take as long as others work."""

    def name_of(name: str) -> str:
        if threading.current_thread() is threading.main_thread():
            blocks(conf)  # as another thread may, at any moment
        return name

    telemetry.prometheus(conf, CollectorRegistry(), name_attribute=name_of)
    blocks(conf)
    telemetry.flush()
    telemetry.uninstrument(conf)


def test_instrument_twice_and_undo(conf: Conf, caplog: pytest.LogCaptureFixture) -> None:
    seen, registry = Seen(), CollectorRegistry()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            seen.instrument(conf)
            telemetry.prometheus(conf, registry)
        with conf.get("name"):
            assert seen.holds() == 1
            assert registry.get_sample_value("distlock_holds", {"lock": ""}) == 1
            telemetry.uninstrument(conf)
            assert seen.holds() == 0
    assert "already" in caplog.text
    blocks(conf)
    assert seen.outcomes() == {"acquired": 1}
    assert not list(registry.collect())
    telemetry.uninstrument(conf)  # does nothing
    seen.instrument(conf)  # and again
    telemetry.prometheus(conf, registry)
    blocks(conf)
    assert seen.outcomes() == {"acquired": 2}
    labels = {"outcome": "acquired", "lock": ""}
    name = "distlock_acquire_duration_seconds_count"
    assert registry.get_sample_value(name, labels) == 1  # a new collector starts at zero
    telemetry.uninstrument(conf)


def test_several_modules_add_up(url: str, caplog: pytest.LogCaptureFixture) -> None:
    one, two = score.distlock.connect(url), score.distlock.connect(url)
    seen, registry = Seen(), CollectorRegistry()
    with caplog.at_level(logging.WARNING):
        for conf in (one, two):
            seen.instrument(conf)
            telemetry.prometheus(conf, registry)
    assert not caplog.records
    with one.get("one"), two.get("two"):
        assert seen.points(HOLDS) == {(): 2}
        assert registry.get_sample_value("distlock_holds", {"lock": ""}) == 2
        telemetry.uninstrument(one)
        assert seen.points(HOLDS) == {(): 1}
    assert seen.outcomes() == {"acquired": 2}
    telemetry.uninstrument(two)


def test_a_module_that_is_instrumented_can_go(url: str) -> None:
    conf, seen, registry = score.distlock.connect(url), Seen(), CollectorRegistry()
    seen.instrument(conf)
    telemetry.prometheus(conf, registry)
    blocks(conf)
    telemetry.flush()
    gone = weakref.ref(conf)
    del conf
    gc.collect()
    assert gone() is None
    assert seen.holds() == 0
    assert not registry.get_sample_value("distlock_holds", {"lock": ""})


def test_prometheus(conf: Conf, db: Db) -> None:
    registry = CollectorRegistry()
    telemetry.prometheus(conf, registry)
    token = conf.acquire("name")
    thread = threading.Thread(
        target=lambda: conf.release("name", conf.acquire("name", timeout=None))
    )
    thread.start()
    wait_until_waiting(db, 1)
    value = registry.get_sample_value
    assert value("distlock_waiters", {"lock": ""}) == 1
    until(lambda: value("distlock_listener_connected") == 1)
    assert value("distlock_holds", {"lock": ""}) == 1
    conf.release("name", token)
    thread.join()
    with contextlib.suppress(LockExpired), conf.get("name"):
        conf.revoke("name")
    assert value("distlock_holds", {"lock": ""}) == 0
    counted = {"outcome": "acquired", "lock": ""}
    assert value("distlock_acquire_duration_seconds_count", counted) == 3
    assert value("distlock_hold_duration_seconds_count", {"outcome": "lost", "lock": ""}) == 1
    assert value("distlock_losses_total", {"reason": "released", "lock": ""}) == 1
    # Reasons that have not occurred yet have a series too, for increase().
    assert value("distlock_losses_total", {"reason": "expired", "lock": ""}) == 0
    assert value("distlock_lease_margin_seconds_count", {"lock": ""}) == 3
    telemetry.uninstrument(conf)


@pytest.mark.parametrize("asked", [None, "{name}"])
def test_prometheus_tells_the_name_that_was_asked_for(conf: Conf, asked: str | None) -> None:
    registry = CollectorRegistry()
    telemetry.prometheus(conf, registry, name_attribute=asked)
    with conf.get("one") as lock:
        lock.extend()
    with pytest.raises(LockExpired), conf.get("one"):
        conf.revoke("one")
    told = {
        (sample.name, sample.labels.get("outcome", sample.labels.get("reason"))): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.labels.get("lock") == (asked or "")
        and sample.name.endswith(("_count", "_total"))
        and sample.value
    }
    assert told == {
        ("distlock_acquire_duration_seconds_count", "acquired"): 2,
        ("distlock_hold_duration_seconds_count", "released"): 1,
        ("distlock_hold_duration_seconds_count", "lost"): 1,
        ("distlock_lease_margin_seconds_count", None): 3,
        ("distlock_losses_total", "released"): 1,
    }
    assert registry.get_sample_value("distlock_listener_connected") is None


def test_both_have_the_same_buckets(conf: Conf, seen: Seen) -> None:
    registry = CollectorRegistry()
    telemetry.prometheus(conf, registry)
    blocks(conf)
    families = {metric.name: metric.samples for metric in registry.collect()}
    for name, expected in (
        (ACQUIRE, _measuring.ACQUIRE),
        (HOLD, _measuring.HOLD),
        (MARGIN, _measuring.MARGIN),
    ):
        [point] = seen.metrics()[name].data.data_points
        assert list(point.explicit_bounds) == list(expected)
        samples = families[name.replace(".", "_") + "_seconds"]
        bounds = [float(sample.labels["le"]) for sample in samples if "le" in sample.labels]
        assert bounds == [*expected, float("inf")]


FORKING = """
import os, sys, score.distlock
from score.distlock import telemetry
from prometheus_client import CollectorRegistry
conf = score.distlock.connect(sys.argv[1])
registry = CollectorRegistry()
telemetry.prometheus(conf, registry)
def value(name, **labels):
    return registry.get_sample_value(name, {'lock': '', **labels}) or 0
def acquired():
    return value('distlock_acquire_duration_seconds_count', outcome='acquired')
with conf.get('held'):
    assert value('distlock_holds') == 1
    conf.release('pending', conf.acquire('pending'))  # not told yet
    child = os.fork()
    if child == 0:
        try:
            assert value('distlock_holds') == 0
            assert acquired() == 1
            with conf.get('child'):
                assert value('distlock_holds') == 1
            assert acquired() == 2, acquired()
        except BaseException as error:
            print('child:', repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert value('distlock_holds') == 1
assert value('distlock_holds') == 0
assert acquired() == 2, acquired()
assert value('distlock_hold_duration_seconds_count', outcome='released') == 2
print('counted')
"""


def test_a_forked_child_counts_its_own(url: str) -> None:
    assert python(FORKING, url) == "counted\n"


ENDING = """
import sys, score.distlock
from score.distlock import telemetry
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
provider = TracerProvider()
exporter = ConsoleSpanExporter(formatter=lambda span: span.name + '\\n')
provider.add_span_processor(BatchSpanProcessor(exporter))
conf = score.distlock.connect(sys.argv[1])
telemetry.instrument(conf, tracer_provider=provider)
with conf.get('name'):
    pass
"""


def test_what_was_last_is_exported_at_the_end(url: str) -> None:
    assert python(ENDING, url) == "acquire\n"


MISSING = """
import sys
for name in ('opentelemetry', 'prometheus_client'):
    sys.modules[name] = None
import score.distlock
from score.distlock import telemetry
conf = score.distlock.connect(sys.argv[1])
for function, extra in (('instrument', 'opentelemetry'), ('prometheus', 'prometheus')):
    try:
        getattr(telemetry, function)(conf)
    except ImportError as error:
        assert f'score.distlock[{extra}]' in str(error), error
    else:
        raise AssertionError
telemetry.uninstrument(conf)
with conf.get('name'):
    print('held')
"""


def test_what_is_not_installed_is_named(url: str) -> None:
    assert python(MISSING, url) == "held\n"


def test_nothing_is_imported_unasked() -> None:
    code = "import sys, score.distlock; print([m for m in sys.modules if 'telemetry' in m.lower()])"
    assert python(code) == "[]\n"


def test_threads_at_once(conf: Conf, seen: Seen) -> None:
    def work(number: int) -> None:
        for _ in range(50):
            with conf.get(f"name {number}"):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.outcomes() == {"acquired": 200}
    assert seen.ended() == {"released": 200}
    assert len(seen.spans()) == 200


def test_the_dashboard_asks_for_metrics_that_are_there(conf: Conf, db: Db) -> None:
    import re

    registry = CollectorRegistry()
    telemetry.prometheus(conf, registry)
    token = conf.acquire("name")
    thread = threading.Thread(
        target=lambda: conf.release("name", conf.acquire("name", timeout=None))
    )
    thread.start()
    wait_until_waiting(db, 1)
    there = set(re.findall(r"^\w+", generate_latest(registry).decode(), re.MULTILINE))
    conf.release("name", token)
    thread.join()
    with contextlib.suppress(LockExpired), conf.get("name"):
        conf.revoke("name")
    there |= set(re.findall(r"^\w+", generate_latest(registry).decode(), re.MULTILINE))
    dashboard = json.loads((PROJECT / "docs" / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = set(re.findall(r"distlock_\w+", " ".join(asked)))
    assert len(names) >= 7
    assert names <= there
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    telemetry.uninstrument(conf)
