"""Stops an embedded server when nobody uses it any more; a program of its own.

Each process that uses the server holds a shared lock on its folder, which the operating system
releases however that process ends. The guardian waits for the exclusive lock, stops the server,
and then lets in processes that want to start it again. Each folder has one guardian.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path


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
    command = [pg_ctl, "-D", folder, "-m", "fast", "-w", "stop"]
    silent = subprocess.DEVNULL
    subprocess.run(
        command, user=user or None, cwd="/", stdin=silent, stdout=silent, stderr=silent, check=False
    )
    # Before letting in the next users, whose guardian must not find this one.
    os.close(unique)


if __name__ == "__main__":
    main(*sys.argv[1:])
