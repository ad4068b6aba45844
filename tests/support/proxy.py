"""A TCP proxy in front of PostgreSQL that cuts, freezes or refuses connections at will.

It understands the protocol's framing, so it can cut at a chosen message.
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
    """Where to cut: at message number `index` of a side, counted from now."""

    side: Side
    index: int
    how: How
    done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self, side: Side) -> bool:
        """Counts a message; returns whether this is the one."""
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
        #: The number of connection attempts.
        self.connects = 0
        self._swallowed: set[socket.socket] = set()
        self._half_open: set[socket.socket] = set()
        self._forgetting: dict[socket.socket, threading.Event] = {}
        self.refusing = False
        self.refuse_after_cut = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._exempt_from = sys.maxsize
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

    def url(self, database: str) -> str:
        """The URL of a database through the proxy."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def arm(self, side: Side, index: int, how: How, refuse_afterwards: bool = False) -> Cut:
        """Cuts once, at a future message."""
        self.refuse_after_cut = refuse_afterwards
        self.cut = Cut(side, index, how)
        return self.cut

    def refuse(self, refusing: bool) -> None:
        """Starts or stops closing new connections immediately."""
        self.refusing = refusing

    def swallow(self) -> None:
        """Silently drops all further traffic on the existing connections."""
        self._swallowed.update(self._sockets)

    def half_open(self) -> None:
        """Ends the server's sessions; the clients' connections stay open, and silent."""
        for client, server in zip(self._sockets[::2], self._sockets[1::2], strict=False):
            self._half_open.add(client)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def deallocate(self) -> None:
        """Makes the server forget what idle sessions have prepared, as some poolers do."""
        for server in self._sockets[1::2]:
            if server.fileno() < 0 or server in self._swallowed:
                continue
            told = self._forgetting[server] = threading.Event()
            query = b"DEALLOCATE ALL\0"
            server.sendall(b"Q" + struct.pack("!I", len(query) + 4) + query)
            told.wait()

    def freeze_answers(self, new: bool = True) -> None:
        """Withholds every answer of the server until :meth:`thaw`.

        Unless `new`, connections that are opened from now on are exempt. A test that waits for
        something to happen in the server needs that, as the client may have to open one: its other
        connections may still have work of the background, whose answers are withheld.
        """
        self._exempt_from = sys.maxsize if new else len(self._sockets)
        self.frozen.clear()
        self._flowing.clear()

    def freeze_listeners(self) -> None:
        """Withholds what the server sends over connections that have executed LISTEN."""
        self._hearing.clear()

    def freeze_after_error(self) -> None:
        """Withholds what the server sends after an error, including the end of the answer."""
        self._prepare_to_hold()
        self._after_error = True

    def freeze_answer_to(self, text: bytes, skip: int = 0) -> None:
        """Withholds the answers to a connection that sends a request with `text`; sets `frozen`.

        Before that, lets `skip` such requests pass.
        """
        self._prepare_to_hold()
        self._asked, self._skipped = text, skip

    def watch_for(self, text: bytes) -> threading.Event:
        """Sets the event when a client has received `text` and then sends something."""
        self._watched = text
        return self._said

    def freeze_request(self, is_meant: Callable[[bytes], bool], cut: bool = False) -> None:
        """Withholds the first request that `is_meant` matches; then sets `frozen`.

        With `cut` the client's connection breaks then. :meth:`thaw` forwards the request, whose
        answer goes nowhere.
        """
        self._prepare_to_hold()
        self._kept, self._cutting = is_meant, cut

    def freeze_describe(self) -> None:
        """Withholds the request to describe a statement; then sets `frozen`."""
        self.freeze_request(lambda message: message[:1] == b"D")

    def _prepare_to_hold(self) -> None:
        self.frozen.clear()
        self._thawed.clear()

    def _hold(self) -> None:
        """Delays a message, and whatever follows in this direction."""
        self.frozen.set()
        self._thawed.wait()

    def cut_all(self) -> None:
        """Closes every connection."""
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def thaw(self) -> None:
        """Forwards the withheld messages."""
        self._thawed.set()
        self._flowing.set()
        self._hearing.set()

    def close(self) -> None:
        """Closes everything."""
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
                except OSError:  # the server is down at the moment
                    _close(client)
                    server.close()
                    continue
                self._sockets += [client, server]
                if self.refusing:  # set since then, and cut_all() has missed these
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
                    source.sendall(b"N")  # no TLS
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
                    if message[:1] == b"Z":  # the end of the answer to DEALLOCATE
                        self._forgetting.pop(source).set()
                    continue
                # The end of the previous answer may still be in flight.
                begins = message[:1] != b"Z" or self.frozen.is_set()
                freezes = side == "answer" and begins and not self._flowing.is_set()
                if freezes and self._sockets.index(source) < self._exempt_from:
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
                    # The server may read what it got and act on it; nobody reads its answer.
                    with contextlib.suppress(OSError):
                        server.shutdown(socket.SHUT_WR)
                    while server.recv(65536):
                        pass
                break
        if client not in self._half_open:
            _close(client)
        _close(server)


def _notice_the_dead(client: socket.socket) -> None:
    """If a process dies while the network is down, its kernel may give up on saying so."""
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
