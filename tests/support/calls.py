"""Calls to the whole API, good and bad, and what they must not use up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import psycopg

import score.distlock
from score.distlock import CouldNotAcquireLock, DatabaseUnavailable, LockExpired
from score.init import ConfigurationError

from .server import free_port

Conf = score.distlock.ConfiguredDistlockModule
Sample = dict[str, int]

WRONG = "0" * 256
#: The limit, in seconds, for anything that has to happen eventually.
LIMIT = 30


class Calls:
    """An application that uses the whole API repeatedly."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.conf = Conf(url, "1m")
        self.other = Conf(url, "1d", reentrant=False)
        self.numbers = itertools.count()
        self.loop = asyncio.new_event_loop()
        self.connection = psycopg.connect(url)
        self.watch = psycopg.connect(url, autocommit=True)
        self.process = psutil.Process()
        self.taken = self.other.acquire("taken")
        self.made = 0
        #: The work of each round, and of every twentieth round.
        self.often = [self.tokens, self.locks, self.refusals, self.mistakes, self.several]
        self.often += [self.functions, self.guards, self.extended]
        self.seldom = [self.lost, self.waits, self.new_loop, self.new_confs, self.vacuum]
        self.rounds = 0

    def close(self) -> None:
        self.other.release("taken", self.taken)
        self.loop.run_until_complete(self.conf.aio.close())
        self.other.close()
        self.loop.close()
        self.connection.close()
        self.watch.close()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Makes a call that succeeds."""
        self.made += 1
        return function(*arguments, **options)

    def fail(
        self, error: type[Exception], function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> None:
        """Makes a call that fails."""
        self.made += 1
        try:
            function(*arguments, **options)
        except error:
            return
        raise AssertionError(f"{function} did not raise {error.__name__}")

    async def acall(self, awaitable: Any) -> Any:
        self.made += 1
        return await awaitable

    async def afail(self, error: type[Exception], awaitable: Any) -> None:
        self.made += 1
        try:
            await awaitable
        except error:
            return
        raise AssertionError(f"{awaitable} did not raise {error.__name__}")

    def name(self) -> str:
        return f"name {next(self.numbers)}"

    def until(self, call: int) -> None:
        """Goes on until this many calls were made."""
        while self.made < call:
            for work in self.often:
                work()
            self.loop.run_until_complete(self.coroutines())
            if self.rounds % 20 == 0:
                self.seldom[self.rounds // 20 % len(self.seldom)]()
            self.rounds += 1

    # The calls.

    def tokens(self) -> None:
        name, conf = self.name(), self.conf
        token = self.call(conf.acquire, name)
        assert self.call(self.other.try_acquiring, name) is None
        self.call(conf.extend, name, token)
        token = self.call(conf.transfer, name, token.encode())
        self.fail(LockExpired, conf.release, name, WRONG)
        self.call(conf.release, name, token)
        self.fail(LockExpired, conf.release, name, token)
        token = self.call(conf.try_acquiring, name)
        self.call(conf.release, name, token)

    def locks(self) -> None:
        for lock in (self.conf.get(self.name()), score.distlock.Lock(self.conf, self.name())):
            with lock, lock:
                self.made += 2
                self.call(lock.acquire)
                self.call(lock.extend)
                self.call(lock.release)
                assert lock.token and lock.fence and lock.remaining > 0 and not lock.expired
                assert lock.conf is self.conf and repr(lock)
            with contextlib.suppress(KeyError), lock.hold(maxtime="5s"):
                self.made += 1
                raise KeyError
            self.call(lock.try_acquiring)
            self.call(lock.transfer)
            self.call(lock.release)

    def refusals(self) -> None:
        self.fail(CouldNotAcquireLock, self.conf.acquire, "taken")
        self.fail(CouldNotAcquireLock, self.conf.get("taken").acquire, timeout="1ms")
        self.fail(CouldNotAcquireLock, self.conf.get("taken").hold().__enter__)
        assert self.call(self.conf.get("taken").try_acquiring) is None

    def mistakes(self) -> None:
        conf, lock = self.conf, self.conf.get(self.name())
        for no_name in (7, None, b"x"):
            self.fail(TypeError, conf.acquire, no_name)
        for bad_name in ("\0", "\ud800"):
            self.fail(ValueError, conf.get, bad_name)
        self.fail(ValueError, lock.release)
        self.fail(ValueError, lock.extend, "")
        self.fail(ValueError, lock.__exit__)
        self.fail(ValueError, lock.acquire, timeout="soon")
        self.fail(TypeError, lock.hold, on_lost=7)
        self.fail(LockExpired, lock.transfer, "x")
        self.call(lock.release, WRONG, ignore_expired=True)
        self.fail(ConfigurationError, Conf, "postgresql://u:secret@h:x/d", 1)
        self.fail(ConfigurationError, score.distlock.init, {"sqlalchemy.url": self.url, "x": 1})
        self.fail(TypeError, Conf, None, 1)

    def several(self) -> None:
        with self.call(self.conf.acquire_all, [self.name(), self.name()]) as tokens:
            assert len(tokens) == 2
        self.call(self.conf.acquire_all, [self.name(), self.name()]).release()
        self.fail(CouldNotAcquireLock, self.conf.acquire_all, [self.name(), "taken"])
        self.fail(ValueError, self.conf.acquire_all, [self.name(), "\0"])

    def functions(self) -> None:
        @self.conf.locked("{name}", timeout=LIMIT)
        def work(name: str, error: type[Exception] | None = None) -> None:
            if error is not None:
                raise error

        self.call(work, self.name())
        self.fail(KeyError, work, self.name(), KeyError)
        self.fail(ValueError, self.conf.locked, "{")

    def guards(self) -> None:
        lock = self.conf.get(self.name())
        with lock, self.connection.transaction(), self.call(lock.guard, self.connection):
            pass
        self.fail(TypeError, lock.guard, None, token=WRONG)
        self.fail(ValueError, lock.guard, self.connection)
        guard = self.call(lock.guard, self.connection, token=WRONG)
        with contextlib.suppress(LockExpired), self.connection.transaction():
            self.fail(LockExpired, guard.__enter__)
            raise LockExpired("", WRONG)

    def extended(self) -> None:
        with self.call(self.conf.get(self.name()).hold, autoextend=True, on_lost=print):
            pass

    async def coroutines(self) -> None:
        aio, lock = self.conf.aio, self.conf.aio.get(self.name())
        async with lock, lock:
            self.made += 2
            await self.acall(lock.extend())
        async with lock.hold(autoextend=True, on_lost=print):
            self.made += 1
        token = await self.acall(aio.acquire(lock.name))
        await self.acall(aio.release(lock.name, await self.acall(aio.transfer(lock.name, token))))
        assert await self.acall(aio.try_acquiring("taken")) is None
        await self.afail(CouldNotAcquireLock, aio.get("taken").acquire(timeout=0.001))
        await self.afail(LockExpired, lock.release(WRONG))
        await self.afail(ValueError, lock.extend())
        await self.afail(TypeError, aio.acquire(7))  # type: ignore[arg-type]
        async with aio.acquire_all([self.name(), self.name()]):
            self.made += 1
        async with lock:
            waiting = asyncio.create_task(self.acall(aio.acquire(lock.name, timeout=None)))
            await asyncio.sleep(0)
            waiting.cancel()
            await self.afail(CouldNotAcquireLock, aio.acquire_all([self.name(), "taken"]))
            await asyncio.wait([waiting])

        @self.conf.locked("{name}")
        async def work(name: str) -> None:
            await asyncio.sleep(0)

        await self.acall(work(self.name()))

    def lost(self) -> None:
        """The holder is told of a loss, and the end of the block raises it."""
        name, told = self.name(), threading.Event()
        lock = self.conf.get(name)
        with contextlib.suppress(LockExpired):
            with lock.hold(autoextend=True, on_lost=lambda _: told.set()):
                self.made += 1
                self.call(self.conf.release, name, lock.token)
                assert told.wait(LIMIT)
            raise AssertionError("the loss was not told")

    def waits(self) -> None:
        """A thread waits, and gets the lock."""
        name = self.name()
        token = self.call(self.conf.acquire, name)

        def wait() -> None:
            with self.call(self.conf.get(name).hold, LIMIT):
                pass

        waiter = threading.Thread(target=wait)
        waiter.start()
        while score.distlock._distlock._waiting(name)[0] == 0:
            time.sleep(0.001)
        self.call(self.conf.release, name, token)
        waiter.join()

    def new_loop(self) -> None:
        asyncio.run(self.coroutines())

    def new_confs(self) -> None:
        """One module is closed, one is forgotten, one cannot reach the database."""
        with self.call(score.distlock.init, {"sqlalchemy.url": self.url}) as conf:
            self.call(conf.release, "new", self.call(conf.acquire, "new"))
            assert self.call(lambda: conf.engine.dialect)
        forgotten = self.call(Conf, self.url, 60)
        self.call(forgotten.release, "new", self.call(forgotten.acquire, "new"))
        nobody = self.call(Conf, f"postgresql://u@127.0.0.1:{free_port()}/d", 1, pool_timeout=0.01)
        self.fail(DatabaseUnavailable, nobody.acquire, "new")

    def vacuum(self) -> None:
        self.call(self.conf.vacuum)

    # The resources.

    def sample(self) -> Sample:
        """The resources in use right now."""
        gc.collect()
        query = (
            "SELECT count(*), pg_total_relation_size('_score_distlock'), (SELECT count(*) FROM"
            " pg_stat_activity WHERE datname = current_database()) FROM _score_distlock"
        )
        rows, size, sessions = self.watch.execute(query).fetchone() or (0, 0, 0)
        return {
            "calls": self.made,
            "rss": self.process.memory_info().rss,
            "descriptors": self.process.num_fds(),
            "threads": self.process.num_threads(),
            "sessions": sessions,
            "rows": rows,
            "table": size,
            "objects": len(gc.get_objects()),
        }

    def warm_up(self) -> None:
        """Imports and starts everything that stays."""
        for _ in range(2):
            for work in (*self.often, *self.seldom):
                work()
            self.loop.run_until_complete(self.coroutines())

    def samples(self, calls: int, times: int) -> Iterator[Sample]:
        """Makes this many calls; yields samples this many times, and one before."""
        self.warm_up()
        start = self.made
        for number in range(times + 1):
            self.until(start + calls * number // times)
            yield self.sample()
