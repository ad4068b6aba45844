"""The table is created or upgraded once, however many processes start together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

import score.distlock
from score.distlock import DatabaseError

from .conftest import PROJECT, python, run
from .support.line import until

#: The table as 0.2.5's create_all() creates it.
ORIGINAL_TABLE = """
CREATE TABLE _score_distlock (
    id serial PRIMARY KEY,
    name varchar NOT NULL UNIQUE,
    acquired timestamp NOT NULL,
    updated timestamp NOT NULL,
    token varchar(256) NOT NULL
)
"""

ADDED = {"touched", "expires", "lease", "fence", "holder", "waiters"}

Db = psycopg.Connection[Any]


def columns(db: Db) -> dict[str, str]:
    """The columns of the table and their types."""
    query = """
        SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
         WHERE attrelid = '_score_distlock'::regclass AND attnum > 0 AND NOT attisdropped
    """
    return dict(db.execute(query).fetchall())


def test_a_new_table_is_0_2_5s_and_more(url: str, db: Db) -> None:
    score.distlock.init({"sqlalchemy.url": url})
    assert columns(db) == {
        "id": "bigint",
        "name": "character varying",
        "acquired": "timestamp without time zone",
        "updated": "timestamp without time zone",
        "token": "character varying(256)",
        "touched": "timestamp without time zone",
        "expires": "timestamp with time zone",
        "lease": "double precision",
        "fence": "bigint",
        "holder": "text",
        "waiters": "bigint[]",
    }


def test_the_constructor_works_without_init(url: str) -> None:
    conf = score.distlock.ConfiguredDistlockModule(url, 60)
    assert conf.acquire("first use")


@pytest.mark.parametrize("before", ["", ORIGINAL_TABLE])
def test_many_that_start_together(url: str, db: Db, before: str) -> None:
    if before:
        db.execute(before)
    code = (
        "import sys, score.distlock\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})\n"
        "print(conf.try_acquiring('the one') is not None)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(12)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate()[0].strip() for process in processes]
    assert sorted(answers) == ["False"] * 11 + ["True"]
    assert set(columns(db)) >= ADDED


@pytest.mark.parametrize("made_by", ["0.2.5", "hand"])
def test_an_existing_table_is_upgraded_with_its_rows(
    url: str, db: Db, made_by: str, request: pytest.FixtureRequest
) -> None:
    token = "ab" * 128
    if made_by == "0.2.5":
        token = run(request.getfixturevalue("original"), "original_hold.py", url, "held").strip()
    else:
        db.execute(ORIGINAL_TABLE)
        insert = (
            "INSERT INTO _score_distlock (name, acquired, updated, token) VALUES (%s, %s, %s, %s)"
        )
        db.execute(insert, ("held", *db.execute("SELECT now(), now()").fetchone(), token))  # type: ignore[misc]
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1m"})
    assert columns(db)["id"] == "integer"
    assert conf.try_acquiring("held") is None
    conf.extend("held", token)
    conf.release("held", token)
    assert conf.acquire("held")


@pytest.mark.parametrize(
    "missing",
    [
        "SEQUENCE _score_distlock_fence_seq",
        "TRIGGER score_distlock_one_vacuum_at_a_time ON _score_distlock",
    ],
)
def test_whatever_is_missing_is_made_again(url: str, db: Db, missing: str) -> None:
    for _ in range(2):
        score.distlock.init({"sqlalchemy.url": url}).acquire("made")
        db.execute(f"DROP {missing}".encode())  # it existed
        db.execute("DELETE FROM _score_distlock")


def test_nothing_is_locked_when_nothing_is_missing(url: str, db: Db) -> None:
    conf = score.distlock.init({"sqlalchemy.url": url})
    conf.acquire("row")
    with db.transaction():
        # An open transaction that has written: DDL would wait for it.
        db.execute("UPDATE _score_distlock SET holder = 'me' WHERE name = 'row'")
        options = {"sqlalchemy.url": url, "sqlalchemy.pool_timeout": "20s"}
        assert score.distlock.init(options).acquire("other")


@pytest.mark.parametrize("before", ["", ORIGINAL_TABLE])
def test_without_the_right_the_error_holds_the_sql(url: str, db: Db, before: str) -> None:
    if before:
        db.execute(before)
    role = db.info.dbname + ' "user"'
    name = sql.Identifier(role)
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    try:
        if before:
            db.execute(sql.SQL("GRANT ALL ON _score_distlock TO {}").format(name))
        limited = url.replace("postgres@", role.replace(" ", "%20").replace('"', "%22") + "@")
        with pytest.raises(DatabaseError, match="An administrator must run:") as caught:
            score.distlock.init({"sqlalchemy.url": limited})
        assert caught.value.sqlstate == "42501"
        last = caught.value.message.splitlines()[-1]  # a comment in the SQL
        assert last.startswith("-- Run it in this database, postgresql://")
        assert db.info.dbname in last
        assert "`python -m score.distlock schema --grant ROLE`" in last
        db.execute(caught.value.message.partition("must run:")[2].encode())
        conf = score.distlock.init({"sqlalchemy.url": limited})
        token = conf.acquire("granted")
        conf.extend("granted", token)
        conf.release("granted", token)
        conf.vacuum()
    finally:
        db.execute(sql.SQL("DROP OWNED BY {}").format(name))
        db.execute(sql.SQL("DROP ROLE {}").format(name))


def test_without_a_schema_the_error_says_so(url: str) -> None:
    nowhere = url + ("&" if "?" in url else "?") + "options=-csearch_path%3Dnowhere"
    with pytest.raises(DatabaseError, match=r"no schema in its search path \(nowhere\)") as caught:
        score.distlock.init({"sqlalchemy.url": nowhere})
    assert caught.value.sqlstate == "3F000"
    assert "CREATE TABLE" in caught.value.message


@pytest.mark.parametrize("before", ["", ORIGINAL_TABLE])
def test_the_printed_schema_works_any_number_of_times(url: str, db: Db, before: str) -> None:
    if before:
        db.execute(before)
    program = [sys.executable, "-m", "score.distlock", "schema"]
    printed = subprocess.run(program, capture_output=True, check=True, cwd=PROJECT).stdout
    for _ in range(2):
        db.execute(printed)
    assert set(columns(db)) >= ADDED
    assert score.distlock.ConfiguredDistlockModule(url, 1).acquire("ready")


@pytest.mark.parametrize("schema", [None, "My Locks"])
def test_a_grant_is_all_that_a_role_needs(url: str, db: Db, schema: str | None) -> None:
    """Including USAGE on the schema, which not every role has."""
    role = db.info.dbname + " $grant$ 'user' \\"
    name = sql.Identifier(role)
    where = sql.Identifier(schema or "locks")
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    try:
        db.execute(sql.SQL("CREATE SCHEMA {}").format(where))
        db.execute(sql.SQL("SET search_path TO {}").format(where))
        arguments = ["--grant", role, *(["--schema", schema] if schema else [])]
        program = [sys.executable, "-m", "score.distlock", "schema", *arguments]
        printed = subprocess.run(program, capture_output=True, check=True, cwd=PROJECT).stdout
        for _ in range(2):
            db.execute(printed)
        options = sql.SQL("ALTER ROLE {} SET search_path TO {}").format(name, where)
        db.execute(options)
        # Not even the right to know which server it is.
        db.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        conf = score.distlock.init(
            {"sqlalchemy.url": url.replace("postgres@", quote(role, safe="") + "@")}
        )
        with conf.get("granted"):
            pass
    finally:
        db.execute(sql.SQL("DROP OWNED BY {}").format(name))
        db.execute(sql.SQL("DROP ROLE {}").format(name))


def test_the_search_path_is_honoured(url: str, db: Db) -> None:
    db.execute('CREATE SCHEMA "My Locks"')
    there = url + '&options=-csearch_path%3D"My\\ Locks"'
    first = score.distlock.init({"sqlalchemy.url": there})
    second = score.distlock.init({"sqlalchemy.url": url})
    first.acquire("same name")
    assert second.try_acquiring("same name") is not None
    found = db.execute("SELECT schemaname FROM pg_tables WHERE tablename = '_score_distlock'")
    assert {row[0] for row in found} == {"My Locks", "public"}


def test_a_table_further_along_the_search_path_is_upgraded_where_it_is(url: str, db: Db) -> None:
    db.execute(ORIGINAL_TABLE)
    db.execute("CREATE SCHEMA front")
    score.distlock.init({"sqlalchemy.url": url + "&options=-csearch_path%3Dfront,public"})
    found = db.execute("SELECT schemaname FROM pg_tables WHERE tablename = '_score_distlock'")
    assert [row[0] for row in found] == ["public"]
    assert set(columns(db)) >= ADDED


def test_a_refused_attempt_writes_nothing(conf: Any, url: str, db: Db) -> None:
    conf.acquire("held")
    other = score.distlock.Lock(conf, "held")
    assert other.try_acquiring() is None  # connects, prepares
    state = """
        SELECT pg_snapshot_xmax(pg_current_snapshot())::text,
               (SELECT last_value FROM _score_distlock_id_seq),
               (SELECT last_value FROM _score_distlock_fence_seq),
               (SELECT (xmin, xmax, ctid)::text FROM _score_distlock)
    """

    def nothing_is_written() -> bool:
        [before] = db.execute(state)
        for _ in range(100):
            assert other.try_acquiring() is None
        [after] = db.execute(state)
        assert after[1:] == before[1:]
        # No transaction id was assigned; without one nothing can be written.
        return bool(after == before)

    until(nothing_is_written)  # the server itself, such as autovacuum, sometimes draws one


def test_one_acquisition_draws_one_number(conf: Any, db: Db) -> None:
    lock = conf.get("counted")
    fences = []
    for _ in range(5):
        with lock:
            fences.append(lock.fence)
    assert [fence - fences[0] for fence in fences] == [0, 1, 2, 3, 4]
    assert db.execute("SELECT last_value FROM _score_distlock_id_seq").fetchone() == (1,)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_init_leaves_no_connection_and_no_thread(url: str) -> None:
    code = (
        "import sys, os, pathlib, score.distlock\n"
        "own = pathlib.Path('/proc/self')\n"
        "threads = len(list((own / 'task').iterdir()))\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})\n"
        "assert len(list((own / 'task').iterdir())) == threads\n"
        "with os.scandir(own / 'fd') as files:\n"
        "    print([os.readlink(file.path) for file in files])\n"
    )
    assert "socket" not in python(code, url)


def drop(db: Db) -> None:
    db.execute("DROP TABLE _score_distlock CASCADE")


def put_back_0_2_5(db: Db) -> None:
    drop(db)
    db.execute(ORIGINAL_TABLE)


def drop_a_column(db: Db) -> None:
    db.execute("ALTER TABLE _score_distlock DROP COLUMN expires")


@pytest.mark.parametrize(
    ("change", "sqlstate"),
    [(drop, "42P01"), (put_back_0_2_5, "42703"), (drop_a_column, "42703")],
)
@pytest.mark.parametrize("call", ["acquire", "extend", "release", "vacuum"])
def test_a_table_that_is_gone_is_made_again_by_init(
    url: str, db: Db, change: Callable[[Db], None], sqlstate: str, call: str
) -> None:
    """The error says so, and the configurations that there are then work again."""
    conf = score.distlock.init({"sqlalchemy.url": url})
    token = conf.acquire("name")
    change(db)
    calls: dict[str, Callable[[], Any]] = {
        "acquire": lambda: conf.acquire("other"),
        "extend": lambda: conf.extend("name", token),
        "release": lambda: conf.release("name", token),
        "vacuum": conf.vacuum,
    }
    with pytest.raises(DatabaseError, match=r"missing or not up to date: .*init\(\)") as caught:
        calls[call]()
    assert caught.value.sqlstate == sqlstate
    score.distlock.init({"sqlalchemy.url": url})
    assert conf.acquire("another")
    assert set(columns(db)) >= ADDED
