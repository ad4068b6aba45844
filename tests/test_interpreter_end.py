"""The interpreter ends while holds are renewed, losses told and threads wait."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psycopg

import score.distlock

from .support.line import tickets

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]

ENDING = """
import sys, threading, time, score.distlock
conf = score.distlock.ConfiguredDistlockModule(sys.argv[1], '30ms')
lost = []
def on_lost(lock):
    lost.append(lock.name)
def wait():
    while True:
        try:
            with conf.get('awaited').hold(timeout=30): pass
        except score.distlock.LockExpired: pass
holds = []
for number in range(30):
    hold = conf.get(f'{sys.argv[2]} {number}').hold(timeout=1, autoextend=True, on_lost=on_lost)
    try: hold.__enter__()
    except (score.distlock.LockExpired, score.distlock.CouldNotAcquireLock): continue
    holds.append(hold)
for _ in range(5):
    threading.Thread(target=wait, daemon=True).start()
time.sleep(float(sys.argv[3]))
"""


def test_the_interpreter_ends_calmly(url: str, conf: Conf, db: Db) -> None:
    """Forty times, at different moments of renewals and losses."""
    conf.acquire("awaited")
    program = [sys.executable, "-X", "faulthandler", "-c", ENDING, url]
    for batch in range(10):
        programs = [
            subprocess.Popen(
                [*program, f"{batch} {number}", str(0.004 * batch + 0.011 * number)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(4)
        ]
        for ended in programs:
            output, errors = ended.communicate()
            # What is logged is printed: losses, and that a server does not answer in time, which
            # with such leases are milliseconds.
            logged = ("the hold of ", "the database at ")
            other = [line for line in errors.splitlines() if not line.startswith(logged)]
            assert (output, other, ended.returncode) == ("", [], 0)
    # Those that ended while they waited are dead, and delay nobody.
    assert tickets(db, "awaited") <= 40
