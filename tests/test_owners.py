"""Processes, threads, tasks and greenlets are separate owners."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock, LockExpired

from .conftest import python
from .test_clock import Db, await_expiry

Conf = score.distlock.ConfiguredDistlockModule


def test_another_thread_is_refused(conf: Conf) -> None:
    lock = conf.get("name")
    with lock, ThreadPoolExecutor(1) as other:
        assert other.submit(conf.get("name").try_acquiring).result() is None
        with pytest.raises(CouldNotAcquireLock):
            other.submit(lock.acquire).result()
        assert lock.acquire() == lock.token
        lock.release()


def test_another_thread_may_release_what_it_finds_in_the_object(conf: Conf) -> None:
    """As with 0.2.5: whoever has the object has the token."""
    lock = conf.get("name")
    lock.acquire()
    lock.acquire()
    with ThreadPoolExecutor(1) as other:
        other.submit(lock.release).result()
    assert lock.token is None
    assert score.distlock.Lock(conf, "name").try_acquiring() is not None


def test_a_release_after_a_refusal_ends_the_hold_of_another_thread(conf: Conf) -> None:
    """The wrong pattern of docs/how-to/tokens.rst, as with 0.2.5, and the right ones."""
    lock = conf.get("name")

    def wrong() -> None:
        try:
            lock.acquire()
        finally:
            lock.release()

    def right() -> None:
        with lock:
            pass

    with ThreadPoolExecutor(1) as other:
        token = lock.acquire()
        with pytest.raises(CouldNotAcquireLock):
            other.submit(right).result()
        assert lock.token == token
        other.submit(lock.extend).result()
        lock.extend()
        with pytest.raises(CouldNotAcquireLock):
            other.submit(wrong).result()
        assert lock.token is None
        assert conf.info("name") is None
        with pytest.raises(LockExpired):
            conf.extend("name", token)


def test_a_release_after_a_refusal_ends_the_hold_of_another_task(conf: Conf) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")

        async def wrong() -> None:
            try:
                await lock.acquire()
            finally:
                await lock.release()

        async def right() -> None:
            async with lock:
                pass

        token = await lock.acquire()
        with pytest.raises(CouldNotAcquireLock):
            await asyncio.create_task(right())
        assert lock.token == token
        with pytest.raises(CouldNotAcquireLock):
            await asyncio.create_task(wrong())
        assert lock.token is None
        assert await conf.aio.info("name") is None

    asyncio.run(main())


def test_one_object_shared_by_threads_that_outlive_their_leases(brief: Conf, db: Db) -> None:
    """The first thread's end must not release the second's hold."""
    lock = brief.get("name")
    lock.acquire()
    await_expiry(db, "name")
    with ThreadPoolExecutor(1) as other:
        token = other.submit(lock.acquire).result()
        with pytest.raises(LockExpired):
            lock.release()
        assert other.submit(lambda: lock.token).result() == token
        brief.extend("name", token)


def test_many_threads_exclude_each_other(conf: Conf) -> None:
    inside: list[int] = []
    entered = []

    def work(number: int) -> None:
        lock = conf.get("name")
        for _ in range(20):
            if lock.try_acquiring() is None:
                continue
            inside.append(number)
            assert inside == [number]
            entered.append(number)
            inside.remove(number)
            lock.release()

    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(work, number) for number in range(8)]:
            result.result()
    assert entered


def test_a_lock_per_thread_at_the_same_time(conf: Conf) -> None:
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        for round_ in range(10):
            barrier.wait()
            with conf.get(f"name {number} {round_}") as lock:
                lock.extend()

    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(work, number) for number in range(8)]:
            result.result()


def test_two_tasks_of_one_thread(conf: Conf) -> None:
    lock = conf.get("name")

    async def main() -> tuple[str | None, str | None]:
        holding, finished = asyncio.Event(), asyncio.Event()

        async def first() -> str | None:
            with lock:
                holding.set()
                await finished.wait()
                with lock:
                    return "first again"

        async def second() -> str | None:
            await holding.wait()
            try:
                return lock.try_acquiring()
            finally:
                finished.set()

        one, two = await asyncio.gather(first(), second())
        return one, two

    assert asyncio.run(main()) == ("first again", None)
    assert lock.token is None


def test_a_task_is_not_its_thread(conf: Conf) -> None:
    lock = conf.get("name")

    async def inside() -> str | None:
        return lock.try_acquiring()

    with lock:
        assert asyncio.run(inside()) is None


def test_two_greenlets_of_one_thread(conf: Conf) -> None:
    greenlet = pytest.importorskip("greenlet")
    lock = conf.get("name")
    seen: list[str | None] = []

    def first() -> None:
        with lock:
            other.switch()
            with lock:
                seen.append("first again")

    def second() -> None:
        seen.append(lock.try_acquiring())
        holder.switch()

    holder, other = greenlet.greenlet(first), greenlet.greenlet(second)
    holder.switch()
    assert seen == [None, "first again"]


def test_importing_greenlet_meanwhile_changes_no_owner(url: str) -> None:
    code = (
        "import sys, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})\n"
        "with conf.get('name') as lock:\n"
        "    assert 'greenlet' not in sys.modules\n"
        "    import greenlet\n"
        "    with lock: print('again')\n"
    )
    assert python(code, url) == "again\n"


def test_gevent(url: str) -> None:
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import sys, threading, gevent, gevent.event, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})\n"
        "lock = conf.get('name')\n"
        "holding, finished = gevent.event.Event(), gevent.event.Event()\n"
        "def first():\n"
        "    with lock:\n"
        "        holding.set(); finished.wait()\n"
        "        with lock: print('first again')\n"
        "def second():\n"
        "    holding.wait(); print(lock.try_acquiring()); finished.set()\n"
        "threads = [threading.Thread(target=first), threading.Thread(target=second)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(lock.token)\n"
    )
    assert python(code, url) == "None\nfirst again\nNone\n"
