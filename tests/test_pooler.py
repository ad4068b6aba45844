"""Behind PgBouncer in transaction mode everything works, though sessions are handed around."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from .support.server import Server, free_port

CONFIGURATION = """
[databases]
* = host={folder} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
"""

WORK = """
import sys, threading, score.distlock
conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})
failed = []
def work(number):
    try:
        for _ in range(40):
            with conf.get(f'{sys.argv[2]} {number}') as lock:
                assert conf.get(f'{sys.argv[2]} {number}').acquire() == lock.token
                lock.release(); lock.extend(); lock.transfer()
            shared = conf.get('shared')
            if shared.try_acquiring(): shared.release()
            conf.vacuum()
    except Exception as error: failed.append(repr(error))
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed)
"""


@pytest.fixture
def bouncer(server: Server) -> Iterator[int]:
    """The port of a PgBouncer in front of the server."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    port = free_port()
    file = server.folder / "pgbouncer.ini"
    file.write_text(CONFIGURATION.format(folder=server.folder, port=server.port, listen=port))
    file.chmod(0o644)
    process = subprocess.Popen(
        [program, "--quiet", str(file)], user=server.user, stderr=subprocess.DEVNULL
    )
    while True:
        assert process.poll() is None
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield port
    process.terminate()
    process.wait()


def test_sessions_that_are_handed_around(bouncer: int, server_url: str) -> None:
    """Several processes whose prepared statements have the same names."""
    database = server_url.partition("?")[0].rpartition("/")[2]
    through = f"postgresql://postgres@127.0.0.1:{bouncer}/{database}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, through, str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    assert [process.communicate()[0] for process in processes] == ["[]\n"] * 3
