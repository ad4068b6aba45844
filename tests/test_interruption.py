"""Which exceptions are those of signal handlers."""

from __future__ import annotations

import contextvars
import functools
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from score.distlock._interruption import is_of_a_signal_handler


class TimeIsUp(Exception):
    """What the handlers raise."""


def plain(number: int, frame: FrameType | None) -> None:
    raise TimeIsUp


def only_once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    raise TimeIsUp


def replaced(*arguments: Any) -> None:
    signal.signal(signal.SIGUSR1, plain)
    raise TimeIsUp


def without_arguments(*_: Any) -> None:
    raise TimeIsUp


def deleting(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TimeIsUp


def renaming(number: Any, frame: FrameType | None) -> None:
    number = signal.Signals(number).name
    raise TimeIsUp(number)


class Methods:
    func = None

    def method(self, number: int, frame: FrameType | None) -> None:
        raise TimeIsUp

    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise TimeIsUp


class Constructed:
    def __init__(self, number: int, frame: FrameType | None) -> None:
        raise TimeIsUp


HANDLERS: dict[str, Any] = {
    "function": plain,
    "only once": only_once,
    "replaced": replaced,
    "*arguments": without_arguments,
    "deleting": deleting,
    "renaming": renaming,
    "deleting, in a partial": functools.partial(deleting),
    "lambda": lambda number, frame: plain(number, frame),  # noqa: PLW0108
    "method": Methods().method,
    "callable": Methods(),
    "class": Constructed,
    "partial": functools.partial(plain),
    "partial of a method": functools.partial(Methods().method),
    "cached": functools.lru_cache(plain),
    "in a context": functools.partial(contextvars.copy_context().run, plain),  # type: ignore[call-arg]
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def interrupted() -> None:
    signal.raise_signal(signal.SIGUSR1)


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_what_a_signal_handler_raised(handler: Any) -> None:
    signal.signal(signal.SIGUSR1, handler)
    with pytest.raises(TimeIsUp) as caught:
        interrupted()
    assert is_of_a_signal_handler(caught.value)


def rebinding(frame: FrameType | None = None) -> None:
    frame = sys._getframe().f_back
    raise TimeIsUp(frame)


class Lazy:
    """Computes itself as soon as somebody asks for its class, as Django's lazy objects do."""

    @property
    def __class__(self) -> Any:
        raise AssertionError("it was looked into")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise AssertionError


def test_arguments_are_not_looked_into() -> None:
    with pytest.raises(TimeIsUp) as caught:
        without_arguments(Lazy(), Lazy(), 1, Lazy())
    assert not is_of_a_signal_handler(caught.value)


def test_what_other_code_raised() -> None:
    """Also if it is an installed handler that was called by other code, or deals with frames."""
    signal.signal(signal.SIGUSR1, without_arguments)
    for arguments in ((), (1, None), (sys._getframe(),), (1, sys._getframe().f_back)):
        with pytest.raises(TimeIsUp) as caught:
            without_arguments(*arguments)
        assert not is_of_a_signal_handler(caught.value)
    with pytest.raises(TimeIsUp) as caught:
        rebinding()
    assert not is_of_a_signal_handler(caught.value)
    assert not is_of_a_signal_handler(TimeIsUp())
