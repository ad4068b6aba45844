"""What names a database: URLs of all kinds and SQLAlchemy Engines; and ``conf.engine``."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from . import embedded
from ._refuse import encodable, refuse, shown
from ._url import rendered, text_of

#: Options about how connections behave for their own users, not about where they lead.
_MANNERS = {
    *("autocommit", "connection_factory", "context", "cursor_factory", "prepare_threshold"),
    *("row_factory",),
    # of asyncpg and pg8000
    *("command_timeout", "max_cacheable_statement_size", "max_cached_statement_lifetime"),
    *("prepared_statement_cache_size", "prepared_statement_name_func", "statement_cache_size"),
    *("async_fallback", "async_creator_fn"),
}

#: Other libraries' names for libpq's options.
_OTHERS = {"database": "dbname", "timeout": "connect_timeout", "ssl": "sslmode"}

_LIBPQ = ("psycopg", "psycopg2")

#: What to do about an Engine that tells too little.
_INSTEAD = (
    "give the locks the URL instead of the Engine, with everything in it, such as "
    "?options=-csearch_path%3D…"
)


class Source(NamedTuple):
    """What the core reads."""

    #: A URL; never show it.
    text: str
    #: Its name in messages.
    label: str
    #: Options that override it, by libpq's names.
    arguments: list[tuple[str, str]]
    #: The Engine, if one was given.
    engine: Any = None
    #: Whether the Engine's connections may see another table than these options suggest.
    verify: bool = False


def source(given: object, connect_args: Mapping[str, object] | None) -> Source:
    """Where an Engine or a URL leads.

    :raises TypeError: if it is neither.
    """
    text = text_of(given)
    if text is not None:
        label = "sqlalchemy.url"
        if embedded.is_embedded(encodable(text, label)):
            text = embedded.start(text)
        return Source(text, label, options(connect_args or {}))
    engine: Any = getattr(given, "sync_engine", given)
    if not all(hasattr(engine, name) for name in ("url", "connect", "dialect", "pool")):
        raise TypeError(
            f"engine must be a SQLAlchemy Engine or a URL as str, not {type(given).__name__}"
        )
    if engine.dialect.name != "postgresql":
        refuse(
            f"the Engine is for {engine.dialect.name}; allowed are Engines for PostgreSQL, as the "
            "locks are rows of a table there"
        )
    if connect_args:
        refuse("connect_args: the Engine has its own; give one with these, or a URL")
    if engine.get_execution_options().get("schema_translate_map"):
        refuse(f"the Engine has a schema_translate_map, which only it can follow; {_INSTEAD}")
    label = "the Engine's URL or connect_args"
    driver = engine.dialect.driver
    parameters = _parameters(engine)
    verify = parameters is None or _has_listeners(engine)
    if parameters is None:
        parameters = _ask(engine, _told_by_the_driver)
    elif driver not in _LIBPQ:
        # The text itself: these drivers do not use libpq's names for options.
        own = engine.dialect.create_connect_args(engine.url)[1]
        own = {key: value for key, value in parameters.items() if own.get(key) != value}
        return Source(rendered(engine.url), label, options(own), given, verify)
    return Source(f"postgresql+{driver}://", label, options(parameters), given, verify)


def options(given: Mapping[str, object]) -> list[tuple[str, str]]:
    """The options of a driver's connect(), by libpq's names."""
    found: list[tuple[str, str]] = []
    for key, value in given.items():
        if not isinstance(key, str):
            refuse(f"connect_args: {shown(key)} is not a name of an option")
        if value is None or key in _MANNERS:
            continue
        if key == "server_settings" and isinstance(value, Mapping):
            settings = [f"-c{name}={_escaped(_text(text, key))}" for name, text in value.items()]
            found.append(("options", encodable(" ".join(settings), f"connect_args: {key}")))
        elif key == "ssl" and value in (True, False):
            found.append(("sslmode", "require" if value else "disable"))
        elif isinstance(value, (str, int, float)):
            name = encodable(_OTHERS.get(key, key), "connect_args: the name of an option")
            found.append((name, encodable(_text(value, key), f"connect_args: {key}")))
        else:
            refuse(
                f"connect_args: {key} is a {type(value).__name__}, which only the driver "
                "understands; allowed are libpq's options as str and int"
            )
    return found


def _text(value: object, key: str) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to print integers of more than some thousand digits
        refuse(f"connect_args: {key} is {shown(value)}")


def _escaped(text: str) -> str:
    """Escapes a value as the server expects it in `options`."""
    return "".join("\\" + c if c in "\\ \t\n" else c for c in text)


def _parameters(engine: Any) -> dict[str, object] | None:
    """The arguments the Engine calls its driver with, or None if only a connection can tell."""
    creator = engine.pool._creator
    if not getattr(creator, "__module__", "").startswith("sqlalchemy."):
        return None
    known = inspect.getclosurevars(creator).nonlocals
    parameters = known.get("cparams")
    if engine.dialect.dispatch.do_connect or parameters is None:
        return None
    if "dsn" in parameters or "conninfo" in parameters or any(known.get("cargs_tup", ())):
        return None
    return dict(parameters)


def _has_listeners(engine: Any) -> bool:
    """Whether listeners see connections, and may change, for instance, their search path."""
    pool, dispatch = engine.pool.dispatch, engine.dispatch
    # Some of these listeners are SQLAlchemy's own.
    own = (
        getattr(listener, "__module__", None) for listener in (*pool.connect, *pool.first_connect)
    )
    return (
        not all((module or "").startswith("sqlalchemy.") for module in own)
        or bool(pool.checkout)
        or bool(dispatch.engine_connect)
        or bool(dispatch.begin)
    )


def _ask(engine: Any, question: Callable[[Any], Any]) -> Any:
    """Asks a connection of the Engine."""
    if not getattr(engine.dialect, "is_async", False):
        with engine.connect() as connection:
            return question(connection)
    import sqlalchemy.util

    # Connections belong to an event loop; this loop ends with the question.
    def ask() -> Any:
        with engine.connect() as connection:
            connection.detach()
            return question(connection)

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, sqlalchemy.util.greenlet_spawn(ask)).result()


def _told_by_the_driver(connection: Any) -> dict[str, object]:
    raw: Any = connection.connection
    raw = getattr(raw, "driver_connection", None) or raw.connection
    info: Any = getattr(raw, "info", None)
    if hasattr(info, "get_parameters"):  # psycopg 3
        parameters = info.get_parameters()
    elif hasattr(info, "dsn_parameters"):  # psycopg 2
        parameters = info.dsn_parameters
    else:
        refuse(
            "the Engine has a creator or a listener for do_connect, and its driver does not tell "
            f"where its connections go; {_INSTEAD}"
        )
    return {**parameters, "password": info.password}


def verify(engine: Any, name: str) -> None:
    """Makes sure that the Engine's connections see the hold of this name."""
    engine = getattr(engine, "sync_engine", engine)

    def sees(connection: Any) -> bool:
        import sqlalchemy

        query = sqlalchemy.text("SELECT count(*) FROM _score_distlock WHERE name = :name")
        return bool(connection.execute(query, {"name": name}).scalar())

    from ._sqlalchemy import is_undefined_table

    try:
        seen = _ask(engine, sees)
    except Exception as error:
        if not is_undefined_table(error):
            raise
        seen = False
    if not seen:
        refuse(
            "the Engine's connections see another table _score_distlock than the locks would "
            "use: its creator or its listeners change the server, the database or the search "
            f"path; {_INSTEAD}"
        )


def _driver(wanted: str | None, version: str) -> str:
    """An installed driver based on libpq; the one that the URL names, if it is one."""
    # SQLAlchemy's default, and the only one that 1.3 knows.
    usable = ["psycopg2"] if version.startswith("1.3.") else ["psycopg2", "psycopg"]
    usable.sort(key=lambda name: name != (wanted or "").removesuffix("_async"))
    for name in usable:
        if importlib.util.find_spec(name):
            return name
    raise ImportError(
        "conf.engine needs a driver for PostgreSQL, psycopg or psycopg2: "
        "pip install 'score.distlock[sqlalchemy]'"
    )


def create(
    driver: str | None, explicit: Iterable[tuple[str, bytes]], options: Mapping[str, Any]
) -> Any:
    """A SQLAlchemy Engine on the same database, whose driver reads the environment itself."""
    try:
        import sqlalchemy
        from sqlalchemy.engine.url import URL
    except ImportError as error:
        raise ImportError(
            "conf.engine needs SQLAlchemy: pip install 'score.distlock[sqlalchemy]'"
        ) from error
    arguments = {name: value.decode(errors="surrogateescape") for name, value in explicit}
    host, port = arguments.get("host", ""), arguments.get("port", "")
    one = host and "," not in host
    # A URL's host cannot be the folder of a socket; its options can.
    socket = one and host.startswith(("/", "@"))
    place = {"host": host, **({"port": port} if port else {})} if socket else {}
    one = one and not socket
    make: Any = getattr(URL, "create", URL)  # 1.3 has no such method
    url = make(
        f"postgresql+{_driver(driver, sqlalchemy.__version__)}",
        username=arguments.get("user"),
        password=arguments.get("password"),
        host=host if one else None,
        port=int(port) if one and port.isdigit() else None,
        database=arguments.get("dbname"),
        query=place,
    )
    return sqlalchemy.create_engine(url, connect_args=arguments, **options)
