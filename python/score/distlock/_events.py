"""Delivers the core's events: log records, losses of holds, and measurements.

The core's own threads never call Python. Daemon Python threads take their events from queues, for
as long as the process lives: one the log records and measurements, whose handlers may block, and
one the notices that a hold is lost or about to expire.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from ._distlock import _claim_events, _count_seen, _deliver_all, _next_event, _next_seen
from ._interruption import is_of_a_signal_handler

_logger = logging.getLogger("score.distlock")


def log(level: int, message: str) -> None:
    """Logs a record from the core.

    A log handler's error does not end the call that delivers the record; a signal handler's does.
    """
    try:
        _logger.log(level, "%s", message)
    except Exception as error:
        if is_of_a_signal_handler(error):
            raise
        _report()


def _report() -> None:
    """Reports the current exception as that of a thread."""
    with contextlib.suppress(BaseException):
        threading.excepthook(
            threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()])
        )


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
    """Delivers to the sinks what has happened since the last time, but not what happens meanwhile:
    that need not end.
    """
    with _telling[0]:
        for _ in range(_count_seen()):
            if (seen := _next_seen()) is None:
                return
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
        _report()


def _attend(notices: bool) -> None:
    if not _claim_events(notices):
        return
    if not _is_patched():
        name = "distlock-callbacks" if notices else "distlock-events"
        threading.current_thread().name = name
    while True:
        event = _next_event(notices)
        if not notices:
            _safely("what was measured could not be told", tell_seen)
        if event is not None:
            function, *arguments = event
            _safely("an event could not be delivered", _functions[function], *arguments)


def thread(notices: bool) -> tuple[Callable[..., object], Callable[[], None]]:
    """What starts the thread that delivers log records and measurements, or else notices, and what
    it runs.

    ``threading.Thread.start`` waits until the thread runs, and a signal handler may raise there.
    """
    return _start_new_thread(), functools.partial(_attend, notices)


atexit.register(_deliver_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
