"""``on_expiring``: the holder of a lock is warned before its lease ends."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import LockExpired, _events

from .support.line import Background, renewed, until
from .support.proxy import Proxy
from .test_aio import run

__all__ = ("run",)

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
Run = Callable[[Any], Any]


class Told:
    """Records the calls and their arguments; tests can wait for each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, float, bool]] = []
        self._called = threading.Semaphore(0)

    def __call__(self, lock: Any, seconds: float) -> None:
        self.calls.append((lock, seconds, lock.expired))
        self._called.release()

    def wait(self) -> None:
        """Waits for another call."""
        self._called.acquire()


def test_it_is_called_before_the_end_and_on_lost_after_it(conf: Conf) -> None:
    told, lost = Told(), threading.Event()
    options: Any = {"on_expiring": told, "warn_before": "300ms", "on_lost": lambda _: lost.set()}
    lock = conf.get("name")
    with pytest.raises(LockExpired), lock.hold(maxtime="600ms", **options):
        told.wait()
        assert not lost.is_set()
        assert not lock.expired
        lost.wait()
    [(called, seconds, expired)] = told.calls
    assert called is lock
    assert 0 < seconds <= 0.3
    assert not expired


def test_it_needs_no_on_lost_and_has_a_default(brief: Conf) -> None:
    told = Told()
    with pytest.raises(LockExpired), brief.get("name").hold(on_expiring=told) as lock:
        assert lock.lost.wait()
    [(_, seconds, _)] = told.calls
    assert 0 < seconds <= 0.1


def test_once_for_each_term(conf: Conf) -> None:
    told = Told()
    lock = conf.get("name")
    with lock.hold(maxtime="400ms", on_expiring=told, warn_before=0.2):
        for number in range(1, 5):
            told.wait()
            assert len(told.calls) == number
            lock.extend()
    assert len(told.calls) == 4


def test_a_term_that_begins_right_after_a_warning_is_warned_of_too(conf: Conf) -> None:
    """Its warning is due long before the end of the term before."""
    told = Told()
    lock = conf.get("name")
    with lock.hold(maxtime=6, on_expiring=told, warn_before=5):
        told.wait()
        lock.extend()
        until(lambda: lock.remaining < 2.5)
        lock.extend()
    assert len(told.calls) == 2


def test_a_hold_that_is_acquired_late_is_warned_of(
    through: Callable[..., Conf], proxy: Proxy
) -> None:
    """The answer comes when less than ``warn_before`` is left."""
    told, lock = Told(), through().get("late")
    with lock:
        pass
    proxy.freeze_answers(new=False)
    hold = lock.hold(maxtime=5, on_expiring=told, warn_before=4.9)
    entering = Background(hold.__enter__)
    proxy.frozen.wait()
    time.sleep(0.2)  # of the lease
    proxy.thaw()
    entering.result()
    told.wait()
    Background(hold.__exit__, None, None, None).result()
    assert len(told.calls) == 1


@pytest.mark.parametrize("name", ["on_lost", "on_expiring"])
def test_a_thread_has_no_event_loop_for_a_coroutine_function(conf: Conf, name: str) -> None:
    async def callback(*arguments: object) -> None:
        pytest.fail("it cannot be awaited")

    options: Any = {name: callback}
    with pytest.raises(TypeError, match=f"{name} must not be a coroutine function"):
        conf.get("name").hold(**options)
    locked = conf.locked("name", **options)(print)
    with pytest.raises(TypeError, match=f"{name} must not be a coroutine function"):
        locked()


def test_the_callback_can_extend(conf: Conf) -> None:
    told = Told()

    def extend(lock: score.distlock.Lock, seconds: float) -> None:
        lock.extend()
        told(lock, seconds)

    with conf.get("name").hold(maxtime="400ms", on_expiring=extend) as lock:
        for _ in range(4):
            told.wait()
            assert not lock.expired
        assert conf.try_acquiring("name") is None


def test_a_hold_that_is_extended_in_time_is_not_warned_of(brief: Conf, db: Db) -> None:
    told = Told()
    with brief.get("name").hold(autoextend=True, maxtime=1, on_expiring=told, warn_before=0.2):
        renewed(db, ["name"], 4, lambda: told.calls)
    assert told.calls == []


def test_an_outage_is_told_while_there_is_time(
    through: Callable[..., Conf], proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal hangs at that moment; the warning does not wait until it fails."""
    caplog.set_level(logging.INFO, "score.distlock")
    told = Told()
    lock = through(pool_timeout="1h").get("expiring")
    with lock.hold(autoextend=True, maxtime=6, on_expiring=told, warn_before=2.9):
        proxy.freeze_answers()
        told.wait()
        assert "could not be extended yet" not in caplog.text
        proxy.thaw()
    [(_, seconds, expired)] = told.calls
    assert 0 < seconds <= 2.9
    assert not expired


@pytest.mark.parametrize("how", ["exit", "release", "token", "revoke", "extend"])
def test_never_after_the_release(conf: Conf, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The hold ends after the warning was issued and before its thread runs."""
    with conf.get("name").hold(on_lost=print):
        pass  # starts the thread that delivers events
    started: queue.Queue[Any] = queue.Queue()
    monkeypatch.setattr(_events, "_start", lambda _, *started_: started.put(started_))
    told = Told()
    lock = conf.get("name")
    block = lock.hold(maxtime=20, on_expiring=told, warn_before=19.9)
    block.__enter__()
    work, *arguments = started.get()
    if how == "release":
        lock.release()
    elif how == "token":
        conf.release("name", lock.token)
    elif how == "revoke":
        assert conf.revoke("name")
    elif how == "extend":
        lock.extend()
    if how in ("exit", "extend"):
        if how == "exit":
            block.__exit__()
        work(*arguments)
    else:
        work(*arguments)
        with pytest.raises(LockExpired):
            block.__exit__()
    assert told.calls == []


def test_not_after_an_inner_release(conf: Conf) -> None:
    """The inner block asks for a warning, and ends; the hold goes on."""
    told = Told()
    with pytest.raises(LockExpired), conf.get("name").hold(maxtime="300ms") as lock:
        with lock.hold(on_expiring=told, warn_before=0.2):
            pass
        assert lock.lost.wait()
    assert told.calls == []


def test_a_callback_that_raises_harms_nobody(brief: Conf, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: queue.Queue[Any] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.put(args.exc_type))

    def on_expiring(lock: Any, seconds: float) -> None:
        raise KeyError

    told = Told()
    with pytest.raises(LockExpired), brief.get("name").hold(on_expiring=on_expiring) as lock:
        with pytest.raises(LockExpired), brief.get("other").hold(on_expiring=told):
            told.wait()
            assert lock.lost.wait()
        assert lock.lost.wait()
    assert raised.get() is KeyError


def test_a_child_is_not_warned(conf: Conf) -> None:
    told = Told()
    hold = conf.get("name").hold(maxtime="400ms", on_expiring=told)
    with pytest.raises(LockExpired), hold as lock:
        child = os.fork()
        if child == 0:
            told.calls.clear()
            threading.Event().wait(0.5)
            os._exit(len(told.calls))
        assert os.waitpid(child, 0)[1] == 0
        assert lock.lost.wait()
        told.wait()


def test_the_hold_keeps_no_lock_alive(conf: Conf) -> None:
    """A warning that is hours away keeps neither Lock nor callback alive."""
    import gc
    import weakref

    lock = conf.get("name")
    with lock.hold(maxtime="3h", on_expiring=Told()):
        pass
    weak = weakref.ref(lock)
    del lock
    # The next call drops what was released without the GIL.
    conf.try_acquiring("name")
    gc.collect()
    assert weak() is None


def test_coroutines_are_warned_in_their_loop(conf: Conf, run: Run) -> None:
    async def main() -> None:
        called, calls = asyncio.Event(), []

        async def on_expiring(lock: Any, seconds: float) -> None:
            calls.append((lock, seconds, threading.current_thread()))
            called.set()

        lock = conf.aio.get("name")
        async with lock.hold(maxtime="400ms", on_expiring=on_expiring, warn_before="200ms"):
            await called.wait()
            await lock.extend()
        [(told, seconds, thread)] = calls
        assert told is lock
        assert 0 < seconds <= 0.2
        assert thread is threading.current_thread()

    run(main())


def test_never_after_a_coroutine_has_left(conf: Conf, run: Run) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        left: list[bool] = []

        def on_expiring(lock: Any, seconds: float) -> None:
            told.append(left[-1])

        told: list[bool] = []
        for number in range(60):
            left.append(False)
            async with lock.hold(maxtime="300ms", warn_before=0.28, on_expiring=on_expiring):
                await asyncio.sleep(0.015 + 0.0003 * number)
                left[-1] = True  # nothing is awaited between this and the end
        await asyncio.sleep(0.02)
        assert True not in told

    run(main())


def test_functions(brief: Conf) -> None:
    told = Told()

    @brief.locked("name", on_expiring=told, warn_before="100ms")
    def work() -> None:
        told.wait()

    work()

    @brief.locked("name", on_expiring=told)
    async def work_async() -> None:
        await asyncio.to_thread(told.wait)

    asyncio.run(work_async())
    assert len(told.calls) == 2


def test_many_at_once(conf: Conf) -> None:
    told: list[str] = []
    order = threading.Lock()
    done = threading.Event()

    def on_expiring(lock: Any, seconds: float) -> None:
        with order:
            told.append(lock.name)
            if len(told) == 200:
                done.set()

    blocks = []
    for number in range(200):
        hold = conf.get(str(number)).hold(maxtime=5, warn_before=4.5, on_expiring=on_expiring)
        hold.__enter__()
        blocks.append(hold)
    done.wait()
    for block in blocks:
        block.__exit__()
    assert len(set(told)) == 200


@pytest.mark.parametrize("asynchronous", [False, True])
def test_mistakes(conf: Conf, asynchronous: bool) -> None:
    def take(**options: Any) -> Any:
        return (conf.aio.get("name") if asynchronous else conf.get("name")).hold(**options)

    for bad, error, message in (
        ({"on_lost": 1}, TypeError, "on_lost must be callable, not int"),
        ({"on_expiring": 1}, TypeError, "on_expiring must be callable, not int"),
        ({"warn_before": 1}, TypeError, "on_expiring, which is missing"),
        ({"on_expiring": print, "warn_before": "soon"}, ValueError, "warn_before"),
        ({"on_expiring": print, "warn_before": 0}, ValueError, "more than 0 and less than the"),
        ({"on_expiring": print, "warn_before": 60}, ValueError, "less than the lease"),
        ({"on_expiring": print, "warn_before": 5, "maxtime": 5}, ValueError, "less than the"),
        (
            {"on_expiring": print, "warn_before": 30, "autoextend": True},
            ValueError,
            r"less than half of the lease, as autoextend renews it earlier$",
        ),
    ):
        with pytest.raises(error, match=message):
            take(**bad)
        if "maxtime" in bad or ("less than the" not in message and "half" not in message):
            with pytest.raises(error, match=message):
                conf.locked("name", **bad)
    take(on_expiring=print, warn_before=59.9)
    take(on_expiring=print, maxtime=0)


def test_a_lease_of_no_time_is_not_warned_of(conf: Conf) -> None:
    told = Told()
    with pytest.raises(LockExpired), conf.get("name").hold(maxtime=0, on_expiring=told) as lock:
        assert lock.lost.wait()
    assert told.calls == []
