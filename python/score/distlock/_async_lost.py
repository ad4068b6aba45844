"""``lock.lost`` for coroutines."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, final

from ._channel import current, sleep
from ._distlock import Lost, _Watch
from ._hold import pause

if TYPE_CHECKING:
    from . import Lock


@final
class AsyncLost:
    """Whether the hold of a lock is lost, for coroutines; see :class:`~score.distlock.Lost`."""

    __module__ = "score.distlock.aio"

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._lost: Lost = lock.lost

    def __repr__(self) -> str:
        return repr(self._lost).replace(".Lost ", ".aio.AsyncLost ", 1)

    def __bool__(self) -> NoReturn:
        bool(self._lost)
        raise AssertionError

    def is_set(self) -> bool:
        """Whether the hold is lost."""
        return self._lost.is_set()

    async def wait(self, timeout: float | str | timedelta | None = None) -> bool:
        """Sleeps until the hold is lost.

        :param timeout: how long to sleep at most; see :meth:`~score.distlock.Lost.wait`.
        :returns: whether the hold is lost.
        """
        loop, channel, woken = asyncio.get_running_loop(), current(), asyncio.Event()
        end = loop.time() + pause(timeout)
        number = channel.number()
        try:
            channel.expect(number, woken)
            watch = _Watch(channel.inbox, number)  # noqa: F841 (kept until it returns)
            while not self.is_set():
                left = end - loop.time()
                if left <= 0:
                    return False
                woken.clear()
                # A hold taken in the meantime counts too; it is noticed within a second.
                await sleep(woken, min(left, self._lock.remaining or 1, 1))
            return True
        finally:
            channel.forget(number)
