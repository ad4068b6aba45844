"""An owner whose hold somebody else releases is told, and never gets a second hold instead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import score.distlock
from score.distlock import DatabaseUnavailable, LockExpired

from .support.line import patiently, until
from .support.proxy import Proxy
from .test_lost_answers import own_url, proxy, through

__all__ = ("own_url", "proxy", "through")

Conf = score.distlock.ConfiguredDistlockModule
Lock = score.distlock.Lock

ENTER: dict[str, Callable[[Lock], object]] = {
    "acquire": lambda lock: lock.acquire(),
    "acquire and wait": lambda lock: lock.acquire(timeout=20),
    "try_acquiring": lambda lock: lock.try_acquiring(),
    "with": lambda lock: lock.__enter__(),
    "hold": lambda lock: lock.hold().__enter__(),
}


def refused(enter: Callable[[Lock], object], lock: Lock) -> None:
    with pytest.raises(LockExpired) as caught:
        enter(lock)
    assert caught.value.reason == "released"


@pytest.mark.parametrize("enter", ENTER.values(), ids=ENTER)
def test_while_the_release_is_under_way(
    through: Callable[..., Conf], proxy: Proxy, enter: Callable[[Lock], object]
) -> None:
    conf = through()
    told: list[Lock] = []
    hold = conf.get("name").hold(on_lost=told.append)
    with ThreadPoolExecutor(1) as others, pytest.raises(LockExpired), hold as lock:
        token = lock.token
        proxy.freeze_request(lambda message: b"name" in message)
        try:
            released = others.submit(conf.release, "name", token)
            proxy.frozen.wait()
            refused(enter, lock)
        finally:
            proxy.thaw()
        released.result()
        refused(enter, lock)
    until(lambda: len(told) == 1)
    conf.release("name", conf.acquire("name"))


@pytest.mark.parametrize("enter", ENTER.values(), ids=ENTER)
def test_after_a_release_that_failed(
    through: Callable[..., Conf], proxy: Proxy, enter: Callable[[Lock], object]
) -> None:
    conf = through(pool_timeout="1s")
    lost = threading.Event()
    hold = conf.get("name").hold(on_lost=lambda _: lost.set())
    with ThreadPoolExecutor(1) as others, pytest.raises(LockExpired), hold as lock:
        proxy.refuse(True)
        proxy.cut_all()
        with pytest.raises(DatabaseUnavailable):
            others.submit(conf.release, "name", lock.token).result()
        refused(enter, lock)
        proxy.refuse(False)
        lost.wait()
        refused(enter, lock)
    patiently(lambda: conf.release("name", conf.acquire("name")))


def test_without_a_block_the_owner_is_told_once(through: Callable[..., Conf], proxy: Proxy) -> None:
    conf = through()
    lock = conf.get("name")
    token = lock.acquire()
    with ThreadPoolExecutor(1) as others:
        proxy.freeze_request(lambda message: b"name" in message)
        try:
            released = others.submit(conf.release, "name", token)
            proxy.frozen.wait()
            refused(ENTER["acquire"], lock)
        finally:
            proxy.thaw()
        released.result()
    assert lock.expired
    refused(ENTER["acquire"], lock)
    lock.release(lock.acquire())
