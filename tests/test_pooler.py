"""Everything works behind PgBouncer in each of its modes, although clients share sessions."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import score.distlock
from score.distlock import DatabaseUnavailable
from score.distlock.cli._doctor import examine
from score.init import ConfigurationError

from .conftest import fresh_database
from .support.line import until
from .support.pooler import NAME, Bouncer, program
from .support.server import Server

Conf = score.distlock.ConfiguredDistlockModule

WORK = """
import sys, threading, score.distlock
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})
failed = []
def work(number):
    try:
        for _ in range(20):
            with conf.get(f'{sys.argv[2]} {number}') as lock:
                assert conf.get(f'{sys.argv[2]} {number}').acquire() == lock.token
                lock.release(); lock.extend(); lock.transfer()
            shared = conf.get('shared')
            if shared.try_acquiring(): shared.release()
            conf.vacuum()
    except Exception as error: failed.append(repr(error))
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed)
"""


@pytest.fixture(scope="module", params=["session", "transaction", "statement"])
def mode(request: pytest.FixtureRequest) -> str:
    """When PgBouncer gives a server session to another client."""
    return str(request.param)


@pytest.fixture(scope="module", params=["old", "new"])
def bouncer(server: Server, mode: str, request: pytest.FixtureRequest) -> Iterator[Bouncer]:
    """One that does not support prepared statements, as before 1.21, and one that does."""
    found = program()
    if found is None:
        pytest.skip(f"{NAME} is not installed")
    told = subprocess.run([found, "--version"], check=True, capture_output=True, text=True)
    version = re.search(r"(\d+)\.(\d+)", told.stdout)
    assert version
    knows = (int(version[1]), int(version[2])) >= (1, 21)
    if request.param == "new" and not knows:
        pytest.skip(f"this pgbouncer does not know prepared statements: {version[0]}")
    prepared = {"old": 0, "new": 100}[request.param]
    more = f"max_prepared_statements = {prepared}" if knows else ""
    # In session mode each client keeps its session; in the others clients share them.
    made = Bouncer(server, mode, 40 if mode == "session" else 3, more)
    yield made
    made.stop()


@pytest.fixture
def through(bouncer: Bouncer, server: Server) -> Iterator[str]:
    """The URL of a fresh database through the pooler."""
    with fresh_database(server.url()) as url:
        yield bouncer.url(url.partition("?")[0].rpartition("/")[2])


@pytest.fixture
def pooled(through: str) -> Conf:
    """A configuration whose holds last a minute."""
    return score.distlock.init({"sqlalchemy.url": through, "maxtime": "1m"})


def test_sessions_that_are_handed_around(through: str) -> None:
    """Several processes whose prepared statements have the same names, and no table yet."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, through, str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    assert [process.communicate()[0] for process in processes] == ["[]\n"] * 3


def test_who_waits_gets_the_lock_and_leaves_nothing_on_the_server(
    through: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A channel would stay on a session that others use, and so would an advisory lock."""
    caplog.set_level(logging.INFO, "score.distlock")
    database = through.rpartition("/")[2]
    with psycopg.connect(server.url(), autocommit=True) as admin:
        alter = sql.SQL("ALTER DATABASE {} SET log_statement TO 'all'")
        admin.execute(alter.format(sql.Identifier(database)))
        log = server.folder / "log"
        start = log.stat().st_size
        lock = Conf(through, "1m").get("waited for")
        lock.acquire()
        before = lock.fence
        fences: list[int | None] = []

        def wait() -> None:
            with Conf(through, "1m").get("waited for").hold(timeout=30) as other:
                fences.append(other.fence)

        waiter = threading.Thread(target=wait)
        waiter.start()
        # Each call delivers pending log records.
        while "waiters poll" not in caplog.text:
            lock.extend()
        lock.release()
        waiter.join()
        assert before is not None
        assert fences[0] is not None
        assert fences[0] > before
        assert "LISTEN" not in log.read_bytes()[start:].decode()
        left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert admin.execute(left).fetchone() == (0,)


def test_who_does_not_wait_does_not_come_before_those_of_its_process_that_do(
    pooled: Conf, through: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Although these only poll whether the lock is free."""
    caplog.set_level(logging.INFO, "score.distlock")
    has, over = threading.Event(), threading.Event()

    def wait() -> None:
        with pooled.get("in turn").hold(timeout=None):
            has.set()
            over.wait()

    with Conf(through, "1m").get("in turn") as lock:
        waiter = threading.Thread(target=wait)
        waiter.start()
        while "waiters poll" not in caplog.text:
            lock.extend()
    early = pooled.try_acquiring("in turn")
    if early:
        pooled.release("in turn", early)
    has.wait()
    over.set()
    waiter.join()
    assert early is None
    with pooled.get("in turn"):
        pass


def test_holds_are_extended_automatically(through: str) -> None:
    """Others are still refused after two of the first leases."""
    started = time.monotonic()
    conf, other = Conf(through, "500ms"), Conf(through, "1m")
    with conf.get("extended").hold(autoextend=True) as lock:
        until(lambda: time.monotonic() > started + 1)
        assert not other.get("extended").try_acquiring()
        assert not lock.expired


def test_coroutines(pooled: Conf) -> None:
    """They wait for each other."""
    order = []

    async def work(number: int) -> None:
        async with pooled.aio.get("coroutines").hold(timeout=30):
            order.append(number)
            await asyncio.sleep(0)
            order.append(number)

    async def all_of_them() -> None:
        await asyncio.gather(*(work(number) for number in range(4)))

    asyncio.run(all_of_them())
    assert order[::2] == order[1::2]
    assert sorted(order[::2]) == list(range(4))


def test_guarded_work(pooled: Conf, bouncer: Bouncer, through: str) -> None:
    """A guard needs a transaction, which one mode does not provide: the error says so."""
    with (
        psycopg.connect(through, prepare_threshold=None) as connection,
        pooled.get("guarded") as lock,
    ):
        if bouncer.mode != "statement":
            with lock.guard(connection):
                assert connection.execute("SELECT 1").fetchone() == (1,)
            return
        with pytest.raises(psycopg.Error, match="statement pooling"), lock.guard(connection):
            pass
        assert not lock.expired


def test_a_search_path_that_the_pooler_does_not_pass_on(
    bouncer: Bouncer, server: Server, tmp_path: Path
) -> None:
    """A pooler that ignores options would lead to another table: the same lock twice."""
    with fresh_database(server.url()) as url:
        with psycopg.connect(url, autocommit=True) as db:
            db.execute("CREATE SCHEMA locks")
        options = "?options=-csearch_path%3Dlocks"
        score.distlock.init({"sqlalchemy.url": url + options.replace("?", "&")})
        through = bouncer.url(url.partition("?")[0].rpartition("/")[2]) + options
        with pytest.raises(DatabaseUnavailable, match="a pooler does not pass the URL's options"):
            score.distlock.init({"sqlalchemy.url": through})
        file = bouncer.file
        file.write_text(file.read_text() + "ignore_startup_parameters = options, search_path\n")
        # Its console accepts only simple queries.
        with psycopg.connect(bouncer.url("pgbouncer"), autocommit=True) as console:
            console.pgconn.exec_(b"RELOAD")
        with pytest.raises(ConfigurationError, match="ask for search_path = locks"):
            score.distlock.init({"sqlalchemy.url": through})


def test_the_doctor_notices_the_pooler(pooled: Conf) -> None:
    facts, findings = examine(pooled)
    assert facts["notifications"] == "false"
    assert any("a pooler is in between" in finding.what for finding in findings)
