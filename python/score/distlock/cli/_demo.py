"""``score-distlock demo``: three processes take turns, and one of them is killed in the middle."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time

import click

from score.distlock import connect

#: In seconds. The lease is long enough for a busy machine.
_TURN, _LEASE = 0.3, 2.0
_TURNS, _VICTIM = 2, 1
_WORK = "import sys; from score.distlock.cli._demo import work; work(*sys.argv[1:])"


def demonstrate(url: str) -> int:
    """Starts the processes, reports and checks what they do. Returns the exit status."""
    name = f"score-distlock demo {secrets.token_hex(4)}"
    # Not in the arguments, which every user of the machine can read.
    environment = {**os.environ, "DISTLOCK_URL": url}
    # One pipe for all of them keeps their messages in order.
    reader, writer = os.pipe()
    with connect(url, maxtime=_LEASE) as conf:
        conf.holders()  # makes sure that the table exists
        click.echo(f"three processes want the lock {name!r}; each hold lasts {_LEASE:g} s at most")
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", _WORK, name, str(number)], env=environment, stdout=writer
            )
            for number in range(3)
        ]
        os.close(writer)
        try:
            with os.fdopen(reader) as lines:
                right = _follow([*map(_said, lines)])
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    click.echo(
        "no two held it at the same time, and the fence rose each time"
        if right
        else "THIS IS NOT AS IT SHOULD BE: report it, please"
    )
    return not right


def _said(line: str) -> tuple[str, int]:
    """What a process has done, and with which fence. Echoes it immediately."""
    process, fence, event = line.split()
    now = time.time()
    clock = f"{time.strftime('%H:%M:%S', time.localtime(now))}.{int(now % 1 * 1000):03}"
    words = {"holds": "holds the lock", "releases": "releases it", "dies": "is killed holding it"}
    click.echo(f"{clock}  process {process} {words[event]}, fence {fence}")
    return event, int(fence)


def _follow(events: list[tuple[str, int]]) -> bool:
    """Whether each hold ended before the next one began, and none is missing."""
    begun = [fence for event, fence in events[::2] if event == "holds"]
    ended = [fence for event, fence in events[1::2] if event in ("releases", "dies")]
    return begun == ended == sorted(set(begun)) and len(begun) == 3 * _TURNS


def work(name: str, number: str) -> None:
    """The work of one of the processes."""

    def tell(event: str) -> None:
        os.write(1, f"{os.getpid()} {lock.fence} {event}\n".encode())

    with connect(os.environ["DISTLOCK_URL"], maxtime=_LEASE) as conf:
        lock = conf.get(name)
        for turn in range(_TURNS):
            with lock.hold(timeout=None):
                tell("holds")
                if (int(number), turn) == (_VICTIM, _TURNS - 1):
                    tell("dies")
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(_TURN)
                tell("releases")
