"""What metrics and traces share: events, names, and sinks."""

from __future__ import annotations

import atexit
import logging
import re
import string
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ._distlock import ConfiguredDistlockModule, _measured, _observe
from ._events import tell_seen
from ._interruption import is_of_a_signal_handler

_logger = logging.getLogger("score.distlock")

NameAttribute = str | Iterable[str] | Callable[[str], str | None] | None
Name = Callable[[str], str | None]
Counts = dict[str | None, int]

#: The boundaries of the buckets, in seconds.
ACQUIRE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
HOLD = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600)
MARGIN = (0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 300, 1800)
#: What the metrics mean, for people.
ACQUIRE_TEXT = "How long attempts to acquire a lock took."
HOLD_TEXT = "How long holds lasted."
MARGIN_TEXT = "What was left of the lease when a hold was extended or ended."
LOSSES_TEXT = "Holds that were lost."
HOLDS_TEXT = "Holds that this process has now."
WAITERS_TEXT = "Threads and coroutines of this process that wait for a lock."
LISTENER_TEXT = "Whether the connection that wakes waiters works; nothing while nobody waits."


def matching(template: str) -> Callable[[str], bool]:
    """Returns a function that tells whether a name matches the template."""
    if not isinstance(template, str):
        raise TypeError(f"name_attribute: {type(template).__name__} is not a template")
    parts = list(string.Formatter().parse(template))
    if all(field is None for _, field, _, _ in parts):
        raise ValueError(
            f"name_attribute: {template!r} has no field; write 'order-{{id}}' for instance"
        )
    pattern = "".join(
        re.escape(text) + ("" if field is None else ".+?") for text, field, _, _ in parts
    )
    compiled = re.compile(pattern, re.DOTALL)
    return lambda name: compiled.fullmatch(name) is not None


def naming(asked: NameAttribute) -> Name:
    """Returns the function from a lock's name to the value to report."""
    if asked is None:
        return lambda name: None
    if callable(asked):
        return asked
    if not isinstance(asked, (str, Iterable)) or isinstance(asked, bytes):
        raise TypeError(
            "name_attribute must be a template such as 'order-{id}', several of them, a function "
            f"or None, not {type(asked).__name__}"
        )
    templates = [asked] if isinstance(asked, str) else list(asked)
    known = [(template, matching(template)) for template in templates]

    def name_of(name: str) -> str | None:
        return next((template for template, matches in known if matches(name)), None)

    return name_of


class Attempt(NamedTuple):
    """An attempt to acquire has ended, at a time in nanoseconds since 1970."""

    outcome: str
    took: float
    fence: int | None
    error: str | None
    at: int


class Extended(NamedTuple):
    """A hold was extended with this much of its lease left."""

    margin: float


class Ended(NamedTuple):
    """A hold has ended with this much of its lease left; why it was lost, if it was."""

    held: float
    margin: float
    lost: str | None

    @property
    def outcome(self) -> str:
        """How it ended."""
        return "released" if self.lost is None else "lost"


#: By the core's names, which are also the names of the sink's methods.
_EVENTS: dict[str, type[Attempt | Extended | Ended]] = {
    "attempt": Attempt,
    "extended": Extended,
    "ended": Ended,
}


class Sink:
    """A receiver of events: one for each provider or registry, for any number of modules."""

    def __init__(self) -> None:
        self.names: weakref.WeakKeyDictionary[ConfiguredDistlockModule, Name] = (
            weakref.WeakKeyDictionary()
        )
        # A name that once had holds or waiters is reported as 0 when they are gone.
        self._known: tuple[set[str | None], set[str | None]] = (set(), set())

    def attempt(self, name: str | None, attempt: Attempt) -> None:
        """An attempt to acquire has ended."""

    def extended(self, name: str | None, extended: Extended) -> None:
        """A hold was extended."""

    def ended(self, name: str | None, ended: Ended) -> None:
        """A hold has ended."""

    def measured(self) -> tuple[Counts, Counts, list[bool]]:
        """The holds and the waiters by reported name, and the state of the listeners."""
        tell_seen()
        holds, waiters = (dict.fromkeys(known, 0) for known in self._known)
        listeners = []
        for conf, name_of in list(self.names.items()):
            names, waiting, listening = _measured(conf)
            for name in names:
                told = _told(name_of, name)
                holds[told] = holds.get(told, 0) + 1
            for name, count in waiting:
                told = _told(name_of, name)
                waiters[told] = waiters.get(told, 0) + count
            if listening is not None:
                listeners.append(listening)
        self._known[0].update(holds)
        self._known[1].update(waiters)
        return holds, waiters, listeners


_failed: set[str] = set()


def _failure(what: str, error: Exception) -> None:
    """Logs an exception in foreign code, once for each kind of code.

    Lets what a signal handler raised pass.
    """
    if is_of_a_signal_handler(error):
        raise error
    if what not in _failed:
        _failed.add(what)
        _logger.exception("%s failed; the locks are not concerned, and it is not told again", what)


def _told(name_of: Name, name: str) -> str | None:
    try:
        told = name_of(name)
        return told if told is None else str(told)
    except Exception as error:
        _failure("the function name_attribute", error)
        return None


class Dispatch:
    """Receives the core's events for one module, which it must not keep alive."""

    def __init__(self) -> None:
        self.sinks: dict[Sink, Name] = {}

    def __call__(self, kind: str, name: str, *arguments: Any) -> None:
        event = _EVENTS[kind](*arguments)
        for sink, name_of in list(self.sinks.items()):
            try:
                getattr(sink, kind)(_told(name_of, name), event)
            except Exception as error:
                _failure(f"what measures ({type(sink).__name__.lower()})", error)


dispatches: weakref.WeakKeyDictionary[ConfiguredDistlockModule, Dispatch] = (
    weakref.WeakKeyDictionary()
)


def add(conf: ConfiguredDistlockModule, sink: Sink, name_of: Name) -> None:
    dispatch = dispatches.get(conf)
    if dispatch is None:
        dispatch = dispatches[conf] = Dispatch()
        _observe(conf, dispatch)
    dispatch.sinks[sink] = name_of
    sink.names[conf] = name_of
    # Runs before the handlers of the providers, which are already registered.
    atexit.unregister(tell_seen)
    atexit.register(tell_seen)


def already(conf: ConfiguredDistlockModule, of: Callable[[Sink], bool], what: str) -> bool:
    dispatch = dispatches.get(conf)
    already = dispatch is not None and any(of(sink) for sink in dispatch.sinks)
    if already:
        _logger.warning(
            "this configuration is instrumented already, for %s; this call, including its "
            "name_attribute, has no effect: call uninstrument() first",
            what,
        )
    return already


def checked(conf: object) -> None:
    if not isinstance(conf, ConfiguredDistlockModule):
        raise TypeError(f"conf must be a ConfiguredDistlockModule, not {type(conf).__name__}")


def attributes_of(name: str | None, **more: str | None) -> dict[str, str]:
    """OpenTelemetry's attributes; two underscores stand for a dot."""
    told = {key.replace("__", "."): value for key, value in more.items() if value is not None}
    return told if name is None else {**told, "distlock.lock.name": name}
