"""Ctrl-C ends every wait, and other threads run while one waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psycopg
import pytest

import score.distlock

from .support.proxy import Proxy
from .support.server import Server
from .test_broken_connections import black_hole

__all__ = ("black_hole",)

Conf = score.distlock.ConfiguredDistlockModule

# If a script started this run in the background, it ignores SIGINT, as would its children.
BLOCKED = """
import signal, sys, threading, score.distlock
signal.signal(signal.SIGINT, signal.default_int_handler)
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1m', pool_timeout='1h')
counted = 0
def count():
    global counted
    entered.wait()
    while not stop.is_set():
        counted += 1
        if counted == 100_000: print('others run', flush=True)
entered, stop = threading.Event(), threading.Event()
thread = threading.Thread(target=count)
thread.start()
try:
    entered.set()
    conf.acquire('name')
except KeyboardInterrupt:
    print('interrupted', flush=True)
finally:
    stop.set()
thread.join()
"""


def interrupt(program: subprocess.Popen[str]) -> str:
    """Sends Ctrl-C once other threads have been seen to run; returns the remaining output."""
    assert program.stdout is not None
    assert program.stdout.readline() == "others run\n"
    program.send_signal(signal.SIGINT)
    return program.communicate()[0]


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_a_server_that_never_answers_can_be_interrupted(black_hole: int) -> None:
    program = start(BLOCKED, f"postgresql://u@127.0.0.1:{black_hole}/d")
    assert interrupt(program) == "interrupted\n"


def test_a_blocked_statement_can_be_interrupted(url: str, conf: Conf) -> None:
    with psycopg.connect(url) as db:
        db.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
        assert interrupt(start(BLOCKED, url)) == "interrupted\n"


EXHAUSTED = BLOCKED.replace(
    "'1m', pool_timeout='1h')",
    "'1m', pool_timeout='1h', pool_size=1, max_overflow=0)\n"
    "conf.vacuum()\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
    "threading.Thread(target=conf.acquire, args=('other',), daemon=True).start()\n",
).replace("thread.join()", "thread.join()\nimport os; os._exit(0)")


def test_waiting_for_the_pool_can_be_interrupted(url: str, conf: Conf) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", EXHAUSTED, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    with psycopg.connect(url) as db:
        db.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
        assert interrupt(program) == "interrupted\n"


def test_waiting_for_a_server_to_come_back_can_be_interrupted(
    server: Server, server_url: str
) -> None:
    code = BLOCKED.replace(
        "counted = 0\n",
        ("conf.vacuum(); print('ready', flush=True); sys.stdin.readline()\ncounted = 0\n"),
        1,
    )
    gate = Proxy(f"{server.folder}/.s.PGSQL.{server.port}")
    database = server_url.partition("?")[0].rpartition("/")[2]
    program = subprocess.Popen(
        [sys.executable, "-c", code, f"postgresql://postgres@127.0.0.1:{gate.port}/{database}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    gate.refuse(True)
    gate.arm("request", 0, "before")
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()
    assert interrupt(program) == "interrupted\n"
    gate.close()


@pytest.fixture
def interrupting() -> Iterator[None]:
    """Python's own handler for SIGINT, however pytest was started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupting")
@pytest.mark.parametrize("operation", ["acquire", "extend", "release", "transfer"])
def test_an_interrupted_call_can_be_repeated(proxy: Proxy, own_url: str, operation: str) -> None:
    """The request was sent, the answer is in flight, and the caller is interrupted."""
    observer = score.distlock.init({"sqlalchemy.url": own_url})
    url = proxy.url("lost_answers")
    conf = score.distlock.init({"sqlalchemy.url": url})
    lock = conf.get(f"interrupted {operation}")
    if operation == "acquire":
        conf.vacuum()
    else:
        lock.acquire()
    proxy.freeze_answers()

    def press_ctrl_c() -> None:
        proxy.frozen.wait()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press_ctrl_c)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        getattr(lock, operation)()
    thread.join()
    proxy.thaw()
    getattr(lock, operation)()
    if operation == "release":
        assert lock.token is None
    else:
        assert observer.try_acquiring(lock.name) is None
        lock.release()
    token = observer.try_acquiring(lock.name)
    assert token is not None
    observer.release(lock.name, token)


def test_a_handler_that_does_not_raise_does_not_end_the_wait(url: str, conf: Conf) -> None:
    code = (
        "import signal, sys, score.distlock\n"
        "conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1m', pool_timeout='1h')\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))\n"
        "print('ready', flush=True)\n"
        "print(len(conf.acquire('name')), flush=True)\n"
    )
    with psycopg.connect(url) as db:
        db.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
        program = start(code, url)
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        while db.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (0,):
            pass
        program.send_signal(signal.SIGUSR1)
        assert program.stdout.readline() == "handled\n"
    assert program.communicate()[0] == "256\n"
