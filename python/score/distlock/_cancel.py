"""Cancelling the task inside a block when its hold is lost."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any


def current_task() -> asyncio.Task[Any] | None:
    """The current task; none if Python closes a coroutine whose loop is gone."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class Cancelling:
    """Cancels the task inside a block when its hold is lost."""

    def __init__(self, on_lost: Callable[[Any], object] | None) -> None:
        task = current_task()
        if task is None:
            raise RuntimeError("cancel_on_loss needs a task of asyncio")
        # The core keeps `lost` for as long as the block is open. A task whose loop is gone must be
        # collected nevertheless, for that is what ends its block.
        self._task = weakref.ref(task)
        self._on_lost = on_lost
        self._before = _count(task, "cancelling")
        self._open = True
        self._cancelled = False

    def is_of(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether it cancels this task."""
        return self._task() is task

    def lost(self, lock: object) -> object:
        """Called when the hold is lost."""
        task = self._task()
        if self._open and task is not None:
            self._cancelled = True
            task.cancel()
        return None if self._on_lost is None else self._on_lost(lock)

    async def end(self, raised: object) -> bool:
        """Called when the block ends. Returns whether somebody else cancelled the task too."""
        self._open = False
        task = current_task()
        if task is None or not self._cancelled or not self.is_of(task):
            return False
        arrived = isinstance(raised, asyncio.CancelledError)
        if not arrived:
            try:
                await asyncio.sleep(0)  # the block may have awaited nothing since
            except asyncio.CancelledError:
                arrived = True
        return _count(task, "uncancel") > self._before and arrived


def _count(task: asyncio.Task[Any], method: str) -> int:
    """How often the task was asked to cancel; Python 3.10 does not count."""
    count = getattr(task, method, None)
    return 0 if count is None else count()
