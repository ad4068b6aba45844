"""Waiting: woken by the release, first come first served, silent in between.

The holds last an hour and a waiter checks the queue at most every eight
seconds, so a wait with the timeouts used here succeeds only if something
wakes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock

from .conftest import SUPPORT, python, run
from .support.line import (
    TASKS,
    Background,
    not_logged,
    stand_still,
    threads,
    wait_until_waiting,
    waiting,
)
from .support.pooler import Bouncer
from .support.proxy import Proxy
from .support.server import Server
from .test_pooler import bouncer, mode

__all__ = ("bouncer", "mode")

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
SOON = 6


@pytest.fixture
def conf(url: str) -> Conf:
    return score.distlock.init({"sqlalchemy.url": url, "maxtime": "1h"})


@pytest.fixture
def other(conf: Conf, url: str) -> Conf:
    return score.distlock.ConfiguredDistlockModule(url, "1h")


class Process:
    """A process that runs tests/support/waiter.py."""

    def __init__(self, url: str, threads: int = 1, timeout: float = SOON) -> None:
        program = [sys.executable, str(SUPPORT / "waiter.py"), url, "name"]
        self.process = subprocess.Popen(
            [*program, str(threads), str(timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.go = self.process.stdin

    def start(self, threads: int = 1) -> None:
        """Starts threads; returns when they wait."""
        assert self.go is not None
        assert self.process.stdout is not None
        for _ in range(threads):
            self.go.write("\n")
            self.go.flush()
            assert self.process.stdout.readline().startswith("waiting")

    def fences(self) -> list[int]:
        """The fences of all its threads, by their numbers."""
        output = self.process.communicate()[0]
        pairs = sorted(tuple(map(int, line.split())) for line in output.splitlines())
        return [fence for _, fence in pairs]


@pytest.fixture
def processes(url: str) -> Iterator[Any]:
    """Starts waiting processes; ends those that are left."""
    started: list[Process] = []

    def start(threads: int = 1, timeout: float = SOON, at: str = url) -> Process:
        started.append(Process(at, threads, timeout))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("timeout", [30, 30.0, "30s", timedelta(seconds=30), None])
def test_a_release_wakes_the_waiter(conf: Conf, other: Conf, db: Db, timeout: Any) -> None:
    token = conf.acquire("name")
    waiter = Background(other.acquire, "name", timeout=timeout)
    wait_until_waiting(db, 1)
    conf.release("name", token)
    assert len(waiter.result()) == 256
    assert waiting(db) == 0


@pytest.mark.parametrize("timeout", [0.05, "50ms", timedelta(milliseconds=50)])
def test_a_timeout_leaves_nothing(conf: Conf, other: Conf, db: Db, timeout: Any) -> None:
    token = conf.acquire("name")
    lock = other.get("name")
    for _ in range(2):
        with pytest.raises(CouldNotAcquireLock):
            lock.acquire(timeout=timeout)
        with pytest.raises(CouldNotAcquireLock), lock.hold(timeout):
            pass
    assert waiting(db) == 0
    conf.release("name", token)
    assert lock.acquire(timeout=timeout)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), ("soon", ValueError), (float("nan"), ValueError), ([], TypeError)],
)
def test_what_is_no_timeout(conf: Conf, timeout: Any, error: type[Exception]) -> None:
    lock = conf.get("name")
    for attempt in (
        lambda: lock.acquire(timeout=timeout),
        lambda: conf.acquire("name", timeout=timeout),
        lambda: lock.hold(timeout),
        lambda: conf.locked("name", timeout=timeout),
        lambda: conf.acquire_all(["name"], timeout=timeout),
        lambda: conf.aio.get("name").hold(timeout),
    ):
        with pytest.raises(error, match="timeout"):
            attempt()
    assert lock.try_acquiring()


def test_a_free_lock_is_not_waited_for(conf: Conf) -> None:
    """Nor does it start a thread or a listening connection."""
    with conf.get("name"):
        before = threads()
        assert conf.acquire("other", timeout=None)
        assert threads() <= before


def test_who_holds_it_does_not_wait_for_itself(conf: Conf) -> None:
    with conf.get("name") as lock:
        assert lock.acquire(timeout=None) == lock.token
        lock.release()


def test_the_timeout_of_with_is_configured(url: str, conf: Conf, db: Db) -> None:
    patient = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1h", "timeout": "30s"})
    for_ever = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1h", "timeout": "none"})
    for waiting_conf in (patient, for_ever):
        token = conf.acquire("name")
        with pytest.raises(CouldNotAcquireLock):
            waiting_conf.acquire("name", timeout=0)

        def enter(waiting_conf: Conf = waiting_conf) -> bool:
            with waiting_conf.get("name"):
                return True

        waiter = Background(enter)
        wait_until_waiting(db, 1)
        conf.release("name", token)
        assert waiter.result()


def test_expiry_ends_the_wait(url: str, brief: Conf, conf: Conf) -> None:
    brief.acquire("name")
    assert conf.acquire("name", timeout=SOON)


def test_an_extension_prolongs_the_wait(brief: Conf, conf: Conf, db: Db) -> None:
    token = brief.acquire("name")
    waiter = Background(conf.get("name").acquire, timeout=30)
    wait_until_waiting(db, 1)
    for _ in range(10):
        brief.extend("name", token)
        assert waiter.thread.is_alive()
        db.execute("SELECT pg_sleep(0.1)")
    assert waiter.result()


def test_first_come_first_served_in_a_process(conf: Conf, other: Conf, db: Db) -> None:
    token = conf.acquire("name")
    order: list[int] = []

    def work(number: int) -> None:
        with other.get("name").hold(timeout=30):
            order.append(number)

    waiters = []
    for number in range(20):
        waiters.append(Background(work, number))
        wait_until_waiting(db, number + 1)
    conf.release("name", token)
    for waiter in waiters:
        waiter.result()
    assert order == list(range(20))


def test_processes_take_turns(conf: Conf, db: Db, processes: Any) -> None:
    """In order of arrival, and at the end of the queue again while they have more waiters."""
    token = conf.acquire("name")
    three = [processes(3, 30) for _ in range(3)]
    for count, process in enumerate(three, 1):
        process.start(3)
        assert waiting(db) == count
    conf.release("name", token)
    fences = [process.fences() for process in three]
    served = [fences[number].pop(0) for number in [0, 1, 2] * 3]
    assert served == sorted(served)


def test_a_newcomer_does_not_overtake(conf: Conf, db: Db, processes: Any) -> None:
    """Not even while the process whose turn it is has not woken up yet."""
    token = conf.acquire("name")
    sleeper = processes(timeout=60)
    sleeper.start()
    wait_until_waiting(db, 1)
    stand_still(db, sleeper.process.pid)
    conf.release("name", token)
    assert conf.try_acquiring("name") is None
    conf.vacuum()
    assert waiting(db) == 1
    os.kill(sleeper.process.pid, signal.SIGCONT)
    assert sleeper.fences()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("count", [1, 3])
def test_one_that_does_not_come_delays_nobody_for_long(
    conf: Conf, db: Db, processes: Any, how: signal.Signals, count: int
) -> None:
    token = conf.acquire("name")
    # Killed processes are known to be dead; of those only asleep, one is skipped immediately.
    gone = [processes(2) for _ in range(count if how == signal.SIGKILL else 1)]
    for number, process in enumerate(gone, 1):
        process.start(2)
        wait_until_waiting(db, number)
    waiter = Background(conf.get("name").acquire, timeout=SOON)
    wait_until_waiting(db, len(gone) + 1)
    for process in gone:
        stand_still(db, process.process.pid)
        os.kill(process.process.pid, how)
        if how == signal.SIGKILL:
            process.process.wait()
    conf.release("name", token)
    assert waiter.result()


def test_one_that_gives_up_passes_its_turn_on(conf: Conf, other: Conf, db: Db) -> None:
    token = conf.acquire("name")
    first = Background(other.get("name").acquire, timeout=0.5)
    wait_until_waiting(db, 1)
    second = Background(other.get("name").acquire, timeout=30)
    wait_until_waiting(db, 2)
    with pytest.raises(CouldNotAcquireLock):
        first.result()
    wait_until_waiting(db, 1)
    conf.release("name", token)
    assert second.result()


def test_one_that_leaves_a_free_lock_calls_the_next(conf: Conf, url: str, db: Db) -> None:
    conf.acquire("name")
    waiters = []
    for count, timeout in enumerate((0.3, SOON), 1):
        waiting_conf = score.distlock.ConfiguredDistlockModule(url, "1h")
        waiters.append(Background(waiting_conf.acquire, "name", timeout=timeout))
        wait_until_waiting(db, count)
    # Nobody is notified that it is free.
    db.execute("UPDATE _score_distlock SET expires = clock_timestamp() + interval '100 ms'")
    with pytest.raises(CouldNotAcquireLock):
        waiters[0].result()
    assert waiters[1].result()


def test_the_places_of_the_dead_cost_no_time(brief: Conf, conf: Conf, db: Db) -> None:
    """Not even if the hold expires and nobody releases it."""
    brief.acquire("name")
    dead = [listener << 24 for listener in range(1, 41)]
    db.execute("UPDATE _score_distlock SET waiters = %s", (dead,))
    assert conf.acquire("name", timeout=SOON)


def ticket_of_the_last(db: Db) -> int:
    query = "SELECT waiters[cardinality(waiters)] FROM _score_distlock WHERE name = 'name'"
    row = db.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def call(db: Db, ticket: int) -> None:
    """Notifies a waiter that it is its turn, whether or not that is true."""
    channel = f"score_distlock_{ticket >> 24:x}"
    db.execute("SELECT pg_notify(%s, %s)", (channel, f"turn {ticket}"))


def test_who_is_called_while_the_lock_is_held_goes_on_waiting(
    conf: Conf, other: Conf, db: Db
) -> None:
    token = conf.acquire("name")
    waiter = Background(other.acquire, "name", timeout=SOON)
    wait_until_waiting(db, 1)
    now = db.execute("SELECT clock_timestamp()").fetchone()
    assert now is not None
    call(db, ticket_of_the_last(db))
    # The first statement that a notified waiter executes, or a later one.
    tried = """
        SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND state = 'idle' AND state_change > %s
           AND (query LIKE '%%waiters[2:]%%' OR query LIKE 'WITH free AS%%')
    """
    while db.execute(tried, now).fetchone() == (0,):
        assert waiter.thread.is_alive()
    conf.extend("name", token)
    assert waiting(db) == 1
    conf.release("name", token)
    other.release("name", waiter.result())


def test_who_is_called_and_not_the_first_leaves_the_first_its_place(
    conf: Conf, other: Conf, db: Db
) -> None:
    token = conf.acquire("name")
    waiter = Background(other.acquire, "name", timeout=SOON)
    wait_until_waiting(db, 1)
    mine = ticket_of_the_last(db)
    # Another listener, alive but silent, is first in the queue.
    first = come_first(db, live_listener(db))
    conf.release("name", token)
    call(db, mine)
    waiter.result()
    assert waiting(db) == 1
    assert ticket_of_the_last(db) == first


def come_first(db: Db, listener: int) -> int:
    """Puts a ticket of this listener at the head of the queue."""
    ticket = listener << 24 | 1
    db.execute("UPDATE _score_distlock SET waiters = array_prepend(%s::bigint, waiters)", (ticket,))
    return ticket


def test_a_lock_may_be_named_like_a_listener(conf: Conf, other: Conf, db: Db) -> None:
    """Locks and listeners use separate advisory locks that never collide."""
    conf.acquire("name")

    def wait() -> None:
        with pytest.raises(CouldNotAcquireLock):
            other.acquire("name", timeout=2)

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until_waiting(db, 1)
    row = db.execute("SELECT waiters[1] >> 24 FROM _score_distlock").fetchone()
    assert row is not None
    assert conf.acquire(str(row[0]))
    waiter.join()


def live_listener(db: Db) -> int:
    """The number of a listener that looks alive to everybody but never responds."""
    listener = 1234567
    db.execute(
        "SELECT pg_advisory_lock("
        "hashtextextended(%s::text, -'_score_distlock'::regclass::oid::bigint))",
        (listener,),
    )
    return listener


def test_who_hears_that_it_is_next_before_its_place_is_confirmed(
    proxy: Proxy, own_url: str
) -> None:
    """The listening connection may be faster than the waiter's."""
    conf = score.distlock.init({"sqlalchemy.url": own_url, "maxtime": "1h"})
    through = proxy.url("lost_answers")
    other = score.distlock.ConfiguredDistlockModule(through, "1h")
    with psycopg.connect(own_url, autocommit=True) as db:
        token = conf.acquire("name")
        come_first(db, live_listener(db))
        # The first statement that enters the queue over this connection.
        proxy.freeze_answer_to(b"array_append(waiters")
        heard = proxy.watch_for(b"next ")
        waiter = Background(other.acquire, "name", timeout=SOON)
        proxy.frozen.wait()
        conf.release("name", token)
        heard.wait()
        proxy.thaw()
        assert waiter.result()


def test_the_places_of_the_dead_are_passed_over_at_once(conf: Conf, other: Conf, db: Db) -> None:
    """Even by a process that knows of waiters, and so uses the statement for that."""
    for first in (False, True):
        token = conf.acquire("name")
        waiter = Background(other.acquire, "name", timeout=SOON)
        wait_until_waiting(db, 1)
        if first:
            come_first(db, 7654321)
        conf.release("name", token)
        token = waiter.result()
        # A waiter that takes the lock once its turn has come leaves those before it in the queue.
        assert waiting(db) == 0
        other.release("name", token)


def test_many_waiters_are_silent_and_not_a_herd(
    server: Server, server_url: str, processes: Any
) -> None:
    """Fewer than two statements a second for a hundred threads; a few for each hand-over."""
    conf = score.distlock.init({"sqlalchemy.url": server_url, "maxtime": "1h"})
    costs = {}
    with psycopg.connect(server_url, autocommit=True) as db:
        for threads in (1, 25, 50):
            token = conf.acquire("name")
            with server.counting(db.info.dbname) as count:
                four = [processes(threads, 120, server_url) for _ in range(4)]
                for process in four:
                    process.start(threads)
                wait_until_waiting(db, 4)
                before = count()
                if threads == 25:
                    db.execute("SELECT pg_sleep(5)")
                    assert count() - before < 2 * 5
                before = count()
                conf.release("name", token)
                fences = [fence for process in four for fence in process.fences()]
                assert len(set(fences)) == 4 * threads
                costs[4 * threads] = (count() - before) / (4 * threads)
    # One waiter takes and releases it; in between, the next one may check.
    assert all(cost < 4 for cost in costs.values()), costs


def test_a_lost_listening_connection(conf: Conf, other: Conf, db: Db) -> None:
    listeners = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE %s"
    # The last thing a listener asks for is the lock that shows it is alive.
    last = ("%pg_try_advisory_lock(%",)
    for _ in range(3):
        token = conf.acquire("name")
        waiter = Background(other.acquire, "name", timeout=SOON)
        wait_until_waiting(db, 1)
        query = f"SELECT pg_terminate_backend(pid) {listeners} AND pid <> pg_backend_pid()"
        ended = db.execute(query, last)
        assert ended.rowcount == 1
        conf.release("name", token)
        other.release("name", waiter.result())


def test_a_listening_connection_that_hangs(proxy: Proxy, own_url: str) -> None:
    """No error says that it is lost, but nothing arrives over it any more."""
    conf = score.distlock.init({"sqlalchemy.url": own_url, "maxtime": "1h"})
    through = proxy.url("lost_answers")
    other = score.distlock.ConfiguredDistlockModule(through, "1h")
    with psycopg.connect(own_url, autocommit=True) as db:
        token = conf.acquire("hangs")
        waiter = Background(other.acquire, "hangs", timeout=SOON)
        wait_until_waiting(db, 1, "hangs")
        proxy.freeze_listeners()
        conf.release("hangs", token)
        assert waiter.result()


def test_behind_a_pooler(bouncer: Bouncer, server_url: str) -> None:
    """Notifications do not get through PgBouncer."""
    through = bouncer.url(server_url.partition("?")[0].rpartition("/")[2])
    conf = score.distlock.init({"sqlalchemy.url": server_url, "maxtime": "1h"})
    other = score.distlock.ConfiguredDistlockModule(through, "1h")
    tokens = [conf.acquire("name")]
    order: list[int] = []

    def work(number: int) -> None:
        with other.get("name").hold(timeout=30):
            order.append(number)

    started = threading.Barrier(2)

    def start() -> None:
        started.wait()
        work(1)

    first = Background(start)
    started.wait()
    with pytest.raises(CouldNotAcquireLock):
        # Longer than it takes to notice that no notifications arrive.
        other.acquire("name", timeout=2)
    conf.release("name", tokens.pop())
    first.result()
    assert order == [1]


@pytest.mark.parametrize("holder", ["0.2.5's", "ours"])
def test_a_release_by_the_original(
    original: str, url: str, conf: Conf, db: Db, holder: str
) -> None:
    """It notifies nobody."""
    if holder == "ours":
        token, timeout = conf.acquire("name"), 20
    else:
        token, timeout = run(original, "original_hold.py", url, "name").strip(), SOON
    waiters = [Background(conf.get("name").acquire, timeout=timeout)]
    wait_until_waiting(db, 1)
    run(original, "fleet_token.py", url, "name", token)
    assert waiters[0].result()


def test_the_queue_outlives_a_deleted_row(original: str, url: str, conf: Conf, db: Db) -> None:
    """0.2.5 deletes the row with the queue in it; no waiter is forgotten."""
    token = run(original, "original_hold.py", url, "name").strip()
    order: list[int] = []

    def work(number: int) -> None:
        with conf.get("name").hold(timeout=SOON):
            order.append(number)

    waiters = []
    for number in range(5):
        waiters.append(Background(work, number))
        wait_until_waiting(db, number + 1)
    run(original, "fleet_token.py", url, "name", token)
    for waiter in waiters:
        waiter.result()
    assert order == list(range(5))


# Set the handler, as a script's background processes ignore SIGINT.
INTERRUPTED = """
import signal, sys, threading, score.distlock
signal.signal(signal.SIGINT, signal.default_int_handler)
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1h')
print('waiting', flush=True)
try:
    conf.acquire('name', timeout=None)
except KeyboardInterrupt:
    print('interrupted', flush=True)
# Everything works afterwards, in this thread and in others.
assert conf.acquire('other', timeout=None)
sys.stdin.readline()
"""


def test_ctrl_c_ends_a_wait(url: str, conf: Conf, db: Db) -> None:
    token = conf.acquire("name")
    program = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "waiting\n"
    wait_until_waiting(db, 1)
    program.send_signal(signal.SIGINT)
    assert program.stdout.readline() == "interrupted\n"
    wait_until_waiting(db, 0)
    program.communicate("\n")
    assert program.returncode == 0
    conf.release("name", token)
    assert conf.acquire("name")


FORKED = """
import os, sys, threading, score.distlock
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1h')
def wait():
    with conf.get('name').hold(timeout=None): pass
threads = [threading.Thread(target=wait) for _ in range(3)]
for thread in threads: thread.start()
with conf.get('kept').hold(autoextend=True, maxtime='500ms') as kept:
    print('waiting', flush=True)
    sys.stdin.readline()
    child = os.fork()
    if child == 0:
        assert len(os.listdir('/proc/self/task')) == 1
        assert not conf.get('kept').token
        try:
            conf.acquire('name', timeout=0.2)
        except score.distlock.CouldNotAcquireLock:
            print('child refused', flush=True)
        with conf.get('own').hold(autoextend=True, maxtime='50ms') as own:
            for _ in range(5):
                own.extend()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print('child gone', flush=True)
for thread in threads: thread.join()
print('parent served', flush=True)
"""


@pytest.mark.skipif(not TASKS.is_dir(), reason="counts threads in /proc")
def test_waiters_do_not_follow_into_a_forked_child(url: str, conf: Conf, db: Db) -> None:
    token = conf.acquire("name")
    program = subprocess.Popen(
        [sys.executable, "-c", FORKED, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdin is not None
    assert program.stdout.readline() == "waiting\n"
    wait_until_waiting(db, 1)
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline() == "child refused\n"
    assert program.stdout.readline() == "child gone\n"
    wait_until_waiting(db, 1)
    conf.release("name", token)
    assert program.communicate()[0] == "parent served\n"
    assert program.returncode == 0


SHUTDOWN = """
import asyncio, sys, threading, time, score.distlock
from score.distlock._distlock import _waiting
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1h', pool_size=20)
def wait(number):
    conf.acquire(f'name', timeout=None if number % 2 else '1h')
def cycle(number):
    while True:
        try:
            with conf.get(f'cycle {number}').hold(timeout=1, autoextend=True, maxtime='100ms'): pass
        except score.distlock.LockExpired: pass
def coroutines():
    async def wait():
        async with conf.aio.get('name').hold(timeout=None): pass
    async def main(): await asyncio.gather(*(wait() for _ in range(5)))
    asyncio.run(main())
held = conf.get('held').hold(timeout=5, autoextend=True, maxtime='100ms', on_lost=id)
held.__enter__()
for number in range(6):
    threading.Thread(target=wait, args=(number,), daemon=True).start()
for number in range(3):
    threading.Thread(target=cycle, args=(number,), daemon=True).start()
threading.Thread(target=coroutines, daemon=True).start()
while _waiting('name') != (11, 1): time.sleep(0.002)
print(sys.stdin.readline(), end='')
"""


def test_the_interpreter_ends_with_waiters_and_holds_in_flight(
    url: str, conf: Conf, db: Db
) -> None:
    conf.acquire("name")
    for _ in range(5):
        program = subprocess.Popen(
            [sys.executable, "-c", SHUTDOWN, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until_waiting(db, 1)
        output, errors = program.communicate("the end\n")
        assert (output, not_logged(errors), program.returncode) == ("the end\n", [], 0)
        db.execute("UPDATE _score_distlock SET waiters = NULL")


@pytest.mark.skipif(not TASKS.is_dir(), reason="counts threads in /proc")
def test_nothing_waits_in_a_process_that_never_waited(url: str) -> None:
    """No thread before the first wait, except r2d2's."""
    code = (
        "import sys, pathlib, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})\n"
        "with conf.get('name') as lock: lock.extend(); conf.try_acquiring('other')\n"
        "conf.acquire('third', timeout=5)\n"
        "names = [file.read_text() for file in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "print(len(names), *(name for name in names if 'distlock' in name))\n"
    )
    assert python(code, url).split() == ["2", "distlock-pool"]
