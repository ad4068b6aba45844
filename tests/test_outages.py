"""The database, or part of the way to it, is down: who waits, how long, and what is reported."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import DatabaseUnavailable

from .support.line import patiently, until
from .support.proxy import Proxy
from .support.server import Server

Conf = score.distlock.ConfiguredDistlockModule


def through(proxy: Proxy, database: str, **options: Any) -> Conf:
    url = proxy.url(database) + "?application_name=through"
    return patiently(lambda: score.distlock.init({"sqlalchemy.url": url, **options}))


def test_an_outage_is_waited_for_once(
    proxy: Proxy, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    conf = through(proxy, database, **{"sqlalchemy.pool_timeout": "1s"})
    conf.acquire("before")
    proxy.refuse(True)
    proxy.cut_all()
    with pytest.raises(DatabaseUnavailable):
        conf.acquire("the one that waits")
    before = proxy.connects
    for number in range(20):
        with pytest.raises(DatabaseUnavailable):
            conf.acquire(f"at once {number}")
    # At most one attempt for each call and for pending releases; calls that each waited a second
    # would try eight times.
    assert proxy.connects - before <= 45
    with caplog.at_level(logging.WARNING, "score.distlock"):
        proxy.refuse(False)
        token = conf.acquire("afterwards")
        until(lambda: "is back after" in caplog.text)
    conf.extend("afterwards", token)


def test_an_outage_is_logged(proxy: Proxy, database: str, caplog: pytest.LogCaptureFixture) -> None:
    conf = through(proxy, database, **{"sqlalchemy.pool_timeout": "300ms"})
    with caplog.at_level(logging.WARNING, "score.distlock"):
        proxy.refuse(True)
        proxy.cut_all()
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable):
                conf.acquire("name")
        until(lambda: told(caplog, proxy, database))
    assert len(told(caplog, proxy, database)) == 1


IN_A_THREAD = """
import logging, sys, threading, score.distlock
seen = threading.Event()
class Handler(logging.Handler):
    def emit(self, record):
        if sys.argv[3] in record.getMessage():
            seen.set()
logging.getLogger('score.distlock').addHandler(Handler())
conf = score.distlock.connect(sys.argv[1], maxtime='1m', pool_timeout='300ms')
def outage():
    try:
        with conf.get('name'):
            print('inside', flush=True); sys.stdin.readline()
            conf.acquire('other')
    except score.distlock.DistlockError:
        pass
def revoked():
    try:
        with conf.get('name'):
            conf.revoke('name')
    except score.distlock.LockExpired:
        pass
def waits():
    print('inside', flush=True)
    conf.acquire('taken', timeout=None)
async def in_a_loop():
    await conf.aio.acquire('taken', timeout=None)
def coroutine():
    import asyncio
    print('inside', flush=True)
    asyncio.run(in_a_loop())
if sys.argv[2] in ('waits', 'coroutine'):
    conf.acquire('taken')
threading.Thread(target=globals()[sys.argv[2]], daemon=True).start()
# As in an accept loop, this thread calls nothing of the library.
print('told' if seen.wait(30) else 'not told', flush=True)
"""


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("outage", "cannot be reached"),
        ("revoked", "is lost: released"),
        ("waits", "cannot be reached"),
        ("coroutine", "cannot be reached"),
    ],
)
def test_what_happens_on_other_threads_is_logged_at_once(
    proxy: Proxy, database: str, what: str, text: str
) -> None:
    """Though the main thread does not call the library, and no hold is extended."""
    url = proxy.url(database)
    program = subprocess.Popen(
        [sys.executable, "-c", IN_A_THREAD, url, what, text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    if what != "revoked":
        assert program.stdout.readline() == "inside\n"
        proxy.refuse(True)
        proxy.cut_all()
        program.stdin.write("\n")
        program.stdin.flush()
    assert program.stdout.readline() == "told\n"
    proxy.refuse(False)
    program.communicate()


def told(caplog: pytest.LogCaptureFixture, proxy: Proxy, database: str) -> list[str]:
    """The warnings that this database cannot be reached."""
    messages = [record.getMessage() for record in caplog.records]
    ours = f"{proxy.port}/{database}"
    return [text for text in messages if "cannot be reached" in text and ours in text]


def test_a_call_without_time_is_no_sign_of_an_outage(
    proxy: Proxy, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same answer may come a moment later: a short lease or timeout warns nobody at night."""
    conf = through(proxy, database)
    with caplog.at_level(logging.WARNING, "score.distlock"):
        conf.close()
        proxy.freeze_answers()
        for timeout in (0.05, 0.2):
            with pytest.raises(DatabaseUnavailable):
                conf.acquire("name", timeout=timeout)
        proxy.thaw()
        conf.acquire("name")
        assert told(caplog, proxy, database) == []
        conf.close()
        proxy.freeze_answers()
        with pytest.raises(DatabaseUnavailable):
            conf.acquire("other", timeout=2)
        proxy.thaw()
        until(lambda: told(caplog, proxy, database))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("gone", ["refused", "silent"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_timeout_bounds_the_whole_call(
    proxy: Proxy, database: str, gone: str, asynchronous: bool
) -> None:
    """Whatever `pool_timeout` allows: this test's own timeout is shorter."""
    import asyncio

    conf = through(proxy, database, **{"sqlalchemy.pool_timeout": "10m"})
    conf.acquire("before")
    if gone == "refused":
        proxy.refuse(True)
        proxy.cut_all()
    else:
        proxy.freeze_answers()
    with pytest.raises(DatabaseUnavailable):
        if asynchronous:
            asyncio.run(conf.aio.acquire("name", timeout=1))
        else:
            conf.acquire("name", timeout=1)
    proxy.thaw()


@pytest.mark.parametrize("call", ["acquire", "extend", "release"])
@pytest.mark.parametrize("fault", [Proxy.swallow, Proxy.half_open], ids=["silent", "half open"])
def test_a_connection_that_a_firewall_dropped_is_replaced(
    proxy: Proxy, database: str, server_url: str, call: str, fault: Callable[[Proxy], None]
) -> None:
    conf = through(proxy, database, **{"sqlalchemy.pool_timeout": "20s"})
    token = conf.acquire("name")
    with psycopg.connect(server_url, autocommit=True) as db:
        rested = """
            SELECT bool_and(state_change < clock_timestamp() - interval '1.2 seconds')
              FROM pg_stat_activity WHERE application_name = 'through'
        """
        while db.execute(rested).fetchone() != (True,):
            pass
        fault(proxy)
        if call == "acquire":
            assert conf.acquire("another")
        else:
            getattr(conf, call)("name", token)
        held = db.execute(
            "SELECT expires > clock_timestamp() FROM _score_distlock WHERE name = 'name'"
        )
        assert held.fetchone() == (call != "release",)


@pytest.mark.parametrize("hosts", [1, 2], ids=["first of two", "first two of three"])
def test_a_host_that_swallows_everything_leaves_time_for_the_others(
    server: Server, proxy: Proxy, database: str, hosts: int
) -> None:
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for _ in range(hosts)
        ]
        places = ",".join(f"127.0.0.1:{port}" for port in [*silent, proxy.port])
        url = f"postgresql://postgres@{places}/{database}"
        conf = score.distlock.init({"sqlalchemy.url": url, "sqlalchemy.pool_timeout": "8s"})
        assert conf.acquire("name")


def test_a_host_that_cannot_write_is_passed_over(
    server: Server, proxy: Proxy, database: str, server_url: str
) -> None:
    """The first of two hosts has only read-only sessions."""
    name = server_url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute(f"CREATE ROLE {name}_reader LOGIN SUPERUSER".encode())
        db.execute(f"ALTER ROLE {name}_reader SET default_transaction_read_only = on".encode())
    both = f"127.0.0.1:{proxy.port},127.0.0.1:{proxy.port}"
    try:
        for attributes, expected in (
            ("", "25006"),
            ("read-write", None),
            ("primary", "25006"),
            ("standby", None),
            ("prefer-standby", "25006"),
            ("read-only", "25006"),
        ):
            query = f"?target_session_attrs={attributes}" if attributes else ""
            url = f"postgresql://{name}_reader@{both}/{database}{query}"
            with pytest.raises(score.distlock.DatabaseError) as raised:
                score.distlock.init(
                    {"sqlalchemy.url": url, "sqlalchemy.pool_timeout": "2s"}
                ).acquire("name")
            assert raised.value.sqlstate == expected, attributes
    finally:
        with psycopg.connect(server_url, autocommit=True) as db:
            db.execute(f"DROP ROLE {name}_reader".encode())
