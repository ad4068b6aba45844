"""A transfer or extension with an unknown outcome leaves nothing held after its block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import DatabaseUnavailable, LockExpired

from .support.line import Background
from .support.proxy import Proxy

Conf = score.distlock.ConfiguredDistlockModule


@pytest.mark.parametrize("manner", ["with", "acquire", "extended", "async"])
@pytest.mark.parametrize("what", ["transfer", "extend"])
def test_what_was_unknown_within_a_block_is_over_with_it(
    through: Callable[..., Conf], proxy: Proxy, own_url: str, manner: str, what: str
) -> None:
    """It was applied, but its answer was lost and the database is down; or it was cancelled."""
    name = f"unknown {what} {manner}"
    conf = through(pool_timeout="500ms")
    observer = score.distlock.ConfiguredDistlockModule(own_url, "1h")

    def lose_the_answer(work: Any) -> None:
        proxy.freeze_answer_to(name.encode())
        call = Background(work)
        proxy.frozen.wait()
        proxy.refuse(True)
        proxy.cut_all()
        proxy.thaw()
        with pytest.raises(DatabaseUnavailable):
            call.result()
        proxy.refuse(False)

    if manner == "async":

        async def main() -> None:
            async with conf.aio.get(name) as lock:
                proxy.freeze_answer_to(name.encode())
                task = asyncio.ensure_future(getattr(lock, what)())
                await asyncio.to_thread(proxy.frozen.wait)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                proxy.thaw()

        with contextlib.suppress(LockExpired):
            asyncio.run(main())
    else:
        lock = conf.get(name)
        block = lock.hold(autoextend=manner == "extended")
        if manner == "acquire":
            lock.acquire()
        else:
            block.__enter__()
        lose_the_answer(getattr(lock, what))
        with contextlib.suppress(LockExpired):
            if manner == "acquire":
                lock.release()
            else:
                block.__exit__(None, None, None)
    with psycopg.connect(own_url, autocommit=True) as db:
        live = db.execute(
            "SELECT expires > clock_timestamp() FROM _score_distlock WHERE name = %s", (name,)
        ).fetchone()
    if live == (True,):
        observer.acquire(name, timeout=8)
