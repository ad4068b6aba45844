"""Looking into the queue of waiters, without guessing how long something takes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from score.distlock._distlock import _waiting

Db = psycopg.Connection[Any]


#: Where the threads of this process are listed, on Linux.
TASKS = Path("/proc/self/task")


def threads() -> int:
    """How many threads this process has, those of Rust included; 0 if nobody can tell."""
    return len(list(TASKS.iterdir())) if TASKS.is_dir() else 0


def tickets(db: Db, name: str = "name") -> int:
    """How many tickets are in the queue of a lock: one for each process that waits."""
    query = "SELECT coalesce(cardinality(waiters), 0) FROM _score_distlock WHERE name = %s"
    row = db.execute(query, (name,)).fetchone()
    return int(row[0]) if row else 0


def waiting(db: Db, name: str = "name") -> int:
    """How many wait for a lock: those of this process, and one for each other one's ticket."""
    waiters, own = _waiting(name)
    return tickets(db, name) - own + waiters


def wait_until_waiting(db: Db, count: int, name: str = "name") -> None:
    """Returns when so many wait, the first of each process in the queue; the test's own time
    limit ends it otherwise.
    """
    while waiting(db, name) != count or (count and not tickets(db, name)):
        time.sleep(0.002)


class Background:
    """Runs something in a thread; :meth:`result` waits for it and raises what it raised."""

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
