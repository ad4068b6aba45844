"""Connections break, servers restart: the next call works, or says what is wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql

import score.distlock
from score.distlock import DatabaseUnavailable

from .conftest import with_options
from .support.line import patiently
from .support.server import Server

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def restarted() -> Iterator[Server]:
    """A server that the tests stop and restart."""
    server = Server()
    yield server
    server.destroy()


@pytest.fixture
def patient(restarted: Server) -> Conf:
    return score.distlock.init(
        {"sqlalchemy.url": restarted.url(), "sqlalchemy.pool_timeout": "60s", "maxtime": "5m"}
    )


def fill_pool(conf: Conf) -> None:
    """Opens as many connections as the pool keeps open."""
    barrier = threading.Barrier(5)

    def work(number: int) -> None:
        barrier.wait()
        for _ in range(20):
            with conf.get(f"fill {number}"):
                pass

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(work, range(5)))


def test_the_server_throws_everybody_out(conf: Conf, db: Db) -> None:
    fill_pool(conf)
    kick = """
        SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
         WHERE application_name = 'score.distlock' AND datname = current_database()
    """
    for number in range(3):
        kicked = db.execute(kick).fetchone()
        assert kicked is not None
        assert kicked[0] > 0
        with conf.get(f"after {number}") as lock:
            db.execute(kick)
            lock.extend()
            db.execute(kick)
            lock.transfer()
            db.execute(kick)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_holds_survive_a_restart(patient: Conf, restarted: Server, mode: str) -> None:
    lock = patient.get(f"held over {mode}")
    lock.acquire()
    fill_pool(patient)
    restarted.stop(mode)
    restarted.start()
    other = score.distlock.init({"sqlalchemy.url": restarted.url()})
    assert other.try_acquiring(lock.name) is None
    lock.extend()
    lock.release()
    assert other.acquire(lock.name)


def test_a_fence_goes_on_after_a_crash(patient: Conf, restarted: Server) -> None:
    lock = patient.get("crashing")
    fences = []
    for _ in range(3):
        lock.acquire()
        assert lock.fence is not None
        fences.append(lock.fence)
        lock.release()
        # A crash may lose the release, which is committed asynchronously.
        restarted.stop("immediate")
        restarted.start()
        with psycopg.connect(restarted.url(), autocommit=True) as db:
            db.execute("UPDATE _score_distlock SET expires = now() WHERE name = 'crashing'")
    assert fences == sorted(set(fences))


def test_a_server_that_is_away_for_a_while_is_waited_for(patient: Conf, restarted: Server) -> None:
    lock = patient.get("away")
    lock.acquire()
    restarted.stop()
    failed = threading.Event()
    hasty = score.distlock.ConfiguredDistlockModule(restarted.url(), 1, pool_timeout="300ms")

    def come_back() -> None:
        failed.wait()
        restarted.start()

    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        with pytest.raises(DatabaseUnavailable, match="cannot reach"):
            hasty.acquire("other")
    finally:
        failed.set()
    lock.extend()
    lock.release()
    thread.join()


def test_a_known_server_that_stays_away_is_given_up(restarted: Server) -> None:
    options = {"sqlalchemy.url": restarted.url(), "sqlalchemy.pool_timeout": "500ms"}
    conf = patiently(lambda: score.distlock.init(options))
    lock = conf.get("given up")
    restarted.stop()
    try:
        with pytest.raises(DatabaseUnavailable, match="cannot reach"):
            lock.acquire()
    finally:
        restarted.start()
    assert patiently(lock.acquire)


@pytest.fixture
def black_hole() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_never_answers_is_given_up(black_hole: int) -> None:
    url = f"postgresql://user:hush@127.0.0.1:{black_hole}/db"
    with pytest.raises(DatabaseUnavailable, match=r"did not answer within 0\.3 s") as caught:
        score.distlock.init({"sqlalchemy.url": url, "sqlalchemy.pool_timeout": "300ms"})
    assert "hush" not in str(caught.value)


def test_the_next_of_several_hosts_is_tried(
    server: Server, server_url: str, black_hole: int
) -> None:
    database = server_url.partition("?")[0].rpartition("/")[2]
    both = f"postgresql://postgres@/{database}?host=127.0.0.1,{server.folder}"
    conf = score.distlock.init(
        {"sqlalchemy.url": f"{both}&port={black_hole},{server.port}&connect_timeout=1"}
    )
    assert conf.acquire("name")


def test_an_exhausted_pool_says_so(url: str, db: Db) -> None:
    conf = score.distlock.ConfiguredDistlockModule(
        url, "1m", pool_size=1, max_overflow=0, pool_timeout="400ms"
    )
    conf.acquire("name")
    with ThreadPoolExecutor(1) as pool:
        with db.transaction():
            db.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
            blocked = pool.submit(score.distlock.Lock(conf, "name").try_acquiring)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while db.execute(waiting).fetchone() == (0,):
                pass
            with pytest.raises(DatabaseUnavailable, match="pool_timeout"):
                conf.try_acquiring("other")
        assert isinstance(blocked.exception(), (DatabaseUnavailable, type(None)))


def test_connections_beyond_pool_size_are_closed_again(url: str, db: Db) -> None:
    conf = score.distlock.ConfiguredDistlockModule(url, "1m", pool_size=2, max_overflow=-1)
    fill_pool(conf)
    count = """
        SELECT count(*) FROM pg_stat_activity
         WHERE application_name = 'score.distlock' AND datname = current_database()
    """
    while db.execute(count).fetchone() != (2,):
        with conf.get("another"):  # a call closes connections unused for a second
            pass


def test_connections_are_recycled(url: str) -> None:
    conf = score.distlock.ConfiguredDistlockModule(url, "1m", pool_recycle=0, pool_pre_ping=True)
    for _ in range(3):
        with conf.get("name"):
            pass


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_stricter_default_isolation_does_no_harm(url: str, db: Db, level: str) -> None:
    name = db.info.dbname
    db.execute(f"ALTER DATABASE {name} SET default_transaction_isolation TO '{level}'".encode())
    conf = score.distlock.init({"sqlalchemy.url": url})
    inside: list[int] = []

    def work(number: int) -> None:
        lock = conf.get("contended")
        for _ in range(30):
            if lock.try_acquiring() is not None:
                inside.append(number)
                assert inside == [number]
                inside.remove(number)
                lock.release()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


def test_statements_that_were_given_up_are_cancelled(server_url: str) -> None:
    """The pool's limit is one for the server too, and nobody holds what nobody waits for."""
    score.distlock.init({"sqlalchemy.url": server_url}).close()
    conf = score.distlock.ConfiguredDistlockModule(
        with_options(server_url, "application_name=limited"),
        "1m",
        pool_size=2,
        max_overflow=0,
        pool_timeout=0.2,
    )
    others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'limited'"
    with psycopg.connect(server_url) as admin, psycopg.connect(server_url) as db:
        db.autocommit = True
        admin.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
        for number in range(25):
            with pytest.raises(score.distlock.DatabaseUnavailable):
                conf.acquire(f"name {number}")
            row = db.execute(others).fetchone()
            assert row is not None
            assert row[0] <= 2
        admin.rollback()
        while db.execute(others + " AND state = 'active'").fetchone() != (0,):
            pass
        held = "SELECT count(*) FROM _score_distlock WHERE expires > clock_timestamp()"
        while db.execute(held).fetchone() != (0,):
            pass
        lock = conf.get("name 0")
        while lock.token is None:
            with contextlib.suppress(score.distlock.DatabaseUnavailable):  # it may be slow
                lock.acquire()


OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def read_only(db: Db, setting: str) -> None:
    """Makes new sessions read-only, or not."""
    name = sql.Identifier(db.info.dbname)
    alter = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
    db.execute(alter.format(name, sql.Literal(setting)))


def test_what_was_never_writable_is_refused_at_once(conf: Conf, url: str, db: Db) -> None:
    """The URL names a standby: waiting would not help."""
    conf.get("name")
    read_only(db, "on")
    with pytest.raises(score.distlock.DatabaseError, match="needs the primary") as raised:
        score.distlock.init({"sqlalchemy.url": url}).get("name").acquire()
    assert raised.value.sqlstate == "25006"


def test_a_primary_that_is_demoted_for_a_while_is_waited_for(conf: Conf, db: Db) -> None:
    """Read-only sessions are not used again."""
    lock = conf.get("name")
    lock.acquire()
    fence = lock.fence
    read_only(db, "on")
    db.execute("SELECT pg_terminate_backend(pid) " + OTHERS)
    with ThreadPoolExecutor(1) as thread:
        extended = thread.submit(lock.extend)
        while not db.execute("SELECT 1 " + OTHERS + " AND query <> ''").fetchone():
            assert not extended.done()
        read_only(db, "off")
        extended.result()
    assert lock.fence == fence
    lock.release()


def test_a_session_that_answers_no_more_is_replaced(server: Server, server_url: str) -> None:
    """For instance after a firewall has dropped it, or the server was replaced."""
    conf = Conf(server_url, "5m", pool_timeout=30)
    lock = conf.get("name")
    lock.acquire()
    with psycopg.connect(server_url, autocommit=True) as db:
        ours = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"
        pids = [pid for (pid,) in db.execute(ours, (db.info.backend_pid,)).fetchall()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            lock.extend()
            lock.release()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    assert pids


def test_the_last_of_several_hosts_does_not_take_all_the_time(
    server: Server, server_url: str
) -> None:
    """It never answers, while the host asked before it becomes writable."""
    with (
        psycopg.connect(server_url, autocommit=True) as db,
        socket.create_server(("127.0.0.1", 0), backlog=50) as silent,
    ):
        hosts = f"host={server.folder},127.0.0.1&port={server.port},{silent.getsockname()[1]}"
        url = f"postgresql://postgres@/{db.info.dbname}?{hosts}&target_session_attrs=read-write"
        lock = Conf(url, "5m", pool_timeout=40).get("name")
        lock.acquire()
        read_only(db, "on")
        db.execute("SELECT pg_terminate_backend(pid) " + OTHERS)
        with ThreadPoolExecutor(1) as thread:
            extended = thread.submit(lock.extend)
            with silent.accept()[0]:
                read_only(db, "off")
                extended.result()
        lock.release()
