"""A test run that is killed leaves no server and no database behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from .conftest import PROJECT

SERVER = """
import sys
from tests.support.server import Server
server = Server()
print(server.folder, flush=True)
sys.stdin.read()
"""

DATABASE = """
import sys
from tests.conftest import guarded, fresh_database
with guarded(sys.argv[1]), fresh_database(sys.argv[1]) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def killed(code: str, *arguments: str) -> str:
    """Runs a program until it has printed a line, then kills it; returns the line."""
    program = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    line = program.stdout.readline().strip()
    program.kill()
    program.communicate()
    assert line
    return line


@pytest.fixture
def folder() -> Iterator[Path]:
    """The folder of a server whose test run was killed."""
    folder = Path(killed(SERVER))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_no_server(folder: Path) -> None:
    def servers() -> list[Any]:
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(folder / "data") in (process.info["cmdline"] or ())
        ]

    while servers() or folder.exists():
        time.sleep(0.01)


def test_no_database(admin_url: str) -> None:
    url = killed(DATABASE, admin_url)
    name = url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(admin_url, autocommit=True) as admin:
        there = "SELECT FROM pg_database WHERE datname = %s"
        while admin.execute(there, (name,)).fetchone():
            time.sleep(0.01)
