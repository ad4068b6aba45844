"""Celery. Start a worker with `celery -A worker_tasks worker`."""

import os
import threading
from typing import Any

import psycopg
from celery import Celery

import score.distlock
from score.distlock import CouldNotAcquireLock

DATABASE = os.environ["DISTLOCK_URL"]

app = Celery("worker_tasks", broker=os.environ.get("BROKER_URL", "amqp://"))
app.conf.update(
    # A task whose worker is killed is delivered again, so it may run twice.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)

# Made before the worker forks its processes. They share nothing of it but the settings.
locks = score.distlock.connect(DATABASE, maxtime="30s")


@app.task(bind=True, max_retries=None)
def charge(self: Any, order: int) -> None:
    """Charges an order exactly once, however often the task is delivered."""
    try:
        with (
            locks.get(f"order-{order}").hold(timeout=0, autoextend=True) as lock,
            psycopg.connect(DATABASE) as database,
            lock.guard(database),
        ):
            charge_once(database, order)
    except CouldNotAcquireLock as error:
        # The worker is free for other tasks meanwhile.
        raise self.retry(countdown=1) from error


def charge_once(database: psycopg.Connection, order: int) -> None:
    # The lock keeps two runs apart; that the first has succeeded is what the row remembers.
    mark = "UPDATE orders SET charged = charged + 1 WHERE number = %s AND charged = 0"
    database.execute(mark, [order])


@app.task
def import_all(parts: int) -> int:
    """A job that takes longer than a lease, and stops if it has lost its lock."""
    lost = threading.Event()
    done = 0
    with locks.get("import").hold(
        timeout=None, autoextend=True, on_lost=lambda lock: lost.set(), note="import_all"
    ):
        for part in range(parts):
            if lost.is_set():
                break  # the end of the block raises LockExpired
            import_part(part)
            done += 1
    return done


def import_part(part: int) -> None: ...


def start_export(user: str) -> None:
    """For the web process: the user's export is taken from now on, not when a worker is free."""
    token = locks.acquire(f"export-{user}")  # CouldNotAcquireLock: one is under way
    try:
        # Celery's monitors show `argsrepr`, which would otherwise have the token in it.
        export.apply_async((user, token), argsrepr=f"({user!r}, '…')")
    except BaseException:
        locks.release(f"export-{user}", token)
        raise


@app.task
def export(user: str, token: str) -> None:
    """Goes on with the hold that the web process has taken."""
    name = f"export-{user}"
    # From here on nobody else can end it, neither the web process nor who reads the queue. A
    # second delivery of the task has the old token, and ends here with LockExpired.
    token = locks.transfer(name, token)
    try:
        for part in range(3):
            locks.extend(name, token)
            export_part(user, part)
    finally:
        locks.release(name, token)


def export_part(user: str, part: int) -> None: ...
