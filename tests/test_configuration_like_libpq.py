"""URL, environment, files and arguments mean the same as to libpq and to SQLAlchemy.

This module and both of them read every row of the tables in ``support/configuration_*.py``;
where we differ, the row says from which one, and why.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from psycopg import conninfo, pq
from sqlalchemy.dialects.postgresql import asyncpg, psycopg
from sqlalchemy.engine import make_url

from score.distlock import _config, _engine
from score.distlock._distlock import _understood
from score.init import ConfigurationError

from .support.configuration_files import FILES
from .support.configuration_options import VALUES, options
from .support.configuration_urls import URLS, Row

ROWS = URLS + options() + FILES

NUMBERS = (
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
)
SAME = (
    *("user", "dbname", "options", "sslrootcert", "sslcert", "sslkey", "sslmode"),
    *("channel_binding", "require_auth", "target_session_attrs", "load_balance_hosts"),
)

Reading = dict[str, object] | str
"""What was understood, or why nothing was."""


def by_libpq(text: str) -> Reading:
    """How libpq reads a URL or a connection string."""
    connection = pq.PGconn.connect_start(text.encode(errors="surrogateescape"))
    said = connection.error_message.decode(errors="replace")
    if connection.status == pq.ConnStatus.BAD and not reached_the_network(said):
        return said
    found = defaultdict(str)
    for option in connection.info:
        if option.val is not None:
            found[option.keyword.decode()] = option.val.decode(errors="surrogateescape")
    reading: dict[str, object] = {name: found[name] for name in SAME}
    # libpq reads these, as a C int, only once it has the socket.
    for name in [name for name in (*NUMBERS, "keepalives") if name in found]:
        if not re.fullmatch(r"\s*[+-]?\d{1,10}\s*", found[name]):
            return f'invalid integer value "{found[name]}" for connection option "{name}"'
        found[name] = str(int(found[name]))
    for name in NUMBERS:
        reading[name] = found[name] if found[name] and int(found[name]) > 0 else ""
    reading["keepalives"] = "0" if found["keepalives"] == "0" else "1"
    names = ("application_name", "fallback_application_name")
    reading["application_name"] = next((found[it] for it in names if found[it]), "score.distlock")
    hosts, addresses = found["host"].split(","), found["hostaddr"].split(",")
    count = max(len(hosts), len(addresses))
    ports = found["port"].split(",")
    reading["endpoints"] = [
        endpoint((hosts * count)[i] or (addresses * count)[i], (ports * count)[i] or "5432")
        for i in range(count)
    ]
    reading["hostaddr"] = [(addresses * count)[i] for i in range(count)]
    if count == 1:
        reading["password"] = connection.password
    return reading


def reached_the_network(said: str) -> bool:
    """Whether libpq understood everything before it failed."""
    return said.startswith("connection to server") or "could not translate host name" in said


def endpoint(host: str, port: str) -> str:
    """In this module's notation."""
    if not host:
        host = "/var/run/postgresql" if Path("/var/run/postgresql").is_dir() else "/tmp"
    if host.startswith(("/", "@")):
        return f"{host.rstrip('/')}/.s.PGSQL.{port}"
    return f"[{host}]:{int(port)}" if ":" in host else f"{host}:{int(port)}"


def libpq(row: Row) -> Reading:
    scheme, separator, rest = row.url.partition("://")
    url = scheme.partition("+")[0] + separator + rest
    if not row.arguments:
        return by_libpq(url)
    try:
        return by_libpq(conninfo.make_conninfo(url, **row.arguments))
    except Exception as error:
        return str(error)


def sqlalchemy(row: Row) -> Reading:
    """How libpq reads what SQLAlchemy makes of it."""
    scheme = row.url.partition("://")[0]
    dialect: Any = asyncpg.dialect() if "asyncpg" in scheme else psycopg.dialect()  # type: ignore[no-untyped-call]
    try:
        url = make_url(row.url)
        if url.get_backend_name() not in ("postgresql", "postgres"):
            return f"{url.drivername} is for another database"
        parameters = dialect.create_connect_args(url)[1]
        parameters = {**parameters, **row.arguments}
        for theirs, libpqs in (("database", "dbname"), ("ssl", "sslmode")):
            if "asyncpg" in scheme and theirs in parameters:
                parameters[libpqs] = parameters.pop(theirs)
        return by_libpq(conninfo.make_conninfo(**parameters))
    except Exception as error:
        return str(error)


def ours(row: Row) -> Reading:
    source = _engine.source(row.url, row.arguments)
    try:
        found = _understood(source.text, source.arguments)
    except ConfigurationError as error:
        return str(error)
    found["endpoints"] = found["endpoints"].split(" ")
    found["hostaddr"] = found["hostaddr"].split(",")
    names = (*SAME, *NUMBERS, "keepalives", "application_name", "endpoints", "hostaddr")
    reading: dict[str, object] = {name: found[name] for name in names}
    if len(found["passwords"]) == 1:
        reading["password"] = found["passwords"][0] or b""
    return reading


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An environment without settings, and an empty home folder."""
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path / "nothing"))
    yield tmp_path


def differences(one: Reading, other: Reading) -> object:
    if isinstance(one, str) and isinstance(other, str):
        return None
    if isinstance(one, str) or isinstance(other, str):
        return one, other
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]} or None


@pytest.mark.parametrize("row", ROWS, ids=[row.name() for row in ROWS])
def test_what_is_said_means_what_it_means_elsewhere(
    row: Row, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in row.files.items():
        file = clean / name
        file.write_text(text)
        file.chmod(row.mode)
    for name, value in row.environment.items():
        monkeypatch.setenv(name, value.replace("~", str(clean)))
    own = ours(row)
    references: list[tuple[Callable[[Row], Reading], str]]
    references = [(libpq, row.libpq), (sqlalchemy, row.sqlalchemy)]
    for reference, reason in references:
        reading = reference(row)
        differs = differences(own, reading)
        if reason:
            assert differs, f"{reference.__name__} does not differ: {own}"
        else:
            assert not differs, f"{reference.__name__}: {differs}"


MAKE_URL = """
import json, sys
from sqlalchemy.engine.url import make_url
for line in json.load(sys.stdin):
    url = make_url(line)
    print(json.dumps([url.username, url.password, url.host, url.port, url.database]))
"""


def test_raw_passwords_mean_what_they_meant_to_the_original(original: str, clean: Path) -> None:
    passwords = [
        f"{before}{one}{between}{other}{after}"
        for one, other in product("@:/?#%&=+ x", repeat=2)
        for before, between, after in (("p", "q", "r"), ("", "q", "r"), ("p", "q", ""))
    ]
    urls = [f"postgresql://u:{password}@127.0.0.1:5433/d" for password in passwords]
    command = [original, "-c", MAKE_URL]
    made = subprocess.run(
        command, input=json.dumps(urls), capture_output=True, text=True, check=True
    )
    refused = 0
    for password, line in zip(passwords, made.stdout.splitlines(), strict=True):
        user, secret, host, port, database = json.loads(line)
        own = ours(Row(f"postgresql://u:{password}@127.0.0.1:5433/d"))
        if isinstance(own, str):
            # Current SQLAlchemy reads a host out of these.
            assert re.search("@.*[/?]|^:?[?/]", password), password
            assert "percent-encode" in own
            refused += 1
            continue
        assert own["endpoints"] == [f"{host}:{port}"]
        assert (own["user"], own["password"]) == (user, secret.encode())
        assert own["dbname"] == database
    assert refused < len(passwords) / 10


def test_no_row_is_there_twice() -> None:
    assert len({row.name() for row in ROWS}) == len(ROWS)


def test_every_option_of_libpq_has_its_row_and_every_key_its_line() -> None:
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    in_other_rows = {"service", "oauth_client_secret"}
    assert known - VALUES.keys() == in_other_rows
    docs = Path(__file__).parent.parent / "docs"
    reference = (docs / "reference" / "configuration.rst").read_text()
    variables = {option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar}
    for name in known | variables | _config._KEYS.keys():
        assert f"``{name}``" in reference
