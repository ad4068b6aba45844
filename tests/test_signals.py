"""A signal handler runs in the middle of a call: it forks, or it raises."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest

import score.distlock

from .support.proxy import Proxy

Conf = score.distlock.ConfiguredDistlockModule

#: Acquires when told to. The third argument says what its handler does. A child leaves the
#: call, and tries again once its parent has the lock.
PROGRAM = """
import os, signal, sys, score.distlock
url, timeout, action, ping, warm = sys.argv[1:]
conf = score.distlock.init(
    {'sqlalchemy.url': url, 'maxtime': '1m', 'sqlalchemy.pool_pre_ping': ping})
for number in range(int(warm)):
    conf.acquire(f'warm {number}')
lock = conf.get('name')
has_acquired, tell = os.pipe()
def handler(signum, frame):
    global child
    if action == 'raise':
        raise RuntimeError('from the handler')
    child = os.fork()
    if child == 0:
        print('forked', lock.token, flush=True)
        if action == 'fork and raise':
            raise RuntimeError('from the handler')
signal.signal(signal.SIGUSR1, handler)
def threads():
    return len(os.listdir('/proc/self/task')) if os.path.isdir('/proc/self/task') else 1
print('ready', flush=True)
sys.stdin.readline()
try:
    token = lock.acquire(timeout=float(timeout))
except Exception as error:
    print(type(error).__name__, lock.token, flush=True)
    if action == 'raise':
        sys.stdin.readline()
        lock.acquire(timeout=30)
        lock.release()
        print('released', flush=True)
    else:
        print('threads:', threads(), flush=True)
        os.read(has_acquired, 1)
        print(lock.try_acquiring(), conf.get('own').acquire() is not None, flush=True)
    os._exit(0)
os.write(tell, b'!')
os.waitpid(child, 0)
lock.extend()
assert lock.token == token
lock.release()
print('released', flush=True)
"""


class Stage:
    """The program, its server behind a proxy, and an observer."""

    def __init__(self, url: str, proxy: Proxy, db: psycopg.Connection[Any], action: str) -> None:
        self.url = url
        self.proxy = proxy
        self.db = db
        self.conf = score.distlock.init({"sqlalchemy.url": url})
        self.action = action

    def start(self, timeout: str = "0", ping: str = "false", warm: str = "1") -> None:
        """Makes the program connect, and start acquiring as soon as it is told to."""
        through = f"postgresql://postgres@127.0.0.1:{self.proxy.port}/lost_answers"
        self.run(PROGRAM, through, timeout, self.action, ping, warm)

    def run(self, code: str, *arguments: str) -> None:
        """Starts a program, and waits until it reports that it is ready."""
        self.program = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.program.stdout is not None
        return self.program.stdout.readline().strip()

    def go(self) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write("\n")
        self.program.stdin.flush()

    def until(self, query: str) -> None:
        """Waits until a count is not zero."""
        while self.db.execute(query).fetchone() == (0,):
            assert self.program.poll() is None


BLOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@contextmanager
def in_a_statement(stage: Stage) -> Iterator[None]:
    stage.start()
    with psycopg.connect(stage.url) as blocker:
        blocker.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
        stage.go()
        stage.until(BLOCKED)
        yield
        blocker.rollback()


@contextmanager
def in_the_queue(stage: Stage) -> Iterator[None]:
    token = stage.conf.acquire("name")
    stage.start(timeout="60")
    stage.go()
    stage.until("SELECT count(*) FROM _score_distlock WHERE cardinality(waiters) = 1")
    yield
    stage.conf.release("name", token)


@contextmanager
def in_the_queue_with_an_answer_lost(stage: Stage) -> Iterator[None]:
    """So that a call that gives up has to be cleaned up."""
    token = stage.conf.acquire("name")
    stage.start(timeout="60")
    cut = stage.proxy.arm("answer", 0, "before")
    stage.go()
    cut.done.wait()
    stage.until("SELECT count(*) FROM _score_distlock WHERE cardinality(waiters) = 1")
    yield
    stage.conf.release("name", token)


@contextmanager
def between_an_error_and_its_end(stage: Stage) -> Iterator[None]:
    """The server has announced its shutdown; the connection is not closed yet."""
    stage.start()
    with psycopg.connect(stage.url) as blocker:
        blocker.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
        stage.proxy.freeze_after_error()
        stage.go()
        stage.until(BLOCKED)
        stage.db.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        stage.proxy.frozen.wait()
        blocker.rollback()
        yield
        stage.proxy.thaw()


@contextmanager
def in_a_ping(stage: Stage) -> Iterator[None]:
    stage.start(ping="true")
    stage.proxy.freeze_answers()
    stage.go()
    stage.proxy.frozen.wait()
    yield
    stage.proxy.thaw()


@contextmanager
def slow_sweep(db: psycopg.Connection[Any]) -> Iterator[None]:
    """Anyone who removes old rows has to wait."""
    db.execute("""
        CREATE OR REPLACE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_advisory_xact_lock(hashtext('slowly'));
                RETURN NULL;
            END $$;
        CREATE TRIGGER slowly BEFORE DELETE ON _score_distlock
            FOR EACH STATEMENT EXECUTE FUNCTION slowly();
    """)
    db.execute("SELECT pg_advisory_lock(hashtext('slowly'))")
    yield
    db.execute("SELECT pg_advisory_unlock(hashtext('slowly'))")


@contextmanager
def in_the_sweep(stage: Stage) -> Iterator[None]:
    """The lock is already acquired; one acquisition in a thousand then removes old rows."""
    stage.start(warm="1024")
    with slow_sweep(stage.db):
        stage.go()
        stage.until(BLOCKED)
        yield


PLACES = [
    in_a_statement,
    in_the_queue,
    in_the_queue_with_an_answer_lost,
    between_an_error_and_its_end,
    in_a_ping,
    in_the_sweep,
]
Place = Callable[[Stage], AbstractContextManager[None]]


@pytest.fixture
def db(own_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(own_url, autocommit=True) as db:
        db.execute("DROP TABLE IF EXISTS _score_distlock")
        yield db
        db.execute("DROP TABLE _score_distlock")


@pytest.mark.parametrize("action", ["fork", "fork and raise"])
@pytest.mark.parametrize("place", PLACES)
def test_a_handler_that_forks(
    own_url: str, proxy: Proxy, db: psycopg.Connection[Any], place: Place, action: str
) -> None:
    """The call goes on in the parent; the child has not made it, and owns nothing."""
    stage = Stage(own_url, proxy, db, action)
    with place(stage):
        stage.program.send_signal(signal.SIGUSR1)
        assert stage.line() == "forked None"
        error = "RuntimeError" if action == "fork and raise" else "DatabaseUnavailable"
        assert stage.line() == f"{error} None"
        assert stage.line() == "threads: 1"
    assert stage.line() == "None True"
    assert stage.line() == "released"
    assert stage.program.wait() == 0


@pytest.mark.parametrize("place", PLACES)
def test_a_handler_that_raises(
    own_url: str, proxy: Proxy, db: psycopg.Connection[Any], place: Place
) -> None:
    """As Ctrl-C does. The call ends there, and what it has acquired is not lost."""
    stage = Stage(own_url, proxy, db, "raise")
    with place(stage):
        stage.program.send_signal(signal.SIGUSR1)
        assert stage.line() == "RuntimeError None"
    stage.go()
    assert stage.line() == "released"
    assert stage.conf.try_acquiring("name")
    assert stage.program.wait() == 0


#: Leaves a block, or an inner one, after the given number of calls.
LEAVING = """
import signal, sys, score.distlock
url, block, maxtime, calls = sys.argv[1:]
conf = score.distlock.init({'sqlalchemy.url': url, 'maxtime': maxtime})
conf.acquire('warm')
for number in range(int(calls)):
    warm = conf.acquire(f'warm {number}')
    conf.extend(f'warm {number}', warm)
lock = conf.get('name')
def handler(signum, frame):
    raise RuntimeError('from the handler')
signal.signal(signal.SIGUSR1, handler)
def tell():
    print('ready', flush=True)
    sys.stdin.readline()
try:
    with lock:
        if block == 'inner':
            with lock:
                tell()
                while not lock.expired: pass
        else:
            tell()
except RuntimeError as error:
    print(type(error).__name__, flush=True)
sys.stdin.readline()
with lock:
    print('again', flush=True)
print(lock.token, flush=True)
"""


class Leaving(Stage):
    """The same for a program that leaves a block."""

    def begin(self, block: str, maxtime: str, calls: str) -> None:
        self.run(LEAVING, self.url, block, maxtime, calls)

    def interrupt(self) -> None:
        self.until(BLOCKED)
        self.program.send_signal(signal.SIGUSR1)
        assert self.line() == "RuntimeError"

    def check(self) -> None:
        """The lock is free, and the program can go on using it."""
        while (token := self.conf.try_acquiring("name")) is None:
            assert self.program.poll() is None
        self.conf.release("name", token)
        self.go()
        assert self.line() == "again"
        assert self.line() == "None"
        assert self.program.wait() == 0


@pytest.fixture
def leaving(own_url: str, proxy: Proxy, db: psycopg.Connection[Any]) -> Leaving:
    return Leaving(own_url, proxy, db, "raise")


def test_the_end_of_a_block_is_interrupted(leaving: Leaving) -> None:
    """The server ends the hold, although nobody waits for its answer any more."""
    leaving.begin("outer", "1m", "0")
    with psycopg.connect(leaving.url) as blocker:
        blocker.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
        leaving.go()
        leaving.interrupt()
    leaving.check()


def test_the_sweep_after_the_end_of_a_block_is_interrupted(leaving: Leaving) -> None:
    leaving.begin("outer", "1m", "64")
    with slow_sweep(leaving.db):
        leaving.go()
        leaving.interrupt()
    leaving.check()


def test_the_sweep_after_the_end_of_an_inner_block_is_interrupted(leaving: Leaving) -> None:
    """It has confirmed the hold, which might have expired by then."""
    leaving.begin("inner", "2s", "63")
    leaving.db.execute(
        "UPDATE _score_distlock SET expires = now() + interval '1 hour', lease = 3600"
        " WHERE name = 'name'"
    )
    with slow_sweep(leaving.db):
        leaving.go()
        leaving.interrupt()
    leaving.check()
