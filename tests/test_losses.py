"""What a caller and the operator are told of losses, and of failed releases."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import DatabaseUnavailable, LockExpired

from .conftest import python
from .support.line import Background, outlive, patiently, until
from .test_hold_states import Front, Losses, front, settle

__all__ = ("front",)

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


def losses(caplog: pytest.LogCaptureFixture, conf: Conf) -> list[str]:
    """The losses that were logged, once all records so far have arrived."""
    settle(conf, Losses())
    texts = [record.getMessage() for record in caplog.records]
    return [text for text in texts if " is lost" in text and "settled" not in text]


@pytest.mark.parametrize("how", ["release", "extend"])
def test_a_hold_that_its_owner_releases_is_not_lost(
    front: Front, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its answer is in flight when somebody else finds the hold gone."""
    conf, other = front.configure(pool_timeout="20s"), score.distlock.connect(front.direct)
    lock = conf.get("name")
    token = lock.acquire()

    def use_token() -> None:
        front.proxy.frozen.wait()
        try:
            with pytest.raises(LockExpired):
                getattr(other, how)("name", token)
        finally:
            front.proxy.thaw()

    with caplog.at_level(logging.WARNING, "score.distlock"):
        front.proxy.freeze_answers()
        user = Background(use_token)
        lock.release()
        user.result()
        assert losses(caplog, other) == []


@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_a_loss_that_two_releases_find_is_logged_once(
    front: Front, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are in flight at once; neither has ended the hold."""
    conf, other = front.configure("1s" if how == "expired" else "1h", "20s"), front.observer
    for _ in range(10):
        caplog.clear()
        lock = score.distlock.Lock(conf, "name")
        with caplog.at_level(logging.WARNING, "score.distlock"):
            lock.acquire(timeout=20)
            if how == "expired":
                outlive(front.db)
            else:
                front.db.execute("DELETE FROM _score_distlock WHERE name = 'name'")
            both = threading.Barrier(2)

            def release(lock: Any = lock, both: Any = both) -> None:
                both.wait()
                # The second one may come too late.
                with pytest.raises((LockExpired, ValueError)):
                    lock.release()

            releases = [Background(release) for _ in range(2)]
            for each in releases:
                each.result()
            found = losses(caplog, other)
        assert len(found) == 1
        assert lock.token is None


def test_a_loss_that_was_told_is_not_taken_back(front: Front) -> None:
    """The database has extended the hold, but its answer came after the lease was over."""
    lock = front.configure("4s", "2s").get("name")
    lock.acquire()
    until(lambda: lock.remaining < 1)
    front.proxy.freeze_answers()
    with pytest.raises(DatabaseUnavailable):
        lock.extend()
    front.proxy.thaw()
    with pytest.raises(LockExpired):
        lock.extend()
    assert lock.expired
    with pytest.raises(LockExpired):
        lock.release()
    front.await_free("name")


def test_an_inner_block_that_outlived_the_lease_in_an_outage(front: Front) -> None:
    lock = front.configure("1s").get("name")
    with pytest.raises(LockExpired) as outer, lock, lock:
        front.cut()
        until(lambda: lock.remaining == 0)
    assert isinstance(outer.value.__context__, LockExpired)


LATE_ALARM = """
import logging, signal, sys, psycopg, score.distlock
class Alarm(Exception):
    pass
def alarm(number, frame):
    raise Alarm
signal.signal(signal.SIGALRM, alarm)
records = []
class Handler(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())
logging.getLogger('score.distlock').addHandler(Handler())
conf = score.distlock.connect(sys.argv[1])
lock = conf.get('name')
db = psycopg.connect(sys.argv[1], autocommit=True)
lost = 0
for number in range(60):
    token = lock.acquire(timeout=20)
    db.execute('DELETE FROM _score_distlock')
    signal.setitimer(signal.ITIMER_REAL, 0.0003 * (number % 10) + 0.0001)
    try:
        try:
            lock.release()
        except score.distlock.LockExpired:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        pass
    if lock.token is None:
        lost += 1
        continue
    # Interrupted before the answer was read. The next call finds no loss.
    lock.release()
score.distlock._distlock._deliver_all()
print(lost > 10, len({text for text in records if 'is lost: unknown' in text}) - lost)
"""


def test_a_signal_loses_no_record(url: str) -> None:
    """One whose delivery was interrupted is delivered again."""
    assert python(LATE_ALARM, url) == "True 0\n"


def by_nested_blocks(lock: Any, lose: Callable[[], None]) -> None:
    with lock, lock:
        lose()


def by_block(lock: Any, lose: Callable[[], None]) -> None:
    with lock:
        lose()


def by_release(lock: Any, lose: Callable[[], None]) -> None:
    lock.acquire()
    lose()
    lock.release()


def by_ignored_release(lock: Any, lose: Callable[[], None]) -> None:
    lock.acquire()
    lose()
    lock.release(ignore_expired=True)
    assert lock.token is None
    with pytest.raises(DatabaseUnavailable):
        lock.acquire()
    raise LockExpired("name", "of this test")


def by_extend(lock: Any, lose: Callable[[], None]) -> None:
    lock.acquire()
    lose()
    with pytest.raises(DatabaseUnavailable):
        lock.extend()
    lock.release()


@pytest.mark.parametrize(
    "how", [by_block, by_nested_blocks, by_release, by_ignored_release, by_extend]
)
def test_a_lease_that_ends_in_an_outage_is_a_loss(
    front: Front, how: Callable[[Any, Callable[[], None]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The call at the end says so, though it cannot reach the database; and it is logged, once."""
    conf, other = front.configure("1s"), score.distlock.connect(front.direct)
    lock = conf.get("name")

    def lose() -> None:
        front.cut()
        until(lambda: lock.remaining == 0)

    with caplog.at_level(logging.WARNING, "score.distlock"):
        with pytest.raises(LockExpired):
            how(lock, lose)
        [text] = losses(caplog, other)
    assert text.startswith("the hold of lock 'name' (fence ")
    assert text.endswith("is lost: expired")
    front.restore()
    front.await_free("name")


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_failed_release_of_all_can_be_called_again(front: Front, asynchronous: bool) -> None:
    """It fails again as long as the database is out of reach."""
    conf = front.configure()

    async def main() -> None:
        holds = await conf.aio.acquire_all(["a", "b"], timeout=20)
        front.cut()
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable):
                await holds.release()
        front.restore()
        await patiently_released(holds)
        await holds.release()

    async def patiently_released(holds: Any) -> None:
        while True:
            with contextlib.suppress(DatabaseUnavailable):
                await holds.release()
                return

    if asynchronous:
        asyncio.run(main())
    else:
        holds = conf.acquire_all(["a", "b"], timeout=20)
        front.cut()
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable):
                holds.release()
        front.restore()
        patiently(holds.release)
        holds.release()
    for name in "ab":
        assert front.is_free(name)


async def async_block(conf: Conf, lock: Any, lose: Callable[[], None]) -> None:
    async with conf.aio.get("name"):
        lose()


def sync_block(conf: Conf, lock: Any, lose: Callable[[], None]) -> None:
    with lock:
        lose()


def all_of_them(conf: Conf, lock: Any, lose: Callable[[], None]) -> None:
    with conf.acquire_all(["name", "other"]):
        lose()


def calling(method: str) -> Callable[[Conf, Any, Callable[[], None]], None]:
    def acquire_and_call(conf: Conf, lock: Any, lose: Callable[[], None]) -> None:
        lock.acquire()
        lose()
        getattr(lock, method)()

    return acquire_and_call


def having_looked(conf: Conf, lock: Any, lose: Callable[[], None]) -> None:
    with lock:
        lose()
        until(lambda: lock.expired)
        assert lock.lost.is_set()


#: The call that notices a loss raises an exception.
NOTICING: dict[str, Callable[[Conf, Any, Callable[[], None]], Any]] = {
    "block": sync_block,
    "async block": lambda *arguments: asyncio.run(async_block(*arguments)),
    "acquire_all": all_of_them,
    "release": calling("release"),
    "extend": calling("extend"),
    "acquire": calling("acquire"),
    "looked": having_looked,
}


@pytest.mark.parametrize("how", ["expired", "deleted"])
@pytest.mark.parametrize("by", NOTICING)
def test_each_loss_is_logged_once(
    brief: Conf, conf: Conf, db: Db, caplog: pytest.LogCaptureFixture, how: str, by: str
) -> None:
    """Also if a call raises ``LockExpired`` for it: its caller may swallow that."""
    used = brief if how == "expired" else conf
    lock = used.get("name")
    if (by, how) == ("looked", "deleted"):
        pytest.skip("nobody has asked the database")

    def lose() -> None:
        fences.append(lock.fence or used.aio.get("name").fence)
        if how == "expired":
            outlive(db)
            until(lambda: lock.expired)
        else:
            db.execute("DELETE FROM _score_distlock WHERE name = 'name'")

    fences: list[Any] = []
    with caplog.at_level(logging.WARNING, "score.distlock"):
        with pytest.raises(LockExpired) as raised:
            NOTICING[by](used, lock, lose)
        # Records come in order.
        used.acquire("later")
        with pytest.raises(LockExpired), used.get("later one").hold() as later:
            db.execute("DELETE FROM _score_distlock")
            later.extend()
        until(lambda: "later one" in caplog.text)
    told = [record.getMessage() for record in caplog.records]
    reason = raised.value.reason
    assert told[0] == f"the hold of lock 'name' (fence {fences[0]}) is lost: {reason}"
    assert len([text for text in told if "'name'" in text]) == 1


def test_a_lost_lock_does_not_look_held(conf: Conf, db: Db) -> None:
    lock = conf.get("name")
    asynchronous = repr(conf.aio.get("name"))
    assert repr(lock) == "<score.distlock.Lock 'name' free>"
    assert asynchronous == "<score.distlock.aio.AsyncLock 'name' free>"
    told: list[str] = []
    lost = threading.Event()

    def on_lost(lost_lock: Any) -> None:
        told.append(repr(lost_lock))
        lost.set()

    with pytest.raises(LockExpired), lock.hold(on_lost=on_lost):
        assert repr(lock) == "<score.distlock.Lock 'name' held>"
        assert conf.revoke("name")
        lost.wait()
        assert repr(lock) == "<score.distlock.Lock 'name' lost>"
    assert told == ["<score.distlock.Lock 'name' lost>"]
    assert repr(lock) == "<score.distlock.Lock 'name' free>"


FORKED = """
import os, sys, score.distlock
conf = score.distlock.connect(sys.argv[1], pool_timeout=0.5)
holds = conf.acquire_all(['a', 'b'])
print('acquired', flush=True)
sys.stdin.readline()
try:
    holds.release()
except score.distlock.DatabaseUnavailable:
    pass
if os.fork() == 0:
    holds.release()  # the parent's: there is nothing to repeat here, and no outage to wait out
    os._exit(0)
print(os.wait()[1], flush=True)
"""


def test_a_forked_child_repeats_no_release_of_its_parent(front: Front) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", FORKED, front.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "acquired\n"
    front.cut()
    output, _ = program.communicate("\n", timeout=60)
    assert output == "0\n"
