"""docs/examples/worker_tasks.py, with a file-based broker and work that notices a second worker."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import psycopg
import worker_tasks
from judge import alone
from kombu.transport.filesystem import Channel
from kombu.utils.json import dumps
from worker_tasks import app

import score.distlock

folder = os.environ["BROKER_FOLDER"]
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={
        "data_folder_in": folder,
        "data_folder_out": folder,
        "control_folder": f"{folder}/control",
        "polling_interval": 0.05,
    },
    worker_lost_wait=0.1,
)


def put_whole(_channel: Channel, queue: str, payload: object, **_: object) -> None:
    # Workers would read Kombu's own files half-written, and end.
    name = f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}"
    part = Path(folder, f"{name}.part")
    part.write_text(dumps(payload))
    part.rename(Path(folder, f"{name}.msg"))


Channel._put = put_whole
# A lease that expires within the test.
worker_tasks.locks = score.distlock.connect(os.environ["DISTLOCK_URL"], maxtime="2s")
charge_once = worker_tasks.charge_once


def charge_and_judge(database: psycopg.Connection, order: int) -> None:
    with alone(order):
        charge_once(database, order)
        if order == 666 and not Path(folder, "killed").exists():
            Path(folder, "killed").touch()
            Path(f"{os.environ['JUDGE']} {order}").unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def export_part(user: str, part: int) -> None:
    with psycopg.connect(os.environ["DISTLOCK_URL"]) as database:
        database.execute("INSERT INTO exported VALUES (%s, %s)", [user, part])


worker_tasks.charge_once = charge_and_judge
worker_tasks.export_part = export_part
