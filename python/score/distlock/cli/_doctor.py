"""``score-distlock doctor``: what is wrong with a database, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from score.distlock import ConfiguredDistlockModule

from ._shown import duration, printable

#: In seconds.
_LONG_HOLD, _OLD_SNAPSHOT, _CLOCK = 3600.0, 600.0, 1.0
_TOKENS = "a token in a log or a backup is a key to its lock"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. An error breaks promises, a warning may."""

    level: Literal["error", "warning"]
    what: str
    remedy: str


def examine(conf: ConfiguredDistlockModule) -> tuple[dict[str, str | None], list[Finding]]:
    """What was asked for, and what is wrong with it."""
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
    findings += _of_the_holds(conf)
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


def _of_the_holds(conf: ConfiguredDistlockModule) -> Iterator[Finding]:
    now = datetime.now(timezone.utc)
    holds = conf.holders()
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
            where = f"{printable(info.host)}, process {info.pid}" if info.host else "somebody"
            yield Finding(
                "warning",
                f"{printable(info.name)!r} is held since {duration(age)} by {where}",
                "see whether that process still works; if not, score-distlock revoke",
            )
