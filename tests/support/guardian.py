"""Tidies up when a test run ends, however it ends: a separate program at the end of a pipe.

Usage: guardian.py server FOLDER PG_CTL USER, or guardian.py databases URL PREFIX.
"""

from __future__ import annotations

import shutil
import subprocess
import sys


def end_server(folder: str, pg_ctl: str, user: str) -> None:
    """Stops a server that is no longer needed, and removes its data."""
    command = [pg_ctl, "-D", f"{folder}/data", "-m", "immediate", "-w", "stop"]
    silent = subprocess.DEVNULL
    subprocess.run(
        command, user=user or None, cwd="/", stdin=silent, stdout=silent, stderr=silent, check=False
    )
    shutil.rmtree(folder, ignore_errors=True)


def drop_databases(url: str, prefix: str) -> None:
    """Drops the databases of a test run."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(url, autocommit=True) as admin:
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
        for (name,) in admin.execute(query, (prefix,)).fetchall():
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            admin.execute(drop.format(sql.Identifier(name)))


class Guardian:
    """The program, as seen from the test run."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a signal that kills the test run's group spares it
        )

    def tidy_up(self) -> None:
        """Makes it do its work now; returns when that is done."""
        self._process.communicate(b"now")


if __name__ == "__main__":
    sys.stdin.buffer.read(1)
    if sys.argv[1] == "server":
        end_server(*sys.argv[2:])
    else:
        drop_databases(*sys.argv[2:])
