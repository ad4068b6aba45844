"""Shows that the judge finds faults: in broken versions of this module, and in 0.2.5.

Usage: python -m checks.chaos.selftest [--json FILE] [NAME …]. Each must be caught in two minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from checks.mutants import SQL, Mutant, overlay

from .__main__ import Result, parser, run

#: What is wrong, in which statement, the original text, and its replacement.
MUTANTS: dict[str, tuple[str, str, str]] = {
    "no expiry check": ("acquire.sql", "WHEN {live} THEN false", "WHEN false THEN false"),
    "the client's clock": (
        "acquire.sql",
        "WHEN {live} THEN false",
        "WHEN expires {>} (pg_catalog.clock_timestamp() {+} pg_catalog.make_interval(secs => $4))"
        " THEN false",
    ),
    "a fence not drawn under the row's lock": (
        "taking.sql",
        "greatest(pg_catalog.nextval({fences}), coalesce(fence, 0) {+} 1)",
        "pg_catalog.nextval({fences}) {-} (4 * pg_catalog.random())::pg_catalog.int8",
    ),
    "notifications are lost": ("notified.sql", "'score_distlock_'", "'score_distlost_'"),
    "a block that forgets to release": (
        "release.sql",
        "expires = pg_catalog.clock_timestamp(),\n       lease = NULL,\n       holder = NULL",
        "expires = expires",
    ),
}


def find(name: str) -> Result:
    """What the judge finds within two minutes."""
    arguments = ["--minutes", "2", "--seed", "selftest"]
    if name == "0.2.5":
        return run(parser().parse_args([*arguments, "--subject", "0.2.5"]), stop_at_first=True)
    statement, old, new = MUTANTS[name]
    file = SQL / statement
    text = file.read_text()
    assert old in text, f"{statement} has changed"
    with tempfile.TemporaryDirectory(prefix="distlock-mutant-") as folder:
        Path(folder).chmod(0o755)
        overlay(Mutant(file, text, text.replace(old, new), 0), Path(folder))
        options = parser().parse_args([*arguments, "--way", "direct"])
        return run(options, Path(folder), stop_at_first=True)


def main() -> int:
    """The exit code tells whether a version went undetected."""
    options = argparse.ArgumentParser(prog="checks.chaos.selftest")
    options.add_argument("--json", type=Path)
    options.add_argument("names", nargs="*", default=[*MUTANTS, "0.2.5"])
    chosen = options.parse_args()
    found = []
    for name in chosen.names:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        violations = find(name).violations()
        seconds = time.monotonic() - start
        first = violations[0] if violations else None
        found.append({"name": name, "seconds": seconds, "found": first})
    if chosen.json:
        chosen.json.write_text(json.dumps({"mutants": found}, indent=1) + "\n")
    missed = [one["name"] for one in found if not one["found"]]
    print("== not found out:", *(missed or ["none"]))
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
