"""An application that works with 0.2.5 works unchanged: the same cases run with both."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest

from .conftest import run
from .support.behaviours import CASES


class Difference(NamedTuple):
    """A case in which the two may differ."""

    original: Any
    ours: Any
    reason: str


DIFFERENCES: dict[str, Difference] = {}


Observed = dict[str, Any]


@pytest.fixture(scope="module")
def databases(admin_url: str) -> Iterator[tuple[str, str]]:
    names = ("behaviours_original", "behaviours_ours")
    base, _, query = admin_url.partition("?")
    with psycopg.connect(admin_url, autocommit=True) as admin:
        for name in names:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            admin.execute(f"CREATE DATABASE {name}")
        suffix = f"?{query}" if query else ""
        first, second = (f"{base.rpartition('/')[0]}/{name}{suffix}" for name in names)
        yield first, second
        for name in names:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def observed_original(original: str, databases: tuple[str, str]) -> Observed:
    observed: Observed = json.loads(run(original, "behaviours.py", databases[0]))
    return observed


@pytest.fixture(scope="module")
def observed_ours(databases: tuple[str, str]) -> Observed:
    observed: Observed = json.loads(run(sys.executable, "behaviours.py", databases[1]))
    return observed


@pytest.mark.parametrize("case", CASES)
def test_behaves_like_the_original(
    case: str, observed_original: Observed, observed_ours: Observed
) -> None:
    difference = DIFFERENCES.get(case)
    if difference is None:
        assert observed_ours[case] == observed_original[case]
    else:
        assert observed_original[case] == difference.original, difference.reason
        assert observed_ours[case] == difference.ours, difference.reason


def test_every_difference_is_a_case() -> None:
    assert set(DIFFERENCES) <= set(CASES)
