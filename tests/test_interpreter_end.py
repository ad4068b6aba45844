"""The interpreter exits while it renews holds, reports losses, and threads wait."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import psycopg
import pytest

import score.distlock

from .support.line import not_logged, tickets, until
from .support.proxy import Proxy

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]

ENDING = """
import sys, threading, time, score.distlock
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '30ms')
lost = []
def on_lost(lock):
    lost.append(lock.name)
def wait():
    while True:
        try:
            with conf.get('awaited').hold(timeout=30): pass
        except score.distlock.LockExpired: pass
holds = []
for number in range(30):
    hold = conf.get(f'{sys.argv[2]} {number}').hold(timeout=1, autoextend=True, on_lost=on_lost)
    try: hold.__enter__()
    except (score.distlock.LockExpired, score.distlock.CouldNotAcquireLock): continue
    holds.append(hold)
if sys.argv[4] == 'measured':
    from prometheus_client import CollectorRegistry
    from score.distlock import telemetry
    telemetry.prometheus(conf, CollectorRegistry())
def work():
    while True:
        try:
            with conf.get(f'busy {sys.argv[2]}').hold(timeout=0.001): pass
        except score.distlock.DistlockError: pass
for target in [wait] * 5 + [work] * 2:
    threading.Thread(target=target, daemon=True).start()
time.sleep(float(sys.argv[3]))
"""


def test_the_interpreter_ends_calmly(url: str, conf: Conf, db: Db) -> None:
    """Forty times, at different moments of renewals and losses."""
    conf.acquire("awaited")
    program = [sys.executable, "-X", "faulthandler", "-c", ENDING, url]
    for batch in range(10):
        programs = [
            subprocess.Popen(
                [
                    *program,
                    f"{batch} {number}",
                    str(0.004 * batch + 0.011 * number),
                    "measured" if number % 2 else "unmeasured",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(4)
        ]
        for ended in programs:
            output, errors = ended.communicate()
            assert (output, not_logged(errors), ended.returncode) == ("", [], 0)
    # The processes that ended while waiting are dead, and delay nobody.
    assert tickets(db, "awaited") <= 40


DAEMON = """
import sys, threading, time, score.distlock
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1s')
inside = threading.Event()
def work():
    with conf.get('name').hold(autoextend=True):
        inside.set()
        try:
            while True: time.sleep(0.01)
        finally:
            print('not reached')
threading.Thread(target=work, daemon=True).start()
inside.wait(30)
"""


def test_a_hold_of_a_daemon_thread_ends_with_its_lease(url: str, conf: Conf) -> None:
    """As docs/explanation/exit.rst says: its block never ends, so nothing releases it."""
    ended = subprocess.run(
        [sys.executable, "-c", DAEMON, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)
    hold = conf.info("name")
    assert hold is not None, "released"
    assert conf.acquire("name", timeout=10)


ENDS = """
import os, signal, sys, score.distlock
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})
def bare(): conf.acquire('name')
def block(leave):
    with conf.get('name'): leave()
def term():
    os.kill(os.getpid(), signal.SIGTERM)
def handled():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    block(term)
{'bare': bare, 'sys.exit': lambda: block(lambda: sys.exit(5)),
 'os._exit': lambda: block(lambda: os._exit(5)), 'term': lambda: block(term),
 'handled': handled}[sys.argv[2]]()
"""


@pytest.mark.parametrize(
    ("how", "status", "released"),
    [
        ("bare", 0, False),
        ("sys.exit", 5, True),
        ("os._exit", 5, False),
        ("term", -15, False),
        ("handled", 143, True),
    ],
)
def test_how_a_process_ends(url: str, conf: Conf, how: str, status: int, released: bool) -> None:
    program = [sys.executable, "-c", ENDS, url, how]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == status, ended.stderr
    assert (conf.try_acquiring("name") is not None) is released


BENEATH = """
import atexit, datetime, sys, threading, time
started = []
atexit.register(lambda: print(time.monotonic() - started[0] > 0.9))  # the last one
import score.distlock
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})
if sys.argv[2] == 'extended':
    with conf.get('other').hold(autoextend=True): pass
inside = threading.Event()
class Slow(datetime.timedelta):
    def total_seconds(self):
        inside.set()
        time.sleep(60)
threading.Thread(target=lambda: conf.get('name').acquire(timeout=Slow()), daemon=True).start()
inside.wait()
started.append(time.monotonic())
sys.stdout.flush()
"""


@pytest.mark.parametrize("process", ["extended", "plain"])
def test_the_end_waits_a_second_for_python_code_beneath_rust(
    url: str, conf: Conf, process: str
) -> None:
    conf.acquire("the table is there, so nothing is logged about it")
    program = [sys.executable, "-c", BENEATH, url, process]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.returncode) == ("True\n", 0), ended.stderr


AFTER_THE_INTERPRETER = """
import ctypes, sys, threading, score.distlock
conf = score.distlock.connect(sys.argv[1], maxtime='1m', pool_timeout='1m')
conf.acquire('name')
libc = ctypes.CDLL(None)
for _ in range(2):  # exit() calls them after the interpreter's end
    libc.__cxa_atexit(ctypes.cast(libc.getchar, ctypes.c_void_p), None, None)
print('ready', flush=True)
input()
threading.Thread(target=conf.acquire, args=('other',), daemon=True).start()
"""


def test_a_call_may_still_run_after_the_interpreter(
    proxy: Proxy, database: str, tmp_path: Path
) -> None:
    """In a daemon thread, in the last moments of the process."""
    url = proxy.url(database)
    errors = tmp_path / "errors"
    program = subprocess.Popen(
        [sys.executable, "-u", "-c", AFTER_THE_INTERPRETER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
    )
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stdout.readline() == b"ready\n"
    proxy.refuse(True)
    proxy.cut_all()
    program.stdin.write(b"\n")
    program.stdin.flush()
    until(lambda: unread(program.stdin) == 0)  # by input()
    program.stdin.write(b"\n")
    program.stdin.flush()
    until(lambda: unread(program.stdin) == 0)  # by the first exit handler
    before = proxy.connects
    # It checks for signals between these.
    until(lambda: proxy.connects - before > 2 or "panicked" in errors.read_text())
    program.communicate(timeout=60)
    assert (program.returncode, "panicked" in errors.read_text()) == (0, False), errors.read_text()


def unread(pipe: Any) -> int:
    """How many bytes nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
