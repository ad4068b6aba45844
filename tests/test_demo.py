"""The demonstration is real: it runs, and its judge notices an overlap."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psycopg
import pytest

from .conftest import PROJECT

sys.path.insert(0, str(PROJECT / "demo"))

from overlap import CREATE, EXPECTED, check

Db = psycopg.Connection[Any]


@pytest.fixture
def judged(db: Db) -> Db:
    """The tables of a demonstration in which every step happened."""
    for statement in CREATE.split(";"):
        db.execute(statement.encode())
    for who, event in EXPECTED:
        db.execute("INSERT INTO demo_event (who, event) VALUES (%s, %s)", (who, event))
    return db


def verdict(db: Db) -> list[str]:
    return check(lambda sql: db.execute(sql.encode()).fetchall())


HOLD = "INSERT INTO demo_hold VALUES (%s, %s, %s, %s)"


def test_holds_one_after_the_other_are_fine(judged: Db) -> None:
    judged.execute(HOLD, (1, "a", "2026-01-01 10:00", "2026-01-01 10:01"))
    judged.execute(HOLD, (2, "b", "2026-01-01 10:01", "2026-01-01 10:02"))
    assert verdict(judged) == []


@pytest.mark.parametrize("end", ["2026-01-01 10:01:01", None])
def test_an_overlap_is_noticed(judged: Db, end: str | None) -> None:
    judged.execute(HOLD, (1, "a", "2026-01-01 10:00", end))
    judged.execute(HOLD, (2, "b", "2026-01-01 10:01", "2026-01-01 10:02"))
    assert verdict(judged) == ["the hold of a (fence 1) and that of b (fence 2) overlapped"]


def test_a_missing_event_is_noticed(judged: Db) -> None:
    judged.execute("DELETE FROM demo_event WHERE who = 'heir' AND event = 'releases'")
    assert verdict(judged) == ["heir was expected to be seen with the event 'releases'"]


def test_the_demonstration_runs() -> None:
    program = [sys.executable, "demo/demo.py"]
    result = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no two holds overlapped" in result.stdout
