"""Tries to acquire a lock. Usage: fleet_last.py URL NAME [MAXTIME]; with MAXTIME it releases it."""

import sys

import score.distlock

url, name, *maxtime = sys.argv[1:]
conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": (maxtime or ["1m"])[0]})
token = conf.try_acquiring(name)
if token and maxtime:
    conf.release(name, token)
print(token)
