"""Acquires a few names over and over with tiny leases, may die. Usage: fencer.py URL SEED."""

import os
import random
import signal
import sys

import score.distlock

url, seed = sys.argv[1:]
rng = random.Random(int(seed))
conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "20ms"})
acquired = 0
while acquired < 100:
    lock = conf.get(rng.choice("abc"))
    try:
        if lock.try_acquiring() is None:
            continue
    except score.distlock.LockExpired:
        continue
    acquired += 1
    fate = rng.random()
    if fate < 0.004:
        os.kill(os.getpid(), signal.SIGKILL)
    if fate < 0.7:
        lock.release(ignore_expired=True)
