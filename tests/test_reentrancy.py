"""The owner of a hold may acquire the lock again; nobody else may."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock, Lock, LockExpired

from .support.line import until
from .test_clock import await_expiry

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


def is_free(conf: Conf, name: str) -> bool:
    """Whether another owner could take the lock."""
    token = Lock(conf, name).try_acquiring()
    if token is not None:
        conf.release(name, token)
    return token is not None


def test_each_way_in_counts_and_the_last_way_out_ends(conf: Conf) -> None:
    lock = conf.get("name")
    with lock:
        token = lock.token
        assert lock.acquire() == token
        assert lock.try_acquiring() == token
        with conf.get("name") as again:
            assert again is lock
            assert lock.token == token
        lock.release()
        assert not is_free(conf, "name")
        lock.release()
        assert not is_free(conf, "name")
    assert is_free(conf, "name")
    assert lock.token is None


def test_the_inner_acquire_extends_the_lease_in_the_database(conf: Conf, db: Db) -> None:
    query = "SELECT expires, fence FROM _score_distlock"
    with conf.get("name") as lock:
        before = db.execute(query).fetchone()
        with lock:
            after = db.execute(query).fetchone()
    assert before and after
    assert after[0] > before[0]
    assert after[1] == before[1], "it is the same acquisition"


def test_the_inner_acquire_of_a_lost_hold_raises(brief: Conf, conf: Conf, db: Db) -> None:
    lock = brief.get("name")
    with pytest.raises(LockExpired) as outer, lock:
        await_expiry(db, "name")
        taken = conf.acquire("name")
        for function in (lock.acquire, lock.try_acquiring, lock.__enter__):
            with pytest.raises(LockExpired):
                function()
    assert outer.value.name == "name"
    conf.extend("name", taken)  # the new holder was not disturbed
    assert lock.token is None


def test_an_expired_hold_that_nobody_took_is_lost_too(brief: Conf, db: Db) -> None:
    lock = brief.get("name")
    lock.acquire()
    await_expiry(db, "name")
    with pytest.raises(LockExpired):
        lock.acquire()
    assert lock.expired
    with pytest.raises(LockExpired):
        lock.release()
    assert lock.acquire()


def test_an_owner_that_was_told_and_has_no_block_open_may_start_afresh(brief: Conf, db: Db) -> None:
    """As with 0.2.5, where expiry is one way to end a hold."""
    lock = brief.get("name")
    first = lock.acquire()
    await_expiry(db, "name")
    with pytest.raises(LockExpired):
        lock.acquire()
    second = lock.acquire()
    assert second != first
    brief.extend("name", second)


def test_an_inner_block_that_outlived_the_lease_raises(brief: Conf, db: Db) -> None:
    lock = brief.get("name")
    with pytest.raises(LockExpired), lock:
        with pytest.raises(LockExpired), lock:
            await_expiry(db, "name")
        assert lock.expired


def test_a_stranger_with_the_token_ends_the_hold_whatever_the_count(conf: Conf, url: str) -> None:
    lock = conf.get("name")
    with pytest.raises(LockExpired), lock, lock:
        assert lock.token
        stranger = score.distlock.init({"sqlalchemy.url": url})
        stranger.release("name", lock.token)
        assert is_free(conf, "name")


def test_the_owner_with_the_token_counts_down(conf: Conf) -> None:
    lock = conf.get("name")
    token = lock.acquire()
    lock.acquire()
    conf.release("name", token)
    assert not is_free(conf, "name")
    conf.release("name", token)
    assert is_free(conf, "name")


def test_another_lock_object_of_the_same_thread_is_not_the_owner(conf: Conf) -> None:
    """A worker whose first request took a token for one user refuses the second request."""
    token = conf.acquire("name")  # its Lock object is gone
    with pytest.raises(CouldNotAcquireLock):
        conf.acquire("name")
    assert Lock(conf, "name").try_acquiring() is None
    conf.release("name", token)


def test_not_reentrant_on_request(url: str) -> None:
    conf = score.distlock.init({"sqlalchemy.url": url, "reentrant": "false"})
    with conf.get("name") as lock:
        with pytest.raises(CouldNotAcquireLock):
            lock.acquire()
        assert lock.try_acquiring() is None
    assert is_free(conf, "name")


def test_a_failed_release_can_be_called_again(conf: Conf, db: Db) -> None:
    lock = conf.get("name")
    token = lock.acquire()
    db.execute("ALTER TABLE _score_distlock RENAME TO hidden")
    with pytest.raises(score.distlock.DatabaseError, match="missing"):
        lock.release()
    assert lock.token == token
    db.execute("ALTER TABLE hidden RENAME TO _score_distlock")
    lock.release()
    assert lock.token is None
    assert is_free(conf, "name")


def test_dropping_a_lock_releases_nothing(conf: Conf, caplog: pytest.LogCaptureFixture) -> None:
    lock = conf.get("dropped")
    token = lock.acquire()
    with caplog.at_level("DEBUG", "score.distlock"):
        del lock
        # The destructor itself calls no Python: the next call delivers its record, or the thread
        # that delivers events does.
        assert not is_free(conf, "dropped")
        until(lambda: "the Lock object of 'dropped' is gone" in caplog.text)
    assert token not in caplog.text
    assert not is_free(conf, "dropped")
    conf.release("dropped", token)
