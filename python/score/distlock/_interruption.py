"""Tells what a signal handler raised from what the interrupted code raised itself."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import signal
import traceback
from types import FrameType, FunctionType, MethodType, TracebackType
from typing import Any


class suppress(contextlib.suppress):  # noqa: N801
    """As :class:`contextlib.suppress`, but lets what a signal handler raised pass."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        suppressed = super().__exit__(exc_type, exc, traceback)
        return suppressed and not (exc is not None and is_of_a_signal_handler(exc))


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
    """Whether the frame has the arguments of a signal handler.

    Does not look into other arguments, which may compute something even to tell their class.
    """
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount]
    arguments = [values.get(name) for name in names]
    if code.co_flags & inspect.CO_VARARGS:
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        arguments += rest if type(rest) is tuple else ()
    pairs = itertools.pairwise(arguments) if interrupted is not None else ()
    numbers = [number for number, argument in pairs if argument is interrupted]
    if any(issubclass(type(number), int) for number in numbers):
        return True
    # An installed handler may have deleted its arguments, or replaced the number.
    changed = numbers or any(name not in values for name in names)
    return bool(changed) and code in map(_code, map(signal.getsignal, signal.valid_signals()))


def _code(handler: Any) -> object:
    """The code of a signal handler in Python; `None` for any other."""
    while issubclass(type(handler), functools.partial):
        handler = handler.func
    if type(handler) is MethodType:
        handler = handler.__func__
    if type(handler) is not FunctionType:
        handler = inspect.getattr_static(type(handler), "__call__", None)
    return handler.__code__ if type(handler) is FunctionType else None
