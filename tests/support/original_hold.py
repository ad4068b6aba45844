"""Acquires a lock with whichever score.distlock is installed. Usage: original_hold.py URL NAME."""

import sys

import score.distlock

conf = score.distlock.init({"sqlalchemy.url": sys.argv[1], "maxtime": "1m"})
print(conf.acquire(sys.argv[2]))
