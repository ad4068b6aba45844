"""A forked child owns nothing of its parent's, and disturbs nothing of it."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

import score.distlock

from .conftest import python, run, with_options
from .support.server import free_port

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]

START = """
import multiprocessing, os, sys, threading, score.distlock
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})
def in_child(work, leave=os._exit):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print('child:', repr(error), flush=True)
            leave(1)
        leave(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def cycles(name):
    for number in range(20):
        with conf.get(name) as lock:
            lock.extend()
"""


@pytest.mark.parametrize("leave", ["os._exit", "sys.exit"])
def test_a_child_of_a_warm_parent(url: str, leave: str) -> None:
    """The pool is warm and a hold is in hand; the child ends with and without clean-up."""
    code = START + (
        "lock = conf.get('held')\n"
        "token = lock.acquire()\n"
        "cycles('warm')\n"
        "def work():\n"
        "    assert lock.token is None and not lock.expired and lock.remaining == 0\n"
        "    assert lock.try_acquiring() is None\n"
        "    try: lock.release()\n"
        "    except ValueError: pass\n"
        "    else: raise AssertionError('released')\n"
        "    cycles('child')\n"
        f"for _ in range(5): assert in_child(work, {leave}) == 0\n"
        "assert lock.token == token\n"
        "lock.extend(); lock.acquire(); lock.release(); lock.release()\n"
        "cycles('parent')\n"
        "print('good')\n"
    )
    assert python(code, url) == "good\n"


def test_parent_and_children_at_the_same_time(url: str) -> None:
    code = START + (
        "cycles('warm')\n"
        "children = []\n"
        "for number in range(6):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        cycles('child %d' % number); os._exit(0)\n"
        "    children.append(child)\n"
        "cycles('parent')\n"
        "print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])\n"
    )
    assert python(code, url) == "[0, 0, 0, 0, 0, 0]\n"


def test_a_block_that_a_child_leaves_stays_the_parents(url: str) -> None:
    """The child runs out of the parent's `with` block."""
    code = START + (
        "with conf.get('name') as lock:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try:\n"
        "            lock.__exit__(None, None, None)\n"
        "        except ValueError:\n"
        "            os._exit(7)\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "    lock.extend()\n"
        "    print(score.distlock.Lock(conf, 'name').try_acquiring())\n"
    )
    assert python(code, url) == "7\nNone\n"


def test_multiprocessing(url: str) -> None:
    code = START + (
        "cycles('warm')\n"
        "context = multiprocessing.get_context('fork')\n"
        "with context.Pool(4) as pool:\n"
        "    pool.map(cycles, ['a', 'b', 'c', 'd'] * 3, 1)\n"
        "print('good')\n"
    )
    # Several processes may meet at one name, which is then refused.
    code = code.replace("['a', 'b', 'c', 'd'] * 3", "[f'name {number}' for number in range(12)]")
    assert python(code, url) == "good\n"


def test_a_fork_while_other_threads_are_inside_calls(url: str) -> None:
    """The child must not wait for a mutex that one of these threads holds for ever."""
    code = START + (
        "stop = threading.Event()\n"
        "shared = conf.get('shared')\n"
        "def busy(number):\n"
        "    while not stop.is_set():\n"
        "        with conf.get('busy %d' % number) as lock: lock.extend()\n"
        "        if shared.try_acquiring(): shared.release()\n"
        "threads = [threading.Thread(target=busy, args=(number,)) for number in range(8)]\n"
        "for thread in threads: thread.start()\n"
        "def work():\n"
        "    cycles('child'); shared.token; shared.try_acquiring()\n"
        "print({in_child(work) for _ in range(30)})\n"
        "stop.set()\n"
        "for thread in threads: thread.join()\n"
    )
    assert python(code, url) == "{0}\n"


def test_a_grandchild(url: str) -> None:
    code = START + (
        "cycles('warm')\n"
        "print(in_child(lambda: (cycles('child'), os._exit(in_child(lambda: cycles('grand'))))))\n"
    )
    assert python(code, url) == "0\n"


APPLICATION = """
import os, threading, score.distlock
conf = score.distlock.init({'sqlalchemy.url': os.environ['LOCKS']})
held = conf.get('held by the master')
held.acquire()
def application(environ, start_response):
    seen = [held.token, held.try_acquiring()]
    name = '%d %d' % (os.getpid(), threading.get_ident())
    for _ in range(5):
        with conf.get(name) as lock:
            lock.extend()
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [repr((os.getpid(), seen)).encode()]
"""


def test_a_prefork_server_under_load(url: str, conf: Conf, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "webapp.py").write_text(APPLICATION)
    port = free_port()
    program = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "3", "--threads", "4"]
    program += ["--bind", f"127.0.0.1:{port}", "--max-requests", "60", "webapp:application"]
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(
        program, cwd=tmp_path, env={**os.environ, "LOCKS": url}, stderr=log, stdout=log
    )

    def answer() -> bytes:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/")
            # A worker of gunicorn that has served its 60 requests drops what it has accepted.
            with contextlib.suppress(http.client.RemoteDisconnected):
                return connection.getresponse().read()

    try:
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                answer()
                break
            except OSError:
                continue
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda _: answer(), range(300)))
        workers = {text.split(b",")[0] for text in answers}
        assert {text.partition(b", ")[2] for text in answers} == {b"[None, None])"}
        assert len(workers) >= 3
        assert "was sent SIG" not in (tmp_path / "log").read_text(), "a worker has crashed"
        # Workers have come and gone; the master still holds its lock.
        assert conf.try_acquiring("held by the master") is None
    finally:
        server.terminate()
        server.wait()
        log.close()


IDLE_CHILD = """
import os, sys, signal, score.distlock
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})
conf.acquire('name')
if sys.argv[2] == 'waits':
    import threading
    threading.Thread(target=lambda: conf.acquire('name', timeout=None), daemon=True).start()
    while not score.distlock._distlock._waiting('name')[1]:
        pass
if os.fork() == 0:
    print('forked', flush=True)
    sys.stdin.read()  # A child that never uses the locks.
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("kind", ["holds", "waits"])
def test_no_session_outlives_its_process_in_a_child(url: str, db: Db, kind: str) -> None:
    """The server sees that the parent is gone, though a child that it forked lives."""
    named = with_options(url, "application_name=parent")
    parent = subprocess.Popen(
        [sys.executable, "-c", IDLE_CHILD, named, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "forked\n"
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'parent'"
    assert db.execute(sessions).fetchone() != (0,)
    parent.kill()
    parent.wait()
    while db.execute(sessions).fetchone() != (0,):
        pass
    assert parent.stdin is not None
    parent.stdin.close()
    parent.stdout.close()


def test_children_make_pools_where_their_parent_had_some(url: str) -> None:
    """A table of waiting threads, as parking_lot has one, would have entries of the parent's."""
    assert run(sys.executable, "forking.py", url, "40") == "good\n"
