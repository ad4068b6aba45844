"""``score-distlock doctor``: what is wrong with a database, and what to do about it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from score.distlock import ConfiguredDistlockModule, DatabaseError, HoldInfo

from ._shown import duration, printable

#: In seconds.
_LONG_HOLD, _OLD_SNAPSHOT, _CLOCK, _LONG_WAIT = 3600.0, 600.0, 1.0, 10.0
_TOKENS = "a token in a log or a backup is a key to its lock"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong. An error breaks promises, a warning may."""

    level: Literal["error", "warning"]
    what: str
    remedy: str


def examine(conf: ConfiguredDistlockModule) -> tuple[dict[str, str | None], list[Finding]]:
    """The facts about the database, and what is wrong with them."""
    before = time.time()
    facts = dict(conf._facts())
    after = time.time()
    clock = float(facts.pop("clock") or before) - (before + after) / 2
    facts["clock_difference"] = f"{clock:.3f}"
    findings = [*_of_the_server(facts), *_of_the_table(facts)]
    if abs(clock) > _CLOCK + (after - before) / 2:
        findings.append(
            Finding(
                "warning",
                f"this host's clock and the server's differ by {duration(clock)}",
                "run NTP on both: locks go by the server's clock alone, but processes of"
                " score.distlock 0.2.5 and cron do not",
            )
        )
    with contextlib.ExitStack() as stack:
        if facts["table_rights"] != "true":  # no right to read is a finding already
            stack.enter_context(contextlib.suppress(DatabaseError))
        holds = conf.holders()
        findings += [*_of_the_holds(holds), *_of_the_waits(holds, conf._waits())]
    return facts, sorted(findings, key=lambda finding: finding.level)


def _of_the_server(facts: dict[str, str | None]) -> Iterator[Finding]:
    for setting in ("fsync", "full_page_writes"):
        if facts[setting] == "off":
            yield Finding(
                "error",
                f"{setting} is off: after a crash of the server a lock may have two holders",
                f"set {setting} = on",
            )
    if facts["transaction_read_only"] == "on" or facts["in_recovery"] == "true":
        kind = "a standby" if facts["in_recovery"] == "true" else "read only"
        yield Finding(
            "error",
            f"the server is {kind}, so nothing can be acquired",
            "name the primary, or all hosts and target_session_attrs=read-write in the URL",
        )
    if facts["tls"] == "false" and facts["same_host"] == "false":
        yield Finding(
            "warning",
            "the connection is not encrypted, and tokens go over it",
            "add sslmode=verify-full to the URL",
        )
    logged = facts["log_statement"] in ("mod", "all") or facts["log_min_duration_statement"] != "-1"
    if logged and facts["log_parameter_max_length"] != "0":
        yield Finding(
            "warning",
            f"the server logs statements with their parameters, and {_TOKENS}",
            "set log_parameter_max_length = 0 (PostgreSQL 13 or later)",
        )
    if facts["notifications"] == "false":
        yield Finding(
            "warning",
            "notifications do not come through, because a pooler is in between: whoever"
            " waits for a lock asks twice a second instead of being called",
            "give the locks a direct connection if they are waited for",
        )
    used, most = int(facts["connections"] or 0), int(facts["max_connections"] or 0)
    if used > 0.9 * most:
        yield Finding(
            "warning",
            f"{used} of {most} connections are in use",
            "raise max_connections, or put a PgBouncer in front",
        )
    snapshot = float(facts["oldest_snapshot"] or 0)
    if snapshot > _OLD_SNAPSHOT:
        yield Finding(
            "warning",
            f"a transaction is open since {duration(snapshot)}: locks that are used often get"
            " slower, as old versions of their rows cannot be removed",
            "end it (pg_stat_activity shows it), or let it read from a standby",
        )


def _of_the_table(facts: dict[str, str | None]) -> Iterator[Finding]:
    grant = "run the SQL that score-distlock schema --grant ROLE prints"
    if facts["table_rights"] != "true":
        yield Finding("error", "the role may not read and write the table", grant)
    if facts["sequence_rights"] != "true":
        yield Finding("error", "the role may not draw fences", grant)
    if facts["fence_cache"] not in ("1", None):
        yield Finding(
            "warning",
            f"the sequence of the fences keeps {facts['fence_cache']} numbers for each session,"
            " so each takes more statements",
            "ALTER SEQUENCE _score_distlock_fence_seq CACHE 1",
        )
    if facts["broken_indexes"]:
        yield Finding(
            "error",
            f"indexes of the table are not valid: {facts['broken_indexes']}",
            "REINDEX TABLE _score_distlock",
        )
    if facts["unique_name"] == "0":
        yield Finding(
            "error",
            "no valid unique index is on the name, so a lock may have two holders",
            "CREATE UNIQUE INDEX ON _score_distlock (name)",
        )


def _who(info: HoldInfo) -> str:
    return f"{printable(info.host)}, process {info.pid}" if info.host else "somebody"


def _of_the_holds(holds: Sequence[HoldInfo]) -> Iterator[Finding]:
    now = datetime.now(timezone.utc)
    old = [info for info in holds if info.fence is None]
    if old:
        yield Finding(
            "warning",
            f"processes of score.distlock 0.2.5 hold locks, such as {printable(old[0].name)!r}:"
            " they draw no fences, and hold by their hosts' clocks",
            "upgrade them",
        )
    for info in holds:
        age = (now - info.acquired).total_seconds()
        if age > _LONG_HOLD:
            yield Finding(
                "warning",
                f"{printable(info.name)!r} has been held for {duration(age)} by {_who(info)}",
                "see whether that process still works; if not, score-distlock revoke",
            )


def _of_the_waits(holds: Sequence[HoldInfo], waits: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Finds deadlocks; `waits` are pairs of a held and an awaited lock."""
    now = datetime.now(timezone.utc)
    # Locks that keep changing hands are not in a deadlock.
    old = {info.name: info for info in holds if (now - info.acquired).total_seconds() > _LONG_WAIT}
    awaited: dict[str, list[str]] = {}
    for held, other in sorted(waits):
        if held in old and other in old:
            awaited.setdefault(held, []).append(other)
    seen: set[str] = set()
    for start in sorted(awaited):
        if start in seen:
            continue
        circle = _way_back(awaited, start)
        seen.update(circle)
        if circle:
            links = [
                f"{_who(old[name])} holds {printable(name)!r} and waits for {printable(other)!r}"
                for name, other in zip(circle, [*circle[1:], start], strict=True)
            ]
            yield Finding(
                "warning",
                "holders wait for each other: " + "; ".join(links),
                "if one thread does both, take the locks in one order everywhere, or with"
                " acquire_all(); score-distlock revoke ends it",
            )


def _way_back(awaited: dict[str, list[str]], start: str) -> list[str]:
    """The shortest path from a lock back to itself."""
    ways = [[start]]
    reached: set[str] = set()
    for way in ways:  # the list grows during the loop
        for other in awaited.get(way[-1], []):
            if other == start:
                return way
            if other not in reached:
                reached.add(other)
                ways.append([*way, other])
    return []
