"""One hot name beside an old snapshot, which keeps every version of its row alive.

Compares the look-up that starts at the newest version (``latest.sql``) with a plain one by
name, in alternating rounds on one server, and prints cycles per second for each eighth of a
round.
    python bench/snapshot.py [SECONDS] [ROUNDS]
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import psycopg

import score.distlock
from score.distlock._distlock import _statements

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.server import Server

VALUES = ["'hot'::text", f"'{'ab' * 128}'::text", "60::float8", "0::float8", "'bench'::text"]
STATEMENTS = {title: text for title, text, _ in _statements("public")}


def by_name(sql: str) -> str:
    """The statement with the obvious, plain look-up by name."""
    found = r"ctid OPERATOR\(pg_catalog\.=\) \(\s*SELECT ctid FROM [^)]*\)[^)]*\)[^)]*LIMIT 1\s*\)"
    plain, count = re.subn(found, "name OPERATOR(pg_catalog.=) $1", sql)
    assert count == 1, sql
    return plain.replace("ctid", "id")


def prepared(sql: str) -> bytes:
    return re.sub(r"\$(\d+)", lambda found: VALUES[int(found[1]) - 1], sql).encode()


def rates(server: Server, plain: bool, old_snapshot: bool, seconds: float) -> list[float]:
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS snapshot WITH (FORCE)")
        admin.execute("CREATE DATABASE snapshot")
    url = server.url("snapshot")
    conf = score.distlock.init({"sqlalchemy.url": url})
    conf.release("hot", conf.acquire("hot"))
    with psycopg.connect(url) as report, psycopg.connect(url, autocommit=True) as work:
        if old_snapshot:
            report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            report.execute("SELECT pg_current_xact_id()")
        work.execute("SET enable_seqscan TO off")
        work.execute("SET plan_cache_mode TO force_generic_plan")
        for name, title in (("take", "Retake"), ("end_it", "Release")):
            sql = by_name(STATEMENTS[title]) if plain else STATEMENTS[title]
            work.execute(f"PREPARE {name} AS ".encode() + prepared(sql))
        found = []
        for _ in range(8):
            begin, done = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds / 8:
                for execute in ("EXECUTE take", "EXECUTE end_it"):
                    assert work.execute(execute, prepare=False).rowcount == 1
                done += 1
            found.append(done / (time.perf_counter() - begin))
        return found


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 12
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    server = Server()
    try:
        for _ in range(rounds):
            for old_snapshot in (False, True):
                for plain in (True, False):
                    found = rates(server, plain, old_snapshot, seconds)
                    where = "beside an old snapshot" if old_snapshot else "alone"
                    how = "by name" if plain else "newest first"
                    print(f"{where}, {how}:", *(f"{rate:.0f}" for rate in found), flush=True)
    finally:
        server.destroy()


main()
