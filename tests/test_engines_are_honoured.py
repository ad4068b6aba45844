"""An Engine's connections use the same table as the locks, or the Engine is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg2
import pydantic
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

import score.distlock
from score.distlock import ConfiguredDistlockModule as Conf
from score.distlock import DatabaseError
from score.init import ConfigurationError

from .conftest import with_options
from .server_free import URL as NOWHERE

DRIVERS = ("psycopg", "psycopg2")


@pytest.fixture
def elsewhere(db: psycopg.Connection[Any]) -> str:
    """Another schema than the one the URL leads to."""
    db.execute("CREATE SCHEMA elsewhere")
    return "elsewhere"


def with_driver(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://")


def held_in(db: psycopg.Connection[Any], schema: str) -> list[str]:
    names = db.execute(f"SELECT name FROM {schema}._score_distlock ORDER BY name")
    return [name for (name,) in names if not name.startswith("distlock.engine.")]


def says(url: str, driver: str, schema: str) -> dict[str, Engine]:
    """Engines that lead to another schema than their URL."""
    options = f"-csearch_path={schema}"
    url = with_driver(url, driver)
    plain = conninfo_to_dict(url.replace(f"+{driver}", ""))
    module: Any = {"psycopg": psycopg, "psycopg2": psycopg2}[driver]
    cparams = create_engine(url)
    event.listen(cparams, "do_connect", lambda d, r, a, params: params.update(options=options))
    connects = create_engine(url)
    event.listen(
        connects, "do_connect", lambda d, r, a, params: module.connect(**params, options=options)
    )
    return {
        "connect_args": create_engine(url, connect_args={"options": options}),
        "creator": create_engine(
            f"postgresql+{driver}://", creator=lambda: module.connect(**plain, options=options)
        ),
        "do_connect": cparams,
        "do_connect's connection": connects,
        "NullPool": create_engine(url, connect_args={"options": options}, poolclass=NullPool),
        "StaticPool": create_engine(url, connect_args={"options": options}, poolclass=StaticPool),
        "its options": create_engine(url, connect_args={"options": options}).execution_options(
            stream_results=True
        ),
    }


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_an_engine_says_beside_its_url_is_honoured(
    url: str, db: psycopg.Connection[Any], elsewhere: str, driver: str
) -> None:
    for name, engine in says(url, driver, elsewhere).items():
        Conf(engine, "1m").acquire(name)
        assert name in held_in(db, elsewhere)
        engine.dispose()


def test_the_password_of_connect_args_is_used(tcp_url: str) -> None:
    given = make_url(tcp_url).set(drivername="postgresql+psycopg")
    engine = create_engine(given._replace(password=None), connect_args={"password": given.password})
    assert Conf(engine, "1m").acquire("name")
    wrong = create_engine(given, connect_args={"password": "hush"})
    with pytest.raises(DatabaseError, match="password authentication failed"):
        Conf(wrong, "1m").acquire("name")


def connect(engine: Engine, schema: str) -> None:
    def set_path(connection: Any, record: object) -> None:
        connection.autocommit = True
        connection.cursor().execute(f"SET search_path TO {schema}")
        connection.autocommit = False

    event.listen(engine, "connect", set_path)


def checkout(engine: Engine, schema: str) -> None:
    def set_path(connection: Any, record: object, proxy: object) -> None:
        connection.cursor().execute(f"SET search_path TO {schema}")

    event.listen(engine, "checkout", set_path)


def begin(engine: Engine, schema: str) -> None:
    def set_path(connection: Any) -> None:
        connection.exec_driver_sql(f"SET LOCAL search_path TO {schema}")

    event.listen(engine, "begin", set_path)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("listen", [connect, checkout, begin])
@pytest.mark.parametrize("known", [True, False])
def test_listeners_that_lead_elsewhere_are_refused(
    url: str,
    db: psycopg.Connection[Any],
    elsewhere: str,
    driver: str,
    listen: Callable[[Engine, str], None],
    known: bool,
) -> None:
    if known:  # that schema has a table of its own
        score.distlock.init(
            {"sqlalchemy.url": with_options(url, "options=-csearch_path%3Delsewhere")}
        )
    engine = create_engine(with_driver(url, driver))
    listen(engine, elsewhere)
    with pytest.raises(ConfigurationError, match=r"see another table.*options=-csearch_path"):
        Conf(engine, "1m")
    assert held_in(db, "public") == []


@pytest.mark.parametrize("listen", [connect, checkout, begin])
def test_listeners_that_lead_nowhere_else_are_fine(
    url: str, db: psycopg.Connection[Any], listen: Callable[[Engine, str], None]
) -> None:
    engine = create_engine(with_driver(url, "psycopg"))
    listen(engine, "public")
    Conf(engine, "1m").acquire("name")
    assert held_in(db, "public") == ["name"]


def test_an_engine_without_such_is_not_connected(url: str) -> None:
    engine = create_engine(with_driver(url, "psycopg"))
    Conf(engine, "1m")
    assert "Connections in pool: 0" in engine.pool.status()
    Conf(create_engine(with_driver(NOWHERE, "psycopg")), "1m")


def test_a_translated_schema_is_refused(url: str) -> None:
    engine = create_engine(with_driver(url, "psycopg")).execution_options(
        schema_translate_map={None: "elsewhere"}
    )
    with pytest.raises(ConfigurationError, match="schema_translate_map"):
        Conf(engine, "1m")


def test_an_engine_for_another_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the Engine is for sqlite; allowed are"):
        Conf(create_engine("sqlite://"), "1m")


def test_what_only_the_driver_understands_is_refused_by_name(url: str) -> None:
    for arguments in ({"ssl_context": object()}, {"gssencmode": object()}):
        engine = create_engine(with_driver(url, "psycopg"), connect_args=arguments)
        with pytest.raises(ConfigurationError, match=next(iter(arguments))):
            Conf(engine, "1m")


def test_manners_of_connections_are_their_users_own(url: str) -> None:
    arguments = {"autocommit": True, "prepare_threshold": None, "connect_timeout": 5}
    engine = create_engine(with_driver(url, "psycopg"), connect_args=arguments)
    assert Conf(engine, "1m").acquire("name")


def asyncpg_url(url: str) -> URL:
    made = make_url(url)
    return made.set(drivername="postgresql+asyncpg")


def test_an_engine_of_asyncpg_is_honoured(
    url: str, db: psycopg.Connection[Any], elsewhere: str
) -> None:
    settings = {"server_settings": {"search_path": elsewhere, "application_name": "my app"}}
    engine = create_async_engine(asyncpg_url(url), connect_args={**settings, "timeout": 5})
    for name, given in (("async", engine), ("its engine", engine.sync_engine)):
        Conf(given, "1m").acquire(name)
        assert name in held_in(db, elsewhere)


def test_listeners_of_an_engine_of_asyncpg(url: str, elsewhere: str) -> None:
    def set_path(schema: str) -> Callable[[Any, object], None]:
        def listener(connection: Any, record: object) -> None:
            cursor = connection.cursor()
            cursor.execute(f"SET search_path TO {schema}")
            connection.commit()

        return listener

    async def given_in_a_loop() -> None:
        engine = create_async_engine(asyncpg_url(url))
        event.listen(engine.sync_engine, "connect", set_path("public"))
        Conf(engine, "1m").acquire("name")
        async with engine.connect() as connection:  # the engine still works in this loop
            assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()

    asyncio.run(given_in_a_loop())
    other = create_async_engine(asyncpg_url(url))
    event.listen(other.sync_engine, "connect", set_path(elsewhere))
    with pytest.raises(ConfigurationError, match="see another table"):
        Conf(other, "1m")


@pytest.mark.parametrize(
    "form",
    [
        "postgresql+asyncpg://{user}:{password}@{host}:{port}/{database}",
        "postgresql+pg8000://{user}:{password}@{host}:{port}/{database}",
        "postgres://{user}:{password}@{host}:{port}/{database}",
        "postgresql://{user}:{password}@{host}:{port}/{database}?ssl=prefer",
        "postgresql://{user}:{password}@127.0.0.1:{port},127.0.0.2:{port}/{database}",
        "postgresql://{user}:{password}@/{database}?host={host}:{port}&host=127.0.0.2:{port}",
        "postgresql://{user}:s3cret:p@ss%2Fword@{host}:{port}/{database}",
        " postgresql://{user}:{password}@{host}:{port}/{database}?application_name=a+b\n",
        "postgresql://{user}@{host}:{port}/{database}?password={password}",
        "postgresql://?user={user}&password={password}&host={host}&port={port}&dbname={database}",
    ],
)
def test_conf_engine_works_for_every_url_that_the_locks_accept(tcp_url: str, form: str) -> None:
    made = make_url(tcp_url)
    password = "s3cret%3Ap%40ss%2Fword"
    text_ = form.format(
        user=made.username,
        password=password,
        host=made.host,
        port=made.port,
        database=made.database,
    )
    conf = score.distlock.init({"sqlalchemy.url": text_})
    conf.acquire("seen")
    with conf.engine.connect() as connection:
        query = text("SELECT name FROM _score_distlock")
        assert connection.execute(query).scalars().all() == ["seen"]
    assert "s3cret" not in repr(conf.engine) + str(conf.engine.url) + repr(conf)


def test_connect_args_of_the_configuration(
    url: str, db: psycopg.Connection[Any], elsewhere: str
) -> None:
    arguments = {"options": f"-csearch_path={elsewhere}", "connect_timeout": 5}
    conf = score.distlock.init({"sqlalchemy.url": url, "sqlalchemy.connect_args": arguments})
    conf.acquire("name")
    assert held_in(db, elsewhere) == ["name"]
    with conf.engine.connect() as connection:
        assert connection.execute(text("SHOW search_path")).scalar() == elsewhere
    with pytest.raises(ConfigurationError, match="connect_args must be a mapping"):
        score.distlock.init({"sqlalchemy.url": url, "sqlalchemy.connect_args": "x"})
    with pytest.raises(ConfigurationError, match="connect_args: there is the unknown option"):
        score.distlock.init({"sqlalchemy.url": url, "sqlalchemy.connect_args": {"x": 1}})


def test_urls_may_be_objects(url: str) -> None:
    given = make_url(url)
    assert score.distlock.init({"sqlalchemy.url": given}).acquire("a")
    assert Conf(given, 1).try_acquiring("a") is None
    odd = URL.create("postgresql", "u@/:", "p@/:?", "h", 5433, "d?/@", {"options": "-cx.y=z w"})
    assert "u%40%2F%3A:***@h:5433/d%3F/%40" in repr(Conf(odd, 1)) or "…" in repr(Conf(odd, 1))


def test_urls_may_be_pydantics(tcp_url: str) -> None:
    dsn = pydantic.TypeAdapter(pydantic.PostgresDsn)
    assert score.distlock.init({"sqlalchemy.url": dsn.validate_python(tcp_url)}).acquire("a")
    secret = pydantic.SecretStr(tcp_url)
    assert score.distlock.init({"sqlalchemy.url": secret}).acquire("b")
    hosts = dsn.validate_python("postgresql://u:p%40w@one:1,two:2/d")
    assert "u:***@one:1,two:2/d" in repr(Conf(hosts, 1))


def test_an_empty_url_where_the_environment_says_it(url: str) -> None:
    made = make_url(url)
    code = (
        "import score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': ''})\n"
        "conf.acquire('name')\n"
        "print(conf.engine.raw_connection().driver_connection.info.dbname)\n"
    )
    environment = {
        "PGHOST": str(made.host or made.query["host"]),
        "PGPORT": str(made.port or made.query["port"]),
        "PGUSER": str(made.username),
        "PGPASSWORD": made.password or "",
        "PGDATABASE": str(made.database),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{made.database}\n", "")


def test_this_is_tested_with_a_sqlalchemy_of_today() -> None:
    assert not sqlalchemy.__version__.startswith("1.")
