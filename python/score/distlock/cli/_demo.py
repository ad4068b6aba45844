"""``score-distlock demo``: two processes contend for a lock, and one of them is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import click

from score.distlock import CouldNotAcquireLock, connect

from ._run import refusal

#: How often each has the lock before one of them is killed with it.
_ROUNDS = 2
#: In seconds.
_WORK, _LEASE = 0.3, 3.0
#: Any of these says where the database is, as for psql.
_ENVIRONMENT = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE")


def contend(who: str, name: str, last: str) -> None:
    """What each process does: takes turns, and in the end does what `last` says."""

    def tell(event: str) -> None:
        print(f"{who:6} {event}", flush=True)

    with connect(os.environ.get("DISTLOCK_URL"), maxtime=_LEASE) as conf:
        lock = conf.get(name)
        for left in range(_ROUNDS, -1, -1):
            try:
                lock.acquire(timeout=0)
            except CouldNotAcquireLock as error:
                tell(f"waits: {refusal(conf, error)}")
                lock.acquire(timeout=None)
            tell(f"acquires the lock, fence {lock.fence}")
            if left == 0 and last == "dies":
                tell("dies with it")
                sys.stdin.read()  # until it is killed
            time.sleep(_WORK)
            tell("releases it")
            lock.release()


def demonstrate(url: str | None) -> None:
    """Starts both, and tells what they do and when."""
    if url is None and not any(os.environ.get(name) for name in _ENVIRONMENT):
        url = "embedded:"
        click.echo("no database is given; PostgreSQL is started out of the extra 'embedded'")
    more = {} if url is None else {"DISTLOCK_URL": url}
    with connect(url):  # so that the table is there, or what is wrong is told once
        began = time.monotonic()
        name = f"demo-{os.getpid()}"
        reader, writer = os.pipe()
        started = [
            subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import contend; contend{words!r}"],
                stdin=subprocess.PIPE,
                stdout=writer,
                start_new_session=True,  # Ctrl-C is for us, who end them
                env={**os.environ, **more},
            )
            for words in (("first", name, "dies"), ("second", name, "lives"))
        ]
        os.close(writer)
        try:
            with os.fdopen(reader) as events:
                for event in events:
                    click.echo(f"{time.monotonic() - began:6.2f} s  {event}", nl=False)
                    if event.split()[:2] == ["first", "dies"]:
                        started[0].kill()
            started[1].wait()
        finally:
            for process in started:
                process.kill()
                process.wait()
    if started[1].returncode != 0:
        sys.exit(1)
    click.echo(f"the lease of {_LEASE:g} s ended by itself; the fences tell who came after whom")
