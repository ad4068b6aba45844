"""The public API of :mod:`score.distlock`, compared with the built module by mypy.stubtest."""

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from logging import Logger
from types import ModuleType, TracebackType
from typing import Any, Final, NoReturn, TypeVar, final

from typing_extensions import Self, disjoint_base

from ._all import Holds as Holds
from ._configured_later import locked as locked
from ._connect import connect as connect
from ._connect import from_django as from_django
from ._distlock import _Acquisition, _Inbox, _Levels, _Transfer
from ._errors import CouldNotAcquireLock as CouldNotAcquireLock
from ._errors import DatabaseError as DatabaseError
from ._errors import DatabaseUnavailable as DatabaseUnavailable
from ._errors import DistlockError as DistlockError
from ._errors import LockExpired as LockExpired
from ._guard import AsyncGuard, Guard
from ._insight import HoldInfo as HoldInfo
from .aio import AsyncLock, AsyncModule

__all__ = (
    "ConfiguredDistlockModule",
    "CouldNotAcquireLock",
    "DatabaseError",
    "DatabaseUnavailable",
    "DistlockError",
    "Hold",
    "HoldInfo",
    "Lock",
    "LockExpired",
    "Lost",
    "__version__",
    "connect",
    "from_django",
    "init",
    "locked",
)

__version__: Final[str]

_Time = float | str | timedelta | None
_Function = TypeVar("_Function", bound=Callable[..., Any])

@final
class Lock:
    def __new__(cls, conf: ConfiguredDistlockModule, name: str) -> Self: ...
    @property
    def conf(self) -> ConfiguredDistlockModule: ...
    @property
    def name(self) -> str: ...
    @property
    def token(self) -> str | None: ...
    @property
    def fence(self) -> int | None: ...
    @property
    def remaining(self) -> float: ...
    @property
    def expired(self) -> bool: ...
    @property
    def lost(self) -> Lost: ...
    def acquire(self, *, timeout: _Time = "default") -> str: ...
    def try_acquiring(self) -> str | None: ...
    def extend(self, token: str | bytes | None = None) -> None: ...
    def release(self, token: str | bytes | None = None, ignore_expired: bool = False) -> None: ...
    def transfer(self, token: str | bytes | None = None) -> str: ...
    def guard(self, connection: Any, *, token: str | bytes | None = None) -> Guard: ...
    def hold(
        self,
        timeout: _Time = "default",
        autoextend: bool | None = None,
        maxtime: _Time = None,
        on_lost: Callable[[Lock], object] | None = None,
        *,
        note: str | None = None,
        on_expiring: Callable[[Lock, float], object] | None = None,
        warn_before: _Time = None,
    ) -> Hold: ...
    def _begin(
        self,
        inbox: _Inbox,
        wakeup: int,
        timeout: _Time,
        block: bool,
        autoextend: bool | None,
        maxtime: float | None,
        on_lost: Any,
        expiring: Any,
        lock: Any,
        note: str | None,
    ) -> _Acquisition: ...
    def _extend(self, inbox: _Inbox, number: int, token: str | bytes | None) -> None: ...
    def _release(self, inbox: _Inbox, number: int, token: str | bytes | None) -> None: ...
    def _transfer(self, token: str | bytes | None) -> _Transfer: ...
    def _async_guard(
        self, lock: AsyncLock, connection: Any, token: str | bytes | None
    ) -> AsyncGuard[AsyncLock]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None: ...

@final
class Lost:
    def is_set(self) -> bool: ...
    def wait(self, timeout: _Time = None) -> bool: ...
    def __bool__(self) -> NoReturn: ...

@final
class Hold:
    def __enter__(self) -> Lock: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None: ...

@disjoint_base
class ConfiguredDistlockModule:
    _finalized: bool
    _module_name: str
    def __new__(
        cls,
        engine: Any,
        maxtime: float | str | timedelta,
        *,
        reentrant: bool = True,
        timeout: _Time = 0,
        autoextend: bool = False,
        pool_size: int | None = None,
        max_overflow: int | None = None,
        pool_timeout: float | str | timedelta | None = None,
        pool_recycle: float | str | timedelta | None = None,
        pool_pre_ping: bool | None = None,
        echo: bool | None = None,
        isolation_level: str | None = None,
        table_owner: str | None = None,
        connect_args: Mapping[str, object] | None = None,
    ) -> Self: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...
    @property
    def engine(self) -> Any: ...
    @property
    def maxtime(self) -> float: ...
    @property
    def log(self) -> Logger: ...
    @property
    def _module(self) -> ModuleType: ...
    def get(self, name: str) -> Lock: ...
    def acquire(self, name: str, *, timeout: _Time = "default") -> str: ...
    def acquire_all(
        self,
        names: Iterable[str],
        *,
        timeout: _Time = "default",
        autoextend: bool | None = None,
    ) -> Holds: ...
    def locked(
        self,
        name: str,
        *,
        timeout: _Time = "default",
        autoextend: bool | None = None,
        maxtime: _Time = None,
        on_lost: Callable[[Any], object] | None = None,
        on_expiring: Callable[[Any, float], object] | None = None,
        warn_before: _Time = None,
    ) -> Callable[[_Function], _Function]: ...
    @property
    def aio(self) -> AsyncModule: ...
    @property
    def _autoextend(self) -> bool: ...
    def _begin(self, name: str, inbox: _Inbox, wakeup: int, timeout: _Time) -> _Acquisition: ...
    def _levels(self) -> _Levels: ...
    def try_acquiring(self, name: str) -> str | None: ...
    def extend(self, name: str, token: str | bytes | None = None) -> None: ...
    def release(self, name: str, token: str | bytes | None = None) -> None: ...
    def transfer(self, name: str, token: str | bytes | None = None) -> str: ...
    def holders(self) -> list[HoldInfo]: ...
    def info(self, name: str) -> HoldInfo | None: ...
    def revoke(self, name: str, fence: int | None = None) -> HoldInfo | None: ...
    def _facts(self) -> list[tuple[str, str | None]]: ...
    def _waits(self) -> list[tuple[str, str]]: ...
    def _holders(self, inbox: _Inbox, number: int) -> None: ...
    def _info(self, inbox: _Inbox, number: int, name: str) -> None: ...
    def _revoke(self, inbox: _Inbox, number: int, name: str, fence: int | None) -> None: ...
    def vacuum(self, session: Any = None) -> None: ...
    def _finalize(self) -> None: ...

def init(confdict: Mapping[str, Any]) -> ConfiguredDistlockModule: ...
