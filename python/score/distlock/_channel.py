"""How a coroutine waits for the core without blocking its event loop."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable
from typing import Any

from ._distlock import _Acquisition, _Exit, _Inbox

#: The numbers of a hold and of a level of it.
Level = tuple[int, int]


class _Expected(dict[int, "asyncio.Future[Any] | asyncio.Event"]):
    """What coroutines wait for, by number. Only the loop owns it, as an argument of its reader.

    So it keeps the waiters alive, as nothing else may: a loop has only weak references to its
    tasks, and the task in which it closes an abandoned generator has no other owner. A loop that is
    dropped still goes away, although each future refers to it.
    """


def _nothing() -> None:
    """Stands for a dead reference: nothing is expected."""


def _deliver(
    expected: _Expected, number: int, answered: bool, error: BaseException | None, value: Any
) -> None:
    """Wakes the waiter, perhaps more than once."""
    what = expected.get(number)
    if isinstance(what, asyncio.Event):
        what.set()
    elif isinstance(what, asyncio.Future) and answered and not what.done():
        if error is None:
            what.set_result(value)
        else:
            what.set_exception(error)


class Channel:
    """Delivers answers to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not the loop itself, which is the key of this channel in a weak dictionary.
        self._loop = weakref.ref(loop)
        self.inbox = _Inbox()
        self._numbers = itertools.count(1)
        self._expected: Callable[[], _Expected | None] = _nothing

    def number(self) -> int:
        """A new number to expect something under."""
        return next(self._numbers)

    def expect(self, number: int, what: asyncio.Future[Any] | asyncio.Event) -> None:
        """Makes the loop watch the inbox for as long as something is expected."""
        expected = self._expected()
        if expected is None:
            expected = _Expected()
            self._expected = weakref.ref(expected)
            loop = self._loop()
            assert loop is not None
            loop.add_reader(self.inbox.fileno(), self._ready, expected)
        expected[number] = what

    def forget(self, number: int) -> None:
        """Nobody waits for this number any more."""
        expected = self._expected()
        if expected is None:
            return
        expected.pop(number, None)
        loop = self._loop()
        if not expected and loop is not None and not loop.is_closed():
            self._expected = _nothing
            loop.remove_reader(self.inbox.fileno())

    def _ready(self, expected: _Expected) -> None:
        self.inbox.deliver(_deliver, expected)

    async def ask(self, start: Callable[[_Inbox, int], Any]) -> Any:
        """Starts something and waits for its answer, unless it is available immediately."""
        loop = self._loop()
        assert loop is not None
        future: asyncio.Future[Any] = loop.create_future()
        number = self.number()
        try:
            self.expect(number, future)
            answer = start(self.inbox, number)
            return await future if answer is None else answer
        finally:
            self.forget(number)


async def sleep(woken: asyncio.Event, seconds: float) -> None:
    """Sleeps until `woken` is set, but no longer than `seconds`."""
    timer = asyncio.get_running_loop().call_later(seconds, woken.set)
    try:
        await woken.wait()
    finally:
        timer.cancel()


class Acquiring:
    """A coroutine's attempt to acquire."""

    def __init__(self, begin: Callable[[_Inbox, int], _Acquisition]) -> None:
        self._begin = begin
        self._acquisition: _Acquisition | None = None

    async def run(self) -> tuple[str, Level]:
        """Waits for the lock; returns the token and the level that was entered.

        A signal handler may raise after each call, and also in the caller, who then has to
        call :meth:`give_up`.
        """
        channel = current()
        woken = asyncio.Event()
        number = channel.number()
        try:
            channel.expect(number, woken)
            acquisition = self._acquisition = self._begin(channel.inbox, number)
            while True:
                woken.clear()
                pause = await channel.ask(acquisition.step)
                if pause is True:
                    accepted = acquisition.accept()
                    if accepted is not None:
                        channel.forget(number)
                        return accepted
                    continue
                await sleep(woken, pause)
        except BaseException:
            # Even if the lock was acquired while the task was being cancelled.
            self.give_up()
            channel.forget(number)
            raise

    def give_up(self) -> None:
        """Leaves neither a hold nor a place in the queue."""
        if self._acquisition is not None:
            self._acquisition.give_up()


async def finish(exit_: _Exit) -> None:
    """Waits for an exit that has begun, which goes on even if nobody waits."""
    try:
        channel = current()
    except RuntimeError:  # the loop is gone, and somebody is closing its coroutines
        return
    await channel.ask(exit_.finish)


_channels: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Channel] = (
    weakref.WeakKeyDictionary()
)


def current() -> Channel:
    """The channel of the running loop."""
    loop = asyncio.get_running_loop()
    channel = _channels.get(loop)
    if channel is None:
        channel = _channels[loop] = Channel(loop)
    return channel
