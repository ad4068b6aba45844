"""Several locks at once, for coroutines."""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, final

from ._all import Pace, Tokens
from ._channel import finish
from ._distlock import _AsyncExit, _Levels
from ._errors import DatabaseError, LockExpired

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import ConfiguredDistlockModule


@final
class AsyncHolds(Tokens):
    """The tokens of several holds, by name, once the caller has awaited or entered it."""

    __module__ = "score.distlock.aio"

    def __init__(
        self,
        conf: ConfiguredDistlockModule,
        get: Callable[[str], Any],
        names: list[str],
        timeout: float | str | timedelta | None,
        autoextend: bool | None,
    ) -> None:
        self._conf = conf
        self._get = get
        self._names = names
        self._timeout = timeout
        self._autoextend = conf._autoextend if autoextend is None else autoextend
        self._ender = conf._levels()  # until it is entered, there is nothing to release
        self._locks: list[Any] = []

    async def _acquire(self) -> AsyncHolds:
        if self._levels is not None:
            try:
                self._check()
            except LockExpired:
                with contextlib.suppress(DatabaseError, LockExpired):
                    await self.release()
                raise
            return self
        levels = self._conf._levels()
        try:
            self.update(await self._enter_all(levels))
            self._process = os.getpid()
            self._ender = self._levels = levels
            return self
        except BaseException as error:
            self._levels = None
            if isinstance(error, Exception):
                # The library repeats in the background what fails here.
                with contextlib.suppress(DatabaseError, LockExpired):
                    await finish(levels.begin_exit())
            levels.abandon()
            raise

    async def _enter_all(self, levels: _Levels) -> dict[str, str]:
        # By now, anything but 'default' is seconds.
        pace = None if isinstance(self._timeout, str) else Pace(self._timeout)  # type: ignore[arg-type]
        tokens = {}
        # As long as these are referenced, `conf.aio.get` returns them, so the task may enter again.
        locks = self._locks = []
        for name in self._names:
            lock = self._get(name)
            # Keep what is already held alive while waiting for the others.
            timeout = self._timeout if pace is None else pace.left()
            token, level = await lock._acquiring(timeout, True, True).run()
            levels.add(lock._lock, level)
            tokens[name] = token
            locks.append(lock)
        levels.check()
        if not self._autoextend:
            levels.stop_extending()
            for lock in locks:
                if lock.remaining < 0.9 * lock.conf.maxtime:
                    await lock.extend()
        return tokens

    def __await__(self) -> Any:
        return self._acquire().__await__()

    async def release(self) -> None:
        """Releases all of them, even if the release of one fails; raises the first failure.

        Call it again to repeat those that failed.
        """
        self._levels = None
        await finish(self._ender.begin_exit())

    async def __aenter__(self) -> AsyncHolds:
        # Before any await: another task may want to enter while this one waits.
        self._begin_block(self._levels is None or self._process == os.getpid(), self._names)
        try:
            return await self._acquire()
        except BaseException:
            self._in_block = False
            raise

    __aexit__ = _AsyncExit()
