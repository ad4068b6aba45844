"""The exceptions of :mod:`score.distlock`. They pickle, keep their fields, and print a sentence."""

from __future__ import annotations

from collections.abc import Iterable

#: Why a hold was lost, and how messages say so.
REASONS = {
    "expired": "its lease has expired",
    "released": "it was released",
    "unreachable": "the database could not be reached in time to extend it",
    "unknown": "it has expired, was released, or the token is wrong",
}


def _shortened(token: str) -> str:
    """Enough of a token to tell it from others, too little to use it."""
    return f"{token[:8]}…" if len(token) > 8 else "…"


class DistlockError(Exception):
    """The base class of all exceptions of :mod:`score.distlock`."""

    __module__ = "score.distlock"


class CouldNotAcquireLock(DistlockError):
    """The lock is held elsewhere, or busy. ``args`` is ``(name,)``."""

    __module__ = "score.distlock"

    def __init__(self, name: str, *, busy: Iterable[int] | None = None) -> None:
        super().__init__(name)
        self._busy = None if busy is None else tuple(busy)  # in __dict__: pickle keeps it

    @property
    def name(self) -> str:
        """The name of the lock."""
        return str(self.args[0])

    @property
    def busy(self) -> tuple[int, ...] | None:
        """``None`` if the lock is held elsewhere.

        Otherwise nobody holds it, but another transaction (a guard, or an administrator's tool) has
        locked its row: the ``pid``, as in ``pg_stat_activity``, of every server process that
        has locked rows of the table.
        """
        return self._busy

    def __str__(self) -> str:
        if self.busy is None:
            return f"the lock {self.name!r} is held by somebody else"
        processes = ", ".join(map(str, self.busy)) or "one that is over by now"
        return (
            f"the lock {self.name!r} is held by nobody, but another transaction has its row "
            f"locked: server process {processes} (see pg_stat_activity)"
        )


class LockExpired(DistlockError):
    """The token does not, or no longer, belong to the lock's hold. ``args`` is ``(name, token)``.

    The hold was released or has expired, or the token was never right; :attr:`reason` tells which,
    if it is known. Printing the exception shows only the beginning of the token.
    """

    __module__ = "score.distlock"

    def __init__(self, name: str, token: str, *, reason: str = "unknown") -> None:
        if reason not in REASONS:
            raise ValueError(f"reason must be one of {', '.join(REASONS)}, not {reason!r}")
        super().__init__(name, token)
        self._reason = reason  # in __dict__, which pickle and copy keep

    @property
    def name(self) -> str:
        """The name of the lock."""
        return str(self.args[0])

    @property
    def token(self) -> str:
        """The token that was presented."""
        return str(self.args[1])

    @property
    def reason(self) -> str:
        """Why: ``expired``, ``released``, ``unreachable`` (for too long) or ``unknown``."""
        return self._reason

    def __str__(self) -> str:
        return (
            f"the hold of lock {self.name!r} with token {_shortened(self.token)} is lost: "
            f"{REASONS[self.reason]}"
        )

    def __repr__(self) -> str:
        reason = "" if self.reason == "unknown" else f", reason={self.reason!r}"
        return f"LockExpired({self.name!r}, {_shortened(self.token)!r}{reason})"


class DatabaseError(DistlockError):
    """PostgreSQL refused a statement. ``args`` is ``(message, sqlstate)``."""

    __module__ = "score.distlock"

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message, sqlstate)

    @property
    def message(self) -> str:
        """The server's message, and what to do about it, if that is known."""
        return str(self.args[0])

    @property
    def sqlstate(self) -> str | None:
        """The five characters of PostgreSQL's error code, if the server gave one."""
        code = self.args[1]
        return None if code is None else str(code)

    def __str__(self) -> str:
        return self.message if self.sqlstate is None else f"{self.message} [{self.sqlstate}]"


class DatabaseUnavailable(DatabaseError, ConnectionError):
    """The database could not be reached, or did not answer, within ``pool_timeout``.

    The outcome of the statement may be unknown. You can repeat the call: it
    goes on where this one stopped.
    """

    __module__ = "score.distlock"

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message, sqlstate)
        # OSError has taken the two arguments for errno and strerror.
        self.errno = None
        self.strerror = None
