"""What every contender does: measure its own lock in the same way as the others.

Usage of a contender: CONTENDER.py URL MODE SECONDS NUMBER. It prints "ready",
waits for a line, and prints how many cycles or attempts it did in how many
seconds. This file needs only Python, as each contender runs in its own
environment.

Modes: ``cycle`` acquires and releases on one thread, ``threads`` on 8 threads
with different names, ``threads 2`` on 2; ``refuse`` tries to acquire a lock that
another process holds; ``hold`` holds it until it reads a line.
"""

import json
import sys
import threading
import time


class Contender:
    """How to use a library. `connect` is called once, `lock` once for each name."""

    #: The maximum number of cycles in one process.
    most = None

    def connect(self, url):
        raise NotImplementedError

    def lock(self, name):
        """Returns two functions: acquire, which tells whether it succeeded, and release."""
        raise NotImplementedError


def cycles(acquire, release, until, most):
    done = 0
    while time.perf_counter() < until and (most is None or done < most):
        # Some refuse now and then although the lock is free.
        if acquire():
            release()
            done += 1
    return done


def attempts(acquire, until):
    done = 0
    while time.perf_counter() < until:
        if acquire():
            raise RuntimeError("a lock that is held could be acquired")
        done += 1
    return done


def main(contender):
    url, mode, seconds, number = sys.argv[1:]
    contender.connect(url)
    if mode == "hold":
        acquire, release = contender.lock("bench held")
        assert acquire()
        print("ready", flush=True)
        sys.stdin.readline()
        release()
        return
    if mode == "refuse":
        acquire, _ = contender.lock("bench held")
        attempts(acquire, time.perf_counter() + 0.1)
        print("ready", flush=True)
        sys.stdin.readline()
        start = time.perf_counter()
        done = attempts(acquire, start + float(seconds))
    else:
        kind, _, count = mode.partition(" ")
        threads = int(count or 8) if kind == "threads" else 1
        locks = [contender.lock(f"bench {number} {index}") for index in range(threads)]
        warm = 3 if contender.most else 50
        for acquire, release in locks:
            cycles(acquire, release, time.perf_counter() + 5, warm)
        print("ready", flush=True)
        sys.stdin.readline()
        counts = []
        start = time.perf_counter()
        until = start + float(seconds)
        if threads == 1:
            counts.append(cycles(*locks[0], until, contender.most))
        else:
            most = contender.most and contender.most // threads

            errors = []

            def work(acquire, release):
                try:
                    counts.append(cycles(acquire, release, until, most))
                except Exception as error:
                    errors.append(f"{type(error).__name__}: {error}")

            running = [threading.Thread(target=work, args=lock) for lock in locks]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            if errors:
                sys.exit(f"{len(errors)} of {threads} threads failed: {errors[0].splitlines()[0]}")
        done = sum(counts)
    print(json.dumps({"done": done, "seconds": time.perf_counter() - start}), flush=True)
