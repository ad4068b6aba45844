"""`make failover`: a cluster loses its leader in four ways while processes take locks.

Usage: python -m tests.failover.run FOLDER [WAY…], with Patroni's virtual environment, and
the ways to try, by default all four.
"""

from __future__ import annotations

import collections
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .cluster import Cluster, Node, ask

LOAD = Path(__file__).parent.parent / "support" / "load.py"
PROCESSES, THREADS, MAXTIME = 3, 4, "45s"


class Loads:
    """Processes that take locks, and what they print."""

    def __init__(self, url: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="distlock-witness-")
        self.said: list[tuple[float, str, str, int | None]] = []
        self.heard = threading.Condition()
        arguments = [url, self.folder, str(THREADS), MAXTIME]
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(LOAD), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(PROCESSES)
        ]
        self.counts = [0] * PROCESSES
        self.readers = [
            threading.Thread(target=self._read, args=(number,), daemon=True)
            for number in range(PROCESSES)
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, number: int) -> None:
        output = self.processes[number].stdout
        assert output
        for line in output:
            with self.heard:
                self.said.append(tuple(json.loads(line)))
                self.counts[number] += 1
                self.heard.notify_all()

    def go_on(self, holds: int = 100) -> None:
        """Waits until each process has had this many more holds."""
        with self.heard:
            wanted = [count + holds for count in self.counts]
            done = self.heard.wait_for(
                lambda: all(map(int.__ge__, self.counts, wanted)), timeout=180
            )
        if not done:
            raise TimeoutError(f"not all processes go on: {self.counts} of {wanted} holds")

    def pause(self, since: float) -> float:
        """The longest time since then in which no process got a lock."""
        times = sorted(line[0] for line in self.said if line[0] >= since)
        return max(after - before for before, after in zip([since, *times], times, strict=False))

    def end(self) -> None:
        """Lets all processes finish; the waiters must get the lock."""
        for process in self.processes:
            assert process.stdin
            process.stdin.close()
        for process in self.processes:
            if process.wait(timeout=180):
                raise ChildProcessError(f"a process ended with {process.returncode}")
        for reader in self.readers:
            reader.join()
        shutil.rmtree(self.folder)

    def kill(self) -> None:
        """Kills what is left after a failure."""
        for process in self.processes:
            process.kill()
            process.wait()


def killed(leader: Node) -> Callable[[], None]:
    """Patroni and PostgreSQL are killed, and restarted later."""
    leader.signal(signal.SIGKILL)
    return leader.start


def stopped(leader: Node) -> Callable[[], None]:
    """Patroni and PostgreSQL are stopped, and then go on as if nothing had happened."""
    leader.signal(signal.SIGSTOP)
    return lambda: leader.signal(signal.SIGCONT)


def cut_off(leader: Node) -> Callable[[], None]:
    """The network separates the leader from everybody else."""
    for gate in leader.gates:
        gate.is_open.clear()

    def heal() -> None:
        for gate in leader.gates:
            gate.is_open.set()

    return heal


def switched_over(leader: Node) -> Callable[[], None]:
    """An operator switches over."""
    ask(leader.rest, "/switchover", {"leader": leader.name})
    return lambda: None


WAYS = {way.__name__: way for way in (switched_over, killed, stopped, cut_off)}


def main() -> int:
    """Prints the outcome."""
    patroni = Path(sys.argv[1]).absolute() / "bin" / "patroni"
    for program in (str(patroni), "etcd"):
        if shutil.which(program) is None:
            print(f"skipped: {program} is not installed, and cannot be")
            return 0
    cluster = Cluster(patroni)
    loads = None
    failed = []
    try:
        cluster.complete()
        loads = Loads(cluster.url)
        for way in [WAYS[name] for name in sys.argv[2:]] or WAYS.values():
            loads.go_on()
            leader = cluster.leader()
            started = time.time()
            mend = way(leader)
            cluster.leader(unlike=leader)
            elected = time.time() - started
            loads.go_on()
            pause = loads.pause(started)
            name = way.__name__.replace("_", " ")
            print(f"{name}: another leads after {elected:.1f} s, pause {pause:.1f} s", flush=True)
            mend()
            loads.go_on()
            cluster.complete()
        loads.end()
    except (OSError, TimeoutError) as error:
        failed.append(str(error))
    finally:
        if loads:
            loads.kill()
        cluster.end(keep=bool(failed))
    counts = collections.Counter(line[1] for line in loads.said) if loads else {}
    for what, count in counts.items():
        print(f"{count} times: {what}")
    failed += [what for what in counts if what != "held"]
    print("failed: " + "; ".join(failed) if failed else "no hold doubled or lost, fences rise")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
