"""Closing a configuration leaves nothing behind, and it can be used again."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import score.distlock

from .conftest import fresh_database, with_options
from .support.line import TASKS, Background, until, wait_until_waiting
from .support.proxy import Proxy

Db = psycopg.Connection[Any]
Conf = score.distlock.ConfiguredDistlockModule

SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'closed'"


def threads() -> dict[str, str]:
    """The threads of configurations in this process: from id to name."""
    found = {}
    for file in TASKS.glob("*/comm"):
        with contextlib.suppress(OSError):
            found[file.parent.name] = file.read_text().strip()
    return {task: name for task, name in found.items() if name.startswith("distlock-")}


def named(url: str) -> str:
    return with_options(url, "application_name=closed")


def await_nothing(db: Db) -> None:
    while db.execute(SESSIONS).fetchone() != (0,):
        pass


def use_everything(conf: Conf, db: Db) -> None:
    lock = conf.get("name")
    with lock.hold(autoextend=True), conf.acquire_all(["a", "b"]):
        pass
    token = conf.acquire("waited for")
    waiter = Background(conf.acquire, "waited for", timeout=60)
    wait_until_waiting(db, 1, "waited for")
    conf.release("waited for", token)
    conf.release("waited for", waiter.result())

    async def work() -> None:
        async with conf.aio.get("name"):
            pass

    asyncio.run(work())


def test_others_go_on_meanwhile(url: str) -> None:
    """Closing waits for no thread that others have started, or keep."""
    conf = score.distlock.init({"sqlalchemy.url": url, "sqlalchemy.pool_timeout": "1h"})
    closed = threading.Event()

    def work(name: str) -> None:
        while not closed.is_set():
            with conf.get(name).hold(autoextend=True):
                pass

    workers = [Background(work, f"name {number}") for number in range(4)]
    for _ in range(300):
        conf.close()
    closed.set()
    for worker in workers:
        worker.result()


@pytest.mark.skipif(not TASKS.is_dir(), reason="counts threads in /proc")
@pytest.mark.parametrize("how", ["close", "with", "aio"])
def test_nothing_is_left(url: str, db: Db, how: str) -> None:
    conf = score.distlock.init({"sqlalchemy.url": named(url)})
    others = threads()
    wanted = {"distlock-listen", "distlock-extend", "distlock-settle", "distlock-work"}

    def ours() -> set[str]:
        return {name for task, name in threads().items() if task not in others and name in wanted}

    for _ in range(2):
        if how == "with":
            with conf as same:
                assert same is conf
                use_everything(conf, db)
        else:
            use_everything(conf, db)
            if how == "close":
                conf.close()
            else:
                asyncio.run(conf.aio.close())
        await_nothing(db)
        until(lambda: not ours())
    assert conf.acquire("again")


def test_a_database_can_be_dropped_at_once(admin_url: str) -> None:
    with fresh_database(admin_url) as url, score.distlock.init({"sqlalchemy.url": url}) as conf:
        with psycopg.connect(url, autocommit=True) as db:
            use_everything(conf, db)
        conf.close()
        name = url.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(admin_url, autocommit=True) as admin:
            # Without FORCE, this fails if anyone stays connected for more than five seconds.
            admin.execute(f'DROP DATABASE "{name}"'.encode())
            admin.execute(f'CREATE DATABASE "{name}"'.encode())


def test_holds_and_waiters_go_on(url: str, db: Db) -> None:
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1s"})
    token = conf.acquire("held")
    waiter = Background(conf.acquire, "held", timeout=60)
    wait_until_waiting(db, 1, "held")
    with conf.get("extended").hold(autoextend=True) as lock:
        conf.close()
        expires = "SELECT expires FROM _score_distlock WHERE name = 'extended'"
        before = db.execute(expires).fetchone()
        while db.execute(expires).fetchone() == before:
            pass
        assert not lock.expired
    with contextlib.suppress(score.distlock.LockExpired):
        conf.release("held", token)
    assert waiter.result()


def test_holds_keep_their_levels(conf: Conf) -> None:
    lock = conf.get("name")
    token = lock.acquire()
    lock.acquire()
    conf.close()
    conf.release("name", token)
    assert not lock.expired
    conf.close()
    lock.release(token)
    assert lock.token is None
    with lock:
        conf.close()


def test_a_block_that_ends_in_an_outage_after_close(
    through: Callable[..., Conf], proxy: Proxy
) -> None:
    """Its release is owed, and completed when the database is back."""
    conf = through("300ms")
    with pytest.raises(score.distlock.DatabaseUnavailable), conf.get("closed"):
        conf.close()
        proxy.refuse(True)
        proxy.cut_all()
    proxy.refuse(False)
    conf.release("closed", conf.acquire("closed", timeout=20))


def test_an_outage_right_after_close(through: Callable[..., Conf], proxy: Proxy) -> None:
    """It is waited for, as any other is."""
    conf = through()
    token = conf.acquire("waited for")
    waiter = Background(conf.acquire, "waited for", timeout=60)
    until(lambda: "distlock-listen" in threads().values())
    conf.close()
    proxy.refuse(True)
    proxy.cut_all()
    tried = proxy.connects
    one_more = Background(conf.try_acquiring, "another")
    until(lambda: proxy.connects >= tried + 5)
    proxy.refuse(False)
    conf.release("waited for", token)
    assert waiter.result()
    assert one_more.result()


def test_what_is_owed_is_done_first(url: str, db: Db) -> None:
    conf = score.distlock.init({"sqlalchemy.url": url})
    db.execute("ALTER TABLE _score_distlock RENAME TO elsewhere")
    db.execute("ALTER TABLE elsewhere RENAME TO _score_distlock")
    lock = conf.get("name")
    with pytest.raises(score.distlock.DatabaseError), lock:
        db.execute("ALTER TABLE _score_distlock RENAME TO elsewhere")
    db.execute("ALTER TABLE elsewhere RENAME TO _score_distlock")
    conf.close()
    assert score.distlock.init({"sqlalchemy.url": url}).try_acquiring("name")


def test_the_engine_that_was_made_here_is_disposed_of(url: str) -> None:
    conf = score.distlock.init({"sqlalchemy.url": url})
    engine = conf.engine
    with engine.connect():
        pass
    conf.close()
    assert engine.pool.checkedin() == 0
    given = score.distlock.ConfiguredDistlockModule(engine, 60)
    with engine.connect():
        pass
    given.close()
    assert given.engine is engine
    assert engine.pool.checkedin() == 1
    engine.dispose()
