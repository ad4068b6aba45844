"""Delivers the core's events: log records, losses of holds, and measurements.

The core's own threads never call Python. A daemon Python thread takes their events
from a queue, for as long as the process lives.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from ._distlock import _deliver_all, _next_event, _next_seen

_logger = logging.getLogger("score.distlock")


def log(level: int, message: str) -> None:
    """Logs a record from the core."""
    _logger.log(level, "%s", message)


def _start(name: str, work: Callable[..., object], *arguments: Any) -> None:
    """Starts a real daemon thread, even under gevent."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        # gevent's threads are greenlets of this thread, which waits outside Python.
        monkey.get_original("_thread", "start_new_thread")(work, arguments)
    else:
        threading.Thread(target=work, args=arguments, name=name, daemon=True).start()


def lost(callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Calls ``on_lost(lock)`` in a thread of its own."""
    with contextlib.suppress(RuntimeError):  # the interpreter is ending
        _start("distlock-on-lost", callback, *arguments)


def expiring(callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Calls ``on_expiring`` likewise."""
    with contextlib.suppress(RuntimeError):
        _start("distlock-on-expiring", callback, *arguments)


_functions: dict[str, Callable[..., None]] = {"log": log, "lost": lost, "expiring": expiring}


#: A thread that returns from :func:`tell_seen` knows that every event was delivered.
_telling = [threading.RLock()]


def _after_fork() -> None:
    _telling[:] = [threading.RLock()]  # a thread of the parent may hold the other one


def tell_seen() -> None:
    """Delivers to the sinks what has happened since the last time."""
    with _telling[0]:
        while (seen := _next_seen()) is not None:
            context, callback, arguments = seen
            if context is None:
                callback(*arguments)
            else:
                context.run(callback, *arguments)


def _attend() -> None:
    while True:
        event = _next_event()
        try:
            tell_seen()
        except Exception:
            _logger.exception("what was measured could not be told")
        if event is None:
            continue
        function, *arguments = event
        try:
            _functions[function](*arguments)
        except Exception:
            _logger.exception("an event could not be delivered")


def start() -> None:
    """Starts the thread. A forked child starts its own when it needs one."""
    _start("distlock-events", _attend)


atexit.register(_deliver_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
