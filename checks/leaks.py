"""Makes a million calls to the whole API, and reports ten times what they use.

Usage: python -m checks.leaks [--calls N] [--json FILE]. It fails if anything grows
after the first tenth.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import psycopg

from tests.support.calls import Calls
from tests.support.server import Server

#: The allowed growth of each value since the first tenth. Work in progress
#: varies, and a module removes up to 1000 dead Lock objects at a time.
GROWTH = {
    "rss": 4 << 20,
    "descriptors": 4,
    "threads": 8,
    "sessions": 4,
    "rows": 4000,
    "table": 8 << 20,
    "objects": 2000,
}


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    server = Server()
    found = []
    begun = time.monotonic()
    try:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            # A disk is slow, and irrelevant here.
            admin.execute("ALTER SYSTEM SET fsync = off")
            # The default interval of a minute is too long for this many changes.
            admin.execute("ALTER SYSTEM SET autovacuum_naptime = 1")
            admin.execute("SELECT pg_reload_conf()")
        calls = Calls(server.url())
        for sample in calls.samples(options.calls, 10):
            found.append(sample)
            moment = time.monotonic() - begun
            print(
                f"{moment:7.1f} s",
                *(f"{key} {value:,}" for key, value in sample.items()),
                sep="  ",
                flush=True,
            )
        calls.close()
    finally:
        server.destroy()
    first, last = found[1], found[-1]
    grown = [key for key, most in GROWTH.items() if last[key] > first[key] + most]
    if options.json:
        options.json.write_text(json.dumps({"samples": found, "grown": grown}, indent=1) + "\n")
    print("grown:", ", ".join(grown) or "nothing")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
