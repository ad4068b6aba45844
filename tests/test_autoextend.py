"""Holds that are extended in the background, and what happens when that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import LockExpired

from .conftest import python
from .support.line import outlive, renewed, until
from .support.proxy import Proxy

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]

HOGGING = """
import ctypes, sys, score.distlock
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '1s'})
libc = ctypes.PyDLL(None)  # never lets go of the GIL
with conf.get('name').hold(autoextend=True) as lock:
    fence = lock.fence
    libc.sleep(10)
    assert not lock.expired and lock.remaining > 0
    lock.extend()
    assert lock.fence == fence
print('kept')
"""


def test_a_busy_gil_costs_no_hold(url: str) -> None:
    assert python(HOGGING, url) == "kept\n"


def test_the_hold_outlives_its_lease_and_ends_with_the_block(
    brief: Conf, conf: Conf, db: Db
) -> None:
    with brief.get("name").hold(autoextend=True) as lock:
        for _ in range(4):
            outlive(db)
            assert not lock.expired
            assert conf.try_acquiring("name") is None
    token = conf.acquire("name")
    row = db.execute("SELECT token, updated FROM _score_distlock").fetchone()
    db.execute("SELECT pg_sleep(0.4)")
    # Nothing extends a hold that has ended.
    assert db.execute("SELECT token, updated FROM _score_distlock").fetchone() == row
    assert row is not None
    assert row[0] == token


def test_with_extends_if_configured(url: str, db: Db) -> None:
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "300ms", "autoextend": "true"})
    with conf.get("name") as lock:
        outlive(db)
        outlive(db)
        assert not lock.expired
    with pytest.raises(LockExpired), conf.get("name").hold(autoextend=False):
        outlive(db)


def test_maxtime_of_a_hold(conf: Conf, db: Db) -> None:
    with conf.get("name").hold(maxtime="10s") as lock:
        assert 5 < lock.remaining <= 10
        lock.extend()
        assert 5 < lock.remaining <= 10
        # A nested hold may be longer, and shortens nothing.
        with lock.hold(maxtime="1h"):
            assert lock.remaining > 60
        with lock.hold(maxtime=1):
            assert lock.remaining > 60
        assert db.execute("SELECT lease FROM _score_distlock").fetchone() == (3600.0,)
    for bad, error in (("soon", ValueError), (-1, ValueError), ([], TypeError)):
        with pytest.raises(error, match="maxtime"):
            conf.get("name").hold(maxtime=bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="on_lost must be callable, not int"):
        conf.get("name").hold(on_lost=1)  # type: ignore[arg-type]


def test_only_the_block_that_asks_is_extended(brief: Conf, db: Db) -> None:
    lock = brief.get("name")
    with lock.hold(maxtime="10s"):
        with lock.hold(autoextend=True):
            pass
        before = db.execute("SELECT updated FROM _score_distlock").fetchone()
        db.execute("SELECT pg_sleep(0.3)")
        assert db.execute("SELECT updated FROM _score_distlock").fetchone() == before


def test_many_holds_are_kept_by_one_thread(url: str, db: Db) -> None:
    code = (
        "import contextlib, os, sys, time, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '1s'})\n"
        "locks = [conf.get(str(number)) for number in range(300)]\n"
        "def extending():\n"
        "    tasks = os.listdir('/proc/self/task')\n"
        "    names = [open(f'/proc/self/task/{task}/comm').read() for task in tasks]\n"
        "    return names.count('distlock-extend\\n')\n"
        "assert not extending()\n"
        "with contextlib.ExitStack() as stack:\n"
        "    for lock in locks: stack.enter_context(lock.hold(autoextend=True))\n"
        "    time.sleep(2)\n"
        "    assert not any(lock.expired for lock in locks)\n"
        "    print(extending())\n"
    )
    assert python(code, url) == "1\n"


def test_a_transfer_within_does_not_disturb(brief: Conf, db: Db) -> None:
    with brief.get("name").hold(autoextend=True) as lock:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            lock.transfer()
            assert not lock.expired


def test_a_hold_that_somebody_else_ends(brief: Conf, conf: Conf) -> None:
    lost = threading.Event()
    told: list[Any] = []

    def on_lost(lock: score.distlock.Lock) -> None:
        told.append((lock, lock.expired))
        lost.set()

    lock = brief.get("name")
    with pytest.raises(LockExpired), lock.hold(autoextend=True, on_lost=on_lost):
        conf.release("name", lock.token)
        lost.wait()
    assert told == [(lock, True)]
    with lock:
        pass


def test_a_release_by_the_owner_is_no_loss(brief: Conf) -> None:
    """Whatever the timing of renewal and release."""
    told: list[Any] = []
    late = 0
    lock = brief.get("name")
    for number in range(60):
        begun = time.monotonic()
        try:
            # The first renewal is due after 100 ms.
            with lock.hold(autoextend=True, maxtime=0.3, on_lost=told.append):
                time.sleep(0.09 + 0.0005 * (number % 40))
        except LockExpired:
            # Only if the machine stood still for that long.
            assert time.monotonic() - begun > 0.3
            late += 1
    time.sleep(0.1)
    assert len(told) <= late < 30


def test_a_database_that_is_gone(through: Callable[..., Conf], proxy: Proxy, own_url: str) -> None:
    """The holder knows before the lease ends, and is told once."""
    conf = through(pool_timeout="1h")
    lost = threading.Event()
    told: list[Any] = []
    with psycopg.connect(own_url, autocommit=True) as db:

        def on_lost(lock: score.distlock.Lock) -> None:
            live = db.execute(
                "SELECT expires > clock_timestamp() FROM _score_distlock WHERE name = 'gone'"
            ).fetchone()
            told.append((lock.expired, live))
            lost.set()

        lock = conf.get("gone")
        with (
            pytest.raises(LockExpired),
            lock.hold(autoextend=True, maxtime=2, on_lost=on_lost),
        ):
            proxy.refuse(True)
            proxy.cut_all()
            expired_locally = False
            while not expired_locally:
                expired_locally = lock.expired
                live = db.execute(
                    "SELECT expires > clock_timestamp() FROM _score_distlock WHERE name = 'gone'"
                ).fetchone()
                # The holder stops believing in the hold before it ends in the database.
                assert expired_locally or live == (True,)
            lost.wait()
        # The end of the block does not wait for an unreachable database.
        assert [expired for expired, _ in told] == [True]


@pytest.mark.parametrize("how", ["cut", "refuse", "freeze"])
def test_a_blip_ends_nothing(
    through: Callable[..., Conf], proxy: Proxy, own_url: str, how: str
) -> None:
    conf = through()
    told: list[Any] = []
    lock = conf.get(f"blip {how}")
    with lock.hold(autoextend=True, maxtime=3, on_lost=told.append):
        if how == "freeze":
            proxy.freeze_answers()
            proxy.frozen.wait()
            time.sleep(0.3)
            proxy.thaw()
        else:
            proxy.refuse(how == "refuse")
            proxy.cut_all()
            if how == "refuse":
                until(lambda: lock.remaining < 1.5)  # at least one attempt has failed
            proxy.refuse(False)
        with psycopg.connect(own_url, autocommit=True) as db:
            renewed(db, [lock.name], 2, lambda: told)
        assert not lock.expired
    assert told == []


def test_the_lock_of_a_block_that_never_ends_is_not_extended_for_ever(
    brief: Conf, conf: Conf
) -> None:
    """A context manager that is never left, and whose Lock is gone."""
    hold = brief.get("name").hold(autoextend=True)
    hold.__enter__()
    del hold
    assert conf.acquire("name", timeout=20)
