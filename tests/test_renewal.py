"""Renewals do not wait for each other; losses are reported; the configuration stays unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import LockExpired

from .support.line import Background, renewed, until, wait_until_waiting
from .support.server import Server

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
SOON = 6
LATENCY = 0.05


def test_locked_rows_cost_the_other_holds_nothing(url: str, db: Db) -> None:
    """Twenty of thirty rows are locked for longer than the lease."""
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1s", "autoextend": "true"})
    lost: set[str] = set()
    locked = [f"locked {number}" for number in range(20)]
    free = [f"free {number}" for number in range(10)]

    def on_lost(lock: score.distlock.Lock) -> None:
        lost.add(lock.name)

    with contextlib.ExitStack() as stack, psycopg.connect(url) as locker:
        locks = {name: conf.get(name) for name in locked + free}
        for lock in locks.values():
            stack.enter_context(contextlib.suppress(LockExpired))
            stack.enter_context(lock.hold(on_lost=on_lost))
        locker.execute("SELECT FROM _score_distlock WHERE name LIKE 'locked %' FOR UPDATE")
        renewed(db, free, 8, lambda: lost & set(free))
        until(lambda: lost >= set(locked))
        assert lost == set(locked)
        assert not any(locks[name].expired for name in free)
        locker.rollback()


def test_a_row_locked_for_less_than_its_lease_costs_nothing(url: str, db: Db) -> None:
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "3s", "autoextend": "true"})
    lost: list[Any] = []
    names = [str(number) for number in range(10)]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(conf.get(name).hold(on_lost=lost.append))
        for _ in range(3):
            with psycopg.connect(url) as locker:
                locker.execute("SELECT FROM _score_distlock FOR UPDATE")
                # More than a third of the lease.
                locker.execute("SELECT pg_sleep(1.3)")
            renewed(db, names, 1, lambda: lost)
        assert lost == []


class Slow:
    """Listens on TCP; forwards to a Unix socket; delays every answer."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server = socket.socket(socket.AF_UNIX)
                server.connect(self.path)
                self.sockets += [client, server]
                for source, target, delay in ((client, server, 0.0), (server, client, LATENCY)):
                    arguments = (source, target, delay)
                    threading.Thread(target=self.forward, args=arguments, daemon=True).start()

    def forward(self, source: socket.socket, target: socket.socket, delay: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(delay)
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.close()
        for one in self.sockets:
            one.close()


@pytest.fixture
def slow(server: Server, server_url: str) -> Iterator[tuple[str, str]]:
    """The URL through a slow proxy, and the direct one."""
    proxy = Slow(f"{server.folder}/.s.PGSQL.{server.port}")
    database = server_url.partition("?")[0].rpartition("/")[2]
    yield f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}", server_url
    proxy.close()


def test_a_long_hold_is_kept_beside_short_ones(slow: tuple[str, str]) -> None:
    """Each answer takes a quarter of the short leases."""
    through, direct = slow
    conf = score.distlock.ConfiguredDistlockModule(through, "6s", autoextend=True)
    stop = threading.Event()
    lost: list[Any] = []

    def short(number: int) -> None:
        while not stop.is_set():
            block = conf.get(f"short {number}").hold(maxtime="200ms")
            with contextlib.suppress(LockExpired, score.distlock.CouldNotAcquireLock), block:
                stop.wait(1)

    with conf.get("long").hold(on_lost=lost.append) as lock:
        others = [Background(short, number) for number in range(5)]
        with psycopg.connect(direct, autocommit=True) as db:
            renewed(db, ["long"], 4, lambda: lost)
        assert lost == []
        assert not lock.expired
        stop.set()
        for other in others:
            other.result()


@pytest.mark.parametrize("manner", ["hold", "async", "locked"])
def test_a_lease_that_ends_without_renewal_is_told(brief: Conf, manner: str) -> None:
    told = threading.Event()
    seen: list[tuple[str, bool]] = []

    def on_lost(lock: Any) -> None:
        seen.append((lock.name, lock.expired))
        told.set()

    if manner == "hold":
        with pytest.raises(LockExpired), brief.get("name").hold(on_lost=on_lost):
            told.wait()
    elif manner == "locked":

        @brief.locked("name", on_lost=on_lost)
        def work() -> None:
            told.wait()

        with pytest.raises(LockExpired):
            work()
    else:

        async def main() -> None:
            async with brief.aio.get("name").hold(on_lost=on_lost):
                await asyncio.to_thread(told.wait)

        with pytest.raises(LockExpired):
            asyncio.run(main())
    assert seen == [("name", True)]


def test_a_lease_that_is_extended_by_hand_is_not_told_as_lost(brief: Conf, db: Db) -> None:
    """Until it really ends."""
    told = threading.Event()
    with pytest.raises(LockExpired), brief.get("name").hold(on_lost=lambda _: told.set()) as lock:
        for _ in range(10):
            db.execute("SELECT pg_sleep(0.05)")
            lock.extend()
        assert not told.is_set()
        told.wait()
        assert lock.expired


Take = Callable[..., None]


def hold(**options: Any) -> Take:
    """Takes a hold in a block; returns its lock and whether it expired once its time was over."""

    def take(conf: Conf, within: Callable[[], None] = lambda: None) -> None:
        with conf.get("name").hold(**options):
            within()

    return take


def hold_in_loop(**options: Any) -> Take:
    def take(conf: Conf, within: Callable[[], None] = lambda: None) -> None:
        async def main() -> None:
            async with conf.aio.get("name").hold(**options):
                await asyncio.to_thread(within)

        asyncio.run(main())

    return take


def locked(**options: Any) -> Take:
    def take(conf: Conf, within: Callable[[], None] = lambda: None) -> None:
        conf.locked("name", **options)(within)()

    return take


def acquire_all(**options: Any) -> Take:
    def take(conf: Conf, within: Callable[[], None] = lambda: None) -> None:
        with conf.acquire_all(["name"], **options):
            within()

    return take


def acquire_all_in_loop(**options: Any) -> Take:
    def take(conf: Conf, within: Callable[[], None] = lambda: None) -> None:
        async def main() -> None:
            async with conf.aio.acquire_all(["name"], **options):
                await asyncio.to_thread(within)

        asyncio.run(main())

    return take


BLOCKS = [hold, hold_in_loop, locked, acquire_all, acquire_all_in_loop]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("options", [{}, {"autoextend": True}, {"autoextend": False}])
def test_the_configured_timeout_stays(
    url: str, db: Db, block: Callable[..., Take], options: Any
) -> None:
    """Whatever another argument says."""
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1h", "timeout": "30s"})
    keeper = score.distlock.ConfiguredDistlockModule(url, "1h")
    token = keeper.acquire("name")
    waiter = Background(block(**options), conf)
    wait_until_waiting(db, 1)
    keeper.release("name", token)
    waiter.result()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("options", [{}, {"timeout": 1}, {"timeout": None}, {"timeout": 0}])
def test_the_configured_autoextend_stays(
    url: str, db: Db, block: Callable[..., Take], options: Any
) -> None:
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "600ms", "autoextend": "true"})

    def outlive() -> None:
        renewed(db, ["name"], 2, lambda: False)
        db.execute("SELECT pg_sleep(0.7)")

    block(**options)(conf, outlive)


@pytest.mark.parametrize("block", BLOCKS)
def test_autoextend_need_not_be_configured(url: str, db: Db, block: Callable[..., Take]) -> None:
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "600ms"})
    over = "SELECT expires < clock_timestamp() FROM _score_distlock"

    def outlive() -> None:
        renewed(db, ["name"], 2, lambda: db.execute(over).fetchone() == (True,))

    block(autoextend=True)(conf, outlive)


@pytest.mark.parametrize("block", [hold, hold_in_loop, locked])
def test_maxtime_changes_neither(url: str, db: Db, block: Callable[..., Take]) -> None:
    settings = {"sqlalchemy.url": url, "maxtime": "1h", "timeout": "30s", "autoextend": "true"}
    conf = score.distlock.init(settings)
    keeper = score.distlock.ConfiguredDistlockModule(url, "1h")
    token = keeper.acquire("name")

    def outlive() -> None:
        renewed(db, ["name"], 2, lambda: False)
        db.execute("SELECT pg_sleep(0.7)")

    waiter = Background(block(maxtime="600ms"), conf, outlive)
    wait_until_waiting(db, 1)
    keeper.release("name", token)
    waiter.result()


def test_calls_that_wait_for_a_row_do_not_cost_other_holds_their_renewals(url: str, db: Db) -> None:
    """Calls that another transaction blocks occupy the whole pool."""
    options = {"sqlalchemy.pool_size": "2", "sqlalchemy.max_overflow": "1"}
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "2s", **options})
    lost: list[Any] = []
    token = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1m"}).acquire("locked")
    with psycopg.connect(url) as locker:
        with conf.get("free").hold(autoextend=True, on_lost=lost.append):
            locker.execute("SELECT FROM _score_distlock WHERE name = 'locked' FOR UPDATE")
            calls = [Background(conf.extend, "locked", token) for _ in range(6)]
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            until(lambda: db.execute(blocked).fetchone() == (3,))
            renewed(db, ["free"], 4, lambda: lost)
            assert lost == []
            assert db.execute(blocked).fetchone() == (3,)
            locker.rollback()
        for call in calls:
            # The new lease began before they had to wait.
            with contextlib.suppress(LockExpired):
                call.result()
