"""The locks for coroutines, under asyncio's event loop and under uvloop."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import score.distlock
import score.distlock.aio
from score.distlock import CouldNotAcquireLock, DatabaseUnavailable, LockExpired

from .support.line import outlive, renewed, threads, until, waiting
from .support.proxy import Proxy
from .support.server import Server

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine in a new event loop; nothing may be left behind to warn about."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        new_loop = uvloop.new_event_loop
    else:
        new_loop = asyncio.new_event_loop

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        loop = new_loop()
        complaints: list[Any] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        try:
            return loop.run_until_complete(main)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            gc.collect()
            assert complaints == []

    return run


async def until_waiting(db: Db, count: int, name: str = "name") -> None:
    while waiting(db, name) != count:
        await asyncio.sleep(0.002)


async def until_free(conf: Conf, name: str = "name") -> None:
    """A cancelled task leaves the queue in the background."""
    while not (token := await conf.aio.get(name).try_acquiring()):
        await asyncio.sleep(0.002)
    await conf.aio.release(name, token)


def test_what_a_lock_has(conf: Conf, run: Run) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        assert conf.aio.get("name") is lock
        assert (lock.name, lock.conf) == ("name", conf)
        assert (lock.token, lock.fence, lock.remaining, lock.expired) == (None, None, 0, False)
        async with lock as entered:
            assert entered is lock
            assert lock.token
            assert lock.fence
            assert 50 < lock.remaining <= 60
            token = lock.token
            async with lock:
                assert lock.token == token
            assert await lock.acquire() == token
            assert await lock.try_acquiring() == token
            await lock.release()
            await lock.release()
            await lock.extend()
            new = await lock.transfer()
            assert new == lock.token != token
            with pytest.raises(LockExpired):
                await conf.aio.extend("name", token)
            await conf.aio.extend("name", new)
        assert lock.token is None
        with pytest.raises(ValueError, match="token"):
            await lock.release()
        with pytest.raises(LockExpired):
            await lock.release(new)
        await lock.release(new, ignore_expired=True)
        token = await conf.aio.acquire("name", timeout="1s")
        assert await conf.aio.try_acquiring("other")
        token = await conf.aio.transfer("name", token)
        await conf.aio.release("name", token)
        assert repr(lock) == "<score.distlock.aio.AsyncLock 'name' free>"
        with pytest.raises(TypeError, match="must be a str, not int"):
            conf.aio.get(1)

    run(main())


def test_tasks_are_owners(conf: Conf, run: Run) -> None:
    async def main() -> None:
        async with conf.aio.get("name"):

            async def other() -> None:
                assert await conf.aio.get("name").try_acquiring() is None
                with pytest.raises(CouldNotAcquireLock):
                    async with conf.aio.get("name"):
                        pass

            await asyncio.create_task(other())
            # The task is the same, whether it awaits or not.
            with conf.get("name"):
                pass
            assert conf.aio.get("name").token

    run(main())


def test_waiting_keeps_the_order_and_needs_no_thread(
    conf: Conf, url: str, db: Db, run: Run
) -> None:
    other = score.distlock.ConfiguredDistlockModule(url, "1h")
    order: list[int] = []
    before = threads()

    async def work(number: int) -> None:
        async with conf.aio.get("name").hold(timeout=30):
            order.append(number)

    async def main() -> None:
        token = await other.aio.acquire("name")
        tasks = [asyncio.create_task(work(number)) for number in range(100)]
        await until_waiting(db, 100)
        assert len(threads() - before) < 50
        for number in (0, 7, 8, 99):
            tasks[number].cancel()
        await until_waiting(db, 96)
        await other.aio.release("name", token)
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main())
    assert order == [number for number in range(100) if number not in (0, 7, 8, 99)]
    assert waiting(db) == 0


def test_a_timeout(conf: Conf, db: Db, run: Run) -> None:
    async def main() -> None:
        await conf.aio.acquire("name")
        for timeout in (0.05, "50ms"):
            with pytest.raises(CouldNotAcquireLock):
                await asyncio.create_task(conf.aio.get("name").acquire(timeout=timeout))
        await until_waiting(db, 0)

    run(main())


def test_the_loop_runs_while_something_waits(conf: Conf, db: Db, run: Run) -> None:
    async def main() -> None:
        token = await conf.aio.acquire("name")
        waiter = asyncio.create_task(conf.aio.get("name").acquire(timeout=30))
        await until_waiting(db, 1)
        await conf.aio.release("name", token)
        assert await waiter

    run(main())


def test_cancellation_at_any_point(conf: Conf, db: Db, run: Run) -> None:
    """Wherever the cancellation hits, neither a hold nor a place in the queue is left."""

    async def work() -> None:
        async with conf.aio.get("name").hold(timeout=30):
            async with conf.aio.get("name"):
                await asyncio.sleep(0)
            await conf.aio.get("name").extend()

    async def main() -> None:
        dice = random.Random(5)
        for round_ in range(150):
            tasks = [asyncio.create_task(work()) for _ in range(3)]
            for _ in range(dice.randrange(60)):
                await asyncio.sleep(0 if round_ % 2 else 0.0001)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(
                result is None or isinstance(result, asyncio.CancelledError) for result in results
            )
            await until_free(conf)
            await until_waiting(db, 0)

    run(main())


def test_a_wait_for_that_ends_it(conf: Conf, db: Db, run: Run) -> None:
    async def main() -> None:
        token = await conf.aio.acquire("name")
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(conf.aio.acquire("name", timeout=None), 0.1)
        await until_waiting(db, 0)
        await conf.aio.release("name", token)
        await until_free(conf)

    run(main())


def test_autoextend(conf: Conf, url: str, db: Db, run: Run) -> None:
    brief = score.distlock.ConfiguredDistlockModule(url, "300ms")

    async def main() -> None:
        async with brief.aio.get("name").hold(autoextend=True) as lock:
            # Blocks the loop for longer than the lease.
            renewed(db, ["name"], 3, lambda: lock.expired)
            assert not lock.expired
            assert await conf.aio.try_acquiring("name") is None
        told: list[Any] = []
        lost = asyncio.Event()

        async def on_lost(lock: Any) -> None:
            told.append((lock, threading.current_thread() is threading.main_thread()))
            lost.set()

        with pytest.raises(LockExpired):
            async with lock.hold(autoextend=True, on_lost=on_lost):
                await conf.aio.release("name", lock.token)
                await lost.wait()
        assert told == [(lock, True)]

    run(main())


def test_a_callback_that_is_false_runs_in_the_loop_too(conf: Conf, run: Run) -> None:
    class Callback(list[Any]):
        """When empty, it is false."""

        def __call__(self, lock: Any) -> None:
            self.append(threading.current_thread())
            lost.set()

    lost, callback = asyncio.Event(), Callback()

    async def main() -> None:
        lock = conf.aio.get("name")
        with pytest.raises(LockExpired):
            async with lock.hold(autoextend=True, on_lost=callback):
                await conf.aio.release("name", lock.token)
                await lost.wait()
        assert callback == [threading.current_thread()]

    run(main())


def test_with_is_configured(url: str, conf: Conf, db: Db, run: Run) -> None:
    patient = score.distlock.init(
        {"sqlalchemy.url": url, "maxtime": "300ms", "timeout": "30s", "autoextend": "yes"}
    )

    async def main() -> None:
        token = await conf.aio.acquire("name")

        async def work() -> None:
            async with patient.aio.get("name") as lock:
                await asyncio.to_thread(renewed, db, ["name"], 3, lambda: lock.expired)
                assert not lock.expired

        task = asyncio.create_task(work())
        await until_waiting(db, 1)
        await conf.aio.release("name", token)
        await task

    run(main())


def test_all_at_once(conf: Conf, db: Db, run: Run) -> None:
    async def main() -> None:
        async with conf.aio.acquire_all(["b", "a"]) as tokens:
            assert list(tokens) == ["a", "b"]
        token = await conf.aio.acquire("b")
        with pytest.raises(CouldNotAcquireLock):
            await asyncio.create_task(take())
        waiter = asyncio.create_task(take(timeout=30))
        await until_waiting(db, 1, "b")
        await conf.aio.release("b", token)
        await waiter
        for name in "ab":
            await until_free(conf, name)

    async def take(timeout: float = 0) -> None:
        holds = await conf.aio.acquire_all(["b", "a"], timeout=timeout)
        await holds.release()

    run(main())


def test_leaving_what_was_not_entered(conf: Conf, run: Run) -> None:
    async def main() -> None:
        await conf.aio.acquire_all(["name"]).__aexit__(None, None, None)
        await conf.aio.acquire_all(["name"]).release()
        for block in (conf.aio.get("name"), conf.aio.get("name").hold()):
            with pytest.raises(ValueError, match="no token"):
                await block.__aexit__(None, None, None)

    run(main())


def test_errors_arrive(through: Callable[..., Conf], proxy: Proxy, run: Run) -> None:
    conf = through(pool_timeout="300ms")

    async def main() -> None:
        lock = conf.aio.get("errors")
        await lock.acquire()
        proxy.refuse(True)
        proxy.cut_all()
        with pytest.raises(DatabaseUnavailable):
            await lock.release()
        proxy.refuse(False)
        await lock.release()

    run(main())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "sqlalchemy", "session"])
def test_guards(server: Server, server_url: str, run: Run, driver: str) -> None:
    conf = score.distlock.init({"sqlalchemy.url": server_url, "maxtime": "300ms"})
    database = server_url.partition("?")[0].rpartition("/")[2]
    dsn = server_url.replace("postgresql://", "postgresql+psycopg://")

    async def guarded(lock: Any, connection: Any, lose: bool) -> None:
        token = lock.token
        if lose:
            await lock.release(lock.token)
        async with lock.guard(connection, token=token) as entered:
            assert entered is lock
            with psycopg.connect(server_url) as db:
                outlive(db)
            # The lease has passed, and still nobody else gets in.
            assert await conf.aio.try_acquiring("name") is None

    async def work(lose: bool) -> None:
        lock = score.distlock.aio.AsyncLock(score.distlock.Lock(conf, "name"))
        await lock.acquire()
        if driver == "asyncpg":
            connection = await asyncpg.connect(
                host=str(server.folder), port=server.port, user="postgres", database=database
            )
            try:
                async with connection.transaction():
                    await guarded(lock, connection, lose)
            finally:
                await connection.close()
        elif driver == "psycopg":
            async with await psycopg.AsyncConnection.connect(server_url) as psycopg_connection:
                await guarded(lock, psycopg_connection, lose)
        else:
            engine = create_async_engine(dsn)
            try:
                if driver == "session":
                    async with AsyncSession(engine) as session, session.begin():
                        await guarded(lock, session, lose)
                else:
                    async with engine.begin() as begun:
                        await guarded(lock, begun, lose)
            finally:
                await engine.dispose()

    async def main() -> None:
        await work(False)
        await until_free(conf)
        with pytest.raises(LockExpired):
            await work(True)
        with pytest.raises(TypeError, match="asynchronous"):
            conf.aio.get("name").guard(sqlalchemy, token="0" * 256)

    run(main())


def test_loops_in_several_threads(conf: Conf, run: Run) -> None:
    inside: list[int] = []

    async def work() -> None:
        for _ in range(20):
            async with conf.aio.get("name").hold(timeout=60):
                inside.append(1)
                assert len(inside) == 1
                await asyncio.sleep(0)
                inside.pop()

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(3)))

    failed: list[BaseException] = []

    def thread() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=thread) for _ in range(3)]
    for one in threads:
        one.start()
    run(main())
    for one in threads:
        one.join()
    assert failed == []


def test_many_loops_one_after_the_other(conf: Conf, run: Run) -> None:
    async def main() -> None:
        async with conf.aio.get("name"):
            pass

    run(main())
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(20):
        run(main())
    assert len(list(Path("/dev/fd").iterdir())) <= before + 2


@pytest.mark.parametrize("what", ["extend", "transfer", "extend by token", "transfer by token"])
def test_a_loop_that_goes_on_after_the_lease(brief: Conf, url: str, run: Run, what: str) -> None:
    """The answer was in time, but the loop reads it when the lock is lost."""
    other = score.distlock.init({"sqlalchemy.url": url})
    taken: list[str] = []

    async def main() -> None:
        lock = brief.aio.get("name")
        token = await lock.acquire()
        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "extend": lock.extend,
            "transfer": lock.transfer,
            "extend by token": lambda: brief.aio.extend("name", token),
            "transfer by token": lambda: brief.aio.transfer("name", token),
        }
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: taken.append(other.acquire("name", timeout=30)))
        with pytest.raises(LockExpired) as raised:
            await calls[what]()
        assert raised.value.reason == "expired"

    run(main())
    other.release("name", taken[0])


@pytest.mark.parametrize("delivered", [False, True])
def test_a_signal_handler_raises_while_answers_are_delivered(conf: Conf, delivered: bool) -> None:
    """They are delivered again."""
    complaints: list[Any] = []

    class Interrupted:
        """An inbox; a signal handler raises when it delivers the first answer."""

        def __init__(self, channel: Any) -> None:
            self.channel, self.inbox = channel, channel.inbox
            channel.inbox = self

        def fileno(self) -> int:
            return int(self.inbox.fileno())

        def deliver(self, deliver: Callable[..., None], expected: object) -> None:
            def interrupted(*answer: object) -> None:
                if delivered:
                    deliver(*answer)
                raise RuntimeError("a signal")

            self.channel.inbox = self.inbox
            self.inbox.deliver(interrupted, expected)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        async with conf.aio.get("name") as lock:
            channel = score.distlock._channel.current()
            loop.call_soon(Interrupted, channel)
            await lock.extend()

    asyncio.run(main())
    assert [str(one["exception"]) for one in complaints] == ["a signal"]


@pytest.mark.parametrize("then", ["release", "extend", "transfer"])
def test_a_cancelled_transfer_loses_no_token(conf: Conf, run: Run, then: str) -> None:
    """The caller knows only the old token, whether or not the database has the new one."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for step in range(150):
            token = await conf.aio.acquire("name", timeout=None)
            transfer = asyncio.create_task(conf.aio.transfer("name", token))
            loop.call_later(step / 50_000, transfer.cancel)
            try:
                token = await transfer
            except asyncio.CancelledError:
                if then == "extend":
                    await conf.aio.extend("name", token)
                if then == "transfer":
                    token = await conf.aio.transfer("name", token)
            await conf.aio.release("name", token)

    run(main())


def test_the_loop_does_not_read_the_new_token(
    conf: Conf, db: psycopg.Connection[Any], run: Run
) -> None:
    """The transfer is done, and its task is cancelled at that very moment."""

    def current() -> Any:
        row = db.execute("SELECT token FROM _score_distlock WHERE name = 'name'").fetchone()
        assert row is not None
        return row[0]

    async def main() -> None:
        lock = conf.get("name")
        token = lock.acquire()
        transfer = asyncio.create_task(conf.aio.transfer("name", token))
        await asyncio.sleep(0)
        until(lambda: current() != token)  # blocks the loop
        new = current()
        transfer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await transfer
        assert lock.token == token
        assert await conf.aio.transfer("name", token) == new == lock.token
        with pytest.raises(LockExpired):
            await conf.aio.release("name", token)
        transfer = asyncio.create_task(conf.aio.transfer("name", new))
        await asyncio.sleep(0)
        until(lambda: current() != new)
        transfer.cancel()
        await asyncio.wait([transfer])
        await conf.aio.release("name", new)
        assert lock.token is None and conf.try_acquiring("name")

    run(main())
