"""The queue: one ticket per process, in order, and no process delays another."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock, DatabaseUnavailable

from .conftest import SUPPORT
from .support.line import Background, until, wait_until_waiting
from .support.proxy import Proxy
from .test_waiting import SOON, conf, other

__all__ = ("conf", "other")

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


def tickets(db: Db, name: str = "name") -> list[int]:
    row = db.execute("SELECT waiters FROM _score_distlock WHERE name = %s", (name,)).fetchone()
    return list(row[0] or []) if row else []


async def until_in_loop(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def terminate_sessions(db: Db) -> None:
    """Terminates all other sessions of the database."""
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_three_hundred_coroutines_have_one_ticket_and_keep_their_order(
    conf: Conf, other: Conf, db: Db
) -> None:
    token = conf.acquire("name")
    order: list[int] = []
    seen: set[int] = set()

    async def work(number: int) -> None:
        async with other.aio.get("name").hold(timeout=None):
            order.append(number)
            if number % 20 == 0:
                seen.add(len(tickets(db)))

    async def main() -> None:
        tasks = [asyncio.ensure_future(work(number)) for number in range(300)]
        await until_in_loop(lambda: _waiting_here() == 300 and tickets(db))
        assert len(tickets(db)) == 1
        await other.aio.release("name", token)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order == list(range(300))
    assert seen == {1}
    assert tickets(db) == []


def _waiting_here(name: str = "name") -> int:
    count: int = score.distlock._distlock._waiting(name)[0]
    return count


def here(count: int) -> bool:
    return _waiting_here() == count


def queued(db: Db, count: int) -> bool:
    return len(tickets(db)) == count


def test_three_hundred_threads_have_one_ticket_and_keep_their_order(
    conf: Conf, other: Conf, db: Db
) -> None:
    token = conf.acquire("name")
    order: list[int] = []

    def work(number: int) -> None:
        with other.get("name").hold(timeout=None):
            order.append(number)

    threads = []
    for number in range(300):
        threads.append(Background(work, number))
        until(lambda: _waiting_here() == len(threads))
    wait_until_waiting(db, 300)
    assert len(tickets(db)) == 1
    conf.release("name", token)
    for thread in threads:
        thread.result()
    assert order == list(range(300))
    assert tickets(db) == []


def test_threads_and_coroutines_are_one_line(conf: Conf, other: Conf, db: Db) -> None:
    """In order of arrival, whichever they are, even if some in between give up."""
    token = conf.acquire("name")
    order: list[int] = []

    def work(number: int) -> None:
        with other.get("name").hold(timeout=None):
            order.append(number)

    async def work_in_loop(number: int) -> None:
        async with other.aio.get("name").hold(timeout=None):
            order.append(number)

    async def main() -> None:
        threads: list[Background] = []
        tasks: list[asyncio.Future[None]] = []
        for number in range(0, 300, 3):
            threads.append(Background(work, number))
            expected = len(threads) + len(tasks)
            await until_in_loop(partial(here, expected))
            tasks += [asyncio.ensure_future(work_in_loop(number + more)) for more in (1, 2)]
            expected = len(threads) + len(tasks)
            await until_in_loop(partial(here, expected))
        assert len(tickets(db)) <= 1
        for gone in tasks[::10]:
            gone.cancel()
        await asyncio.wait(tasks[::10])
        await other.aio.release("name", token)
        await asyncio.gather(*tasks, return_exceptions=True)
        for thread in threads:
            await asyncio.to_thread(thread.result)

    asyncio.run(main())
    coroutines = [number for number in range(300) if number % 3]
    assert order == sorted(set(range(300)) - set(coroutines[::10]))
    assert tickets(db) == []


def test_two_processes_that_come_again_and_again_alternate(url: str, conf: Conf, db: Db) -> None:
    """Even if one of them has three times as many waiters."""
    token = conf.acquire("name")
    programs = [
        subprocess.Popen(
            [sys.executable, str(SUPPORT / "again.py"), url, "name", threads, times],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads, times in (("3", "14"), ("9", "10"))
    ]
    try:
        for count, program in enumerate(programs, 1):
            assert program.stdin is not None
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            program.stdin.write("\n")
            program.stdin.flush()
            until(partial(queued, db, count))
        conf.release("name", token)
        few, many = [
            [int(fence) for fence in program.communicate()[0].split()] for program in programs
        ]
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    assert (len(few), len(many)) == (42, 90)
    # Between two turns of the first process the other has one.
    between = [
        sum(before < fence < after for fence in many) for before, after in itertools.pairwise(few)
    ]
    # A process that sleeps past its turn may be overtaken, which happens on a loaded machine.
    assert sum(count != 1 for count in between[:-4]) <= 6, between


@pytest.mark.parametrize("how", ["DELETE FROM _score_distlock", "TRUNCATE _score_distlock"])
@pytest.mark.parametrize("who", ["thread", "coroutine"])
def test_a_waiter_notices_that_an_administrator_removed_the_row(
    conf: Conf, other: Conf, db: Db, how: str, who: str
) -> None:
    conf.acquire("name")

    def in_loop() -> str:
        return asyncio.run(other.aio.acquire("name", timeout=SOON))

    def in_thread() -> str:
        return other.acquire("name", timeout=SOON)

    waiter = Background(in_thread if who == "thread" else in_loop)
    wait_until_waiting(db, 1)
    db.execute(how.encode())
    assert len(waiter.result()) == 256
    until(lambda: tickets(db) == [])


def test_all_waiters_notice_that_an_administrator_removed_the_row(
    conf: Conf, other: Conf, db: Db
) -> None:
    """One after the other, although the queue was deleted with the row."""
    conf.acquire("name")
    order: list[int] = []

    def work(number: int) -> None:
        with other.get("name").hold(timeout=SOON):
            order.append(number)

    waiters = []
    for number in range(5):
        waiters.append(Background(work, number))
        wait_until_waiting(db, number + 1)
    db.execute("DELETE FROM _score_distlock")
    for waiter in waiters:
        waiter.result()
    assert order == list(range(5))
    assert tickets(db) == []


def test_slow_calls_stop_no_other_coroutine(conf: Conf, other: Conf, db: Db, url: str) -> None:
    """Twelve coroutines wait for locked rows; no other coroutine does."""
    tokens = {str(number): conf.acquire(str(number)) for number in range(12)}

    async def main(locker: Db) -> None:
        aio = other.aio
        slow = [asyncio.ensure_future(aio.extend(*item)) for item in tokens.items()]
        waits = (
            "SELECT count(*) >= 8 FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        # As many as the module sends at once.
        await until_in_loop(lambda: db.execute(waits).fetchone() == (True,))
        for _ in range(3):
            async with aio.get("free"):
                pass
            await aio.release("unrelated", await aio.acquire("unrelated"))
        assert not any(one.done() for one in slow)
        locker.rollback()
        await asyncio.gather(*slow)

    with psycopg.connect(url) as locker:
        locker.execute("SELECT FROM _score_distlock FOR UPDATE")
        asyncio.run(main(locker))


@pytest.mark.parametrize("outage", [False, True], ids=["calm", "outage"])
def test_given_up_waits_hold_up_no_acquire(
    through: Callable[..., Conf], proxy: Proxy, own_url: str, outage: bool
) -> None:
    """Not even while their clean-up is impossible, because their row is locked."""
    name = f"given up {outage}"
    other = through()
    keeper = score.distlock.ConfiguredDistlockModule(own_url, "1h")
    with psycopg.connect(own_url, autocommit=True) as db, psycopg.connect(own_url) as locker:
        token = keeper.acquire(name)

        async def main() -> None:
            aio = other.aio
            tasks = [asyncio.ensure_future(aio.acquire(name, timeout=None)) for _ in range(100)]
            await until_in_loop(lambda: tickets(db, name))
            await until_in_loop(
                lambda: _waiting_here(name) == 100 if ONE_TICKET else len(tickets(db, name)) == 100
            )
            await asyncio.to_thread(
                locker.execute,
                "SELECT FROM _score_distlock WHERE name = %s FOR UPDATE",
                (name,),
            )
            if outage:
                proxy.refuse(True)
                proxy.cut_all()
            for one in tasks:
                one.cancel()
            await asyncio.wait(tasks)
            proxy.refuse(False)
            await aio.release("first", await aio.acquire("first", timeout=SOON))
            # And in a thread.
            other.release("second", other.acquire("second"))
            locker.rollback()
            await until_in_loop(lambda: not tickets(db, name))

        asyncio.run(main())
        keeper.release(name, token)


#: False in the builds that these tests were written against.
ONE_TICKET = hasattr(score.distlock._distlock, "_waiting")


@pytest.mark.parametrize("reconnect", [False, True], ids=["connected", "terminated"])
def test_a_blocked_event_loop_does_not_starve_those_behind_it(
    conf: Conf, other: Conf, db: Db, reconnect: bool
) -> None:
    token = conf.acquire("name")
    waits = threading.Event()
    thread_has_finished = threading.Event()
    order: list[str] = []

    async def main() -> None:
        async def first() -> None:
            await other.aio.acquire("name", timeout=None)
            order.append("loop")

        task = asyncio.ensure_future(first())
        await until_in_loop(lambda: tickets(db))
        waits.set()
        thread_has_finished.wait()  # blocks the loop
        await task

    loop = Background(asyncio.run, main())
    waits.wait()

    def second() -> None:
        try:
            mine = other.acquire("name", timeout=SOON)
            order.append("thread")
            other.release("name", mine)
        finally:
            thread_has_finished.set()

    thread = Background(second)
    wait_until_waiting(db, 2)
    if reconnect:
        terminate_sessions(db)
    conf.release("name", token)
    thread.result()
    loop.result()
    assert order == ["thread", "loop"]


def test_two_blocked_event_loops_do_not_starve_a_thread(conf: Conf, other: Conf, db: Db) -> None:
    """The same with several blocked loops, before and behind it."""
    token = conf.acquire("name")
    thread_has_finished = threading.Event()

    def blocked() -> Background:
        entered = threading.Event()

        async def main() -> None:
            async def acquire() -> None:
                lock = other.aio.get("name")
                async with lock.hold(timeout=None):
                    pass

            task = asyncio.ensure_future(acquire())
            before = _waiting_here()
            await until_in_loop(lambda: _waiting_here() > before)
            entered.set()
            thread_has_finished.wait()
            await task

        loop = Background(asyncio.run, main())
        entered.wait()
        return loop

    loops = [blocked(), blocked()]

    def second() -> None:
        try:
            other.release("name", other.acquire("name", timeout=SOON))
        finally:
            thread_has_finished.set()

    thread = Background(second)
    wait_until_waiting(db, 3)
    loops.append(blocked())
    terminate_sessions(db)
    conf.release("name", token)
    thread.result()
    for loop in loops:
        loop.result()
    until(lambda: tickets(db) == [])


@pytest.mark.parametrize("second", ["refused", "taken"])
@pytest.mark.parametrize("by", ["another process's wait", "our own next"])
def test_two_unknown_outcomes_of_one_name(
    through: Callable[..., Conf], proxy: Proxy, own_url: str, second: str, by: str
) -> None:
    """Whether the second took the lock, because the first one's lease was over, or was refused."""
    name = f"unknown {second} {by}"
    conf = through(pool_timeout="1s")
    observer = score.distlock.ConfiguredDistlockModule(own_url, "1h")
    with psycopg.connect(own_url, autocommit=True) as db:

        def token() -> Any:
            row = db.execute(
                "SELECT token FROM _score_distlock WHERE name = %s AND expires > clock_timestamp()",
                (name,),
            ).fetchone()
            return row and row[0]

        observer.release(name, observer.acquire(name))
        callers = []
        for number in range(2):
            proxy.freeze_answer_to(name.encode())
            callers.append(Background(conf.acquire, name))
            # The first answer arrives once the statement is committed.
            proxy.frozen.wait()
            first = token()
            assert first
            if second == "taken" and number == 0:
                db.execute(
                    "UPDATE _score_distlock SET expires = clock_timestamp() WHERE name = %s",
                    (name,),
                )
        proxy.refuse(True)
        proxy.cut_all()
        proxy.thaw()
        for caller in callers:
            with pytest.raises((DatabaseUnavailable, CouldNotAcquireLock)):
                caller.result()
        proxy.refuse(False)
        if by == "our own next":
            observer = conf
        observer.release(name, observer.acquire(name, timeout=20))
        assert token() is None
        until(lambda: tickets(db, name) == [])


def test_leaving_by_timeout_leaves_no_ticket(conf: Conf, other: Conf, db: Db) -> None:
    """The last waiter of a process removes its ticket before it returns."""
    token = conf.acquire("name")

    def wait(timeout: float) -> None:
        with pytest.raises(CouldNotAcquireLock):
            other.acquire("name", timeout=timeout)

    async def wait_in_loop(timeout: float) -> None:
        with pytest.raises(CouldNotAcquireLock):
            await other.aio.acquire("name", timeout=timeout)

    async def wait_all() -> None:
        await asyncio.gather(*(wait_in_loop(0.01 * number) for number in range(30)))

    for number in range(20):
        wait(0.002 * number)
        assert tickets(db) == []
    threads = [Background(wait, 0.01 * number) for number in range(30)]
    for thread in threads:
        thread.result()
    assert tickets(db) == []
    asyncio.run(wait_all())
    assert tickets(db) == []
    conf.release("name", token)
    assert other.acquire("name")


def test_leaving_by_cancellation_leaves_no_ticket(conf: Conf, other: Conf, db: Db) -> None:
    """At any moment, and whatever the next call does."""
    token = conf.acquire("name")

    async def main() -> None:
        for number in range(150):
            task = asyncio.ensure_future(other.aio.acquire("name", timeout=None))
            if number < 100:
                await asyncio.sleep(0.0001 * number)
            else:
                await until_in_loop(lambda: tickets(db))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await until_in_loop(lambda: not tickets(db) and not _waiting_here())
        tasks = [asyncio.ensure_future(other.aio.acquire("name", timeout=None)) for _ in range(100)]
        await until_in_loop(lambda: tickets(db) and _waiting_here() == 100)
        for one in tasks:
            one.cancel()
        await asyncio.wait(tasks)
        await until_in_loop(lambda: not tickets(db) and not _waiting_here())

    asyncio.run(main())
    conf.release("name", token)
    assert other.acquire("name")
    assert tickets(db) == []


TERMINATED = """
import signal, sys, score.distlock
def stop(*_): raise SystemExit(7)
signal.signal(signal.SIGTERM, stop)
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1h')
print('waiting', flush=True)
with conf.get('name').hold(timeout=None): pass
"""


def test_leaving_by_a_signal_leaves_no_ticket(url: str, conf: Conf, db: Db) -> None:
    token = conf.acquire("name")
    program = subprocess.Popen(
        [sys.executable, "-c", TERMINATED, url], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "waiting\n"
    until(lambda: tickets(db))
    program.send_signal(signal.SIGTERM)
    program.communicate()
    assert program.returncode == 7
    assert tickets(db) == []
    conf.release("name", token)
    assert conf.acquire("name")
