"""Unusable sessions are discarded, and the call continues on another one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import psycopg
import pytest

import score.distlock

from .conftest import with_options
from .support.proxy import Proxy
from .support.server import Server

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


def use(conf: Conf) -> None:
    """Runs every statement of a hold's life often enough that all of them are prepared."""
    for _ in range(3):
        with conf.get("name") as lock:
            assert score.distlock.Lock(conf, "name").try_acquiring() is None
            lock.extend()
            lock.transfer()


def test_a_plan_for_a_table_that_has_changed(conf: Conf, db: Db) -> None:
    """0A000: a domain is a new type for the plan, but the same for the reader of the answer."""
    use(conf)
    db.execute("CREATE DOMAIN number AS bigint")
    for kind in ("number", "bigint"):
        db.execute(f"ALTER TABLE _score_distlock ALTER fence TYPE {kind}".encode())
        use(conf)


def test_statements_that_a_pooler_has_forgotten(server: Server, server_url: str) -> None:
    """26000: behind the pooler another server process continues the session."""
    proxy = Proxy(f"{server.folder}/.s.PGSQL.{server.port}")
    database = server_url.partition("?")[0].rpartition("/")[2]
    try:
        conf = score.distlock.init({"sqlalchemy.url": proxy.url(database)})
        use(conf)
        lock = conf.get("held")
        lock.acquire()
        for call in (lock.extend, lock.transfer, lock.release, lock.acquire):
            use(conf)
            before = proxy.connects
            proxy.deallocate()
            call()
            assert proxy.connects > before
    finally:
        proxy.close()


# A child created without `os.register_at_fork` handlers, so that it keeps what it inherits.
UNNOTICED = """
import ctypes, os, sys, score.distlock
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})
conf.release('name', conf.acquire('name'))
if ctypes.CDLL(None).fork() == 0:
    os.read(0, 1)
    os._exit(0)
conf.close()
print('closed', flush=True)
os.read(0, 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_retired_session_ends_though_a_child_has_a_copy_of_its_socket(url: str, db: Db) -> None:
    """The module sends Terminate; closing its socket here would not end the session."""
    parent = subprocess.Popen(
        [sys.executable, "-c", UNNOTICED, with_options(url, "application_name=retired")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "closed\n"
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'retired'"
        while db.execute(sessions).fetchone() != (0,):
            pass
        parent.communicate("xx")
