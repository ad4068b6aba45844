"""A forked child owns nothing of its parent's, and disturbs nothing."""

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
    """The pool has connections and the parent a hold; the child ends with and without clean-up."""
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
    """The child leaves the parent's `with` block."""
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
    # Several processes may compete for one name, and be refused.
    code = code.replace("['a', 'b', 'c', 'd'] * 3", "[f'name {number}' for number in range(12)]")
    assert python(code, url) == "good\n"


def test_a_fork_while_other_threads_are_inside_calls(url: str) -> None:
    """The child must not wait for a mutex that one of these threads would hold for ever."""
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
            # A worker of gunicorn that has served its 60 requests drops accepted connections.
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
    """The server notices that the parent has ended, even if its forked child lives on."""
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
    """A table of waiting threads, such as parking_lot's, would contain the parent's entries."""
    assert run(sys.executable, "forking.py", url, "40") == "good\n"


def test_what_a_child_sees_of_its_parents_hold(url: str) -> None:
    """The table in docs/explanation/forks.rst: holds, tokens, Lock objects, threads, extension."""
    code = START + (
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '2s'})\n"
        "def threads():\n"
        "    tasks = os.listdir('/proc/self/task')\n"
        "    names = (open(f'/proc/self/task/{task}/comm').read() for task in tasks)\n"
        "    return {name.strip() for name in names if name.startswith('distlock')}\n"
        "def refused(call, *arguments):\n"
        "    try: call(*arguments)\n"
        "    except (ValueError, score.distlock.CouldNotAcquireLock) as error:\n"
        "        return type(error).__name__\n"
        "with conf.get('name').hold(autoextend=True) as lock:\n"
        "    token = lock.token\n"
        "    while 'distlock-extend' not in threads(): pass\n"
        "    def work():\n"
        "        assert threads() == set()\n"
        "        assert (lock.token, lock.fence, lock.remaining) == (None, None, 0)\n"
        "        assert not lock.expired and not lock.lost.wait(0.1)\n"
        "        assert refused(lock.extend) == refused(lock.release) == 'ValueError'\n"
        "        assert refused(lock.acquire) == 'CouldNotAcquireLock'\n"
        "        conf.extend('name', token)\n"
        "        assert conf.info('name').pid == os.getppid()\n"
        "        with conf.get('own').hold(autoextend=True):\n"
        "            while 'distlock-extend' not in threads(): pass\n"
        "        conf.acquire('left by a child')\n"
        "    assert in_child(work) == 0\n"
        "    fence = lock.fence\n"
        "    import time; time.sleep(2.5)\n"
        "    assert lock.fence == fence and lock.remaining > 0\n"
        "    assert conf.try_acquiring('left by a child')\n"
        "    def end(): conf.release('name', token)\n"
        "    assert in_child(end) == 0\n"
        "    assert refused(lock.extend) is None\n"
    )
    code += "print('not reached')\n"
    program = [sys.executable, "-c", code, url]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    # The child has the token, so its release ends the hold for the parent too.
    assert "LockExpired" in ended.stderr and ended.stdout == "", ended.stderr


@pytest.mark.parametrize(
    "block",
    ["conf.get('name')", "conf.get('name').hold(autoextend=True)", "conf.acquire_all(['a', 'b'])"],
)
def test_a_child_that_runs_out_of_a_block(url: str, block: str) -> None:
    """It gets a ValueError, which hides its exit status; with `os._exit` it does not."""
    code = START + (
        "def inside(leave):\n"
        f"    with {block}:\n"
        "        child = os.fork()\n"
        "        if child == 0: leave(3)\n"
        "        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "inside(os._exit)\n"
        "sys.stderr = open(os.devnull, 'w')\n"
        "inside(sys.exit)\n"
    )
    assert python(code, url) == "3\n1\n"


def test_waiters_stay_with_the_parent(url: str) -> None:
    code = START + (
        "token = conf.acquire('name')\n"
        "got = []\n"
        "waiter = threading.Thread(target=lambda: got.append(conf.acquire('name', timeout=None)))\n"
        "waiter.start()\n"
        "waiting = score.distlock._distlock._waiting\n"
        "while not waiting('name')[1]: pass\n"
        "def work():\n"
        "    assert waiting('name') == (0, 0) and conf.info('name').waiters == 1\n"
        "    try: conf.acquire('name', timeout=0.3)\n"
        "    except score.distlock.CouldNotAcquireLock: pass\n"
        "    else: raise AssertionError('acquired')\n"
        "assert in_child(work) == 0\n"
        "conf.release('name', token)\n"
        "waiter.join()\n"
        "print(len(got))\n"
    )
    assert python(code, url) == "1\n"


def test_a_fork_from_an_event_loop(url: str) -> None:
    """The child starts its own loop; the parent's cannot go on there."""
    code = START + (
        "import asyncio\n"
        "async def parent():\n"
        "    lock = conf.aio.get('name')\n"
        "    async with lock:\n"
        "        waiter = asyncio.create_task(conf.aio.get('name').acquire(timeout=30))\n"
        "        while not conf.info('name').waiters: await asyncio.sleep(0.01)\n"
        "        def work():\n"
        "            async def child():\n"
        "                async with conf.aio.get('own'): pass\n"
        "                assert lock.token is None\n"
        "                try: await lock.acquire()\n"
        "                except score.distlock.CouldNotAcquireLock: pass\n"
        "                else: raise AssertionError('acquired')\n"
        "            asyncio.run(child())\n"
        "        assert in_child(work) == 0\n"
        "        await lock.extend()\n"
        "    assert await waiter\n"
        "asyncio.run(parent())\n"
        "print('good')\n"
    )
    assert python(code, url) == "good\n"


METHODS = """
import multiprocessing, os, score.distlock, sys
made = []
def conf():
    if not made:
        made.append(score.distlock.connect(os.environ["LOCKS"]))
    return made[0]
def work(number):
    assert conf().try_acquiring("held") is None
    with conf().get(f"name {number}") as lock:
        return lock.fence > 0
def take(*arguments):
    pass
if __name__ == "__main__":
    conf().acquire("held")
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            assert all(pool.map(work, range(4)))
        for argument in (conf(), conf().get("name")):
            try:
                process = context.Process(target=take, args=(argument,))
                process.start()
                process.join()
                print(method, process.exitcode)
            except TypeError as error:
                print(method, error)
"""


def test_the_methods_of_multiprocessing(url: str, tmp_path: Path) -> None:
    (tmp_path / "methods.py").write_text(METHODS)
    ended = subprocess.run(
        [sys.executable, tmp_path / "methods.py"],
        env={**os.environ, "LOCKS": url},
        capture_output=True,
        text=True,
        check=True,
    )
    refused = [
        "cannot pickle 'score.distlock.ConfiguredDistlockModule' object",
        "cannot pickle 'score.distlock.Lock' object",
    ]
    assert ended.stdout.splitlines() == [
        "fork 0",
        "fork 0",
        *(f"{method} {text}" for method in ("spawn", "forkserver") for text in refused),
    ]
