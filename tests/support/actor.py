"""Uses its locks as JSON lines tell it to. Usage: actor.py URL."""

import json
import sys

import score.distlock

conf = score.distlock.init({"sqlalchemy.url": sys.argv[1], "maxtime": "1h"})
locks: dict[str, score.distlock.Lock] = {}

for line in sys.stdin:
    name, method, *arguments = json.loads(line)
    lock = locks.setdefault(name, conf.get(name))
    try:
        answer = ["returned", getattr(lock, method)(*arguments)]
    except (score.distlock.LockExpired, ValueError) as error:
        answer = ["raised", type(error).__name__]
    print(json.dumps([answer, lock.token, lock.fence, lock.expired]), flush=True)
