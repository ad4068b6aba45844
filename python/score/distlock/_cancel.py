"""Cancelling the task inside a block when its hold is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Cancelling:
    """Cancels the task inside a block when its hold is lost."""

    def __init__(self, on_lost: Callable[[Any], object] | None) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("cancel_on_loss needs a task of asyncio")
        self.task = task
        self._on_lost = on_lost
        self._before = self._count("cancelling")
        self._open = True
        self._cancelled = False

    def _count(self, method: str) -> int:
        """How often the task was asked to cancel; Python 3.10 does not count."""
        count = getattr(self.task, method, None)
        return 0 if count is None else count()

    def lost(self, lock: object) -> object:
        """Called when the hold is lost."""
        if self._open:
            self._cancelled = True
            self.task.cancel()
        return None if self._on_lost is None else self._on_lost(lock)

    async def end(self, raised: object) -> bool:
        """Called when the block ends. Returns whether somebody else cancelled the task too."""
        self._open = False
        if not self._cancelled or asyncio.current_task() is not self.task:
            return False
        arrived = isinstance(raised, asyncio.CancelledError)
        if not arrived:
            try:
                await asyncio.sleep(0)  # the block may have awaited nothing since
            except asyncio.CancelledError:
                arrived = True
        return self._count("uncancel") > self._before and arrived
