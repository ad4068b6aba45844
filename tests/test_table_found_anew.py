"""A configuration looks for its table again after `close()`, and after the table was missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

import score.distlock
from score.distlock import CouldNotAcquireLock, DatabaseError, LockExpired

from .support.line import until
from .test_neighbours import with_search_path
from .test_schema import ADDED, ORIGINAL_TABLE, columns

Db = psycopg.Connection[Any]
Conf = score.distlock.ConfiguredDistlockModule


def drop(db: Db) -> None:
    db.execute("DROP TABLE _score_distlock CASCADE")


def put_back_0_2_5(db: Db) -> None:
    drop(db)
    db.execute(ORIGINAL_TABLE)


@pytest.mark.parametrize("change", [drop, put_back_0_2_5])
def test_close_makes_a_configuration_look_for_its_table_again(
    conf: Conf, db: Db, change: Callable[[Db], object]
) -> None:
    token = conf.acquire("name")
    change(db)
    conf.close()
    assert conf.acquire("name") != token
    assert set(columns(db)) >= ADDED


@pytest.mark.parametrize(
    ("change", "sqlstate"),
    [
        (drop, "42P01"),
        (put_back_0_2_5, "42703"),
        (lambda db: db.execute("ALTER TABLE _score_distlock DROP COLUMN expires"), "42703"),
        (lambda db: db.execute("ALTER TABLE _score_distlock RENAME TO other"), "42P01"),
    ],
)
@pytest.mark.parametrize("call", ["acquire", "extend", "release", "vacuum"])
def test_the_call_after_the_error_makes_the_table_again(
    conf: Conf, db: Db, change: Callable[[Db], object], sqlstate: str, call: str
) -> None:
    """Nothing is made in the place of a table that is gone before somebody has learned of it."""
    token = conf.acquire("name")
    change(db)
    calls: dict[str, Callable[[], Any]] = {
        "acquire": lambda: conf.acquire("other"),
        "extend": lambda: conf.extend("name", token),
        "release": lambda: conf.release("name", token),
        "vacuum": conf.vacuum,
    }
    with pytest.raises(DatabaseError, match="the table is missing or not up to date") as caught:
        calls[call]()
    assert caught.value.sqlstate == sqlstate
    assert conf.acquire("another")
    assert set(columns(db)) >= ADDED


def test_a_block_whose_table_vanishes(conf: Conf, db: Db) -> None:
    """It learns of it, and the same lock works again."""
    lock = conf.get("name")
    with pytest.raises(DatabaseError, match="missing or not up to date"), lock:
        drop(db)
    with lock:
        assert not lock.expired
    with pytest.raises(LockExpired), lock:
        drop(db)
        conf.close()


def test_losses_in_the_table_that_was_found_last(url: str, db: Db) -> None:
    """Two configurations with one address recognise each other's holds, although the address meant
    another table when the first one was new."""
    before, after = (f"locks_{number}" for number in (1, 2))
    for schema in (before, after):
        db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))

    def look_in(schema: str) -> None:
        names = [sql.Identifier(each) for each in (db.info.user, db.info.dbname, schema)]
        db.execute(sql.SQL("ALTER ROLE {} IN DATABASE {} SET search_path TO {}").format(*names))

    look_in(before)
    first = score.distlock.init({"sqlalchemy.url": url})
    assert first.acquire("name")
    look_in(after)
    with pytest.raises(CouldNotAcquireLock):
        first.acquire("name", timeout=0)
    first.close()
    second = score.distlock.init({"sqlalchemy.url": url})

    def learns_of(theirs: Conf, ours: Conf) -> None:
        lock = ours.get("name")
        lost: list[Any] = []
        with pytest.raises(LockExpired), lock.hold(on_lost=lost.append):
            assert lock.token is not None
            theirs.release("name", lock.token)
            assert lock.expired
            until(lambda: lost)

    learns_of(first, second)
    learns_of(second, first)


def test_the_guard_names_the_table_that_was_found_last(url: str, db: Db) -> None:
    db.execute("CREATE SCHEMA locks")
    here = with_search_path(url, "locks,public")
    db.execute(ORIGINAL_TABLE)
    conf = score.distlock.init({"sqlalchemy.url": here})
    assert conf.acquire("name")
    drop(db)
    conf.close()
    with conf.get("other") as lock, psycopg.connect(here) as connection:
        lock.guard(connection)
    assert db.execute("SELECT count(*) FROM locks._score_distlock").fetchone() == (1,)
