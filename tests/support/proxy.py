"""A TCP proxy in front of PostgreSQL that cuts, freezes or refuses connections at will.

It understands the framing of the protocol, so a cut hits a chosen message.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["request", "answer"]
How = Literal["before", "half", "after"]

TLS_REQUEST = struct.pack("!II", 8, 80877103)


@dataclass
class Cut:
    """Where to cut: at the message number `index` of a side, counted from now."""

    side: Side
    index: int
    how: How
    done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self, side: Side) -> bool:
        """Counts a message; tells whether this is the one."""
        with self._lock:
            if side != self.side or self.done.is_set():
                return False
            self.index -= 1
            if self.index >= 0:
                return False
            self.done.set()
            return True


class Proxy:
    """Listens on TCP; forwards to a Unix socket."""

    def __init__(self, path: str, host: str = "127.0.0.1") -> None:
        self.path = path
        self.cut: Cut | None = None
        #: How many connections were asked for.
        self.connects = 0
        self._swallowed: set[socket.socket] = set()
        self._half_open: set[socket.socket] = set()
        self._forgetting: dict[socket.socket, threading.Event] = {}
        self.refusing = False
        self.refuse_after_cut = False
        self._flowing = threading.Event()
        self._flowing.set()
        self.frozen = threading.Event()
        self._thawed = threading.Event()
        self._after_error = False
        self._kept: Callable[[bytes], bool] | None = None
        self._cutting = False
        self._asked: bytes | None = None
        self._skipped = 0
        self._asking: set[socket.socket] = set()
        self._watched: bytes | None = None
        self._informed: set[socket.socket] = set()
        self._said = threading.Event()
        self._hearing = threading.Event()
        self._hearing.set()
        self._listeners: set[socket.socket] = set()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, side: Side, index: int, how: How, refuse_afterwards: bool = False) -> Cut:
        """Cuts once, at a message that comes from now on."""
        self.refuse_after_cut = refuse_afterwards
        self.cut = Cut(side, index, how)
        return self.cut

    def refuse(self, refusing: bool) -> None:
        """Closes new connections at once, or no longer."""
        self.refusing = refusing

    def swallow(self) -> None:
        """Lets nothing through any more over the connections there are, and says nothing."""
        self._swallowed.update(self._sockets)

    def half_open(self) -> None:
        """Ends the sessions of the server; the clients' connections stay open, and silent."""
        for client, server in zip(self._sockets[::2], self._sockets[1::2], strict=False):
            self._half_open.add(client)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def deallocate(self) -> None:
        """Has the server forget what idle sessions have prepared, as some poolers do."""
        for server in self._sockets[1::2]:
            if server.fileno() < 0 or server in self._swallowed:
                continue
            told = self._forgetting[server] = threading.Event()
            query = b"DEALLOCATE ALL\0"
            server.sendall(b"Q" + struct.pack("!I", len(query) + 4) + query)
            told.wait()

    def freeze_answers(self) -> None:
        """Keeps every answer of the server back until :meth:`thaw`."""
        self.frozen.clear()
        self._flowing.clear()

    def freeze_listeners(self) -> None:
        """Keeps back what the server sends over connections that have said LISTEN."""
        self._hearing.clear()

    def freeze_after_error(self) -> None:
        """Keeps back what the server sends after an error, its end included."""
        self._prepare_to_hold()
        self._after_error = True

    def freeze_answer_to(self, text: bytes, skip: int = 0) -> None:
        """Keeps back the answers to the connection that asks for this; then `frozen` is set.

        It lets so many others pass that ask for the same before.
        """
        self._prepare_to_hold()
        self._asked, self._skipped = text, skip

    def watch_for(self, text: bytes) -> threading.Event:
        """Tells when a client has received this, and has said something after it."""
        self._watched = text
        return self._said

    def freeze_request(self, is_meant: Callable[[bytes], bool], cut: bool = False) -> None:
        """Keeps back the first request that is meant; then `frozen` is set.

        With `cut` the client's connection breaks at that. :meth:`thaw` lets the request go, to
        be answered to nobody.
        """
        self._prepare_to_hold()
        self._kept, self._cutting = is_meant, cut

    def freeze_describe(self) -> None:
        """Keeps back the request to describe a statement; then `frozen` is set."""
        self.freeze_request(lambda message: message[:1] == b"D")

    def _prepare_to_hold(self) -> None:
        self.frozen.clear()
        self._thawed.clear()

    def _hold(self) -> None:
        """One message waits, and with it what follows in this direction."""
        self.frozen.set()
        self._thawed.wait()

    def cut_all(self) -> None:
        """Closes every connection."""
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def thaw(self) -> None:
        """Lets the answers go."""
        self._thawed.set()
        self._flowing.set()
        self._hearing.set()

    def close(self) -> None:
        """Ends everything."""
        self.thaw()
        self._listener.close()
        for one in self._sockets:
            _close(one)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connects += 1
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _notice_the_dead(client)
                if self.refusing:
                    _close(client)
                    continue
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(self.path)
                except OSError:  # it is not there at this moment
                    _close(client)
                    server.close()
                    continue
                self._sockets += [client, server]
                if self.refusing:  # since then, and cut_all() has not seen it
                    _close(client)
                    _close(server)
                    continue
                for side, source, target in (
                    ("request", client, server),
                    ("answer", server, client),
                ):
                    arguments = (side, source, target, client, server)
                    threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(
        self,
        side: Side,
        source: socket.socket,
        target: socket.socket,
        client: socket.socket,
        server: socket.socket,
    ) -> None:
        typed = side == "answer"  # the first request has no type byte
        with contextlib.suppress(OSError, EOFError):
            while True:
                message = _message(source, typed)
                if message == TLS_REQUEST:
                    source.sendall(b"N")  # Without TLS, if you please.
                    continue
                if self._kept and typed and side == "request" and self._kept(message):
                    self._kept = None
                    if self._cutting:
                        client.shutdown(socket.SHUT_WR)
                    self._hold()
                typed = True
                if source in self._swallowed:
                    continue
                if source in self._forgetting:
                    if message[:1] == b"Z":  # The answer ends, which nobody has asked for.
                        self._forgetting.pop(source).set()
                    continue
                # The end of the answer before may still be on its way.
                begins = message[:1] != b"Z" or self.frozen.is_set()
                if side == "answer" and begins and not self._flowing.is_set():
                    self.frozen.set()
                    self._flowing.wait()
                if side == "request" and client in self._informed:
                    self._said.set()
                if side == "request" and self._asked and self._asked in message:
                    self._skipped -= 1
                    if self._skipped < 0:
                        self._asked = None
                        self._asking.add(client)
                if side == "answer" and client in self._asking:
                    self._hold()
                    self._asking.discard(client)
                if side == "answer" and self._watched and self._watched in message:
                    self._informed.add(client)
                if b"LISTEN" in message and side == "request":
                    self._listeners.add(client)
                if side == "answer" and client in self._listeners:
                    self._hearing.wait()
                cut = self.cut
                if cut is None or not cut.due(side):
                    target.sendall(message)
                    if side == "answer" and message[:1] == b"E" and self._after_error:
                        self._after_error = False
                        self._hold()
                    continue
                self.refusing = self.refusing or self.refuse_after_cut
                if cut.how == "half":
                    target.sendall(message[: len(message) // 2])
                elif cut.how == "after":
                    target.sendall(message)
                _close(client)
                if cut.how == "after" and side == "request":
                    # The server may read what it got, act on it, and answer nobody.
                    with contextlib.suppress(OSError):
                        server.shutdown(socket.SHUT_WR)
                    while server.recv(65536):
                        pass
                break
        if client not in self._half_open:
            _close(client)
        _close(server)


def _notice_the_dead(client: socket.socket) -> None:
    """The kernel of a process that was killed while the network was away may give up telling."""
    if sys.platform == "linux":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, 5),
            (socket.TCP_KEEPINTVL, 1),
            (socket.TCP_KEEPCNT, 15),
        ):
            client.setsockopt(socket.IPPROTO_TCP, option, value)


def _message(source: socket.socket, typed: bool) -> bytes:
    head = _exactly(source, 5 if typed else 4)
    (length,) = struct.unpack("!I", head[-4:])
    return head + _exactly(source, length - 4)


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
