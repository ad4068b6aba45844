"""Checks the options of :meth:`Lock.hold`."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from ._config import timeout
from ._distlock import _left
from ._refuse import shown

#: The maximum length of a note, in characters.
_MOST = 200


def lease(maxtime: object) -> float | None:
    """The lease of a hold, in seconds, from the caller's ``maxtime``."""
    return timeout(maxtime, "maxtime")


def callback(on_lost: Any) -> Any:
    """Checks the callback for the loss of a hold."""
    if on_lost is None or callable(on_lost):
        return on_lost
    raise TypeError(f"on_lost must be callable, not {type(on_lost).__name__}")


def callbacks(on_lost: Any, on_expiring: Any) -> None:
    """Checks the callbacks of a hold whose events are told in a thread, not in an event loop."""
    callback(on_lost)
    for name, function in (("on_lost", on_lost), ("on_expiring", on_expiring)):
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{name} must not be a coroutine function, as it is called in a thread without an "
                "event loop; conf.aio accepts one"
            )


def warning(
    on_expiring: Any, warn_before: Any, lease: float, extended: bool
) -> tuple[float, Callable[..., object]] | None:
    """The seconds before the end of a lease, and what to call then with the lock and the level."""
    if on_expiring is None:
        if warn_before is not None:
            raise TypeError("warn_before says when to call on_expiring, which is missing")
        return None
    if not callable(on_expiring):
        raise TypeError(f"on_expiring must be callable, not {type(on_expiring).__name__}")
    before = timeout(warn_before, "warn_before")
    if before is None:
        before = lease / 3
    elif not 0 < before < (lease / 2 if extended else lease):
        limit = "half of the lease, as autoextend renews it earlier" if extended else "the lease"
        raise ValueError(
            f"warn_before: {shown(warn_before)} must be more than 0 and less than {limit}"
        )
    return before, functools.partial(_warn, on_expiring, before)


def _warn(
    on_expiring: Callable[..., object], before: float, lock: Any, level: tuple[int, int]
) -> object:
    """Calls ``on_expiring(lock, seconds)``, unless the hold was extended or left since."""
    seconds = _left(level)
    if seconds is None or not 0 < seconds <= before:
        return None
    return on_expiring(lock, seconds)


def pause(seconds: Any) -> float:
    """How long to sleep; a negative number or NaN means not at all, as for an Event."""
    if isinstance(seconds, (int, float)) and not seconds > 0:
        return 0.0
    limit = timeout(seconds)
    return math.inf if limit is None else limit


def note(text: object) -> str | None:
    """Checks the note of a hold: it is shown on terminals, and written with each acquisition."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"note must be a str, not {type(text).__name__}")
    text = str.__str__(text)
    if len(text) > _MOST or not text.isprintable():
        raise ValueError(
            f"note must be a line of at most {_MOST} printable characters, not {shown(text)}"
        )
    return text or None
