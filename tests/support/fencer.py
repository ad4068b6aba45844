"""Acquires a few names over and over with tiny leases, may die. Usage: fencer.py URL SEED.

Prints the token and the fence of each hold, each time that it is acquired or entered again.
"""

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
        token = lock.try_acquiring()
    except score.distlock.LockExpired:
        continue
    if token is None:
        continue
    if (fence := lock.fence) is not None:  # unless the lease is over already
        print(token, fence, flush=True)
    acquired += 1
    fate = rng.random()
    if fate < 0.004:
        os.kill(os.getpid(), signal.SIGKILL)
    if fate < 0.7:
        lock.release(ignore_expired=True)
