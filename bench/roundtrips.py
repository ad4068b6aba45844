"""A proxy that counts the round trips between a client and PostgreSQL."""

from __future__ import annotations

import contextlib
import socket

from tests.support.proxy import Proxy, Side

#: ReadyForQuery outside a transaction, which ends a login.
READY = b"Z\0\0\0\5I"


class Counting(Proxy):
    """A round trip is an answer to something that a client sent after its login."""

    def __init__(self, path: str) -> None:
        #: Connection → its round trips; ``None`` while it logs in.
        self._counts: dict[socket.socket, int | None] = {}
        self._asking: set[socket.socket] = set()
        super().__init__(path)

    def url(self, database: str) -> str:
        """The URL of a database through the proxy."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def connections(self) -> int:
        """The number of connections opened."""
        return len(self._counts)

    @property
    def roundtrips(self) -> int:
        """The number of round trips, over all connections."""
        return sum(count or 0 for count in self._counts.values())

    def _forward(
        self,
        side: Side,
        source: socket.socket,
        target: socket.socket,
        client: socket.socket,
        server: socket.socket,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                count = self._counts.setdefault(client, None)
                if side == "request":
                    self._asking.add(client)
                elif count is None:
                    self._counts[client] = 0 if data.endswith(READY) else None
                elif client in self._asking:
                    self._counts[client] = count + 1
                if side == "answer":
                    self._asking.discard(client)
                target.sendall(data)
        for one in (client, server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
