"""What we parse is what we send to the server: at the start of a session, and as a password."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import URL, make_url

import score.distlock
from score.distlock import ConfiguredDistlockModule as Conf
from score.distlock import DatabaseError

from .support.server import PASSWORD

#: A TLS request, and the version of the session protocol.
TLS, SESSION = 80877103, 196608


class Listener:
    """Accepts connections, declines TLS, and records the start of each session."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.told: list[dict[str, str]] = []
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                connection, _ = self.socket.accept()
                with connection, connection.makefile("rb") as stream:
                    self.serve(connection, stream)

    def serve(self, connection: socket.socket, stream: Any) -> None:
        while header := stream.read(8):
            length, code = struct.unpack("!II", header)
            body = stream.read(length - 8)
            if code == TLS:
                connection.sendall(b"N")
            elif code == SESSION:
                words = body.rstrip(b"\0").decode().split("\0")
                self.told.append(dict(zip(words[::2], words[1::2], strict=False)))
                return

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("postgresql://u@127.0.0.1:{port}/d", {}),
        ("postgresql://127.0.0.1:{port}", {}),
        ("postgresql://u%40v@127.0.0.1:{port}/my%20d%C3%A9", {}),
        ("postgresql://u@name.invalid:{port}/d?hostaddr=127.0.0.1", {}),
        ("postgresql://u@127.0.0.1:1,127.0.0.1:{port}/d", {}),
        ("postgresql://u@/d?host=127.0.0.1&port={port}", {}),
        ("postgresql://u@127.0.0.1:{port}/d?options=-csearch_path%3Da,b%20-cx.y%3Dz", {}),
        ("postgresql://u@127.0.0.1:{port}/d?application_name=mine", {}),
        ("postgresql://u@127.0.0.1:{port}/d", {"PGAPPNAME": "mine", "PGOPTIONS": "-cx.y=z"}),
        ("postgresql://", {"PGHOST": "127.0.0.1", "PGPORT": "{port}", "PGDATABASE": "e"}),
        ("postgresql://127.0.0.1:{port}", {"PGUSER": "v", "PGSSLMODE": "disable"}),
    ],
)
def test_a_session_begins_as_libpqs(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, text: str, variables: dict[str, str]
) -> None:
    text = text.replace("{port}", str(listener.port))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("{port}", str(listener.port)))
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(text, fallback_application_name="score.distlock")
    with pytest.raises(DatabaseError):
        Conf(text, "1m").try_acquiring("name")
    libpqs, *ours = listener.told
    libpqs.pop("client_encoding", None)
    assert ours
    for session in ours:
        assert session.pop("client_encoding") == "UTF8"
        assert session == libpqs


def without_password(url: str) -> URL:
    return make_url(url)._replace(password=None)


def test_the_password_of_a_file_is_used(
    tcp_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = without_password(tcp_url)
    password = PASSWORD.replace(":", "\\:")
    file = tmp_path / "passwords"
    file.write_text(f"127.0.0.1:*:{made.database}:{made.username}:{password}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    assert Conf(made, "1m").try_acquiring("name")
    assert Conf(made, "1m").engine.connect().closed is False
    # One host's password is not sent to the other.
    query = {"host": ["127.0.0.2:1", f"127.0.0.1:{made.port}"]}
    several = made._replace(host=None, port=None)._replace(query=query)  # type: ignore[arg-type]
    assert Conf(several, "1m").try_acquiring("other name")


def test_a_service_is_used(tcp_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = make_url(tcp_url)
    (tmp_path / ".pg_service.conf").write_text(
        f"[locks]\nhost=127.0.0.1\nport={made.port}\nuser={made.username}\n"
        f"dbname={made.database}\npassword={PASSWORD}\n"
    )
    assert score.distlock.init({"sqlalchemy.url": "postgresql://?service=locks"}).acquire("name")
    monkeypatch.setenv("PGSERVICE", "locks")
    conf = score.distlock.init({"sqlalchemy.url": ""})
    assert conf.try_acquiring("name") is None
    with conf.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT current_database()").scalar() == made.database
