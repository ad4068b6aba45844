"""The judge of the demonstration: did two holds overlap, did any step not happen?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Problem = str

#: What the processes record. The database's clock stamps every line.
CREATE = """
CREATE TABLE demo_event (
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    who text NOT NULL,
    event text NOT NULL,
    fence bigint,
    token text
);
CREATE TABLE demo_hold (
    fence bigint PRIMARY KEY,
    who text NOT NULL,
    began timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended timestamptz
);
"""

OVERLAPS = """
SELECT a.who, a.fence, b.who, b.fence
  FROM demo_hold AS a JOIN demo_hold AS b ON a.fence < b.fence
 WHERE a.ended IS NULL OR b.began < a.ended
"""

EXPECTED = (
    ("extender", "acquires"),
    ("extender", "extends"),
    ("extender", "releases"),
    ("victim", "acquires"),
    ("victim", "expires"),
    ("stage", "kills victim"),
    ("giver", "acquires"),
    ("giver", "hands its token to heir"),
    ("heir", "transfers and extends"),
    ("heir", "releases"),
    ("contender-1", "is refused"),
    ("contender-1", "releases"),
    ("contender-2", "releases"),
)


def check(query: Callable[[str], Sequence[Any]]) -> list[Problem]:
    """Queries the database; returns what is wrong, in sentences."""
    problems = [
        f"the hold of {first} (fence {fence}) and that of {second} (fence {other}) overlapped"
        for first, fence, second, other in query(OVERLAPS)
    ]
    happened = {(who, event) for who, event in query("SELECT who, event FROM demo_event")}
    problems += [
        f"{who} was expected to be seen with the event {event!r}"
        for who, event in EXPECTED
        if (who, event) not in happened
    ]
    return problems
