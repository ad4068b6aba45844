"""Provides the tests' databases, and 0.2.5."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

import score.distlock

from .support.guardian import Guardian
from .support.line import patiently
from .support.proxy import Proxy
from .support.server import PASSWORD, Server

if TYPE_CHECKING:
    from typing_extensions import LiteralString

PROJECT = Path(__file__).parent.parent
SUPPORT = Path(__file__).parent / "support"

# A script's background processes ignore SIGINT, and the tests' programs would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

Connect = Callable[[], psycopg.Connection[Any]]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server for the tests only."""
    server = Server()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def admin_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The server that DISTLOCK_TEST_URL names, or else our own."""
    given = os.environ.get("DISTLOCK_TEST_URL")
    if given:
        with guarded(given):
            yield given
    else:
        yield request.getfixturevalue("server").url()


@contextlib.contextmanager
def guarded(admin_url: str) -> Iterator[None]:
    """Makes sure that no database of this process stays on a server that is not ours."""
    guardian = Guardian("databases", admin_url, f"distlock_{os.getpid()}_")
    yield
    guardian.tidy_up()


_numbers = itertools.count()


@contextlib.contextmanager
def fresh_database(admin_url: str, options: LiteralString = "") -> Iterator[str]:
    """A fresh, empty database on a server; yields its URL and drops it afterwards."""
    name = f"distlock_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(admin_url, autocommit=True) as admin:
        create = sql.SQL("CREATE DATABASE {} " + options)
        admin.execute(create.format(sql.Identifier(name)))
    yield with_database(admin_url, name)
    with psycopg.connect(admin_url, autocommit=True) as admin:
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        admin.execute(drop.format(sql.Identifier(name)))


def with_database(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    base, mark, query = url.partition("?")
    return base.rpartition("/")[0] + "/" + name + mark + query


def with_options(url: str, options: str) -> str:
    """Adds options to a URL, which may already have some."""
    return url + ("&" if "?" in url else "?") + options


@pytest.fixture
def url(admin_url: str) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    with fresh_database(admin_url) as url:
        yield url


@pytest.fixture
def server_url(server: Server) -> Iterator[str]:
    """The same, but always on the tests' own server."""
    with fresh_database(server.url()) as url:
        yield url


@pytest.fixture
def database(server_url: str) -> str:
    """The name of a fresh, empty database on the tests' own server."""
    return server_url.partition("?")[0].rpartition("/")[2]


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """What stands between that server and its clients, and can be cut."""
    with contextlib.closing(Proxy(f"{server.folder}/.s.PGSQL.{server.port}")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def own_url(server: Server) -> Iterator[str]:
    """A database on the server behind the proxy."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE lost_answers")
    yield server.url("lost_answers")
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("DROP DATABASE lost_answers WITH (FORCE)")


@pytest.fixture
def through(proxy: Proxy, own_url: str) -> Callable[..., score.distlock.ConfiguredDistlockModule]:
    """Creates configurations that go through the proxy."""
    score.distlock.init({"sqlalchemy.url": own_url})

    def configure(
        pool_timeout: str = "20s", options: str = ""
    ) -> score.distlock.ConfiguredDistlockModule:
        url = proxy.url("lost_answers") + options
        confdict = {"sqlalchemy.url": url, "sqlalchemy.pool_timeout": pool_timeout}
        return patiently(lambda: score.distlock.init(confdict))

    return configure


@pytest.fixture
def conf(url: str) -> score.distlock.ConfiguredDistlockModule:
    """A configuration whose holds last a minute."""
    return score.distlock.init({"sqlalchemy.url": url, "maxtime": "1m"})


@pytest.fixture
def brief(url: str) -> score.distlock.ConfiguredDistlockModule:
    """A configuration whose holds expire soon."""
    return score.distlock.init({"sqlalchemy.url": url, "maxtime": "300ms"})


@pytest.fixture
def db(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the tests themselves, to look at the table."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def tcp_url(server: Server, url: str, db: psycopg.Connection[Any]) -> str:
    """The same database over TCP, with a password."""
    if "DISTLOCK_TEST_URL" in os.environ:
        pytest.skip("the server that DISTLOCK_TEST_URL names is not ours to add users to")
    user = db.info.dbname
    role = sql.Identifier(user)
    db.execute(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(role, PASSWORD))
    return server.tcp_url(db.info.dbname, user)


@pytest.fixture(scope="session")
def original() -> str:
    """The Python of an environment that has score.distlock 0.2.5."""
    given = os.environ.get("DISTLOCK_ORIGINAL_PYTHON")
    if given:
        return given
    environment = PROJECT / "build" / "original"
    unavailable = environment / "UNAVAILABLE"
    if unavailable.exists():
        pytest.skip("score.distlock 0.2.5 cannot be installed here: " + unavailable.read_text())
    python = environment / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no build/original with score.distlock 0.2.5; `make pytest` makes it")
    return str(python)


def run(python: str, script: str, *arguments: str, **environment: str) -> str:
    """Runs one of the scripts in tests/support; returns what it printed."""
    result = subprocess.run(
        [python, str(SUPPORT / script), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def python(code: str, *arguments: str, **environment: str) -> str:
    """Runs a program with this module in a fresh interpreter; returns what it printed.

    If it does not end, fails with the stacks of its threads.
    """
    program = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", code, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = program.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGABRT)
        output, errors = program.communicate()
        pytest.fail(f"the program did not end; it printed {output!r} and {errors}")
    assert program.returncode == 0, errors
    return output
