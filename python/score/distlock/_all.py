"""Several locks at once: :meth:`ConfiguredDistlockModule.acquire_all`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, final

from ._distlock import _enter_all, _Method, _release_all

if TYPE_CHECKING:
    from . import Lock
    from ._distlock import _Levels


def ordered(names: Iterable[str]) -> list[str]:
    """The names in the order in which every caller acquires them: by code point."""
    if isinstance(names, (str, bytes)):
        raise TypeError(f"names must be several names, in a list for instance, not {names!r}")
    unique = set()
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"the name of a lock must be a str, not {type(name).__name__}")
        unique.add(str.__str__(name))  # the text itself, whatever else it compares equal to
    return sorted(unique)


class Pace:
    """The time left of a timeout."""

    def __init__(self, timeout: float | None) -> None:
        self._until = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Seconds; ``None`` means for ever."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())


_Result = TypeVar("_Result")


def _reading(method: Callable[..., _Result]) -> Callable[..., _Result]:
    """Wraps a method of :class:`dict` that may reveal a token."""

    def read(self: Tokens, *args: Any) -> _Result:
        self._read()
        return method(self, *args)

    read.__name__ = method.__name__
    read.__doc__ = method.__doc__
    return read


class Tokens(dict[str, str]):
    """Tokens by name. Until somebody reads one, the holds end with this object.

    An interrupt may come after the holds were acquired and before their ``with`` block begins.
    Python then drops this object, and the holds end with it. A caller who reads a token outside
    a block has to release it.
    """

    _levels: _Levels | None = None
    _in_block = False

    def __repr__(self) -> str:
        # A repr ends up in logs, and anyone who has a token can end the hold.
        names = ", ".join(map(repr, self)) or "no lock"
        return f"<{self.__module__}.{type(self).__name__} of {names}>"

    def _begin_block(self, here: bool, names: Iterable[str]) -> None:
        """Enters a block: only one at a time, and only in the process that has the holds."""
        if self._in_block or not here:
            raise ValueError(
                f"nothing is held here: the holds of {', '.join(map(repr, names))} can be entered"
                " once, by the process that has acquired them; call acquire_all() again"
            )
        self._in_block = True

    def _check(self) -> None:
        """Raises :class:`LockExpired` if one of the holds is lost."""
        if self._levels is not None:
            self._levels.check()

    def _read(self) -> None:
        if self._levels is not None and not self._in_block:
            self._levels.keep()

    __getitem__ = _reading(dict.__getitem__)
    get = _reading(dict.get)  # type: ignore[assignment]
    items = _reading(dict.items)
    values = _reading(dict.values)
    pop = _reading(dict.pop)
    popitem = _reading(dict.popitem)
    setdefault = _reading(dict.setdefault)  # type: ignore[assignment]
    copy = _reading(dict.copy)
    __or__ = _reading(dict.__or__)  # type: ignore[assignment]
    __ror__ = _reading(dict.__ror__)  # type: ignore[assignment]
    __eq__ = _reading(dict.__eq__)
    __hash__ = None

    def __iter__(self) -> Iterator[str]:
        # Overriding it makes dict() and ** call the methods above instead of copying at once.
        return super().__iter__()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


@final
class Holds(Tokens):
    """The tokens of several holds, by name. Leaving it as a context manager releases them."""

    __module__ = "score.distlock"

    def __init__(self, levels: _Levels, locks: list[tuple[Lock, str]], autoextend: bool) -> None:
        super().__init__({lock.name: token for lock, token in locks})
        self._levels = levels
        # As long as these are referenced, `conf.get` returns them, so the owner may enter again.
        self._locks: list[tuple[Lock, str]] | None = locks
        self._process = os.getpid()
        levels.check()
        if not autoextend:
            levels.stop_extending()
            for lock, _ in locks:
                if lock.remaining < 0.9 * lock.conf.maxtime:
                    lock.extend()

    def release(self) -> None:
        """Releases all of them, even if the release of one fails; raises the first failure.

        Call it again to repeat those that failed.
        """
        _release_all(self)

    __enter__ = _Method(_enter_all)
    __exit__ = _Method(_release_all)
