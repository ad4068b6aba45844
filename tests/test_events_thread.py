"""The thread that delivers log records and the fate of holds."""

from __future__ import annotations

import contextlib
import logging
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
    url = proxy.url(database)
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


WHILE_IT_LOGS = """
import logging, os, signal, sys, score.distlock
statuses = []
class Alarm(Exception):
    pass
def alarm(*_):
    if sys.argv[3] == 'fork':
        if (child := os.fork()) == 0:
            return
        statuses.append(os.waitpid(child, 0)[1])
    else:
        raise Alarm
signal.signal(signal.SIGUSR1, alarm)
def profile(frame, event, _):
    if frame.f_code.co_filename.endswith('_events.py') and frame.f_code.co_name == 'log':
        sys.setprofile(None)
        signal.raise_signal(signal.SIGUSR1)
def filter(record):
    if sys.argv[2] == 'filter':
        if sys.argv[3] == 'broken':
            raise ValueError('broken')
        signal.raise_signal(signal.SIGUSR1)
    return True
logger = logging.getLogger('score.distlock')
conf = score.distlock.connect(sys.argv[1], maxtime='1m')
token = conf.acquire('held')
work = {
    'acquire': lambda: conf.acquire('name'), 'info': lambda: conf.info('held'),
    'release': lambda: conf.release('held', token),
}[sys.argv[4]]
print('cut', flush=True)
sys.stdin.readline()
me = os.getpid()
logger.setLevel('DEBUG')  # that it connects again is logged
logger.addFilter(filter)
if sys.argv[2] == 'entry':
    sys.setprofile(profile)
try:
    work()
except Alarm:
    result = 'interrupted'
except score.distlock.DatabaseUnavailable:
    result = 'forked'
else:
    result = 'done'
if os.getpid() != me:
    os._exit(result != 'forked')
logger.removeFilter(filter)
print(result, conf.try_acquiring('name') is not None, *statuses, flush=True)
"""


@pytest.mark.parametrize("work", ["acquire", "info", "release"])
@pytest.mark.parametrize(
    ("where", "what", "result"),
    [
        ("entry", "raise", "interrupted"),
        ("filter", "raise", "interrupted"),
        ("filter", "broken", "done"),
        ("entry", "fork", "done"),
        ("filter", "fork", "done"),
    ],
)
def test_a_signal_handler_runs_while_a_call_logs(
    proxy: Proxy, database: str, work: str, where: str, what: str, result: str
) -> None:
    """What it raises is raised; a log handler's error is not; a forked child has done nothing."""
    url = proxy.url(database)
    program = subprocess.Popen(
        [sys.executable, "-c", WHILE_IT_LOGS, url, where, what, work],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "cut\n"
    proxy.cut_all()
    output, _ = program.communicate("\n", timeout=100)
    free = not (work == "acquire" and result == "done")
    assert output.split() == [result, str(free), *(["0"] if what == "fork" else [])]


FIRST_MEASURED = """
import signal, sys, score.distlock
from score.distlock import telemetry
def profile(frame, event, _):
    if frame.f_code.co_filename.endswith('_events.py'):
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
conf = score.distlock.connect(sys.argv[1], maxtime='1m')
getattr(telemetry, sys.argv[2])(conf)
sys.setprofile(profile)
try:
    conf.acquire('name')
except KeyboardInterrupt:
    print('interrupted', conf.try_acquiring('name') is not None)
"""


@pytest.mark.parametrize("how", ["instrument", "prometheus"])
def test_the_first_call_that_is_measured_can_be_interrupted(url: str, how: str) -> None:
    program = [sys.executable, "-c", FIRST_MEASURED, url, how]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "interrupted True\n", done.stderr


def test_a_log_handler_that_blocks_does_not_delay_the_callbacks(conf: Any) -> None:
    blocked, told, go_on = threading.Event(), threading.Event(), threading.Event()

    class Blocking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is lost" in record.getMessage():
                blocked.set()
                go_on.wait()

    def lose() -> None:
        with (
            contextlib.suppress(LockExpired),
            conf.get("name").hold(on_lost=lambda _: told.set()),
        ):
            conf.revoke("name")
            go_on.wait()

    handler = Blocking()
    logging.getLogger("score.distlock").addHandler(handler)
    losing = threading.Thread(target=lose)
    losing.start()
    try:
        blocked.wait()
        assert told.wait(30)
    finally:
        go_on.set()
        losing.join()
        logging.getLogger("score.distlock").removeHandler(handler)


FLOOD = """
import gc, logging, sys, threading, score.distlock
seen = threading.Event()
class Handler(logging.Handler):
    def emit(self, record):
        if 'is lost' in record.getMessage():
            seen.set()
logger = logging.getLogger('score.distlock')
logger.addHandler(Handler())
conf = score.distlock.connect(sys.argv[1], maxtime='1m')
def work():
    for number in range(10_050):
        lock = conf.get(f'{number % 20}')
        lock.acquire()
        token = lock.token
        del lock  # a record of DEBUG
        conf.release(f'{number % 20}', token)
    try:
        with conf.get('name'):
            conf.revoke('name')
    except score.distlock.LockExpired:
        pass
thread = threading.Thread(target=work)
thread.start()
thread.join()
print('told' if seen.wait(30) else 'not told')
"""


def test_a_warning_is_logged_after_many_debug_records(url: str) -> None:
    """Of threads other than the main one, which does not call the library meanwhile."""
    program = [sys.executable, "-c", FLOOD, url]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout == "told\n", done.stderr
