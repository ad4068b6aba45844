"""Coroutines' blocks that end abnormally: the loop is gone, or a signal handler raises."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import gc
import itertools
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from types import FrameType
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import LockExpired

from .conftest import python
from .support.line import outlive

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
Work = Callable[[Conf, asyncio.Event], Coroutine[Any, Any, None]]


async def plain(conf: Conf, inside: asyncio.Event) -> None:
    async with conf.aio.get("name"):
        inside.set()
        await asyncio.sleep(3600)


async def hold(conf: Conf, inside: asyncio.Event) -> None:
    async with conf.aio.get("name").hold(autoextend=True):
        inside.set()
        await asyncio.sleep(3600)


async def cancelled_on_loss(conf: Conf, inside: asyncio.Event) -> None:
    async with conf.aio.get("name").hold(autoextend=True, cancel_on_loss=True):
        inside.set()
        await asyncio.sleep(3600)


async def several(conf: Conf, inside: asyncio.Event) -> None:
    async with conf.aio.acquire_all(["name", "other"], autoextend=True):
        inside.set()
        await asyncio.sleep(3600)


async def locked(conf: Conf, inside: asyncio.Event) -> None:
    @conf.locked("name", autoextend=True)
    async def work() -> None:
        inside.set()
        await asyncio.sleep(3600)

    await work()


async def generator(conf: Conf, inside: asyncio.Event) -> None:
    async def numbers() -> AsyncIterator[int]:
        async with conf.aio.get("name").hold(autoextend=True):
            inside.set()
            yield 1
            yield 2

    async for _ in numbers():
        break
    await asyncio.sleep(3600)


async def entered(conf: Conf, inside: asyncio.Event) -> None:
    await conf.aio.get("name").hold(autoextend=True).__aenter__()
    inside.set()
    await asyncio.sleep(3600)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("steps", [None, *range(12)])
@pytest.mark.parametrize(
    "work", [plain, hold, cancelled_on_loss, several, locked, generator, entered]
)
def test_a_block_whose_loop_is_gone_is_over(
    url: str, conf: Conf, work: Work, steps: int | None
) -> None:
    """It ends within a lease, as nothing extends it. The task is inside, or on its way there."""
    brief = Conf(url, "1s", timeout=30, autoextend=True)

    async def begin() -> None:
        inside = asyncio.Event()
        task = asyncio.ensure_future(work(brief, inside))
        if steps is None:
            await inside.wait()
        else:
            for _ in range(steps):
                await asyncio.sleep(0.0005)
        assert not task.done()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    loop.run_until_complete(begin())
    loop.close()
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None
    assert conf.acquire("name", timeout=30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed")
@pytest.mark.parametrize("option", [None, "on_lost", "on_expiring", "cancel_on_loss"])
def test_a_block_whose_loop_was_dropped_is_over(url: str, conf: Conf, option: str | None) -> None:
    """As above, but nobody closed the loop."""
    brief = Conf(url, "1s", autoextend=True)
    options: dict[str, Any] = {}
    if option is not None:
        options[option] = True if option == "cancel_on_loss" else lambda *_: None

    async def work(inside: asyncio.Event) -> None:
        async with brief.aio.get("name").hold(**options):
            inside.set()
            await asyncio.sleep(3600)

    async def begin() -> None:
        inside = asyncio.Event()
        asyncio.ensure_future(work(inside))  # noqa: RUF006
        await inside.wait()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    loop.run_until_complete(begin())
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None
    assert conf.acquire("name", timeout=30)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("how", ["plain", "hold", "cancelled on loss", "several", "locked"])
def test_a_block_whose_loop_is_gone_sees_its_own_exception(
    conf: Conf, how: str, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python closes the coroutine, and the end of the block does not replace that by an error."""
    seen: list[object] = []
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: unraisable.append(it.exc_value))
    expired: list[object] = []
    aio, name = conf.aio, "name"

    @conf.locked(name, on_lost=expired.append)
    async def work(inside: asyncio.Event) -> None:
        inside.set()
        await asyncio.sleep(3600)

    async def enter(inside: asyncio.Event) -> None:
        blocks: dict[str, Any] = {
            "plain": lambda: aio.get(name),
            "hold": lambda: aio.get(name).hold(on_lost=expired.append),
            "cancelled on loss": lambda: aio.get(name).hold(
                cancel_on_loss=True, on_lost=expired.append
            ),
            "several": lambda: aio.acquire_all([name]),
        }
        try:
            if how == "locked":
                await work(inside)
            async with blocks[how]():
                inside.set()
                await asyncio.sleep(3600)
        except BaseException as error:
            seen.append(error)
            raise

    async def begin() -> None:
        inside = asyncio.Event()
        task = asyncio.ensure_future(enter(inside))
        await inside.wait()
        assert not task.done()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    loop.run_until_complete(begin())
    loop.close()
    if lost:
        conf.revoke(name)
    del loop
    gc.collect()
    assert [type(error) for error in seen] == [GeneratorExit]
    assert unraisable == []
    assert conf.acquire(name, timeout=30)


class Raised(BaseException):
    pass


async def once_plain(conf: Conf, name: str) -> None:
    async with conf.aio.get(name):
        pass


async def once_hold(conf: Conf, name: str) -> None:
    async with conf.aio.get(name).hold(autoextend=True):
        pass


async def once_several(conf: Conf, name: str) -> None:
    async with conf.aio.acquire_all([name]):
        pass


class Interrupts:
    """Raises where Python runs signal handlers in our functions: when they begin, and when a
    function they have called returns; at the point with this number.
    """

    def __init__(self, point: int) -> None:
        self.left = point
        self._last: dict[FrameType, int] = {}

    def __enter__(self) -> Interrupts:
        self._before = sys.gettrace()
        sys.settrace(self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        self._last.clear()

    def _begin(self, frame: FrameType, event: str, _: object) -> Any:
        if "score/distlock/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            self._reached()
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            before = self._last.get(frame)
            self._last[frame] = frame.f_lasti
            if before is not None and CALLS[frame.f_code.co_code[before]]:
                self._reached()
        return self._step

    def _reached(self) -> None:
        self.left -= 1
        if self.left == 0:
            sys.settrace(None)
            raise Raised


#: By opcode: whether it is a call.
CALLS = [dis.opname[number].startswith("CALL") for number in range(256)]


def interrupted(work: Coroutine[Any, Any, object], point: int) -> tuple[bool, asyncio.Task[object]]:
    """Whether there was such a point, and the task, which is done."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    task = loop.create_task(work)
    with Interrupts(point) as interrupts, contextlib.suppress(Raised):
        loop.run_until_complete(task)
    if not task.done():  # the interrupt hit the loop itself
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Raised):
            loop.run_until_complete(task)
    loop.close()
    return interrupts.left <= 0, task


def result(task: asyncio.Task[object]) -> object:
    """The task's result, or None."""
    return None if task.cancelled() or task.exception() else task.result()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("work", [once_plain, once_hold, once_several])
def test_a_signal_handler_may_raise_at_each_call(
    url: str, conf: Conf, work: Callable[[Conf, str], Coroutine[Any, Any, None]]
) -> None:
    own = Conf(url, "10m")
    for point in itertools.count(1):
        name = f"name {point}"
        reached, task = interrupted(work(own, name), point)
        # What is in progress completes by itself, though the exception is still referenced.
        conf.release(name, conf.acquire(name, timeout=30))
        result(task)
        if not reached:
            break
    assert point > 30


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_signal_handler_may_raise_while_a_coroutine_transfers(url: str, conf: Conf) -> None:
    """The caller has a valid token, unless the last call has just returned the new one."""
    own, unlucky = Conf(url, "10m"), 0
    for point in itertools.count(1):
        name = f"name {point}"
        old = own.acquire(name)
        reached, task = interrupted(own.aio.transfer(name, old), point)
        try:
            token = own.transfer(name, str(result(task) or old))
        except LockExpired:
            unlucky += 1
            continue
        own.release(name, token)
        assert conf.try_acquiring(name)
        if not reached:
            break
    assert (point > 20, unlucky) == (True, 1)


def test_an_answer_survives_a_callback_that_is_interrupted(conf: Conf) -> None:
    raised = False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal raised
        if frame.f_code.co_name == "_deliver" and not raised:
            raised = True
            raise ValueError("a signal handler")
        return None

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        sys.settrace(trace)
        try:
            assert await conf.aio.acquire("name")
        finally:
            sys.settrace(None)

    before = sys.gettrace()
    asyncio.run(main())
    sys.settrace(before)
    assert raised


def test_a_busy_loop_costs_no_inner_block(url: str, db: Db) -> None:
    """The hold is extended in the meantime, though the loop reads the confirmation late."""
    brief = Conf(url, "1s")

    async def busy() -> None:
        outlive(db)
        outlive(db)

    async def main() -> None:
        lock = brief.aio.get("name")
        async with lock.hold(autoextend=True):
            task = asyncio.ensure_future(busy())
            async with lock:
                assert not lock.expired
            await task

    asyncio.run(main())


GEVENT = """
import sys
from gevent import monkey
if sys.argv[2] == 'before': monkey.patch_all()
import score.distlock
if sys.argv[2] == 'after': monkey.patch_all()
import gevent
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '1s'})
lost = gevent.event.AsyncResult()
def work():
    with conf.get('name').hold(autoextend=True): gevent.sleep(0.01)
work()
gevent.spawn(work).join()
heard = []
lock = conf.get('name')
try:
    with lock.hold(autoextend=True, on_lost=heard.append):
        conf.release('name', lock.token)
        while not heard: gevent.sleep(0.01)
except score.distlock.LockExpired: print(heard == [lock])
"""


@pytest.mark.parametrize("patched", ["before", "after"])
def test_gevent_may_have_patched_threads(url: str, patched: str) -> None:
    assert python(GEVENT, url, patched) == "True\n"


def test_the_end_of_a_block_is_told_though_it_began_at_once(url: str, db: Db) -> None:
    brief = Conf(url, "1s")

    async def main() -> None:
        lock = brief.aio.get("name")
        with pytest.raises(LockExpired):
            async with lock:
                outlive(db)
        holds = brief.aio.acquire_all(["a"])
        for _ in range(2):  # it can be entered again
            async with holds as tokens:
                assert list(tokens) == ["a"]
            token = await brief.aio.try_acquiring("a")
            await brief.aio.release("a", token)

    asyncio.run(main())
