"""``cancel_on_loss``: the task inside a block is cancelled when its hold is lost."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

import anyio
import psycopg
import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock, LockExpired

from .support.line import outlive
from .test_aio import run

__all__ = ("run",)

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
Run = Callable[[Any], Any]

counted = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 does not count cancellations"
)


def cancelling() -> int:
    """How often the task was asked to cancel."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() if sys.version_info >= (3, 11) else 0


async def for_ever() -> None:
    await asyncio.Event().wait()


def test_the_task_is_cancelled_and_told_why(conf: Conf, run: Run) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        with pytest.raises(LockExpired) as raised:
            async with lock.hold(autoextend=True, cancel_on_loss=True):
                conf.release("name", lock.token)
                await for_ever()
        assert isinstance(raised.value.__context__, asyncio.CancelledError)
        assert raised.value.reason == "released"
        # The task is no longer cancelled.
        assert cancelling() == 0
        await asyncio.sleep(0.01)
        async with lock.hold(cancel_on_loss=True):
            await asyncio.sleep(0.01)

    run(main())


def test_a_lease_that_ends(brief: Conf, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(LockExpired):
            async with brief.aio.get("name").hold(cancel_on_loss=True):
                await for_ever()
        assert cancelling() == 0

    run(main())


def test_on_lost_is_called_too(conf: Conf, run: Run) -> None:
    async def main() -> None:
        told: list[Any] = []
        lock = conf.aio.get("name")
        with pytest.raises(LockExpired):
            async with lock.hold(cancel_on_loss=True, on_lost=told.append):
                conf.release("name", lock.token)
                await for_ever()
        assert told == [lock]

    run(main())


def test_without_it_the_task_goes_on(conf: Conf, run: Run) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        with pytest.raises(LockExpired):
            async with lock.hold(autoextend=True):
                conf.release("name", lock.token)
                assert await lock.lost.wait()
                await asyncio.sleep(0.02)

    run(main())


def test_a_body_that_awaits_nothing_afterwards(brief: Conf, db: Db, run: Run) -> None:
    """The cancellation has not arrived when the block ends, and hits nothing later."""

    async def main() -> None:
        lock = brief.aio.get("name")
        for _ in range(3):
            requested = asyncio.Event()
            with pytest.raises(LockExpired):
                async with lock.hold(cancel_on_loss=True, on_lost=lambda _: requested.set()):  # noqa: B023
                    # The body continues in the same step of the loop that cancels the task.
                    with contextlib.suppress(asyncio.CancelledError):
                        await requested.wait()
            assert cancelling() == 0
            await asyncio.sleep(0.01)

            hold = lock.hold(cancel_on_loss=True)
            with pytest.raises(LockExpired):
                async with hold:
                    outlive(db)
                    hold._scopes[0].lost(lock)  # as the loop does between two steps of the task
            assert cancelling() == 0
            await asyncio.sleep(0.01)

    run(main())


def test_the_bodys_own_exception_stays_visible(conf: Conf, run: Run) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        with pytest.raises(LockExpired) as raised:
            async with lock.hold(cancel_on_loss=True):
                conf.release("name", lock.token)
                try:
                    await for_ever()
                finally:
                    raise KeyError
        assert isinstance(raised.value.__context__, KeyError)
        assert cancelling() == 0
        await asyncio.sleep(0.01)

    run(main())


@counted
def test_a_cancellation_from_elsewhere_is_not_swallowed(conf: Conf, run: Run) -> None:
    """If both happen, the task ends as cancelled."""

    async def work(both: bool) -> None:
        task: Any = asyncio.current_task()
        lock = conf.aio.get("name")
        async with lock.hold(cancel_on_loss=True, on_lost=lambda _: both and task.cancel()):
            conf.release("name", lock.token)
            if not both:
                with contextlib.suppress(asyncio.CancelledError):
                    await for_ever()
                # Ours has arrived, and then another one.
                task.cancel()
            await for_ever()

    async def main() -> None:
        for both in (True, False):
            task = asyncio.create_task(work(both))
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

    run(main())


def test_a_cancellation_alone(conf: Conf, run: Run) -> None:
    """The hold is released."""

    async def work(entered: asyncio.Event) -> None:
        async with conf.aio.get("name").hold(cancel_on_loss=True):
            entered.set()
            await for_ever()

    async def main() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(work(entered))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        token = await conf.aio.acquire("name", timeout=30)
        await conf.aio.release("name", token)

    run(main())


@counted
def test_with_timeouts_around_and_within(conf: Conf, run: Run) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        with pytest.raises(LockExpired):
            async with asyncio.timeout(60), lock.hold(cancel_on_loss=True), asyncio.timeout(60):
                conf.release("name", lock.token)
                await for_ever()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), lock.hold(cancel_on_loss=True):
                await for_ever()
        async with lock.hold(cancel_on_loss=True):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await for_ever()
        # If both happen, the outer one decides.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                now = asyncio.get_running_loop().time()
                hold = lock.hold(cancel_on_loss=True, on_lost=lambda _: limit.reschedule(now))
                async with hold:
                    conf.release("name", lock.token)
                    try:
                        await for_ever()
                    finally:
                        await for_ever()
        assert cancelling() == 0
        await asyncio.sleep(0.01)

    run(main())


@counted
def test_task_groups_within(conf: Conf, run: Run) -> None:
    """The group's tasks are cancelled with it."""

    async def main() -> None:
        ended: list[int] = []

        async def child(number: int) -> None:
            try:
                await for_ever()
            finally:
                ended.append(number)

        lock = conf.aio.get("name")
        with pytest.raises(LockExpired):
            async with lock.hold(cancel_on_loss=True), asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(child(number))
                conf.release("name", lock.token)
        assert sorted(ended) == [0, 1, 2]
        assert cancelling() == 0
        await asyncio.sleep(0.01)

    run(main())


def test_blocks_within_blocks(conf: Conf, run: Run) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        for outer, inner in ((True, True), (True, False), (False, True)):
            with pytest.raises(LockExpired):
                async with lock.hold(cancel_on_loss=outer), lock.hold(cancel_on_loss=inner):
                    # The owner itself would only leave the inner block.
                    await asyncio.create_task(conf.aio.release("name", lock.token))
                    await for_ever()
            assert cancelling() == 0
            await asyncio.sleep(0.02)
        # Only the inner block; losing the other lock is another matter.
        other = conf.aio.get("other")
        async with other.hold(cancel_on_loss=True):
            with pytest.raises(LockExpired) as raised:
                async with lock.hold(cancel_on_loss=True):
                    conf.release("name", lock.token)
                    await for_ever()
            assert raised.value.args[0] == "name"
            assert not other.expired

    run(main())


def test_one_manager_for_many_tasks(conf: Conf, run: Run) -> None:
    """Each task is cancelled only for its own hold."""

    async def main() -> None:
        lock = conf.aio.get("name")
        hold = lock.hold(timeout=None, cancel_on_loss=True)

        async def work(number: int) -> str:
            try:
                async with hold:
                    if number % 2:
                        conf.release("name", lock.token)
                        await for_ever()
                    await asyncio.sleep(0.001)
            except LockExpired:
                return "lost"
            return "kept"

        results = await asyncio.gather(*(work(number) for number in range(8)))
        assert results == ["kept", "lost"] * 4
        assert hold._scopes == []

    run(main())


def test_a_refused_entrance_leaves_nothing(conf: Conf, run: Run) -> None:
    async def main() -> None:
        token = await conf.aio.acquire("name")
        hold = conf.aio.get("name").hold(cancel_on_loss=True)
        with pytest.raises(CouldNotAcquireLock):
            await hold.__aenter__()
        assert hold._scopes == []
        await conf.aio.release("name", token)

    run(main())


def test_after_the_block_nobody_is_cancelled(conf: Conf, run: Run) -> None:
    """The loss and the end of the block coincide."""

    async def main() -> None:
        lock = conf.aio.get("name")
        for _ in range(100):
            with pytest.raises(LockExpired):
                async with lock.hold(cancel_on_loss=True):
                    conf.release("name", lock.token)
            assert cancelling() == 0
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)

    run(main())


def test_anyio_on_asyncio(conf: Conf) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        with pytest.raises(LockExpired):
            async with lock.hold(cancel_on_loss=True):
                conf.release("name", lock.token)
                with anyio.CancelScope():
                    await anyio.sleep_forever()
        with anyio.move_on_after(0.05) as scope:
            async with lock.hold(cancel_on_loss=True):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        # Released in the background, as after any cancellation.
        with anyio.fail_after(30):
            async with lock.hold(timeout=30, cancel_on_loss=True):
                await anyio.sleep(0)
        assert cancelling() == 0

    anyio.run(main)


def test_without_a_task_it_is_refused(conf: Conf) -> None:
    """For instance in a callback of a loop that drives a coroutine itself."""
    loop = asyncio.new_event_loop()
    raised: list[BaseException] = []

    def drive() -> None:
        entering = conf.aio.get("name").hold(cancel_on_loss=True).__aenter__()
        try:
            entering.send(None)
        except RuntimeError as error:
            raised.append(error)
        loop.stop()

    loop.call_soon(drive)
    loop.run_forever()
    loop.close()
    assert "cancel_on_loss needs a task" in str(raised[0])
