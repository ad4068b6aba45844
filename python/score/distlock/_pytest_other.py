"""The second process of a test run: it holds locks elsewhere, competes, and tidies up.

A program of its own at the end of a pipe. It reads one command per line and answers each with
a line, both in JSON. It ends with the test run, however that ends, and drops its schemas.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from . import ConfiguredDistlockModule, CouldNotAcquireLock, DistlockError, LockExpired, init
from ._distlock import _statements

#: The prefix of all schemas; the session's number and then their own follow.
PREFIX = "distlock_test_"

_OURS = re.compile(PREFIX + r"([0-9a-f]{16})_[0-9]+")

#: How long this process's holds last, unless they are ended earlier.
_MAXTIME = "12h"

#: How long a schema's own transactions may delay dropping it, before we terminate them.
_LOCK_TIMEOUT = "2s"


class _Admin:
    """The plugin's own statements, through SQLAlchemy and whichever driver there is."""

    def __init__(self, url: str) -> None:
        self._conf = ConfiguredDistlockModule(url, 60)
        try:
            from sqlalchemy import text
        except ImportError as error:
            raise ImportError(
                "the fixtures need SQLAlchemy: pip install 'score.distlock[sqlalchemy]'"
            ) from error

        self._text = text
        # This connection's advisory lock shows others that this session is alive.
        self._own: Any = None

    def _connect(self) -> Any:
        return self._conf.engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def run(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        """Runs a statement, and again if the server was restarted in the meantime."""
        from sqlalchemy.exc import DBAPIError

        for last in (False, True):
            try:
                with self._connect() as connection:
                    return self._rows(connection.execute(self._text(statement), parameters))
            except DBAPIError as error:
                if last or not error.connection_invalidated:
                    raise
        raise AssertionError

    @staticmethod
    def _rows(result: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

    def claim(self, session: int) -> None:
        """Shows others that this session's schemas are in use."""
        self._own = self._connect()
        self._own.execute(self._text("SELECT pg_advisory_lock(:session)"), {"session": session})

    def sweep(self) -> None:
        """Drops the schemas of sessions that ended without doing so, as in a power failure."""
        for (schema,) in self.run("SELECT nspname FROM pg_namespace"):
            ours = _OURS.fullmatch(schema)
            if ours is None:
                continue
            # Failing to drop them is not this run's problem.
            with contextlib.suppress(Exception), self._connect() as connection:
                session = {"session": number(ours[1])}
                alone = self._text("SELECT pg_try_advisory_lock(:session)")
                if connection.execute(alone, session).scalar():
                    try:
                        self._drop(connection, schema)
                    finally:
                        unlock = self._text("SELECT pg_advisory_unlock(:session)")
                        connection.execute(unlock, session)

    def _drop(self, connection: Any, schema: str) -> None:
        connection.execute(self._text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))
        try:
            connection.execute(self._text(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE'))
        finally:
            connection.execute(self._text("RESET lock_timeout"))

    def drop(self, schema: str) -> None:
        """Drops a schema, and terminates what a test has left open in it."""
        for patient in (True, False):
            try:
                with self._connect() as connection:
                    self._drop(connection, schema)
                break
            except Exception:
                if not patient:
                    raise
                # Only participants of the test can have locked its tables.
                self.run(
                    """
                    SELECT pg_terminate_backend(pid)
                      FROM (SELECT DISTINCT pid
                              FROM pg_locks
                              JOIN pg_class AS class ON class.oid = relation
                              JOIN pg_namespace AS space ON space.oid = class.relnamespace
                             WHERE nspname = :schema AND pid <> pg_backend_pid()
                               AND pg_locks.database = (SELECT oid FROM pg_database
                                                         WHERE datname = current_database())
                           ) AS theirs
                    """,
                    schema=schema,
                )

    def close(self) -> None:
        """Ends the sessions."""
        if self._own is not None:
            with contextlib.suppress(Exception):
                self._own.close()
        self._conf.close()


def number(digits: str) -> int:
    """A session's digits as the integer that PostgreSQL's advisory locks need."""
    return int(digits, 16) - (1 << 63)


class _Wanted:
    """A hold of this process: wanted, held, failed, or ended."""

    def __init__(self, acquire: Callable[[_Wanted], str | None]) -> None:
        self.state = "waiting"
        self.ended = threading.Event()
        self._token: str | None = None
        self._acquire = acquire
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._token = self._acquire(self)
            self.state = "held"
        except CouldNotAcquireLock:
            self.state = "refused"
        except Exception as error:
            self.state = f"{type(error).__name__}: {error}"

    def end(self, release: Callable[[str], None]) -> None:
        self.ended.set()
        self._thread.join()
        token, self._token = self._token, None
        if token is not None:
            with contextlib.suppress(LockExpired):  # a test may have ended it
                release(token)


class _Schema:
    """The locks of one test."""

    def __init__(self, admin: _Admin, name: str, url: str) -> None:
        self._admin = admin
        self._table = f'"{name}"._score_distlock'
        self.conf = init({"sqlalchemy.url": url, "maxtime": _MAXTIME})
        releasing = next(sql for known, sql, _ in _statements(name) if known == "ReleaseAwaited")
        #: Wakes the first waiter, as a release does, given the row in `ended`.
        self._calling = releasing.partition("RETURNING waiters\n)\nSELECT ")[2]
        assert self._calling
        self._over = threading.Event()
        self._rivals: list[threading.Thread] = []

    def expire(self, name: str, token: str | None) -> str | None:
        """Expires a hold's lease, as if its time had passed; returns its token, if it was held."""
        rows = self._admin.run(
            f"""
            WITH ended AS (
            UPDATE {self._table}
               SET updated = updated - make_interval(secs => lease),
                   touched = updated - make_interval(secs => lease),
                   expires = now()
             WHERE name = :name AND (token = :token OR :token IS NULL)
               AND lease IS NOT NULL AND expires > clock_timestamp()
            RETURNING token, waiters
            )
            SELECT token, {self._calling}
            """,
            name=name,
            token=token,
        )
        return str(rows[0][0]) if rows else None

    def holds(self) -> list[tuple[str, str]]:
        """Names and tokens of all holds."""
        query = f"""
            SELECT name, token FROM {self._table}
             WHERE lease IS NOT NULL AND expires > clock_timestamp()
        """
        return [(str(name), str(token)) for name, token in self._admin.run(query)]

    def names(self) -> list[str]:
        """Names of recently used locks."""
        return [str(name) for (name,) in self._admin.run(f"SELECT name FROM {self._table}")]

    def hold(self, name: str, timeout: float) -> _Wanted:
        """Begins to acquire a lock, in short attempts, so that it can be given up."""

        def acquire(wanted: _Wanted) -> str | None:
            until = time.monotonic() + timeout
            while True:
                left = until - time.monotonic()
                try:
                    return self.conf.acquire(name, timeout=min(max(left, 0), 0.5))
                except CouldNotAcquireLock:
                    if left <= 0.5 or wanted.ended.is_set():
                        raise

        return _Wanted(acquire)

    def take(self, name: str, token: str, timeout: float) -> _Wanted:
        """Begins to take over what `token` held, unless somebody else is faster."""

        def acquire(wanted: _Wanted) -> str | None:
            until = time.monotonic() + timeout
            while True:
                mine = self.conf.try_acquiring(name)
                if mine is not None:
                    return mine
                if any(held == name and other != token for held, other in self.holds()):
                    return None
                if time.monotonic() > until or wanted.ended.is_set():
                    raise CouldNotAcquireLock(name)
                time.sleep(0.005)

        return _Wanted(acquire)

    def compete(self, names: list[str], rivals: int) -> None:
        """Makes rivals take the locks in turn until the test is over.

        Without names: the locks the test has used so far.
        """
        begun = threading.Semaphore(0)

        def run(seed: int) -> None:
            chance = random.Random(seed)
            try:
                for _ in iter(self._over.is_set, True):
                    wanted = names or self.names()
                    for name in chance.sample(wanted, len(wanted)):
                        self._contend(name, chance.uniform(0, 0.01))
                        begun.release()
                    self._over.wait(chance.uniform(0, 0.005) if wanted else 0.01)
            finally:
                begun.release()

        for seed in range(rivals):
            self._rivals.append(threading.Thread(target=run, args=(seed,), daemon=True))
            self._rivals[-1].start()
        if names and rivals:
            begun.acquire(timeout=10)

    def _contend(self, name: str, pause: float) -> None:
        # After an outage, or if a test has dropped the schema, the next round finds out.
        with contextlib.suppress(DistlockError):
            if self._over.is_set():
                return
            token = self.conf.acquire(name, timeout=0.2)
            try:
                self._over.wait(pause)
            finally:
                self.conf.release(name, token)

    def quiet(self) -> None:
        """Stops the rivals."""
        self._over.set()
        for rival in self._rivals:
            rival.join()


class Other:
    """Executes the test run's requests."""

    def __init__(self, url: str, session: str) -> None:
        self._admin = _Admin(url)
        self._admin.claim(number(session))
        self._schemas: dict[str, _Schema] = {}
        self._wanted: dict[int, tuple[_Schema, str, _Wanted]] = {}
        self._numbers = itertools.count()
        self._admin.sweep()

    def open(self, schema: str, url: str) -> None:
        """Creates the schema of a test."""
        self._admin.run(f'CREATE SCHEMA "{schema}"')
        try:
            self._schemas[schema] = _Schema(self._admin, schema, url)
        except BaseException:
            self._admin.drop(schema)
            raise

    def expire(self, schema: str, name: str, token: str | None) -> str | None:
        """See :meth:`_Schema.expire`."""
        return self._schemas[schema].expire(name, token)

    def holds(self, schema: str) -> list[tuple[str, str]]:
        """See :meth:`_Schema.holds`."""
        return self._schemas[schema].holds()

    def names(self, schema: str) -> list[str]:
        """See :meth:`_Schema.names`."""
        return self._schemas[schema].names()

    def compete(self, schema: str, names: list[str], rivals: int) -> None:
        """See :meth:`_Schema.compete`."""
        self._schemas[schema].compete(names, rivals)

    def _remember(self, schema: str, name: str, wanted: _Wanted) -> int:
        key = next(self._numbers)
        self._wanted[key] = (self._schemas[schema], name, wanted)
        return key

    def hold(self, schema: str, name: str, timeout: float) -> int:
        """Begins to acquire; returns the key to ask about it with."""
        return self._remember(schema, name, self._schemas[schema].hold(name, timeout))

    def take(self, schema: str, name: str, token: str, timeout: float) -> int:
        """Begins to take over; returns the key to ask about it with."""
        return self._remember(schema, name, self._schemas[schema].take(name, token, timeout))

    def state(self, key: int) -> str:
        """``waiting``, ``held``, ``refused``, or an error."""
        return self._wanted[key][2].state if key in self._wanted else "refused"

    def end(self, key: int) -> None:
        """Ends a hold; does nothing if it has already ended."""
        if key in self._wanted:
            schema, name, wanted = self._wanted.pop(key)
            wanted.end(lambda token: schema.conf.release(name, token))

    def quiet(self, schema: str) -> None:
        """Stops the rivals, and ends all holds of this process."""
        ours = self._schemas[schema]
        ours.quiet()
        for key in [key for key, (theirs, *_) in self._wanted.items() if theirs is ours]:
            with contextlib.suppress(DistlockError):  # the schema is dropped in any case
                self.end(key)

    def close(self, schema: str) -> None:
        """Drops the schema of a test."""
        if schema not in self._schemas:
            return
        self.quiet(schema)
        ours = self._schemas.pop(schema)
        try:
            with contextlib.suppress(DistlockError):
                ours.conf.close()
        finally:
            self._admin.drop(schema)

    def finish(self) -> None:
        """Drops what is left."""
        for schema in list(self._schemas):
            with contextlib.suppress(Exception):
                self.close(schema)
        self._admin.close()


def main() -> None:
    """Executes commands until the pipe ends."""
    other: Other | None = None
    # Nothing else that is printed may get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {"number": request["number"]}
        try:
            if other is None:
                other = Other(*request["arguments"])
            else:
                answer["value"] = getattr(other, request["do"])(*request["arguments"])
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(answer), file=answers, flush=True)
    if other is not None:
        other.finish()
