"""A standby takes over from its primary, and clients notice only a pause."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import score.distlock

from .conftest import SUPPORT
from .support.server import Server

Conf = score.distlock.ConfiguredDistlockModule


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary, and a standby that has on disk whatever the primary confirms."""
    with contextlib.ExitStack() as stack:
        primary = Server()
        stack.callback(primary.destroy)
        standby = Server(primary)
        stack.callback(standby.destroy)
        primary.wait_for_standby()
        yield primary, standby


class Load:
    """A process that keeps taking locks."""

    def __init__(self, url: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "load.py"), url, str(folder), "4", "8s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self, lines: int) -> None:
        """Waits for this many more holds."""
        assert self.process.stdout
        for _ in range(lines):
            assert json.loads(self.process.stdout.readline())[1] == "held"

    def end(self) -> None:
        """Lets it finish its work."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        # Not communicate(), which misses what readline() has read ahead.
        assert {json.loads(line)[1] for line in self.process.stdout} <= {"held"}
        assert self.process.wait() == 0


def test_nothing_is_lost_when_the_standby_takes_over(
    pair: tuple[Server, Server], tmp_path: Path
) -> None:
    """Holds stay, waiters get their turn, and fences rise."""
    primary, standby = pair
    hosts = f"host={primary.folder},{standby.folder}&port={primary.port},{standby.port}"
    url = f"postgresql://postgres@/postgres?{hosts}"
    lock = Conf(url, "10m").get("kept")
    lock.acquire()
    fence = lock.fence
    loads = [Load(url, tmp_path) for _ in range(2)]

    def wait() -> int | None:
        with Conf(url, "10m").get("kept").hold(timeout=None) as other:
            return other.fence

    with ThreadPoolExecutor(1) as thread:
        waiter = thread.submit(wait)
        for load in loads:
            load.hear(50)
        primary.stop("immediate")
        standby.promote()
        for load in loads:
            load.hear(200)
        lock.extend()
        assert lock.fence == fence
        assert not Conf(url, "10m").get("kept").try_acquiring()
        assert not waiter.done()
        lock.release()
        after = waiter.result()
    for load in loads:
        load.end()
    assert fence is not None
    assert after is not None
    assert after > fence
