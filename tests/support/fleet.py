"""One process of a mixed fleet; runs with score.distlock 0.2.5 and with this module.

Usage: fleet.py URL IMPLEMENTATION SEED [SECONDS]. Prints JSON: what it did and what it saw.
With SECONDS it runs for that long and never kills itself.

Each process records every hold in the table `holding`. An entry may leave it by
expiring only according to the database's clock. A process that acquires a lock
whose entry still exists has become its second holder.
"""

import collections
import itertools
import json
import os
import random
import signal
import sys
import time

import psycopg2

import score.distlock

NAMES = ["a", "b", "c"]
LEASE = 2.0


def cycles(seconds):
    """Counts cycles: a hundred and twenty, or as many as fit into these seconds."""
    if seconds is None:
        # A thread of 0.2.5 has exhausted its pool after 596 cycles.
        yield from range(120)
        return
    end = time.monotonic() + seconds
    for number in itertools.count():
        if time.monotonic() > end:
            return
        yield number


def main(url, implementation, seed, seconds=None):
    rng = random.Random(seed)
    did = collections.Counter()
    violations = []
    audit = psycopg2.connect(url)
    audit.autocommit = True
    cursor = audit.cursor()

    def query(sql, *parameters):
        cursor.execute(sql, parameters)
        return cursor.fetchone() if cursor.description else None

    def clock():
        return query("SELECT clock_timestamp()")[0]

    def lapsed(since):
        return query("SELECT clock_timestamp() > %s + %s * interval '1 s'", since, LEASE)[0]

    def init():
        return score.distlock.init({"sqlalchemy.url": url, "maxtime": "%ds" % LEASE})

    conf = init()

    def end(name, token):
        query("DELETE FROM holding WHERE name = %s AND token = %s", name, token)
        conf.release(name, token)

    for number in cycles(seconds):
        # 0.2.5 leaks connections of its pool; a new one hides no failure.
        if number % 100 == 99:
            if implementation == "0.2.5":
                conf.engine.dispose()
            conf = init()
        handed = query(
            "DELETE FROM handed WHERE ctid = (SELECT ctid FROM handed WHERE giver <> %s"
            " LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING name, token, since",
            implementation,
        )
        if handed:
            name, token, since = handed
            before = clock()
            try:
                conf.extend(name, token)
                query(
                    "UPDATE holding SET since = %s WHERE name = %s AND token = %s",
                    before,
                    name,
                    token,
                )
                did["extended a token of the other"] += 1
                end(name, token)
                did["released a token of the other"] += 1
            except score.distlock.LockExpired:
                if not lapsed(since):
                    violations.append(["lost before its time", name, token[:8]])
            continue
        name = rng.choice(NAMES)
        before = clock()
        token = conf.try_acquiring(name)
        if token is None:
            did["refused"] += 1
            time.sleep(rng.random() * 0.02)
            continue
        entry = query(
            "INSERT INTO holding AS old (name, token, since, pid) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (name) DO UPDATE SET token = excluded.token, since = excluded.since,"
            " pid = excluded.pid WHERE old.since + %s * interval '1 s' <= clock_timestamp()"
            " RETURNING name",
            name,
            token,
            before,
            os.getpid(),
            LEASE,
        )
        if entry is None and not lapsed(before):
            other = query(
                "SELECT token, since, pid, clock_timestamp() FROM holding WHERE name = %s", name
            )
            violations.append(["two holders", name, token[:8], repr(before), repr(other)])
            continue
        did["acquired"] += 1
        fate = rng.random()
        if fate < 0.03 and seconds is None:
            print(json.dumps([did, violations]), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        elif fate < 0.35:
            query("INSERT INTO handed VALUES (%s, %s, %s, %s)", name, token, before, implementation)
        else:
            try:
                if fate < 0.6:
                    before = clock()
                    conf.extend(name, token)
                    query(
                        "UPDATE holding SET since = %s WHERE name = %s AND token = %s",
                        before,
                        name,
                        token,
                    )
                end(name, token)
            except score.distlock.LockExpired:
                if not lapsed(before):
                    violations.append(["lost before its time", name, token[:8]])
    print(json.dumps([did, violations]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:]))
