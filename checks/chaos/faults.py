"""What goes wrong: with processes, connections, the server and clocks. Each fault repairs itself.

A fault is a function of the stage that does its damage, lets it last, and undoes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import psycopg

from tests.support.proxy import How, Side

from .stage import Stage

Fault = Callable[[Stage], None]
#: The faults for every way to the server; more belong to single ways.
ALL: list[Fault] = []
OF_WAY: dict[str, list[Fault]] = {}


def anywhere(fault: Fault) -> Fault:
    """Marks a fault that can occur on every way to the server."""
    ALL.append(fault)
    return fault


def only(*ways: str) -> Callable[[Fault], Fault]:
    """Marks a fault that can occur on these ways to the server."""

    def add(fault: Fault) -> Fault:
        for way in ways:
            OF_WAY.setdefault(way, []).append(fault)
        return fault

    return add


# Processes.


@anywhere
def kill(stage: Stage) -> None:
    """Kills a process and starts another."""
    worker = stage.rng.choice(stage.workers)
    worker.kill()
    stage.workers.remove(worker)
    stage.spawn(worker.subject)


@anywhere
def pause(stage: Stage) -> None:
    """Stops a process for longer than its leases."""
    worker = stage.rng.choice(stage.workers)
    stage.paused = True
    os.kill(worker.process.pid, signal.SIGSTOP)
    try:
        time.sleep(stage.rng.uniform(0.1, 3.0))
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)


@anywhere
def fork(stage: Stage) -> None:
    """Makes the processes fork in the middle of their work."""
    for worker in stage.workers:
        if worker.subject != "0.2.5" and worker.has_begun():
            os.kill(worker.process.pid, signal.SIGUSR1)


@anywhere
def clock(stage: Stage) -> None:
    """Makes the clocks of processes that have their own jump."""
    shift = stage.rng.choice(["-1h", "+1h", "-2d", "+400d", "+0.7s", "-0.7s", "+0"])
    stage.clock.write_text(shift)


#: When clocks in Vienna and New York are put forward, and back.
CHANGES = [datetime(2027, 3, 28, 1), datetime(2027, 10, 31, 1), datetime(2027, 3, 14, 7)]


@anywhere
def daylight_saving(stage: Stage) -> None:
    """Puts the clocks of the same processes forward, or back."""
    change = stage.rng.choice(CHANGES).replace(tzinfo=timezone.utc)
    stage.clock.write_text(f"+{change.timestamp() - time.time() - 1:.0f}s")
    time.sleep(3)


# The server.


def administer(stage: Stage, query: str, lasts: float | None = None) -> None:
    """Runs a statement as an administrator, if the server is up, perhaps in a long transaction."""
    autocommit = lasts is None
    with contextlib.suppress(psycopg.Error), stage.admin(autocommit=autocommit) as db:
        db.execute("SET lock_timeout = '3s'")
        db.execute(query.encode())
        time.sleep(lasts or 0)


@anywhere
def terminate(stage: Stage) -> None:
    """Terminates some sessions, or all."""
    share = stage.rng.choice([0.2, 1])
    administer(
        stage,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        f" AND random() < {share}",
    )


@anywhere
def lock_table(stage: Stage) -> None:
    """Locks the table, as a migration does."""
    query = "LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE"
    administer(stage, query, lasts=stage.rng.uniform(0.1, 1.5))


@anywhere
def vacuum_full(stage: Stage) -> None:
    """Rewrites the table."""
    administer(stage, "VACUUM FULL _score_distlock")


@anywhere
def old_snapshot(stage: Stage) -> None:
    """A long report keeps the server from removing old row versions."""
    query = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM _score_distlock"
    administer(stage, query, lasts=stage.rng.uniform(1, 5))


@anywhere
def crowd(stage: Stage) -> None:
    """Others use up all the sessions that the server allows."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(psycopg.Error):
            while True:
                stack.enter_context(stage.admin())
        time.sleep(stage.rng.uniform(0.2, 1.5))


@only("direct", "proxy", "pooler", "partition")
def restart(stage: Stage) -> None:
    """Restarts the server, cleanly or after a crash."""
    mode = stage.rng.choice(["fast", "immediate"])
    if mode == "immediate":
        stage.crashed()
    stage.server.stop(mode)
    time.sleep(stage.rng.uniform(0, 1))
    stage.server.start()


@only("disk")
def disk_full(stage: Stage) -> None:
    """The server can no longer write; it may crash because of that."""
    filler = Path(stage.disk or "/nowhere", "filler")
    stage.crashed()
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    administer(stage, "CHECKPOINT")
    administer(stage, "SELECT pg_switch_wal()")
    time.sleep(stage.rng.uniform(0.5, 2))
    filler.unlink()
    stage.bring_back()
    stage.crashed()


# Between the server and its clients.


@only("proxy")
def cut_all(stage: Stage) -> None:
    """Cuts every connection at once."""
    stage.proxy.cut_all()


@only("proxy")
def cut_one(stage: Stage) -> None:
    """Cuts a connection before, in or after a message, often an answer."""
    for _ in range(5):
        side: Side = stage.rng.choice(["answer", "answer", "request"])
        how: How = stage.rng.choice(["before", "half", "after"])
        stage.proxy.arm(side, stage.rng.randrange(12), how).done.wait(1)
        time.sleep(0.1)
    stage.proxy.cut = None


@only("proxy")
def late(stage: Stage) -> None:
    """Breaks a connection whose requests then reach the server later."""
    for _ in range(2):
        stage.proxy.freeze_request(lambda message: message[:1] == b"B", cut=True)
        stage.proxy.frozen.wait(1)
        time.sleep(stage.rng.uniform(0.1, 2))
        stage.proxy.thaw()


@only("proxy")
def delay(stage: Stage) -> None:
    """Delays answers, some until after the lease."""
    stage.proxy.freeze_answers()
    time.sleep(stage.rng.choice([0.05, 0.5, 1.5, 2.5]))
    stage.proxy.thaw()


@only("proxy")
def deaf(stage: Stage) -> None:
    """Withholds notifications."""
    stage.proxy.freeze_listeners()
    time.sleep(stage.rng.uniform(1, 4))
    stage.proxy.thaw()


@only("proxy")
def black_hole(stage: Stage) -> None:
    """A firewall silently drops the connections, for longer than our timeouts."""
    stage.proxy.swallow()
    time.sleep(6)
    # The connections of guarded drivers would wait for ever.
    stage.proxy.cut_all()


@only("proxy")
def half_open(stage: Stage) -> None:
    """The server has ended the connections, but the clients are not told."""
    stage.proxy.half_open()
    time.sleep(stage.rng.uniform(1, 6))
    stage.proxy.cut_all()


@only("proxy")
def refuse(stage: Stage) -> None:
    """Cuts all connections, and refuses new ones for a while."""
    stage.proxy.refuse(True)
    stage.proxy.cut_all()
    time.sleep(stage.rng.uniform(0.2, 2))
    stage.proxy.refuse(False)


@only("pooler")
def restart_pooler(stage: Stage) -> None:
    """Kills the pooler and restarts it."""
    stage.bouncer.stop()
    time.sleep(stage.rng.uniform(0, 1))
    stage.bouncer.start()


@only("partition")
def partition(stage: Stage) -> None:
    """The network drops all packets."""
    stage.link("down")
    time.sleep(stage.rng.uniform(0.3, 4))
    stage.link("up")


@only("pair")
def promote(stage: Stage) -> None:
    """The primary dies, and its synchronous standby takes over. This can happen only once."""
    if stage.standby is not None:
        stage.crashed()
        standby, stage.standby = stage.standby, None
        stage.server.stop("immediate")
        stage.server = standby
        standby.promote()


def faults_of(way: str) -> list[Fault]:
    """The faults possible on this way to the server; its specific ones more often."""
    return [*ALL, *(OF_WAY.get(way, []) * 3)]
