"""Several locks at once: all or none, whatever the order of their names."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import logging
import os
import pickle
import pprint
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import psycopg
import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock, LockExpired, _all, _async_all

from .support.line import Background, wait_until_waiting, waiting
from .support.proxy import Proxy

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]
NAMES = ["b", "a", "c", "a"]


class Caseless(str):
    """A text that compares equal to others."""

    def __eq__(self, other: object) -> bool:
        return self.lower() == str(other).lower()

    def __hash__(self) -> int:
        return hash(self.lower())


Take = Callable[..., Any]


def in_a_loop(conf: Conf, names: Any, **options: Any) -> Any:
    async def main() -> Any:
        return await conf.aio.acquire_all(names, **options)

    return asyncio.run(main())


@pytest.fixture(params=[Conf.acquire_all, in_a_loop], ids=["thread", "loop"])
def take(request: pytest.FixtureRequest) -> Take:
    """Acquires several locks of a module, with threads or coroutines."""
    return cast("Take", request.param)


def release(holds: Any) -> None:
    """Releases them, however they were acquired."""
    released = holds.release()
    if released is not None:
        asyncio.run(released)


@pytest.fixture
def other(conf: Conf, url: str) -> Conf:
    return score.distlock.ConfiguredDistlockModule(url, "1m")


def test_all_are_held_and_released(conf: Conf, other: Conf) -> None:
    with conf.acquire_all(NAMES) as tokens:
        assert list(tokens) == ["a", "b", "c"]
        for name, token in tokens.items():
            assert other.try_acquiring(name) is None
            other.extend(name, token)
    with other.acquire_all(iter(NAMES), autoextend=True):
        pass
    tokens = conf.acquire_all(set(NAMES))
    other.release("b", tokens["b"])
    with pytest.raises(LockExpired):
        tokens.release()
    assert [other.try_acquiring(name) is not None for name in "abc"] == [True] * 3
    with conf.acquire_all([]) as nothing:
        assert nothing == {}


def test_what_is_over_cannot_be_entered(conf: Conf, other: Conf) -> None:
    """Otherwise the block would run without any lock."""
    left = conf.acquire_all(NAMES)
    with left, pytest.raises(ValueError, match="acquire_all"), left:
        pytest.fail("the inner end would release what the outer block works with")
    released = conf.acquire_all(NAMES)
    released.release()
    for holds in (left, released):
        with pytest.raises(ValueError, match="acquire_all"), holds:
            pytest.fail("nothing is held")
    inherited = conf.acquire_all(NAMES)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(ValueError), inherited:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with inherited:
        assert other.try_acquiring("a") is None


def test_the_owner_may_enter_what_it_holds_with_others(conf: Conf, other: Conf) -> None:
    """Whether or not other code keeps one of the Lock objects alive."""
    with conf.acquire_all(NAMES) as holds:
        with conf.get("a") as lock:
            assert lock.token == holds["a"]
        with conf.acquire_all(["b", "c"]) as inner:
            assert inner["b"] == holds["b"]
        assert other.try_acquiring("b") is None

    async def main() -> None:
        async with conf.aio.acquire_all(NAMES) as holds:
            gc.collect()
            async with conf.aio.get("a") as lock:
                assert lock.token == holds["a"]
            async with conf.aio.acquire_all(["b", "c"]) as inner:
                assert inner["b"] == holds["b"]
            assert other.try_acquiring("b") is None

    asyncio.run(main())
    assert other.try_acquiring("a")


def test_none_if_one_is_held(take: Take, conf: Conf, other: Conf) -> None:
    token = other.acquire("b")
    for timeout in (0, 0.05):
        with pytest.raises(CouldNotAcquireLock) as raised:
            take(conf, NAMES, timeout=timeout)
        assert raised.value.args == ("b",)
        for name in "ac":
            other.release(name, other.acquire(name))
    other.release("b", token)
    release(take(conf, NAMES))


def test_it_waits_for_all_of_them(take: Take, brief: Conf, conf: Conf, db: Db) -> None:
    """It keeps the holds it already has alive while it waits."""
    token = conf.acquire("c")
    waiter = Background(take, brief, NAMES, timeout=30)
    wait_until_waiting(db, 1, "c")
    db.execute("SELECT pg_sleep(0.7)")
    assert conf.try_acquiring("a") is None
    conf.release("c", token)
    holds = waiter.result()
    for name, token in holds.items():
        brief.extend(name, token)
    assert waiting(db, "c") == 0
    # Nothing extends the holds any more.
    assert conf.acquire("a", timeout=5)


@pytest.mark.parametrize("autoextend", [False, True])
def test_none_if_one_is_lost_meanwhile(
    take: Take, brief: Conf, conf: Conf, db: Db, autoextend: bool
) -> None:
    token = conf.acquire("c")
    waiter = Background(take, brief, NAMES, timeout=30, autoextend=autoextend)
    wait_until_waiting(db, 1, "c")
    db.execute("UPDATE _score_distlock SET token = 'stolen' WHERE name = 'a'")
    while not brief.get("a").expired:
        db.execute("SELECT pg_sleep(0.01)")
    conf.release("c", token)
    with pytest.raises(LockExpired) as raised:
        waiter.result()
    assert raised.value.args[0] == "a"
    for name in "bc":
        assert conf.acquire(name, timeout=20)


def test_locks_that_are_held_already(conf: Conf) -> None:
    with conf.get("b") as lock:
        with conf.acquire_all(NAMES) as tokens:
            assert tokens["b"] == lock.token
        lock.extend()
        assert score.distlock.Lock(conf, "a").try_acquiring()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abc", "several names"),
        (b"abc", "several names"),
        (["a", 1], "a lock must be a str, not int"),
        (None, "not iterable"),
    ],
)
def test_mistakes(conf: Conf, names: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        conf.acquire_all(names)
    assert conf.try_acquiring("a")


READERS: dict[str, Callable[[Any], object]] = {
    "[]": lambda holds: holds["[]"],
    "get": lambda holds: holds.get("get"),
    "items": lambda holds: holds.items(),
    "values": lambda holds: holds.values(),
    "pop": lambda holds: holds.pop("pop"),
    "popitem": lambda holds: holds.popitem(),
    "setdefault": lambda holds: holds.setdefault("setdefault", ""),
    "copy": lambda holds: holds.copy(),
    "|": lambda holds: holds | {},
    "| on the right": lambda holds: {} | holds,
    "==": lambda holds: holds == {},
    "dict": dict,
    "**": lambda holds: {**holds},
    "pickle": pickle.dumps,
    "copy.copy": copy.copy,
    "json": json.dumps,
}


def test_who_has_read_a_token_has_to_release_it(conf: Conf, other: Conf) -> None:
    """However it was read. Each way uses the lock of its own name."""
    for name, read in READERS.items():
        holds = conf.acquire_all([name])
        read(holds)
        del holds
    # By now, any release in the background has happened.
    others = conf.acquire_all(["others"])
    del others
    other.acquire("others", timeout=None)
    for name in READERS:
        assert other.try_acquiring(name) is None, name


def test_no_text_of_holds_has_a_token(conf: Conf, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> tuple[str, score.distlock.aio.AsyncHolds]:
        holds = conf.aio.acquire_all(["c"])
        before = repr(holds)
        return before, await holds

    with conf.acquire_all(["b", "a"]) as holds:
        before, others = asyncio.run(main())
        assert repr(holds) == "<score.distlock.Holds of 'a', 'b'>"
        assert repr(conf.acquire_all([])) == "<score.distlock.Holds of no lock>"
        assert before == "<score.distlock.aio.AsyncHolds of no lock>"
        assert repr(others) == "<score.distlock.aio.AsyncHolds of 'c'>"
        for each in (holds, others):
            logging.getLogger("application").warning("these: %s, %r", each, each)
            texts = [repr(each), str(each), f"{each}", pprint.pformat(each), caplog.text]
            for token in dict(each).values():
                assert not any(token[:9] in text for text in texts)


@pytest.mark.parametrize("reason", ["expired", "released"])
def test_what_is_lost_cannot_be_entered(brief: Conf, conf: Conf, reason: str) -> None:
    """Nor awaited again; the other holds are released."""
    module = brief if reason == "expired" else conf

    def lose(tokens: dict[str, str]) -> None:
        if reason == "expired":
            conf.release("b", conf.acquire("b", timeout=None))
        else:
            conf.release("b", tokens["b"])

    def is_free() -> None:
        for name in NAMES:
            conf.release(name, conf.acquire(name))

    async def main(again: Callable[[Any], Any]) -> None:
        holds = module.aio.acquire_all(NAMES)
        lose(await holds)
        with pytest.raises(LockExpired) as lost:
            await again(holds)
        assert (lost.value.args[0], lost.value.reason) in expected
        is_free()

    async def enter(holds: Any) -> None:
        async with holds:
            pytest.fail("the block runs without a lock")

    async def wait(holds: Any) -> None:
        await holds

    # If several have expired, the first one is named: "a", unless taking the others took so long
    # that it was extended meanwhile.
    expected = [("b", "released")]
    if reason == "expired":
        expected = [("a", "expired"), ("b", "expired")]
    with module.acquire_all(NAMES, autoextend=False) as holds:
        pass
    holds = module.acquire_all(NAMES)
    lose(holds)
    with pytest.raises(LockExpired) as lost, holds:
        pytest.fail("the block runs without a lock")
    assert (lost.value.args[0], lost.value.reason) in expected
    is_free()
    asyncio.run(main(enter))
    asyncio.run(main(wait))


def test_holds_whose_tokens_nobody_has_read_end_with_their_object(conf: Conf, other: Conf) -> None:
    for look in (len, list, bool, dict.keys, repr, str, "{}".format):
        holds = conf.acquire_all(NAMES)
        look(holds)
        del holds
        for name in NAMES:
            other.release(name, other.acquire(name, timeout=None))


def test_a_block_that_is_given_up_ends_its_holds(conf: Conf, other: Conf) -> None:
    """Even if the body has read their tokens."""

    def work() -> Iterator[str]:
        with contextlib.ExitStack() as stack:
            yield stack.enter_context(conf.acquire_all(NAMES))["a"]
            stack.pop_all()

    assert [other.try_acquiring("a") for _ in work()] == [None]
    for name in NAMES:
        other.release(name, other.acquire(name, timeout=None))


def test_the_lease_of_each_begins_when_all_are_there(
    take: Take, url: str, conf: Conf, db: Db
) -> None:
    late = score.distlock.init({"sqlalchemy.url": url, "maxtime": "3s"})
    token = conf.acquire("c")
    waiter = Background(take, late, NAMES, timeout=None)
    wait_until_waiting(db, 1, "c")
    # A renewal may have come in between, but not from before.
    row = db.execute("""
        SELECT clock_timestamp() FROM _score_distlock,
               pg_sleep_until(expires - make_interval(secs => 0.8 * lease)) WHERE name = 'a'
    """).fetchone()
    conf.release("c", token)
    holds = waiter.result()
    begun = "SELECT every(expires - make_interval(secs => lease) > %s) FROM _score_distlock"
    assert db.execute(begun, row).fetchone() == (True,)
    release(holds)


def test_what_was_free_is_not_extended(take: Take, conf: Conf, db: Db) -> None:
    holds = take(conf, NAMES)
    fresh = "SELECT every(updated = acquired) FROM _score_distlock"
    assert db.execute(fresh).fetchone() == (True,)
    release(holds)
    release(holds)  # there is nothing left to do


def test_coroutines_wait_as_long_for_all_of_them(conf: Conf) -> None:
    async def main() -> None:
        assert conf.aio.acquire_all(["a"]) == {}, "before it is awaited"
        async with conf.aio.get("c") as lock:
            waiter = asyncio.create_task(take(None))
            for timeout in (0, 0.05):
                with pytest.raises(CouldNotAcquireLock):
                    await asyncio.create_task(take(timeout))
            assert lock.token
        await waiter

    async def take(timeout: float | None) -> None:
        async with conf.aio.acquire_all(NAMES, timeout=timeout):
            pass

    asyncio.run(main())


PHILOSOPHER = """
import random, sys, score.distlock
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1h')
dice = random.Random(sys.argv[2])
for _ in range(40):
    names = dice.sample(['a', 'b', 'c', 'd'], dice.randint(2, 4))
    with conf.acquire_all(names, timeout=None) as tokens:
        assert set(tokens) == set(names)
"""


def test_no_deadlock(url: str, conf: Conf) -> None:
    """With holds of an hour, a deadlock would last."""
    processes = [
        subprocess.Popen([sys.executable, "-c", PHILOSOPHER, url, str(number)])
        for number in range(4)
    ]
    assert [process.wait() for process in processes] == [0] * 4


def test_a_name_is_its_text_whatever_it_is_equal_to(conf: Conf) -> None:
    upper, lower = Caseless("NAME"), Caseless("name")
    with conf.acquire_all([upper, lower]) as tokens:
        assert list(tokens) == ["NAME", "name"]
    first, second = conf.aio.get(upper), conf.aio.get(lower)
    assert (first.name, second.name) == ("NAME", "name")
    assert conf.aio.get("NAME") is first


def test_a_cancelled_task_leaves_nothing(conf: Conf, db: Db) -> None:
    """Neither its holds nor its place in a queue; its exception is still referenced."""

    async def main() -> None:
        token = conf.acquire("b")
        task = asyncio.create_task(take_all())
        await asyncio.to_thread(wait_until_waiting, db, 1, "b")
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        await asyncio.to_thread(wait_until_waiting, db, 0, "b")
        for name in "ac":
            assert await conf.aio.acquire(name, timeout=None)
        conf.release("b", token)
        assert conf.acquire("b", timeout=None)
        assert cancelled.value.__traceback__

    async def take_all() -> None:
        await conf.aio.acquire_all(NAMES, timeout=None)

    asyncio.run(main())


def test_coroutines_have_one_time_for_all_of_them(
    conf: Conf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the time is over, it is refused immediately for a lock that is held."""

    class Over(_all.Pace):
        def left(self) -> float:
            return 0

    monkeypatch.setattr(_async_all, "Pace", Over)
    conf.acquire("b")
    with pytest.raises(CouldNotAcquireLock):
        in_a_loop(conf, NAMES, timeout=None)


def test_the_configuration_may_extend_all_of_them(take: Take, url: str, conf: Conf, db: Db) -> None:
    holds = take(score.distlock.connect(url, maxtime="300ms", autoextend=True), NAMES)
    db.execute("SELECT pg_sleep(0.7)")
    assert [conf.try_acquiring(name) for name in "abc"] == [None] * 3
    release(holds)


def test_coroutines_wait_for_the_releases(conf: Conf, db: Db) -> None:
    """Also for those of an attempt that fails."""
    held = "SELECT count(*) FROM _score_distlock WHERE name = 'a' AND expires > clock_timestamp()"

    async def main() -> None:
        holds = await conf.aio.acquire_all(["a"])
        await holds.release()
        assert db.execute(held).fetchone() == (0,)
        conf.acquire("b")
        with contextlib.suppress(CouldNotAcquireLock):
            await conf.aio.acquire_all(["a", "b"])
        assert db.execute(held).fetchone() == (0,)

    asyncio.run(main())


def test_coroutines_enter_it_once_at_a_time_and_again_after_a_failure(
    conf: Conf, other: Conf
) -> None:
    async def main() -> None:
        holds = conf.aio.acquire_all(NAMES, timeout=0)
        taken = other.acquire("c")
        for _ in range(2):
            with pytest.raises(CouldNotAcquireLock):
                await holds.__aenter__()
        other.release("c", taken)
        async with holds:
            with pytest.raises(ValueError, match="can be entered once"):
                await holds.__aenter__()
            assert other.try_acquiring("a") is None

    asyncio.run(main())
    other.release("a", other.acquire("a"))


def test_a_task_that_is_cancelled_does_not_wait_for_the_database(
    through: Callable[..., Conf], proxy: Proxy, own_url: str
) -> None:
    conf, observer = through(), score.distlock.init({"sqlalchemy.url": own_url})
    taken = observer.acquire("b")

    async def main() -> None:
        task = asyncio.create_task(conf.aio.acquire_all(["a", "b"], timeout=None)._acquire())
        with psycopg.connect(own_url, autocommit=True) as db:
            await asyncio.to_thread(wait_until_waiting, db, 1, "b")
        proxy.freeze_answers()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.thaw()

    asyncio.run(main())
    observer.release("b", taken)
    for name in "ab":
        observer.release(name, observer.acquire(name, timeout=None))


class TimeIsUp(Exception):
    """What a signal handler raises."""


class Interrupting:
    """Raises at one of the calls of Python functions, as a signal handler may."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.raised = False

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            self._left -= 1
            if self._left < 0:
                self.raised = True
                sys.setprofile(None)
                raise TimeIsUp


@pytest.mark.parametrize("autoextend", [False, True])
@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
def test_a_with_statement_may_be_interrupted_anywhere(
    conf: Conf, url: str, autoextend: bool, read: bool
) -> None:
    """Nothing is held afterwards, though the exception is alive and a token was read before."""
    observer, number, raised = score.distlock.init({"sqlalchemy.url": url}), 0, True
    while raised:
        interrupting = Interrupting(number)
        error: BaseException | None = None
        try:
            holds = conf.acquire_all(["a", "b"], autoextend=autoextend)
            if read:
                assert holds["a"]
            sys.setprofile(interrupting)
            with holds:
                pass
        except TimeIsUp as caught:
            error = caught
        finally:
            sys.setprofile(None)
        assert (error is not None) == interrupting.raised
        for name in "ab":
            observer.release(name, observer.acquire(name, timeout=20))
        del holds
        number, raised = number + 1, interrupting.raised


def test_what_a_signal_handler_raises_while_a_coroutine_gives_back(
    conf: Conf, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only errors of the library are left to the background."""
    observer = score.distlock.init({"sqlalchemy.url": url})
    observer.acquire("b")

    async def interrupted(exit_: Any) -> None:
        raise TimeIsUp

    async def main() -> None:
        with pytest.raises(TimeIsUp) as caught:
            await conf.aio.acquire_all(["a", "b"])
        assert isinstance(caught.value.__context__, CouldNotAcquireLock)

    with monkeypatch.context() as patched:
        patched.setattr(_async_all, "finish", interrupted)
        asyncio.run(main())


GIVES_BACK = """
import signal, sys, score.distlock
class Alarm(Exception):
    pass
class OurKind(score.distlock.DatabaseUnavailable):
    pass
def alarm(*_):
    try:
        raise ValueError
    except ValueError:
        raise Alarm
def of_our_kind(*_):
    raise OurKind('of the application')
signal.signal(signal.SIGALRM, alarm)
signal.signal(signal.SIGUSR1, of_our_kind)
signal.signal(signal.SIGINT, signal.default_int_handler)
conf = score.distlock.connect(sys.argv[1], maxtime='1m')
try:
    conf.acquire_all(['a', 'b'])
except (KeyboardInterrupt, Alarm, score.distlock.DistlockError) as error:
    while error is not None:
        print(type(error).__name__, end=' ')
        error = error.__context__
    print(flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("number", "raised"),
    [("SIGINT", "KeyboardInterrupt"), ("SIGALRM", "Alarm ValueError"), ("SIGUSR1", "OurKind")],
)
def test_giving_back_can_be_interrupted(
    proxy: Proxy, database: str, server_url: str, number: str, raised: str
) -> None:
    """The exception of the signal handler is raised, and what was taken is given back later."""
    observer = score.distlock.connect(server_url)
    observer.acquire("b")
    url = proxy.url(database)
    proxy.freeze_request(
        # The first release is prepared.
        lambda message: message[:1] == b"P" and b"0001-01-01" in message and b"WITH" not in message
    )
    program = subprocess.Popen(
        [sys.executable, "-c", GIVES_BACK, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    proxy.frozen.wait()
    program.send_signal(getattr(signal, number))
    assert program.stdout.readline() == f"{raised} CouldNotAcquireLock \n"
    proxy.thaw()
    assert observer.acquire("a", timeout=30)
    program.communicate("\n")
