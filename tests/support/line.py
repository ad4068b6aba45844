"""Waits for changes of the table, without guessing how long they take."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from score.distlock import DatabaseUnavailable
from score.distlock._distlock import _waiting

Db = psycopg.Connection[Any]
Result = TypeVar("Result")


#: Linux lists this process's threads here.
TASKS = Path("/proc/self/task")


def patiently(work: Callable[[], Result]) -> Result:
    """The result of work whose time limit a busy machine may exceed a few times."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            return work()


def threads() -> set[str]:
    """The ids of this process's threads, including Rust's; empty if the system lists none."""
    return {task.name for task in TASKS.iterdir()} if TASKS.is_dir() else set()


def tickets(db: Db, name: str = "name") -> int:
    """How many tickets are in the queue of a lock: one for each process that waits."""
    query = "SELECT coalesce(cardinality(waiters), 0) FROM _score_distlock WHERE name = %s"
    row = db.execute(query, (name,)).fetchone()
    return int(row[0]) if row else 0


def waiting(db: Db, name: str = "name") -> int:
    """How many wait for a lock: those of this process, and one for each ticket of another."""
    waiters, own = _waiting(name)
    return tickets(db, name) - own + waiters


def wait_until_waiting(db: Db, count: int, name: str = "name") -> None:
    """Returns when this many wait, the first of each process in the queue; limited by the test's
    own timeout.
    """
    while True:
        before, queued = _waiting(name), tickets(db, name)
        waiters, own = before
        # The row has a ticket a moment before this process counts it as its own.
        settled = before == _waiting(name) and (own > 0 or waiters == 0)
        if settled and queued - own + waiters == count and (queued > 0 or count == 0):
            return
        time.sleep(0.002)


def until(condition: Callable[[], Any]) -> None:
    """Returns when the condition is true; limited by the test's own timeout."""
    while not condition():
        time.sleep(0.002)


def not_logged(errors: str) -> list[str]:
    """What a program has printed beside the library's records.

    Those are that a hold is lost, and that the server does not answer in time, which for a lease of
    milliseconds happens on a busy machine.
    """
    logged = ("the hold of ", "the database at ")
    return [line for line in errors.splitlines() if not line.startswith(logged)]


def stand_still(db: Db, pid: int) -> None:
    """Stops a process at a moment when its server processes are idle too."""
    os.kill(pid, signal.SIGSTOP)
    query = """
        SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
    """
    for _ in range(20):  # the server may not have read the last message yet
        until(lambda: db.execute(query).fetchone() == (0,))


def outlive(db: Db, name: str = "name") -> None:
    """Returns when the current lease of `name` would have expired."""
    query = "SELECT pg_sleep_until(expires) FROM _score_distlock WHERE name = %s"
    assert db.execute(query, (name,)).fetchone() is not None


def renewed(db: Db, names: list[str], times: int, unless: Callable[[], Any]) -> None:
    """Returns when each of these holds was renewed this many times, or when `unless` is true."""
    # `touched` is in the host's zone; `expires - lease` is the same moment.
    query = """
        SELECT count(*) FROM _score_distlock
         WHERE name = ANY (%s) AND expires - make_interval(secs => lease) > %s
    """
    for _ in range(times):
        row = db.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        while db.execute(query, (names, row[0])).fetchone() != (len(names),) and not unless():
            time.sleep(0.002)


class Background:
    """Runs something in a thread; :meth:`result` waits for it and raises its exception."""

    def __init__(self, work: Any, *arguments: Any, **options: Any) -> None:
        self._outcome: list[Any] = []
        self._error: BaseException | None = None
        self._call = (work, arguments, options)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        work, arguments, options = self._call
        try:
            self._outcome.append(work(*arguments, **options))
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """What the work returned."""
        self.thread.join()
        if self._error is not None:
            raise self._error
        return self._outcome[0]
