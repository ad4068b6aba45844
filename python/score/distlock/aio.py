"""The same locks for coroutines: ``conf.aio``.

Nothing here blocks the event loop, and a waiting coroutine occupies no thread. The
module talks to the database in a few threads of its own, whose answers arrive over
a file descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, final

from . import _config, _insight
from ._all import ordered
from ._async_all import AsyncHolds
from ._async_lost import AsyncLost
from ._cancel import Cancelling, current_task
from ._channel import Acquiring, current, finish, sleep
from ._distlock import _AsyncExit, _Exit, _Opened
from ._errors import CouldNotAcquireLock, LockExpired
from ._hold import callback, lease, warning
from ._hold import note as checked
from ._insight import HoldInfo

if TYPE_CHECKING:
    from . import ConfiguredDistlockModule, Lock
    from ._guard import AsyncGuard

__all__ = ("AsyncHold", "AsyncHolds", "AsyncLock", "AsyncLost", "AsyncModule")

_Time = float | str | timedelta | None
#: Seconds before the end of the lease, and the callback to call then.
_Warning = tuple[float, Callable[..., object]] | None

#: Tasks that callbacks have started and that are still running.
_callbacks: set[asyncio.Future[Any]] = set()


async def _leave(exit_: _Exit, manager: object, _kind: object, raised: object, *_: object) -> None:
    """Ends a block; a cancellation by `cancel_on_loss` goes no further."""
    scope = manager._scope() if isinstance(manager, AsyncHold) else None
    if scope is None or not await scope.end(raised):
        await finish(exit_)
        return
    # Someone else cancelled the task too, so it must end as cancelled.
    with contextlib.suppress(LockExpired):
        await finish(exit_)
    if not isinstance(raised, asyncio.CancelledError):
        raise asyncio.CancelledError


@final
class AsyncModule:
    """The locks of a configuration, for coroutines."""

    __module__ = "score.distlock.aio"

    def __init__(self, conf: ConfiguredDistlockModule) -> None:
        self._conf = conf
        self._alive: weakref.WeakValueDictionary[str, AsyncLock] = weakref.WeakValueDictionary()

    @property
    def conf(self) -> ConfiguredDistlockModule:
        """The configuration."""
        return self._conf

    async def close(self) -> None:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.close`."""
        # Not in a thread of ours: close() waits for those to end.
        await asyncio.get_running_loop().run_in_executor(None, self._conf.close)

    async def __aenter__(self) -> AsyncModule:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    def get(self, name: str) -> AsyncLock:
        """Returns the lock with this name: the same object for as long as it is referenced.

        :param name: any :class:`str` without NUL, including the empty one.
        """
        # By the text itself, whatever else a subclass may compare equal to.
        lock = self._alive.get(str.__str__(name)) if isinstance(name, str) else None
        if lock is None:
            lock = AsyncLock(self.conf.get(name))
            lock = self._alive.setdefault(lock.name, lock)
        return lock

    async def acquire(self, name: str, *, timeout: _Time = "default") -> str:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.acquire`."""
        conf = self._conf
        acquiring = Acquiring(lambda inbox, wakeup: conf._begin(name, inbox, wakeup, timeout))
        token, _ = await acquiring.run()
        return token

    async def try_acquiring(self, name: str) -> str | None:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.try_acquiring`."""
        try:
            return await self.acquire(name, timeout=0)
        except CouldNotAcquireLock:
            return None

    async def extend(self, name: str, token: str | bytes | None = None) -> None:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.extend`."""
        await self.get(name).extend(token)

    async def release(self, name: str, token: str | bytes | None = None) -> None:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.release`."""
        await self.get(name).release(token)

    async def transfer(self, name: str, token: str | bytes | None = None) -> str:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.transfer`."""
        return await self.get(name).transfer(token)

    async def holders(self) -> list[HoldInfo]:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.holders`."""
        return _insight.records(await current().ask(self._conf._holders))

    async def info(self, name: str) -> HoldInfo | None:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.info`."""
        conf = self._conf
        found = await current().ask(lambda inbox, number: conf._info(inbox, number, name))
        return _insight.record(found)

    async def revoke(self, name: str, fence: int | None = None) -> HoldInfo | None:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.revoke`.

        If the task is cancelled, the revocation goes on in the background.
        """
        conf = self._conf
        found = await current().ask(lambda inbox, number: conf._revoke(inbox, number, name, fence))
        return _insight.record(found)

    def acquire_all(
        self,
        names: Iterable[str],
        *,
        timeout: _Time = "default",
        autoextend: bool | None = None,
    ) -> AsyncHolds:
        """As :meth:`~score.distlock.ConfiguredDistlockModule.acquire_all`.

        Await the result, or use it in ``async with``:

        .. code-block:: python

            async with conf.aio.acquire_all(['from', 'to'], timeout=10) as tokens:
                await do_something_with_both()
        """
        if timeout != "default":
            timeout = _config.timeout(timeout)
        extended = _config.choice(autoextend, "autoextend")
        return AsyncHolds(self.conf, self.get, ordered(names), timeout, extended)


@final
class AsyncLock:
    """A named mutex for coroutines. ``conf.aio.get(name)`` returns one.

    It mirrors :class:`~score.distlock.Lock`; methods that query the database are coroutines.
    The owner of a hold is the asyncio task that acquired it; that task may acquire the lock
    again.

    .. code-block:: python

        async with conf.aio.get('mylock') as lock:
            await do_part_of_something()
            await lock.extend()
            await do_more_things()
    """

    __module__ = "score.distlock.aio"

    def __init__(self, lock: Lock) -> None:
        self._lock = self._ender = lock

    def __repr__(self) -> str:
        return repr(self._lock).replace(".Lock ", ".aio.AsyncLock ", 1)

    @property
    def conf(self) -> ConfiguredDistlockModule:
        """The configuration."""
        return self._lock.conf

    @property
    def name(self) -> str:
        """The name of the lock."""
        return self._lock.name

    @property
    def token(self) -> str | None:
        """See :attr:`~score.distlock.Lock.token`."""
        return self._lock.token

    @property
    def fence(self) -> int | None:
        """See :attr:`~score.distlock.Lock.fence`."""
        return self._lock.fence

    @property
    def remaining(self) -> float:
        """See :attr:`~score.distlock.Lock.remaining`."""
        return self._lock.remaining

    @property
    def expired(self) -> bool:
        """See :attr:`~score.distlock.Lock.expired`."""
        return self._lock.expired

    @property
    def lost(self) -> AsyncLost:
        """An :class:`AsyncLost`; see :attr:`~score.distlock.Lock.lost`."""
        return AsyncLost(self._lock)

    def _acquiring(
        self,
        timeout: _Time,
        block: bool,
        autoextend: bool | None = None,
        maxtime: float | None = None,
        on_lost: Callable[[AsyncLock], object] | None = None,
        expiring: _Warning = None,
        note: str | None = None,
    ) -> Acquiring:
        lock = self._lock
        told = None if on_lost is None else self._in_loop(on_lost)
        warned = None if expiring is None else (expiring[0], self._in_loop(expiring[1]))
        return Acquiring(
            lambda inbox, wakeup: lock._begin(
                inbox, wakeup, timeout, block, autoextend, maxtime, told, warned, self, note
            )
        )

    def _in_loop(self, callback: Callable[..., object]) -> Callable[..., None]:
        """Wraps a callback so that it runs in the coroutine's event loop."""
        # The core keeps the callback for as long as the block is open. A loop that is dropped must
        # go away nevertheless, for that is what ends its blocks.
        loop = weakref.ref(asyncio.get_running_loop())

        def call(*arguments: Any) -> None:
            result = callback(*arguments)
            if inspect.isawaitable(result):
                # The loop keeps only weak references to its tasks.
                task = asyncio.ensure_future(result)
                _callbacks.add(task)
                task.add_done_callback(_callbacks.discard)

        def schedule(*arguments: Any) -> None:
            running = loop()
            if running is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    running.call_soon_threadsafe(call, *arguments)

        return schedule

    async def acquire(self, *, timeout: _Time = "default") -> str:
        """Acquires the lock, or enters it once more if the task already owns it.

        A cancelled task leaves neither a hold nor a place in the queue.

        :param timeout: how long to wait if the lock is held elsewhere; see
            :meth:`~score.distlock.Lock.acquire`.
        :returns: the token of the hold, 256 hexadecimal digits.
        :raises CouldNotAcquireLock: if the lock is still held elsewhere after `timeout`.
        """
        token, _ = await self._acquiring(timeout, False).run()
        return token

    async def try_acquiring(self) -> str | None:
        """Like :meth:`acquire`, but does not wait, and returns ``None`` if the lock is held."""
        try:
            return await self.acquire(timeout=0)
        except CouldNotAcquireLock:
            return None

    async def extend(self, token: str | bytes | None = None) -> None:
        """Gives the hold another ``maxtime`` from now; see :meth:`~score.distlock.Lock.extend`."""
        lock = self._lock
        confirmed = await current().ask(lambda inbox, number: lock._extend(inbox, number, token))
        confirmed.in_time()

    async def release(self, token: str | bytes | None = None, ignore_expired: bool = False) -> None:
        """Leaves the hold once, or ends it; see :meth:`~score.distlock.Lock.release`.

        If the task is cancelled, the release goes on in the background.
        """
        lock = self._lock
        try:
            await current().ask(lambda inbox, number: lock._release(inbox, number, token))
        except LockExpired:
            if not ignore_expired:
                raise

    async def transfer(self, token: str | bytes | None = None) -> str:
        """Gives the hold a new token and voids the old one.

        See :meth:`~score.distlock.Lock.transfer`.
        """
        channel = current()
        woken = asyncio.Event()
        number = channel.number()
        transfer = self._lock._transfer(token)
        try:
            # Other calls with the same token come first.
            while (left := transfer.waits(channel.inbox, number)) is not None:
                channel.expect(number, woken)
                await sleep(woken, left)
                woken.clear()
            channel.forget(number)
            confirmed = await channel.ask(transfer.start)
            # From this call on the old token is void.
            return confirmed.in_time()  # type: ignore[no-any-return]
        except BaseException:
            # The caller knows only the old token, which is void by now, or may soon be.
            transfer.failed()
            channel.forget(number)
            raise

    def hold(
        self,
        timeout: _Time = "default",
        autoextend: bool | None = None,
        maxtime: _Time = None,
        on_lost: Callable[[AsyncLock], object] | None = None,
        *,
        note: str | None = None,
        on_expiring: Callable[[AsyncLock, float], object] | None = None,
        warn_before: _Time = None,
        cancel_on_loss: bool = False,
    ) -> AsyncHold:
        """Acquires the lock for an ``async with`` block, with options.

        See :meth:`~score.distlock.Lock.hold`.

        :param on_lost: called with this object in the event loop; it may be a coroutine function.
        :param on_expiring: likewise, with this object and the number of seconds left.
        :param cancel_on_loss: whether to cancel the task inside the block if the hold is
            lost. The end of the block turns that cancellation into
            :exc:`~score.distlock.LockExpired`.
        """
        if timeout != "default":
            timeout = _config.timeout(timeout)
        seconds = lease(maxtime)
        autoextend = _config.choice(autoextend, "autoextend")
        extended = self.conf._autoextend if autoextend is None else autoextend
        length = self.conf.maxtime if seconds is None else seconds
        expiring = warning(on_expiring, warn_before, length, extended)
        options = {
            "timeout": timeout,
            "block": True,
            "autoextend": autoextend,
            "maxtime": seconds,
            "on_lost": callback(on_lost),
            "expiring": expiring,
            "note": checked(note),
        }
        return AsyncHold(self, options, _config.flag(cancel_on_loss, "cancel_on_loss"))

    def guard(self, connection: Any, *, token: str | bytes | None = None) -> AsyncGuard[AsyncLock]:
        """Guards the caller's own transaction on the same database.

        See :meth:`~score.distlock.Lock.guard`.

        :param connection: an open connection of asyncpg, an ``AsyncConnection`` of psycopg 3, or
            an ``AsyncConnection`` or ``AsyncSession`` of SQLAlchemy, within a transaction.
        """
        return self._lock._async_guard(self, connection, token)

    async def __aenter__(self) -> AsyncLock:
        await self._acquiring("default", True).run()
        return self

    __aexit__ = _AsyncExit()


@final
class AsyncHold:
    """What :meth:`~score.distlock.aio.AsyncLock.hold` returns: an asynchronous context manager.

    It is reusable.
    """

    __module__ = "score.distlock.aio"

    def __init__(self, lock: AsyncLock, options: dict[str, Any], cancel_on_loss: bool) -> None:
        self._lock = lock
        self._options = options
        self._cancel_on_loss = cancel_on_loss
        self._scopes: list[Cancelling] = []
        self._ender = _Opened(lock._lock)

    async def __aenter__(self) -> AsyncLock:
        options = self._options
        if self._cancel_on_loss:
            scope = Cancelling(options["on_lost"])
            options = {**options, "on_lost": scope.lost}
            self._scopes.append(scope)
        acquiring = self._lock._acquiring(**options)
        try:
            _, level = await acquiring.run()
            self._ender.push(level)
        except BaseException:
            acquiring.give_up()
            if self._cancel_on_loss:
                self._scopes.remove(scope)
            raise
        return self._lock

    def _scope(self) -> Cancelling | None:
        """The scope of the block that ends: the current task's innermost, or else the oldest."""
        task = current_task()
        own = [scope for scope in self._scopes if scope.is_of(task)] or self._scopes[:1]
        if not own:
            return None
        self._scopes.remove(own[-1])
        return own[-1]

    __aexit__ = _AsyncExit()
