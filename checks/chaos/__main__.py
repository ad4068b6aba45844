"""Tries to break the locks, and judges what happened.

Usage: python -m checks.chaos [--minutes M] [--seed S] [--json FILE] [--way WAY] [--subject 0.2.5]

It runs rounds of half a minute. In each, processes take locks over one way to the server while
faults chosen by the seed occur, with a calm time before and after. Violations are printed as
they are found, and decide the exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

import score.distlock

from .faults import faults_of
from .judge import Round, Verdict, Version, judge
from .stage import ORIGINAL, Stage, Unavailable

WAYS = ["proxy", "direct", "pooler", "pair", "partition", "disk"]
#: In seconds: how long processes may take to end when told to, whatever they wait for.
LIMIT = 30.0
SETTLE = 3.0


@dataclass
class Result:
    """The result of all rounds."""

    seed: str
    subject: str
    server: str = ""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def violations(self) -> list[str]:
        return [one for round_ in self.rounds for one in round_["violations"]]


def play(stage: Stage, calm: float, wild: float) -> tuple[Verdict, Counter[str]]:
    """Plays one round: calm, wild, calm; then all processes leave."""
    faults: Counter[str] = Counter()
    for number in range(4 + stage.old):
        old = stage.subject == "0.2.5" or number >= 4
        ours = "mixed" if stage.old else "ours"
        stage.spawn("0.2.5" if old else ours, calm_clock=number == 0)
    for worker in stage.workers:
        while not worker.log.exists() and worker.process.poll() is None:
            time.sleep(0.01)
    offset = stage.offset()
    calms = [rest(calm)]
    until = time.monotonic() + wild
    while time.monotonic() < until:
        fault = stage.rng.choice(faults_of(stage.way))
        faults[fault.__name__] += 1
        try:
            fault(stage)
        except (psycopg.Error, ProcessLookupError) as error:
            print(f"   {fault.__name__}: {error}".rstrip(), flush=True)
        stage.bring_back()
        time.sleep(stage.rng.expovariate(3))
    time.sleep(SETTLE)
    stage.bring_back()
    calms.append(rest(calm))
    (stage.folder / "over").touch()
    left = everybody_leaves(stage)
    left += nothing_is_left(stage)
    return judge(record(stage, offset, calms, left)), faults


def version(stage: Stage) -> str:
    """The server's version."""
    with stage.admin() as db:
        row = db.execute("SHOW server_version").fetchone()
    return str(row[0]) if row else ""


def rest(seconds: float) -> tuple[float, float]:
    """Lets the load run without any fault; returns start and end."""
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic()


def everybody_leaves(stage: Stage) -> list[str]:
    """Waits until all processes have left; one that does not shows where it hangs."""
    faults = []
    until = time.monotonic() + LIMIT
    for worker in stage.workers:
        try:
            status = worker.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.kill(worker.process.pid, signal.SIGUSR2)  # it prints its threads' tracebacks
            time.sleep(1)
            worker.process.kill()
            status = worker.process.wait()
        if status != 0 and worker.log.stem not in neighbours(stage):
            errors = (stage.folder / f"{worker.log.stem}.errors").read_text()
            faults.append(f"process {worker.log.stem} ended with {status}: {errors[-3000:]}")
    # A process of 0.2.5 that starts during an outage ends because of it.
    for subject in {worker.subject for worker in stage.all_workers}:
        if not any(worker.has_begun() for worker in stage.all_workers if worker.subject == subject):
            faults.append(f"no process of {subject} ever took part")
    return faults


def neighbours(stage: Stage) -> set[str]:
    """The processes of 0.2.5 that ours have to get along with; they are not judged."""
    old = {worker.log.stem for worker in stage.all_workers if worker.subject == "0.2.5"}
    return old if stage.subject == "ours" else set()


def nothing_is_left(stage: Stage) -> list[str]:
    """Checks that no sessions, holds or queues are left."""
    faults = []
    with stage.admin() as db:
        query = (
            "SELECT application_name, state, query FROM pg_stat_activity WHERE pid <>"
            " pg_backend_pid() AND backend_type = 'client backend'"
        )
        if stage.way == "pooler":
            stage.bouncer.stop()
        # If a process was killed while the network was down, its kernel closes the connection after
        # retries with doubling pauses, or the proxy's kernel notices.
        until = time.monotonic() + (60 if stage.way == "partition" else 10)
        while (left := db.execute(query.encode()).fetchall()) and time.monotonic() < until:
            time.sleep(0.05)
        faults += [f"a session is left: {one}" for one in left]
        names = [row[0] for row in db.execute("SELECT name FROM _score_distlock").fetchall()]
        with score.distlock.init({"sqlalchemy.url": stage.server.url(), "maxtime": "1s"}) as conf:
            for name in names:
                # At most a lease and a second.
                try:
                    conf.release(name, conf.acquire(name, timeout=3.5))
                except score.distlock.DistlockError as error:
                    faults.append(f"{name!r} is left held: {error!r}")
        queued = db.execute("SELECT name, waiters FROM _score_distlock WHERE waiters IS NOT NULL")
        faults += [f"a queue is left: {one}" for one in queued.fetchall()]
    return faults


def record(stage: Stage, offset: float, calms: list[tuple[float, float]], left: list[str]) -> Round:
    """Collects everything the judge needs."""
    counters = []
    for path in stage.folder.iterdir():
        kind, _, name = path.name.partition(" ")
        if kind in ("plain", "fenced"):
            # A process killed before its first write leaves an empty file.
            value, writes, _ = struct.unpack("qqq", path.read_bytes() or bytes(24))
            counters.append((kind, name, value, writes))
    with stage.admin() as db:
        rows = db.execute(
            "SELECT extract(epoch FROM at)::float8, deleted, name, token, fence,"
            " coalesce(extract(epoch FROM expires)::float8, 0), coalesce(ours, false)"
            " FROM chaos_journal ORDER BY number"
        ).fetchall()
        guarded = db.execute("SELECT 'guarded', name, value, writes FROM chaos_guarded")
        counters += guarded.fetchall()
    return Round(
        offset=offset,
        journal=[Version(*row) for row in rows],
        logs=stage.logs(),
        calm=[(start + offset, end + offset) for start, end in calms],
        crashes=[crash + offset for crash in stage.crashes],
        paused=stage.paused,
        killed={worker.log.stem for worker in stage.all_workers if worker.killed},
        neighbours=neighbours(stage),
        with_old=bool(stage.old) or stage.subject == "0.2.5",
        notified=stage.way != "pooler",
        counters=counters,
        left_behind=left,
    )


def run(
    options: argparse.Namespace, overlay: Path | None = None, stop_at_first: bool = False
) -> Result:
    """Runs all rounds."""
    seed = options.seed or str(random.randrange(1 << 32))
    result = Result(seed, options.subject)
    print(f"== chaos, seed {seed}", flush=True)
    ways = [options.way] if options.way else WAYS
    if options.subject == "0.2.5":
        ways = [way for way in ways if way in ("direct", "proxy")]
    until = time.monotonic() + options.minutes * 60
    number = 0
    while time.monotonic() < until or not result.rounds:
        way = ways[number % len(ways)]
        number += 1
        if way in result.skipped:
            if len(result.skipped) == len(ways):
                break
            continue
        rng = random.Random(f"{seed} {number}")
        old = rng.choice([0, 0, 2]) if way in ("direct", "proxy") and ORIGINAL.exists() else 0
        if options.subject == "0.2.5":
            old = 0
        start = time.monotonic()
        try:
            with Stage(way, f"{seed}/{number}", options.subject, overlay, old) as stage:
                result.server = result.server or version(stage)
                verdict, faults = play(stage, options.calm, options.wild)
                if verdict.violations and options.keep:
                    keep(stage, Path(options.keep) / f"{number}")
        except Unavailable as error:
            print(f"   {way}: skipped, {error}", flush=True)
            result.skipped[way] = str(error)
            continue
        seconds = time.monotonic() - start
        result.rounds.append(
            {
                "number": number,
                "way": way,
                "old": old,
                "seconds": seconds,
                "faults": faults,
                "counts": verdict.counts,
                "harm": verdict.harm,
                "slowest": verdict.slowest,
                "violations": verdict.violations,
            }
        )
        print(
            f"   round {number} ({way}{', with 0.2.5' if old else ''}): {seconds:.0f} s,"
            f" {verdict.counts['holds']} holds, {sum(faults.values())} faults,"
            f" {len(verdict.violations)} violations",
            flush=True,
        )
        for several in by_kind(verdict.violations).values():
            print(f"      {len(several)} like: {several[0]}", flush=True)
        if stop_at_first and verdict.violations:
            break
    return result


def by_kind(violations: list[str]) -> dict[str, list[str]]:
    """Groups violations that differ only in names and numbers."""
    found: dict[str, list[str]] = {}
    for one in violations:
        found.setdefault(re.sub(r"'[^']*'|[0-9a-f]{8}|[\d.]+", "#", one), []).append(one)
    return found


def keep(stage: Stage, folder: Path) -> None:
    """Saves a round's logs, to find the cause."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in stage.folder.iterdir():
        if path.suffix in (".log", ".errors"):
            (folder / path.name).write_bytes(path.read_bytes())
    with contextlib.suppress(psycopg.Error), stage.admin() as db:
        rows = db.execute("SELECT * FROM chaos_journal ORDER BY number").fetchall()
        (folder / "journal.txt").write_text("\n".join(map(str, rows)))
    with contextlib.suppress(OSError):
        (folder / "server.log").write_bytes((stage.server.folder / "log").read_bytes())


def parser() -> argparse.ArgumentParser:
    """The options, which the self-test shares."""
    options = argparse.ArgumentParser(prog="checks.chaos", description=__doc__)
    options.add_argument("--minutes", type=float, default=2)
    options.add_argument("--seed", default="")
    options.add_argument("--way", choices=WAYS)
    options.add_argument("--subject", choices=["ours", "0.2.5"], default="ours")
    options.add_argument("--calm", type=float, default=5, help="seconds before and after faults")
    options.add_argument("--wild", type=float, default=12, help="seconds with faults")
    options.add_argument("--json", help="a file for the figures")
    options.add_argument("--keep", help="a folder for the logs of rounds that failed")
    return options


def main() -> int:
    """The exit code tells whether there were violations."""
    options = parser().parse_args()
    result = run(options)
    violations = result.violations()
    total: Counter[str] = Counter()
    for round_ in result.rounds:
        total.update(round_["counts"])
    print(f"== seed {result.seed}: {len(result.rounds)} rounds, {total['holds']} holds,", end=" ")
    print(f"{len(violations)} violations, harm {sum(one['harm'] for one in result.rounds)}")
    if options.json:
        ours = options.subject == "ours"
        versions = {
            "score.distlock": score.distlock.__version__ if ours else options.subject,
            "PostgreSQL": result.server,
            "Python": platform.python_version(),
            "Linux": platform.release(),
            "cores": os.cpu_count(),
        }
        for round_ in result.rounds:
            kinds = by_kind(round_["violations"]).values()
            round_["violations"] = [[len(several), several[0]] for several in kinds]
        data = {**vars(result), "versions": versions}
        Path(options.json).write_text(json.dumps(data, indent=1) + "\n")
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main())
