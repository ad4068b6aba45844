"""Flask. Run it with `gunicorn -c gunicorn.conf.py flask_shop:app`."""

import os
import time

from flask import Flask
from flask.typing import ResponseReturnValue

import score.distlock
from score.distlock import CouldNotAcquireLock, DatabaseUnavailable

# With --preload the master runs this once, before it forks the workers.
locks = score.distlock.connect(os.environ["DISTLOCK_URL"], maxtime="30s")

app = Flask(__name__)


@app.errorhandler(CouldNotAcquireLock)
def busy(error: CouldNotAcquireLock) -> ResponseReturnValue:
    return {"detail": str(error)}, 409, {"Retry-After": "1"}


@app.errorhandler(DatabaseUnavailable)
def unavailable(error: DatabaseUnavailable) -> ResponseReturnValue:
    return {"detail": "try again later"}, 503, {"Retry-After": "5"}


@app.post("/orders/<int:order>/ship")
def ship(order: int) -> ResponseReturnValue:
    with locks.get(f"order-{order}").hold(timeout=2) as lock:
        call_the_carrier(order)
        return {"order": order, "fence": lock.fence, "worker": os.getpid()}


def call_the_carrier(order: int) -> None:
    time.sleep(0.01)
