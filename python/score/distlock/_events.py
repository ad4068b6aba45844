"""Delivers the core's events: log records, losses of holds, and measurements.

The core's own threads never call Python. A daemon Python thread takes their events
from a queue, for as long as the process lives.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from ._distlock import _claim_events, _deliver_all, _next_event, _next_seen

_logger = logging.getLogger("score.distlock")


def log(level: int, message: str) -> None:
    """Logs a record from the core."""
    _logger.log(level, "%s", message)


def _is_patched() -> bool:
    """Whether threads are gevent's greenlets of a thread, which may wait outside Python."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def _start_new_thread() -> Callable[..., object]:
    """``_thread.start_new_thread``, even under gevent."""
    if _is_patched():
        original: Callable[..., object] = sys.modules["gevent.monkey"].get_original(
            "_thread", "start_new_thread"
        )
        return original
    return _thread.start_new_thread


def _start(name: str, work: Callable[..., object], *arguments: Any) -> None:
    """Starts a real daemon thread, even under gevent."""
    if _is_patched():
        _start_new_thread()(work, arguments)
    else:
        threading.Thread(target=work, args=arguments, name=name, daemon=True).start()


def _call(name: str, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Calls back in a thread of its own, where it may take its time."""
    try:
        _start(name, callback, *arguments)
    except RuntimeError:  # there are too many threads, or the interpreter is ending
        if threading.current_thread() is not threading.main_thread():
            callback(*arguments)


def lost(callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Calls ``on_lost(lock)``."""
    _call("distlock-on-lost", callback, arguments)


def expiring(callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Calls ``on_expiring``."""
    _call("distlock-on-expiring", callback, arguments)


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


def _safely(complaint: str, work: Callable[..., object], *arguments: Any) -> None:
    """Logs what ``work`` raises; reports what the log's handlers raise as any thread's error."""
    try:
        try:
            work(*arguments)
        except Exception:
            _logger.exception(complaint)
    except BaseException:  # such as pytest.fail in a handler
        with contextlib.suppress(BaseException):
            threading.excepthook(
                threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()])
            )


def _attend() -> None:
    if not _claim_events():
        return
    if not _is_patched():
        threading.current_thread().name = "distlock-events"
    while True:
        event = _next_event()
        _safely("what was measured could not be told", tell_seen)
        if event is not None:
            function, *arguments = event
            _safely("an event could not be delivered", _functions[function], *arguments)


def thread() -> tuple[Callable[..., object], Callable[[], None]]:
    """What starts the thread that delivers the events, and what it runs.

    ``threading.Thread.start`` waits until the thread runs, and a signal handler may raise there.
    """
    return _start_new_thread(), _attend


atexit.register(_deliver_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
