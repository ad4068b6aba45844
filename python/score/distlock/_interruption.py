"""Tells what a signal handler raised from what the interrupted code raised itself."""

from __future__ import annotations

import inspect
import signal
import traceback
from types import FrameType
from typing import Any


def is_of_a_signal_handler(error: BaseException) -> bool:
    """Whether a signal handler raised it, such as a time limit by ``SIGALRM``.

    Code that deals with the errors of foreign code must let such an exception pass: it is meant for
    the program that was interrupted, not for us.
    """
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(frame.f_code in codes for frame in frames):
        return True
    # A handler may be no longer installed, or hidden in something that Python cannot look into.
    callers = [frames[0].f_back, *frames] if frames else []
    return any(map(_is_told_of, frames, callers))


def _is_told_of(frame: FrameType, caller: FrameType | None) -> bool:
    """Whether an argument is the frame that the function was called in, as for signal handlers."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    values = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
    if code.co_flags & inspect.CO_VARARGS:
        rest = frame.f_locals.get(code.co_varnames[count])
        values += rest if isinstance(rest, tuple) else ()
    return caller is not None and any(value is caller for value in values)


def _code(handler: Any) -> object:
    """The code of a signal handler in Python; `None` for any other."""
    if not callable(handler):
        return None
    handler = getattr(handler, "func", None) or handler  # of functools.partial
    if not hasattr(handler, "__code__"):  # nor is it a method
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)
