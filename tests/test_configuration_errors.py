"""Configuration errors are reported to whoever can fix them, and to nobody else.

Whatever is wrong, no part of a password is in any message, repr or log.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL, create_engine, make_url

import score.distlock
import score.init
from score.distlock import ConfiguredDistlockModule as Conf
from score.distlock import DatabaseError, DatabaseUnavailable
from score.init import ConfigurationError

from .server_free import free_port

AT_ONCE = {"sqlalchemy.pool_timeout": "5s"}
RUNNING = "is the server running"


def said(url: str, error: type[Exception] | tuple[type[Exception], ...]) -> str:
    with pytest.raises(error) as caught:
        score.distlock.init({"sqlalchemy.url": url, **AT_ONCE})
    return str(caught.value)


def test_only_who_is_refused_is_asked_whether_the_server_is_running() -> None:
    for url in (f"postgresql://127.0.0.1:{free_port()}/d", "postgresql:///d?host=/nowhere"):
        assert RUNNING in said(url, DatabaseUnavailable)
    assert RUNNING not in said("postgresql://name.invalid/d", DatabaseUnavailable)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(DatabaseUnavailable) as caught:
            slow = {"sqlalchemy.pool_timeout": "200ms"}
            score.distlock.init({"sqlalchemy.url": f"postgresql://127.0.0.1:{port}/d", **slow})
        assert "sqlalchemy.pool_timeout" in str(caught.value)
        assert RUNNING not in str(caught.value)


def test_a_server_that_asks_for_a_password_nobody_has(tcp_url: str) -> None:
    without = make_url(tcp_url)._replace(password=None).render_as_string()
    message = said(without, ConfigurationError)
    assert "asks for a password" in message
    assert "PGPASSWORD" in message
    assert RUNNING not in message


def test_the_servers_refusal_names_what_to_change(
    tcp_url: str, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tcp_url.replace("s3cret", "hush")
    assert "what to change: sqlalchemy.url: password" in said(wrong, DatabaseError)
    made = make_url(server_url)
    nowhere = made.set(database="nowhere").render_as_string()
    assert "sqlalchemy.url: dbname=nowhere" in said(nowhere, DatabaseError)
    nobody = made.set(username="nobody").render_as_string()
    assert "sqlalchemy.url: user=nobody" in said(nobody, DatabaseError)
    monkeypatch.setenv("PGPASSWORD", "hush")
    without = make_url(tcp_url)._replace(password=None).render_as_string()
    message = said(without, DatabaseError)
    assert "the environment variable PGPASSWORD" in message
    assert "hush" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGSSLMODE", "require"),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLROOTCERT", "system"),
        ("PGREQUIRESSL", "1"),
        ("PGCHANNELBINDING", "require"),
        ("PGREQUIREAUTH", "md5"),
        ("PGGSSENCMODE", "require"),
        ("PGREQUIREPEER", "postgres"),
    ],
)
def test_security_that_cannot_be_had_is_refused_where_it_is_demanded(
    tcp_url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    # The tests' server has no TLS.
    message = said(tcp_url, (ConfigurationError, DatabaseUnavailable))
    assert f"the environment variable {name}" in message


def test_the_files_section_is_named(tmp_path: Path) -> None:
    for text in ("maxtime = 1m\n", "sqlalchemy.url = nonsense\n", "sqlalchemy.url=\nmaxtime=x\n"):
        file = tmp_path / "app.conf"
        file.write_text(f"[score.init]\nmodules = score.distlock\n[distlock]\n{text}")
        with pytest.raises(ConfigurationError) as caught:
            score.init.init_from_file(str(file))
        assert str(caught.value).startswith("[distlock] ")
    file.write_text("[score.init]\nmodules = score.distlock\n")
    with pytest.raises(ConfigurationError, match=r"in the section \[distlock\]"):
        score.init.init_from_file(str(file))
    nowhere = f"postgresql://127.0.0.1:{free_port()}/d"
    file.write_text(
        f"[score.init]\nmodules = score.distlock\n[distlock]\nsqlalchemy.url = {nowhere}\n"
    )
    with pytest.raises(DatabaseUnavailable, match=r"^cannot reach the database"):
        score.init.init_from_file(str(file))
    # The key may belong to other sections.
    file.write_text("[score.init]\nmodules = score.distlock\n[DEFAULT]\nurl = a\n[distlock]\n")
    with pytest.raises(
        ConfigurationError, match=r"url is missing .*'url' is not a key of score\.distlock"
    ):
        score.init.init_from_file(str(file))


class Interrupting(dict[str, str]):
    """Ctrl-C arrives while the library finds out which file an error is about."""

    def __contains__(self, key: object) -> bool:
        if key == "here":
            raise KeyboardInterrupt
        return super().__contains__(key)


def test_an_interruption_while_an_error_is_completed_is_raised() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        score.distlock.init(Interrupting({"sqlalchemy.url": "nonsense"}))
    assert isinstance(caught.value.__cause__, ConfigurationError)


#: Characters that decide how a URL is split, between recognizable parts.
PIECES = st.one_of(
    st.sampled_from([*"@:/?&=#%+,[] '\"\n", "://", "%40", "%2", "é", "\U0001f600", "\\"]),
    st.text("GHJKQVWXYZ", min_size=4, max_size=6),
)
PASSWORDS = st.lists(PIECES, min_size=1, max_size=6).map("".join)

FORMS = st.sampled_from(
    [
        "postgresql://u:{}@127.0.0.1:1/d",
        "postgresql+psycopg2://u:{}@127.0.0.1:1/d?application_name=x",
        "postgres://u:x@{}@127.0.0.1:1",
        "postgresql://u:{}@127.0.0.1:port/d",
        "postgresql://u:{}@[::1/d",
        "postgresql://u:{}@127.0.0.1:1/d?sslmode=odd",
        "postgresql://u:{}@127.0.0.1:1,127.0.0.1:1/d?port=1,2,3",
        "postgresql://u:{}@127.0.0.1:1/d?nonsense=1",
        "postgresql://u@127.0.0.1:1/d?password={}",
        "postgresql://u@127.0.0.1:1/d?PASSWORD={}&sslmode=odd",
        "postgresql://u@127.0.0.1:1/d?pass%77ord={}",
        "postgresql://u@127.0.0.1:1/d?Pwd={}",
        "postgresql://u@127.0.0.1:1/d?passwd={}&connect_timeout=x",
        "postgresql://u@127.0.0.1:1/d?sslpassword={}",
        "postgresql://u@127.0.0.1:1/d&password={}",
        "postgresql://u@127.0.0.1:1/d;Pwd={};sslmode=require",
        "mysql://u:{}@127.0.0.1/d",
        "postgresql//u:{}@127.0.0.1/d",
        "postgresql:u:{}@127.0.0.1/d",
        '"postgresql://u:{}@127.0.0.1/d"',
        "host=127.0.0.1 password={}",
        "{}",
    ]
)


def everything_said(work: Any, records: list[logging.LogRecord]) -> str:
    """Everything that the user, or a reader of the logs, gets to see."""
    records.clear()
    shown = []
    try:
        conf = work()
        shown += [repr(conf), str(conf), repr(conf.get("name"))]
        conf.try_acquiring("name")
    except (ConfigurationError, DatabaseError, ImportError) as error:
        shown += ["".join(traceback.format_exception(error)), repr(error), str(error.args)]
    return "\n".join([*shown, *(record.getMessage() for record in records)])


@pytest.fixture(scope="module")
def records() -> Any:
    """All log records."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler, logger = Keep(), logging.getLogger("score.distlock")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(1)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(before)


def assert_untold(password: str, shown: str) -> None:
    for start in range(len(password) - 3):
        part = password[start : start + 4]
        if part.isalpha() and part.isascii():
            # The lines of this file are in a traceback; nothing else of it looks like this.
            assert part not in shown


@settings(max_examples=400, deadline=None)
@given(PASSWORDS, FORMS)
def test_no_part_of_a_password_in_a_url_is_told(records: Any, password: str, form: str) -> None:
    url = form.format(password)
    if "embedded" in url:
        return
    work = lambda: Conf(url, "1m", pool_timeout="1s")  # noqa: E731
    assert_untold(password, everything_said(work, records))


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://u:{0}@127.0.0.1:1/d?sslmode={0}",
        "postgresql://u:{0}@127.0.0.1:1/d?port={0}",
        "postgresql://u:{0}@127.0.0.1:1/d?connect_timeout=1{0}",
        "postgresql://u%3A{0}@127.0.0.1:1/d",
        "postgresql://u;{0}@127.0.0.1:1/d",
        "embedded:{0}@x",
    ],
)
def test_a_password_in_the_wrong_place_is_not_told(records: Any, form: str) -> None:
    password = "Zq9XwVkR7t"
    work = functools.partial(Conf, form.format(password), "1m", pool_timeout=0.2)
    assert_untold(password, everything_said(work, records))


def test_a_password_that_cannot_be_encoded_is_not_told(records: Any) -> None:
    """Python's own error would contain all of it, though it does not print it."""
    password = "Zq9XwVkR7t\ud800"
    url, made = "postgresql://u:{}@127.0.0.1:1/d", "postgresql+psycopg://"
    args = {"password": password}
    for work in (
        lambda: Conf(url.format(password), "1m"),
        lambda: score.distlock.init({"sqlalchemy.url": url.format(password)}),
        lambda: Conf(URL.create("postgresql", "u", password, "127.0.0.1", 1, "d"), "1m"),
        lambda: Conf("postgresql://u@127.0.0.1:1/d", "1m", connect_args=args),
        lambda: Conf(create_engine(made, connect_args=args), "1m"),
    ):
        shown = everything_said(work, records)
        assert "half of a surrogate pair" in shown
        assert_untold(password[:10], shown)


@settings(max_examples=200, deadline=None)
@given(PASSWORDS.filter(lambda text: "\0" not in text), st.sampled_from(range(5)))
def test_no_part_of_a_password_elsewhere_is_told(records: Any, password: str, way: int) -> None:
    plain = "postgresql://u@127.0.0.1:1/d"
    odd = {"sslmode": "odd"} if len(password) % 2 else {}
    try:
        if way == 0:
            work = lambda: Conf(plain, "1m", connect_args={"password": password, **odd})  # noqa: E731
        elif way == 1:
            engine = create_engine(
                plain.replace(":", "+psycopg:", 1), connect_args={"password": password, **odd}
            )
            work = lambda: Conf(engine, "1m")  # noqa: E731
        elif way == 2:
            made = URL.create("postgresql", "u", password, "127.0.0.1", 1, "d", odd)
            work = lambda: Conf(made, "1m")  # noqa: E731
        elif way == 3:
            made = URL.create("postgresql+psycopg2", "u", password, "127.0.0.1", 1, "d", odd)
            work = lambda: Conf(create_engine(made), "1m")  # noqa: E731
        else:
            os.environ["PGPASSWORD"] = password
            work = lambda: Conf(plain, "1m", connect_args=odd)  # noqa: E731
        assert_untold(password, everything_said(work, records))
    finally:
        os.environ.pop("PGPASSWORD", None)
