"""A lock in steady use costs one statement per call, with the guarantees of the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock import LockExpired

from .support.line import Background, wait_until_waiting
from .support.server import Server

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


def use_once(conf: Conf) -> int:
    """Acquires and releases the lock, which this process remembers. Returns the fence."""
    with conf.get("name") as lock:
        assert lock.fence is not None
        return lock.fence


def test_steady_use_takes_one_statement_a_call(server: Server, server_url: str) -> None:
    with psycopg.connect(server_url) as db, server.counting(db.info.dbname) as count:
        conf = score.distlock.init({"sqlalchemy.url": server_url})
        use_once(conf)
        lock, other = conf.get("name"), score.distlock.Lock(conf, "name")

        def cost(call: Callable[[], Any]) -> int:
            before = count()
            call()
            return count() - before

        for _ in range(3):
            assert cost(lock.acquire) == 1
            other.try_acquiring()
            assert cost(other.try_acquiring) == 1
            assert cost(lock.extend) == 1
            assert cost(lock.release) == 1
            use_once(conf)
        # Also for a name that is new to everybody.
        assert cost(lambda: conf.acquire("new")) == 1


def test_one_of_many_gets_it(url: str, conf: Conf) -> None:
    """Whatever each process remembers, only one holds the lock at a time."""
    confs = [conf, *(score.distlock.init({"sqlalchemy.url": url}) for _ in range(3))]
    inside = 0
    seen: list[tuple[int, int]] = []
    start = threading.Barrier(len(confs))

    def work(conf: Conf) -> None:
        nonlocal inside
        if conf is confs[0]:
            use_once(conf)
        start.wait()
        lock = conf.get("name")
        done = 0
        while done < 50:
            if lock.try_acquiring():
                inside += 1
                seen.append((lock.fence or 0, inside))
                inside -= 1
                lock.release()
                done += 1

    threads = [threading.Thread(target=work, args=(conf,)) for conf in confs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [holders for _, holders in seen] == [1] * len(seen)
    fences = [fence for fence, _ in seen]
    assert fences == sorted(set(fences))


def test_it_is_not_taken_while_its_row_is_locked(conf: Conf, url: str) -> None:
    use_once(conf)
    with psycopg.connect(url) as other:
        other.execute("SELECT FROM _score_distlock WHERE name = 'name' FOR KEY SHARE")
        assert conf.try_acquiring("name") is None
    assert use_once(conf)


def test_it_is_not_taken_from_the_original(conf: Conf, db: Db) -> None:
    """0.2.5 has acquired it since, in our row or its own, without knowing our columns."""
    use_once(conf)
    db.execute(
        "UPDATE _score_distlock SET token = 'its own', acquired = now() AT TIME ZONE 'UTC',"
        " updated = now() AT TIME ZONE 'UTC'"
    )
    assert conf.try_acquiring("name") is None
    db.execute("DELETE FROM _score_distlock")
    use_once(conf)
    db.execute("DELETE FROM _score_distlock")
    db.execute(
        "INSERT INTO _score_distlock (name, token, acquired, updated) VALUES"
        " ('name', 'its own', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')"
    )
    assert conf.try_acquiring("name") is None


@pytest.mark.parametrize("how", ["released", "row deleted"])
def test_who_was_refused_notices_that_it_is_free(conf: Conf, db: Db, how: str) -> None:
    token = conf.acquire("name")
    other = score.distlock.Lock(conf, "name")
    for _ in range(2):
        assert other.try_acquiring() is None
    if how == "released":
        conf.release("name", token)
    else:
        db.execute("DELETE FROM _score_distlock")
    assert other.try_acquiring()
    with pytest.raises(LockExpired):
        conf.extend("name", token)


def test_a_hold_of_ours_that_the_original_extended_is_released(conf: Conf, db: Db) -> None:
    use_once(conf)
    token = conf.acquire("name")
    db.execute("UPDATE _score_distlock SET updated = updated + interval '1 second'")
    conf.release("name", token)
    assert conf.try_acquiring("name")


def test_a_release_is_not_waited_for_on_disk_and_an_acquisition_is(url: str, conf: Conf) -> None:
    """As the server itself sees it, at the moment of the change; also with waiters."""
    other = score.distlock.init({"sqlalchemy.url": url})
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("CREATE TABLE seen (change text, durability text)")
        db.execute("""
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO seen VALUES (
                    CASE
                      WHEN TG_OP = 'INSERT' THEN 'take'
                      WHEN NEW.token <> OLD.token THEN 'take'
                      WHEN NEW.lease IS NULL THEN 'release'
                      ELSE 'queue'
                    END,
                    current_setting('synchronous_commit'));
                RETURN NEW;
            END $$
        """)
        db.execute(
            "CREATE TRIGGER note BEFORE INSERT OR UPDATE ON _score_distlock"
            " FOR EACH ROW EXECUTE FUNCTION note()"
        )
        for _ in range(3):
            use_once(conf)
        for _ in range(3):
            token = conf.acquire("name")
            waiter = Background(other.acquire, "name", timeout=60)
            wait_until_waiting(db, 1)
            conf.release("name", token)
            other.release("name", waiter.result())
        found = db.execute("SELECT DISTINCT change, durability FROM seen ORDER BY 1").fetchall()
    assert found == [("queue", "off"), ("release", "off"), ("take", "on")]


def test_who_remembers_it_as_free_does_not_overtake_those_who_wait(conf: Conf, db: Db) -> None:
    """A waiter has arrived since, and the lock is left to it for a second."""
    use_once(conf)
    yielded = db.execute(
        "UPDATE _score_distlock SET waiters = '{16777217}', expires = clock_timestamp()"
        " RETURNING expires"
    ).fetchone()
    if conf.try_acquiring("name"):
        # Only if this process was stopped for that long.
        taken = db.execute(
            "SELECT expires - make_interval(secs => lease) - interval '1 second' >= %s"
            "  FROM _score_distlock",
            yielded,
        )
        assert taken.fetchone() == (True,)
