"""No hold is lost in a crash of the server, whatever its settings for durability."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import score.distlock

from .conftest import fresh_database, with_options
from .support.line import outlive
from .support.server import Server

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def careless() -> Iterator[Server]:
    """A server that waits for no disk, and whose background writer hardly ever writes."""
    server = Server()
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET synchronous_commit = off")
        admin.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        admin.execute("ALTER SYSTEM SET bgwriter_delay = '10s'")
        admin.execute("ALTER SYSTEM SET autovacuum = off")
    server.stop()
    server.start()
    yield server
    server.destroy()


def crash(server: Server) -> None:
    """Ends the server without letting it write anything more."""
    server.stop("immediate")
    server.start()


@pytest.fixture
def careless_url(careless: Server) -> Iterator[str]:
    """A fresh database of that server, with everything so far on disk."""
    with fresh_database(careless.url()) as url:
        yield url


def settle(url: str) -> None:
    """Flushes what was written so far, so that only later changes can be lost."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("CHECKPOINT")


def row(url: str) -> Any:
    """The row of the only lock."""
    with psycopg.connect(url, autocommit=True) as db:
        return db.execute(
            "SELECT token, fence, lease, expires > clock_timestamp() FROM _score_distlock"
        ).fetchone()


def configured(url: str, maxtime: str = "1m") -> Conf:
    return score.distlock.init({"sqlalchemy.url": url, "maxtime": maxtime})


def test_the_server_does_forget(careless: Server, careless_url: str) -> None:
    """Checks the check: what was not made durable is gone."""
    with psycopg.connect(careless_url, autocommit=True) as db:
        db.execute("CREATE TABLE written (number int)")
        db.execute("CHECKPOINT")
        db.execute("INSERT INTO written VALUES (1)")
    crash(careless)
    with psycopg.connect(careless_url) as db:
        assert db.execute("SELECT count(*) FROM written").fetchone() == (0,)


@pytest.mark.parametrize("before", ["no row", "released", "expired"])
def test_an_acquisition(careless: Server, careless_url: str, before: str) -> None:
    conf = configured(careless_url, "100ms" if before == "expired" else "1m")
    lock = conf.get("name")
    fence = 0
    if before != "no row":
        lock.acquire()
        assert lock.fence is not None
        fence = lock.fence
        if before == "released":
            lock.release()
        else:
            with psycopg.connect(careless_url) as db:
                outlive(db)
    conf = configured(careless_url)
    lock = conf.get("name")
    settle(careless_url)
    token = lock.acquire()
    assert lock.fence is not None
    assert lock.fence > fence
    crash(careless)
    assert row(careless_url) == (token, lock.fence, 60, True)
    other = score.distlock.Lock(configured(careless_url), "name")
    assert other.try_acquiring() is None
    taken = lock.fence
    lock.release()
    other.acquire()
    assert other.fence is not None
    assert other.fence > taken


def test_an_acquisition_right_after_a_release(careless: Server, careless_url: str) -> None:
    """The short statement for a lock that this process has just released."""
    lock = configured(careless_url).get("name")
    for _ in range(3):
        lock.acquire()
        lock.release()
    settle(careless_url)
    token = lock.acquire()
    crash(careless)
    assert row(careless_url) == (token, lock.fence, 60, True)


def test_an_extension(careless: Server, careless_url: str) -> None:
    short = configured(careless_url, "2s")
    token = short.get("name").acquire()
    conf = configured(careless_url)
    settle(careless_url)
    conf.extend("name", token)
    crash(careless)
    assert row(careless_url)[2:] == (60, True)


def test_a_transfer(careless: Server, careless_url: str) -> None:
    lock = configured(careless_url).get("name")
    old = lock.acquire()
    settle(careless_url)
    new = lock.transfer()
    assert new != old
    crash(careless)
    assert row(careless_url)[0] == new


def test_an_automatic_extension(careless: Server, careless_url: str) -> None:
    """One statement extends many holds."""
    conf = configured(careless_url, "3s")
    with conf.get("name").hold(autoextend=True):
        with psycopg.connect(careless_url, autocommit=True) as db:
            query = "SELECT updated FROM _score_distlock"
            (before,) = db.execute(query).fetchone() or (None,)
            db.execute("CHECKPOINT")
            after = before
            while after == before:
                time.sleep(0.01)
                (after,) = db.execute(query).fetchone() or (None,)
        crash(careless)
        with psycopg.connect(careless_url, autocommit=True) as db:
            (found,) = db.execute(query).fetchone() or (None,)
            assert found >= after > before


def waiting(url: str) -> bool:
    """Whether the queue has an entry."""
    with psycopg.connect(url, autocommit=True) as db:
        return db.execute("SELECT waiters FROM _score_distlock").fetchone() != (None,)


@pytest.mark.parametrize("how", ["called", "expired"])
def test_a_waiters_turn(careless: Server, careless_url: str, how: str) -> None:
    holder = configured(careless_url, "1m" if how == "called" else "1500ms").get("name")
    holder.acquire()
    lock = configured(careless_url).get("name")
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(lock.acquire(timeout=20)))
    thread.start()
    while not waiting(careless_url):
        time.sleep(0.01)
    settle(careless_url)
    if how == "called":
        holder.release()
    thread.join()
    crash(careless)
    assert row(careless_url) == (answers[0], lock.fence, 60, True)


#: Records the durability that a commit of an acquisition asks for. A deferred trigger runs at
#: the very end of the transaction, long after the statement.
WITNESS = """
CREATE TABLE witness (setting text);
CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO witness VALUES (current_setting('synchronous_commit'));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER witness AFTER INSERT OR UPDATE ON _score_distlock
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.lease IS NOT NULL) EXECUTE FUNCTION witness();
"""


@pytest.mark.parametrize("setting", ["off", "local", "remote_write", "on", "remote_apply"])
def test_a_stronger_setting_stays(url: str, db: Db, setting: str) -> None:
    """Only `off` is raised: the administrator decides what a replica has to confirm."""
    score.distlock.init({"sqlalchemy.url": url})
    db.execute(WITNESS.encode())
    there = with_options(url, f"options=-csynchronous_commit%3D{setting}")
    conf = score.distlock.init({"sqlalchemy.url": there})
    lock = conf.get("name")
    deeds: list[Callable[[], Any]] = [
        lock.acquire,
        lock.extend,
        lock.transfer,
        lock.release,
        lock.acquire,
    ]
    for deed in deeds:
        deed()
    expected = "on" if setting == "off" else setting
    found = db.execute("SELECT setting FROM witness").fetchall()
    assert found == [(expected,)] * 4


def test_the_session_keeps_its_setting(url: str, db: Db) -> None:
    """It is raised for one transaction: behind a pooler we share the session."""
    there = with_options(url, "options=-csynchronous_commit%3Doff")
    conf = score.distlock.init({"sqlalchemy.url": there})
    lock = conf.get("name")
    db.execute(WITNESS.replace("NEW.lease IS NOT NULL", "true").encode())
    lock.acquire()
    lock.release()
    assert db.execute("SELECT setting FROM witness").fetchall() == [("on",), ("off",)]
