"""A token that is presented in the wrong place, or again, changes nothing for its hold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import DatabaseError, LockExpired

from .conftest import fresh_database
from .support.line import until
from .support.proxy import Proxy
from .test_transfer import has_token

Conf = score.distlock.ConfiguredDistlockModule
Lock = score.distlock.Lock
Db = psycopg.Connection[Any]

USES = ("extend", "transfer", "release", "guard")


@pytest.fixture
def elsewhere(admin_url: str) -> Iterator[str]:
    """Another database on the same server."""
    with fresh_database(admin_url) as url:
        yield url


def present(conf: Conf, url: str, name: str, token: str, use: str) -> None:
    """Uses a token for a lock that it is not for."""
    with pytest.raises(LockExpired):
        if use != "guard":
            getattr(conf, use)(name, token)
            return
        with psycopg.connect(url) as connection, conf.get(name).guard(connection, token=token):
            pytest.fail("guarded")


def mistakes(url: str, elsewhere: str, name: str, token: str, use: str) -> None:
    """Presents a token under a wrong name, and for the same name in another database."""
    present(score.distlock.init({"sqlalchemy.url": url}), url, name + "s", token, use)
    present(score.distlock.init({"sqlalchemy.url": elsewhere}), elsewhere, name, token, use)


def is_free(conf: Conf, name: str = "name") -> bool:
    """Whether anybody can take the lock."""
    token = conf.try_acquiring(name)
    if token:
        conf.release(name, token)
    return token is not None


def expiry(db: Db, name: str) -> Any:
    query = "SELECT expires FROM _score_distlock WHERE name = %s"
    row = db.execute(query, (name,)).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("use", USES)
def test_a_healthy_hold_survives_its_token_in_the_wrong_place(
    url: str, elsewhere: str, db: Db, use: str
) -> None:
    conf = score.distlock.connect(url, maxtime="1s")
    lost = threading.Event()
    hold = conf.get("name").hold(autoextend=True, on_lost=lambda lock: lost.set())
    with hold as lock:
        assert lock.token
        mistakes(url, elsewhere, "name", lock.token, use)
        present(conf, url, "other", lock.token, use)
        before = expiry(db, "name")
        until(lambda: expiry(db, "name") > before)
        assert not lock.expired and not lock.lost.is_set()
    assert not lost.is_set()
    assert is_free(conf)


async def given_up(conf: Conf, url: str, proxy: Proxy, lock: Lock | None, old: str) -> None:
    """The database makes a transfer of a coroutine that is cancelled."""
    proxy.freeze_answers()
    work = conf.aio.get(lock.name).transfer(old) if lock else conf.aio.transfer("name", old)
    transfer = asyncio.create_task(work)
    await asyncio.to_thread(until, lambda: not has_token(url, "name", old))
    transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    proxy.thaw()


@pytest.mark.parametrize("use", USES)
def test_a_transfer_that_was_given_up_survives_its_token_in_the_wrong_place(
    through: Callable[..., Conf], proxy: Proxy, own_url: str, elsewhere: str, use: str
) -> None:
    conf = through()
    old = conf.acquire("name")
    asyncio.run(given_up(conf, own_url, proxy, None, old))
    mistakes(own_url, elsewhere, "name", old, use)
    conf.extend("name", old)
    conf.release("name", conf.transfer("name", old))
    assert is_free(conf)


def test_a_lock_has_its_old_token_until_somebody_knows_the_new_one(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    conf = through()

    async def main() -> None:
        lock = conf.aio.get("name")
        old = await lock.acquire()
        await given_up(conf, own_url, proxy, conf.get("name"), old)
        assert lock.token == old
        await lock.extend()
        assert lock.token == old
        new = await lock.transfer()
        assert lock.token == new != old
        for use in (conf.aio.extend, conf.aio.transfer, conf.aio.release):
            with pytest.raises(LockExpired):
                await use("name", old)
        await lock.release()
        assert is_free(conf)

    asyncio.run(main())


@pytest.mark.parametrize("again", [False, True])
def test_a_release_by_the_locks_token_excludes_a_transfer_that_is_repeated(
    through: Callable[..., Conf], proxy: Proxy, own_url: str, again: bool
) -> None:
    conf, other = through(), score.distlock.init({"sqlalchemy.url": own_url})

    async def main() -> None:
        lock = conf.aio.get("name")
        old = await lock.acquire()
        await given_up(conf, own_url, proxy, conf.get("name"), old)
        if again:
            proxy.freeze_answers()
        repeated = asyncio.create_task(conf.aio.transfer("name", old))
        await asyncio.sleep(0)
        assert lock.token
        await other.aio.release("name", lock.token)
        proxy.thaw()
        with pytest.raises(LockExpired):
            await repeated
        assert is_free(other)

    asyncio.run(main())


def test_a_transfer_that_may_have_been_made_is_not_forgotten_by_a_refusal(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    """Its answer was lost, and its repetition fails with a plain error of the server."""
    conf = through()
    old = conf.acquire("name")
    asyncio.run(given_up(conf, own_url, proxy, None, old))
    with psycopg.connect(own_url, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'refused'; END $$;"
            "CREATE TRIGGER refuse BEFORE UPDATE ON _score_distlock"
            " EXECUTE FUNCTION refuse()"
        )
        try:
            for _ in range(2):
                with pytest.raises(DatabaseError, match="refused"):
                    conf.transfer("name", old)
        finally:
            admin.execute("DROP TRIGGER refuse ON _score_distlock; DROP FUNCTION refuse()")
    conf.release("name", old)
    assert is_free(conf)
