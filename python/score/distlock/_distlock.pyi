"""The extension module; its public names are described in ``__init__.pyi``."""

from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, final, overload

from typing_extensions import Self

from . import ConfiguredDistlockModule as ConfiguredDistlockModule
from . import CouldNotAcquireLock as CouldNotAcquireLock
from . import Hold as Hold
from . import Lock as Lock
from . import LockExpired as LockExpired
from . import Lost as Lost
from . import __version__ as __version__
from . import init as init

def _schema(schema: str | None = None, role: str | None = None) -> str: ...
def _open(options: dict[str, Any]) -> ConfiguredDistlockModule: ...
def _inherited() -> list[int]: ...
def _statements(schema: str | None = None) -> list[tuple[str, str, list[str]]]: ...
def _waiting(name: str) -> tuple[int, int]: ...
def _understood(text: str, arguments: list[tuple[str, str]] = ...) -> dict[str, Any]: ...
def _left(level: tuple[int, int]) -> float | None: ...
def _next_event() -> tuple[str, Any, Any] | None: ...
def _deliver_all() -> None: ...
def _observe(conf: ConfiguredDistlockModule, callback: Callable[..., object] | None) -> None: ...
def _measured(
    conf: ConfiguredDistlockModule,
) -> tuple[list[str], list[tuple[str, int]], bool | None]: ...
def _next_seen() -> tuple[Context | None, Callable[..., object], tuple[Any, ...]] | None: ...

@final
class _Inbox:
    def __new__(cls) -> Self: ...
    def fileno(self) -> int: ...
    def empty(self, into: list[tuple[int, bool, BaseException | None, Any]]) -> None: ...

@final
class _Watch:
    def __new__(cls, inbox: _Inbox, number: int) -> Self: ...

@final
class _Confirmation:
    def in_time(self) -> str | None: ...

@final
class _Acquisition:
    def step(self, inbox: _Inbox, number: int) -> float | None: ...
    def accept(self) -> tuple[str, tuple[int, int]] | None: ...
    def give_up(self) -> None: ...

@final
class _Levels:
    def add(self, lock: Lock, level: tuple[int, int]) -> None: ...
    def keep(self) -> None: ...
    def abandon(self) -> None: ...
    def stop_extending(self) -> None: ...
    def release(self) -> None: ...
    def begin_exit(self) -> _Exit: ...

@final
class _Exit:
    def finish(self, inbox: _Inbox, number: int) -> None: ...

@final
class _Opened:
    def __new__(cls, lock: Lock) -> Self: ...
    def push(self, level: tuple[int, int]) -> None: ...

@final
class _Leaving:
    def __call__(self, *exception: object) -> Coroutine[Any, Any, None]: ...

@final
class _AsyncExit:
    def __new__(cls) -> Self: ...
    @overload
    def __get__(self, manager: None, class_: type[Any] | None = None, /) -> Self: ...
    @overload
    def __get__(self, manager: object, class_: type[Any] | None = None, /) -> _Leaving: ...

__all__ = [
    "ConfiguredDistlockModule",
    "CouldNotAcquireLock",
    "Hold",
    "Lock",
    "LockExpired",
    "Lost",
    "_Acquisition",
    "_AsyncExit",
    "_Confirmation",
    "_Exit",
    "_Inbox",
    "_Leaving",
    "_Levels",
    "_Opened",
    "_Watch",
    "__version__",
    "_deliver_all",
    "_inherited",
    "_left",
    "_measured",
    "_next_event",
    "_next_seen",
    "_observe",
    "_open",
    "_schema",
    "_statements",
    "_understood",
    "_waiting",
    "init",
]
