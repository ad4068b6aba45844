"""Takes a lock repeatedly in threads. Usage: again.py URL NAME THREADS TIMES.

Starts when it reads a line, and prints the fence of every hold.
"""

import sys
import threading

import score.distlock

url, name, threads, times = sys.argv[1:]
conf = score.distlock.ConfiguredDistlockModule(url, "1h")
fences: list[int] = []


def work() -> None:
    for _ in range(int(times)):
        with conf.get(name).hold(timeout=None) as lock:
            assert lock.fence is not None
            fences.append(lock.fence)


print("ready", flush=True)
sys.stdin.readline()
workers = [threading.Thread(target=work) for _ in range(int(threads))]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(*fences)
