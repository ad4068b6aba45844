"""Limits that an administrator sets for a role, a database or the server."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

import score.distlock
import score.init

from .conftest import with_options
from .support.proxy import Proxy
from .support.server import Server

Db = psycopg.Connection[Any]
Conf = score.distlock.ConfiguredDistlockModule


def with_settings(url: str, *settings: str) -> str:
    options = "%20".join(f"-c{setting.replace('=', '%3D')}" for setting in settings)
    return with_options(url, f"application_name=limited&options={options}")


def await_attempts(db: Db, number: int) -> None:
    """Waits until the limited session has started this many more statements."""
    begun = "SELECT max(query_start) FROM pg_stat_activity WHERE application_name = 'limited'"
    last = db.execute(begun).fetchone()
    while number:
        found = db.execute(begun).fetchone()
        if found != last:
            last, number = found, number - 1


@pytest.mark.parametrize("setting", ["lock_timeout=1ms", "statement_timeout=100ms"])
@pytest.mark.parametrize("call", ["release", "extend", "transfer", "guarded elsewhere"])
def test_a_limit_of_the_role_does_not_end_a_call(
    url: str, conf: Conf, db: Db, setting: str, call: str
) -> None:
    token = conf.acquire("name")
    limited = score.distlock.init({"sqlalchemy.url": with_settings(url, setting)})
    limited.acquire("another")  # connected
    failures: list[BaseException] = []

    def work() -> None:
        try:
            if call == "guarded elsewhere":
                limited.acquire("name", timeout=30)
            else:
                getattr(limited, call)("name", token)
        except BaseException as error:
            failures.append(error)

    with psycopg.connect(url) as other:
        if call == "guarded elsewhere":
            other.execute("SELECT * FROM _score_distlock WHERE name = 'name' FOR KEY SHARE")
            conf.release("name", token)
        else:
            other.execute("SELECT * FROM _score_distlock WHERE name = 'name' FOR UPDATE")
        thread = threading.Thread(target=work)
        thread.start()
        if call != "guarded elsewhere":
            await_attempts(db, 3)
        other.rollback()
    thread.join()
    assert failures == []


@pytest.mark.parametrize(
    "setting",
    [
        "idle_in_transaction_session_timeout=1ms",
        "idle_session_timeout=20ms",
        "transaction_timeout=500ms",
        "default_transaction_isolation=serializable",
        "default_transaction_read_only=off",
        "standard_conforming_strings=off",
        "array_nulls=off",
        "bytea_output=escape",
        "IntervalStyle=sql_standard",
        "DateStyle=German",
        "TimeZone=Pacific/Kiritimati",
        "extra_float_digits=0",
        "search_path=public,pg_catalog",
        "plan_cache_mode=force_generic_plan",
        "enable_indexscan=off",
        "jit=on",
        "track_activities=off",
        "client_min_messages=debug5",
        "row_security=off",
    ],
)
def test_a_whole_life_under_a_setting(url: str, db: Db, setting: str) -> None:
    name = setting.partition("=")[0]
    if db.execute("SELECT 1 FROM pg_settings WHERE name = %s", (name,)).fetchone() is None:
        pytest.skip("this server does not know the setting")
    conf = score.distlock.init(
        {"sqlalchemy.url": with_settings(url, setting), "maxtime": "1s", "autoextend": "true"}
    )
    lock = conf.get("name")
    turns: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            with score.distlock.Lock(conf, "name").hold(timeout=60) as hold:
                assert hold.fence is not None
                turns.append(hold.fence)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns == sorted(set(turns))
    assert len(turns) == 30
    with lock:
        assert conf.try_acquiring("name") is None
        lock.extend()
        expires = "SELECT expires FROM _score_distlock"
        before = db.execute(expires).fetchone()
        while db.execute(expires).fetchone() == before:
            pass
    conf.vacuum()
    assert db.execute("SELECT count(*) FROM _score_distlock").fetchone() == (0,)


@pytest.mark.parametrize(
    "setting", ["idle_in_transaction_session_timeout=1ms", "transaction_timeout=500ms"]
)
def test_the_table_is_created_over_a_slow_network(
    server: Server, server_url: str, setting: str
) -> None:
    """That takes several messages in one transaction, which no limit of the server ends."""
    name = server_url.partition("?")[0].rpartition("/")[2]
    proxy = Proxy(f"{server.folder}/.s.PGSQL.{server.port}")
    slow = proxy.url(name)
    with contextlib.closing(proxy), psycopg.connect(server_url, autocommit=True) as db:
        known = "SELECT FROM pg_settings WHERE name = %s"
        if db.execute(known, (setting.partition("=")[0],)).fetchone() is None:
            pytest.skip("this server does not know the setting")
        proxy.freeze_request(lambda message: b"COMMIT" in message)
        with ThreadPoolExecutor() as executor:
            configured = executor.submit(
                score.distlock.init, {"sqlalchemy.url": with_settings(slow, setting)}
            )
            while not (proxy.frozen.wait(0.01) or configured.done()):
                pass
            db.execute("SELECT pg_sleep(0.6)")  # the limits are shorter
            proxy.thaw()
            configured.result().release("name", configured.result().acquire("name"))


def test_vacuum_goes_in_steps(url: str, db: Db) -> None:
    """However many rows there are, each step fits into `pool_timeout`."""
    conf = score.distlock.init({"sqlalchemy.url": url})
    held = conf.acquire("held")
    db.execute("CREATE TABLE steps (deleted bigint)")
    db.execute("""
        CREATE FUNCTION count_step() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO steps SELECT count(*) FROM gone;
            RETURN NULL;
        END $$
    """)
    db.execute(
        "CREATE TRIGGER count_step AFTER DELETE ON _score_distlock"
        " REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION count_step()"
    )
    db.execute("""
        INSERT INTO _score_distlock (name, acquired, updated, token, touched, expires, lease)
        SELECT 'old ' || number, now(), now(), 'x', now(), now() - interval '1 second', 1
          FROM generate_series(1, 25000) AS number
    """)
    conf.vacuum()
    assert db.execute("SELECT name FROM _score_distlock").fetchall() == [("held",)]
    found = db.execute("SELECT sum(deleted), max(deleted) <= 10000 FROM steps").fetchone()
    assert found == (25000, True)
    conf.extend("held", held)


def test_cockroachdb_is_refused(server: Server, server_url: str) -> None:
    """Its advisory locks do nothing. It identifies itself at login."""
    database = server_url.partition("?")[0].rpartition("/")[2]
    parameter = b"crdb_version\0v25.2\0"
    message = b"S" + (len(parameter) + 4).to_bytes(4, "big") + parameter
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pass_on() -> None:
            client, _ = listener.accept()
            behind = socket.socket(socket.AF_UNIX)
            behind.connect(f"{server.folder}/.s.PGSQL.{server.port}")
            with client, behind:
                behind.sendall(client.recv(65536))
                # Its first message is AuthenticationOk: nine bytes.
                client.sendall(behind.recv(9, socket.MSG_WAITALL) + message + behind.recv(65536))
                client.recv(65536)

        with ThreadPoolExecutor(1) as thread:
            passing = thread.submit(pass_on)
            port = listener.getsockname()[1]
            url = f"postgresql://postgres@127.0.0.1:{port}/{database}?sslmode=disable"
            with pytest.raises(score.init.ConfigurationError, match="CockroachDB"):
                score.distlock.init({"sqlalchemy.url": url})
            passing.result()
