"""Only the database's clock decides about expiry, and the holder decides the lease."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psycopg
import pytest

import score.distlock

from .conftest import python

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]

ACQUIRE = (
    "import sys, score.distlock\n"
    "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': sys.argv[2]})\n"
    "print(conf.try_acquiring('name'))\n"
)


def await_expiry(db: Db, name: str) -> None:
    """Waits, by the database's clock, until the hold of `name` has expired."""
    db.execute(
        "SELECT pg_sleep_until(expires + interval '1 millisecond') FROM _score_distlock"
        " WHERE name = %s",
        (name,),
    )


@pytest.mark.parametrize("zone", ["Europe/Vienna", "Pacific/Kiritimati", "America/Los_Angeles"])
def test_the_hosts_zone_has_no_say(url: str, conf: Conf, zone: str) -> None:
    """In 0.2.5, a second holder got in if its zone was off."""
    assert conf.acquire("name")
    assert python(ACQUIRE, url, "1m", TZ=zone) == "None\n"


@pytest.mark.parametrize("zone", ["Europe/Vienna", "Pacific/Kiritimati", "America/Los_Angeles"])
def test_the_holders_zone_has_no_say(url: str, conf: Conf, zone: str) -> None:
    token = python(ACQUIRE, url, "1m", TZ=zone).strip()
    assert conf.try_acquiring("name") is None
    conf.release("name", token)
    assert conf.acquire("name")


def test_naive_timestamps_are_in_the_hosts_zone(url: str, db: Db) -> None:
    python(ACQUIRE, url, "1m", TZ="Asia/Kolkata")  # never in summer time: UTC+5:30
    difference = db.execute(
        "SELECT extract(epoch FROM updated - (now() AT TIME ZONE 'Asia/Kolkata'))"
        "  FROM _score_distlock"
    ).fetchone()
    assert difference is not None
    assert abs(difference[0]) < 60


@pytest.mark.parametrize(
    "zone",
    [
        "",
        ":",
        "UTC",
        "Europe/Vienna",
        ":Asia/Kolkata",
        "/usr/share/zoneinfo/America/New_York",
        "Australia/Lord_Howe",
        "EST5EDT",
        "AEST-10AEDT",
        "AEST-10AEDT,",
        "PST8PDT7",
        "NZST-12NZDT-13:30",
        "IST-2IDT,M3.4.4/26,M10.5.0",
        "<-02>2<-01>,M3.5.0/-1,M10.5.0/0",
        "AEST-10AEDT,M10.1.0,M4.1.0/3",
        "XXX-5:30:15YYY,J60/0,J300/23:59:59",
        "<+0330>-3:30",
        "No/Such_Zone",
        "/no/such/file",
    ],
)
def test_the_zone_is_the_c_librarys(url: str, db: Db, zone: str) -> None:
    """0.2.5 reads and writes its timestamps in that zone, whatever TZ is set to, if at all."""
    code = ACQUIRE + "import time; print(time.localtime().tm_gmtoff)"
    offset = int(python(code, url, "1m", TZ=zone).split()[1])
    query = (
        "SELECT extract(epoch FROM updated - (now() AT TIME ZONE 'UTC'))::float8"
        "  FROM _score_distlock"
    )
    found = db.execute(query).fetchone()
    assert found is not None
    assert found[0] == pytest.approx(offset, abs=10)


def test_the_clock_of_the_host_has_no_say(url: str, db: Db) -> None:
    """As if the holder's host were an hour slow, which its naive timestamps show."""
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1m"})
    conf.acquire("name")
    db.execute(
        "UPDATE _score_distlock SET acquired = acquired - interval '1 hour',"
        " updated = updated - interval '1 hour', touched = touched - interval '1 hour'"
    )
    assert score.distlock.Lock(conf, "name").try_acquiring() is None


def test_an_observer_with_a_smaller_maxtime_cannot_expire_a_hold(url: str, conf: Conf) -> None:
    token = conf.acquire("name")
    hasty = score.distlock.init({"sqlalchemy.url": url, "maxtime": 0})
    assert hasty.try_acquiring("name") is None
    hasty.vacuum()
    assert hasty.try_acquiring("name") is None
    conf.extend("name", token)


def test_an_observer_with_a_larger_maxtime_sees_it_expire(brief: Conf, conf: Conf, db: Db) -> None:
    token = brief.acquire("name")
    await_expiry(db, "name")
    assert conf.acquire("name")
    with pytest.raises(score.distlock.LockExpired):
        brief.extend("name", token)


def test_an_expired_hold_cannot_be_revived(brief: Conf, db: Db) -> None:
    token = brief.acquire("name")
    await_expiry(db, "name")
    for function in (brief.extend, brief.release, brief.transfer):
        with pytest.raises(score.distlock.LockExpired):
            function("name", token)


def test_extending_moves_the_end(brief: Conf, db: Db) -> None:
    lock = brief.get("name")
    lock.acquire()
    query = "SELECT expires - clock_timestamp() <= interval '300 ms', expires FROM _score_distlock"
    before = db.execute(query).fetchone()
    lock.extend()
    after = db.execute(query).fetchone()
    assert before and after
    assert before[0] and after[0]
    assert after[1] > before[1]


def test_of_many_that_race_for_an_expired_hold_one_gets_it(url: str, db: Db) -> None:
    """In each round the hold expires under several processes that keep asking."""
    code = (
        "import sys, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '100ms'})\n"
        "won, late = [], []\n"
        "while len(won) < 8:\n"
        "    try: token = conf.try_acquiring('name')\n"
        "    except score.distlock.LockExpired as error: late.append(error.token); continue\n"
        "    if token: won.append(token)\n"
        "print(*won)\n"
        "print(*late)\n"
    )
    db.execute(
        "CREATE TABLE seen"
        " (token text PRIMARY KEY, fence bigint, since timestamptz, till timestamptz)"
    )
    score.distlock.init({"sqlalchemy.url": url})
    # The server itself records every acquisition, when it happens. It may replace the
    # fence of a new row before telling its owner (number.sql): that is the same hold.
    db.execute("""
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seen VALUES
                (NEW.token, NEW.fence, NEW.expires - NEW.lease * interval '1 s', NEW.expires)
                ON CONFLICT (token) DO UPDATE SET fence = EXCLUDED.fence;
            RETURN NEW;
        END $$
    """)
    db.execute(
        "CREATE TRIGGER note AFTER INSERT OR UPDATE ON _score_distlock"
        " FOR EACH ROW EXECUTE FUNCTION note()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    lines = [process.communicate()[0].split("\n") for process in processes]
    tokens = [token for line, *_ in lines for token in line.split()]
    late = [token for _, line, *_ in lines for token in line.split()]  # the answer came too late
    assert len(set(tokens)) == len(tokens) == 32
    overlaps = db.execute(
        "SELECT a.fence, b.fence FROM seen a JOIN seen b ON a.fence < b.fence AND b.since < a.till"
    ).fetchall()
    assert overlaps == []
    seen = [token for (token,) in db.execute("SELECT token FROM seen")]
    assert sorted(seen) == sorted(tokens + late)
