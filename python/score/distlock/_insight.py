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
    """What was known about a hold at one moment, without its token.

    A field is ``None`` if the row does not say: a hold of score.distlock 0.2.5 has no fence, and
    tells neither where it is held nor what for.

    :ivar name: the name of the lock.
    :ivar fence: the fencing number, different for every hold of that name.
    :ivar host: the host name of the machine that acquired it.
    :ivar pid: the process id on that machine.
    :ivar thread: the thread that acquired it, by its id in the operating system
        (``threading.native_id``).
    :ivar note: the holder's note, see :meth:`Lock.hold`.
    :ivar acquired: when it was acquired, in UTC and timezone-aware.
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
    """The nearest datetime: somebody may have written anything into the table."""
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return _LAST if seconds > 0 else _FIRST


def records(fields: Sequence[tuple[Any, ...]]) -> list[HoldInfo]:
    """The core's records of holds, as objects."""
    found = []
    for name, fence, host, pid, thread, note, acquired, expires, waiters in fields:
        times = (_moment(acquired), _moment(expires))
        found.append(HoldInfo(name, fence, host, pid, thread, note, *times, waiters))
    return found


def record(fields: Sequence[tuple[Any, ...]]) -> HoldInfo | None:
    """The same for at most one hold."""
    found = records(fields)
    return found[0] if found else None
