"""A guard ties the lock to the caller's own transaction."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar
from unittest import mock

import psycopg
import psycopg2
import pytest
import sqlalchemy
from django.db.backends.utils import CursorWrapper
from sqlalchemy.orm import Session

import score.distlock
from score.distlock import CouldNotAcquireLock, LockExpired

from .conftest import python, run
from .support.line import Background, wait_until_waiting
from .test_clock import await_expiry

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


class Client:
    """A driver: how to open a transaction, execute statements in it, and commit it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        """Yields a connection inside a transaction, rolled back unless :meth:`commit` is called."""
        raise NotImplementedError

    def execute(self, connection: Any, sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    def commit(self, connection: Any) -> None:
        connection.commit()


class Psycopg2(Client):
    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        with contextlib.closing(psycopg2.connect(self.url)) as connection:
            yield connection


class Psycopg3(Client):
    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        with contextlib.closing(psycopg.connect(self.url)) as connection:
            yield connection


class Psycopg3WithDictRows(Client):
    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        from psycopg.rows import dict_row

        with contextlib.closing(psycopg.connect(self.url, row_factory=dict_row)) as connection:
            yield connection


class SqlalchemyConnection(Client):
    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        url = self.url.replace("postgresql:", "postgresql+psycopg:")
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
        with engine.connect() as connection:
            yield connection

    def execute(self, connection: Any, sql: str) -> None:
        connection.execute(sqlalchemy.text(sql))


class SqlalchemySession(SqlalchemyConnection):
    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        url = self.url.replace("postgresql:", "postgresql+psycopg2:")
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
        with Session(engine) as session:
            yield session


class Django(Client):
    OPTIONS: ClassVar[dict[str, Any]] = {}

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        from django.conf import settings
        from django.db import connections

        if not settings.configured:
            settings.configure(DATABASES={})
        info = psycopg.conninfo.conninfo_to_dict(self.url)
        alias = "guarded"
        connections.databases[alias] = connections.configure_settings(
            {
                "default": {},
                alias: {
                    "ENGINE": "django.db.backends.postgresql",
                    "NAME": info["dbname"],
                    "USER": info.get("user", ""),
                    "HOST": info["host"],
                    "PORT": str(info["port"]),
                    "OPTIONS": self.OPTIONS,
                },
            }
        )[alias]
        connection = connections[alias]
        connection.set_autocommit(False)
        try:
            yield connection
        finally:
            connection.rollback()
            connection.close()
            del connections[alias]


class DjangoWithDictRows(Django):
    OPTIONS: ClassVar[dict[str, Any]] = {"row_factory": psycopg.rows.dict_row}


CLIENTS = [
    Psycopg2,
    Psycopg3,
    Psycopg3WithDictRows,
    SqlalchemyConnection,
    SqlalchemySession,
    Django,
    DjangoWithDictRows,
]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, url: str, db: Db) -> Client:
    db.execute("CREATE TABLE work (done text)")
    made: Client = request.param(url)
    return made


@pytest.fixture
def psycopg3(url: str, db: Db) -> Client:
    db.execute("CREATE TABLE work (done text)")
    return Psycopg3(url)


def work(db: Db) -> list[Any]:
    """The committed rows."""
    return [row[0] for row in db.execute("SELECT done FROM work")]


def test_guarded_work_is_committed(client: Client, conf: Conf, db: Db) -> None:
    with conf.get("name") as lock, client.transaction() as connection:
        with lock.guard(connection) as guarded:
            assert guarded is lock
            client.execute(connection, "INSERT INTO work VALUES ('100% $1 :a')".replace(":a", "a"))
        client.commit(connection)
    assert work(db) == ["100% $1 a"]


def test_a_late_holder_cannot_commit(client: Client, brief: Conf, conf: Conf, db: Db) -> None:
    """Not even what it did before the guard, and not if it swallows the exception."""
    lock = brief.get("name")
    lock.acquire()
    await_expiry(db, "name")
    conf.acquire("name")
    with client.transaction() as connection:
        client.execute(connection, "INSERT INTO work VALUES ('too late')")
        with pytest.raises(LockExpired), lock.guard(connection):
            pytest.fail("the guard let a late holder in")
        with contextlib.suppress(Exception):
            client.commit(connection)
    assert work(db) == []
    assert lock.expired


def test_a_loss_that_a_guard_finds_is_told(psycopg3: Client, conf: Conf, db: Db) -> None:
    told = threading.Event()
    with pytest.raises(LockExpired), conf.get("name").hold(on_lost=lambda _: told.set()) as lock:
        db.execute("UPDATE _score_distlock SET token = 'stolen'")
        with (
            psycopg3.transaction() as connection,
            pytest.raises(LockExpired),
            lock.guard(connection),
        ):
            pytest.fail("the guard let somebody in who has lost the lock")
        assert lock.expired
        told.wait()


def test_nobody_takes_over_what_is_guarded(client: Client, brief: Conf, conf: Conf, db: Db) -> None:
    """Even past the lease; takers are refused, and hang in no statement."""
    lock = brief.get("name")
    token = lock.acquire()
    with client.transaction() as connection:
        with lock.guard(connection):
            await_expiry(db, "name")
            assert conf.try_acquiring("name") is None
            with pytest.raises(CouldNotAcquireLock):
                conf.acquire("name")
            conf.vacuum()
            client.execute(connection, "INSERT INTO work VALUES ('late but guarded')")
        assert conf.try_acquiring("name") is None  # refused until the transaction ends
        client.commit(connection)
    assert work(db) == ["late but guarded"]
    assert conf.acquire("name") != token


def test_the_guarded_hold_can_be_extended_and_released(psycopg3: Client, conf: Conf) -> None:
    lock = conf.get("name")
    lock.acquire()
    with psycopg3.transaction() as connection:
        with lock.guard(connection):
            lock.extend()
            lock.transfer()
            lock.extend()
            lock.release()
        assert conf.try_acquiring("name") is None, "free, but guarded"
        psycopg3.commit(connection)
    assert conf.acquire("name")


def test_a_waiter_hangs_in_no_statement(psycopg3: Client, conf: Conf, db: Db) -> None:
    """The release wakes it, and it gives up in time while the guard's transaction is open."""
    lock = conf.get("name")
    lock.acquire()
    with psycopg3.transaction() as connection:
        with lock.guard(connection):
            impatient = Background(lock.acquire, timeout="500ms")
            wait_until_waiting(db, 1)
            patient = Background(lock.acquire, timeout=None)
            wait_until_waiting(db, 2)
            lock.release()
            with pytest.raises(CouldNotAcquireLock):
                impatient.result()
        psycopg3.commit(connection)
    patient.result()


def test_a_rollback_ends_the_guard(psycopg3: Client, brief: Conf, conf: Conf, db: Db) -> None:
    lock = brief.get("name")
    lock.acquire()
    with psycopg3.transaction() as connection:
        with lock.guard(connection):
            await_expiry(db, "name")
        connection.rollback()
        assert conf.acquire("name")


def test_several_guards_at_once(psycopg3: Client, conf: Conf) -> None:
    token = conf.acquire("name")
    with psycopg3.transaction() as one, psycopg3.transaction() as two:
        lock = conf.get("name")
        with lock.guard(one, token=token), lock.guard(two, token=token.encode()):
            assert lock.fence is not None


def test_a_hold_of_0_2_5_is_guarded_and_has_no_fence(conf: Conf, url: str, db: Db) -> None:
    token = "ab" * 128
    insert = (
        "INSERT INTO _score_distlock (name, acquired, updated, token)"
        " VALUES ('name', now(), now(), %s)"
    )
    db.execute(insert, (token,))
    lock = conf.get("name")
    with psycopg.connect(url) as connection, lock.guard(connection, token=token):
        assert lock.fence is None
        assert conf.try_acquiring("name") is None


def test_a_guard_needs_no_other_driver_than_the_callers(url: str, conf: Conf) -> None:
    code = (
        "import sys, psycopg2, score.distlock\n"
        "with score.distlock.init({'sqlalchemy.url': sys.argv[1]}).get('name') as lock:\n"
        "    with psycopg2.connect(sys.argv[1]) as connection, lock.guard(connection):\n"
        "        print('guarded', 'psycopg' in sys.modules)\n"
    )
    assert python(code, url) == "guarded False\n"


def test_an_error_of_the_callers_transaction_arrives(conf: Conf, url: str) -> None:
    with conf.get("name") as lock, psycopg.connect(url) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1 / 0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction), lock.guard(connection):
            pytest.fail("nothing can be confirmed in such a transaction")
        assert not lock.expired


@pytest.mark.parametrize("connect", [psycopg.connect, psycopg2.connect])
def test_autocommit_is_no_transaction(
    conf: Conf, url: str, connect: Callable[[str], AbstractContextManager[Any]]
) -> None:
    with contextlib.closing(connect(url)) as connection:  # type: ignore[type-var]
        connection.autocommit = True  # type: ignore[attr-defined]
        with (
            conf.get("name") as lock,
            pytest.raises(RuntimeError, match="autocommit"),
            lock.guard(connection),
        ):
            pytest.fail("there was nothing to guard")


def test_a_transaction_block_of_psycopg_3_will_do(conf: Conf, db: Db) -> None:
    assert db.autocommit
    with conf.get("name") as lock, db.transaction(), lock.guard(db):
        assert conf.get("name").fence


@pytest.mark.parametrize("connection", [None, "postgresql://", object(), 7])
def test_something_else_is_no_connection(conf: Conf, connection: Any) -> None:
    with conf.get("name") as lock, pytest.raises(TypeError, match="connection must be one of"):
        lock.guard(connection)


def test_without_hold_or_token_there_is_nothing_to_guard(conf: Conf, db: Db) -> None:
    with pytest.raises(ValueError, match="no token"):
        conf.get("name").guard(db)


def test_a_stopped_holder_that_wakes_after_its_lease_cannot_commit(
    url: str, conf: Conf, db: Db
) -> None:
    """SIGSTOP hits it between acquiring and guarding."""
    db.execute("CREATE TABLE work (done text)")
    code = (
        "import os, signal, sys, psycopg, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '200ms'})\n"
        "lock = conf.get('name'); lock.acquire()\n"
        "with psycopg.connect(sys.argv[1]) as connection:\n"
        "    connection.execute(\"INSERT INTO work VALUES ('unentitled')\")\n"
        "    print('holding', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    try:\n"
        "        with lock.guard(connection):\n"
        "            connection.execute(\"INSERT INTO work VALUES ('very unentitled')\")\n"
        "    except score.distlock.LockExpired: print('expired')\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    await_expiry(db, "name")
    conf.acquire("name")
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.communicate()[0] == "expired\n"
    assert work(db) == []


def test_a_holder_stopped_inside_its_guard_keeps_the_lock(url: str, conf: Conf, db: Db) -> None:
    db.execute("CREATE TABLE work (done text)")
    code = (
        "import os, signal, sys, psycopg, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '200ms'})\n"
        "lock = conf.get('name'); lock.acquire()\n"
        "with psycopg.connect(sys.argv[1]) as connection, lock.guard(connection):\n"
        "    print('guarded', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    connection.execute(\"INSERT INTO work VALUES ('entitled')\")\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "guarded\n"
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    await_expiry(db, "name")
    assert conf.try_acquiring("name") is None
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.wait() == 0
    assert conf.acquire("name")
    assert work(db) == ["entitled"]


def test_the_originals_vacuum_cannot_delete_a_guarded_row(
    original: str, url: str, brief: Conf, db: Db, psycopg3: Client
) -> None:
    """The DELETE of 0.2.5 waits for the guard's end; that version knows no better."""
    lock = brief.get("name")
    lock.acquire()
    with psycopg3.transaction() as connection:
        with lock.guard(connection):
            await_expiry(db, "name")
            program = [original, "-c", VACUUM, url]
            vacuum = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
            blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while db.execute(blocked).fetchone() == (0,):
                assert vacuum.poll() is None
            assert db.execute("SELECT count(*) FROM _score_distlock").fetchone() == (1,)
            psycopg3.execute(connection, "INSERT INTO work VALUES ('guarded')")
        psycopg3.commit(connection)
    assert vacuum.communicate()[0] == "vacuumed\n"
    assert work(db) == ["guarded"]
    assert run(original, "fleet_last.py", url, "name") != "None\n"


VACUUM = """
import sys, score.distlock
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '0'})
conf.vacuum()
print('vacuumed')
"""


def test_whoever_passes_a_cursor_is_told_to_pass_its_connection(conf: Conf, url: str) -> None:
    lock = conf.get("name")
    lock.acquire()
    hint = r"this is a \S+; pass its connection: cursor\.connection$"
    for driver in (psycopg, psycopg2):
        with contextlib.closing(driver.connect(url)) as connection:
            cursor = connection.cursor()
            with pytest.raises(TypeError, match=hint):
                lock.guard(cursor)
            with lock.guard(cursor.connection):
                pass
    with pytest.raises(TypeError, match=hint):
        lock.guard(CursorWrapper(cursor, mock.MagicMock()))
    asynchronous = psycopg.AsyncConnection(psycopg.connect(url).pgconn)
    alock = conf.aio.get("name")
    with pytest.raises(TypeError, match=hint):
        alock.guard(asynchronous.cursor(), token=lock.token)
    lock.release()
