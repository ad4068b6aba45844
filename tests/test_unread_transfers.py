"""A transfer that the database has made, and whose caller has not learned it, or never will."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable

import psycopg
import pytest

import score.distlock
from score.distlock import DatabaseUnavailable, LockExpired

from .support.line import Background, until
from .support.proxy import Proxy
from .support.server import PASSWORD, Server
from .test_telemetry import Seen
from .test_transfer import has_token
from .test_transfer_mistakes import given_up, is_free

Conf = score.distlock.ConfiguredDistlockModule


def lacks_token(url: str, token: str) -> bool:
    return not has_token(url, "name", token)


def forget(url: str, name: str) -> None:
    """Somebody deletes the row."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("DELETE FROM _score_distlock WHERE name = %s", (name,))


@pytest.mark.parametrize("end", ["release", "block"])
def test_an_end_counts_from_its_beginning(url: str, end: str) -> None:
    """All threads for endings are busy, and the transfer is read before its turn comes."""
    options = {"sqlalchemy.pool_size": "1", "sqlalchemy.max_overflow": "0"}
    conf = score.distlock.init({"sqlalchemy.url": url, **options})
    observer = score.distlock.init({"sqlalchemy.url": url})

    async def main() -> None:
        other = await conf.aio.acquire("other")
        hold = conf.aio.get("name").hold()
        async with contextlib.AsyncExitStack() as stack:
            lock = await stack.enter_async_context(hold)
            assert lock.token
            old = lock.token
            transfer = asyncio.create_task(lock.transfer())
            await asyncio.sleep(0)
            until(lambda: not has_token(url, "name", old))
            blocking = psycopg.connect(url)
            blocking.execute("SELECT FROM _score_distlock WHERE name = 'other' FOR UPDATE")
            busy = asyncio.create_task(conf.aio.release("other", other))
            leave = stack.aclose if end == "block" else lambda: conf.aio.release("name", old)
            ending = asyncio.create_task(leave())
            with pytest.raises(LockExpired):
                await transfer
            blocking.close()
            await busy
            await ending
            stack.pop_all()
        assert is_free(observer)

    asyncio.run(main())


def test_transfers_that_wait_occupy_no_thread(url: str) -> None:
    """They wait for a transfer that an event loop has not read."""
    options = {"sqlalchemy.pool_size": "1", "sqlalchemy.max_overflow": "0"}
    conf = score.distlock.init({"sqlalchemy.url": url, **options})
    old = conf.acquire("name")
    made, over = threading.Event(), threading.Event()

    async def first() -> str:
        transfer = asyncio.create_task(conf.aio.transfer("name", old))
        await asyncio.sleep(0)
        until(lambda: not has_token(url, "name", old))
        made.set()
        over.wait()  # blocks this loop
        return await transfer

    async def others() -> None:
        made.wait()
        transfers = [asyncio.create_task(conf.aio.transfer("name", old)) for _ in range(5)]
        await asyncio.sleep(0)
        await conf.aio.release("other", await conf.aio.acquire("other"))
        assert not any(transfer.done() for transfer in transfers)
        over.set()
        results = await asyncio.gather(*transfers, return_exceptions=True)
        assert [type(result) for result in results] == [LockExpired] * 5

    threads = [Background(asyncio.run, first()), Background(asyncio.run, others())]
    new, _ = [thread.result() for thread in threads]
    conf.release("name", new)


def test_a_transfer_is_not_read_once_its_hold_has_ended(url: str) -> None:
    conf, other = score.distlock.connect(url), score.distlock.connect(url)

    async def main() -> None:
        lock = conf.aio.get("name")
        old = await lock.acquire()
        transfer = asyncio.create_task(lock.transfer())
        await asyncio.sleep(0)
        until(lambda: not has_token(url, "name", old))
        assert other.revoke("name")
        with pytest.raises(LockExpired):
            await transfer

    asyncio.run(main())


@pytest.mark.parametrize("notice", ["renewal", "guard", "extend"])
def test_the_end_of_the_hold_is_told(
    through: Callable[..., Conf], proxy: Proxy, own_url: str, notice: str
) -> None:
    """To its owner, although either of two tokens might have it."""
    through()
    address = proxy.url("lost_answers")
    maxtime = "1s" if notice == "renewal" else "1h"
    conf = score.distlock.connect(address, maxtime=maxtime)
    lost = threading.Event()

    def work() -> None:
        hold = conf.get("name").hold(autoextend=True, on_lost=lambda lock: lost.set())
        with hold as lock:
            assert lock.token
            asyncio.run(given_up(conf, own_url, proxy, None, lock.token))
            forget(own_url, "name")
            if notice == "extend":
                lock.extend()
            if notice == "guard":
                with psycopg.connect(own_url) as connection, lock.guard(connection):
                    pytest.fail("guarded")
            lost.wait()

    with pytest.raises(LockExpired) as error:
        work()
    assert error.value.reason == "unknown"
    lost.wait()


def test_the_second_transfer_waits_until_the_first_is_read_or_given_up(url: str) -> None:
    conf = score.distlock.connect(url)

    async def main() -> None:
        for cancelled in (True, False):
            lock = conf.aio.get("name")
            old = await lock.acquire()
            seen = Seen()
            seen.instrument(conf)
            transfers = [asyncio.create_task(conf.aio.transfer("name", old)) for _ in range(2)]
            await asyncio.sleep(0)
            until(functools.partial(lacks_token, url, old))
            if cancelled:
                transfers[0].cancel()
            first, second = await asyncio.gather(*transfers, return_exceptions=True)
            if cancelled:
                assert isinstance(first, asyncio.CancelledError) and second == lock.token != old
            else:
                assert first == lock.token != old and isinstance(second, LockExpired)
            assert not seen.ended() and not seen.lost()
            await lock.release()

    asyncio.run(main())


def test_the_owner_goes_on_with_its_token(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    conf = through()
    lock = conf.get("name")
    old = lock.acquire()
    asyncio.run(given_up(conf, own_url, proxy, None, old))
    assert lock.acquire() == old == lock.token
    lock.release()
    for token in (None, old):
        with psycopg.connect(own_url) as connection, lock.guard(connection, token=token):
            pass
    forget(own_url, "name")
    with pytest.raises(LockExpired) as error:
        conf.release("name", old)
    assert error.value.args[:2] == ("name", old)


def test_a_revoked_hold_is_counted(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    conf, seen = through(), Seen()
    seen.instrument(conf)
    old = conf.acquire("name")
    asyncio.run(given_up(conf, own_url, proxy, None, old))
    assert conf.revoke("name")
    assert seen.lost() == {"released": 1} and not seen.holds()


def test_servers_that_do_not_say_who_they_are_differ(server: Server) -> None:
    other = Server()
    try:
        confs = []
        for each in (server, other):
            with psycopg.connect(each.url(), autocommit=True) as admin:
                admin.execute(
                    "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC;"
                    f"CREATE ROLE ignorant LOGIN PASSWORD '{PASSWORD}';"
                    "CREATE SCHEMA ignorant AUTHORIZATION ignorant"
                )
            confs.append(score.distlock.connect(each.tcp_url("postgres", "ignorant")))
        lost = threading.Event()
        with confs[0].get("name").hold(on_lost=lambda lock: lost.set()) as lock:
            with pytest.raises(LockExpired):
                confs[1].extend("name", lock.token)
            assert not lock.expired
        assert not lost.is_set()
    finally:
        other.destroy()
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute(
                "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC;"
                "DROP OWNED BY ignorant CASCADE; DROP ROLE ignorant"
            )


def test_a_release_that_goes_on_in_the_background_excludes_a_transfer(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    conf = through("1s")
    old = conf.acquire("name")
    proxy.refuse(True)
    proxy.cut_all()
    with pytest.raises(DatabaseUnavailable):
        conf.release("name", old)
    with pytest.raises(LockExpired) as error:
        conf.transfer("name", old)
    assert error.value.reason == "released"
    proxy.refuse(False)
    conf.release("name", old)
    assert is_free(score.distlock.init({"sqlalchemy.url": own_url}))


def test_the_owner_in_a_block_learns_that_a_release_by_others_took_too_long(
    through: Callable[..., Conf], proxy: Proxy
) -> None:
    through()
    address = proxy.url("lost_answers")
    conf = score.distlock.connect(address, maxtime="2s")
    other = through("500ms")
    lost = threading.Event()

    def work() -> None:
        with conf.get("name").hold(autoextend=True, on_lost=lambda lock: lost.set()) as lock:
            assert lock.token
            proxy.refuse(True)
            proxy.cut_all()
            with pytest.raises(DatabaseUnavailable):
                other.release("name", lock.token)
            lost.wait()
            proxy.refuse(False)

    with pytest.raises(LockExpired):
        work()
