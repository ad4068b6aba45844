"""Guarding the caller's own transaction, over whatever driver it uses."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from ._errors import LockExpired

if TYPE_CHECKING:
    from . import Lock
    from .aio import AsyncLock

# An error inside the transaction: whatever it has done before, and whoever
# swallows our exception, PostgreSQL makes its COMMIT a ROLLBACK.
_ABORT = """
DO $$ BEGIN
    RAISE EXCEPTION 'score.distlock: the hold that guards this transaction is lost';
END $$
"""

# The guard has locked a row, which gives the transaction a number. If a second
# statement sees none, the first was a transaction of its own.
_AUTOCOMMIT = (
    "guard needs an open transaction, but this connection commits every statement by itself "
    "(autocommit): begin a transaction first"
)
_IN_TRANSACTION = "SELECT txid_current_if_assigned()"


def _with_percent(sql: str, parameters: tuple[object, ...]) -> tuple[str, tuple[object, ...]]:
    """For drivers that count by position, where a parameter may occur several times."""
    ordered: list[object] = []
    pieces = sql.split("$")
    text = pieces[0]
    for piece in pieces[1:]:
        if parameters and piece[:1].isdigit():
            ordered.append(parameters[int(piece[0]) - 1])
            text += "%s" + piece[1:]
        else:
            text += "$" + piece
    return text, tuple(ordered)


def _with_names(sql: str, parameters: tuple[object, ...]) -> tuple[Any, dict[str, object]]:
    """For SQLAlchemy."""
    from sqlalchemy import text

    for number in range(len(parameters), 0, -1):
        sql = sql.replace(f"${number}", f":p{number}")
    return text(sql), {f"p{number}": value for number, value in enumerate(parameters, 1)}


def _first(row: Any) -> Any:
    if row is None:
        return None
    return (next(iter(row.values())) if isinstance(row, dict) else row[0],)


def _execute(connection: Any, sql: str, parameters: tuple[object, ...]) -> Any:
    """Executes a statement with ``$n`` parameters; returns the first column in a tuple."""
    if hasattr(connection, "cursor"):  # psycopg 2 and 3, Django
        text, ordered = _with_percent(sql, parameters)
        with connection.cursor() as cursor:
            cursor.execute(text, ordered) if ordered else cursor.execute(text)
            return _first(cursor.fetchone() if cursor.description else None)
    statement, named = _with_names(sql, parameters)
    result = connection.execute(statement, named)
    return _first(result.first() if result.returns_rows else None)


async def _execute_async(connection: Any, sql: str, parameters: tuple[object, ...]) -> Any:
    """The same for asynchronous drivers."""
    if hasattr(connection, "fetchrow"):  # asyncpg
        return _first(await connection.fetchrow(sql, *parameters))
    if hasattr(connection, "cursor"):  # psycopg 3
        text, ordered = _with_percent(sql, parameters)
        async with connection.cursor() as cursor:
            await (cursor.execute(text, ordered) if ordered else cursor.execute(text))
            return _first(await cursor.fetchone() if cursor.description else None)
    statement, named = _with_names(sql, parameters)
    result = await connection.execute(statement, named)
    return _first(result.first() if result.returns_rows else None)


def _is_async(connection: Any) -> bool:
    return any(
        inspect.iscoroutinefunction(getattr(connection, method, None))
        for method in ("commit", "execute", "fetchrow")
    )


@final
class Guard:
    """What :meth:`Lock.guard` returns: a context manager for a part of a transaction.

    Entering it confirms the hold inside the transaction; leaving it does
    nothing, as the protection lasts until the transaction ends.
    """

    __module__ = "score.distlock"

    def __init__(
        self,
        lock: Lock,
        connection: Any,
        token: str,
        sql: str,
        parameters: tuple[object, ...],
        seen: Callable[[str, int | None], None],
        lost: Callable[[str], None],
    ) -> None:
        usable = hasattr(connection, "cursor") or hasattr(connection, "execute")
        if not usable or _is_async(connection):
            raise TypeError(
                "connection must be one of psycopg 2, psycopg 3, Django, or SQLAlchemy "
                f"(Connection or Session), and not asynchronous; this is a "
                f"{type(connection).__module__}.{type(connection).__name__}"
            )
        self._lock = lock
        self._connection = connection
        self._token = token
        self._sql = sql
        self._parameters = parameters
        self._seen = seen
        self._lost = lost

    def __enter__(self) -> Lock:
        found = _execute(self._connection, self._sql, self._parameters)
        if found is None:
            with contextlib.suppress(Exception):
                _execute(self._connection, _ABORT, ())
            self._lost(self._token)
            raise LockExpired(self._lock.name, self._token)
        (number,) = _execute(self._connection, _IN_TRANSACTION, ())
        if number is None:
            raise RuntimeError(_AUTOCOMMIT)
        self._seen(self._token, found[0])
        return self._lock

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Does nothing: the transaction's end ends the protection."""


@final
class AsyncGuard:
    """What :meth:`AsyncLock.guard` returns: the same for asynchronous connections."""

    __module__ = "score.distlock.aio"

    def __init__(
        self,
        lock: AsyncLock,
        connection: Any,
        token: str,
        sql: str,
        parameters: tuple[object, ...],
        seen: Callable[[str, int | None], None],
        lost: Callable[[str], None],
    ) -> None:
        if not _is_async(connection):
            raise TypeError(
                "connection must be one of asyncpg, or an asynchronous one of psycopg 3 or "
                f"SQLAlchemy; this is a {type(connection).__module__}.{type(connection).__name__}"
            )
        self._lock = lock
        self._connection = connection
        self._token = token
        self._sql = sql
        self._parameters = parameters
        self._seen = seen
        self._lost = lost

    async def __aenter__(self) -> AsyncLock:
        found = await _execute_async(self._connection, self._sql, self._parameters)
        if found is None:
            with contextlib.suppress(Exception):
                await _execute_async(self._connection, _ABORT, ())
            self._lost(self._token)
            raise LockExpired(self._lock.name, self._token)
        (number,) = await _execute_async(self._connection, _IN_TRANSACTION, ())
        if number is None:
            raise RuntimeError(_AUTOCOMMIT)
        self._seen(self._token, found[0])
        return self._lock

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Does nothing: the transaction's end ends the protection."""
