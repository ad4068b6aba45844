"""Waits in threads. Usage: waiter.py URL NAME THREADS TIMEOUT.

Each line read starts a thread. Prints "waiting" and the number of waiters once the thread
waits, and its number and the fence once it has had the lock.
"""

import sys
import threading
import time

import score.distlock
from score.distlock._distlock import _waiting

url, name, threads, timeout = sys.argv[1:]
conf = score.distlock.ConfiguredDistlockModule(url, "1h", pool_size=2)
printing = threading.Lock()


def work(number: int) -> None:
    with conf.get(name).hold(timeout=float(timeout)) as lock:
        fence = lock.fence
    with printing:
        print(number, fence, flush=True)


for number, _ in zip(range(int(threads)), sys.stdin, strict=False):
    threading.Thread(target=work, args=(number,)).start()
    while _waiting(name) != (number + 1, 1):
        time.sleep(0.002)
    with printing:
        print("waiting", number + 1, flush=True)
