"""Where SQLAlchemy comes in: ``conf.engine``, engines as arguments, sessions to vacuum in."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any


def url_of(engine: object) -> str:
    """The URL, password included, of a SQLAlchemy Engine; a str is its own."""
    if isinstance(engine, str):
        return engine
    url = getattr(engine, "url", None)
    if url is None or not hasattr(engine, "connect") or not hasattr(engine, "dialect"):
        raise TypeError(
            f"engine must be a SQLAlchemy Engine or a URL as str, not {type(engine).__name__}"
        )
    if hasattr(url, "render_as_string"):
        return str(url.render_as_string(hide_password=False))
    return str(url)  # SQLAlchemy 1.3 hides nothing here


def create(url: str, options: Mapping[str, Any]) -> Any:
    """A SQLAlchemy Engine on the same database."""
    try:
        import sqlalchemy
    except ImportError as error:
        raise ImportError(
            "conf.engine needs SQLAlchemy: pip install 'score.distlock[sqlalchemy]'"
        ) from error
    if url.startswith("postgres://"):
        url = "postgresql://" + url.removeprefix("postgres://")
    if url.startswith("postgresql://"):
        # SQLAlchemy's default driver depends on its version; take one that is there.
        for module, driver in (("psycopg2", "psycopg2"), ("psycopg", "psycopg")):
            if importlib.util.find_spec(module):
                url = f"postgresql+{driver}://" + url.removeprefix("postgresql://")
                break
        else:
            raise ImportError(
                "conf.engine needs a driver for PostgreSQL, psycopg or psycopg2: "
                "pip install 'score.distlock[sqlalchemy]'"
            )
    return sqlalchemy.create_engine(url, **options)


def vacuum(session: Any, sql: str, lease: float, zone: float) -> None:
    """Runs the vacuum in the caller's own transaction, without committing it."""
    if not hasattr(session, "execute") or hasattr(session, "cursor"):
        raise TypeError(
            f"session must be a SQLAlchemy Session or Connection, not {type(session).__name__}"
        )
    from sqlalchemy import text

    statement = text(sql.replace("$1", ":lease").replace("$2", ":zone"))
    session.execute(statement, {"lease": lease, "zone": zone})
