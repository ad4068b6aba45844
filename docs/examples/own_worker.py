"""A worker of one's own: several may run, one of them works, and the next takes over."""

import os
import signal
import sys
import threading

import score.distlock
from score.distlock import CouldNotAcquireLock, DatabaseUnavailable, Lock, LockExpired

stop = threading.Event()


def work(lock: Lock) -> None:
    """One part of the job, which takes less than a second or looks at `stop` itself."""
    print("working", lock.fence, flush=True)
    stop.wait(0.1)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with score.distlock.connect(os.environ["DISTLOCK_URL"], maxtime="10s") as locks:
        while not stop.is_set():
            try:
                # Waits a second at a time, to look whether it is to stop.
                with locks.get("the-worker").hold(timeout=1, autoextend=True) as lock:
                    while not (stop.is_set() or lock.expired):
                        work(lock)
            except CouldNotAcquireLock:
                continue
            except (LockExpired, DatabaseUnavailable) as error:
                print(error, file=sys.stderr, flush=True)
                stop.wait(1)


if __name__ == "__main__":
    main()
