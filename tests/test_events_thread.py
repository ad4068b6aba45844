"""The thread that delivers log records and the fate of holds."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import Any

import pytest

from score.distlock import LockExpired

from .support.proxy import Proxy

BROKEN_HANDLER = """
import logging, sys, threading, score.distlock
class Failed(BaseException):
    pass
class Broken(logging.Handler):
    def handle(self, record):
        raise {'Exception': Exception, 'BaseException': Failed}[sys.argv[2]]('broken')
logging.getLogger('score.distlock').addHandler(Broken())
conf = score.distlock.connect(sys.argv[1])
told = [threading.Event(), threading.Event()]
def hold(name, told):
    try:
        with conf.get(name).hold(on_lost=lambda _: told.set()):
            conf.revoke(name)
            assert told.wait(30)
    except score.distlock.LockExpired:
        pass
for name, one in zip(('first', 'second'), told):
    thread = threading.Thread(target=hold, args=(name, one))
    thread.start()
    thread.join()
print('told' if all(one.is_set() for one in told) else 'not told')
"""


@pytest.mark.parametrize("error", ["Exception", "BaseException"])
def test_a_broken_log_handler_does_not_stop_the_thread(url: str, error: str) -> None:
    program = [sys.executable, "-c", BROKEN_HANDLER, url, error]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "told\n", done.stderr
    assert "broken" in done.stderr  # not hidden either


INTERRUPTED_START = """
import signal, sys, threading, score.distlock
class Alarm(ValueError):
    pass
def alarm(*_):
    sys.setprofile(None)
    raise Alarm
signal.signal(signal.SIGUSR1, alarm)
def profile(frame, event, _):
    if frame.f_code.co_filename.endswith('_events.py') and event == sys.argv[2]:
        signal.raise_signal(signal.SIGUSR1)
conf = score.distlock.connect(sys.argv[1], maxtime='1m', pool_timeout='300ms')
conf.acquire('taken')
print('waits', flush=True)
sys.setprofile(profile)
try:
    conf.acquire('taken', timeout=60)
except Alarm:
    print('interrupted', flush=True)
sys.stdin.readline()
try:
    conf.acquire('other')  # starts the thread
    with conf.get('another').hold(autoextend=True):
        pass
except score.distlock.DistlockError:
    pass
def running():
    return [one.name for one in threading.enumerate() if one.name == 'distlock-events']
while not running():
    pass
print(*running())
"""


@pytest.mark.parametrize("event", ["call", "return"])
def test_a_signal_handler_may_raise_while_the_thread_starts(
    proxy: Proxy, database: str, event: str
) -> None:
    """Its exception ends the wait, and later there is one thread."""
    url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}"
    program = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_START, url, event],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stdout.readline() == "waits\n"
    proxy.refuse(True)
    proxy.cut_all()
    assert program.stdout.readline() == "interrupted\n"
    proxy.refuse(False)
    assert program.communicate("\n", timeout=100)[0] == "distlock-events\n"


@pytest.mark.parametrize("event", ["on_lost", "on_expiring"])
def test_a_callback_is_called_though_no_thread_can_be_started(conf: Any, event: str) -> None:
    with conf.get("name").hold(on_lost=print):
        pass  # starts the thread of events
    told = threading.Event()
    options: dict[str, Any] = {event: lambda *_: told.set()}
    if event == "on_expiring":
        options |= {"maxtime": 20, "warn_before": 19.9}
    with contextlib.suppress(LockExpired), conf.get("name").hold(**options):
        usual = threading.stack_size(1 << 47)  # more than there is
        try:
            with pytest.raises(RuntimeError):
                threading.Thread(target=print).start()
            if event == "on_lost":
                conf.revoke("name")
            told.wait()
        finally:
            threading.stack_size(usual)
