"""Tells what a signal handler raised from what the interrupted code raised itself."""

from __future__ import annotations

import inspect
import itertools
import traceback
from types import FrameType


def is_of_a_signal_handler(error: BaseException) -> bool:
    """Whether a signal handler raised it, such as a time limit by ``SIGALRM``.

    Code that deals with the errors of foreign code must let such an exception pass: it is meant
    for the program that was interrupted, not for us. Python calls a handler, whatever kind of
    callable it is and whether it is still installed, with the signal's number and the frame that
    was interrupted: the one before its own in the traceback.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    interrupted = [frames[0].f_back, *frames] if frames else []
    return any(map(_is_a_handler, frames, interrupted))


def _is_a_handler(frame: FrameType, interrupted: FrameType | None) -> bool:
    """Whether the frame has the arguments of a signal handler."""
    if interrupted is None:
        return False
    code, values = frame.f_code, frame.f_locals
    arguments = [values.get(name) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & inspect.CO_VARARGS:
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        arguments += rest if isinstance(rest, tuple) else ()
    return any(
        isinstance(number, int) and argument is interrupted
        for number, argument in itertools.pairwise(arguments)
    )
