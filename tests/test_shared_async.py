"""One asynchronous object used by several tasks, and coroutines without references."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator

import pytest

import score.distlock
from score.distlock import LockExpired

Conf = score.distlock.ConfiguredDistlockModule


def test_a_block_ends_its_own_hold(conf: Conf) -> None:
    """Although another task, whose hold is lost, is still in a block of the same object."""
    ends: list[str] = []

    async def main() -> None:
        lock = conf.aio.get("name")
        entered, leave = asyncio.Event(), asyncio.Event()

        async def late() -> None:
            async with lock:
                entered.set()
                await leave.wait()

        task = asyncio.create_task(late())
        await entered.wait()
        await conf.aio.revoke("name")

        async def next_one() -> None:
            async with lock:
                ends.append("inside")

        await asyncio.create_task(next_one())
        # The healthy task's hold has ended with its block.
        assert conf.info("name") is None
        leave.set()
        with pytest.raises(LockExpired):
            await task

    asyncio.run(main())
    assert ends == ["inside"]


def test_holds_are_entered_by_one_at_a_time(conf: Conf) -> None:
    async def main() -> None:
        holds = conf.aio.acquire_all(["one", "two"])
        async with holds:
            for work in (asyncio.create_task(holds.__aenter__()), holds.__aenter__()):
                with pytest.raises(ValueError, match="can be entered once"):
                    await work
            assert conf.info("one") is not None
        assert conf.info("one") is None
        async with holds:  # again, in sequence
            assert conf.info("two") is not None

    asyncio.run(main())


def test_a_child_does_not_enter_its_parents_holds(conf: Conf) -> None:
    async def main() -> None:
        holds = await conf.aio.acquire_all(["name"])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                holds.__aenter__().send(None)
            except ValueError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert conf.info("name") is not None
        await holds.release()

    asyncio.run(main())


@pytest.mark.parametrize("fails", [False, True], ids=["after a block", "after a failure"])
def test_a_token_that_was_read_stays(conf: Conf, fails: bool) -> None:
    async def main() -> str:
        holds = conf.aio.acquire_all(["name"])
        other = conf.acquire("name") if fails else None
        try:
            async with holds:
                pass
        except score.distlock.CouldNotAcquireLock:
            assert other
            conf.release("name", other)
        await holds
        return str(holds["name"])

    token = asyncio.run(main())
    gc.collect()
    conf.extend("name", token)


def test_a_generator_that_nobody_keeps_leaves_its_blocks(conf: Conf) -> None:
    """Only what it waits for refers to the task in which the loop closes it."""

    async def generate(number: int) -> AsyncIterator[int]:
        async with conf.aio.get(f"outer {number}"), conf.aio.get(f"inner {number}"):
            yield number

    async def main() -> None:
        for number in range(10):
            async for _ in generate(number):
                break
            for _ in range(5):
                gc.collect()
                await asyncio.sleep(0)
        for number in range(10):
            for name in (f"inner {number}", f"outer {number}"):
                token = await conf.aio.acquire(name, timeout=20)
                await conf.aio.release(name, token)

    asyncio.run(main())


def test_a_task_that_nobody_keeps_is_not_collected(conf: Conf) -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        async with conf.aio.get(f"name {number}"):
            done.append(number)

    async def main() -> None:
        for number in range(20):
            asyncio.create_task(work(number))  # noqa: RUF006
            await asyncio.sleep(0)
            gc.collect()
        for number in range(20):
            # Behind the task, which came first.
            await conf.aio.acquire(f"name {number}", timeout=20)

    asyncio.run(main())
    assert sorted(done) == list(range(20))
