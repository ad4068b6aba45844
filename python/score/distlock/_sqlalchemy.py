"""Statements through SQLAlchemy, and sessions to vacuum in."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

#: Only a parameter has a first group.
_QUOTED_OR_PARAMETER = re.compile(r"""'[^']*'|"[^"]*"|\$(\d+)""")


def parameterized(
    sql: str, mark: Callable[[int], str], escaped: Callable[[str], str]
) -> tuple[str, list[int]]:
    """Replaces the ``$n`` of a statement outside quotes; returns their numbers, in order.

    `escaped` escapes what the driver would take for a parameter, also in quotes.
    """
    numbers: list[int] = []
    text, end = "", 0
    for match in _QUOTED_OR_PARAMETER.finditer(sql):
        if match[1]:
            text += escaped(sql[end : match.start()]) + mark(int(match[1]))
            numbers.append(int(match[1]))
            end = match.end()
    return text + escaped(sql[end:]), numbers


def statement(
    sql: str, parameters: tuple[object, ...]
) -> tuple[Any, dict[str, object], dict[str, Any]]:
    """A statement with ``$n`` parameters for SQLAlchemy, and the options to execute it with.

    These options override those of connections and engines. SQLAlchemy 1.3 has none.
    """
    import sqlalchemy

    text, numbers = parameterized(
        sql, lambda number: f":p{number}", lambda text: text.replace(":", "\\:")
    )
    named = {f"p{number}": parameters[number - 1] for number in numbers}
    options = {"execution_options": {"stream_results": False, "yield_per": None}}
    return (
        sqlalchemy.text(text),
        named,
        {} if sqlalchemy.__version__.startswith("1.3.") else options,
    )


def is_undefined_table(error: BaseException | None) -> bool:
    """Whether PostgreSQL reported this, through any driver and any wrapping exception."""
    seen: list[BaseException] = []
    while isinstance(error, BaseException) and not any(error is other for other in seen):
        code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if code:
            return bool(code == "42P01")
        seen.append(error)
        error = getattr(error, "orig", None) or error.__cause__
    return False


#: For a connection that does not find the table.
NO_TABLE = (
    "there is no table of locks where this connection looks for it: it is a connection to "
    "another database"
)


def vacuum(session: Any, sql: str, lease: float, zone: float) -> None:
    """Runs the vacuum in the caller's own transaction, without committing it."""
    if (
        not hasattr(session, "execute")
        or hasattr(session, "cursor")
        or inspect.iscoroutinefunction(session.execute)
    ):
        raise TypeError(
            "session must be a SQLAlchemy Session or Connection, and not asynchronous, "
            f"not {type(session).__name__}"
        )
    made, named, options = statement(sql, (lease, zone))
    try:
        session.execute(made, named, **options)
    except Exception as error:
        if is_undefined_table(error):
            raise RuntimeError(NO_TABLE) from error
        raise
