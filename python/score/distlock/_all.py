"""Several locks at once: :meth:`ConfiguredDistlockModule.acquire_all`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, final

from ._errors import LockExpired

if TYPE_CHECKING:
    from . import ConfiguredDistlockModule, Lock


def ordered(names: Iterable[str]) -> list[str]:
    """The names in the order in which everybody acquires them: that of their code points."""
    if isinstance(names, (str, bytes)):
        raise TypeError(f"names must be several names, in a list for instance, not {names!r}")
    unique = set(names)
    for name in unique:
        if not isinstance(name, str):
            raise TypeError(f"the name of a lock must be a str, not {type(name).__name__}")
    return sorted(unique)


class Pace:
    """What is left of a timeout."""

    def __init__(self, timeout: float | None) -> None:
        self._until = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """In seconds; ``None`` is for ever."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())


@final
class Holds(dict[str, str]):
    """The tokens of several holds, by name. Leaving it as a context manager releases them."""

    __module__ = "score.distlock"

    def __init__(self, locks: list[Lock], tokens: dict[str, str]) -> None:
        super().__init__(tokens)
        self._locks = locks

    def release(self) -> None:
        """Releases all of them, also if the release of one fails; raises what failed first."""
        with contextlib.ExitStack() as stack:
            for lock in self._locks:
                stack.callback(lock._leave)

    def __enter__(self) -> Holds:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _entered(conf: ConfiguredDistlockModule, names: list[str], pace: Pace) -> Iterator[Lock]:
    for name in names:
        lock = conf.get(name)
        # What is held already stays alive while the others are waited for.
        lock._enter(pace.left(), True, None, None)
        yield lock


def acquire_all(
    conf: ConfiguredDistlockModule, names: Iterable[str], timeout: float | None, autoextend: bool
) -> Holds:
    """Acquires all of the locks, or none."""
    wanted = ordered(names)
    locks: list[Lock] = []
    with contextlib.ExitStack() as stack:
        for lock in _entered(conf, wanted, Pace(timeout)):
            stack.callback(lock._leave)
            locks.append(lock)
        for lock in locks:
            if lock.expired:
                raise LockExpired(lock.name, str(lock.token))
            if not autoextend:
                lock._stop_extending()
                if lock.remaining < 0.9 * conf.maxtime:
                    lock.extend()
        stack.pop_all()
    return Holds(locks, {lock.name: str(lock.token) for lock in locks})
