"""Extends and releases a hold. Usage: fleet_token.py URL NAME TOKEN [keep]."""

import sys

import score.distlock

url, name, token, *keep = sys.argv[1:]
conf = score.distlock.init({"sqlalchemy.url": url, "maxtime": "1m"})
conf.extend(name, token)
if keep:
    print("extended")
else:
    conf.release(name, token)
    print("extended, released")
