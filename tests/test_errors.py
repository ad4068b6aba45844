"""The exceptions: one base class, and fields that survive pickling and copying."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from score.distlock import (
    CouldNotAcquireLock,
    DatabaseError,
    DatabaseUnavailable,
    DistlockError,
    LockExpired,
)

TOKEN = "0123456789abcdef" * 16

JOURNEYS: list[Callable[[Any], Any]] = [
    lambda error: error,
    copy.copy,
    copy.deepcopy,
    *(lambda error, p=p: pickle.loads(pickle.dumps(error, p)) for p in range(6)),
]


@pytest.mark.parametrize(
    "error",
    [
        CouldNotAcquireLock("name"),
        LockExpired("name", TOKEN),
        DatabaseError("message", "42P01"),
        DatabaseError("message"),
        DatabaseUnavailable("message", "08006"),
        DatabaseUnavailable("message"),
    ],
)
def test_one_base_class(error: DistlockError) -> None:
    assert isinstance(error, DistlockError)
    for travel in JOURNEYS:
        arrived = travel(error)
        assert type(arrived) is type(error)
        assert (arrived.args, str(arrived), repr(arrived)) == (error.args, str(error), repr(error))


@pytest.mark.parametrize("sqlstate", [None, "08006"])
@pytest.mark.parametrize("travel", JOURNEYS)
def test_no_message_is_an_errno(travel: Callable[[Any], Any], sqlstate: str | None) -> None:
    """OSError would take two arguments for errno and strerror."""
    error = travel(DatabaseUnavailable("message", sqlstate))
    assert issubclass(type(error), ConnectionError)
    assert (error.errno, error.strerror, error.filename) == (None, None, None)
    assert (error.args, error.message, error.sqlstate) == (
        ("message", sqlstate),
        "message",
        sqlstate,
    )


@pytest.mark.parametrize("travel", JOURNEYS)
@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("expired", "its lease has expired"),
        ("released", "it was released"),
        ("unreachable", "could not be reached"),
        ("unknown", "it has expired, was released, or the token is wrong"),
    ],
)
def test_why_a_hold_is_lost(travel: Callable[[Any], Any], reason: Any, text: str) -> None:
    error = travel(LockExpired("name", TOKEN, reason=reason))
    assert error.reason == reason
    assert error.args == ("name", TOKEN)
    assert text in str(error)
    assert TOKEN not in str(error) + repr(error)
    assert (reason in repr(error)) == (reason != "unknown")


def test_reasons_are_four_and_have_a_keyword() -> None:
    assert LockExpired("name", TOKEN).reason == "unknown"
    wrong: Any = "tired"
    with pytest.raises(ValueError, match="one of expired, released, unreachable, unknown"):
        LockExpired("name", TOKEN, reason=wrong)
    with pytest.raises(TypeError):
        LockExpired("name", TOKEN, "expired")  # type: ignore[call-arg]
