"""Every acquisition of a name gets a larger number than all before, in the database's order."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import psycopg
import psycopg.sql
import pytest

import score.distlock

from .conftest import SUPPORT, python, with_options
from .test_clock import await_expiry

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]


def log_acquisitions(db: Db) -> None:
    """Makes the server itself record, in order, which numbers get into the table."""
    db.execute(
        "CREATE TABLE taken (place bigserial PRIMARY KEY, name text, token text, fence bigint)"
    )
    db.execute("""
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO taken (name, token, fence) VALUES (NEW.name, NEW.token, NEW.fence);
            RETURN NEW;
        END $$
    """)
    db.execute(
        "CREATE TRIGGER note AFTER INSERT OR UPDATE OF token, fence ON _score_distlock"
        " FOR EACH ROW EXECUTE FUNCTION note()"
    )


def not_increasing(db: Db, told: dict[str, int] | None = None) -> list[Any]:
    """The acquisitions whose number is not larger than the previous one of the same name.

    An acquisition that inserts a row may replace its number before it answers. If its lease runs
    out before that, or its process is killed, nobody is told the number: only acquisitions that
    were `told` count, if given, by token.
    """
    taken = db.execute("SELECT token, name, fence FROM taken ORDER BY place").fetchall()
    # A dict keeps the place of the first number, and the value of the last one.
    last = {(name, token): fence for token, name, fence in taken}
    found = []
    before: dict[str, int] = {}
    for (name, token), fence in last.items():
        if told is not None and token not in told:
            continue
        if (told is not None and told[token] != fence) or fence <= before.get(name, 0):
            found.append((name, fence, before.get(name)))
        before[name] = fence
    return found


def test_numbers_increase_whatever_happens(url: str, db: Db) -> None:
    """Many processes, tiny leases, takeovers, kills; and deleted rows."""
    score.distlock.init({"sqlalchemy.url": url})
    log_acquisitions(db)
    stop = threading.Event()

    def delete_like_0_2_5() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not stop.is_set():
                connection.execute(
                    "DELETE FROM _score_distlock WHERE expires < clock_timestamp()"
                    " AND pg_sleep(0.001) IS NOT NULL"
                )

    deleting = threading.Thread(target=delete_like_0_2_5)
    deleting.start()
    processes = [
        subprocess.Popen(
            [sys.executable, str(SUPPORT / "fencer.py"), url, str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(6)
    ]
    # Less is printed than a pipe holds.
    lines = [line for process in processes for line in process.communicate()[0].splitlines()]
    stop.set()
    deleting.join()
    assert {process.returncode for process in processes} <= {0, -9}
    told = {token: int(fence) for token, fence in map(str.split, lines)}
    assert len(told) > 100
    # One number for each hold, and one hold for each number.
    assert len(told) == len(set(told.values())) == len(set(lines))
    assert not_increasing(db, told) == []
    names = db.execute("SELECT DISTINCT name FROM taken WHERE token = ANY (%s)", (list(told),))
    assert len(names.fetchall()) == 3


def test_the_check_catches_a_number_drawn_before_the_conflict_check(url: str, db: Db) -> None:
    """The bug itself: a plain upsert that sleeps between its number and its row."""
    score.distlock.init({"sqlalchemy.url": url})
    log_acquisitions(db)
    upsert = """
        INSERT INTO _score_distlock (name, acquired, updated, token, fence)
        SELECT 'a', now(), now(), gen_random_uuid(), number
          FROM (SELECT nextval('_score_distlock_fence_seq') AS number OFFSET 0) AS drawn
         WHERE pg_advisory_lock(hashtext('asleep')) IS NOT NULL
            ON CONFLICT (name) DO UPDATE SET token = excluded.token, fence = excluded.fence
    """
    fast = upsert.replace("WHERE pg_advisory_lock(hashtext('asleep')) IS NOT NULL", "")
    db.execute("SELECT pg_advisory_lock(hashtext('asleep'))")
    drawn = "SELECT last_value, is_called FROM _score_distlock_fence_seq"
    before = db.execute(drawn).fetchone()

    def slow() -> None:
        with psycopg.connect(url, autocommit=True) as sleeper:
            sleeper.execute(upsert)

    thread = threading.Thread(target=slow)
    thread.start()
    while db.execute(drawn).fetchone() == before:
        pass
    db.execute(fast)
    db.execute("SELECT pg_advisory_unlock(hashtext('asleep'))")
    thread.join()
    assert len(not_increasing(db)) == 1


@pytest.mark.parametrize("wait", [0, 20], ids=["at once", "waiting"])
def test_a_number_drawn_before_another_acquisition_is_replaced(url: str, db: Db, wait: int) -> None:
    """An acquirer is stopped between its number and its row; others acquire in the meantime."""
    other = score.distlock.init({"sqlalchemy.url": url})
    db.execute("""
        CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_advisory_xact_lock(hashtext('stopped'));
            RETURN NEW;
        END $$
    """)
    db.execute(
        "CREATE TRIGGER stop BEFORE INSERT ON _score_distlock FOR EACH ROW"
        " WHEN (current_setting('application_name') = 'slow') EXECUTE FUNCTION stop()"
    )
    db.execute("SELECT pg_advisory_lock(hashtext('stopped'))")
    slow = score.distlock.ConfiguredDistlockModule(
        with_options(url, "application_name=slow"), "1m"
    ).get("name")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(slow.acquire(timeout=wait)))
    thread.start()
    waiting = """
        SELECT count(*) FROM pg_locks JOIN pg_database AS base ON base.oid = database
         WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted
    """
    while db.execute(waiting).fetchone() == (0,):
        pass
    lock = other.get("name")
    with lock:
        fence = lock.fence
    db.execute("DELETE FROM _score_distlock")
    db.execute("SELECT pg_advisory_unlock(hashtext('stopped'))")
    thread.join()
    assert len(answers) == 1
    assert slow.fence is not None
    assert fence is not None
    assert slow.fence > fence
    assert db.execute("SELECT fence FROM _score_distlock").fetchone() == (slow.fence,)


def test_the_number_is_in_the_row_and_survives_extend_and_transfer(conf: Conf, db: Db) -> None:
    with conf.get("name") as lock:
        fence = lock.fence
        lock.extend()
        lock.transfer()
        assert lock.fence == fence
        assert db.execute("SELECT fence FROM _score_distlock").fetchone() == (fence,)


def test_a_process_that_was_handed_the_token_reads_the_number(conf: Conf, url: str) -> None:
    lock = conf.get("name")
    token = lock.acquire()
    code = (
        "import sys, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})\n"
        "lock = conf.get('name')\n"
        "assert lock.fence is None\n"
        "lock.extend(sys.argv[2])\n"
        "print(lock.fence)\n"
    )
    assert python(code, url, token) == f"{lock.fence}\n"


@pytest.mark.parametrize("release", [True, False], ids=["released", "expired"])
def test_it_grows_with_every_acquisition(brief: Conf, db: Db, release: bool) -> None:
    fences = []
    for _ in range(5):
        lock = score.distlock.Lock(brief, "name")
        lock.acquire()
        assert lock.fence is not None
        fences.append(lock.fence)
        if release:
            lock.release()
        else:
            await_expiry(db, "name")
    assert fences == sorted(set(fences))


def set_back(db: Db, sequence: str = "_score_distlock_fence_seq") -> None:
    """Like a restore or a switch-over to a logical replica, which copy only rows."""
    db.execute("SELECT setval(%s, 1, false)", (sequence,))


@pytest.mark.parametrize("how", ["released here", "released elsewhere", "expired", "waited for"])
def test_it_grows_when_the_sequence_was_set_back(url: str, db: Db, how: str) -> None:
    conf = score.distlock.init(
        {"sqlalchemy.url": url, "maxtime": "300ms" if how == "expired" else "1m"}
    )
    db.execute("SELECT setval('_score_distlock_fence_seq', 1000)")
    lock = conf.get("name")
    lock.acquire()
    before = lock.fence
    assert before == 1001
    set_back(db)
    other = lock
    if how == "expired":
        await_expiry(db, "name")
        other = score.distlock.Lock(conf, "name")
    elif how == "waited for":
        other = score.distlock.init({"sqlalchemy.url": url}).get("name")
        thread = threading.Thread(target=lambda: other.acquire(timeout=20))
        thread.start()
        while db.execute("SELECT waiters FROM _score_distlock").fetchone() == (None,):
            pass
        lock.release()
        thread.join()
    else:
        lock.release()
        if how == "released elsewhere":
            other = score.distlock.init({"sqlalchemy.url": url}).get("name")
    if how != "waited for":
        other.acquire()
    assert other.fence is not None
    assert other.fence > before


@pytest.mark.parametrize("deleted", [False, True], ids=["the row stays", "the row goes"])
def test_it_grows_when_sessions_keep_numbers_in_store(url: str, db: Db, deleted: bool) -> None:
    """With `CACHE 20`, each session draws twenty numbers at once."""
    score.distlock.init({"sqlalchemy.url": url})
    db.execute("ALTER SEQUENCE _score_distlock_fence_seq CACHE 20")
    locks = [score.distlock.init({"sqlalchemy.url": url}).get("name") for _ in range(3)]
    fences = []
    for turn in range(12):
        lock = locks[turn % 3]
        lock.acquire()
        assert lock.fence is not None
        fences.append(lock.fence)
        lock.release()
        if deleted:
            db.execute("DELETE FROM _score_distlock")
    assert fences == sorted(set(fences))


@pytest.mark.parametrize("cache", [1, 20])
def test_an_id_sequence_that_was_set_back_is_repaired(url: str, db: Db, cache: int) -> None:
    """After a restore without the sequences, every new name would hit a taken `id`."""
    conf = score.distlock.init({"sqlalchemy.url": url})
    for number in range(50):
        conf.acquire(f"before {number}")
    fence = db.execute("SELECT max(fence) FROM _score_distlock").fetchone()
    db.execute(psycopg.sql.SQL("ALTER SEQUENCE _score_distlock_id_seq CACHE {}").format(cache))
    set_back(db, "_score_distlock_id_seq")
    set_back(db)
    conf = score.distlock.init({"sqlalchemy.url": url})
    for number in range(50):
        lock = conf.get(f"after {number}")
        lock.acquire()
        assert lock.fence is not None
        assert fence is not None
        assert lock.fence > fence[0]
    assert conf.get("waited for").acquire(timeout=5)


def test_the_repair_sets_no_sequence_back(url: str, db: Db) -> None:
    """Many sessions find the sequences set back at once, and another one draws meanwhile."""
    conf = score.distlock.init({"sqlalchemy.url": url})
    for number in range(200):
        conf.acquire(f"before {number}")
    set_back(db, "_score_distlock_id_seq")
    set_back(db)
    failures: list[BaseException] = []
    drawn: list[int] = []
    done = threading.Event()

    def draw() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not done.is_set():
                found = connection.execute("SELECT nextval('_score_distlock_id_seq')").fetchone()
                assert found is not None
                drawn.append(found[0])

    def acquire(process: int) -> None:
        try:
            own = score.distlock.init({"sqlalchemy.url": url})
            for number in range(20):
                own.acquire(f"after {process} {number}")
        except BaseException as error:
            failures.append(error)

    drawing = threading.Thread(target=draw)
    drawing.start()
    threads = [threading.Thread(target=acquire, args=(process,)) for process in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    drawing.join()
    assert failures == []
    assert drawn == sorted(set(drawn))


def test_another_unique_violation_is_told(url: str, db: Db) -> None:
    """We repair only our own sequences; any other violation stays an error."""
    conf = score.distlock.init({"sqlalchemy.url": url})
    db.execute("CREATE UNIQUE INDEX only_one ON _score_distlock ((1))")
    conf.acquire("first")
    with pytest.raises(score.distlock.DatabaseError, match="only_one") as caught:
        conf.acquire("second")
    assert caught.value.sqlstate == "23505"


@pytest.mark.parametrize("cause", ["set back", "cache"])
def test_it_grows_when_the_row_goes_after_the_sequence_fell_behind(
    url: str, db: Db, cause: str
) -> None:
    """Fences above the sequence would be forgotten with the row."""
    confs = [score.distlock.init({"sqlalchemy.url": url}) for _ in range(3)]
    if cause == "cache":
        db.execute("ALTER SEQUENCE _score_distlock_fence_seq CACHE 20")
    else:
        db.execute("SELECT setval('_score_distlock_fence_seq', 1000)")
    fences = []

    def take(conf: Conf) -> None:
        with conf.get("name") as lock:
            assert lock.fence is not None
            fences.append(lock.fence)

    for turn in range(120):
        take(confs[turn % 3])
        if cause == "set back" and turn % 40 == 20:
            set_back(db)
        if turn % 40 == 30:
            db.execute("DELETE FROM _score_distlock")
    assert fences == sorted(set(fences))
