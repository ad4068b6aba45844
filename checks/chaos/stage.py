"""The processes, the server and the ways to it, for one round."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from tests.support import pooler
from tests.support.proxy import Proxy
from tests.support.server import Server

PROJECT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).parent / "worker.py"
ORIGINAL = PROJECT / "build" / "original" / "bin" / "python"
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
ZONES = ["UTC", "Europe/Vienna", "America/New_York", "Asia/Kolkata", "AEST-10AEDT"]
NETWORK = f"10.203.{os.getpid() % 250}."

#: Records every change of a lock's row, by the database's clock, under the row lock.
JOURNAL = """
CREATE TABLE chaos_guarded (name text PRIMARY KEY, value bigint, writes bigint);
CREATE TABLE chaos_journal (
    number bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz, deleted boolean, name text, token text, fence bigint, expires timestamptz,
    ours boolean
);
CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        NEW := OLD;
    END IF;
    INSERT INTO chaos_journal (at, deleted, name, token, fence, expires, ours)
    VALUES (clock_timestamp(), TG_OP = 'DELETE', NEW.name, NEW.token, NEW.fence, NEW.expires,
            NEW.touched = NEW.updated AND NEW.expires IS NOT NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos AFTER INSERT OR UPDATE OR DELETE ON _score_distlock
    FOR EACH ROW EXECUTE FUNCTION chaos_note();
"""


class Unavailable(Exception):
    """Not available on this machine; the text says why."""


class Worker:
    """A process of the load."""

    def __init__(self, subject: str, process: subprocess.Popen[str], log: Path) -> None:
        self.subject, self.process, self.log = subject, process, log
        self.killed = False

    def has_begun(self) -> bool:
        """Whether it has said so, and so handles signals."""
        return self.log.exists() and '"begins"' in self.log.read_text()

    def kill(self) -> None:
        """Kills the process immediately."""
        self.killed = True
        self.process.kill()
        self.process.wait()


class Stage:
    """Everything a round needs; a context manager."""

    def __init__(self, way: str, seed: str, subject: str, overlay: Path | None, old: int) -> None:
        self.way, self.seed, self.subject, self.overlay, self.old = way, seed, subject, overlay, old
        self.rng = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="distlock-chaos-"))
        self.folder.chmod(0o755)
        (self.folder / "handed").mkdir()
        self.clock = self.folder / "clock"
        self.clock.write_text("+0")
        self.workers: list[Worker] = []
        self.all_workers: list[Worker] = []
        self.crashes: list[float] = []
        self.paused = False
        self.disk: str | None = None
        self.standby: Server | None = None
        self.namespace: str | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.all_workers:
            # Including the processes it has forked, even if it has ended itself.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack) -> None:
        if self.way == "disk":
            self.disk = str(self.folder / "disk")
            Path(self.disk).mkdir()
            _root("mount", "-t", "tmpfs", "-o", "size=200m,mode=0755", "tmpfs", self.disk)
            stack.callback(_root, "umount", "-l", self.disk)
        self.server = Server(parent=self.disk)
        stack.callback(lambda server: server.destroy(), self.server)
        if self.way == "pair":
            self._start_pair(stack)
        if self.rng.random() < 0.3:
            with self.admin() as db:
                db.execute("ALTER ROLE postgres SET synchronous_commit = off")
        path = f"{self.server.folder}/.s.PGSQL.{self.server.port}"
        if self.way == "partition":
            self._start_network(stack)
            self.proxy = Proxy(path, NETWORK + "1")
        else:
            self.proxy = Proxy(path)
        stack.callback(self.proxy.close)
        if self.way == "pooler":
            if pooler.program() is None:
                raise Unavailable(f"{pooler.NAME} is not installed")
            # By default PgBouncer refuses all clients for 15 s after an outage of the server.
            more = "max_client_conn = 1000\nserver_login_retry = 1"
            self.bouncer = pooler.Bouncer(self.server, "transaction", 30, more, kept=True)
            stack.callback(self.bouncer.stop)
        self._prepare()

    def _start_pair(self, stack: contextlib.ExitStack) -> None:
        standby = Server(self.server)
        stack.callback(standby.destroy)
        self.both = (self.server, standby)
        self.standby = standby
        self.server.wait_for_standby()

    def _start_network(self, stack: contextlib.ExitStack) -> None:
        """A host of their own for the processes: a namespace with one wire to it."""
        name = self.namespace = f"chaos{os.getpid()}"
        _root("ip", "netns", "add", name)
        stack.callback(_root, "ip", "netns", "del", name)
        wire = f"ch{os.getpid()}"
        _root("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        _root("ip", "addr", "add", NETWORK + "1/24", "dev", wire)
        _root("ip", "link", "set", wire, "up")
        _root("ip", "-n", name, "addr", "add", NETWORK + "2/24", "dev", "eth0")
        _root("ip", "-n", name, "link", "set", "eth0", "up")
        _root("ip", "-n", name, "link", "set", "lo", "up")

    def link(self, state: str) -> None:
        """Sets the processes' network up or down."""
        assert self.namespace
        _root("ip", "-n", self.namespace, "link", "set", "eth0", state)

    def url(self) -> str:
        """The URL the processes use."""
        if self.way == "pair":
            hosts = ",".join(str(one.folder) for one in self.both)
            ports = ",".join(str(one.port) for one in self.both)
            return f"postgresql://postgres@/postgres?host={hosts}&port={ports}"
        if self.way == "proxy":
            return f"postgresql://postgres@127.0.0.1:{self.proxy.port}/postgres"
        if self.way == "partition":
            return f"postgresql://postgres@{NETWORK}1:{self.proxy.port}/postgres"
        if self.way == "pooler":
            return self.bouncer.url("postgres")
        return self.server.url()

    def admin(self, autocommit: bool = True) -> psycopg.Connection[Any]:
        """A session that bypasses the way to the server."""
        return psycopg.connect(
            self.server.url(), autocommit=autocommit, application_name="chaos", connect_timeout=5
        )

    def _prepare(self) -> None:
        program = (
            "import score.distlock as d, sys; d.init({'sqlalchemy.url': sys.argv[1]}).vacuum()"
        )
        subprocess.run(
            [sys.executable, "-c", program, self.server.url()],
            check=True,
            cwd="/",
            env=self._environment(),
        )
        with self.admin() as db:
            db.execute(JOURNAL.encode())

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        if self.overlay:
            environment["PYTHONPATH"] = str(self.overlay)
        return environment

    def spawn(self, subject: str, calm_clock: bool = False) -> Worker:
        """Starts a process of the load."""
        number = len(self.all_workers)
        log = self.folder / f"{number}.log"
        environment = self._environment()
        python = str(ORIGINAL) if subject == "0.2.5" else sys.executable
        # Processes of 0.2.5 rely on the host's clock and zone: these may differ only without them.
        if not self.old and subject != "0.2.5" and not calm_clock:
            environment["TZ"] = self.rng.choice(ZONES)
            if FAKETIME and self.rng.random() < 0.5:
                environment |= {
                    "LD_PRELOAD": str(FAKETIME[0]),
                    "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                    "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                    "FAKETIME_DONT_RESET": "1",
                }
        seed = f"{self.seed}/{number}"
        command = [python, str(WORKER), str(self.folder), self.url(), str(log), seed, subject]
        if self.namespace:
            command = ["ip", "netns", "exec", self.namespace, *command]
        errors = (self.folder / f"{number}.errors").open("w")
        with errors:
            # Its own process group, as it forks.
            process = subprocess.Popen(
                command, env=environment, stderr=errors, cwd="/", text=True, start_new_session=True
            )
        worker = Worker(subject, process, log)
        self.workers.append(worker)
        self.all_workers.append(worker)
        return worker

    def crashed(self) -> None:
        """Notes that the server may have just lost what was not on disk."""
        self.crashes.append(time.monotonic())

    def bring_back(self) -> None:
        """Starts the server if it is down."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.admin().close()
                return
            except psycopg.Error:
                if time.monotonic() > deadline:
                    raise
                with contextlib.suppress(subprocess.CalledProcessError):
                    self.server.stop("immediate")
                with contextlib.suppress(subprocess.CalledProcessError):
                    self.server.start()

    def offset(self) -> float:
        """The offset from CLOCK_MONOTONIC to the database's clock, from the fastest answer."""
        readings = []
        with self.admin() as db:
            for _ in range(50):
                before = time.monotonic()
                row = db.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
                after = time.monotonic()
                assert row
                readings.append((after - before, float(row[0]) - (before + after) / 2))
        return min(readings)[1]

    def logs(self) -> dict[str, list[dict[str, Any]]]:
        """What each process has recorded; ignores a line it had no time to finish."""
        logs = {}
        for worker in self.all_workers:
            text = worker.log.read_text() if worker.log.exists() else ""
            logs[worker.log.stem] = [
                json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")
            ]
        return logs


def _root(*command: str) -> None:
    """Runs a command that needs root."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed") from None
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{' '.join(command)}: {error.stderr.strip()}") from None
