"""A PgBouncer in front of a server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading

from .server import Server, free_port

CONFIGURATION = """
[databases]
* = host={folder} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
admin_users = postgres
pool_mode = {mode}
default_pool_size = {size}
{more}
"""

#: The program; DISTLOCK_TEST_PGBOUNCER may name another one.
NAME = os.environ.get("DISTLOCK_TEST_PGBOUNCER", "pgbouncer")


def program() -> str | None:
    """Its path, if it is installed."""
    return shutil.which(NAME, path=f"{os.environ.get('PATH')}:/usr/sbin")


class Bouncer:
    """A PgBouncer that runs until :meth:`stop`, and again from :meth:`start`."""

    def __init__(
        self, server: Server, mode: str, size: int, more: str = "", *, kept: bool = False
    ) -> None:
        """If it is `kept`, it is restarted whenever it crashes: 1.18 does so when asked to cancel
        something on a server that it has lost, which may be a while later."""
        self._kept = kept
        self.mode = mode
        self.port = free_port()
        self.file = server.folder / "pgbouncer.ini"
        self._user = server.user
        text = CONFIGURATION.format(
            folder=server.folder,
            port=server.port,
            listen=self.port,
            mode=mode,
            size=size,
            more=more,
        )
        self.file.write_text(text)
        self.file.chmod(0o644)
        self._turn = threading.Lock()
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it accepts connections."""
        with self._turn:
            self._wanted = True
            self._start()
        if self._kept:
            threading.Thread(target=self._attend, daemon=True).start()

    def _start(self) -> None:
        found = program()
        assert found
        self._process = subprocess.Popen(
            [found, "--quiet", str(self.file)], user=self._user, stderr=subprocess.DEVNULL
        )
        while True:
            assert self._process.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    break

    def _attend(self) -> None:
        while True:
            # What matters is that this process has ended, whatever ended it.
            self._process.wait()
            with self._turn:
                if not self._wanted:
                    return
                if self._process.poll() is not None:
                    self._start()

    def stop(self) -> None:
        """Stops it immediately; since 1.23 SIGTERM waits for its clients."""
        with self._turn:
            self._wanted = False
            self._process.kill()
            self._process.wait()

    def url(self, database: str) -> str:
        """The URL of a database through it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"
