"""An owner learns that somebody else releases its hold, and never gets a second one instead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import score.distlock
from score.distlock import DatabaseUnavailable, LockExpired

from .support.line import patiently, until
from .support.proxy import Proxy

Conf = score.distlock.ConfiguredDistlockModule
Lock = score.distlock.Lock

ENTER: dict[str, Callable[[Lock], object]] = {
    "acquire": lambda lock: lock.acquire(),
    "acquire and wait": lambda lock: lock.acquire(timeout=20),
    "try_acquiring": lambda lock: lock.try_acquiring(),
    "with": lambda lock: lock.__enter__(),
    "hold": lambda lock: lock.hold().__enter__(),
}


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(LockExpired) as caught:
        yield
    assert caught.value.reason == "released"


@contextmanager
def lost_at_the_end() -> Iterator[None]:
    """Around a block: its end raises LockExpired, and nothing in it raises."""
    with pytest.raises(LockExpired) as caught:
        yield
    assert caught.value.__context__ is None


@contextmanager
def releasing(conf: Conf, proxy: Proxy, token: str) -> Iterator[None]:
    """Another thread releases the lock `name`; its request arrives at the end of the block."""
    with ThreadPoolExecutor(1) as others:
        proxy.freeze_request(lambda message: token.encode() in message)
        try:
            released = others.submit(conf.release, "name", token)
            proxy.frozen.wait()
            yield
        finally:
            proxy.thaw()
        released.result()


@pytest.mark.parametrize("enter", ENTER.values(), ids=ENTER)
def test_while_the_release_is_under_way(
    through: Callable[..., Conf], proxy: Proxy, enter: Callable[[Lock], object]
) -> None:
    conf = through()
    calls: list[Lock] = []
    with lost_at_the_end(), conf.get("name").hold(on_lost=calls.append) as lock:
        with releasing(conf, proxy, str(lock.token)), refused():
            enter(lock)
        with refused():
            enter(lock)
    until(lambda: len(calls) == 1)
    conf.release("name", conf.acquire("name"))


def test_while_the_release_is_under_way_in_a_coroutine(
    through: Callable[..., Conf], proxy: Proxy
) -> None:
    conf = through()
    refusals = []

    async def work() -> None:
        with lost_at_the_end():
            async with conf.aio.get("name") as lock:
                with releasing(conf, proxy, str(lock.token)), refused():
                    await lock.acquire()
                refusals.append("under way")
                with refused():
                    await lock.acquire()
                refusals.append("over")

    asyncio.run(work())
    assert refusals == ["under way", "over"]
    conf.release("name", conf.acquire("name"))


@pytest.mark.parametrize("enter", ENTER.values(), ids=ENTER)
def test_after_a_release_that_failed(
    through: Callable[..., Conf], proxy: Proxy, enter: Callable[[Lock], object]
) -> None:
    conf = through(pool_timeout="1s")
    lost = threading.Event()
    hold = conf.get("name").hold(on_lost=lambda _: lost.set())
    with ThreadPoolExecutor(1) as others, lost_at_the_end(), hold as lock:
        proxy.refuse(True)
        proxy.cut_all()
        with pytest.raises(DatabaseUnavailable):
            others.submit(conf.release, "name", lock.token).result()
        with refused():
            enter(lock)
        proxy.refuse(False)
        lost.wait()
        with refused():
            enter(lock)
    patiently(lambda: conf.release("name", conf.acquire("name")))


def test_without_a_block(through: Callable[..., Conf], proxy: Proxy) -> None:
    conf = through()
    lock = conf.get("name")
    with releasing(conf, proxy, lock.acquire()), refused():
        lock.acquire()
    assert lock.expired
    with refused():
        lock.acquire()
    lock.release(lock.acquire())
