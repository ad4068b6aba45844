"""Connecting without a confdict: from a URL, libpq's environment, or Django's settings."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import score.distlock
from score.distlock import DatabaseError, DatabaseUnavailable, _connect
from score.init import ConfigurationError

from .conftest import python
from .server_free import free_port
from .test_neighbours import roles

__all__ = ("roles",)

Db = psycopg.Connection[Any]

SECRET = "Zq9XwVkR7t"


def test_it_is_what_init_makes(url: str, db: Db) -> None:
    conf = score.distlock.connect(url)
    assert db.execute("SELECT count(*) FROM _score_distlock").fetchone() == (0,)
    assert type(conf) is score.distlock.ConfiguredDistlockModule
    assert conf.maxtime == 60
    token = conf.acquire("name")
    assert score.distlock.init({"sqlalchemy.url": url}).try_acquiring("name") is None
    conf.release("name", token)


def test_its_options_are_the_constructors(url: str) -> None:
    conf = score.distlock.connect(
        url, maxtime="2m", autoextend=True, reentrant=False, pool_size=1, pool_timeout="5s"
    )
    assert conf.maxtime == 120
    with conf.get("name") as lock, pytest.raises(score.distlock.CouldNotAcquireLock):
        lock.acquire()
    known = set(inspect.signature(score.distlock.ConfiguredDistlockModule).parameters)
    assert known - {"engine"} == set(score.distlock._connect._OPTIONS)


def test_other_ways_to_name_the_database(url: str) -> None:
    with score.distlock.connect(url) as conf:
        conf.acquire("name")
    for given in (sqlalchemy.engine.make_url(url), sqlalchemy.create_engine(url)):
        with score.distlock.connect(given) as conf:
            assert conf.try_acquiring("name") is None


@pytest.mark.parametrize("arguments", ["", "None", "''", "'postgresql://'"])
def test_the_environment_says_where_it_is(url: str, arguments: str) -> None:
    conf = score.distlock.connect(url)
    conf.acquire("name")
    code = f"import score.distlock as d; print(d.connect({arguments}).info('name').fence)"
    environment = {f"PG{key.upper()}": str(value) for key, value in conninfo_to_dict(url).items()}
    environment["PGDATABASE"] = environment.pop("PGDBNAME")
    info = conf.info("name")
    assert python(code, **environment).strip() == str(info and info.fence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maxtme": 5}, "'maxtme' is not an option of connect.*did you mean 'maxtime'"),
        ({"engine": "x"}, "'engine' is not an option"),
        ({"maxtime": "soon"}, "maxtime: 'soon' is not a time interval"),
        ({"pool_size": -1}, "pool_size: -1 is out of range"),
        ({"connect_args": {"pasword": SECRET}}, "pasword"),
    ],
)
def test_what_cannot_be_used_is_refused(url: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        score.distlock.connect(url, **options)
    assert SECRET not in repr(raised.value)


def test_what_is_no_url() -> None:
    with pytest.raises(TypeError, match=r"^url must be .* Engine or a URL .*'postgresql://user@"):
        score.distlock.connect(17)
    with pytest.raises(ConfigurationError) as raised:
        score.distlock.connect(f"mysql://u:{SECRET}@h/d")
    assert SECRET not in repr(raised.value)


def test_an_empty_url_is_told_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=r"\] url is empty.*connect\('postgresql://"):
        score.distlock.connect("")


def test_without_a_url_the_error_says_what_was_used_instead(
    monkeypatch: pytest.MonkeyPatch, tcp_url: str
) -> None:
    for name in _connect._PLACE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPORT", str(free_port()))
    monkeypatch.setenv("PGPASSWORD", SECRET)
    said = r"cannot reach .* \(no URL was given, .*: PGPORT; pass one: connect\('postgresql://"
    with pytest.raises(DatabaseUnavailable, match=said):
        score.distlock.connect(pool_timeout=1)
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    with pytest.raises(DatabaseUnavailable, match=r": PGHOST, PGPORT; pass one"):
        score.distlock.connect(None, pool_timeout=1)
    with pytest.raises(DatabaseUnavailable) as caught:
        score.distlock.connect("postgresql://", pool_timeout=1)
    assert "no URL" not in str(caught.value)
    # The server itself refuses the login.
    server = conninfo_to_dict(tcp_url)
    for key in ("host", "port", "user"):
        monkeypatch.setenv("PG" + key.upper(), str(server[key]))
    monkeypatch.setenv("PGDATABASE", "nowhere")
    with pytest.raises(DatabaseError, match=r"no URL was given, .*PGUSER; pass one") as refused:
        score.distlock.connect(pool_timeout=5)
    assert refused.value.sqlstate == "28P01"
    assert SECRET not in str(refused.value)


def test_without_a_url_and_a_variable_the_defaults_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in _connect._PLACE:
        monkeypatch.delenv(name, raising=False)

    def refuse(options: object) -> None:
        raise DatabaseUnavailable("gone")

    # There may be a server where the defaults lead.
    monkeypatch.setattr(_connect, "_open", refuse)
    with pytest.raises(DatabaseUnavailable, match=r"^gone \(no URL .*none of PGSERVICE, .* is"):
        score.distlock.connect()


#: What happens with these settings.DATABASES.
DJANGO = """
import json, sys
from django.conf import settings
settings.configure(DATABASES=json.loads(sys.argv[1]))
import score.distlock
try:
    conf = score.distlock.from_django(*sys.argv[2:], pool_timeout=10)
    conf.acquire('name', timeout=0)
    print('acquired', conf.info('name').fence)
except Exception as error:
    print(type(error).__name__, error)
"""


def settings(url: str, **changes: Any) -> dict[str, Any]:
    """Django's settings for a database."""
    said = conninfo_to_dict(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": said.get("dbname"),
        "USER": said.get("user", ""),
        "PASSWORD": said.get("password", ""),
        "HOST": said.get("host", ""),
        "PORT": said.get("port", ""),
        **changes,
    }


def django(databases: dict[str, Any], *arguments: str, **environment: str) -> str:
    printed = python(DJANGO, json.dumps(databases), *arguments, **environment)
    assert SECRET not in printed
    return printed


def test_djangos_database(url: str, tcp_url: str) -> None:
    """With its password, over a socket or TCP; it is the one Django itself would use."""
    for number, which in enumerate((url, tcp_url), 1):
        conf = score.distlock.connect(url)
        assert django({"default": settings(which)}) == f"acquired {number}\n"
        assert conf.revoke("name")


def test_another_alias(url: str) -> None:
    databases = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        "locks": settings(url),
    }
    assert "acquired" in django(databases, "locks")
    refused = django(databases)
    for part in (
        "ConfigurationError",
        "DATABASES['default']",
        "sqlite3",
        "set ENGINE",
        "from_django('alias')",
    ):
        assert part in refused
    missing = django(databases, "lokcs")
    for part in (
        "ConfigurationError",
        "DATABASES['lokcs'] is missing",
        "'default', 'locks'",
        "add",
    ):
        assert part in missing


def test_a_backend_derived_from_djangos(url: str, tmp_path: Path) -> None:
    """Such as PostGIS's."""
    backend = tmp_path / "odd"
    backend.mkdir()
    (backend / "__init__.py").touch()
    (backend / "base.py").write_text("from django.db.backends.postgresql.base import *\n")
    database = settings(url, ENGINE="odd")
    assert "acquired" in django({"default": database}, PYTHONPATH=str(tmp_path))


def test_the_options_are_honoured(url: str, db: Db, roles: tuple[str, str]) -> None:
    db.execute('CREATE SCHEMA "of its own"')
    options: dict[str, Any] = {"options": r'-c search_path="of\ its\ own"', "isolation_level": 3}
    options |= {"connect_timeout": 5, "application_name": "shop", "server_side_binding": True}
    database = settings(url, OPTIONS=options)
    assert "acquired 1" in django({"default": database})
    assert db.execute('SELECT count(*) FROM "of its own"._score_distlock').fetchone() == (1,)


def test_a_role_that_is_assumed(url: str, db: Db, roles: tuple[str, str]) -> None:
    role = roles[0]
    db.execute('CREATE ROLE "a\'b \\c"')
    try:
        for name in (role, "a'b \\c"):
            db.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(name)))
            database = settings(url, OPTIONS={"assume_role": name})
            assert "acquired 1" in django({"default": database})
            owner = "SELECT tableowner FROM pg_tables WHERE tablename = '_score_distlock'"
            assert db.execute(owner).fetchone() == (name,)
            db.execute("DROP TABLE _score_distlock")
    finally:
        db.execute('DROP OWNED BY "a\'b \\c"; DROP ROLE "a\'b \\c"')


def test_a_service(url: str, tmp_path: Path) -> None:
    file = tmp_path / "services"
    said = conninfo_to_dict(url)
    file.write_text("[shop]\n" + "".join(f"{key}={value}\n" for key, value in said.items()))
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "",
        "OPTIONS": {"service": "shop"},
    }
    assert "acquired 1" in django({"default": database}, PGSERVICEFILE=str(file))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"OPTIONS": {"sslmode": "odd"}}, ["sslmode"]),
        ({"OPTIONS": {"sslmod": "require"}}, ["sslmod"]),
        ({"OPTIONS": {"sslrootcert": [SECRET]}}, ["sslrootcert", "list"]),
        ({"PORT": "55x"}, ["port"]),
        ({"NAME": ""}, ["its NAME is empty; set NAME to", "service"]),
        ({"NAME": "x" * 100}, ["NAME"]),
    ],
)
def test_bad_settings_are_named(url: str, changes: dict[str, Any], parts: list[str]) -> None:
    refused = django({"default": settings(url, PASSWORD=SECRET, **changes)})
    for part in ["ConfigurationError", "DATABASES['default']", *parts]:
        assert part in refused, refused


def test_tls_that_the_server_does_not_have(url: str) -> None:
    refused = django({"default": settings(url, HOST="127.0.0.1", OPTIONS={"sslmode": "require"})})
    assert refused.split()[0] in ("DatabaseUnavailable", "DatabaseError")


def test_settings_that_are_not_there() -> None:
    code = (
        "import score.distlock as d\ntry: d.from_django()\nexcept Exception as error: print(error)"
    )
    assert "DJANGO_SETTINGS_MODULE" in python(code, DJANGO_SETTINGS_MODULE="")
    code = "import sys\nsys.modules['django.db'] = None\n" + code
    assert "from_django() needs Django" in python(code)
    with pytest.raises(ConfigurationError, match="OPTIONS"):
        score.distlock.from_django(connect_args={})
    with pytest.raises(TypeError, match="alias must be a str"):
        score.distlock.from_django(17)  # type: ignore[arg-type]


def test_no_thread_can_be_started(url: str) -> None:
    """The error is one of ours, and no panic of a library is printed."""
    code = (
        "import sys, score.distlock\n"
        "conf = score.distlock.connect(sys.argv[1])\n"
        "try:\n"
        "    conf.acquire('name')\n"
        "except score.distlock.DatabaseUnavailable as error:\n"
        "    print(error)\n"
    )
    # No thread gets a stack of this size.
    output = python(code, url, RUST_MIN_STACK=str(1 << 47))
    assert output.startswith("no thread can be started for connections to postgresql://")
