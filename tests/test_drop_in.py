"""An application for 0.2.5 works unchanged: the same cases run with both."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from .conftest import fresh_database, run
from .support.behaviours import CASES


class Anything:
    """Equal to every observation."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANYTHING = Anything()


class Difference(NamedTuple):
    """A case in which the two versions may differ."""

    original: Any
    ours: Any
    reason: str


DIFFERENCES = {
    "tokens_may_be_bytes": Difference(
        ["failed", "ProgrammingError"],
        256,
        "psycopg2 passes bytes as bytea, which 0.2.5 cannot compare; on other databases it can",
    ),
    "second_acquire_of_the_owner": Difference(
        "raised",
        "returned",
        "0.2.5 says that it is reentrant, but is not; `reentrant = false` brings that back",
    ),
    "bytes_as_name": Difference(
        ANYTHING, ["raised", "TypeError"], "bytes become '\\x…' and never meet the str they spell"
    ),
    "integer_as_name": Difference(
        ANYTHING, ["raised", "TypeError"], "7 and '7' become one lock by accident"
    ),
    "released_inside_the_block": Difference(
        ["raised", "ValueError"],
        ["raised", "LockExpired"],
        "the block did not hold its lock to its end, whoever released it",
    ),
    "missing_url": Difference(
        ["raised", "KeyError"],
        ["raised", "ConfigurationError"],
        "an error in the configuration is score's ConfigurationError and names the key",
    ),
    "unknown_key": Difference(
        "returned", "raised", "a misspelt key is an error rather than silently ignored"
    ),
    "maxtime_as_timedelta": Difference("raised", "returned", "a timedelta is a time interval too"),
}


Observed = dict[str, Any]


@pytest.fixture(scope="module")
def databases(admin_url: str) -> Iterator[tuple[str, str]]:
    with fresh_database(admin_url) as first, fresh_database(admin_url) as second:
        yield first, second


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
