"""``lock.lost``: lets a worker sleep until its hold is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock, LockExpired, _async_lost
from score.distlock._channel import current

from .conftest import python
from .support.line import Background, outlive
from .support.proxy import Proxy
from .test_aio import run

__all__ = ("run",)

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
Run = Callable[[Any], Any]
Lose = Callable[[Conf, Db, Any], None]


def by_token(conf: Conf, db: Db, lock: Any) -> None:
    conf.release("name", lock.token)


def by_force(conf: Conf, db: Db, lock: Any) -> None:
    assert conf.revoke("name")


def by_deletion(conf: Conf, db: Db, lock: Any) -> None:
    """Only the next renewal notices."""
    db.execute("DELETE FROM _score_distlock")


def by_a_locked_row(conf: Conf, db: Db, lock: Any) -> None:
    """Renewals fail until the lease ends."""
    db.execute("BEGIN")
    db.execute("SELECT FROM _score_distlock FOR UPDATE")


WAYS = [by_token, by_force, by_deletion, by_a_locked_row]


@pytest.mark.parametrize("lose", WAYS)
def test_it_is_set_when_the_hold_is_lost(brief: Conf, db: Db, lose: Lose) -> None:
    lock = brief.get("name")
    with pytest.raises(LockExpired), lock.hold(autoextend=True):
        assert not lock.lost.is_set()
        assert not lock.lost.wait(0.001)
        lose(brief, db, lock)
        assert lock.lost.wait()
        assert lock.lost.is_set()
        assert lock.expired
        db.execute("ROLLBACK")


@pytest.mark.parametrize("lose", WAYS)
def test_a_coroutine_awaits_it(brief: Conf, db: Db, lose: Lose, run: Run) -> None:
    async def main() -> None:
        lock = brief.aio.get("name")
        with pytest.raises(LockExpired):
            async with lock.hold(autoextend=True):
                assert not lock.lost.is_set()
                assert not await lock.lost.wait(0.001)
                lose(brief, db, lock)
                assert await lock.lost.wait()
                assert lock.lost.is_set()
                db.execute("ROLLBACK")

    run(main())


def test_a_database_that_is_gone(through: Callable[..., Conf], proxy: Proxy) -> None:
    lock = through(pool_timeout="1h").get("gone and lost")
    with pytest.raises(LockExpired), lock.hold(autoextend=True, maxtime=1):
        proxy.refuse(True)
        proxy.cut_all()
        assert lock.lost.wait()


def test_a_lease_that_ends_without_renewal(brief: Conf, run: Run) -> None:
    with pytest.raises(LockExpired), brief.get("name") as lock:
        assert lock.lost.wait()
        assert lock.expired

    async def main() -> None:
        with pytest.raises(LockExpired):
            async with brief.aio.get("name") as lock:
                assert await lock.lost.wait()

    run(main())


def test_a_hold_that_is_extended_is_waited_for_until_its_new_end(brief: Conf, db: Db) -> None:
    with pytest.raises(LockExpired), brief.get("name") as lock:
        waiting = Background(lock.lost.wait)
        for _ in range(6):
            db.execute("SELECT pg_sleep(0.1)")
            lock.extend()
            assert not lock.lost.is_set()
        assert waiting.result()
        assert lock.expired


def test_it_stays_set_until_the_lock_is_acquired_again(brief: Conf, conf: Conf) -> None:
    """For a helper that looks only after the block has ended."""
    lock = brief.get("name")
    lost = lock.lost
    with pytest.raises(LockExpired), lock:
        assert lost.wait()
    assert lost.is_set()
    assert lost.wait(0)
    assert lock.lost.is_set()
    assert not lock.expired
    token = conf.acquire("name")
    with pytest.raises(CouldNotAcquireLock):
        lock.acquire()
    assert lost.is_set()
    conf.release("name", token)
    with lock.hold(maxtime=60):
        assert not lost.is_set()
        assert not lost.wait(0)
    assert not lost.is_set()


def test_a_block_that_is_left_late_is_a_loss_for_helpers(brief: Conf, db: Db) -> None:
    """Even if nobody was waiting when the lease ended."""
    lock = brief.get("name")
    with pytest.raises(LockExpired), lock:
        outlive(db)
    assert lock.lost.is_set()


def test_a_release_is_no_loss(conf: Conf) -> None:
    lock = conf.get("name")
    waiting = Background(lock.lost.wait, 0.2)
    for _ in range(20):
        with lock:
            pass
        lock.acquire()
        lock.release()
        assert not lock.lost.is_set()
    assert not waiting.result()


def test_who_waits_before_the_lock_is_acquired_hears_of_its_loss(brief: Conf) -> None:
    lock = brief.get("name")
    waiting = Background(lock.lost.wait)
    with pytest.raises(LockExpired), lock.hold(autoextend=True):
        brief.release("name", lock.token)
        assert waiting.result()
    quiet = Background(lock.lost.wait)
    # Nothing reports this loss, and nobody releases the lock.
    brief.get("name").acquire()
    assert quiet.result()


def test_a_loss_is_heard_though_the_block_is_left_at_once(conf: Conf) -> None:
    lock = conf.get("name")
    lost = lock.lost
    for _ in range(100):
        block = lock.hold()
        block.__enter__()
        waiting = Background(lost.wait)
        conf.release("name", lock.token)
        with pytest.raises(LockExpired):
            block.__exit__()
        assert waiting.result()


def test_each_owner_waits_for_its_own_hold(brief: Conf, conf: Conf, db: Db) -> None:
    """Two threads share one Lock: one was late, the other has taken over."""
    lock = brief.get("name")
    over, looked = threading.Event(), threading.Event()

    def late() -> bool:
        with pytest.raises(LockExpired), lock:
            lost = lock.lost
            outlive(db)
            over.set()
            looked.wait()
            assert lost.wait(0)
            return bool(lost.is_set())
        raise AssertionError

    first = Background(late)
    over.wait()
    with lock.hold(maxtime=60):
        assert not lock.lost.is_set()
        assert not lock.lost.wait(0)
        looked.set()
        first.thread.join()
        assert not lock.lost.is_set()


def test_numbers_that_are_no_time(conf: Conf) -> None:
    lost = conf.get("name").lost
    for nothing in (0, 0.0, -1, -1e300, float("nan")):
        assert not lost.wait(nothing)
    assert not lost.wait("1ms")
    for bad, error in (("soon", ValueError), (object(), TypeError), (10**400, ValueError)):
        with pytest.raises(error, match="timeout"):
            lost.wait(bad)  # type: ignore[arg-type]


def test_it_is_no_truth(conf: Conf) -> None:
    """`while not lock.lost` would never run: call a method instead."""
    with pytest.raises(TypeError, match="is_set"):
        bool(conf.get("name").lost)
    with pytest.raises(TypeError, match="is_set"):
        bool(conf.aio.get("name").lost)


def test_it_keeps_its_lock(brief: Conf) -> None:
    lock = brief.get("name")
    lock.acquire()
    lost = lock.lost
    del lock
    assert lost.wait()
    assert repr(lost) == "<score.distlock.Lost 'name' set>"


def test_a_child_has_lost_nothing(brief: Conf) -> None:
    with pytest.raises(LockExpired), brief.get("name") as lock:
        lost = lock.lost
        assert lost.wait()
        child = os.fork()
        if child == 0:
            os._exit(int(lost.is_set() or lost.wait(0.01)))
        assert os.waitpid(child, 0)[1] == 0
        assert lost.is_set()


def test_a_signal_ends_the_wait(conf: Conf) -> None:
    class Signal(Exception):
        pass

    def handler(number: int, frame: FrameType | None) -> None:
        raise Signal

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with conf.get("name") as lock, pytest.raises(Signal):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            lock.lost.wait()
        assert not lock.lost.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


ENDING = """
import sys, threading, score.distlock
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '200ms')
lock = conf.get(sys.argv[2])
while lock.token is None:
    try: lock.acquire(timeout=30)
    except score.distlock.LockExpired: pass  # on a busy machine
def wait():
    lock.lost.wait()
    while True:
        try: WORK
        except Exception: pass
for _ in range(5):
    threading.Thread(target=wait, daemon=True).start()
assert lock.lost.wait()
"""


@pytest.mark.parametrize(
    "work", ["lock.lost.wait(0)", "lock.release('0' * 256)", "conf.get('').hold(timeout='1s')"]
)
def test_the_interpreter_ends_while_threads_wait(url: str, work: str) -> None:
    """Daemon threads run Python code called from Rust code, and must not be unwound."""
    for number in range(12):
        code = ENDING.replace("WORK", work)
        program = [sys.executable, "-X", "faulthandler", "-c", code, url, str(number)]
        ended = subprocess.run(program, capture_output=True, text=True, check=False)
        assert (ended.stdout, ended.returncode) == ("", 0), ended.stderr
        told = f"the hold of lock '{number}' (fence "
        assert [line for line in ended.stderr.splitlines() if not line.startswith(told)] == []


def test_nothing_is_imported_or_started_for_it(url: str) -> None:
    code = (
        "import sys, threading, score.distlock\n"
        "assert 'asyncio' not in sys.modules\n"
        "lock = score.distlock.ConfiguredDistlockModule(sys.argv[1], '50ms').get('name')\n"
        "lock.acquire()\n"
        "assert lock.lost.wait()\n"
        "print(threading.active_count())\n"
    )
    assert python(code, url) == "1\n"


def test_a_coroutine_that_is_cancelled_waits_no_more(conf: Conf, run: Run) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        async with lock:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(lock.lost.wait(), 0.01)
            waiting = [asyncio.create_task(lock.lost.wait()) for _ in range(5)]
            await asyncio.sleep(0)
            for one in waiting[1:]:
                one.cancel()
            await conf.aio.release("name", lock.token)
            assert await waiting[0]
            with pytest.raises(LockExpired):
                await lock.extend()
            raised = await asyncio.gather(*waiting[1:], return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in raised)
            assert lock.lost.is_set()

    with pytest.raises(LockExpired):
        run(main())


def test_a_worker_of_coroutines(conf: Conf, run: Run) -> None:
    """One task started before, and one that looks afterwards."""

    async def main() -> None:
        lock = conf.aio.get("name")
        early = asyncio.create_task(lock.lost.wait())
        with pytest.raises(LockExpired):
            async with lock.hold(maxtime="50ms"):
                assert await early
        assert lock.lost.is_set()
        assert await lock.lost.wait(0)
        assert await asyncio.create_task(lock.lost.wait())
        async with lock:
            assert not lock.lost.is_set()

    run(main())


def test_a_coroutine_sleeps_until_its_lease_ends_or_something_happens(
    conf: Conf, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    pauses: list[float] = []

    async def main() -> None:
        lock = conf.aio.get("name")

        async def sleep(woken: asyncio.Event, seconds: float) -> None:
            assert not woken.is_set()
            pauses.append(seconds)
            if len(pauses) == 1:
                woken.set()  # as if the time were over
            else:
                await conf.aio.release("name", lock.token)
            await woken.wait()

        monkeypatch.setattr(_async_lost, "sleep", sleep)
        with pytest.raises(LockExpired):
            async with lock.hold(maxtime="900ms"):
                assert await lock.lost.wait()
        assert current()._expected() is None

    run(main())
    assert len(pauses) == 2
    assert 0 < min(pauses) <= max(pauses) <= 0.9


def test_a_coroutine_that_holds_nothing_looks_every_second(
    conf: Conf, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    pauses: list[float] = []

    async def sleep(woken: asyncio.Event, seconds: float) -> None:
        pauses.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(_async_lost, "sleep", sleep)
    with pytest.raises(TimeoutError):
        run(conf.aio.get("name").lost.wait())
    assert pauses == [1]


def test_threads_wait_while_coroutines_hold(conf: Conf, run: Run) -> None:
    async def main() -> None:
        async with conf.aio.get("name") as lock:
            waiting = asyncio.create_task(asyncio.to_thread(conf.get("name").lost.wait))
            await asyncio.sleep(0.01)
            await conf.aio.release("name", lock.token)
            assert await waiting

    with pytest.raises(LockExpired):
        run(main())
