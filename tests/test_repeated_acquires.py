"""An acquire whose first statement runs late: after its repetition, or after its caller has given
up. Its effect is undone, and the hold granted to the repetition stays."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import score.distlock

from .support.line import until
from .support.server import Server
from .test_late_statements import standing_still

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]

#: The background thread uses this to look up a lock's holder.
LOOK = "SELECT token, fence FROM%"


def fence(db: Db, name: str) -> int | None:
    """The fence of the hold, if there is one."""
    query = "SELECT fence FROM _score_distlock WHERE name = %s AND expires > clock_timestamp()"
    row = db.execute(query, (name,)).fetchone()
    return row[0] if row else None


def drawn_last(db: Db) -> Any:
    """The last fence drawn; it changes as soon as somebody acquires a lock."""
    return db.execute("SELECT last_value FROM _score_distlock_fence_seq").fetchone()


@pytest.fixture
def own_db(through: Any, own_url: str) -> Iterator[Db]:
    """A connection that bypasses the proxy, to a table without rows."""
    with psycopg.connect(own_url, autocommit=True) as db:
        db.execute("DELETE FROM _score_distlock")
        yield db


@pytest.fixture
def slow(own_db: Db, through: Any) -> Conf:
    """A module that has used every statement once, so that it sends each in one go."""
    slow: Conf = through(options="?application_name=slow")
    for _ in range(3):
        with slow.get("late"):
            pass
    return slow


def looks(db: Db) -> set[Any]:
    """The times when the module's background thread has looked."""
    query = "SELECT query_start FROM pg_stat_activity WHERE query LIKE %s"
    return set(db.execute(query, (LOOK,)))


def test_what_the_first_statement_takes_after_the_release_is_given_back(
    slow: Conf, own_db: Db, proxy: Any, own_url: str
) -> None:
    """Its connection breaks while its server process is stopped, for less than five seconds."""
    other = score.distlock.init({"sqlalchemy.url": own_url})
    with standing_still(own_db, "slow"):
        # Bind, Execute, Sync: the server has the whole statement.
        cut = proxy.arm("request", 2, "after")
        with slow.get("late"):
            assert cut.done.is_set()
        drawn = drawn_last(own_db)
    until(lambda: drawn_last(own_db) != drawn)  # the first statement has taken the lock
    # A waiter gets it long before its lease ends.
    other.release("late", other.acquire("late", timeout=30))
    assert slow.acquire("late")


def test_the_process_itself_need_not_wait_for_that(
    slow: Conf, own_db: Db, proxy: Any, own_url: str
) -> None:
    for _ in range(3):
        with standing_still(own_db, "slow"):
            cut = proxy.arm("request", 2, "after")
            with slow.get("late"):
                assert cut.done.is_set()
        with slow.get("late"):
            pass


def test_the_hold_of_the_repetition_stays(slow: Conf, own_db: Db, proxy: Any, own_url: str) -> None:
    """Although it has the token that the background thread looks for."""
    lock = slow.get("late")
    with standing_still(own_db, "slow"):
        cut = proxy.arm("request", 2, "after")
        lock.acquire()
        assert cut.done.is_set()
    granted = lock.fence
    seen: set[Any] = set()

    def has_looked() -> bool:
        seen.update(looks(own_db))
        return len(seen) > 2

    until(has_looked)
    assert not slow.try_acquiring("late")
    assert fence(own_db, "late") == granted
    lock.extend()
    # With another fence, the same token proves another hold.
    own_db.execute("UPDATE _score_distlock SET fence = fence + 1 WHERE name = 'late'")
    with pytest.raises(score.distlock.LockExpired):
        lock.extend()


def test_a_given_up_acquire_may_have_been_repeated(
    slow: Conf, own_db: Db, proxy: Any, own_url: str
) -> None:
    """The repetition takes the lock, which is released, and then the first statement runs."""

    async def give_up() -> None:
        task = asyncio.create_task(slow.aio.acquire("late"))
        await asyncio.to_thread(proxy.frozen.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with standing_still(own_db, "slow"):
        cut = proxy.arm("request", 2, "after")
        # The repetition's answer: it has taken the lock, but the caller does not learn that.
        proxy.freeze_answer_to(b"late", skip=1)
        asyncio.run(give_up())
        assert cut.done.is_set()
        proxy.thaw()
        until(lambda: fence(own_db, "late") is None)
        drawn = drawn_last(own_db)
    until(lambda: drawn_last(own_db) != drawn)  # the first statement has taken the lock
    until(lambda: fence(own_db, "late") is None)


def test_a_ticket_that_enters_the_queue_late_leaves_it(
    through: Any, own_db: Db, proxy: Any, own_url: str
) -> None:
    """The caller has repeated it, given up and left the queue before the ticket enters it."""
    conf = through()
    other = Conf(own_url, "1m")
    token = other.acquire("late")
    requests = itertools.count()

    def is_second(message: bytes) -> bool:
        """The first request asks for the lock, the second enters the queue."""
        return message[:1] == b"B" and b"\0\0\0\x04late" in message and next(requests) == 1

    async def give_up() -> None:
        task = asyncio.create_task(conf.aio.acquire("late", timeout=20))
        await asyncio.to_thread(proxy.frozen.wait)
        await asyncio.to_thread(until, lambda: own_db.execute(query).fetchone() == (1,))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    query = "SELECT cardinality(waiters) FROM _score_distlock WHERE name = 'late'"
    with pytest.raises(score.distlock.CouldNotAcquireLock):
        conf.acquire("late", timeout=0.5)  # from now on it listens
    until(lambda: own_db.execute(query).fetchone() == (None,))  # it may leave later
    proxy.freeze_request(is_second, cut=True)
    asyncio.run(give_up())
    until(lambda: own_db.execute(query).fetchone() == (None,))
    # The ticket may leave before the test looks.
    own_db.execute("CREATE TABLE entered ()")
    own_db.execute(
        "CREATE FUNCTION enter() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO entered DEFAULT VALUES; RETURN NEW; END'"
    )
    own_db.execute(
        "CREATE TRIGGER enter AFTER UPDATE ON _score_distlock FOR EACH ROW"
        " WHEN (NEW.waiters IS NOT NULL) EXECUTE FUNCTION enter()"
    )
    proxy.thaw()
    until(lambda: own_db.execute("SELECT count(*) FROM entered").fetchone() == (1,))
    until(lambda: own_db.execute(query).fetchone() == (None,))
    other.release("late", token)
    own_db.execute("DROP FUNCTION enter() CASCADE; DROP TABLE entered")


def test_what_many_have_given_up_costs_a_refusal_one_statement(
    server_url: str, server: Server
) -> None:
    """There is at most one hold, so one look tells whether it belongs to one of them."""
    conf = score.distlock.init({"sqlalchemy.url": server_url})
    other = Conf(server_url, "1m")
    token = other.acquire("late")

    async def give_up() -> None:
        for number in range(300):
            task = asyncio.create_task(conf.aio.acquire("late", timeout=20))
            await asyncio.sleep(number * 5e-6)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with psycopg.connect(server_url) as db, server.counting(db.info.dbname) as count:
        asyncio.run(give_up())
        costs = []
        for _ in range(5):
            before = count()
            for _ in range(100):
                assert conf.try_acquiring("late") is None
            costs.append(count() - before)
        # Two for each refusal, and a few in the background: at first those that were given up.
        assert min(costs) < 300, costs
    other.release("late", token)


@pytest.mark.timeout(30)
def test_who_closes_does_not_wait_for_what_may_come_late(
    own_db: Db, through: Any, proxy: Any
) -> None:
    """Although the server is down, and the module would retry for a minute."""
    conf = through(pool_timeout="1h")
    for _ in range(3):
        with conf.get("late"):
            pass
    cut = proxy.arm("request", 2, "after")
    with conf.get("late"):
        assert cut.done.is_set()
    proxy.refuse(True)
    proxy.cut_all()
    conf.close()
