"""``score-distlock doctor``: what it finds, and that it finds nothing if nothing is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg import sql

import score.distlock
from score.distlock.cli import _doctor

from .conftest import with_options
from .support.pooler import NAME, Bouncer, program
from .support.server import Server
from .test_cli import run
from .test_cli_run import until

Db = psycopg.Connection[Any]
Conf = score.distlock.ConfiguredDistlockModule


def examined(url: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The facts and findings from the JSON output."""
    status, said, complained = run(url, "doctor", "--json")
    assert complained == ""
    found = json.loads(said)
    assert status == bool(found["findings"])
    return found["facts"], found["findings"]


def test_nothing_is_wrong(url: str, conf: Conf) -> None:
    with conf.get("name"):
        facts, findings = examined(url)
    assert findings == []
    assert facts["fsync"] == "on"
    assert abs(float(facts["clock_difference"])) < 3600
    status, said, complained = run(url, "doctor")
    assert (status, complained) == (0, "")
    assert said.startswith("nothing is wrong")


CHANGES = {
    "a second fence for each session": (
        "ALTER SEQUENCE _score_distlock_fence_seq CACHE 10",
        "keeps 10 numbers",
    ),
    "a broken index": (
        "UPDATE pg_index SET indisvalid = false WHERE indrelid = '_score_distlock'::regclass",
        "not valid",
    ),
    "an old hold": (
        "INSERT INTO _score_distlock (name, token, fence, holder, acquired, updated, touched,"
        " expires, lease) SELECT E'old\\x1b', 't', 1, 'web-1:4711', now - interval '2 h', now, now,"
        " now + interval '1 min', 60 FROM (SELECT clock_timestamp()::timestamp AS now) AS _",
        r"'old\\x1b' has been held for 2 h by web-1, process 4711",
    ),
    "an old process": (
        "INSERT INTO _score_distlock (name, token, acquired, updated)"
        " SELECT 'name', 't', now, now FROM (SELECT localtimestamp AS now) AS _",
        "0.2.5 hold locks, such as 'name'",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_table_is_not_as_it_should_be(url: str, conf: Conf, db: Db, change: str) -> None:
    query, expected = CHANGES[change]
    conf.vacuum()
    db.execute("SET TimeZone = UTC")
    db.execute(query.encode())
    _, findings = examined(url)
    assert any(expected in finding["what"] for finding in findings), findings
    status, said, _ = run(url, "doctor")
    assert status == 1
    assert expected in said


def test_the_role_has_not_all_rights(url: str, conf: Conf, db: Db) -> None:
    conf.vacuum()
    role = sql.Identifier(f"reader_{db.info.dbname}")
    db.execute(sql.SQL("CREATE ROLE {}").format(role))
    try:
        db.execute(sql.SQL("GRANT SELECT ON _score_distlock TO {}").format(role))
        option = f"options=-crole%3Dreader_{db.info.dbname}"
        _, findings = examined(with_options(url, option))
        assert {finding["level"] for finding in findings} == {"error"}
        assert ["schema --grant" in finding["remedy"] for finding in findings] == [True, True]
        db.execute(sql.SQL("REVOKE ALL ON _score_distlock FROM {}").format(role))
        assert examined(with_options(url, option))[1] == findings, "it may not even read"
    finally:
        db.execute(sql.SQL("DROP OWNED BY {}").format(role))
        db.execute(sql.SQL("DROP ROLE {}").format(role))


def test_tokens_are_logged(url: str) -> None:
    option = "options=-clog_min_duration_statement%3D10000"
    _, findings = examined(with_options(url, option))
    assert [finding["remedy"] for finding in findings] == [
        "set log_parameter_max_length = 0 (PostgreSQL 13 or later)"
    ]


GOOD: dict[str, str | None] = {
    "server_version": "18.4",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "transaction_read_only": "off",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "-1",
    "max_connections": "100",
    "connections": "90",
    "in_recovery": "false",
    "same_host": "false",
    "tls": "true",
    "fence_cache": "1",
    "table_rights": "true",
    "sequence_rights": "true",
    "broken_indexes": None,
    "unique_name": "1",
    "oldest_snapshot": "600",
    "notifications": "true",
}


@pytest.mark.parametrize(
    ("fact", "value", "expected"),
    [
        ("fsync", "off", "two holders"),
        ("notifications", "false", "a pooler is in between"),
        ("full_page_writes", "off", "two holders"),
        ("transaction_read_only", "on", "read only"),
        ("in_recovery", "true", "a standby"),
        ("tls", "false", "not encrypted"),
        ("log_statement", "all", "logs statements"),
        ("log_statement", "mod", "logs statements"),
        ("log_min_duration_statement", "0", "logs statements"),
        ("connections", "91", "91 of 100"),
        ("oldest_snapshot", "601", "open since 10 min"),
        ("unique_name", "0", "two holders"),
    ],
)
def test_the_server_is_not_as_it_should_be(fact: str, value: str, expected: str) -> None:
    """Facts that a test cannot produce on a shared server."""

    def found(facts: dict[str, str | None]) -> list[_doctor.Finding]:
        return [*_doctor._of_the_server(facts), *_doctor._of_the_table(facts)]

    assert found(GOOD) == []
    (finding,) = found({**GOOD, fact: value})
    assert expected in finding.what
    assert found({**GOOD, "log_statement": "all", "log_parameter_max_length": "0"}) == []
    assert found({**GOOD, "tls": "false", "same_host": "true"}) == []


def test_the_facts_are_those_that_are_judged(conf: Conf) -> None:
    assert {fact for fact, _ in conf._facts()} == {*GOOD, "clock"}


@pytest.mark.parametrize("mode", ["session", "transaction", "statement"])
def test_a_pooler_is_between(server: Server, server_url: str, mode: str) -> None:
    if program() is None:
        pytest.skip(f"{NAME} is not installed")
    bouncer = Bouncer(server, mode, 10)
    try:
        _, (finding,) = examined(bouncer.url(server_url.partition("?")[0].rpartition("/")[2]))
    finally:
        bouncer.stop()
    assert "notifications do not come through" in finding["what"]


#: Holds a lock, and waits for another.
GREEDY = (
    "import sys, score.distlock\n"
    "conf = score.distlock.connect(sys.argv[1])\n"
    "conf.acquire(sys.argv[2])\n"
    "print('ready', flush=True)\n"
    "sys.stdin.readline()\n"
    "conf.acquire(sys.argv[3], timeout=None)\n"
)


def test_two_wait_for_each_other(url: str, conf: Conf, db: Db) -> None:
    conf.vacuum()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", GREEDY, url, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for names in (("one", "two"), ("two", "one"), ("three", "one"))
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        assert conf._waits() == []
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        circle = [("one", "two"), ("three", "one"), ("two", "one")]
        until(lambda: sorted(conf._waits()) == circle)
        db.execute("UPDATE _score_distlock SET acquired = acquired - interval '1 min'")
        (finding,) = examined(url)[1]
        first, second, _ = processes
        assert f"process {first.pid} holds 'one' and waits for 'two'" in finding["what"]
        assert f"process {second.pid} holds 'two' and waits for 'one'" in finding["what"]
        assert "three" not in finding["what"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    until(lambda: conf._waits() == [])


@pytest.mark.parametrize(
    ("waits", "circles"),
    [
        ([], []),
        (["ab", "bc"], []),
        (["ab", "ba"], ["ab"]),
        (["ab", "bc", "ca"], ["abc"]),
        (["ab", "bc", "cd", "dc"], ["cd"]),
        (["ab", "ba", "cd", "dc"], ["ab", "cd"]),
        (["ab", "bc", "ca", "ba"], ["ab", "cab"]),
        (["ay", "ya"], []),
        (["ax", "xa"], []),
    ],
)
def test_circles(waits: list[str], circles: list[str]) -> None:
    """Nobody holds lock `x`, and `y` has just been acquired."""
    now = datetime.now(timezone.utc)
    holds = [
        score.distlock.HoldInfo(
            name=name,
            fence=1,
            host=name.upper(),
            pid=1,
            thread=None,
            note=None,
            acquired=now - timedelta(seconds=1 if name == "y" else 60),
            expires=now,
            waiters=1,
        )
        for name in "abcdy"
    ]
    found = list(_doctor._of_the_waits(holds, [(wait[0], wait[1]) for wait in waits]))
    assert ["".join(re.findall("holds '(.)'", finding.what)) for finding in found] == circles
