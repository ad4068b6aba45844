"""Who holds what: the records of holds that the module hands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST = datetime.min.replace(tzinfo=timezone.utc)
_LAST = datetime.max.replace(tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class HoldInfo:
    """What was known about a hold at one moment. It never contains the token.

    Whatever the row does not say is ``None``: a hold of score.distlock 0.2.5 has no fence, and
    says neither where it is held nor what for.
    """

    #: The name of the lock.
    name: str
    #: The fencing number, see :attr:`Lock.fence`; it tells this hold from any other.
    fence: int | None
    #: The machine that took it, by the name it has itself.
    host: str | None
    #: The number of the process there.
    pid: int | None
    #: The thread that took it, by its number in the operating system (``threading.native_id``).
    thread: int | None
    #: What the holder said about it.
    note: str | None
    #: When it was acquired.
    acquired: datetime
    #: When it ends unless it is extended, by the database's clock.
    expires: datetime
    #: How many processes wait for it.
    waiters: int


HoldInfo.__module__ = "score.distlock"


def _moment(seconds: float) -> datetime:
    """As near as a datetime gets: somebody may have written anything into the table."""
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return _LAST if seconds > 0 else _FIRST


def records(fields: Sequence[tuple[Any, ...]]) -> list[HoldInfo]:
    """What the core knows about holds, as objects."""
    return [
        HoldInfo(*who, _moment(acquired), _moment(expires), waiters)
        for *who, acquired, expires, waiters in fields
    ]


def record(fields: Sequence[tuple[Any, ...]]) -> HoldInfo | None:
    """The same of the only hold, if there is one."""
    found = records(fields)
    return found[0] if found else None
