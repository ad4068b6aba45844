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

    :ivar name: the name of the lock.
    :ivar fence: the fencing number; it tells this hold from any other of that name.
    :ivar host: the machine that took it, by the name it gives itself.
    :ivar pid: the number of the process there.
    :ivar thread: the thread that took it, by its number in the operating system
        (``threading.native_id``).
    :ivar note: what the holder said about it, see :meth:`Lock.hold`.
    :ivar acquired: when it was acquired, with its zone, which is UTC.
    :ivar expires: when it ends unless it is extended, by the database's clock.
    :ivar waiters: how many processes wait for it.
    """

    name: str
    fence: int | None
    host: str | None
    pid: int | None
    thread: int | None
    note: str | None
    acquired: datetime
    expires: datetime
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
    found = []
    for name, fence, host, pid, thread, note, acquired, expires, waiters in fields:
        times = (_moment(acquired), _moment(expires))
        found.append(HoldInfo(name, fence, host, pid, thread, note, *times, waiters))
    return found


def record(fields: Sequence[tuple[Any, ...]]) -> HoldInfo | None:
    """The same of the only hold, if there is one."""
    found = records(fields)
    return found[0] if found else None
