"""Waits in threads. Usage: waiter.py URL NAME THREADS TIMEOUT.

Every thread starts when a line is read, and prints its number and the fence
once it has had the lock.
"""

import sys
import threading

import score.distlock

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
