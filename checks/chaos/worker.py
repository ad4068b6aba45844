"""One process of the load: takes locks at random, uses resources, and records what it did.

Usage: worker.py FOLDER URL LOG SEED SUBJECT. It ends when FOLDER/over exists and its pending
calls have returned.

Runs with this module or, if SUBJECT is "0.2.5", with the original; "mixed" is this module
alongside the original. Each line of LOG is an event with its time by CLOCK_MONOTONIC, which is
the same for all processes of a machine:

* ``wait``: a call to acquire begins; ``got``, ``refused``, ``failed``: how it ended.
* ``believes``: at this time the process believed it had the hold.
* ``ended``: the process released the hold, between `since` and the event's time.
* ``lost``: the hold ended without a release.
* ``strange``: an undocumented exception.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import json
import os
import random
import select
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import score.distlock

FOLDER, URL, LOG, SEED, SUBJECT = sys.argv[1:]
OURS = SUBJECT != "0.2.5"
#: In seconds. 0.2.5 has only one length of lease.
LEASES = (1.0, 2.0) if SUBJECT == "ours" else (1.0,)
HOT = ["hot 0", "hot 1"]
WARM = [f"warm {number}" for number in range(4)]
THREADS = 3
TASKS = 3

KNOWN: tuple[type[BaseException], ...] = (score.distlock.LockExpired,)
REFUSED: tuple[type[BaseException], ...] = (score.distlock.CouldNotAcquireLock,)
if OURS:
    import psycopg

    from score.distlock import DatabaseError, DatabaseUnavailable

    KNOWN = (*KNOWN, DatabaseUnavailable, DatabaseError)

out = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def say(event: str, **details: object) -> None:
    """Writes one line immediately, so that it survives whatever happens next."""
    line = json.dumps({"at": time.monotonic(), "event": event, **details}) + "\n"
    os.write(out, line.encode())


def rest(seconds: float) -> None:
    """Like time.sleep, which fails under faketime 0.9.10 when the faked clock jumps."""
    select.select([], [], [], seconds)


def over() -> bool:
    """Whether to begin nothing new."""
    return Path(FOLDER, "over").exists()


class Refused(Exception):
    """The resource has seen a later fence."""


class Resource:
    """A counter in a file, with the highest fence and the number of writes.

    A process reads it and later writes one more. No update was lost as long as the value and the
    number of writes are equal.
    """

    SHAPE = struct.Struct("qqq")

    def __init__(self, kind: str, name: str) -> None:
        self.file = f"{FOLDER}/{kind} {name}"

    @contextmanager
    def _locked(self, fence: int | None) -> Iterator[tuple[int, int, int, int]]:
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            data = os.pread(descriptor, self.SHAPE.size, 0) or bytes(self.SHAPE.size)
            value, writes, highest = self.SHAPE.unpack(data)
            if fence is not None and fence < highest:
                raise Refused
            yield descriptor, value, writes, max(highest, fence or 0)
        finally:
            os.close(descriptor)

    def read(self, fence: int | None) -> int:
        """Returns the value; from now on holders of earlier fences can neither read nor write."""
        with self._locked(fence) as (descriptor, value, writes, highest):
            os.pwrite(descriptor, self.SHAPE.pack(value, writes, highest), 0)
            return int(value)

    def write(self, value: int, fence: int | None) -> None:
        """Replaces the value."""
        with self._locked(fence) as (descriptor, _, writes, highest):
            os.pwrite(descriptor, self.SHAPE.pack(value, writes + 1, highest), 0)


class Section:
    """The work done while holding a lock."""

    def __init__(self, rng: random.Random, name: str, token: str, fence: int | None) -> None:
        self.rng, self.name, self.token, self.fence = rng, name, token, fence

    def believed(self, holds: bool, at: float) -> bool:
        """Records a belief in the hold; `at` is a time before the check."""
        if holds:
            say("believes", name=self.name, token=self.token, since=at)
        return holds

    def pause(self) -> float:
        """How long to work: nearly always briefly, occasionally beyond the lease."""
        return self.rng.expovariate(100) if self.rng.random() < 0.97 else self.rng.uniform(0.5, 2.5)

    def kind(self) -> str:
        """Which resource to use."""
        return self.rng.choice(["plain", "fenced"] if self.fence is not None else ["plain"])

    def work(self, holds: Callable[[], bool]) -> Iterator[float]:
        """Yields pauses. `holds` tells whether the process still believes in the hold."""
        kind = self.kind()
        fence = self.fence if kind == "fenced" else None
        resource = Resource(kind, self.name)
        with suppress(Refused):
            at = time.monotonic()
            if not self.believed(holds(), at):
                return
            value = resource.read(fence)
            yield self.pause()
            at = time.monotonic()
            if self.believed(holds(), at):
                resource.write(value + 1, fence)

    def guarded(self, lock: Any) -> None:
        """Reads in one transaction, and writes in another under a guard."""
        query = "SELECT value FROM chaos_guarded WHERE name = %s"
        change = (
            "INSERT INTO chaos_guarded AS old (name, value, writes) VALUES (%(name)s, %(value)s, 1)"
            " ON CONFLICT (name) DO UPDATE SET value = %(value)s, writes = old.writes + 1"
        )
        try:
            with psycopg.connect(URL, connect_timeout=3) as db:
                row = db.execute(query, (self.name,)).fetchone()
                db.commit()
                rest(self.pause())
                with lock.guard(db, token=self.token):
                    db.execute(change, {"name": self.name, "value": (row[0] if row else 0) + 1})
        except psycopg.Error:
            pass  # a database failure; writes that were not committed do not count


def is_held(lock: Any, token: str) -> bool:
    """Whether a Lock believes in the hold with this token."""
    return bool(lock.token == token and not lock.expired and lock.remaining > 0)


def may_last(since: float) -> bool:
    """Whether a lease that began after `since`, unknown to any Lock, may not be over yet."""
    return time.monotonic() < since + LEASES[0]


class Unit:
    """A thread or task and its load."""

    def __init__(self, conf: Any, number: int) -> None:
        self.conf = conf
        self.who = f"{SEED}.{number}"
        self.rng = random.Random(f"{SEED} {number}")
        self.calls = 0

    def name(self) -> str:
        chance = self.rng.random()
        if chance < 0.5:
            return self.rng.choice(HOT)
        return self.rng.choice(WARM) if chance < 0.8 else f"cold {self.rng.randrange(1000)}"

    def begin(self, names: list[str], timeout: float | None) -> dict[str, object]:
        """Records the start of a call to acquire."""
        self.calls += 1
        call: dict[str, object] = {"call": f"{self.who}.{self.calls}", "names": names}
        say("wait", timeout=timeout, who=self.who, **call)
        return call

    def timeout(self) -> float | None:
        return self.rng.choice([0, 0, 0.2, 1.0, 5.0, None])

    def trouble(self, error: BaseException, call: dict[str, object]) -> None:
        """Records a call or block that failed."""
        if isinstance(error, REFUSED):
            say("refused", **call)
        elif isinstance(error, KNOWN):
            say("failed", why=f"{type(error).__name__}: {error}", **call)
        else:
            where = traceback.extract_tb(error.__traceback__)[-1]
            say("strange", why=f"{error!r} at {where.filename}:{where.lineno}", **call)

    def got(self, call: dict[str, object], name: str, token: str, fence: int | None) -> Section:
        say("got", name=name, token=token, fence=fence, **call)
        return Section(self.rng, name, token, fence)

    def give_back(self, section: Section, release: Callable[[], object]) -> None:
        """Calls `release`, and records the outcome."""
        since = time.monotonic()
        try:
            release()
        except KNOWN as error:
            say("lost", name=section.name, token=section.token, why=f"{error}")
        else:
            say("ended", name=section.name, token=section.token, since=since)


class Thread(Unit):
    """A thread with blocking calls."""

    def run(self) -> None:
        while not over():
            call: dict[str, object] = {}
            try:
                weights = [8, 2, 2, 2, 1] if OURS else [0, 0, 2, 2, 0]
                (step,) = self.rng.choices(
                    [self.block, self.several, self.by_token, self.handed, self.nested], weights
                )
                step(call)
            except Exception as error:
                self.trouble(error, call)
            rest(self.rng.expovariate(100))

    def do(self, section: Section, lock: Any) -> None:
        """The work of a block."""
        if self.rng.random() < 0.15:
            section.guarded(lock)
            return
        for pause in section.work(partial(is_held, lock, section.token)):
            rest(pause)
        if self.rng.random() < 0.2:
            since = time.monotonic()
            lock.extend()
            section.believed(True, since)

    def block(self, call: dict[str, object]) -> None:
        name = self.name()
        timeout = self.timeout()
        hold = self.conf.get(name).hold(
            timeout, autoextend=self.rng.random() < 0.3, maxtime=self.rng.choice(LEASES)
        )
        call.update(self.begin([name], timeout))
        with hold as lock:
            section = self.got(call, name, lock.token, lock.fence)
            call.clear()
            self.do(section, lock)
            since = time.monotonic()
        say("ended", name=name, token=section.token, since=since)

    def nested(self, call: dict[str, object]) -> None:
        name = self.name()
        lock = self.conf.get(name)
        call.update(self.begin([name], 1.0))
        with lock.hold(1.0) as outer:
            section = self.got(call, name, outer.token, outer.fence)
            call.clear()
            with lock.hold(1.0, autoextend=True):
                self.do(section, lock)
            for pause in section.work(partial(is_held, lock, section.token)):
                rest(pause)
            since = time.monotonic()
        say("ended", name=name, token=section.token, since=since)

    def several(self, call: dict[str, object]) -> None:
        names = sorted({self.name() for _ in range(3)})
        call.update(self.begin(names, 1.0))
        started = time.monotonic()
        with self.conf.acquire_all(names, timeout=1.0, autoextend=self.rng.random() < 0.5) as held:
            sections = [self.got(call, name, held[name], None) for name in names]
            call.clear()
            for section in sections:
                for pause in section.work(partial(may_last, started)):
                    rest(pause / 4)
            since = time.monotonic()
        for section in sections:
            say("ended", name=section.name, token=section.token, since=since)

    def by_token(self, call: dict[str, object]) -> None:
        """Acquires a lock, and releases it or leaves it to whoever finds the token."""
        name = self.name()
        since = time.monotonic()
        if OURS:
            timeout = self.timeout()
            call.update(self.begin([name], timeout))
            token = self.conf.acquire(name, timeout=timeout)
        else:
            call.update(self.begin([name], 0))
            token = self.conf.try_acquiring(name)
            if token is None:
                say("refused", **call)
                return
        section = self.got(call, name, token, None)
        call.clear()
        self.use(section, since)

    def use(self, section: Section, since: float) -> None:
        """Uses a token as long as the lease that began after `since` lasts."""
        for pause in section.work(partial(may_last, since)):
            rest(pause)
        name, token = section.name, section.token
        if self.rng.random() < 0.3:
            path = Path(FOLDER, "handed", str(random.randrange(1 << 60)))
            new = path.with_suffix(".new")
            new.write_text(json.dumps([name, token]))
            new.rename(path)
            return
        self.give_back(section, lambda: self.conf.release(name, token))

    def handed(self, call: dict[str, object]) -> None:
        """Takes over a hold from another thread or process."""
        for path in Path(FOLDER, "handed").iterdir():
            mine = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            if path.suffix:
                continue
            try:
                path.rename(mine)
            except FileNotFoundError:
                continue
            name, token = json.loads(mine.read_text())
            mine.unlink()
            section = Section(self.rng, name, token, None)
            try:
                if OURS and self.rng.random() < 0.3:
                    section.token = self.conf.transfer(name, token)  # does not extend the lease
                since = time.monotonic()
                self.conf.extend(name, section.token)
            except KNOWN as error:
                say("lost", name=name, token=token, why=f"{error}")
                return
            self.use(section, since)
            return


class Task(Unit):
    """Coroutines, some of which are cancelled."""

    async def run(self) -> None:
        while not over():
            call: dict[str, object] = {}
            try:
                if self.rng.random() < 0.3:
                    await asyncio.wait_for(self.block(call), self.rng.expovariate(20))
                else:
                    await self.block(call)
            except asyncio.TimeoutError:
                say("refused", **call)
            except Exception as error:
                self.trouble(error, call)
            await asyncio.sleep(self.rng.expovariate(100))

    async def block(self, call: dict[str, object]) -> None:
        name = self.name()
        timeout = self.timeout()
        lock = self.conf.aio.get(name)
        hold = lock.hold(
            timeout, autoextend=self.rng.random() < 0.3, maxtime=self.rng.choice(LEASES)
        )
        call.update(self.begin([name], timeout))
        async with hold:
            section = self.got(call, name, lock.token, lock.fence)
            call.clear()
            for pause in section.work(partial(is_held, lock, section.token)):
                await asyncio.sleep(pause)
            since = time.monotonic()
        say("ended", name=name, token=section.token, since=since)


def fork(conf: Any) -> None:
    """Forks at any moment. The child has no hold, disturbs nobody, and can take locks."""
    child = os.fork()
    if child:
        threading.Thread(target=os.waitpid, args=(child, 0), daemon=True).start()
        return
    try:
        signal.alarm(60)
        for name in (*HOT, *WARM):
            lock = conf.get(name)
            if lock.token is not None or lock.remaining:
                say("strange", why=f"a child has its parent's hold of {name}")
            with suppress(*REFUSED, *KNOWN), lock.hold(0.1, maxtime=1.0) as mine:
                say("got", name=name, token=mine.token, fence=mine.fence, names=[name])
                mine.extend()
    except BaseException as error:
        say("strange", why=f"in a child: {error!r}")
    finally:
        os._exit(0)


def beat() -> None:
    """Records when this process stood still, whatever the reason."""
    last = time.monotonic()
    while True:
        rest(0.05)
        now = time.monotonic()
        if now - last > 0.25:
            say("stood still", since=last)
        last = now


def main() -> None:
    faulthandler.register(signal.SIGUSR2)
    settings = {"sqlalchemy.url": URL, "maxtime": f"{LEASES[0]:g}s"}
    if OURS:
        settings["sqlalchemy.pool_timeout"] = "5"
    while True:
        try:
            conf = score.distlock.init(settings)
            break
        except KNOWN:  # the process starts in the middle of a fault
            rest(0.2)
    if OURS:
        signal.signal(signal.SIGUSR1, lambda *_: fork(conf))
    say(
        "begins",
        pid=os.getpid(),
        subject=SUBJECT,
        version=getattr(score.distlock, "__version__", "0.2.5"),
    )
    threading.Thread(target=beat, daemon=True).start()
    threads = [threading.Thread(target=Thread(conf, number).run) for number in range(THREADS)]
    for thread in threads:
        thread.start()

    async def tasks() -> None:
        await asyncio.gather(*(Task(conf, THREADS + number).run() for number in range(TASKS)))

    if OURS:
        if random.Random(SEED).random() < 0.5:
            with suppress(ImportError):
                import uvloop

                asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        asyncio.run(tasks())
    for thread in threads:
        while thread.is_alive():
            thread.join(0.1)
    say("ends")


if __name__ == "__main__":
    main()
