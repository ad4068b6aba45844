"""Half of the servers still run 0.2.5: both versions respect each other's holds.

The hosts are in Vienna's zone and the server in UTC, which 0.2.5's naive
timestamps have to survive. When the clocks go back, 0.2.5 itself takes an hour
longer to notice an expired hold, and when they go forward an hour less: this
module cannot fix that, so the tests do not run across such an hour.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import threading
from typing import Any

import psycopg
import pytest

import score.distlock

from .conftest import SUPPORT, run

ZONE = "Europe/Vienna"
Db = psycopg.Connection[Any]


@pytest.fixture
def vienna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", ZONE)


def audit(db: Db) -> None:
    """Tables in which the processes of a fleet record their holds."""
    db.execute(
        "CREATE TABLE holding (name text PRIMARY KEY, token text, since timestamptz, pid int)"
    )
    db.execute("CREATE TABLE handed (name text, token text, since timestamptz, giver text)")


def soak(url: str, db: Db, pythons: dict[str, str], each: int, seconds: float) -> dict[str, Any]:
    """Lets `each` processes of every implementation work for some time; returns what they did."""
    audit(db)
    # 0.2.5 fails if several processes create its table at once.
    score.distlock.init({"sqlalchemy.url": url})
    script = str(SUPPORT / "fleet.py")
    processes = [
        (
            name,
            subprocess.Popen(
                [python, script, url, name, str(seed), str(seconds)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "TZ": ZONE},
            ),
        )
        for seed in range(each)
        for name, python in pythons.items()
    ]
    did: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in pythons}
    failed = []
    for name, process in processes:
        printed, errors = process.communicate()
        if process.returncode:
            failed.append((name, errors[-2000:]))
            continue
        counts, violations = json.loads(printed)
        assert violations == [], name
        did[name].update(counts)
    assert failed == []
    # A process that survives a deadlock because another was the victim does not hide it.
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert db.execute(deadlocks).fetchone() == (0,)
    return did


#: The statement that 0.2.5 executes to acquire, in its transaction, in our own words.
VACUUM = "DELETE FROM _score_distlock WHERE _score_distlock.updated < now() - interval '1 minute'"
INSERT = (
    "INSERT INTO _score_distlock (name, acquired, updated, token)"
    " VALUES ('first', now(), now(), 'x')"
)

#: Replaces the trigger, and does nothing.
NO_TRIGGER = """
DROP TRIGGER score_distlock_one_vacuum_at_a_time ON _score_distlock;
CREATE TRIGGER score_distlock_one_vacuum_at_a_time BEFORE DELETE ON _score_distlock
    FOR EACH STATEMENT WHEN (false) EXECUTE FUNCTION suppress_redundant_updates_trigger();
"""


@pytest.mark.parametrize("protected", [True, False], ids=["one at a time", "the check itself"])
def test_two_vacuums_of_0_2_5_go_one_after_the_other(url: str, db: Db, protected: bool) -> None:
    """One deletes the row that the other will insert, and waits for a row the other has deleted."""
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1h"})
    # The first and the last are on different pages, so they keep this order.
    tokens = {name: conf.acquire(name) for name in ("first", *map(str, range(100)), "last")}
    if not protected:
        db.execute(NO_TRIGGER)
    conf.release("last", tokens["last"])
    deadlocks: list[str] = []

    def attempt(connection: Db, statement: str) -> None:
        try:
            connection.execute(statement.encode())
            connection.commit()
        except psycopg.errors.DeadlockDetected:
            deadlocks.append(statement)
            connection.rollback()
        except psycopg.errors.UniqueViolation:  # refused, as by another 0.2.5
            connection.rollback()

    with psycopg.connect(url) as one, psycopg.connect(url) as other:
        one.execute(VACUUM.encode())
        conf.release("first", tokens["first"])
        thread = threading.Thread(target=attempt, args=(other, VACUUM))
        thread.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while db.execute(waiting).fetchone() == (0,):
            pass
        attempt(one, INSERT)
        thread.join()
    assert len(deadlocks) == (0 if protected else 1)


def test_our_own_deletions_wait_for_no_vacuum_of_0_2_5(url: str, db: Db) -> None:
    """They skip locked rows, so they need not take turns; and a guard may delay a vacuum."""
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1h"})
    conf.release("a", conf.acquire("a"))
    with psycopg.connect(url) as original:
        original.execute(VACUUM.encode())
        conf.release("b", conf.acquire("b"))
        conf.vacuum()
        assert db.execute("SELECT name FROM _score_distlock").fetchall() == [("a",)]


def test_nobody_gets_code_into_the_condition(url: str, db: Db) -> None:
    """Every name in it is the system's, whoever creates it and whoever deletes."""
    db.execute("""
        CREATE SCHEMA evil;
        CREATE FUNCTION evil.boom() RETURNS bool LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'evil'; END $$;
        CREATE FUNCTION evil.current_query() RETURNS text LANGUAGE sql AS
            'SELECT evil.boom()::text';
        CREATE FUNCTION evil.pg_advisory_xact_lock(int, int) RETURNS void LANGUAGE sql AS
            'SELECT evil.boom()';
        CREATE FUNCTION evil.compare(text, text) RETURNS bool LANGUAGE sql AS 'SELECT evil.boom()';
        CREATE OPERATOR evil.~~ (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.compare);
        CREATE DOMAIN evil.int4 AS pg_catalog.int4 CHECK (evil.boom());
        SET search_path TO public, evil, pg_catalog;
    """)
    printed = subprocess.run(
        [sys.executable, "-m", "score.distlock", "schema"], capture_output=True, check=True
    )
    db.execute(printed.stdout)
    db.execute(INSERT.encode())
    db.execute("UPDATE _score_distlock SET updated = '0001-01-01'")
    with db.transaction():
        db.execute(VACUUM.encode())
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert db.execute(locks).fetchone() == (1,)
    assert db.execute("SELECT count(*) FROM _score_distlock").fetchone() == (0,)


def test_no_process_of_0_2_5_dies_of_a_deadlock(original: str, url: str, db: Db) -> None:
    """Its vacuums delete the rows that our releases leave behind, in any order.

    DISTLOCK_SOAK_SECONDS extends it beyond a few seconds.
    """
    seconds = float(os.environ.get("DISTLOCK_SOAK_SECONDS", "8"))
    did = soak(url, db, {"0.2.5": original, "1.0": sys.executable}, 4, seconds)
    for name, counts in did.items():
        assert counts["acquired"] > 0, name
        assert counts["extended a token of the other"] > 0, name


def test_a_mixed_fleet_has_no_two_holders(original: str, url: str, db: Db) -> None:
    audit(db)
    # 0.2.5 fails if several processes create its table at once.
    score.distlock.init({"sqlalchemy.url": url})
    pythons = {"0.2.5": original, "1.0": sys.executable}
    did: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in pythons}
    killed = 0
    for generation in range(3):
        processes = []
        for number in range(3):
            for name, python in pythons.items():
                program = [python, str(SUPPORT / "fleet.py"), url, name, f"{generation}{number}"]
                process = subprocess.Popen(
                    program,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "TZ": ZONE},
                )
                processes.append((name, process))
        for name, process in processes:
            printed, errors = process.communicate()
            assert process.returncode in (0, -9), errors
            killed += process.returncode == -9
            counts, violations = json.loads(printed)
            assert violations == [], name
            did[name].update(counts)
    assert killed > 0
    for name in pythons:
        for deed in (
            "acquired",
            "refused",
            "extended a token of the other",
            "released a token of the other",
        ):
            assert did[name][deed] > 0, (name, deed, did)
    # Nothing is held longer than the lease, which is 2 s in the fleet.
    db.execute("SELECT pg_sleep_until((SELECT max(since) FROM holding) + interval '2.1 s')")
    for python in pythons.values():
        for name in "abc":
            token = run(python, "fleet_last.py", url, name, "2s", TZ=ZONE)
            assert token != "None\n", (python, name)


@pytest.mark.parametrize("acquirer", ["0.2.5", "1.0"])
def test_a_hold_of_one_is_respected_and_its_token_taken_by_the_other(
    original: str, url: str, acquirer: str
) -> None:
    pythons = {"0.2.5": original, "1.0": sys.executable}
    mine = pythons.pop(acquirer)
    (other,) = pythons.values()
    token = run(mine, "original_hold.py", url, "name", TZ=ZONE).strip()
    assert run(other, "fleet_last.py", url, "name", TZ=ZONE) == "None\n"
    assert run(other, "fleet_token.py", url, "name", token, TZ=ZONE) == "extended, released\n"
    assert run(mine, "fleet_last.py", url, "name", TZ=ZONE) != "None\n"


def test_an_extension_by_the_original_counts(original: str, url: str, db: Db) -> None:
    """0.2.5 writes only `updated`; our own time of expiry is then out of date."""
    token = run(sys.executable, "original_hold.py", url, "name", TZ=ZONE).strip()
    db.execute("UPDATE _score_distlock SET expires = clock_timestamp() + interval '1 s'")
    assert run(original, "fleet_token.py", url, "name", token, "keep", TZ=ZONE) == "extended\n"
    db.execute("SELECT pg_sleep_until(expires) FROM _score_distlock")
    assert run(sys.executable, "fleet_last.py", url, "name", TZ=ZONE) == "None\n"
    assert run(sys.executable, "fleet_token.py", url, "name", token, TZ=ZONE) == (
        "extended, released\n"
    )


def test_a_free_row_does_not_stand_in_the_originals_way(original: str, url: str) -> None:
    token = run(sys.executable, "original_hold.py", url, "name", TZ=ZONE).strip()
    run(sys.executable, "fleet_token.py", url, "name", token, TZ=ZONE)
    assert run(original, "fleet_last.py", url, "name", TZ=ZONE) != "None\n"


def test_the_fence_goes_on_when_the_original_deletes_the_row(
    original: str, url: str, conf: Any
) -> None:
    lock = conf.get("name")
    with lock:
        before = lock.fence
    token = run(original, "original_hold.py", url, "name", TZ=ZONE).strip()
    assert conf.get("name").fence is None
    run(original, "fleet_token.py", url, "name", token, TZ=ZONE)
    with lock:
        assert lock.fence > before


def test_forward_and_back_on_one_table(original: str, url: str, db: Db) -> None:
    """A hold survives each step, and nothing has to be undone (upgrade-from-0.2.5.rst)."""

    def refused(by: str, name: str) -> bool:
        return run(by, "fleet_last.py", url, name, TZ=ZONE) == "None\n"

    def acquired(by: str, name: str) -> str:
        return run(by, "original_hold.py", url, name, TZ=ZONE).strip()

    def kept(by: str, name: str, token: str) -> bool:
        return run(by, "fleet_token.py", url, name, token, "keep", TZ=ZONE) == "extended\n"

    def released(by: str, name: str, token: str) -> bool:
        done = run(by, "fleet_token.py", url, name, token, TZ=ZONE)
        return done == "extended, released\n"

    new = sys.executable
    first = acquired(original, "first")
    through = acquired(original, "through")
    # Forward: holds of 0.2.5 are respected, and its tokens work.
    assert refused(new, "first") and refused(new, "through")
    assert kept(new, "through", through)
    assert released(new, "first", first)
    second = acquired(new, "second")
    # The free row of "first" still exists, and so do columns unknown to 0.2.5.
    rows = "SELECT name FROM _score_distlock ORDER BY name"
    assert db.execute(rows).fetchall() == [("first",), ("second",), ("through",)]
    # Back: holds of this version, and those it has extended, are respected; its tokens work.
    assert refused(original, "second") and refused(original, "through")
    # A refusal rolls back the clean-up; a successful attempt commits it.
    assert ("first",) in db.execute(rows).fetchall()
    assert acquired(original, "third")
    assert db.execute(rows).fetchall() == [("second",), ("third",), ("through",)]
    assert kept(original, "through", through)
    assert released(original, "second", second)
    assert acquired(original, "first")
    # And forward again.
    assert refused(new, "first") and refused(new, "through")
    assert released(new, "through", through)
    assert acquired(new, "second")


def test_before_the_last_one_goes_back(original: str, url: str, db: Db) -> None:
    """`vacuum` removes the leftovers, and 0.2.5 ignores the keys it does not know."""
    conf = score.distlock.init({"sqlalchemy.url": url})
    conf.release("name", conf.acquire("name"))
    conf.vacuum()
    assert db.execute("SELECT count(*) FROM _score_distlock").fetchone() == (0,)
    code = (
        "import sys, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'timeout': '10s',\n"
        "    'autoextend': 'true', 'reentrant': 'false', 'table_owner': 'nobody'})\n"
        "conf.acquire('name'); print(conf.try_acquiring('name'))\n"
    )
    program = [original, "-W", "ignore", "-c", code, url]
    ended = subprocess.run(program, capture_output=True, text=True, check=True)
    assert ended.stdout == "None\n"


def test_0_2_5_judges_holds_by_its_own_maxtime(original: str, url: str, db: Db) -> None:
    """So all servers need the same `maxtime`, both ways."""
    run(sys.executable, "original_hold.py", url, "name", TZ=ZONE)  # its lease is a minute
    assert run(original, "fleet_last.py", url, "name", "1h", TZ=ZONE) == "None\n"
    db.execute("SELECT pg_sleep(1.1)")
    assert run(original, "fleet_last.py", url, "name", "1s", TZ=ZONE) != "None\n"
