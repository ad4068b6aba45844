"""Statements that reach the server after their callers have given up acquire nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import LockExpired

from .support.line import Background, outlive, until

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


@contextlib.contextmanager
def standing_still(db: Db, name: str) -> Iterator[None]:
    """Stops the server processes of one application, so that requests to them queue up."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query !~ 'LISTEN'"
    pids = [row[0] for row in db.execute(query, (name,))]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    # Now they execute the queued requests.
    query = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s) AND state <> 'idle'"
    until(lambda: db.execute(query, (pids,)).fetchone() == (0,))


@pytest.fixture
def local(url: str) -> str:
    """The URL of a server whose processes we may stop."""
    if os.geteuid() != 0 and "DISTLOCK_TEST_URL" in os.environ:
        pytest.skip("the server's processes are not ours")
    return url + ("&" if "?" in url else "?")


def test_a_lock_that_was_taken_on_another_session_and_released_stays_free(
    local: str, conf: Conf, db: Db
) -> None:
    slow = Conf(local + "application_name=slow", "1m", pool_timeout=20)
    with slow.get("name"):
        pass
    with standing_still(db, "slow"), slow.get("name") as lock:
        fence = lock.fence
    assert fence
    with conf.get("name") as lock:
        assert lock.fence == fence + 1


def test_a_hold_that_was_lost_does_not_come_back(local: str, url: str, db: Db) -> None:
    """Its lease ends, another holds and releases the lock, and then the late statement runs."""
    slow = Conf(local + "application_name=slow", "2s", pool_timeout=20)
    lock = slow.get("name")
    with lock:
        pass
    with standing_still(db, "slow"):
        lock.acquire(timeout=20)
        outlive(db)
        with Conf(url, "1m").get("name"):
            pass
    assert lock.expired
    with pytest.raises(LockExpired):
        lock.extend()


@pytest.mark.parametrize("how", ["interrupted", "cancelled"])
def test_what_was_given_up_ends_though_it_comes_late(
    local: str, conf: Conf, db: Db, how: str
) -> None:
    slow = Conf(local + "application_name=slow", "10m", pool_timeout=20)
    with slow.get("name"):
        pass
    with standing_still(db, "slow"):
        if how == "cancelled":

            async def give_up() -> None:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(slow.aio.acquire("name"), 0.2)

            asyncio.run(give_up())
        else:

            def interrupt(*_: object) -> None:
                raise KeyboardInterrupt

            before = signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                slow.acquire("name")
            signal.signal(signal.SIGALRM, before)
    # It may be held for the five seconds that the statement is valid, not for its whole lease.
    assert conf.acquire("name", timeout=30)


@pytest.mark.parametrize("timeout", [0, 5, None])
@pytest.mark.parametrize("how", ["lock", "token", "several"])
def test_who_asks_next_waits_for_what_was_given_up(
    through: Any, proxy: Any, how: str, timeout: float | None
) -> None:
    """Also a caller that does not wait, in the same task and elsewhere: the name is free."""
    conf = through()
    aio, name = conf.aio, f"next {how} {timeout}"
    ways: dict[str, Callable[[], Any]] = {
        "lock": lambda: aio.get(name).acquire(timeout=timeout),
        "token": lambda: aio.acquire(name, timeout=timeout),
        "several": lambda: aio.acquire_all([name], timeout=timeout),
    }

    async def main() -> None:
        await aio.release(name, await aio.acquire(name))
        proxy.freeze_answers()
        first = asyncio.ensure_future(ways[how]())
        await asyncio.to_thread(proxy.frozen.wait)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.ensure_future(aio.try_acquiring(name))
        elsewhere = Background(conf.try_acquiring, name)
        await asyncio.wait([second], timeout=0.3)  # a refusal would come at once
        proxy.thaw()
        tokens = [await second, await asyncio.to_thread(elsewhere.result)]
        [token] = [token for token in tokens if token is not None]
        await aio.release(name, token)

    asyncio.run(main())


def test_an_extension_whose_answer_comes_late_takes_nothing_back(
    through: Any, proxy: Any, own_url: str
) -> None:
    """Renewals have moved the deadline on in the meantime."""
    conf = through(pool_timeout="20")
    told: list[Any] = []
    other = Conf(own_url, "2s")
    lock = other.get("late")
    with (
        lock.hold(autoextend=True),
        lock.hold(autoextend=False, on_lost=told.append),
        psycopg.connect(own_url, autocommit=True) as db,
    ):
        proxy.freeze_answer_to(b"RETURNING fence")
        token = lock.token
        assert token
        late = Background(conf.extend, "late", token)
        proxy.frozen.wait()
        outlive(db, "late")
        threading.Timer(0, proxy.thaw).start()
        with contextlib.suppress(LockExpired):
            late.result()
        assert not lock.expired
    assert told == []
