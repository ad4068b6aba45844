"""A transfer leaves exactly one valid token, which somebody knows, whatever else happens."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import LockExpired

from .support.line import Background, until
from .support.proxy import Proxy

Conf = score.distlock.ConfiguredDistlockModule


def test_the_old_token_is_void_although_others_extend_by_it(conf: Conf) -> None:
    for number in range(40):
        name, over = f"name {number}", threading.Event()
        old = conf.acquire(name)

        def extend(name: str = name, old: str = old, over: threading.Event = over) -> None:
            while not over.is_set():
                with contextlib.suppress(LockExpired):
                    conf.extend(name, old)

        threads = [Background(extend) for _ in range(2)]
        over.wait(0.001)
        new = conf.transfer(name, old)
        with pytest.raises(LockExpired):
            conf.extend(name, old)
        over.set()
        for thread in threads:
            thread.result()
        for use in (conf.extend, conf.transfer, conf.release):
            with pytest.raises(LockExpired):
                use(name, old)
        conf.release(name, new)


def test_of_two_that_transfer_the_same_token_one_succeeds(conf: Conf) -> None:
    def transfer(old: str) -> str | None:
        try:
            return conf.transfer("name", old)
        except LockExpired:
            return None

    for _ in range(40):
        old = conf.acquire("name")
        threads = [Background(transfer, old) for _ in range(3)]
        (new,) = {thread.result() for thread in threads} - {None}
        with pytest.raises(LockExpired):
            conf.release("name", old)
        conf.release("name", new)


def has_token(url: str, name: str, token: str) -> bool:
    """Whether that is the token in the database."""
    with psycopg.connect(url) as db:
        query = "SELECT token = %s FROM _score_distlock WHERE name = %s"
        return db.execute(query, (token, name)).fetchone() == (True,)


@pytest.mark.parametrize("executed", [False, True])
@pytest.mark.parametrize("use", ["extend", "transfer", "release"])
def test_an_interrupted_transfer_leaves_the_old_token_valid(
    through: Callable[..., Conf],
    proxy: Proxy,
    own_url: str,
    executed: bool,
    use: str,
) -> None:
    """Whether or not the database has the new one."""
    conf, cut_off = score.distlock.init({"sqlalchemy.url": own_url}), through()
    name = f"interrupted {executed} {use}"
    token = cut_off.acquire(name)
    if executed:
        proxy.freeze_answers()
    else:
        proxy.freeze_request(lambda request: True)

    def interrupt() -> None:
        if executed:
            until(lambda: not has_token(own_url, name, token))
        else:
            proxy.frozen.wait()
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()

    thread = Background(interrupt)
    with pytest.raises(KeyboardInterrupt):
        cut_off.transfer(name, token)
    thread.result()
    proxy.thaw()
    if use == "transfer":
        token = cut_off.transfer(name, token)
    if use == "extend":
        cut_off.extend(name, token)
    cut_off.release(name, token)
    assert conf.try_acquiring(name)


def test_a_release_and_a_transfer_of_one_token_exclude_each_other(conf: Conf) -> None:
    async def attempt(call: Coroutine[Any, Any, str | None]) -> str | None:
        """The call's result as text; `None` if it is refused."""
        try:
            return await call or "released"
        except LockExpired:
            return None

    async def main() -> None:
        for number in range(200):
            name = f"name {number}"
            old = await conf.aio.acquire(name)
            calls = [conf.aio.transfer(name, old), conf.aio.release(name, old)]
            if number % 2:
                calls.reverse()
            results = await asyncio.gather(*map(attempt, calls))
            if number % 2:
                results.reverse()
            new, released = results
            assert (new is None) == (released is not None)
            if new is not None:
                await conf.aio.release(name, new)

    asyncio.run(main())


def test_a_release_that_is_on_its_way_is_not_overtaken(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    """By a transfer whose caller has not seen its result before the release began."""
    observer, conf = score.distlock.init({"sqlalchemy.url": own_url}), through()
    name = "on its way"
    old = conf.acquire(name)

    def is_new(request: bytes) -> bool:
        tokens = re.findall(rb"[0-9a-f]{256}", request)
        return request[:1] == b"B" and tokens != [] and old.encode() not in tokens

    async def main() -> None:
        transfer = asyncio.create_task(conf.aio.transfer(name, old))
        await asyncio.sleep(0)
        # The loop is too busy to learn of it.
        until(lambda: not has_token(own_url, name, old))
        proxy.freeze_request(is_new)
        release = Background(conf.release, name, old)
        proxy.frozen.wait()
        with pytest.raises(LockExpired) as lost:
            await transfer
        assert lost.value.reason == "released"
        proxy.thaw()
        release.result()

    asyncio.run(main())
    assert observer.try_acquiring(name)


def test_a_transfer_waits_for_a_release_that_has_begun(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    """The release finds no row when it is repeated, and must not take a transfer for itself."""
    observer, conf = score.distlock.init({"sqlalchemy.url": own_url}), through()
    lock = conf.get("release first")
    token = lock.acquire()
    proxy.freeze_request(lambda request: True)
    release = Background(lock.release, token)
    proxy.frozen.wait()
    transfer = Background(lock.transfer, token)
    transfer.thread.join(0.2)  # as long as it takes if it does not wait
    proxy.cut_all()
    proxy.thaw()
    release.result()
    with pytest.raises(LockExpired):
        transfer.result()
    assert observer.try_acquiring("release first")


def test_a_token_that_is_nobodys_is_refused_though_others_use_it(conf: Conf) -> None:
    token = conf.acquire("name")
    conf.release("name", token)
    for _ in range(40):
        calls = [Background(use, "name", token) for use in (conf.transfer, conf.release)]
        for call in calls:
            with pytest.raises(LockExpired):
                call.result()
    with pytest.raises(LockExpired):
        conf.transfer("name", token)


def test_transfers_that_are_cancelled_before_they_began(
    through: Callable[..., Conf], proxy: Proxy
) -> None:
    """One of two coroutines waits for the other. Both are cancelled."""
    conf = through()
    name = "cancelled while it waits"
    old = conf.acquire(name)

    async def main() -> None:
        proxy.freeze_answers()
        transfers = [asyncio.create_task(conf.aio.transfer(name, old)) for _ in range(2)]
        for _ in range(3):
            await asyncio.sleep(0)
        for transfer in transfers:
            transfer.cancel()
        results = await asyncio.gather(*transfers, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        proxy.thaw()
        await conf.aio.release(name, await conf.aio.transfer(name, old))

    asyncio.run(main())


def test_configurations_of_one_process_share_their_transfers(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    """One transfers while another one releases."""
    slow, fast = through(), score.distlock.init({"sqlalchemy.url": own_url})
    lock = slow.get("shared")
    token = lock.acquire()
    proxy.freeze_answers()
    transfer = Background(lock.transfer, token)
    until(lambda: not has_token(own_url, "shared", token))
    fast.release("shared", token)
    proxy.thaw()
    with pytest.raises(LockExpired):
        transfer.result()
    assert fast.try_acquiring("shared")


def test_a_guard_during_a_transfer_guards(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    conf = through()
    lock = conf.get("guarded")
    token = lock.acquire()
    proxy.freeze_answer_to(b"guarded")
    transfer = Background(lock.transfer, token)
    until(lambda: not has_token(own_url, "guarded", token))
    with psycopg.connect(own_url) as connection, lock.guard(connection):
        pass
    proxy.thaw()
    conf.release("guarded", transfer.result())


def test_an_interrupted_transfer_is_remembered_for_the_lease_of_the_hold(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    """The hold's own lease is longer than that of the configuration that transfers it."""
    through()  # makes the table
    address = proxy.url("lost_answers")
    brief = score.distlock.connect(address, maxtime="300ms")
    brief.release("warm-up", brief.acquire("warm-up"))
    name = "longer than ours"
    old = score.distlock.init({"sqlalchemy.url": own_url}).acquire(name)

    async def transfer() -> None:
        proxy.freeze_answers()
        transfer = asyncio.create_task(brief.aio.transfer(name, old))
        await asyncio.to_thread(until, lambda: not has_token(own_url, name, old))
        transfer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await transfer
        proxy.thaw()

    asyncio.run(transfer())
    with psycopg.connect(own_url) as db:
        db.execute("SELECT pg_sleep(0.4)")
    brief.release(name, brief.transfer(name, old))
