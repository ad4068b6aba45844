"""Threads, tasks, cuts, late answers, signals, cancellations and forks in combination.

A Hypothesis state machine over several names. After each step there is at most one live
hold of each name, nobody believes in a hold that the database does not have, and no two
believe in the same name; when everybody has left, nothing is held or queued.

``DISTLOCK_STATES=2000`` runs that many random examples.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import itertools
import os
import queue
import signal
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import score.distlock
from score.distlock import CouldNotAcquireLock, DatabaseUnavailable, LockExpired

from .support.proxy import Proxy

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
Work = Callable[[], Any]

EXAMPLES = int(os.environ.get("DISTLOCK_STATES", "0"))
NAMES = range(3)
TOLD = (CouldNotAcquireLock, LockExpired, DatabaseUnavailable, ValueError)
WHAT = st.sampled_from(["acquire", "with", "extended", "leave", "extend", "transfer"])
#: The limit, in seconds, for anything that has to happen eventually.
LIMIT = 15


class Thread:
    """A thread that runs given work, in given contexts."""

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while (item := self.work.get()) is not None:
            context, work, future = item
            try:
                future.set_result(context.run(work))
            except BaseException as error:
                future.set_exception(error)

    def submit(self, context: contextvars.Context, work: Work) -> Future[Any]:
        future: Future[Any] = Future()
        self.work.put((context, work, future))
        return future


class Actor:
    """A unit of work that uses locks."""

    asynchronous = False

    def __init__(self, number: int, conf: Conf, thread: Thread, alone: bool) -> None:
        self.number, self.conf, self.thread, self.alone = number, conf, thread, alone
        self.context = contextvars.Context()

    def lock(self, name: str) -> Any:
        return self.conf.get(name)

    def begin(self, work: Work) -> Future[Any]:
        return self.thread.submit(self.context, work)

    def end(self) -> None:
        self.thread.work.put(None)


class TaskActor(Actor):
    """A task in an event loop."""

    asynchronous = True

    def __init__(self, number: int, conf: Conf, loop: asyncio.AbstractEventLoop) -> None:
        self.number, self.conf, self.loop, self.alone = number, conf, loop, True
        self.work: asyncio.Queue[Any] = asyncio.Queue()
        self.busy = False
        self.begun = self.taken = 0
        self.task: asyncio.Future[None] = asyncio.run_coroutine_threadsafe(
            self.start(), loop
        ).result()

    async def start(self) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.run())

    def lock(self, name: str) -> Any:
        return self.conf.aio.get(name)

    async def run(self) -> None:
        while (item := await self.work.get()) is not None:
            work, future = item
            self.taken += 1
            try:
                self.busy = True
                outcome = work()
                if inspect.isawaitable(outcome):
                    outcome = await outcome
                self.busy = False
                future.set_result(outcome)
            except BaseException as error:
                self.busy = False
                future.set_exception(error)

    def begin(self, work: Work) -> Future[Any]:
        future: Future[Any] = Future()
        self.begun += 1
        self.loop.call_soon_threadsafe(self.work.put_nowait, (work, future))
        return future

    def cancel(self) -> None:
        """Cancels its current work, if there is any."""

        def cancel() -> None:
            if self.taken < self.begun:
                self.loop.call_soon(cancel)
            elif self.busy:
                self.task.cancel()

        self.loop.call_soon_threadsafe(cancel)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.work.put_nowait, None)


class Interrupted(BaseException):
    """Raised by the signal handler, like KeyboardInterrupt on Ctrl-C."""


class MainActor(Actor):
    """The main thread, which signals interrupt."""

    def __init__(self, number: int, conf: Conf) -> None:
        self.number, self.conf, self.alone = number, conf, True
        self.context = contextvars.Context()
        self.working = False

    def interrupt(self, *_: object) -> None:
        """The signal handler."""
        if self.working:
            self.working = False
            raise Interrupted

    def begin(self, work: Work) -> Future[Any]:
        future: Future[Any] = Future()
        results: list[Any] = []
        try:
            self.working = True
            # No bytecode, and so no handler, runs between the end of the work and the list.
            results.extend(map(self.context.run, [work]))
        except BaseException as error:
            self.working = False
            if not results:
                future.set_exception(error)
        self.working = False
        if results:
            future.set_result(results[0])
        return future

    def end(self) -> None:
        pass


def token_of(result: Any) -> Any:
    """The token if it is an entered Lock; anything else unchanged."""
    return result.token if isinstance(result, score.distlock.Lock) else result


@dataclass
class Level:
    """A level entered and not yet left."""

    block: Any  # the context manager, or None for an `acquire`
    token: str
    lease: str


runs = itertools.count()


class States(RuleBasedStateMachine):
    """Whoever believes in a hold really has it."""

    through: Conf
    direct: Conf
    proxy: Proxy
    url: str
    db: Db

    def __init__(self) -> None:
        super().__init__()
        self.run = next(runs)
        self.loop = asyncio.new_event_loop()
        self.loop_thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.loop_thread.start()
        shared = Thread()
        self.main = MainActor(7, self.through)
        signal.signal(signal.SIGUSR1, self.main.interrupt)
        self.actors: list[Actor] = [
            Actor(0, self.through, Thread(), True),
            Actor(1, self.through, shared, False),
            Actor(2, self.through, shared, False),
            TaskActor(3, self.through, self.loop),
            TaskActor(4, self.through, self.loop),
            Actor(5, self.direct, Thread(), True),
            TaskActor(6, self.direct, self.loop),
            self.main,
        ]
        self.names = [f"states {self.run} {number}" for number in NAMES]
        # Referenced, so that all actors share them.
        self.locks = {(conf, name): conf.get(name) for conf in self.confs for name in self.names}
        self.async_locks = {key: key[0].aio.get(key[1]) for key in self.locks}
        self.levels: dict[tuple[int, str], list[Level]] = {
            (actor.number, name): [] for actor in self.actors for name in self.names
        }
        self.waits: dict[int, tuple[str, Any, Future[Any]]] = {}
        #: Tokens of holds that ended in ways their holders cannot know about.
        self.ended_elsewhere: set[str] = set()
        #: Names and confs with an outcome that was unknown and may still be.
        self.doubtful: set[str] = set()
        #: By name: the modules whose tasks were cancelled. What such a task has sent may take the
        #: lock for a moment, for which its own module waits, and others do not.
        self.cancelled: dict[str, set[Conf]] = defaultdict(set)
        self.loose: list[tuple[str, str]] = []

        #: The history, for failures that do not reproduce.
        self.events: list[str] = []

    def note(self, event: str) -> None:
        self.events.append(event)

    @property
    def confs(self) -> list[Conf]:
        return [self.through, self.direct]

    # What the database says, and what the actors believe.

    def live(self, name: str) -> str | None:
        rows = self.db.execute(
            "SELECT token FROM _score_distlock WHERE name = %s AND expires > clock_timestamp()",
            (name,),
        ).fetchall()
        assert len(rows) <= 1
        return rows[0][0] if rows else None

    def queued(self, name: str) -> bool:
        query = "SELECT waiters IS NOT NULL FROM _score_distlock WHERE name = %s"
        return self.db.execute(query, (name,)).fetchone() == (True,)

    @staticmethod
    def belief(lock: Any) -> str | None:
        token: str | None = lock.token
        return token if not lock.expired and lock.remaining > 0 else None

    def claims(self, actor: Actor, name: str) -> str | None:
        """The token with which the actor believes to be inside."""
        levels = self.levels[actor.number, name]
        if not levels:
            return None
        token = levels[-1].token
        believes = self.belief(self.locks[actor.conf, name]) == token
        return token if believes and token not in self.ended_elsewhere else None

    def may_be_lost(self, actor: Actor, name: str) -> bool:
        return name in self.doubtful or any(
            level.token in self.ended_elsewhere or level.lease != "1h"
            for level in self.levels[actor.number, name]
        )

    # Steps.

    def outcome(self, actor: Actor, work: Work) -> Any:
        """Returns the result, or the expected exception; lets nothing else pass."""
        try:
            result = actor.begin(work).result(LIMIT)
        except (*TOLD, Interrupted) as error:
            return error
        return token_of(result)

    def free(self, number: int) -> Actor | None:
        actor = self.actors[number]
        return None if number in self.waits else actor

    def entered(self, actor: Actor, name: str, block: Any, token: str, lease: str) -> None:
        for other in self.actors:
            if other is not actor and other.number not in self.waits:
                assert self.claims(other, name) is None, (
                    f"{other.number} is inside already as {actor.number} enters"
                )
        self.levels[actor.number, name].append(Level(block, token, lease))

    def told(self, actor: Actor, name: str) -> None:
        """The actor now knows of the loss: its acquires are gone, its blocks are still open."""
        levels = self.levels[actor.number, name]
        levels[:] = [level for level in levels if level.block is not None]
        for level in levels:
            self.ended_elsewhere.add(level.token)

    def prepare(self, actor: Actor, name: str, how: str, timeout: Any) -> tuple[Any, Work]:
        """Prepares to enter; returns the block to leave, and work that returns the token."""
        lock = actor.lock(name)
        if how == "acquire":
            return None, functools.partial(lock.acquire, timeout=timeout)
        if how == "with":
            block = lock.hold(timeout)
        elif how == "brief":
            block = lock.hold(timeout, maxtime="100ms")
        elif how == "extended":
            block = lock.hold(timeout, autoextend=True)
        else:
            block = lock.hold(timeout, autoextend=True, maxtime="400ms", on_lost=lambda _: None)
        if actor.asynchronous:

            async def enter_in_loop() -> Any:
                return (await block.__aenter__()).token

            return block, enter_in_loop
        return block, block.__enter__

    @staticmethod
    def lease(how: str) -> str:
        return {"brief": "100ms", "kept": "400ms"}.get(how, "1h")

    def enter_now(self, actor: Actor, name: str, how: str, disturbed: bool = False) -> None:
        block, work = self.prepare(actor, name, how, 0)
        available = self.live(name) is None and not self.queued(name)
        contested = any(wait[0] == name for wait in self.waits.values())
        contested |= bool(self.cancelled[name] - {actor.conf})
        outcome = self.outcome(actor, work)
        self.note(f"{actor.number} enters {name} ({how}): {outcome!r:.250}")
        if isinstance(outcome, str):
            self.entered(actor, name, block, outcome, self.lease(how))
        elif isinstance(outcome, LockExpired):
            assert self.may_be_lost(actor, name) or disturbed, "a needless LockExpired"
            self.told(actor, name)
        elif isinstance(outcome, DatabaseUnavailable):
            assert disturbed
            self.doubtful.add(name)
        elif isinstance(outcome, Interrupted):
            self.given_back(name)
        elif outcome is None:
            # The lease had ended when the block began.
            assert how in ("brief", "kept")
            self.levels[actor.number, name].append(Level(block, "none", "100ms"))
        else:
            assert isinstance(outcome, CouldNotAcquireLock)
            assert not available or contested or disturbed or name in self.doubtful, (
                "refused though free"
            )

    def leave_now(self, actor: Actor, name: str, disturbed: bool = False) -> None:
        levels = self.levels[actor.number, name]
        if not levels:
            return
        level = levels[-1]
        lost_perhaps = self.may_be_lost(actor, name) or disturbed
        lock = actor.lock(name)
        if level.block is None:
            outcome = self.outcome(actor, lock.release)
        elif actor.asynchronous:
            outcome = self.outcome(actor, lambda: level.block.__aexit__(None, None, None))
        else:
            outcome = self.outcome(actor, functools.partial(level.block.__exit__, None, None, None))
        self.note(f"{actor.number} leaves {name}: {outcome!r:.250}")
        if isinstance(outcome, DatabaseUnavailable):
            assert disturbed
            self.doubtful.add(name)
            if level.block is None:
                # Unknown, and to be repeated.
                return
        elif isinstance(outcome, Interrupted):
            if level.block is None:
                self.doubtful.add(name)
                return
            levels.remove(level)
            self.given_back(name)
            return
        elif outcome is not None and not isinstance(outcome, bool):
            assert lost_perhaps, f"a needless {outcome!r:.40}"
            assert isinstance(outcome, LockExpired) or level.block is None, outcome
        levels.remove(level)
        if isinstance(outcome, Exception) and level.block is None:
            self.told(actor, name)
        if not levels and not self.others_hold(actor, name):
            assert self.locks[actor.conf, name].token != level.token, "left, but not forgotten"

    def others_hold(self, actor: Actor, name: str) -> bool:
        return any(
            self.levels[other.number, name] for other in self.actors if other.conf is actor.conf
        )

    everybody = st.integers(0, 7)
    each_name = st.sampled_from(NAMES)
    manner = st.sampled_from(["acquire", "with", "extended", "brief", "kept"])

    def settle(self) -> None:
        """Records the waits that have ended."""
        for number, (name, block, future) in list(self.waits.items()):
            if future.done():
                del self.waits[number]
                actor = self.actors[number]
                error = future.exception()
                self.note(f"{number} has waited for {name}: {error!r:.60}")
                if error is None:
                    self.entered(actor, name, block, token_of(future.result()), "1h")
                elif isinstance(error, LockExpired):
                    assert self.may_be_lost(actor, name)
                    self.told(actor, name)
                elif isinstance(error, DatabaseUnavailable):
                    self.doubtful.add(name)
                else:
                    raise error

    @rule(number=everybody, name=each_name, how=manner)
    def enter(self, number: int, name: int, how: str) -> None:
        self.settle()
        if actor := self.free(number):
            self.enter_now(actor, self.names[name], how)

    @rule(number=everybody, name=each_name)
    def leave(self, number: int, name: int) -> None:
        self.settle()
        if actor := self.free(number):
            self.leave_now(actor, self.names[name])

    @rule(number=everybody, name=each_name, what=st.sampled_from(["extend", "transfer"]))
    def use(self, number: int, name: int, what: str) -> None:
        self.settle()
        if (actor := self.free(number)) and self.levels[number, self.names[name]]:
            self.use_now(actor, self.names[name], what)

    def use_now(self, actor: Actor, name: str, what: str, disturbed: bool = False) -> None:
        levels = self.levels[actor.number, name]
        if not levels or self.belief(self.locks[actor.conf, name]) != levels[-1].token:
            return  # perhaps somebody else's by now
        old = levels[-1].token
        lost_perhaps = self.may_be_lost(actor, name) or disturbed
        outcome = self.outcome(actor, getattr(actor.lock(name), what))
        self.note(f"{actor.number} {what}s {name}: {outcome!r:.250}")
        if isinstance(outcome, DatabaseUnavailable):
            assert disturbed
            self.doubtful.add(name)
        elif isinstance(outcome, Interrupted):
            if what == "transfer":  # under the old token or the new one
                self.doubtful.add(name)
        elif isinstance(outcome, Exception):
            assert lost_perhaps, f"a needless {outcome!r:.40}"
            self.told(actor, name)
        elif what == "transfer":
            assert outcome != old
            for level in levels:
                if level.token == old:
                    level.token = outcome

    @rule(number=st.sampled_from([0, 3, 4, 5, 6]), name=each_name)
    def wait(self, number: int, name: int) -> None:
        """Waits until it gets the lock, or is cancelled."""
        self.settle()
        # An actor that holds something does not wait: two could wait for each other.
        if (actor := self.free(number)) and not any(self.levels[number, one] for one in self.names):
            block, work = self.prepare(actor, self.names[name], "with", None)
            self.note(f"{number} waits for {self.names[name]}")
            self.waits[number] = (self.names[name], block, actor.begin(work))

    @rule(number=st.sampled_from([3, 4, 6]), name=each_name, how=manner, delay=st.integers(0, 20))
    def cancel(self, number: int, name: int, how: str, delay: int) -> None:
        """Cancels a wait in progress, or one that has just begun."""
        self.settle()
        actor = self.actors[number]
        assert isinstance(actor, TaskActor)
        if number in self.waits:
            key, block, future = self.waits.pop(number)
            lease = "1h"
        else:
            key, lease = self.names[name], self.lease(how)
            block, work = self.prepare(actor, key, how, None)
            future = actor.begin(work)
            time.sleep(delay * 0.0002)
        actor.cancel()
        try:
            token = future.result(LIMIT)
        except asyncio.CancelledError:
            self.note(f"{number} cancelled for {key}")
            self.cancelled[key].add(actor.conf)
        except LockExpired:
            assert self.may_be_lost(actor, key)
            self.told(actor, key)
        except DatabaseUnavailable:
            self.doubtful.add(key)
        else:
            self.entered(actor, key, block, token or "none", lease)

    @rule(
        number=st.sampled_from([0, 1, 2, 3, 4]),
        name=each_name,
        what=WHAT,
        side=st.sampled_from(["request", "answer"]),
        index=st.integers(0, 3),
        how=st.sampled_from(["before", "half", "after"]),
        refuse=st.booleans(),
    )
    def cut(
        self, number: int, name: int, what: str, side: Any, index: int, how: Any, refuse: bool
    ) -> None:
        self.settle()
        if not (actor := self.free(number)):
            return
        self.note(f"cut {how} {side} {index}, {refuse=}")
        self.proxy.arm(side, index, how, refuse)
        try:
            self.disturbed(actor, self.names[name], what)
        finally:
            self.proxy.cut = None
            self.proxy.refuse_after_cut = False
            self.proxy.refuse(False)

    def disturbed(self, actor: Actor, name: str, what: str) -> None:
        self.note(f"disturbed: {actor.number} {what}s {name}")
        if what == "leave":
            self.leave_now(actor, name, True)
        elif what in ("extend", "transfer"):
            self.use_now(actor, name, what, True)
        else:
            self.enter_now(actor, name, what, True)

    @rule(
        number=st.sampled_from([0, 1, 2, 3, 4]),
        name=each_name,
        what=WHAT,
        meanwhile=st.sampled_from(["nothing", "ends", "taken", "cut"]),
    )
    def late_answer(self, number: int, name: int, what: str, meanwhile: str) -> None:
        """The database has executed a request long before the caller gets the answer."""
        self.settle()
        if not (actor := self.free(number)):
            return
        key = self.names[name]
        over = threading.Event()

        def later() -> None:
            while not self.proxy.frozen.wait(0.01):
                if over.is_set():
                    return
            with psycopg.connect(self.url, autocommit=True) as db:
                if meanwhile in ("ends", "taken"):
                    db.execute(
                        "UPDATE _score_distlock SET expires = clock_timestamp() WHERE name = %s"
                        " AND expires > clock_timestamp() RETURNING token",
                        (key,),
                    )
                if meanwhile == "taken" and (token := self.direct.try_acquiring(key)):
                    self.loose.append((key, token))
            if meanwhile == "cut":
                self.proxy.cut_all()
            self.proxy.thaw()

        if meanwhile in ("ends", "taken") and (ended := self.live(key)):
            self.ended_elsewhere.add(ended)
        self.note(f"late answers, meanwhile: {meanwhile}")
        self.proxy.freeze_answers()
        thread = threading.Thread(target=later)
        thread.start()
        try:
            before = len(self.levels[number, key])
            self.disturbed(actor, key, what)
            levels = self.levels[number, key]
            if meanwhile in ("ends", "taken") and (len(levels) > before or what == "transfer"):
                # An administrator ended it the moment it was taken.
                self.ended_elsewhere.update(level.token for level in levels)
        finally:
            over.set()
            thread.join()
            self.proxy.thaw()

    @rule(name=each_name, what=WHAT, moment=st.one_of(st.none(), st.integers(0, 30)))
    def interrupt(self, name: int, what: str, moment: int | None) -> None:
        """A handler raises: when the server has answered, or after this many 100 µs."""
        self.settle()
        over = threading.Event()

        def later() -> None:
            if moment is None:
                while not self.proxy.frozen.wait(0.01) and not over.is_set():
                    pass
            else:
                over.wait(moment * 0.0001)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        self.note(f"a signal after {moment}")
        if moment is None:
            self.proxy.freeze_answers()
        thread = threading.Thread(target=later)
        thread.start()
        try:
            self.disturbed(self.main, self.names[name], what)
        finally:
            over.set()
            thread.join()
            self.proxy.thaw()

    def given_back(self, name: str) -> None:
        """After an interrupt on entering or leaving, neither actor nor database has the hold."""
        self.proxy.thaw()
        deadline = time.monotonic() + LIMIT
        while name not in self.doubtful and (token := self.live(name)):
            self.settle()
            known = {
                level.token
                for (_, key), levels in self.levels.items()
                if key == name
                for level in levels
            }
            if token in known | self.ended_elsewhere | {one for _, one in self.loose}:
                return
            assert time.monotonic() < deadline, f"nobody has {token}"
            time.sleep(0.002)

    @rule(name=each_name)
    def lease_ends(self, name: int) -> None:
        """As if an administrator ended it."""
        self.settle()
        ended = self.db.execute(
            "UPDATE _score_distlock SET expires = clock_timestamp()"
            " WHERE name = %s AND expires > clock_timestamp() RETURNING token",
            (self.names[name],),
        ).fetchone()
        self.note(f"the lease of {self.names[name]} ends: {ended and ended[0][:8]}")
        if ended:
            self.ended_elsewhere.add(ended[0])

    @rule(number=everybody, name=each_name, what=st.sampled_from(["release", "transfer"]))
    def by_token(self, number: int, name: int, what: str) -> None:
        """Another actor with the token uses it."""
        self.settle()
        actor, key = self.free(number), self.names[name]
        owners = [one for one in self.actors if self.claims(one, key)]
        if not actor or not owners or actor is owners[0]:
            return
        token = self.claims(owners[0], key)
        assert token is not None
        if owners[0].conf is not actor.conf:
            self.ended_elsewhere.add(token)
        conf = actor.conf.aio if actor.asynchronous else actor.conf
        outcome = self.outcome(actor, lambda: getattr(conf, what)(key, token))
        self.note(f"{number} {what}s the token of {owners[0].number} for {key}: {outcome!r:.250}")
        if isinstance(outcome, LockExpired):
            assert self.may_be_lost(owners[0], key), "a needless LockExpired"
            self.ended_elsewhere.add(token)
        elif what == "transfer":
            if owners[0].conf is actor.conf:
                # Holders in the same process go on with the new token.
                for level in self.levels[owners[0].number, key]:
                    if level.token == token:
                        level.token = outcome
            else:
                self.loose.append((key, outcome))
        elif owners[0].conf is actor.conf:
            assert self.belief(self.locks[actor.conf, key]) != token, "released, but believed in"
            self.ended_elsewhere.add(token)

    @rule(name=each_name)
    def release_loose(self, name: int) -> None:
        """Releases a token that no Lock knows."""
        for key, token in [one for one in self.loose if one[0] == self.names[name]]:
            self.loose.remove((key, token))
            with contextlib.suppress(LockExpired):
                self.direct.release(key, token)

    @rule()
    def fork(self) -> None:
        """A child owns nothing, and disturbs nobody."""
        self.settle()
        self.note("fork")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(LIMIT)
                for (conf, name), lock in self.locks.items():
                    assert lock.token is None
                    assert not lock.expired
                    assert lock.remaining == 0
                    mine = conf.get(name).hold(autoextend=True, maxtime="5s")
                    with contextlib.suppress(CouldNotAcquireLock), mine as own:
                        own.extend()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    @rule(delay=st.sampled_from([0.02, 0.12, 0.3]))
    def time_passes(self, delay: float) -> None:
        time.sleep(delay)
        self.settle()

    @invariant()
    def nobody_believes_in_what_is_not_there(self) -> None:
        self.settle()
        for locks in (self.locks, self.async_locks):
            for (conf, name), lock in locks.items():
                token = self.belief(lock)
                if token is None or token in self.ended_elsewhere or name in self.doubtful:
                    continue
                # A wait may end and a hold may be lost at this moment; whoever believes before
                # and after this query believes now.
                there = self.live(name)
                if self.belief(lock) == token and token not in self.ended_elsewhere:
                    assert there == token, f"{name} in {conf is self.through}"

    @invariant()
    def one_inside(self) -> None:
        for name in self.names:
            inside = [actor.number for actor in self.actors if self.claims(actor, name)]
            assert len(inside) <= 1, (name, inside)

    def teardown(self) -> None:
        try:
            self.everybody_leaves()
        except BaseException:
            print(f"run {self.run}:", *self.events, sep="\n    ")
            raise
        finally:
            for actor in self.actors:
                actor.end()
            self.loop.call_soon_threadsafe(self.loop.call_later, 0.05, self.loop.stop)

    def everybody_leaves(self) -> None:
        deadline = time.monotonic() + LIMIT
        self.release_all_loose()
        while self.waits or any(self.levels.values()):
            assert time.monotonic() < deadline, ("still there", self.waits)
            self.settle()
            for actor in self.actors:
                if actor.number not in self.waits:
                    for name in self.names:
                        while self.levels[actor.number, name]:
                            self.leave_now(actor, name)
            time.sleep(0.002)
        left: Any = True
        while left:
            left = self.db.execute(
                "SELECT name, expires - clock_timestamp(), holder, waiters FROM _score_distlock"
                " WHERE name LIKE %s AND (expires > clock_timestamp() OR waiters IS NOT NULL)",
                (f"states {self.run} %",),
            ).fetchall()
            assert time.monotonic() < deadline, ("left behind", left)
            time.sleep(0.002)
        for lock in self.locks.values():
            assert self.belief(lock) is None

    def release_all_loose(self) -> None:
        for name in NAMES:
            self.release_loose(name)


@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_states(proxy: Proxy, own_url: str) -> None:
    database = own_url.partition("?")[0].rpartition("/")[2]
    through = proxy.url(database)
    States.direct = score.distlock.init({"sqlalchemy.url": own_url, "maxtime": "1h"})
    States.through = score.distlock.init(
        {"sqlalchemy.url": through, "maxtime": "1h", "sqlalchemy.pool_timeout": "400ms"}
    )
    States.proxy, States.url = proxy, own_url
    with psycopg.connect(own_url, autocommit=True) as States.db:
        run_state_machine_as_test(
            States,
            settings=settings(
                max_examples=EXAMPLES or 30,
                stateful_step_count=50 if EXAMPLES else 20,
                derandomize=not EXAMPLES,
                database=None,
                deadline=None,
                phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
