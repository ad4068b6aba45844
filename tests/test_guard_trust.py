"""A guard does not trust the caller's connection, nor marks a hold as lost on its word."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy
from psycopg import rows
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import score.distlock
from score.distlock import DatabaseUnavailable, LockExpired, _guard, _sqlalchemy

from .conftest import fresh_database

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


@dataclass
class Row:
    fence: int | None = None
    txid_current_if_assigned: int | None = None


class Refusing(psycopg.Cursor[Any]):
    def __init__(self, *args: Any, **options: Any) -> None:
        raise AssertionError("the caller's own cursor was used")


class Refusing2(psycopg2.extensions.cursor):
    def __init__(self, *args: Any, **options: Any) -> None:
        raise AssertionError("the caller's own cursor was used")


class NothingLoader(psycopg.adapt.Loader):
    def load(self, data: Any) -> None:
        """Loads any value as nothing."""


class RaisingDumper(psycopg.adapt.Dumper):
    def dump(self, value: Any) -> None:
        raise AssertionError("the caller's own dumper was used")


class Adapted:
    """The place where a connection keeps its adapters."""

    connection = None
    adapters = psycopg.adapt.AdaptersMap(psycopg.adapters)
    adapters.register_loader("int8", NothingLoader)
    adapters.register_dumper(str, RaisingDumper)
    adapters.register_dumper(float, RaisingDumper)


PSYCOPG: dict[str, dict[str, Any]] = {
    "adapted": {"context": Adapted()},
    "LATIN1": {"client_encoding": "LATIN1"},
    "dict_row": {"row_factory": rows.dict_row},
    "namedtuple_row": {"row_factory": rows.namedtuple_row},
    "scalar_row": {"row_factory": rows.scalar_row},
    "class_row": {"row_factory": rows.class_row(Row)},
    "args_row": {"row_factory": rows.args_row(lambda *columns: list(columns))},
    "kwargs_row": {"row_factory": rows.kwargs_row(lambda **columns: columns)},
    "RawCursor": {"cursor_factory": psycopg.RawCursor},
    "ClientCursor": {"cursor_factory": psycopg.ClientCursor},
    "ServerCursor": {"cursor_factory": psycopg.ServerCursor},
    "Refusing": {"cursor_factory": Refusing},
    "prepared": {"prepare_threshold": 0},
    "never prepared": {"prepare_threshold": None},
}
PSYCOPG2: dict[str, Any] = {
    factory.__name__: factory
    for factory in (
        psycopg2.extras.DictCursor,
        psycopg2.extras.RealDictCursor,
        psycopg2.extras.NamedTupleCursor,
        psycopg2.extras.LoggingCursor,
        Refusing2,
    )
}


def connect(url: str, kind: str) -> Any:
    """A connection configured in the unusual way that `kind` names."""
    driver, _, option = kind.partition(" ")
    if driver == "psycopg":
        return psycopg.connect(url, **PSYCOPG[option])
    if driver == "psycopg2":
        if option == "LoggingCursor":
            made = psycopg2.connect(url, connection_factory=psycopg2.extras.LoggingConnection)
            made.initialize(io.StringIO())
            return made
        if option == "LATIN1":
            return psycopg2.connect(url, client_encoding=option)
        return psycopg2.connect(url, cursor_factory=PSYCOPG2[option])
    engine = sqlalchemy.create_engine(
        url.replace("postgresql:", f"postgresql+{option.partition(' ')[0]}:"),
        poolclass=sqlalchemy.pool.NullPool,
        execution_options={"stream_results": True},
    )
    return Session(engine) if driver == "session" else engine.connect()


KINDS = [
    *(f"psycopg {option}" for option in PSYCOPG),
    *(f"psycopg2 {option}" for option in PSYCOPG2),
    "psycopg2 LATIN1",
    "sqlalchemy psycopg",
    "sqlalchemy psycopg2",
    "session psycopg",
]


def execute(connection: Any, statement: str) -> None:
    """Executes a statement without results."""
    if hasattr(connection, "cursor"):
        psycopg3 = isinstance(connection, psycopg.Connection)
        plain = psycopg2.extensions.cursor
        with (
            psycopg.Cursor(connection) if psycopg3 else connection.cursor(cursor_factory=plain)
        ) as cursor:
            cursor.execute(statement)
    else:
        options = {"stream_results": False}
        connection.execute(sqlalchemy.text(statement), execution_options=options)


@contextlib.contextmanager
def connected(url: str, kind: str) -> Iterator[Any]:
    connection = connect(url, kind)
    with contextlib.closing(connection):
        yield connection


@pytest.mark.parametrize("kind", KINDS)
def test_an_unusual_connection_is_guarded(conf: Conf, url: str, kind: str) -> None:
    name = "名 'of' \\ many"
    for _ in range(7):  # psycopg prepares repeated statements
        with conf.get(name) as lock, connected(url, kind) as connection:
            with lock.guard(connection):
                lock.release(lock.token)
                assert conf.try_acquiring(name) is None, "guarded"
            connection.commit()
            lock.acquire()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_hold_is_lost_on_an_unusual_connection(
    conf: Conf, url: str, db: Db, kind: str
) -> None:
    db.execute("CREATE TABLE work (done text)")
    lock = conf.get("name")
    token = lock.acquire()
    conf.release("name", token)
    with connected(url, kind) as connection:
        execute(connection, "INSERT INTO work VALUES ('late')")
        with pytest.raises(LockExpired) as lost, lock.guard(connection, token=token):
            pytest.fail("the guard let a late holder in")
        assert lost.value.reason == "released"
        with contextlib.suppress(Exception):
            connection.commit()
    assert db.execute("SELECT * FROM work").fetchall() == []
    assert lock.token is None


def test_pipelines(conf: Conf, url: str, db: Db) -> None:
    """There results arrive late, and without a transaction every synchronization commits."""
    db.execute("CREATE TABLE work (done text)")
    lock = conf.get("name")
    with lock, psycopg.connect(url) as connection:
        with connection.pipeline():
            connection.execute("INSERT INTO work VALUES ('guarded')")
            with lock.guard(connection):
                lock.release(lock.token)
                assert conf.try_acquiring("name") is None
            connection.commit()
        lock.acquire()
        assert not lock.expired
        db.execute("DELETE FROM _score_distlock")
        with connection.pipeline():
            connection.execute("INSERT INTO work VALUES ('late')")
            with pytest.raises(LockExpired), lock.guard(connection):
                pytest.fail("the guard let a late holder in")
            with contextlib.suppress(Exception):
                connection.commit()
        with contextlib.suppress(LockExpired):
            lock.release()
        lock.acquire()
        connection.rollback()
        connection.autocommit = True
        with (
            connection.pipeline(),
            pytest.raises(RuntimeError, match="autocommit"),
            lock.guard(connection),
        ):
            pytest.fail("there was nothing to guard")
    assert db.execute("SELECT * FROM work").fetchall() == [("guarded",)]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_autocommit_of_sqlalchemy_is_no_transaction(conf: Conf, url: str, driver: str) -> None:
    """No cursor can be declared there, although the Engine's options ask for one."""
    with conf.get("name") as lock, connected(url, f"sqlalchemy {driver}") as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(RuntimeError, match="autocommit"), lock.guard(connection):
            pytest.fail("there was nothing to guard")


@pytest.fixture
def elsewhere(admin_url: str) -> Iterator[str]:
    """Another database, with locks of its own."""
    with fresh_database(admin_url) as url:
        score.distlock.init({"sqlalchemy.url": url})
        yield url


def is_unharmed(conf: Conf, lock: Any, connection: Any) -> None:
    """A guard fails, and harms neither the hold nor the caller's transaction."""
    token = lock.token
    message = "is alive, but this connection does not see it"
    with pytest.raises(RuntimeError, match=message), lock.guard(connection):
        pytest.fail("the guard saw what is not there")
    assert connection.execute("SELECT 'still alive'").fetchone() == ("still alive",)
    assert lock.remaining > 0
    assert not lock.expired
    lock.extend(token)


def test_another_database(conf: Conf, elsewhere: str) -> None:
    with conf.get("name") as lock, psycopg.connect(elsewhere) as connection:
        is_unharmed(conf, lock, connection)


def test_another_search_path(conf: Conf, url: str, db: Db) -> None:
    """The guard queries the locks' own table, whatever the connection's search path."""
    db.execute("CREATE SCHEMA other")
    db.execute("CREATE TABLE other._score_distlock (LIKE _score_distlock)")
    with conf.get("name") as lock, psycopg.connect(url) as connection:
        connection.execute("SET LOCAL search_path TO other, pg_catalog")
        with lock.guard(connection):
            pass


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_old_snapshot(conf: Conf, url: str, level: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        connection.execute("SELECT count(*) FROM _score_distlock")
        with conf.get("name") as lock:
            is_unharmed(conf, lock, connection)


def test_no_table(conf: Conf, admin_url: str) -> None:
    with conf.get("name") as lock, fresh_database(admin_url) as empty:
        for kind in ("psycopg dict_row", "psycopg2 DictCursor", "session psycopg"):
            with connected(empty, kind) as connection:
                with (
                    pytest.raises(RuntimeError, match="there is no table") as raised,
                    lock.guard(connection),
                ):
                    pytest.fail("there is nothing to see")
                assert raised.value.__cause__ is not None
        assert not lock.expired
        lock.extend()


def test_what_is_not_known_is_not_committed(conf: Conf, url: str, db: Db) -> None:
    """The connection does not see the hold, and the locks' own connection does not answer."""
    db.execute("CREATE TABLE work (done text)")

    def lost() -> str:
        raise DatabaseUnavailable("gone")

    lock = conf.get("name")
    lock.acquire()
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO work VALUES ('perhaps late')")
        guard = _guard.Guard(
            lock, connection, "0", "SELECT 1 WHERE $1 = $2", ("name", "other"), print, lost
        )
        with pytest.raises(DatabaseUnavailable), guard:
            pytest.fail("the guard saw what is not there")
        connection.commit()
    assert db.execute("SELECT * FROM work").fetchall() == []


class TimeIsUp(Exception):
    """What a signal handler raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """SIGUSR1 raises an exception."""

    def handler(number: int, frame: Any) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


def when_aborting(engine: sqlalchemy.Engine) -> None:
    """A signal arrives while a guard aborts the transaction."""

    def signalled(*arguments: Any) -> None:
        if "RAISE EXCEPTION" in arguments[2]:
            signal.raise_signal(signal.SIGUSR1)

    sqlalchemy.event.listen(engine, "before_cursor_execute", signalled)


@pytest.mark.usefixtures("alarm")
def test_a_signal_handler_may_raise_while_the_transaction_is_aborted(conf: Conf, url: str) -> None:
    lock = conf.get("name")
    token = lock.acquire()
    conf.release("name", token)
    with connected(url, "sqlalchemy psycopg") as connection:
        when_aborting(connection.engine)
        with pytest.raises(TimeIsUp), lock.guard(connection, token=token):
            pytest.fail("the guard let a late holder in")


@pytest.mark.usefixtures("alarm")
def test_a_signal_handler_may_raise_while_a_coroutine_aborts(conf: Conf, url: str) -> None:
    async def main() -> None:
        engine = create_async_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        when_aborting(engine.sync_engine)
        lock = conf.aio.get("name")
        token = await lock.acquire()
        await conf.aio.release("name", token)
        async with engine.connect() as connection:
            with pytest.raises(TimeIsUp):
                async with lock.guard(connection, token=token):
                    pytest.fail("the guard let a late holder in")
        await engine.dispose()

    asyncio.run(main())


STRANGE = "SELECT 7, '$1 100% :p1 %s' AS \"$2 100% :x %(y)s\" WHERE $1 = '$1' OR $1 = $2"


@pytest.mark.parametrize("kind", KINDS)
def test_statements_may_have_strange_names_in_them(conf: Conf, url: str, kind: str) -> None:
    """For instance a schema's."""
    with connected(url, kind) as connection:
        assert _guard._execute(connection, STRANGE, ("a", "a")) == (7,)
        assert _guard._execute(connection, STRANGE, ("a", "b")) is None


ASYNC: dict[str, dict[str, Any]] = {
    option: options for option, options in PSYCOPG.items() if "cursor_factory" not in options
} | {
    "AsyncRawCursor": {"cursor_factory": psycopg.AsyncRawCursor},
    "AsyncClientCursor": {"cursor_factory": psycopg.AsyncClientCursor},
    "AsyncServerCursor": {"cursor_factory": psycopg.AsyncServerCursor},
    "pipeline": {},
}


class OwnRecord(asyncpg.Record):  # type: ignore[misc]
    def __getitem__(self, key: object) -> Any:
        raise AssertionError("the caller's own record was used")


async def open_async(stack: contextlib.AsyncExitStack, url: str, kind: str) -> Any:
    if kind == "asyncpg":
        connection = await asyncpg.connect(url, record_class=OwnRecord)
        stack.push_async_callback(connection.close)
        await stack.enter_async_context(connection.transaction())
        return connection
    if kind in ("sqlalchemy", "session"):
        engine = create_async_engine(
            url.replace("postgresql://", "postgresql+psycopg://"),
            execution_options={"stream_results": True},
        )
        stack.push_async_callback(engine.dispose)
        if kind == "session":
            return await stack.enter_async_context(AsyncSession(engine))
        return await stack.enter_async_context(engine.connect())
    made = await psycopg.AsyncConnection.connect(url, **ASYNC[kind])
    await stack.enter_async_context(made)
    if kind == "pipeline":
        await stack.enter_async_context(made.pipeline())
    return made


@pytest.mark.parametrize("kind", [*ASYNC, "asyncpg", "sqlalchemy", "session"])
def test_unusual_asynchronous_connections(conf: Conf, url: str, elsewhere: str, kind: str) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        async with lock:
            async with contextlib.AsyncExitStack() as stack:
                connection = await open_async(stack, url, kind)
                async with lock.guard(connection):
                    await lock.release(lock.token)
                    assert await conf.aio.try_acquiring("name") is None, "guarded"
            await lock.acquire()
            async with contextlib.AsyncExitStack() as stack:
                connection = await open_async(stack, elsewhere, kind)
                with pytest.raises(RuntimeError, match="does not see it"):
                    async with lock.guard(connection):
                        pytest.fail("it is not there")
                await _guard._execute_async(connection, "SELECT 'still alive'")
            assert not lock.expired
            with psycopg.connect(url) as db:
                db.execute("DELETE FROM _score_distlock")
            with contextlib.suppress(Exception):
                async with contextlib.AsyncExitStack() as stack:
                    connection = await open_async(stack, url, kind)
                    with pytest.raises(LockExpired):
                        async with lock.guard(connection):
                            pytest.fail("it is lost")
                    with pytest.raises(Exception, match="abort"):
                        await _guard._execute_async(connection, "SELECT 'still alive'")
            assert lock.expired
            with contextlib.suppress(LockExpired):
                await lock.release()
            await lock.acquire()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["class_row", "pipeline", "asyncpg", "sqlalchemy"])
def test_autocommit_is_no_transaction_for_a_coroutine_either(
    conf: Conf, url: str, kind: str
) -> None:
    async def main() -> None:
        async with conf.aio.get("name") as lock, contextlib.AsyncExitStack() as stack:
            if kind == "asyncpg":
                connection = await asyncpg.connect(url)
                stack.push_async_callback(connection.close)
            elif kind == "pipeline":
                connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
                await stack.enter_async_context(connection)
                await stack.enter_async_context(connection.pipeline())
            else:
                connection = await open_async(stack, url, kind)
                if kind == "sqlalchemy":
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                else:
                    await connection.set_autocommit(True)
            with pytest.raises(RuntimeError, match="autocommit"):
                async with lock.guard(connection):
                    pytest.fail("there was nothing to guard")

    asyncio.run(main())


def test_an_error_of_a_coroutines_transaction_arrives(conf: Conf, url: str, admin_url: str) -> None:
    async def main(empty: str) -> None:
        async with conf.aio.get("name") as lock:
            async with await psycopg.AsyncConnection.connect(url) as connection:
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await connection.execute("SELECT 1 / 0")
                with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                    async with lock.guard(connection):
                        pytest.fail("nothing can be confirmed in such a transaction")
            async with await psycopg.AsyncConnection.connect(empty) as connection:
                with pytest.raises(RuntimeError, match="there is no table"):
                    async with lock.guard(connection):
                        pytest.fail("there is nothing to see")
            assert not lock.expired

    with fresh_database(admin_url) as empty:
        asyncio.run(main(empty))


def test_what_a_coroutine_does_not_know_is_not_committed(conf: Conf, url: str, db: Db) -> None:
    db.execute("CREATE TABLE work (done text)")

    def lost() -> str:
        raise DatabaseUnavailable("gone")

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute("INSERT INTO work VALUES ('perhaps late')")
            guard: _guard.AsyncGuard[Any] = _guard.AsyncGuard(
                conf.aio.get("name"),
                connection,
                "0",
                "SELECT 1 WHERE $1 = $2",
                ("name", "other"),
                print,
                lost,
            )
            with pytest.raises(DatabaseUnavailable):
                async with guard:
                    pytest.fail("the guard saw what is not there")

    asyncio.run(main())
    assert db.execute("SELECT * FROM work").fetchall() == []


def test_a_guard_refuses_connections_of_the_other_kind(conf: Conf, url: str) -> None:
    async def main() -> None:
        lock, refused = conf.get("name"), pytest.raises(TypeError, match="connection must be one")
        token = lock.acquire()
        for kind in ("class_row", "asyncpg", "sqlalchemy", "session"):
            async with contextlib.AsyncExitStack() as stack:
                connection = await open_async(stack, url, kind)
                with refused:
                    lock.guard(connection)
        for kind in ("psycopg dict_row", "psycopg2 DictCursor", "sqlalchemy psycopg"):
            with connected(url, kind) as connection, refused:
                conf.aio.get("name").guard(connection, token=token)
        with contextlib.closing(psycopg2.connect(url, async_=1)) as connection, refused:
            lock.guard(connection)

    asyncio.run(main())


def test_vacuum_in_a_session(conf: Conf, url: str, db: Db, admin_url: str) -> None:
    for kind in ("session psycopg", "sqlalchemy psycopg2"):
        conf.release("name", conf.acquire("name"))
        with connected(url, kind) as session:
            conf.vacuum(session)
            session.commit()
        assert db.execute("SELECT * FROM _score_distlock").fetchall() == []
        with fresh_database(admin_url) as empty, connected(empty, kind) as session:
            with pytest.raises(RuntimeError, match="there is no table") as raised:
                conf.vacuum(session)
            assert raised.value.__cause__ is not None
    engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with pytest.raises(TypeError, match="not asynchronous"):
        conf.vacuum(AsyncSession(engine))


def test_vacuums_statement_may_have_strange_names_in_it(url: str) -> None:
    with connected(url, "sqlalchemy psycopg") as session:
        _sqlalchemy.vacuum(session, STRANGE.replace("= '$1'", "< 3"), 1.0, 2.0)


@pytest.mark.parametrize("about", ["__cause__", "orig"])
def test_an_error_that_leads_back_to_itself_is_what_the_caller_gets(conf: Conf, about: str) -> None:
    error = ValueError("mine")
    setattr(error, about, error)

    class Session:
        def execute(self, *arguments: object, **options: object) -> None:
            raise error

    for work in (
        lambda: conf.vacuum(Session()),
        lambda: conf.get("name").guard(Session(), token="0" * 256).__enter__(),
    ):
        with pytest.raises(ValueError, match=r"^mine$"):
            work()


def test_an_error_of_a_driver_may_have_any_attributes(conf: Conf) -> None:
    class Session:
        def execute(self, *arguments: object, **options: object) -> None:
            error = ValueError("mine")
            error.orig = "text"  # type: ignore[attr-defined]
            raise error

    with pytest.raises(ValueError, match=r"^mine$"):
        conf.vacuum(Session())
