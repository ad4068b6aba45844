"""Wherever a connection breaks: the caller has one hold, or none remains beyond the lease."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import DatabaseError, DatabaseUnavailable, LockExpired

from .support.line import Background, wait_until_waiting, waiting
from .support.proxy import How, Proxy, Side

Db = psycopg.Connection[Any]
Conf = score.distlock.ConfiguredDistlockModule
Lock = score.distlock.Lock

MESSAGES: list[tuple[Side, How]] = [
    (side, how) for side in ("request", "answer") for how in ("before", "half", "after")
]


def warm_up(conf: Conf) -> None:
    """Opens a connection and prepares every statement."""
    token = conf.acquire("warm-up")
    conf.extend("warm-up", token)
    conf.release("warm-up", conf.transfer("warm-up", token))


def only_hold(observer: Conf, lock: Lock) -> None:
    """The caller has the lock, nobody else gets it, and afterwards everybody can."""
    assert lock.token is not None
    assert observer.try_acquiring(lock.name) is None
    lock.release()
    token = observer.try_acquiring(lock.name)
    assert token is not None
    observer.release(lock.name, token)


class Operation:
    """An operation, its preparation, and what must be true afterwards."""

    def __init__(self, observer: Conf) -> None:
        self.observer = observer

    def prepare(self, lock: Lock) -> None:
        lock.acquire()

    def run(self, lock: Lock) -> None:
        raise NotImplementedError

    def verify(self, lock: Lock) -> None:
        only_hold(self.observer, lock)


class Acquire(Operation):
    def prepare(self, lock: Lock) -> None:
        pass

    def run(self, lock: Lock) -> None:
        lock.acquire()


class AcquireAgain(Operation):
    """A lock just released by this process has a statement of its own."""

    def prepare(self, lock: Lock) -> None:
        lock.acquire()
        lock.release()

    def run(self, lock: Lock) -> None:
        lock.acquire()


class AcquireAfterRefusal(Operation):
    """After a refusal, the next attempt looks first."""

    def prepare(self, lock: Lock) -> None:
        other = score.distlock.Lock(lock.conf, lock.name)
        other.acquire()
        assert lock.try_acquiring() is None
        # By another module, so that this one remembers the refusal.
        self.observer.release(lock.name, other.token)

    def run(self, lock: Lock) -> None:
        lock.acquire()


class Extend(Operation):
    def run(self, lock: Lock) -> None:
        lock.extend()


class Transfer(Operation):
    def prepare(self, lock: Lock) -> None:
        self.old = lock.acquire()

    def run(self, lock: Lock) -> None:
        self.new = lock.transfer()

    def verify(self, lock: Lock) -> None:
        assert lock.token == self.new != self.old
        with pytest.raises(LockExpired):
            self.observer.extend(lock.name, self.old)
        self.observer.extend(lock.name, self.new)
        only_hold(self.observer, lock)


class Release(Operation):
    def run(self, lock: Lock) -> None:
        lock.release()

    def verify(self, lock: Lock) -> None:
        assert lock.token is None
        token = self.observer.try_acquiring(lock.name)
        assert token is not None
        self.observer.release(lock.name, token)


OPERATIONS = [Acquire, AcquireAgain, AcquireAfterRefusal, Extend, Transfer, Release]


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize(("side", "how"), MESSAGES)
@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_cut_is_mended_within_the_call(
    kind: type[Operation],
    side: Side,
    how: How,
    warm: bool,
    through: Callable[..., Conf],
    proxy: Proxy,
    own_url: str,
) -> None:
    observer = score.distlock.init({"sqlalchemy.url": own_url})
    conf = through()
    for index in itertools.count():
        if not warm:
            conf = through()
        operation = kind(observer)
        lock = conf.get(f"{kind.__name__} {side} {how} {index}")
        if warm:
            warm_up(conf)
        operation.prepare(lock)
        cut = proxy.arm(side, index, how)
        operation.run(lock)
        proxy.cut = None
        operation.verify(lock)
        if not cut.done.is_set():
            assert index > 1, "at least a few messages were cut"
            break


@pytest.mark.parametrize(("side", "how"), MESSAGES)
@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_cut_from_everybody_is_mended_by_the_next_call(
    kind: type[Operation],
    side: Side,
    how: How,
    through: Callable[..., Conf],
    proxy: Proxy,
    own_url: str,
) -> None:
    """The server stays away: the call fails; repeated later, it goes on where it stopped."""
    observer = score.distlock.init({"sqlalchemy.url": own_url})
    conf = through("500ms")
    for index in itertools.count():
        operation = kind(observer)
        lock = conf.get(f"{kind.__name__} {side} {how} {index}")
        warm_up(conf)
        operation.prepare(lock)
        cut = proxy.arm(side, index, how, refuse_afterwards=True)
        try:
            operation.run(lock)
        except DatabaseUnavailable:
            assert cut.done.is_set()
            proxy.refuse(False)
            operation.run(lock)
        proxy.cut = None
        proxy.refuse(False)
        operation.verify(lock)
        if not cut.done.is_set():
            assert index > 1
            break


REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'out of order';
    END $$;
    CREATE TRIGGER refuse BEFORE UPDATE ON _score_distlock EXECUTE FUNCTION refuse();
"""


@pytest.mark.parametrize("kind", [AcquireAgain, Extend, Transfer, Release])
def test_a_refusal_after_a_lost_answer_leaves_the_outcome_open(
    kind: type[Operation], through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    """As when a standby takes over and is not ready: the call fails, and goes on later."""
    conf = through()
    operation = kind(score.distlock.init({"sqlalchemy.url": own_url}))
    lock = conf.get(f"{kind.__name__} refused")
    for _ in range(2):  # the second time uses the statement for a lock just released here
        warm_up(conf)
    operation.prepare(lock)
    with psycopg.connect(own_url, autocommit=True) as admin:
        cut = proxy.arm("answer", 0, "before", refuse_afterwards=True)

        def fail_over() -> None:
            cut.done.wait()
            admin.execute(REFUSE)
            proxy.refuse(False)

        thread = threading.Thread(target=fail_over)
        thread.start()
        with pytest.raises(DatabaseError, match="out of order"):
            operation.run(lock)
        thread.join()
        proxy.cut = None
        admin.execute("DROP FUNCTION refuse CASCADE")
    operation.run(lock)
    operation.verify(lock)


def test_the_retry_of_a_given_up_acquire_is_not_refused_by_itself(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    """Without a Lock object to remember it, and from another thread's point of view."""
    conf = through("500ms")
    warm_up(conf)
    proxy.freeze_answers()
    with pytest.raises(DatabaseUnavailable, match="did not answer within"):
        conf.acquire("frozen")
    assert proxy.frozen.is_set()
    proxy.thaw()
    token = conf.acquire("frozen")
    observer = score.distlock.init({"sqlalchemy.url": own_url})
    assert observer.try_acquiring("frozen") is None
    observer.release("frozen", token)


def test_a_lost_transfer_does_not_lose_the_hold(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    conf = through("500ms")
    warm_up(conf)
    lock = conf.get("transferred")
    lock.acquire()
    proxy.freeze_answers()
    with pytest.raises(DatabaseUnavailable):
        lock.transfer()
    proxy.thaw()
    lock.extend()  # with whichever token the database has
    only_hold(score.distlock.init({"sqlalchemy.url": own_url}), lock)


def test_a_token_released_twice_is_lost_the_second_time(conf: Conf) -> None:
    """Only a release whose answer was lost can be repeated."""
    token = conf.acquire("twice")
    conf.release("twice", token)
    with pytest.raises(LockExpired):
        conf.release("twice", token)


def test_a_statement_that_was_parsed_and_not_described(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    """The client must not conclude that its rows have no columns."""
    observer = score.distlock.init({"sqlalchemy.url": own_url})
    observer.release("described", observer.acquire("described"))
    conf = through(options="?options=-cstatement_timeout%3D1000")
    with psycopg.connect(own_url, autocommit=True) as admin:
        proxy.freeze_describe()
        attempt = Background(conf.acquire, "described")
        proxy.frozen.wait()
        late = """
            SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()
               AND clock_timestamp() > xact_start + interval '1.1 second'
        """
        while admin.execute(late).fetchone() == (0,):
            assert attempt.thread.is_alive()
        proxy.thaw()
        # The server cancelled the first attempt (57014), but not the second.
        observer.release("described", attempt.result())
    for _ in range(2):
        only_hold(observer, held(conf, "described"))


def held(conf: Conf, name: str) -> Lock:
    lock = conf.get(name)
    lock.acquire()
    return lock


def test_a_waiter_whose_answer_is_lost_does_not_queue_up_behind_itself(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    """It finds that it has already taken the lock."""
    conf = through()
    observer = score.distlock.init({"sqlalchemy.url": own_url})
    with psycopg.connect(own_url, autocommit=True) as db:
        for index in itertools.chain(range(6), range(6)):
            token = observer.acquire("taken")
            lock = conf.get("taken")
            waiter = Background(lock.acquire, timeout=60)
            wait_until_waiting(db, 1, "taken")
            # One of them is the notification, the others are the answer.
            proxy.arm("answer", index, "before")
            observer.release("taken", token)
            token = waiter.result()
            proxy.cut = None
            assert waiting(db, "taken") == 0
            conf.release("taken", token)
