"""An acquire that was repeated over another connection takes the lock once."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

import score.distlock

from .test_late_statements import standing_still
from .test_lost_answers import own_url, proxy, through

__all__ = ("own_url", "proxy", "through")


@pytest.mark.xfail(strict=True, reason="the model's fault: a statement outlives its repetition")
def test_the_first_statement_takes_nothing_when_the_repetition_was_released(
    through: Any, proxy: Any, own_url: str
) -> None:
    """Its connection breaks while its server process stands still, for less than five seconds."""
    slow = through(options="?application_name=slow")
    for _ in range(3):  # what is prepared is sent in one go
        with slow.get("name"):
            pass
    with psycopg.connect(own_url, autocommit=True) as db:
        with standing_still(db, "slow"):
            # Bind, Execute, Sync: the server has all of the statement.
            cut = proxy.arm("request", 2, "after")
            with slow.get("name"):
                assert cut.done.is_set()
        query = "SELECT count(*) FROM _score_distlock WHERE expires > clock_timestamp()"
        assert db.execute(query).fetchone() == (0,)
    assert score.distlock.init({"sqlalchemy.url": own_url}).try_acquiring("name")
