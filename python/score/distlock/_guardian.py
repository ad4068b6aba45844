"""Stops an embedded server when nobody uses it any more; a program of its own.

Each process that uses the server holds a shared lock on its folder, which the operating system
releases however that process ends. The guardian is there before the server, waits for the exclusive
lock, stops the server, and then lets in processes that want to start it again. Each folder has one
guardian.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

#: For how many seconds a server whose last user was killed may still come up.
_LATE = 3.0


def main(folder: str, pg_ctl: str, user: str) -> None:
    """Returns to the caller immediately; the forked process stays."""
    unique = os.open(Path(folder) / "PG_VERSION", os.O_RDONLY)
    try:
        fcntl.flock(unique, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # there already is one
    if os.fork():
        os._exit(0)
    users = os.open(folder, os.O_RDONLY)
    fcntl.flock(users, fcntl.LOCK_EX)
    until = time.monotonic() + _LATE
    while not _stop(folder, pg_ctl, user) and time.monotonic() < until:
        time.sleep(0.1)
    # Before letting in the next users, whose guardian must not find this one.
    os.close(unique)


def _stop(folder: str, pg_ctl: str, user: str) -> bool:
    """Stops the server and waits for its end; `False` if there is none."""
    command = [pg_ctl, "-D", folder, "-m", "fast", "-w", "stop"]
    silent = subprocess.DEVNULL
    done = subprocess.run(
        command, user=user or None, cwd="/", stdin=silent, stdout=silent, stderr=silent, check=False
    )
    return done.returncode == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
