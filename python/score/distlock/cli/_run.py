"""``score-distlock run``: runs a command only while it holds a lock."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from score.distlock import (
    ConfiguredDistlockModule,
    CouldNotAcquireLock,
    DatabaseError,
    HoldInfo,
    Lock,
    LockExpired,
)

from ._shown import duration, printable

#: Exit statuses, from sysexits.h where it has one. From 128: the signal that ended the command.
NO_DATABASE, NOT_ACQUIRED, LOST, NOT_EXECUTABLE, NOT_FOUND = 69, 75, 76, 126, 127
#: Signals that end a process, and others to forward; the sender means the command.
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_FORWARDED = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
#: Signals that must not end this process: they are meant for the command, or tell us about it. If
#: Ctrl-Z stopped us, the command would go on while nobody extends the hold.
_HARMLESS = (signal.SIGTSTP, signal.SIGCHLD, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2)
#: In seconds: how often to check whether the hold is lost; how long closing may take to release
#: what we still hold.
_LOOK, _FAREWELL = 0.5, 3.0


def say(message: str) -> None:
    """Prints one line for the user, or for the mail that cron sends."""
    if sys.stderr is not None:  # if it is closed, print() would use standard output instead
        with contextlib.suppress(OSError):
            print(f"score-distlock: {message}", file=sys.stderr, flush=True)


class Interrupted(BaseException):
    """A signal came while there was no command to forward it to."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Queues signals to forward; a context manager. :attr:`ending` tells if one came
    that ends a process.

    Until :attr:`forwarding` is set, they interrupt this process. Signals that the caller ignores,
    such as SIGHUP under nohup, stay ignored.
    """

    def __init__(self) -> None:
        self.forwarding = False
        self.ending = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Signals:
        self._reader, writer = os.pipe()
        for end in (self._reader, writer):
            os.set_blocking(end, False)
            self._stack.callback(os.close, end)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._stack.callback(signal.set_wakeup_fd, previous)
        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handle(number)
        for number in (*_HARMLESS, signal.SIGALRM):
            self._handle(number)
        self._stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _handle(self, number: int) -> None:
        self._stack.callback(signal.signal, number, signal.signal(number, self._arrived))

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        if number not in _HARMLESS and not self.forwarding:
            raise Interrupted(number)

    def forward(self) -> None:
        """From now on signals are queued; earlier ones were not meant for the command."""
        self.wait(0)
        self.forwarding = True

    def end_after(self, seconds: float) -> None:
        """Interrupts this process after that time, as a signal would."""
        self.forwarding = False
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))

    def wait(self, seconds: float) -> list[int]:
        """Waits for a signal, at most for `seconds`; returns those to forward."""
        select.select([self._reader], [], [], max(seconds, 0))
        with contextlib.suppress(BlockingIOError):
            arrived = [number for number in os.read(self._reader, 4096) if number in _FORWARDED]
            self.ending |= any(number in _ENDING for number in arrived)
            return arrived
        return []


@contextlib.contextmanager
def closing(conf: ConfiguredDistlockModule) -> Iterator[ConfiguredDistlockModule]:
    """Closes the module, and gives its pending releases a moment, but no longer.

    Without a database, closing would take as long as we wait for one.
    """
    try:
        yield conf
    finally:
        with contextlib.suppress(Interrupted, DatabaseError), Signals() as signals:
            signals.end_after(_FAREWELL)
            conf.close()


class Child:
    """The command, in its own session and process group."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            start_new_session=True,
            close_fds=False,  # inherited descriptors are for the command; ours are not inheritable
        )

    def status(self) -> int | None:
        """The exit status as a shell reports it, once the command has ended."""
        status = self._process.poll()
        return 128 - status if status is not None and status < 0 else status

    def send(self, number: int) -> None:
        """Sends a signal to the whole group."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            say(f"the command may not be sent {signal.Signals(number).name}: it is another user's")

    def end(self) -> None:
        """Kills the command and everything it has started."""
        self.send(signal.SIGKILL)
        self._process.wait()


@dataclass(frozen=True)
class Run:
    """What to run, and how. Times are in seconds."""

    name: str
    command: Sequence[str]
    wait: float | None
    maxtime: float
    kill_after: float
    at_least: float = 0
    terminate: bool = True
    refused: int = NOT_ACQUIRED
    quiet: bool = False
    note: str | None = None
    signals: Signals = field(default_factory=Signals)

    @property
    def reserve(self) -> float:
        """How much of the lease is left when the command gets SIGTERM."""
        return self.kill_after + min(2.0, self.maxtime / 8)

    def __call__(self, conf: ConfiguredDistlockModule) -> int:
        """Runs the command; returns the exit status."""
        status: int | None = None
        hold = conf.get(self.name).hold(
            timeout=self.wait,
            autoextend=True,
            maxtime=self.maxtime,
            note=self.note or printable(Path(self.command[0]).name)[:200],
        )
        try:
            with self.signals, hold as lock:
                self.signals.forward()
                status = self._started(lock)
                # Without a database, give up the release when the lease ends anyway.
                self.signals.end_after(lock.remaining)
        except Interrupted as interrupted:
            if status is None:
                return 128 + interrupted.number
            name = signal.Signals(interrupted.number).name
            why = "" if name == "SIGALRM" else f" before {name}"
            say(f"the lock {self.name!r} could not be released{why}; its lease ends it")
        except CouldNotAcquireLock as error:
            if not self.quiet:
                say(refusal(conf, error))
            return self.refused
        except LockExpired as error:
            if status is None:
                raise
            # Noticed only at the end, though somebody else may have had the lock earlier.
            if self.terminate and status != LOST:
                say(str(error))
                return LOST
        except DatabaseError as error:
            if status is None:
                raise
            say(f"the lock {self.name!r} could not be released; its lease ends it: {error}")
        return status if status is not None else LOST

    def _started(self, lock: Lock) -> int:
        began = time.monotonic()
        environment = {"DISTLOCK_NAME": self.name, "DISTLOCK_FENCE": str(lock.fence)}
        try:
            child = Child(self.command, environment)
        except OSError as error:
            say(f"{self.command[0]!r} cannot be executed: {error.strerror}")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        try:
            status = self._attend(lock, child)
        finally:
            if child.status() is None:
                child.end()
        # After a signal to end, or a loss, there is nothing to wait for.
        until = began + self.at_least
        while not self.signals.ending and not lock.expired and time.monotonic() < until:
            self.signals.wait(min(until - time.monotonic(), _LOOK))
        return status

    def _attend(self, lock: Lock, child: Child) -> int:
        """Attends the command to its end: forwards signals, and ends it before the lease ends."""
        danger: str | None = None
        kill_at: float | None = None
        pause = 0.0
        while True:
            for number in self.signals.wait(pause):
                child.send(number)
                if number in (signal.SIGHUP, signal.SIGTERM):
                    child.send(signal.SIGCONT)  # a stopped process would not notice
            status = child.status()
            if status is not None:
                if kill_at is None:
                    return status
                child.send(signal.SIGKILL)  # what the command has left behind
                return LOST
            if danger is None and (danger := self._danger(lock)):
                say(f"the hold of {self.name!r} {danger}")
                if self.terminate:
                    kill_at = time.monotonic() + self.kill_after
                    child.send(signal.SIGTERM)
                    child.send(signal.SIGCONT)
            if kill_at is None:
                left = lock.remaining - self.reserve
            elif (left := kill_at - time.monotonic()) <= 0:
                child.send(signal.SIGKILL)
            pause = min(max(left, 0.01), _LOOK)

    def _danger(self, lock: Lock) -> str | None:
        """Why the command cannot go on, if it cannot."""
        if lock.expired:
            if self.terminate:
                return "is lost: ending the command"
            return "is lost: the command goes on without it"
        left = lock.remaining
        if self.terminate and left <= self.reserve:
            return f"could not be extended, and ends in {left:.1f} s: ending the command"
        return None


def refusal(conf: ConfiguredDistlockModule, error: CouldNotAcquireLock) -> str:
    """Who holds the lock, since when, for how long, and how many wait."""
    if error.busy is not None:
        return str(error)
    info = None
    with contextlib.suppress(DatabaseError):  # it is refused either way
        info = conf.info(error.name)
    if info is None:
        return str(error)
    return f"the lock {error.name!r} is held by {holder(info)}"


def holder(info: HoldInfo) -> str:
    """The holder, in one line."""
    who = "somebody" if info.host is None else f"{printable(info.host)}, process {info.pid}"
    since = info.acquired.astimezone()
    age = duration((datetime.now(timezone.utc) - info.acquired).total_seconds())
    note = f" ({printable(info.note)})" if info.note else ""
    count = f"{info.waiters} waiter{'s' if info.waiters > 1 else ''}"
    waiters = f", and {count}" if info.waiters else ""
    return f"{who}{note}, since {since:%Y-%m-%d %H:%M:%S%z} ({age}){waiters}"
