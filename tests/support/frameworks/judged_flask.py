"""docs/examples/flask_shop.py, with work that notices if two run it at once."""

from __future__ import annotations

import os
import signal
import time

import flask_shop
from flask_shop import app, locks
from judge import alone

MASTER = os.getpid()


def call_the_carrier(order: int) -> None:
    assert os.getpid() != MASTER
    if order == 666:
        os.kill(os.getpid(), signal.SIGKILL)
    with alone(order):
        time.sleep(0.005)


flask_shop.call_the_carrier = call_the_carrier

# The master has connections, threads and a hold when it forks.
with locks.get("warm").hold(autoextend=True):
    pass
the_masters = locks.get("the master's")
the_masters.hold(autoextend=True).__enter__()


@app.get("/masters")
def masters() -> dict[str, bool]:
    return {"token": the_masters.token is not None, "had": the_masters.try_acquiring() is not None}
