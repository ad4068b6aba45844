"""Every mistake gets an error that says what is wrong, with which value, and what to do."""

from __future__ import annotations

import inspect
import secrets
import traceback
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import create_engine

import score.distlock
from score.distlock import (
    ConfiguredDistlockModule,
    DatabaseError,
    DatabaseUnavailable,
    LockExpired,
    _config,
)
from score.init import ConfigurationError

from .conftest import fresh_database
from .server_free import URL, free_port

Conf = ConfiguredDistlockModule

#: Python refuses to print it.
LONG = 10**5000


@pytest.mark.parametrize(
    ("confdict", "expected"),
    [
        ({}, ["sqlalchemy.url is missing", "embedded:"]),
        ({"sqlalchemy.url": ""}, ["sqlalchemy.url is empty"]),
        ({"sqlalchemy.url": None}, ["sqlalchemy.url must be a str", "NoneType"]),
        ({"sqlalchemy.url": "nonsense"}, ["sqlalchemy.url", "is not a URL", "allowed are"]),
        ({"sqlalchemy.url": "sqlite:////tmp/x"}, ["is not for PostgreSQL", "postgresql://"]),
        ({"sqlalchemy.url": "mysql://u:hush@h/d"}, ["not for PostgreSQL, but mysql"]),
        ({"sqlalchemy.url": "postgresql://u:hush@h:port/d"}, ["not understood", "percent-encode"]),
        ({"sqlalchemy.url": URL + "?foo=1"}, ["unknown option", "foo", "connect_timeout"]),
        ({"sqlalchemy.url": URL + "?sslmode=verify-full"}, ["sslmode=verify-full", "root.crt"]),
        ({"sqlalchemy.url": URL + "?sslmode=odd"}, ["sslmode=odd", "allowed are"]),
        ({"sqlalchemy.url": "embedded:folder"}, ["embedded:", "absolute"]),
        ({"sqlalchemy.url": "embedded:/"}, ["root folder"]),
        ({"sqlalchemy.url": URL, "maxtim": "1m"}, ["'maxtim'", "did you mean 'maxtime'"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.poolsize": "1"}, ["did you mean", "pool_size"]),
        ({"url": URL}, ["'url' is not a key", "did you mean 'sqlalchemy.url'"]),
        ({"DSN": URL}, ["did you mean 'sqlalchemy.url'"]),
        ({"database_url": URL}, ["did you mean 'sqlalchemy.url'"]),
        ({"sqlalchemy.url": URL, "pool_size": 1}, ["did you mean 'sqlalchemy.pool_size'"]),
        ({"sqlalchemy.url": URL, "maxtime": "1 fortnight"}, ["'1 fortnight'", "ms, s, m, h, d, w"]),
        ({"sqlalchemy.url": URL, "timeout": "forever"}, ["'forever'", "none waits without limit"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.poolclass": "x"}, ["sqlalchemy.poolclass"]),
        ({"sqlalchemy.url": URL, "ECHO": "1"}, ["did you mean 'sqlalchemy.echo'"]),
        ({"sqlalchemy.url": URL, 7: "x"}, ["7 is not a key of score.distlock: allowed are"]),
        # A file has both.
        ({"here": "/srv", "sqlalchemy.url": URL}, ["'here' is not a key of score.distlock"]),
        ({"cwd": "/srv", "sqlalchemy.url": URL}, ["'cwd' is not a key of score.distlock"]),
        ({"sqlalchemy.url": URL, LONG: "x"}, ["a very long int is not a key"]),
        ({"sqlalchemy.url": URL, "x" * 10**6: "x"}, ["'xxx", "xxx… is not a key"]),
        ({"sqlalchemy.url": URL, "maxtime": "soon"}, ["maxtime", "'soon'", "'500ms'"]),
        ({"sqlalchemy.url": URL, "maxtime": ""}, ["maxtime", "''"]),
        ({"sqlalchemy.url": URL, "maxtime": "-1s"}, ["maxtime", "-1s"]),
        ({"sqlalchemy.url": URL, "maxtime": -1}, ["maxtime", "-1", "not between 0 and"]),
        ({"sqlalchemy.url": URL, "maxtime": "nan"}, ["maxtime", "nan"]),
        ({"sqlalchemy.url": URL, "maxtime": float("inf")}, ["maxtime", "inf"]),
        ({"sqlalchemy.url": URL, "maxtime": timedelta(days=40000)}, ["maxtime", "hundred years"]),
        ({"sqlalchemy.url": URL, "maxtime": 10**400}, ["maxtime: 1000", "… is not between 0"]),
        ({"sqlalchemy.url": URL, "maxtime": LONG}, ["maxtime: a very long int is not between 0"]),
        ({"sqlalchemy.url": URL, "maxtime": None}, ["maxtime must be", "NoneType"]),
        ({"sqlalchemy.url": URL, "maxtime": True}, ["maxtime must be", "bool"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_size": "many"}, ["pool_size", "'many'"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_size": "-1"}, ["pool_size", "'-1'", "0"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_size": 1.5}, ["pool_size", "1.5"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_size": True}, ["True is not an integer"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_size": LONG}, ["pool_size", "out of range"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.max_overflow": "-2"}, ["max_overflow", "'-2'", "-1"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_timeout": "0"}, ["pool_timeout", "more than 0"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_timeout": "x"}, ["pool_timeout", "'x'"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_recycle": "x"}, ["pool_recycle", "'x'"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_recycle": LONG}, ["pool_recycle"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.pool_pre_ping": "2"}, ["pre_ping", "true and false"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.echo": "perhaps"}, ["echo", "'perhaps'"]),
        ({"sqlalchemy.url": URL, "sqlalchemy.isolation_level": "NONE"}, ["SERIALIZABLE"]),
        ({"sqlalchemy.url": URL, "reentrant": "maybe"}, ["reentrant", "'maybe'", "true and false"]),
        ({"sqlalchemy.url": URL, "table_owner": "a\0b"}, ["table_owner contains NUL"]),
        (
            {"sqlalchemy.url": URL, "sqlalchemy.connect_args": "x"},
            ["a mapping", "not str", "?name"],
        ),
        ({"sqlalchemy.url": URL, "sqlalchemy.connect_args": {7: "x"}}, ["connect_args: 7"]),
        (
            {"sqlalchemy.url": URL, "sqlalchemy.connect_args": {"port": LONG}},
            ["port is a very long"],
        ),
        (
            {"sqlalchemy.url": URL, "sqlalchemy.connect_args": {"server_settings": {"a": LONG}}},
            ["server_settings is a very long int"],
        ),
    ],
)
def test_a_bad_configuration_names_the_key_the_value_and_what_is_allowed(
    confdict: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        score.distlock.init(confdict)
    message = str(caught.value)
    assert message.startswith("[score.distlock] ")
    for part in expected:
        assert part in message
    assert "hush" not in "".join(traceback.format_exception(caught.value))


#: What score.init adds to each section of a file.
OF_A_FILE = {"here": "/srv", "cwd": "/srv"}


@pytest.mark.parametrize(
    "more",
    [
        {"colour": "blue"},
        {7: "x"},
        {"colour": "blue", "sqlalchemy.colour": "blue"},
        {"colour": "blue", "odd.colour": "blue"},
    ],
)
def test_a_key_in_a_file_may_belong_to_every_section(more: dict[Any, Any]) -> None:
    read = _config.read({"sqlalchemy.url": URL, **OF_A_FILE, **more})
    assert read == {"engine": URL, "maxtime": 60}


@pytest.mark.parametrize(
    ("confdict", "expected"),
    [
        ({"sqlalchemy.url": URL, "maxtme": "1m"}, "'maxtme' is not a key"),
        ({"sqlalchemy.url": URL, "sqlalchemy.poolclass": "x"}, "poolclass' is not a key"),
        ({"sqlalchemy.url": URL, "odd.colour": "blue"}, "'odd.colour' is not a key"),
        (
            {"sqlalchemy.url": URL, "colour": "blue", "odd.colour": "red"},
            "'odd.colour' is not a key",
        ),
        ({7: "x"}, "sqlalchemy.url is missing"),
    ],
)
def test_a_key_in_a_file_that_must_be_meant_for_this_module(
    confdict: dict[Any, Any], expected: str
) -> None:
    with pytest.raises(ConfigurationError, match=expected) as caught:
        score.distlock.init({**OF_A_FILE, **confdict})
    assert str(caught.value).startswith("[distlock] ")


@pytest.mark.parametrize("confdict", [None, 7, "sqlalchemy.url", ["a"]])
def test_a_configuration_is_a_mapping(confdict: Any) -> None:
    with pytest.raises(TypeError, match="confdict must be a mapping, not"):
        score.distlock.init(confdict)


@pytest.mark.parametrize("engine", [None, 7, b"postgresql://", object()])
def test_the_engine_is_an_engine_or_a_url(engine: Any) -> None:
    with pytest.raises(TypeError, match="engine must be a SQLAlchemy Engine or a URL as str, not"):
        ConfiguredDistlockModule(engine, 1)


@pytest.mark.parametrize("maxtime", [None, [], b"1m", True])
def test_maxtime_is_an_interval(maxtime: Any) -> None:
    with pytest.raises(
        TypeError, match="maxtime must be a number of seconds, a str or a timedelta"
    ):
        ConfiguredDistlockModule(URL, maxtime)


@pytest.mark.parametrize(
    ("maxtime", "seconds"),
    [
        ("1.5s", 1.5),
        ("0.5 min", 30),
        (".5s", 0.5),
        ("2.S", 2),
        (" 1 minute 30 seconds ", 90),
        ("1h30m", 5400),
        ("1m 1.5 s 250ms", 61.75),
        ("500ms", 0.5),
        ("2 hours", 7200),
        ("0", 0),
        ("1e1", 10),
        ("0.25", 0.25),
    ],
)
def test_intervals_have_fractions_and_are_sums(maxtime: str, seconds: float) -> None:
    assert ConfiguredDistlockModule(URL, maxtime).maxtime == seconds
    configured = ("maxtime", "timeout", "sqlalchemy.pool_recycle")
    read = _config.read({"sqlalchemy.url": URL, **dict.fromkeys(configured, maxtime)})
    assert [read[key] for key in ("maxtime", "timeout", "pool_recycle")] == [seconds] * 3
    assert _config.timeout(maxtime) == seconds


@pytest.mark.parametrize(
    ("key", "value", "understood"),
    [
        ("timeout", None, None),
        ("timeout", " None ", None),
        ("timeout", 5, 5),
        ("sqlalchemy.pool_recycle", None, None),
        ("sqlalchemy.pool_recycle", -1, None),
        ("sqlalchemy.pool_recycle", " -1", None),
        ("sqlalchemy.pool_recycle", "None", None),
        ("sqlalchemy.pool_recycle", 5, 5),
        ("sqlalchemy.echo", True, True),
        ("sqlalchemy.echo", "no", False),
        ("sqlalchemy.isolation_level", "read_committed", "READ COMMITTED"),
    ],
)
def test_what_a_key_may_say(key: str, value: object, understood: object) -> None:
    read = _config.read({"sqlalchemy.url": URL, key: value})
    assert read[key.removeprefix("sqlalchemy.")] == understood


UNITS = {"ms": 0.001, "s": 1, "seconds": 1, "min": 60, "Hour": 3600, "d": 86400}
PARTS = st.lists(
    st.tuples(st.integers(0, 999), st.sampled_from(["", " "]), st.sampled_from(sorted(UNITS))),
    min_size=1,
    max_size=5,
)


@settings(derandomize=True, database=None, deadline=None)
@given(PARTS)
def test_any_sum_is_an_interval(parts: list[tuple[int, str, str]]) -> None:
    text = " ".join(f"{number}{space}{unit}" for number, space, unit in parts)
    expected = sum(number * UNITS[unit] for number, _, unit in parts)
    assert _config.interval(text, "maxtime") == pytest.approx(expected)


@settings(derandomize=True, database=None, deadline=None, max_examples=500)
@given(st.text("0123456789.smhday +-_e") | st.text() | st.floats() | st.integers())
def test_anything_else_is_an_interval_or_refused(value: Any) -> None:
    try:
        seconds = _config.interval(value, "maxtime")
    except ConfigurationError as error:
        assert len(str(error)) < 400
    else:
        assert 0 <= seconds <= _config.MAX_SECONDS


@pytest.mark.parametrize(
    "maxtime", ["", " ", ".", "s", ".s", "1.5.5s", "1 parsec", "1s 1", "1s, 2s", "-1s", "1m -1s"]
)
def test_what_is_no_interval(maxtime: str) -> None:
    with pytest.raises(ConfigurationError, match=r"maxtime: .* allowed are a score interval"):
        ConfiguredDistlockModule(URL, maxtime)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("pool_size", -1), ("max_overflow", "x"), ("pool_timeout", 0), ("pool_recycle", "x")),
        *(("echo", "perhaps"), ("isolation_level", "NONE"), ("table_owner", 7)),
        *(("timeout", "soon"), ("timeout", -1), ("timeout", 10**400)),
    ],
)
def test_options_of_the_constructor_are_checked(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        ConfiguredDistlockModule(URL, 1, **{option: value})


def test_the_engine_gets_the_options_as_they_were_understood() -> None:
    options: dict[str, Any] = {"pool_size": "3", "max_overflow": "-1", "echo": "no"}
    conf = ConfiguredDistlockModule(URL, 1, pool_timeout="5s", pool_recycle="1m", **options)
    pool = conf.engine.pool
    assert (pool.size(), pool._max_overflow, pool._timeout, pool._recycle) == (3, -1, 5, 60)
    assert not conf.engine.echo


def test_without_options_the_pool_is_as_sqlalchemys() -> None:
    pool: Any = create_engine("postgresql+psycopg://").pool
    theirs = (pool.size(), pool._max_overflow, pool._timeout, pool._pre_ping)
    (size, overflow, timeout, recycle, pre_ping), _, _ = _config.constructor({})
    assert (size, overflow, timeout, pre_ping) == theirs
    assert (recycle, pool._recycle) == (None, -1)


def test_true_or_false_is_understood() -> None:
    for value in (True, False):
        conf = ConfiguredDistlockModule(URL, 1, autoextend=value, reentrant=value)
        assert conf._autoextend is value
        conf.aio.get("name").hold(autoextend=value, cancel_on_loss=value)


@pytest.mark.parametrize("text", ["1" * 300_000, "1" * 300_000 + "!", "1s" * 300_000 + "!"])
def test_a_long_text_takes_no_longer_than_its_length(text: str) -> None:
    """Some regular expressions would take hours."""
    with pytest.raises(ConfigurationError, match="maxtime: '1"):
        ConfiguredDistlockModule(URL, text)


@pytest.mark.parametrize("value", ["soon", -1, 10**400])
def test_a_bad_time_that_is_an_argument(value: Any) -> None:
    lock = ConfiguredDistlockModule(URL, 1).get("name")
    with pytest.raises(ValueError, match=r"^timeout: ") as raised:
        lock.acquire(timeout=value)
    assert len(str(raised.value)) < 300
    with pytest.raises(ValueError, match=r"^maxtime: "):
        lock.hold(maxtime=value)


def test_an_object_that_has_every_attribute_is_no_engine() -> None:
    with pytest.raises(ConfigurationError, match="the Engine is for <MagicMock"):
        ConfiguredDistlockModule(mock.MagicMock(), 1)


@pytest.mark.parametrize("name", [None, 7, b"bytes", ["a"], object()])
def test_a_name_is_a_str(name: Any) -> None:
    conf = ConfiguredDistlockModule(URL, 1)  # never connects
    for function in (conf.get, conf.acquire, conf.try_acquiring, conf.extend, conf.release):
        with pytest.raises(TypeError, match="the name of a lock must be a str, not"):
            function(name)
    with pytest.raises(TypeError, match="the name of a lock must be a str, not"):
        score.distlock.Lock(conf, name)


def test_a_name_has_no_nul() -> None:
    conf = ConfiguredDistlockModule(URL, 1)
    with pytest.raises(ValueError, match=r"must not contain NUL.*a\\0b"):
        conf.get("a\0b")
    for letter in ("\0", "\ud800"):
        with pytest.raises(ValueError, match="must not contain") as raised:
            conf.get("a" * 10**6 + letter)
        assert len(str(raised.value)) < 300


@pytest.mark.parametrize("token", [7, ["a"], 1.5, object()])
def test_a_token_is_str_or_bytes(token: Any) -> None:
    conf = ConfiguredDistlockModule(URL, 1)
    for function in (conf.extend, conf.release, conf.transfer):
        with pytest.raises(TypeError, match="a token must be a str or bytes, not"):
            function("name", token)
    with pytest.raises(TypeError, match="a token must be a str or bytes, not"):
        conf.get("name").guard(None, token=token)


@pytest.mark.parametrize(
    "token", ["x", "0" * 255, "0" * 257, "A" * 256, "g" * 256, b"\xff", "é" * 256, "0" * 255 + "\0"]
)
def test_what_cannot_be_a_token_is_as_wrong_as_any_other(token: str | bytes) -> None:
    conf = ConfiguredDistlockModule(URL, 1)
    for function in (conf.extend, conf.release, conf.transfer):
        with pytest.raises(LockExpired, match="the token is wrong") as caught:
            function("name", token)
        assert caught.value.name == "name"
        if isinstance(token, str):
            assert caught.value.args == ("name", token)


@pytest.mark.parametrize("token", [None, "", b""])
def test_without_token_there_must_be_a_hold(token: str | bytes | None) -> None:
    lock = ConfiguredDistlockModule(URL, 1).get("name")
    for function in (lock.extend, lock.release, lock.transfer):
        with pytest.raises(ValueError, match="no token was given for 'name'"):
            function(token)


def test_no_token_and_no_password_in_any_text(conf: Conf) -> None:
    lock = conf.get("quiet")
    token = lock.acquire()
    conf.transfer("quiet", token)
    with pytest.raises(LockExpired) as caught:
        conf.release("quiet", token)
    for text in (str(caught.value), repr(caught.value), repr(lock), str(lock)):
        assert token[:9] not in text
    secret = ConfiguredDistlockModule("postgresql://u:hush@h/d", 1)
    assert "hush" not in repr(secret)
    assert "u:***@h" in repr(secret)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(f"postgresql://u:hush@127.0.0.1:{free_port()}/d", id="closed port"),
        "postgresql://u:hush@/d?host=/nowhere/at/all",
        "postgresql://u:hush@name.invalid/d",
    ],
)
def test_an_unreachable_server_is_unavailable(url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot reach the database at") as caught:
        score.distlock.init({"sqlalchemy.url": url, "sqlalchemy.pool_timeout": "5s"})
    assert isinstance(caught.value, ConnectionError)
    assert isinstance(caught.value, DatabaseError)
    assert "hush" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(DatabaseUnavailable):
        ConfiguredDistlockModule(url, 1).try_acquiring("name")


def test_a_wrong_password_is_the_servers_error(tcp_url: str) -> None:
    wrong = tcp_url.replace("s3cret", "hush")
    with pytest.raises(DatabaseError, match="password authentication failed") as caught:
        score.distlock.init({"sqlalchemy.url": wrong})
    assert caught.value.sqlstate == "28P01"
    assert "hush" not in str(caught.value)


def test_a_percent_encoded_password_works(tcp_url: str) -> None:
    assert score.distlock.init({"sqlalchemy.url": tcp_url}).acquire("name")


def test_an_error_of_the_server_has_its_sqlstate(conf: Conf, db: Any) -> None:
    db.execute("ALTER TABLE _score_distlock ADD CHECK (name <> 'forbidden')")
    with pytest.raises(DatabaseError, match="violates check constraint") as caught:
        conf.acquire("forbidden")
    assert caught.value.sqlstate == "23514"
    assert not isinstance(caught.value, DatabaseUnavailable)


def test_a_name_that_the_index_cannot_hold(conf: Any) -> None:
    """A compressible name may be longer."""
    conf.release("a" * 100_000, conf.acquire("a" * 100_000))
    name = secrets.token_hex(10_000)
    for timeout in (0, 5):
        with pytest.raises(ValueError, match="too long: it has 20000 bytes") as raised:
            conf.acquire(name, timeout=timeout)
        assert name[:40] in str(raised.value)
        assert len(str(raised.value)) < 300
    with pytest.raises(ValueError, match="too long"), conf.get(name):
        pytest.fail("it was entered")
    with pytest.raises(ValueError, match="too long"), conf.acquire_all(["short", name]):
        pytest.fail("it was entered")
    conf.release("short", conf.acquire("short"))


@pytest.mark.parametrize("half", ["\ud800", "\udc00"])
def test_half_of_a_surrogate_pair(conf: Any, url: str, half: str) -> None:
    for call in (conf.get, conf.acquire, conf.try_acquiring, conf.extend, conf.aio.get):
        with pytest.raises(ValueError, match=r"half of a surrogate pair.*\\ud[8c]00") as raised:
            call("name " + half)
        assert type(raised.value) is ValueError
    with pytest.raises(ConfigurationError, match="table_owner contains half of a surrogate pair"):
        score.distlock.init({"sqlalchemy.url": url, "table_owner": half})


def test_a_name_that_the_databases_encoding_cannot_store(admin_url: str) -> None:
    with fresh_database(admin_url, "ENCODING LATIN1 LOCALE 'C' TEMPLATE template0") as url:
        conf = score.distlock.init({"sqlalchemy.url": url})
        conf.release("schön", conf.acquire("schön"))
        for call in (conf.acquire, conf.try_acquiring, lambda name: conf.extend(name, "ab" * 128)):
            with pytest.raises(ValueError, match="database's encoding cannot store"):
                call("ключ")


@pytest.mark.parametrize("value", ["maybe", "", 1, 0.0, [], object()])
def test_what_is_true_or_false_is_a_bool(value: Any) -> None:
    conf = ConfiguredDistlockModule(URL, 1)  # never connects
    lock, words = conf.get("name"), {"autoextend": value}
    for call in (
        lambda: lock.hold(**words),
        lambda: conf.aio.get("name").hold(**words),
        lambda: conf.acquire_all(["name"], **words),
        lambda: conf.aio.acquire_all(["name"], **words),
        lambda: conf.locked("name", **words),
        lambda: score.distlock.locked("name", conf=lambda: conf, **words),
    ):
        with pytest.raises(TypeError, match=r"^autoextend must be True or False, not .*; None is"):
            call()
    for name in ("autoextend", "reentrant"):
        with pytest.raises(TypeError, match=f"^{name} must be True or False, not "):
            ConfiguredDistlockModule(URL, 1, **{name: value})
        with pytest.raises(TypeError, match=f"^{name} must be True or False, not "):
            score.distlock.connect(URL, **{name: value})
    with pytest.raises(TypeError, match=r"^cancel_on_loss must be True or False, not "):
        conf.aio.get("name").hold(cancel_on_loss=value)


def test_a_token_that_is_taken_for_something_else_is_not_told() -> None:
    conf = ConfiguredDistlockModule(URL, 1)
    token = "0123abcd" * 32
    for call in (
        lambda: conf.get("name").hold(0, token),  # type: ignore[arg-type]
        lambda: conf.acquire("name", token),  # type: ignore[call-arg]
        lambda: conf.get("name").acquire(token),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert token[:8] not in str(caught.value)


def test_a_timeout_by_position_is_told_its_name() -> None:
    conf: Any = ConfiguredDistlockModule(URL, 1)
    calls: list[tuple[Any, str]] = [
        (lambda: conf.acquire("name", 10), "acquire(name, timeout=…)"),
        (lambda: conf.get("name").acquire(10), "acquire(timeout=…)"),
        (lambda: conf.acquire_all(["name"], 10), "acquire_all(names, timeout=…)"),
    ]
    for call, shown in calls:
        with pytest.raises(TypeError, match="timeout is given by its name") as caught:
            call()
        assert shown in str(caught.value)
    signature = str(inspect.signature(score.distlock.Lock.acquire))
    assert signature == "(self, /, *, timeout='default')"
    signature = str(inspect.signature(ConfiguredDistlockModule.acquire))
    assert signature == "(self, /, name, *, timeout='default')"


def test_a_timeout_without_an_end_is_none() -> None:
    conf = ConfiguredDistlockModule(URL, 1)
    for call in (
        lambda: conf.acquire("name", timeout="forever"),
        lambda: conf.get("name").hold(timeout="forever"),
        lambda: conf.aio.get("name").hold(timeout="forever"),
        lambda: conf.locked("name", timeout="forever"),
    ):
        with pytest.raises(ValueError, match=r"'forever'.*; None waits without limit"):
            call()
    with pytest.raises(ValueError, match="fortnight") as caught:
        conf.get("name").hold(maxtime="1 fortnight")
    assert "without limit" not in str(caught.value)
