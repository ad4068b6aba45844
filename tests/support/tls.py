"""Adds TLS to a PostgreSQL without it: terminates TLS, and forwards to a Unix socket."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading

from .proxy import TLS_REQUEST

#: The answer of a server with only ``hostssl`` in its pg_hba.conf to others.
UNENCRYPTED = (
    b"SFATAL\0C28000\0"
    b'Mno pg_hba.conf entry for host "127.0.0.1", user "postgres", database "x", no encryption\0\0'
)


class TlsServer:
    """Listens on 127.0.0.1. Without a context it declines TLS."""

    def __init__(self, path: str, context: ssl.SSLContext | None, only: bool = False) -> None:
        self.path = path
        self.context = context
        #: Refuse clients without TLS.
        self.only = only
        #: For each forwarded session, whether it was encrypted.
        self.encrypted: list[bool] = []
        #: The names that clients asked for (SNI).
        self.asked_for: list[str | None] = []
        if context is not None:
            context.sni_callback = lambda _, name, __: self.asked_for.append(name)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stops accepting connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error), client:
            begin = client.recv(8, socket.MSG_WAITALL)
            if begin == TLS_REQUEST:
                if self.context is None:
                    client.sendall(b"N")
                else:
                    client.sendall(b"S")
                    with self.context.wrap_socket(client, server_side=True) as secured:
                        self._forward(secured, b"", True)
                        return
                begin = client.recv(8, socket.MSG_WAITALL)
            if self.only:
                (length,) = struct.unpack("!I", begin[:4])
                client.recv(length - 8, socket.MSG_WAITALL)
                client.sendall(b"E" + struct.pack("!I", len(UNENCRYPTED) + 4) + UNENCRYPTED)
                return
            self._forward(client, begin, False)

    def _forward(self, client: socket.socket, begin: bytes, encrypted: bool) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(self.path)
            first = begin or client.recv(65536)
            if not first:
                return
            self.encrypted.append(encrypted)
            server.sendall(first)
            back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
            back.start()
            self._copy(client, server)
            back.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
