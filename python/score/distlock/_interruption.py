"""Tells what a signal handler raised from what the interrupted code raised itself."""

from __future__ import annotations

import signal
import traceback
from typing import Any


def is_of_a_signal_handler(error: BaseException) -> bool:
    """Whether a signal handler raised it, such as a time limit by ``SIGALRM``.

    Code that deals with the errors of foreign code must let such an exception pass: it is meant for
    the program that was interrupted, not for us.
    """
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _code(handler: Any) -> object:
    """The code of a signal handler in Python; `None` for any other."""
    if not callable(handler):
        return None
    handler = getattr(handler, "func", handler)  # of functools.partial
    if not hasattr(handler, "__code__"):  # nor is it a method
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)
