"""What becomes of a hold whose end fails, is late, or is caused by somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock, DatabaseError, DatabaseUnavailable, LockExpired

from .conftest import PROJECT, fresh_database, python
from .support.line import Background, outlive, patiently, wait_until_waiting
from .support.proxy import Proxy
from .support.server import Server
from .test_clock import await_expiry
from .test_interrupts import interrupting

__all__ = ("interrupting",)

Conf = score.distlock.ConfiguredDistlockModule
Lock = score.distlock.Lock
Db = psycopg.Connection[Any]


class Front:
    """A server behind a proxy, and the faults that tests cause."""

    def __init__(self, server: Server, url: str) -> None:
        self.proxy = Proxy(f"{server.folder}/.s.PGSQL.{server.port}")
        self.direct = url
        database = url.partition("?")[0].rpartition("/")[2]
        self.url = f"postgresql://postgres@127.0.0.1:{self.proxy.port}/{database}"
        self.observer = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1m"})
        self.db: Db = psycopg.connect(url, autocommit=True)

    def configure(self, maxtime: str = "1h", pool_timeout: str = "300ms", **more: str) -> Conf:
        """A module that uses the proxy, with connections that have prepared every statement."""
        options = {
            "sqlalchemy.url": self.url,
            "maxtime": maxtime,
            "sqlalchemy.pool_timeout": pool_timeout,
            **more,
        }
        conf = patiently(lambda: score.distlock.init(options))

        def warm_up() -> None:
            # Not with a lease that may expire meanwhile.
            with conf.get("warm-up").hold(maxtime="1m", timeout=60) as lock:
                lock.transfer()

        patiently(warm_up)
        return conf

    def cut(self) -> None:
        self.proxy.refuse(True)
        self.proxy.cut_all()

    def restore(self) -> None:
        self.proxy.refuse(False)

    def rename(self) -> None:
        self.db.execute("ALTER TABLE _score_distlock RENAME TO elsewhere")

    def rename_back(self) -> None:
        self.db.execute("ALTER TABLE elsewhere RENAME TO _score_distlock")

    def await_free(self, *names: str) -> None:
        """Returns when others can get all the names; limited by the test's own timeout."""
        for name in names:
            while (token := self.observer.try_acquiring(name)) is None:
                time.sleep(0.005)
            self.observer.release(name, token)

    def is_free(self, name: str) -> bool:
        token = self.observer.try_acquiring(name)
        if token is not None:
            self.observer.release(name, token)
        return token is not None

    def close(self) -> None:
        self.proxy.close()
        self.db.close()


@pytest.fixture
def front(server: Server, server_url: str) -> Iterator[Front]:
    front = Front(server, server_url)
    yield front
    front.close()


# A failing release must not crash the interpreter.

FAILING = """
import asyncio, logging, os, sys, psycopg, score.distlock
from score.distlock import DatabaseError, DatabaseUnavailable
from tests.support.line import patiently
from tests.support.proxy import Proxy

logging.basicConfig(level=logging.DEBUG, stream=open(os.devnull, 'w'))
url, path, fault, ending = sys.argv[1:]
proxy = Proxy(path)
db = psycopg.connect(url, autocommit=True)
database = url.partition('?')[0].rpartition('/')[2]
conf = patiently(lambda: score.distlock.init({
    'sqlalchemy.url': proxy.url(database),
    'sqlalchemy.pool_timeout': '200ms' if fault == 'cut' else '30s',
}))
ran = []
def fail():
    ran.append(1)
    if fault == 'SQL error':
        db.execute('ALTER TABLE _score_distlock RENAME TO elsewhere')
    else:
        proxy.refuse(True)
        proxy.cut_all()
    if ending == 'raising':
        raise KeyError('of the body')
    if ending == 'exiting':
        sys.exit(5)
"""

FORMS = {
    "with": "with conf.get('x'): fail()",
    "nested": "with conf.get('x') as lock:\n    with lock: fail()",
    "hold": "with conf.get('x').hold(autoextend=True): fail()",
    "acquire_all": "with conf.acquire_all(['x', 'y']): fail()",
    "locked": "conf.locked('x')(fail)()",
    "async with": (
        "async def main():\n    async with conf.aio.get('x'): fail()\nasyncio.run(main())"
    ),
    "async acquire_all": (
        "async def main():\n    async with conf.aio.acquire_all(['x', 'y']): fail()\n"
        "asyncio.run(main())"
    ),
}


#: A busy machine may exceed the time limit before the block begins.
UNTIL_IT_RAN = """
while True:
    try:
{}
        break
    except DatabaseUnavailable:
        if ran: raise
"""


def indented(form: str) -> str:
    return textwrap.indent(FORMS[form], " " * 8)


def run_failing(front: Front, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-c",
            FAILING + code,
            front.direct,
            front.proxy.path,
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["plain", "raising", "exiting"])
@pytest.mark.parametrize("fault", ["SQL error", "cut"])
def test_a_block_whose_release_fails(front: Front, form: str, ending: str, fault: str) -> None:
    """Only the `with` statement refers to the Lock: it is dropped as the exception propagates."""
    result = run_failing(front, UNTIL_IT_RAN.format(indented(form)), fault, ending)
    assert result.returncode == 1, result.stderr
    expected = "DatabaseError" if fault == "SQL error" else "DatabaseUnavailable"
    lines = result.stderr.splitlines()
    assert any(line.startswith(f"score.distlock.{expected}: ") for line in lines), result.stderr
    assert "SystemError" not in result.stderr
    assert "Fatal Python error" not in result.stderr
    if ending == "raising":
        assert "KeyError: 'of the body'" in result.stderr
    if ending == "exiting":
        assert "SystemExit: 5" in result.stderr


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", ["SQL error", "cut"])
def test_a_block_whose_release_fails_is_caught(front: Front, form: str, fault: str) -> None:
    """The exception is an ordinary one, the body's own is its context, and the program goes on."""
    code = (
        f"while len(ran) < 3:\n    before = len(ran)\n    try:\n{indented(form)}\n"
        "    except DatabaseError as error:\n"
        "        if len(ran) == before: continue\n"
        "        seen, context = type(error).__name__, error\n"
        "        while context.__context__ is not None: context = context.__context__\n"
        "        print(seen, repr(context))\n"
        "    if fault == 'SQL error':\n"
        "        db.execute('ALTER TABLE elsewhere RENAME TO _score_distlock')\n"
        "    else:\n"
        "        proxy.refuse(False)\n"
        "    while True:\n"
        "        try:\n"
        "            conf.release('x', conf.acquire('x', timeout=20)); break\n"
        "        except DatabaseUnavailable: pass\n"
    )
    result = run_failing(front, code, fault, "raising")
    assert result.returncode == 0, result.stderr
    expected = "DatabaseError" if fault == "SQL error" else "DatabaseUnavailable"
    assert result.stdout == f"{expected} KeyError('of the body')\n" * 3


# A block is left exactly once.

Block = Callable[[Conf, str], AbstractContextManager[Any]]


@contextmanager
def nested(conf: Conf, name: str) -> Iterator[None]:
    with conf.get(name) as lock, lock, lock.hold():
        yield


BLOCKS: dict[str, Block] = {
    "with": lambda conf, name: conf.get(name),
    "hold": lambda conf, name: conf.get(name).hold(),
    "autoextend": lambda conf, name: conf.get(name).hold(autoextend=True),
    "nested": nested,
    "acquire_all": lambda conf, name: conf.acquire_all([name, "a", "z"]),
}

#: What makes the end of a block fail, and what repairs it.
FAULTS: dict[str, tuple[Callable[[Front], None], Callable[[Front], None]]] = {
    "cut": (Front.cut, Front.restore),
    "SQL error": (Front.rename, Front.rename_back),
}


def use_again(front: Front, conf: Conf, lock: Lock, block: Block, name: str) -> None:
    """Each later block enters the first level, and its end ends the hold."""
    for again in [block, BLOCKS["with"], block]:
        with again(conf, name):
            assert lock.token is not None
            assert not lock.expired
            assert front.observer.try_acquiring(name) is None
        assert front.is_free(name)
        assert lock.token is None


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("raising", [False, True], ids=["plain", "raising"])
def test_a_block_ends_while_the_database_fails(
    front: Front, kind: str, fault: str, raising: bool
) -> None:
    conf, block = front.configure(), BLOCKS[kind]
    lock = conf.get("name")
    begin, end = FAULTS[fault]
    for _ in range(2):
        with pytest.raises(DatabaseError) as raised, block(conf, "name"):
            begin(front)
            if raising:
                raise KeyError("of the body")
        assert not raising or isinstance(raised.value.__context__, KeyError)
        end(front)
        front.await_free("name", "a", "z")
        use_again(front, conf, lock, block, "name")


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_end_needs_nobody_to_free_the_name_for_its_owner(
    front: Front, kind: str, fault: str
) -> None:
    """The next block of the same unit of work enters, even if the release is still pending."""
    conf, block = front.configure(pool_timeout="2s"), BLOCKS[kind]
    lock = conf.get("name")
    begin, end = FAULTS[fault]
    with pytest.raises(DatabaseError), block(conf, "name"):
        begin(front)
    end(front)
    with block(conf, "name"):
        assert front.observer.try_acquiring("name") is None
        lock.extend()
    assert front.is_free("name")


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_ends_by_ctrl_c_in_the_release(front: Front, interrupting: None, kind: str) -> None:
    # A call that waits for the server, instead of giving up, would exceed the test's timeout.
    conf, block = front.configure(pool_timeout="1m"), BLOCKS[kind]
    lock = conf.get("name")

    def press_ctrl_c() -> None:
        front.proxy.frozen.wait()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press_ctrl_c)
    with pytest.raises(KeyboardInterrupt), block(conf, "name"):
        front.proxy.freeze_answers()
        thread.start()
    thread.join()
    front.proxy.thaw()
    front.await_free("name", "a", "z")
    use_again(front, conf, lock, block, "name")


@pytest.mark.parametrize("kind", ["with", "hold", "nested"])
def test_the_lease_runs_out_while_a_block_ends(front: Front, kind: str) -> None:
    conf, block = front.configure("500ms"), BLOCKS[kind]
    lock = conf.get("name")
    for _ in range(2):
        with pytest.raises((LockExpired, DatabaseUnavailable)), block(conf, "name"):
            front.cut()
            await_expiry(front.db, "name")
        front.restore()
        front.await_free("name", "a", "z")
        with conf.get("name").hold(maxtime="1m"):
            use_inside(front, lock)
        assert front.is_free("name")
        assert lock.token is None


def use_inside(front: Front, lock: Lock) -> None:
    lock.extend()
    assert not lock.expired
    assert front.observer.try_acquiring(lock.name) is None


@pytest.mark.parametrize("kind", ["autoextend", "acquire_all"])
def test_a_lease_runs_out_that_was_extended_automatically(front: Front, kind: str) -> None:
    conf = front.configure("500ms")
    lock = conf.get("name")
    blocks: dict[str, Block] = {
        "autoextend": lambda conf, name: conf.get(name).hold(autoextend=True),
        "acquire_all": lambda conf, name: conf.acquire_all([name, "a"], autoextend=True),
    }
    for _ in range(2):
        with pytest.raises((LockExpired, DatabaseUnavailable)), blocks[kind](conf, "name"):
            front.cut()
            await_expiry(front.db, "name")
        front.restore()
        front.await_free("name", "a")
        with lock.hold(maxtime="1m"):
            use_inside(front, lock)
        assert front.is_free("name")


@pytest.mark.parametrize("kind", ["autoextend", "acquire_all"])
def test_nothing_extends_a_hold_whose_block_is_over(front: Front, kind: str) -> None:
    """Only the release fails, so that only an extension could keep the hold."""
    conf = front.configure("600ms")
    blocks: dict[str, Block] = {
        "autoextend": lambda conf, name: conf.get(name).hold(autoextend=True),
        "acquire_all": lambda conf, name: conf.acquire_all([name], autoextend=True),
    }
    front.db.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF TG_OP = 'DELETE' OR NEW.lease IS NULL THEN
                RAISE EXCEPTION 'no release';
            END IF;
            RETURN NEW;
        END $$
    """)
    front.db.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON _score_distlock"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    lock = conf.get("name")
    with pytest.raises(DatabaseError, match="no release"), blocks[kind](conf, "name"):
        pass
    query = "SELECT updated FROM _score_distlock WHERE name = 'name'"
    before = front.db.execute(query).fetchone()
    await_expiry(front.db, "name")
    assert front.db.execute(query).fetchone() == before
    with front.db.transaction():
        front.db.execute("DROP TRIGGER refuse ON _score_distlock")
    front.await_free("name")
    with lock.hold(maxtime="1m"):
        use_inside(front, lock)
    assert front.is_free("name")


def async_blocks() -> dict[str, Callable[[Conf, str], Any]]:
    @contextlib.asynccontextmanager
    async def nested(conf: Conf, name: str) -> AsyncIterator[None]:
        lock = conf.aio.get(name)
        async with lock, lock, lock.hold():
            yield

    return {
        "with": lambda conf, name: conf.aio.get(name),
        "autoextend": lambda conf, name: conf.aio.get(name).hold(autoextend=True),
        "nested": nested,
        "acquire_all": lambda conf, name: conf.aio.acquire_all([name, "a", "z"]),
    }


ASYNC_BLOCKS = async_blocks()


@pytest.mark.parametrize("kind", ASYNC_BLOCKS)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_asynchronous_block_ends_while_the_database_fails(
    front: Front, kind: str, fault: str
) -> None:
    conf, block = front.configure(), ASYNC_BLOCKS[kind]
    begin, end = FAULTS[fault]

    async def main() -> None:
        lock = conf.aio.get("name")
        for _ in range(2):
            with pytest.raises(DatabaseError):
                async with block(conf, "name"):
                    begin(front)
            end(front)
            front.await_free("name", "a", "z")
            for _ in range(2):
                async with block(conf, "name"):
                    assert front.observer.try_acquiring("name") is None
                    await lock.extend()
                assert front.is_free("name")
                assert lock.token is None

    asyncio.run(main())


@pytest.mark.parametrize("kind", ASYNC_BLOCKS)
def test_an_asynchronous_block_is_cancelled_in_its_release(front: Front, kind: str) -> None:
    conf, block = front.configure(pool_timeout="20s"), ASYNC_BLOCKS[kind]

    async def leave() -> None:
        async with block(conf, "name"):
            front.proxy.freeze_answers()

    async def main() -> None:
        lock = conf.aio.get("name")
        task = asyncio.create_task(leave())
        await asyncio.to_thread(front.proxy.frozen.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        front.proxy.thaw()
        await asyncio.to_thread(front.await_free, "name", "a", "z")
        for _ in range(2):
            async with block(conf, "name"):
                await lock.extend()
            assert front.is_free("name")

    asyncio.run(main())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_release_that_failed_can_be_repeated(front: Front, fault: str) -> None:
    conf = front.configure()
    begin, end = FAULTS[fault]
    lock = conf.get("name")
    for _ in range(2):
        token = lock.acquire()
        begin(front)
        for _ in range(2):
            with pytest.raises(DatabaseError):
                lock.release()
        assert lock.token == token
        end(front)
        while True:
            try:
                lock.release()
                break
            except DatabaseUnavailable:
                pass
        assert lock.token is None
        assert front.is_free("name")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_release_by_token_that_failed_can_be_repeated(front: Front, fault: str) -> None:
    conf = front.configure()
    begin, end = FAULTS[fault]
    token = conf.acquire("name")
    begin(front)
    for _ in range(2):
        with pytest.raises(DatabaseError):
            conf.release("name", token)
    end(front)
    while True:
        try:
            conf.release("name", token)
            break
        except DatabaseUnavailable:
            pass
    assert front.is_free("name")


# A late exit ends only its own hold.


def run(work: Any, *arguments: Any) -> Any:
    """Calls it in a new thread and a new context."""
    return Background(work, *arguments).result()


@pytest.mark.parametrize("own_object", [False, True], ids=["one Lock", "two Locks"])
@pytest.mark.parametrize("options", [False, True], ids=["with lock", "lock.hold"])
def test_a_late_exit_on_a_third_thread(
    conf: Conf, url: str, db: Db, own_object: bool, options: bool
) -> None:
    short = score.distlock.init({"sqlalchemy.url": url, "maxtime": "200ms"})
    first = short.get("name")
    late = first.hold(maxtime="200ms") if options else first
    run(late.__enter__)
    await_expiry(db, "name")
    second = Lock(conf, "name") if own_object else first
    block = second.hold(maxtime="1m")
    run(block.__enter__)
    row = db.execute("SELECT token, fence FROM _score_distlock").fetchone()
    assert row is not None
    with pytest.raises(LockExpired):
        run(late.__exit__, None, None, None)
    assert db.execute("SELECT token, fence FROM _score_distlock").fetchone() == row
    conf.extend("name", row[0])
    assert not second.expired
    assert score.distlock.init({"sqlalchemy.url": url}).try_acquiring("name") is None
    run(block.__exit__, None, None, None)
    assert conf.acquire("name")


def test_a_late_exit_on_the_other_owners_own_thread(conf: Conf, db: Db) -> None:
    """A `hold` knows its level, whoever leaves it."""
    lock = conf.get("name")
    late, block = lock.hold(maxtime="200ms"), lock.hold(maxtime="1m")
    Background(late.__enter__).result()
    await_expiry(db, "name")
    with block:
        token = lock.token
        with pytest.raises(LockExpired):
            late.__exit__(None, None, None)
        assert lock.token == token
        assert not lock.expired
        lock.extend()
    assert conf.acquire("name")


def test_an_exit_on_another_thread_ends_the_hold(conf: Conf) -> None:
    for block in (conf.get("name"), conf.get("name").hold(autoextend=True)):
        Background(block.__enter__).result()
        Background(block.__exit__, None, None, None).result()
        conf.release("name", conf.acquire("name"))


def test_a_late_exit_of_a_task_ends_no_other_tasks_hold(conf: Conf, db: Db) -> None:
    async def main() -> None:
        lock = conf.aio.get("name")
        entered, taken, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def late() -> None:
            with pytest.raises(LockExpired):
                async with lock.hold(maxtime="200ms"):
                    entered.set()
                    await taken.wait()
            left.set()

        async def after() -> None:
            await entered.wait()
            await_expiry(db, "name")
            async with lock.hold(maxtime="1m"):
                taken.set()
                await left.wait()
                await lock.extend()
                assert not lock.expired

        await asyncio.gather(late(), after())

    asyncio.run(main())
    assert conf.acquire("name")


# Losses are reported.


class Losses:
    """Counts how often the loss of each lock was reported."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.told = threading.Semaphore(0)

    def __call__(self, lock: Any) -> None:
        self.names.append(lock.name)
        self.told.release()


def settle(conf: Conf, losses: Losses) -> None:
    """Loses another hold, whose report comes after all pending ones."""
    other = score.distlock.Lock(conf, "settled")
    with pytest.raises(LockExpired), other.hold(on_lost=losses, autoextend=True):
        Background(conf.release, "settled", other.token).result()
        losses.told.acquire()


RELEASES: dict[str, Callable[[Conf, Conf, Lock, str], Any]] = {
    "conf.release in another thread": lambda conf, other, lock, token: Background(
        conf.release, "name", token
    ).result(),
    "lock.release(token) in another thread": lambda conf, other, lock, token: Background(
        lock.release, token
    ).result(),
    "another Lock object": lambda conf, other, lock, token: Background(
        Lock(conf, "name").release, token
    ).result(),
    "another conf": lambda conf, other, lock, token: other.release("name", token),
    "another conf's Lock": lambda conf, other, lock, token: other.get("name").release(token),
    "conf.release inside the block": lambda conf, other, lock, token: conf.release("name", token),
    "aio": lambda conf, other, lock, token: Background(
        asyncio.run, conf.aio.release("name", token)
    ).result(),
}


@pytest.mark.parametrize("autoextend", [False, True], ids=["fixed", "autoextend"])
@pytest.mark.parametrize("how", RELEASES)
def test_a_hold_that_is_released_by_its_token_inside_a_block(
    conf: Conf, url: str, how: str, autoextend: bool, caplog: pytest.LogCaptureFixture
) -> None:
    other = score.distlock.init({"sqlalchemy.url": url})
    lock, losses = conf.get("name"), Losses()
    with caplog.at_level(logging.WARNING, "score.distlock"):
        with (
            pytest.raises(LockExpired) as raised,
            lock.hold(on_lost=losses, autoextend=autoextend),
        ):
            token = lock.token
            assert token is not None
            RELEASES[how](conf, other, lock, token)
            assert lock.expired
            losses.told.acquire()
        assert raised.value.args == ("name", token)
        assert raised.value.reason == "released"
        settle(conf, losses)
    assert losses.names.count("name") == 1
    records = [
        record
        for record in caplog.records
        if record.name == "score.distlock" and "'name'" in record.getMessage().replace('"', "'")
    ]
    assert len(records) == 1
    assert records[0].levelno == logging.WARNING
    assert str(token) not in caplog.text
    with lock:
        assert not lock.expired
    assert other.try_acquiring("name")


@pytest.mark.parametrize("how", RELEASES)
def test_a_released_hold_that_somebody_else_has_by_the_end_of_the_block(
    conf: Conf, url: str, how: str
) -> None:
    other = score.distlock.init({"sqlalchemy.url": url})
    lock = conf.get("name")
    with pytest.raises(LockExpired) as raised, lock:
        token = lock.token
        assert token is not None
        RELEASES[how](conf, other, lock, token)
        taken = other.acquire("name")
    assert raised.value.reason == "released"
    other.extend("name", taken)


@pytest.mark.parametrize("how", RELEASES)
def test_a_released_hold_of_nested_blocks(conf: Conf, url: str, how: str) -> None:
    """When others use the token, all levels end; the end of each block reports it."""
    if "inside" in how:
        pytest.skip("the owner's own release takes one level off")
    other = score.distlock.init({"sqlalchemy.url": url})
    lock = conf.get("name")
    with pytest.raises(LockExpired), lock:
        with pytest.raises(LockExpired), lock:
            token = lock.token
            assert token is not None
            RELEASES[how](conf, other, lock, token)
            assert lock.expired
        assert lock.expired
    with lock:
        assert other.try_acquiring("name") is None
    assert other.try_acquiring("name")


NESTED: dict[str, Callable[[Any], Any]] = {
    "with lock": lambda lock: lock,
    "hold": lambda lock: lock.hold(),
}


@pytest.mark.parametrize("block", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("how", [how for how in RELEASES if "inside" in how])
def test_a_release_inside_of_a_nested_block(
    conf: Conf, url: str, how: str, block: Callable[[Any], Any]
) -> None:
    """It removes the inner block's level, whose end reports it; the outer block keeps its own."""
    other = score.distlock.init({"sqlalchemy.url": url})
    lock = conf.get("name")
    with block(lock):
        with pytest.raises(LockExpired) as raised, block(lock):
            RELEASES[how](conf, other, lock, str(lock.token))
            assert other.try_acquiring("name") is None
        assert raised.value.reason == "released"
        with block(lock):
            pass
        with block(lock):
            RELEASES[how](conf, other, lock, str(lock.token))
            lock.acquire()
        assert not lock.expired
        assert other.try_acquiring("name") is None
    assert other.try_acquiring("name")


@pytest.mark.parametrize("block", NESTED.values(), ids=NESTED)
def test_a_release_inside_of_a_coroutines_nested_block(
    conf: Conf, url: str, block: Callable[[Any], Any]
) -> None:
    other = score.distlock.init({"sqlalchemy.url": url})

    async def main() -> None:
        lock = conf.aio.get("name")
        async with block(lock):
            with pytest.raises(LockExpired):
                async with block(lock):
                    await lock.release()
            assert other.try_acquiring("name") is None
        assert other.try_acquiring("name")

    asyncio.run(main())


def test_another_process_releases_what_is_extended_automatically(
    brief: Conf, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    lock, losses = brief.get("name"), Losses()
    code = (
        "import sys, score.distlock\n"
        "score.distlock.init({'sqlalchemy.url': sys.argv[1]}).release('name', sys.argv[2])\n"
    )
    with caplog.at_level(logging.WARNING, "score.distlock"):
        with pytest.raises(LockExpired), lock.hold(on_lost=losses, autoextend=True):
            python(code, url, str(lock.token))
            losses.told.acquire()
            assert lock.expired
        settle(brief, losses)
    assert losses.names.count("name") == 1
    assert [record for record in caplog.records if "name" in record.getMessage()]


# An answer that arrives after the lease is no success.


def await_row(db: Db, condition: str) -> None:
    query = f"SELECT count(*) FROM _score_distlock WHERE name = 'name' AND {condition}"
    while db.execute(query).fetchone() == (0,):
        time.sleep(0.002)


#: Whether the hold was alive when each body began.
believed: list[bool] = []


def enter(lock: Lock, block: AbstractContextManager[Any]) -> bool:
    """Records whether the hold is alive when the body begins, since the block's end may raise."""
    with block:
        believed.append(not lock.expired and lock.remaining > 0)
        return True


def acquire(lock: Lock, **options: Any) -> bool:
    lock.acquire(**options)
    return not lock.expired and lock.remaining > 0


LATE: dict[str, Callable[[Lock], bool]] = {
    "acquire": acquire,
    "waiting": lambda lock: acquire(lock, timeout="20s"),
    "with": lambda lock: enter(lock, lock),
    "hold": lambda lock: enter(lock, lock.hold()),
    "autoextend": lambda lock: enter(lock, lock.hold(autoextend=True)),
    "acquire_all": lambda lock: enter(lock, lock.conf.acquire_all(["name"])),
}


@pytest.mark.parametrize("how", LATE)
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_the_answer_to_acquire_is_later_than_the_lease(front: Front, how: str, taken: bool) -> None:
    conf = front.configure("300ms", "20s")
    lock = conf.get("name")
    front.proxy.freeze_answers()
    believed.clear()
    attempt = Background(LATE[how], lock)
    await_row(front.db, "lease IS NOT NULL")
    await_expiry(front.db, "name")
    token = front.observer.acquire("name") if taken else None
    front.proxy.thaw()
    if token is not None and how == "waiting":
        # It goes on waiting.
        wait_until_waiting(front.db, 1)
        front.observer.release("name", token)
        token = None
    try:
        assert attempt.result()
        assert token is None
    except (CouldNotAcquireLock, LockExpired):
        pass
    assert all(believed)
    if token is not None:
        front.observer.extend("name", token)
        front.observer.release("name", token)
    front.await_free("name")


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_a_loop_that_is_blocked_until_the_lease_is_over(
    url: str, conf: Conf, brief: Conf, db: Db, taken: bool
) -> None:
    """The database answers in time, but the coroutine gets the answer late."""

    async def main() -> None:
        lock = brief.aio.get("name")
        believed: list[bool] = []

        async def work() -> None:
            async with lock.hold():
                believed.append(not lock.expired)

        task = asyncio.create_task(work())
        query = "SELECT count(*) FROM _score_distlock WHERE name = 'name' AND lease IS NOT NULL"
        for _ in range(200):
            await asyncio.sleep(0)
            for _ in range(20):
                if db.execute(query).fetchone() == (1,):
                    break
            else:
                continue
            break
        await_expiry(db, "name")
        token = conf.acquire("name") if taken else None
        with contextlib.suppress(CouldNotAcquireLock, LockExpired):
            await task
        assert all(believed)
        if token is not None:
            assert not believed
            conf.extend("name", token)

    brief.release("warm-up", brief.acquire("warm-up"))
    asyncio.run(main())


@pytest.mark.parametrize("operation", ["extend", "transfer", "acquire", "try_acquiring"])
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_the_answer_to_a_holder_is_later_than_the_lease(
    front: Front, operation: str, taken: bool
) -> None:
    """The same holds for extending, transferring and re-entering."""
    conf = front.configure("1s", "20s")
    lock = conf.get("name")
    result: list[Any] = []
    row = front.db.execute

    def hold() -> None:
        lock.acquire()
        entered.set()
        go_on.wait()
        try:
            getattr(lock, operation)()
            result.append(lock.expired)
        except BaseException as error:
            result.append(error)

    entered, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    query = "SELECT token, updated, expires FROM _score_distlock WHERE name = 'name'"
    before = row(query).fetchone()
    front.proxy.freeze_answers()
    go_on.set()
    while row(query).fetchone() == before:
        time.sleep(0.002)
    await_expiry(front.db, "name")
    token = front.observer.acquire("name") if taken else None
    front.proxy.thaw()
    thread.join()
    assert isinstance(result[0], LockExpired)
    if token is not None:
        front.observer.extend("name", token)


# Renewal ends with a release, or with a reported loss.


def keeps_being_extended(db: Db, conf: Conf, lock: Any, losses: Losses) -> None:
    for _ in range(3):
        outlive(db)
        assert conf.try_acquiring("name") is None
        assert not lock.expired
        assert losses.names == []
    row = db.execute("SELECT token FROM _score_distlock WHERE name = 'name'").fetchone()
    assert row == (lock.token,)


@pytest.mark.parametrize("through", ["conf", "lock", "another conf"])
def test_extending_with_the_old_token_while_it_is_transferred(
    url: str, conf: Conf, db: Db, through: str
) -> None:
    extended = score.distlock.init({"sqlalchemy.url": url, "maxtime": "600ms"})
    lock, losses = extended.get("name"), Losses()
    known: list[str] = []
    stop = threading.Event()

    def extend() -> None:
        while not stop.is_set():
            with contextlib.suppress(LockExpired):
                if through == "lock":
                    lock.extend(known[-1])
                else:
                    (conf if through == "another conf" else extended).extend("name", known[-1])

    with lock.hold(autoextend=True, on_lost=losses):
        known.append(str(lock.token))
        racing = [Background(extend) for _ in range(2)]
        for _ in range(60):
            known.append(lock.transfer())
            assert not lock.expired
        stop.set()
        for one in racing:
            one.result()
        keeps_being_extended(db, conf, lock, losses)
    assert conf.acquire("name")


@pytest.mark.parametrize("operation", ["extend", "release"])
def test_a_token_that_was_never_this_holds_own_says_nothing_of_it(
    conf: Conf, url: str, db: Db, operation: str
) -> None:
    extended = score.distlock.init({"sqlalchemy.url": url, "maxtime": "500ms"})
    lock, losses = extended.get("name"), Losses()
    with lock.hold(autoextend=True, on_lost=losses):
        old = str(lock.token)
        lock.transfer()
        for token in ("0" * 256, old):
            for call in (getattr(extended, operation), getattr(conf, operation)):
                with pytest.raises(LockExpired):
                    call("name", token)
            with pytest.raises(LockExpired):
                getattr(lock, operation)(token)
        keeps_being_extended(db, conf, lock, losses)
    assert conf.acquire("name")


@pytest.mark.parametrize("table", [True, False], ids=["with a table", "without"])
def test_a_guard_on_another_database_ends_no_renewal(
    conf: Conf, url: str, admin_url: str, db: Db, table: bool
) -> None:
    extended = score.distlock.init({"sqlalchemy.url": url, "maxtime": "500ms"})
    lock, losses = extended.get("name"), Losses()
    with fresh_database(admin_url) as foreign:
        if table:
            score.distlock.init({"sqlalchemy.url": foreign}).vacuum()
        with lock.hold(autoextend=True, on_lost=losses):
            with psycopg.connect(foreign) as connection:
                with pytest.raises(Exception) as raised, lock.guard(connection):
                    pass
                assert not isinstance(raised.value, AssertionError)
                connection.rollback()
            keeps_being_extended(db, conf, lock, losses)
    assert conf.acquire("name")


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_guard_in_an_older_snapshot_ends_no_renewal(
    conf: Conf, url: str, db: Db, level: str
) -> None:
    extended = score.distlock.init({"sqlalchemy.url": url, "maxtime": "500ms"})
    lock, losses = extended.get("name"), Losses()
    with psycopg.connect(url) as connection:
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        connection.execute("SELECT count(*) FROM _score_distlock")
        with lock.hold(autoextend=True, on_lost=losses):
            with pytest.raises(Exception) as raised, lock.guard(connection):
                pass
            assert not isinstance(raised.value, AssertionError)
            connection.rollback()
            keeps_being_extended(db, conf, lock, losses)
    assert conf.acquire("name")
