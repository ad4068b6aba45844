"""Guarding the caller's own transaction, over whatever driver it uses.

The guard trusts nothing that the caller may have configured: it uses the
driver's plain cursors, reads rows as tuples, and synchronizes a pipeline before
it believes an answer. If the caller's connection does not see the hold, that
proves nothing; the guard then asks the locks' own connection whether it is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from ._errors import LockExpired
from ._interruption import suppress
from ._sqlalchemy import NO_TABLE, is_undefined_table, parameterized, statement

if TYPE_CHECKING:
    from . import Lock

#: The type of lock that an asynchronous guard is for.
_L = TypeVar("_L")

# Raises an error inside the transaction: PostgreSQL then turns its COMMIT into a
# ROLLBACK, whatever it did before, and even if somebody swallows our exception.
_ABORT = """
DO $$ BEGIN
    RAISE EXCEPTION 'score.distlock: the hold that guards this transaction is lost';
END $$
"""

# The guard has locked a row, which assigns the transaction an id. If a second
# statement sees none, the first ran in a transaction of its own.
_AUTOCOMMIT = (
    "guard needs an open transaction, but this connection commits every statement by itself "
    "(autocommit): begin a transaction first"
)
_IN_TRANSACTION = "SELECT 1 WHERE pg_catalog.txid_current_if_assigned() IS NOT NULL"

_UNSEEN = (
    "the hold of lock {!r} is alive, but this connection does not see it: it is a connection to "
    "another database, or its transaction has a snapshot (REPEATABLE READ, SERIALIZABLE) that is "
    "older than the acquisition, or the hold was transferred after the guard was made"
)


class _Secret(str):
    """A token that only the database sees, even if something logs the parameters."""

    def __repr__(self) -> str:
        return "'…'"


def _with_percent(sql: str, parameters: tuple[object, ...]) -> tuple[str, tuple[object, ...]]:
    """What to execute with, for drivers with positional parameters."""
    text, numbers = parameterized(sql, lambda number: "%s", lambda text: text.replace("%", "%%"))
    return text, tuple(parameters[number - 1] for number in numbers)


def _is_a(connection: Any, module: str, name: str) -> bool:
    """Whether it is a connection of this driver; if so, the driver is already imported."""
    return isinstance(connection, getattr(sys.modules.get(module), name, ()))


def _first(row: Any) -> Any:
    if row is None:
        return None
    return (next(iter(row.values())) if isinstance(row, dict) else row[0],)


def _plainly_adapted(cursor: Any) -> Any:
    """A psycopg 3 cursor that converts what the guard sends and reads as plain psycopg does."""
    from psycopg.types.numeric import FloatDumper, IntLoader
    from psycopg.types.string import StrDumper

    cursor.adapters.register_dumper(str, StrDumper)
    cursor.adapters.register_dumper(float, FloatDumper)
    cursor.adapters.register_loader("int8", IntLoader)
    return cursor


@contextlib.contextmanager
def _cursor(connection: Any) -> Iterator[Any]:
    """A plain cursor of the driver."""
    if _is_a(connection, "psycopg", "Connection"):
        import psycopg

        with contextlib.ExitStack() as stack:
            if connection.pgconn.pipeline_status != psycopg.pq.PipelineStatus.OFF:
                # Nested, it synchronizes on entering and on leaving.
                stack.enter_context(connection.pipeline())
            cursor = psycopg.Cursor(connection, row_factory=psycopg.rows.tuple_row)
            yield stack.enter_context(_plainly_adapted(cursor))
    elif _is_a(connection, "psycopg2.extensions", "connection"):
        import psycopg2.extensions

        with connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            yield cursor
    else:  # any other with the same interface
        with connection.cursor() as cursor:
            yield cursor


@contextlib.asynccontextmanager
async def _async_cursor(connection: Any) -> AsyncIterator[Any]:
    import psycopg

    async with contextlib.AsyncExitStack() as stack:
        if connection.pgconn.pipeline_status != psycopg.pq.PipelineStatus.OFF:
            await stack.enter_async_context(connection.pipeline())
        cursor = psycopg.AsyncCursor(connection, row_factory=psycopg.rows.tuple_row)
        yield await stack.enter_async_context(_plainly_adapted(cursor))


def _execute(connection: Any, sql: str, parameters: tuple[object, ...] = ()) -> Any:
    """Executes a statement with ``$n`` parameters; returns the first column in a tuple."""
    if hasattr(connection, "cursor"):  # Django, psycopg 2 and 3
        if hasattr(connection, "ensure_connection"):
            # Django's own cursor may log each statement, and keep it.
            connection.ensure_connection()
            with connection.wrap_database_errors:
                return _execute(connection.connection, sql, parameters)
        with _cursor(connection) as cursor:
            cursor.execute(*_with_percent(sql, parameters))
            return _first(cursor.fetchone())
    made, named, options = statement(sql, parameters)
    return _first(connection.execute(made, named, **options).first())


async def _execute_async(connection: Any, sql: str, parameters: tuple[object, ...] = ()) -> Any:
    """The same for asynchronous drivers."""
    if hasattr(connection, "fetchrow"):  # asyncpg
        plain = sys.modules["asyncpg"].Record
        return _first(await connection.fetchrow(sql, *parameters, record_class=plain))
    if hasattr(connection, "cursor"):  # psycopg 3
        async with _async_cursor(connection) as cursor:
            await cursor.execute(*_with_percent(sql, parameters))
            return _first(await cursor.fetchone())
    made, named, options = statement(sql, parameters)
    return _first((await connection.execute(made, named, **options)).first())


def _is_async(connection: Any) -> bool:
    return any(
        inspect.iscoroutinefunction(getattr(connection, method, None))
        for method in ("commit", "execute", "fetchrow")
    )


def _is_cursor(connection: Any) -> bool:
    """Whether it is a driver's cursor, or one of Django's, instead of a connection."""
    return all(hasattr(connection, name) for name in ("fetchone", "execute", "connection"))


class _Guarding:
    """What both guards share: their state, and how they judge the answers."""

    _CONNECTIONS: str
    _takes: Callable[[Any], bool]

    def __init__(
        self,
        lock: Any,
        connection: Any,
        token: str,
        sql: str,
        parameters: tuple[object, ...],
        seen: Callable[[str, int | None], None],
        lost: Callable[[], str | None],
    ) -> None:
        if _is_cursor(connection) or not self._takes(connection):
            kind = f"{type(connection).__module__}.{type(connection).__name__}"
            hint = "; pass its connection: cursor.connection" if _is_cursor(connection) else ""
            raise TypeError(
                f"connection must be one of {self._CONNECTIONS}; this is a {kind}{hint}"
            )
        self._lock = lock
        self._connection = connection
        self._token = token
        self._sql = sql
        name, proof, *rest = parameters
        self._parameters = (name, _Secret(proof), *rest)
        self._seen = seen
        self._lost = lost

    def _refused(self, lost: str | None) -> Exception:
        if lost is not None:
            return LockExpired(self._lock.name, self._token, reason=lost)
        return RuntimeError(_UNSEEN.format(self._lock.name))

    def _confirmed(self, found: Any, number: Any) -> None:
        if number is None:
            raise RuntimeError(_AUTOCOMMIT)
        self._seen(self._token, None if found[0] is None else int(found[0]))


@final
class Guard(_Guarding):
    """What :meth:`Lock.guard` returns: a context manager for a part of a transaction.

    Entering it confirms the hold inside the transaction; leaving it does
    nothing, as the protection lasts until the transaction ends.
    """

    __module__ = "score.distlock"

    _CONNECTIONS = (
        "psycopg 2, psycopg 3, Django, or SQLAlchemy (Connection or Session), and not asynchronous"
    )

    @staticmethod
    def _takes(connection: Any) -> bool:
        usable = hasattr(connection, "cursor") or hasattr(connection, "execute")
        return usable and not _is_async(connection) and getattr(connection, "async_", False) != 1

    def __enter__(self) -> Lock:
        try:
            found = _execute(self._connection, self._sql, self._parameters)
        except Exception as error:
            if is_undefined_table(error):
                raise RuntimeError(NO_TABLE) from error
            raise
        if found is None:
            lost: str | None = "unknown"  # then nothing may be committed either
            try:
                lost = self._lost()
            finally:
                if lost is not None:
                    self._abort()
            raise self._refused(lost)
        self._confirmed(found, _execute(self._connection, _IN_TRANSACTION))
        lock: Lock = self._lock
        return lock

    def _abort(self) -> None:
        with suppress(Exception):  # the driver's error is what was asked for
            _execute(self._connection, _ABORT)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Does nothing: the transaction's end ends the protection."""


@final
class AsyncGuard(_Guarding, Generic[_L]):
    """What :meth:`AsyncLock.guard` returns: the same for asynchronous connections."""

    __module__ = "score.distlock.aio"

    _CONNECTIONS = "asyncpg, or an asynchronous one of psycopg 3 or SQLAlchemy"

    @staticmethod
    def _takes(connection: Any) -> bool:
        return _is_async(connection)

    async def __aenter__(self) -> _L:
        try:
            found = await _execute_async(self._connection, self._sql, self._parameters)
        except Exception as error:
            if is_undefined_table(error):
                raise RuntimeError(NO_TABLE) from error
            raise
        if found is None:
            lost: str | None = "unknown"  # then nothing may be committed either
            try:
                # This waits for the database, and must not block the event loop.
                lost = await asyncio.get_running_loop().run_in_executor(None, self._lost)
            finally:
                if lost is not None:
                    await self._abort()
            raise self._refused(lost)
        self._confirmed(found, await _execute_async(self._connection, _IN_TRANSACTION))
        lock: _L = self._lock
        return lock

    async def _abort(self) -> None:
        with suppress(Exception):  # as above
            await _execute_async(self._connection, _ABORT)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Does nothing: the transaction's end ends the protection."""
