"""Half of the servers still run 0.2.5: each respects the holds of the other.

The hosts' zone is Vienna's and the server's is UTC, which 0.2.5's naive
timestamps have to survive. When the clocks go back, 0.2.5 itself takes an hour
longer to notice an expired hold, and when they go forward an hour less: no
newcomer can mend that for it, so the tests do not run across such an hour.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
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
    """What the processes of a fleet write down about their holds."""
    db.execute(
        "CREATE TABLE holding (name text PRIMARY KEY, token text, since timestamptz, pid int)"
    )
    db.execute("CREATE TABLE handed (name text, token text, since timestamptz, giver text)")


def soak(url: str, db: Db, pythons: dict[str, str], each: int, seconds: float) -> dict[str, Any]:
    """Lets `each` processes of every implementation work for some time; tells what they did."""
    audit(db)
    # 0.2.5 does not cope with several processes that create its table at once.
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
    return did


def test_no_process_of_0_2_5_dies_of_a_deadlock(original: str, url: str, db: Db) -> None:
    """Its vacuums delete the rows that our releases leave behind, in whatever order.

    DISTLOCK_SOAK_SECONDS makes it longer than a few seconds.
    """
    seconds = float(os.environ.get("DISTLOCK_SOAK_SECONDS", "8"))
    did = soak(url, db, {"0.2.5": original, "1.0": sys.executable}, 4, seconds)
    for name, counts in did.items():
        assert counts["acquired"] > 0, name
        assert counts["extended a token of the other"] > 0, name


def test_a_mixed_fleet_has_no_two_holders(original: str, url: str, db: Db) -> None:
    audit(db)
    # 0.2.5 does not cope with several processes that create its table at once.
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
    # Nothing is stuck longer than the lease, which is 2 s in the fleet.
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
    """0.2.5 writes `updated` only; our own instant of expiry is then out of date."""
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
