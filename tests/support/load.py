"""Takes locks in threads until its input ends. Usage: load.py URL FOLDER THREADS MAXTIME.

The operating system witnesses every hold: a file with the lock's name in FOLDER is locked as long
as the hold lasts, and contains the last fence. Each line printed is a JSON list: the time, what
happened, the lock and its fence. Only "held" is correct.
"""

import fcntl
import json
import random
import sys
import threading
import time
from pathlib import Path

import score.distlock

url, folder, threads, maxtime = sys.argv[1:]
conf = score.distlock.ConfiguredDistlockModule(url, maxtime, pool_timeout=120)
over = threading.Event()
printing = threading.Lock()


def say(what: str, name: str, fence: int | None) -> None:
    with printing:
        print(json.dumps([time.time(), what, name, fence]), flush=True)


def witness(name: str, fence: int) -> str:
    """What to report about a hold, while it lasts."""
    with Path(folder, name).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "doubled"
        file.seek(0)
        last = int(file.read() or 0)
        file.truncate(0)
        file.write(str(fence))
        file.flush()
        over.wait(random.uniform(0, 0.01))
        return "held" if fence > last else f"not above {last}"


def work() -> None:
    while not over.is_set():
        name = f"name {random.randrange(3)}"
        fence = None
        try:
            with conf.get(name).hold(timeout=None) as lock:
                fence = lock.fence
                assert fence is not None
                what = witness(name, fence)
        except score.distlock.DistlockError as error:
            what = repr(error)
        say(what, name, fence)


workers = [threading.Thread(target=work) for _ in range(int(threads))]
for worker in workers:
    worker.start()
sys.stdin.read()
over.set()
for worker in workers:
    worker.join()
