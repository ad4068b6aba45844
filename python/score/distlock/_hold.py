"""What :meth:`Lock.hold` returns."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from ._config import interval

if TYPE_CHECKING:
    from . import Lock


def lease(maxtime: object) -> float | None:
    """The lease of a hold, in seconds, from what a caller gave as ``maxtime``."""
    if maxtime is None:
        return None
    try:
        return interval(maxtime, "maxtime")
    except TypeError:
        raise
    except Exception as error:
        raise ValueError(str(error.args[-1])) from None


def callback(on_lost: Any) -> Any:
    """Checks what is to be called when a hold is lost."""
    if on_lost is None or callable(on_lost):
        return on_lost
    raise TypeError(f"on_lost must be callable, not {type(on_lost).__name__}")


@final
class Hold:
    """A context manager that acquires a lock with options. It can be used again."""

    __module__ = "score.distlock"

    def __init__(
        self,
        lock: Lock,
        timeout: float | None,
        autoextend: bool,
        maxtime: object,
        on_lost: Callable[[Lock], object] | None,
    ) -> None:
        self._lock = lock
        self._options = (timeout, autoextend, lease(maxtime), callback(on_lost))

    def __enter__(self) -> Lock:
        self._lock._enter(*self._options)
        return self._lock

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock._leave()
