"""Guarding the caller's own transaction, over whatever driver it uses."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from ._errors import LockExpired

if TYPE_CHECKING:
    from . import Lock

# An error inside the transaction: whatever it has done before, and whoever
# swallows our exception, PostgreSQL makes its COMMIT a ROLLBACK.
_ABORT = """
DO $$ BEGIN
    RAISE EXCEPTION 'score.distlock: the hold that guards this transaction is lost';
END $$
"""

# The guard has locked a row, which gives the transaction a number. If a second
# statement sees none, the first was a transaction of its own.
_IN_TRANSACTION = "SELECT txid_current_if_assigned()"


def _execute(connection: Any, sql: str, parameters: tuple[object, ...]) -> Any:
    """Executes a statement with ``$n`` parameters; returns the first column in a tuple."""
    numbers = range(len(parameters), 0, -1)
    if hasattr(connection, "cursor"):  # psycopg 2 and 3, Django
        # Both count by position, and a parameter may occur several times.
        ordered: list[object] = []
        pieces = sql.split("$")
        text = pieces[0]
        for piece in pieces[1:]:
            if parameters and piece[:1].isdigit():
                ordered.append(parameters[int(piece[0]) - 1])
                text += "%s" + piece[1:]
            else:
                text += "$" + piece
        with connection.cursor() as cursor:
            cursor.execute(text, tuple(ordered)) if ordered else cursor.execute(text)
            row = cursor.fetchone() if cursor.description else None
    else:  # SQLAlchemy
        from sqlalchemy import text as statement

        for number in numbers:
            sql = sql.replace(f"${number}", f":p{number}")
        named = {f"p{number}": parameters[number - 1] for number in numbers}
        result = connection.execute(statement(sql), named)
        row = result.first() if result.returns_rows else None
    if row is None:
        return None
    return (next(iter(row.values())) if isinstance(row, Mapping) else row[0],)


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
        if not usable or any(
            inspect.iscoroutinefunction(getattr(connection, method, None))
            for method in ("commit", "execute")
        ):
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
            raise RuntimeError(
                "guard needs an open transaction, but this connection commits every "
                "statement by itself (autocommit): begin a transaction first"
            )
        self._seen(self._token, found[0])
        return self._lock

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Does nothing: the transaction's end ends the protection."""
