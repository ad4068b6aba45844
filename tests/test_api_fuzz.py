"""All of the API with arbitrary objects: only documented exceptions, no panic, no hang, no hold.

The calls are derived from the API itself: a public class that this file cannot create, or a
parameter without sensible values, fails. ``DISTLOCK_FUZZ=5000`` runs that many random
examples.
"""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import fractions
import functools
import inspect
import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import score.distlock
import score.distlock.aio
from score.distlock import _config
from score.distlock._all import Holds
from score.distlock._guard import AsyncGuard, Guard
from score.distlock.aio import AsyncLost
from score.init import ConfigurationError

Conf = score.distlock.ConfiguredDistlockModule

EXAMPLES = int(os.environ.get("DISTLOCK_FUZZ", "0"))
#: The time limit for a call, in seconds; none of them has to wait.
LIMIT = 20
PASSWORD = "Zq9XwVkR7t"
WRONG = "0" * 256
NOBODY = f"postgresql://u:{PASSWORD}@127.0.0.1:1/d"


class Hostile(Exception):
    """Raised by an argument itself."""


class Hang(BaseException):
    """A call took too long."""


#: Only these exact classes, as some of Python's own errors derive from them.
DOCUMENTED = {
    *(TypeError, ValueError, ConfigurationError, RuntimeError, Hostile, ZeroDivisionError),
    *(score.distlock.CouldNotAcquireLock, score.distlock.LockExpired),
    *(score.distlock.DatabaseError, score.distlock.DatabaseUnavailable),
}

SPECIAL = [
    *("__str__", "__repr__", "__eq__", "__hash__", "__bool__", "__index__", "__float__"),
    *("__iter__", "__len__", "__call__", "__int__", "__getitem__", "__format__", "__lt__"),
    *("__getattr__", "__contains__", "__fspath__", "__enter__", "__exit__"),
]


def having(base: type, result: Callable[..., Any], special: list[str]) -> type:
    """A class whose special methods return this."""
    return type("Odd", (base,), dict.fromkeys(special, result))


def raising(*arguments: Any, **options: Any) -> Any:
    raise Hostile


def nonsense(*arguments: Any, **options: Any) -> Any:
    return []


class World:
    """The objects to call, and the arguments; releases what the calls have acquired."""

    def __init__(self, url: str, db: psycopg.Connection[Any]) -> None:
        self.url, self.db = url, db
        self.conf = Conf(url, "1h")
        self.closed = Conf(url, "1h")
        self.closed.close()
        self.elsewhere = Conf(NOBODY, 1, pool_timeout=0.05)
        self.loop = asyncio.new_event_loop()
        self.connection = psycopg.connect(url)
        self.async_connection = self.run(psycopg.AsyncConnection.connect(url))
        self.lock = self.conf.get("a")
        self.async_lock = self.conf.aio.get("a")
        self.held = self.closed.acquire("held")
        self.info = self.conf.holders()[0]
        #: The tokens of holds that a call has acquired.
        self.asked: list[str] = [WRONG]
        self.keep: list[Any] = []

    def run(self, awaitable: Any) -> Any:
        async def main() -> Any:
            return self.note(await awaitable)

        return self.loop.run_until_complete(main())

    def call_back(self, *arguments: Any, **options: Any) -> Any:
        """What an argument does when the API calls it: it uses the API."""
        self.note(self.conf.get("b").try_acquiring())
        self.note(self.conf.try_acquiring("held"))
        return 1

    def lost(self) -> score.distlock.Lock:
        """A lock whose hold is already lost: waiting for the loss returns immediately."""
        lock = score.distlock.Lock(self.conf, "lost")
        lock.hold(maxtime=0).__enter__()
        return lock

    def note(self, result: Any) -> Any:
        """Records the holds that a call has acquired."""
        if type(result) is str:
            self.asked.append(result)
        elif isinstance(result, dict):
            self.asked += result.values()
            self.keep.append(result)
        elif isinstance(result, (score.distlock.Lock, score.distlock.aio.AsyncLock)):
            self.asked += [result.token] if result.token else []
        return result

    def tidy_up(self) -> None:
        """Ends the acquired holds, and checks that there are no others."""
        self.connection.rollback()
        self.run(self.async_connection.rollback())
        for lock in (self.lock, self.conf.get("b")):
            self.note(lock)
        live = "SELECT name, token FROM _score_distlock WHERE expires > clock_timestamp()"
        until = time.monotonic() + LIMIT
        while rows := [row for row in self.db.execute(live) if row[1] != self.held]:
            for name, token in rows:
                if token in self.asked:
                    with contextlib.suppress(score.distlock.LockExpired):
                        self.conf.release(name, token)
            assert time.monotonic() < until, f"held, though nobody asked for it: {rows}"
        self.keep.clear()
        del self.asked[1:]
        for lock in (self.lock, self.conf.get("b")):
            ways: list[Callable[[], None]] = [lock.__exit__, lock.release]
            for leave in itertools.cycle(ways):
                if not lock.token:
                    break
                # The holder knows of the loss by now, but still leaves its block.
                with contextlib.suppress(score.distlock.LockExpired, ValueError):
                    leave()
        if self.conf.info("held") is None:  # a call has revoked it
            self.held = self.closed.acquire("held")
        self.conf.release("usable", self.conf.acquire("usable"))
        assert self.conf.try_acquiring("held") is None

    def close(self) -> None:
        self.connection.close()
        self.run(self.async_connection.close())
        self.run(self.conf.aio.close())
        self.loop.close()


# The calls. Each class has a way to create an object of it.

SUBJECTS: dict[type, Callable[[World], Any]] = {
    Conf: lambda world: world.conf,
    score.distlock.Lock: lambda world: world.lock,
    score.distlock.Hold: lambda world: world.lock.hold(0, True, "5s"),
    Holds: lambda world: world.note(world.conf.acquire_all(["x", "y"])),
    Guard: lambda world: world.lock.guard(world.connection, token=WRONG),
    score.distlock.Lost: lambda world: world.lost().lost,
    score.distlock.aio.AsyncModule: lambda world: world.conf.aio,
    score.distlock.aio.AsyncLock: lambda world: world.async_lock,
    score.distlock.aio.AsyncHold: lambda world: world.async_lock.hold(0, False, 5),
    score.distlock.aio.AsyncLost: lambda world: AsyncLost(world.lost()),
    score.distlock.aio.AsyncHolds: lambda world: world.conf.aio.acquire_all(["x", "y"]),
    AsyncGuard: lambda world: world.async_lock.guard(world.async_connection, token=WRONG),
    score.distlock.HoldInfo: lambda world: world.info,
    score.distlock.DistlockError: lambda world: score.distlock.DistlockError("a"),
    score.distlock.CouldNotAcquireLock: lambda world: score.distlock.CouldNotAcquireLock("a"),
    score.distlock.LockExpired: lambda world: score.distlock.LockExpired("a", WRONG),
    score.distlock.DatabaseError: lambda world: score.distlock.DatabaseError("a", "23505"),
    score.distlock.DatabaseUnavailable: lambda world: score.distlock.DatabaseUnavailable("a"),
}

#: Only other calls create these.
NOT_MADE = {Guard, AsyncGuard, Holds, score.distlock.Hold, score.distlock.aio.AsyncHold}
NOT_MADE |= {score.distlock.aio.AsyncHolds, score.distlock.aio.AsyncModule}
NOT_MADE |= {score.distlock.aio.AsyncLock, score.distlock.HoldInfo}
NOT_MADE |= {score.distlock.Lost, AsyncLost}

PUBLIC = ("__enter__", "__exit__", "__aenter__", "__aexit__", "__await__", "__repr__", "__str__")


def members(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        if base.__module__.startswith("score.distlock"):
            yield from (name for name in vars(base) if name in PUBLIC or name[0] != "_")


#: A class and the name of a member; or None and a function or class.
CALLS: list[tuple[Any, Any]] = [
    *((kind, name) for kind in SUBJECTS for name in sorted(set(members(kind)))),
    *((None, kind) for kind in SUBJECTS if kind not in NOT_MADE),
    (None, score.distlock.init),
    (None, score.distlock.connect),
    (None, score.distlock.from_django),
    (None, score.distlock.locked),
]

NUMBERS: list[Any] = [
    *(0, 1, -1, 10**400, 10**5000, -(2**63), 2**64, True, False),
    *(0.0, -0.0, 0.01, -1.5, 5e-324, 1e-9, 1e300, math.nan, math.inf, -math.inf, 3e9),
    *(decimal.Decimal("1.5"), decimal.Decimal("NaN"), fractions.Fraction(1, 3), 1j),
]
TEXTS = [
    *("", " ", "a", "b", "held", "ключ 🔑", "\0", "a\0b", "\ud800", "a\udc00", "x" * 3000),
    *("1ms", "1s 1ms", "-1s", "default", "none", "nan", "1e-3", "{", "{}", "{a}", "{a:{b:{c}}}"),
    *("a" * 100_000 + "\0", "1" * 100_000 + "!", "{a:" * 2000, WRONG, "F" * 256, "\n", "%s%n"),
    *(NOBODY, NOBODY + "?sslmode=odd", NOBODY + "\ud800", "postgresql://", "mysql://u:p@h"),
]
TIMES = [timedelta.min, timedelta.max, timedelta.resolution, timedelta(0), -timedelta.resolution]


class Values:
    """Strategies for arguments."""

    def __init__(self, world: World) -> None:
        self.world = world
        odd = [
            having(base, result, special)
            for base in (object, str, float, int)
            for result in (raising, nonsense, world.call_back)
            for special in (SPECIAL, ["__eq__", "__hash__"], ["__str__", "__repr__"])
        ]
        others: list[Any] = [
            *(None, ..., NotImplemented, b"", b"\xff", WRONG.encode(), bytearray(b"a")),
            *(memoryview(b"a"), [], [7], ["a", "a"], (), {}, {"a": 1}, {7: 7}, {"a"}, iter("ab")),
            *(object, int, len, raising, print, mock.MagicMock, Hostile, Hostile()),
            *(world.conf, world.closed, world.elsewhere, world.lock, world.async_lock),
            *(world.connection, world.async_connection, world.db, world.conf.aio),
        ]
        self.any: st.SearchStrategy[Any] = st.one_of(
            st.sampled_from(NUMBERS),
            st.sampled_from(TEXTS),
            st.sampled_from(TIMES),
            st.sampled_from(others),
            st.sampled_from(odd).map(lambda kind: kind()),
            st.builds(mock.MagicMock),
            st.text(max_size=20),
            st.binary(max_size=20),
            st.floats(),
            st.integers(),
        )
        name = st.sampled_from(["a", "b", "held"])
        some = st.integers(0, 5).map(lambda number: world.asked[-1 - number % len(world.asked)])
        token = st.sampled_from([None, WRONG, WRONG.encode()]) | some
        wait = st.sampled_from([0, "1ms", 0.001, timedelta(milliseconds=1), "default"])
        lease = st.sampled_from(["1m", 5, 0.001, timedelta(seconds=5), 0])
        boolean = st.booleans() | st.none()
        #: By parameter name.
        self.sensible: dict[str, st.SearchStrategy[Any]] = {
            "name": name,
            "names": st.lists(name | st.text(max_size=3), max_size=3),
            "token": token,
            "fence": st.none() | st.integers(0, 100),
            "note": st.none() | st.text(max_size=5),
            "url": st.sampled_from([world.url, NOBODY]),
            "alias": st.sampled_from(["default", "other"]),
            "timeout": wait,
            "maxtime": lease,
            "autoextend": boolean,
            "ignore_expired": st.booleans(),
            "reentrant": st.booleans(),
            "on_lost": st.sampled_from([None, print, raising, world.call_back]),
            "on_expiring": st.sampled_from([None, print, raising, world.call_back]),
            "warn_before": st.none() | st.sampled_from([0.001, "1ms", timedelta(seconds=1)]),
            "cancel_on_loss": st.booleans(),
            "session": st.none(),
            "connection": st.sampled_from([world.connection, world.async_connection]),
            "conf": st.sampled_from([world.conf, world.closed, world.elsewhere]),
            "engine": st.sampled_from([world.url, NOBODY]),
            "confdict": self.confdicts(),
            "pool_size": st.integers(0, 3),
            "max_overflow": st.integers(-1, 3),
            "pool_timeout": st.sampled_from([0.1, "100ms"]),
            "pool_recycle": st.sampled_from([-1, None, "1m"]),
            "pool_pre_ping": boolean,
            "echo": boolean,
            "isolation_level": st.sampled_from(["SERIALIZABLE", "autocommit"]),
            "table_owner": st.sampled_from(["postgres", "nobody"]),
            "connect_args": st.dictionaries(st.sampled_from(["port", "password"]), self.any),
            "exc_type": st.none(),
            "exc": st.none(),
            "traceback": st.none(),
            "_exception": st.none(),
            "exception": st.none(),
            "busy": st.none() | st.lists(st.integers(), max_size=2),
            "reason": st.sampled_from(["expired", "released", "unreachable", "unknown"]),
            "message": st.just("a"),
            "sqlstate": st.none() | st.just("23505"),
            "args": st.just("a"),
        }

    def confdicts(self) -> st.SearchStrategy[Any]:
        keys = st.sampled_from([*_config._KEYS, "nonsense"]) | st.text(max_size=5)
        url = st.sampled_from([self.world.url, NOBODY, NOBODY + "\ud800"])
        # Do not wait for an unreachable server.
        last = st.fixed_dictionaries({"sqlalchemy.url": url, "sqlalchemy.pool_timeout": st.just(1)})
        return st.builds(
            lambda some, more: {**some, **more}, st.dictionaries(keys, self.any, max_size=2), last
        )

    def argument(self, draw: Any, name: str, arbitrary: bool) -> Any:
        value = draw(self.any if arbitrary else self.sensible[name])
        if name in ("timeout", "pool_timeout"):
            # A long wait is right if the caller asks for one.
            with contextlib.suppress(Exception):
                seconds = _config.timeout(value)
                return value if seconds is not None and seconds < 0.2 else 0.01
        return value


def signature(kind: Any, called: Any) -> list[inspect.Parameter]:
    """The parameters without self; empty for a property."""
    found = called if kind is None else inspect.getattr_static(kind, called)
    in_rust = (score.distlock._distlock._AsyncExit, score.distlock._distlock._Method)
    if isinstance(found, in_rust):
        names = [] if called == "__enter__" else ["exc_type", "exc", "traceback"]
        return [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
    if kind is not None and not callable(found):
        return []
    if found is score.distlock.DistlockError:
        return []  # Python knows none, as for Exception itself
    parameters = list(inspect.signature(found).parameters.values())[kind is not None :]
    return [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def test_the_whole_api_is_known(url: str, db: psycopg.Connection[Any]) -> None:
    exported = {getattr(score.distlock, name) for name in score.distlock.__all__}
    exported |= {getattr(score.distlock.aio, name) for name in score.distlock.aio.__all__}
    called = {*SUBJECTS, score.distlock.init, score.distlock.__version__}
    called |= {score.distlock.connect, score.distlock.from_django, score.distlock.locked}
    assert exported <= called
    world = World(url, db)
    known = set(Values(world).sensible)
    names = {parameter.name for call in CALLS for parameter in signature(*call)}
    world.close()
    assert names <= known, "a parameter without sensible values"
    assert known - names <= {"exception"}


def hung(*_: object) -> None:
    raise Hang


def check(error: Exception) -> None:
    """Checks that it is documented, and reveals no secret."""
    assert type(error) in DOCUMENTED, f"{type(error)}: {error!r}"
    if isinstance(error, (score.distlock.DistlockError, ConfigurationError)):
        for shown in (repr(error), str(error), repr(error.args)):
            assert PASSWORD not in shown
    assert PASSWORD not in repr(error.args)


def make(world: World, values: Values, draw: Any) -> None:
    """Makes one call."""
    kind, called = draw(st.sampled_from(CALLS))
    arguments: list[Any] = []
    options: dict[str, Any] = {}
    # Mostly one bad value at a time, as the first one hides the rest.
    bad = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))
    for parameter in signature(kind, called):
        if parameter.default is not parameter.empty and draw(st.booleans()):
            continue
        arbitrary = draw(st.floats(0, 0.99)) < bad
        value = values.argument(draw, parameter.name, arbitrary)
        by_name = parameter.kind is parameter.KEYWORD_ONLY
        if by_name or options or parameter.default is not parameter.empty:
            options[parameter.name] = value
        else:
            arguments.append(value)
    if called is Conf and arguments[0] != world.url:
        options["pool_timeout"] = 0.05
    try:
        if kind is None:
            result = called(*arguments, **options)
        else:
            found = getattr(SUBJECTS[kind](world), called)
            result = found(*arguments, **options) if callable(found) else found
        world.note(result)
        if called == "locked":
            function = draw(values.any | st.sampled_from([lambda: 1, raising, coroutine]))
            decorated = result(function)
            if callable(decorated):
                result = decorated()
        if inspect.isawaitable(result):
            result = world.run(result)
        repr(result)
    except KeyError:
        assert kind in (Holds, score.distlock.aio.AsyncHolds)  # they are dicts
    except psycopg.Error:
        assert kind in (Guard, AsyncGuard)  # the caller's own connection
    except Exception as error:
        check(error)


async def coroutine() -> None:
    await asyncio.sleep(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_any_objects(url: str, db: psycopg.Connection[Any]) -> None:
    score.distlock.init({"sqlalchemy.url": url})
    world = World(url, db)
    values = Values(world)
    before = signal.signal(signal.SIGALRM, hung)

    @settings(
        max_examples=EXAMPLES or 250,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def some(data: st.DataObject) -> None:
        draw = functools.partial(data.draw)
        for _ in range(draw(st.integers(1, 6))):
            signal.alarm(LIMIT)
            make(world, values, draw)
        signal.alarm(2 * LIMIT)
        world.tidy_up()

    try:
        some()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    world.close()
