"""Functions that run under a lock: ``conf.locked`` and ``score.distlock.locked``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import itertools
import math
import string
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from ._config import choice
from ._hold import callback, lease, warning
from ._refuse import shown

if TYPE_CHECKING:
    from . import ConfiguredDistlockModule

_Future = (asyncio.Future, concurrent.futures.Future)
_ContextManager = (
    contextlib._GeneratorContextManager,
    contextlib._AsyncGeneratorContextManager,
)
#: How many wrappers around a function to look through.
_WRAPPERS = 100
#: How many levels of nested braces to look into; `str.format` itself refuses more.
_DEPTH = 3
#: Iterators that compute an item only when somebody asks for it.
_Lazy = (
    *(map, filter, zip, enumerate),
    *(kind for kind in vars(itertools).values() if isinstance(kind, type)),
)


class _Anything:
    """Stands in for any argument, to try out the fields of a name."""

    def __getattr__(self, attribute: str) -> _Anything:
        return self

    def __getitem__(self, key: object) -> _Anything:
        return self

    def __format__(self, spec: str) -> str:
        return ""


class _Arguments(dict[str, _Anything]):
    """Has every argument, and records which ones the name uses."""

    def __missing__(self, key: str) -> _Anything:
        return self.setdefault(key, _Anything())


def _refuse_unnamed(name: str, part: str, depth: int = 0) -> None:
    if depth > _DEPTH:
        return
    for _, field, spec, _ in string.Formatter().parse(part):
        if field is None:
            continue
        argument = field.partition(".")[0].partition("[")[0]
        if not argument or argument.isdigit():
            raise ValueError(
                f"the name {shown(name)} has a field without a name; "
                "name the argument it stands for, as in 'order-{order_id}'"
            )
        if spec:
            _refuse_unnamed(name, spec, depth + 1)


def _fields(name: str) -> frozenset[str]:
    """The arguments that a name with fields needs: ``order`` for ``'{order.id}'``."""
    _refuse_unnamed(name, name)
    arguments = _Arguments()
    try:
        name.format_map(arguments)
    except ValueError as error:
        raise ValueError(f"the name {shown(name)} is not well-formed: {error}") from None
    return frozenset(arguments)


def _label(function: Any) -> str:
    """What to call a function in messages; a partial object has no name of its own."""
    return getattr(function, "__qualname__", None) or f"this {type(function).__name__} object"


def _signature(name: str, fields: frozenset[str], function: Any) -> inspect.Signature:
    """The function's signature, checked to have every argument the name needs."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        raise ValueError(
            f"the name {shown(name)} has fields, but Python does not know the arguments of "
            f"{_label(function)}: wrap it into a function of your own"
        ) from None
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return signature
    for field in sorted(fields):
        if field not in signature.parameters:
            raise ValueError(
                f"the name {shown(name)} has the field {field!r}, which is not an argument of the "
                f"function; allowed are {', '.join(signature.parameters) or 'none'}"
            )
    return signature


def _named(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> str:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments = {**arguments.get(parameter.name, {}), **arguments}
    return name.format(**arguments)


def _is(kind: Callable[[Any], bool], function: Any) -> bool:
    """Whether a function, or what a partial or callable object calls, is of a kind."""
    while isinstance(function, functools.partial):
        function = function.func
    return kind(function) or kind(type(function).__call__)


def _is_coroutine_function(function: Any) -> bool:
    # asyncio's own mark is older than inspect.markcoroutinefunction.
    mark = getattr(asyncio.coroutines, "_is_coroutine", function)
    marked = getattr(function, "_is_coroutine", None) is mark
    return marked or _is(inspect.iscoroutinefunction, function)


def _may_be_coroutine_function(function: Any) -> bool:
    """Whether it wraps a coroutine function: it may return the coroutine, or run it itself."""
    for _ in range(_WRAPPERS):  # an object that has every attribute would never end
        if function is None:
            break
        if _is_coroutine_function(function):
            return True
        partial = isinstance(function, functools.partial)
        function = function.func if partial else getattr(function, "__wrapped__", None)
    return False


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _refuse_unfinished(function: Any, result: Any) -> None:
    """Refuses a result whose work is yet to be done: it would run unprotected after the release.

    It checks the result, since a function does not tell in advance what it will return.
    """
    advice = "use `with conf.get(name)` around the work itself"
    if isinstance(result, _Future):
        if result.done():
            return
        result.cancel()
        kind = "a future, whose work may run after the lock was released"
    elif isinstance(result, _ContextManager):
        kind = "a context manager, whose block runs after the lock was released"
        advice = "use `with conf.get(name)` inside it"
    elif inspect.isawaitable(result):
        kind = "an awaitable, which runs after the lock was released"
        advice = "lock the coroutine function itself, or use `async with conf.aio.get(name)`"
    elif isinstance(result, Generator) or inspect.isasyncgen(result):
        kind = "a generator, whose body runs after the lock was released"
        advice = "use `with conf.get(name)` inside it"
    elif isinstance(result, _Lazy):
        kind = f"a {type(result).__name__} object, which computes after the lock was released"
        advice = "return a list"
    else:
        return
    if isinstance(result, (Coroutine, Generator)):
        result.close()
    raise TypeError(f"{_label(function)} is locked, but returns {kind}; {advice}")


def of(conf: ConfiguredDistlockModule, *options: Any) -> Callable[[Any], Any]:
    """The decorator of a configuration."""
    return locked(lambda: conf, *options)


def locked(
    conf: Callable[[], ConfiguredDistlockModule],
    name: str,
    timeout: float | str | None,
    autoextend: bool | None,
    maxtime: object,
    on_lost: Any,
    on_expiring: Any,
    warn_before: object,
) -> Callable[[Any], Any]:
    """Makes the decorator, which calls `conf` at each call of the function."""
    if not isinstance(name, str):
        raise TypeError(
            f"the name of a lock must be a str, not {type(name).__name__}; "
            "write @conf.locked('name')"
        )
    fields = _fields(name)
    seconds = lease(maxtime)
    autoextend = choice(autoextend, "autoextend")
    options: dict[str, Any] = {
        "timeout": timeout,
        "autoextend": autoextend,
        "maxtime": seconds,
        "on_lost": callback(on_lost),
        "on_expiring": on_expiring,
        "warn_before": warn_before,
    }
    # Report what is wrong now, where possible, not at the first call.
    warning(on_expiring, warn_before, math.inf if seconds is None else seconds, bool(autoextend))

    def decorate(function: Any) -> Any:
        if isinstance(function, (classmethod, staticmethod)):
            raise TypeError(f"put @{type(function).__name__} above @conf.locked, not below")
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"only functions can be locked, not {type(function).__name__}")
        if _is(inspect.isgeneratorfunction, function) or _is(inspect.isasyncgenfunction, function):
            raise TypeError(
                f"{_label(function)} is a generator function, whose body runs after its call "
                "has returned; use `with conf.get(name)` inside it"
            )
        signature = _signature(name, fields, function) if fields else None

        def the_name(args: Any, kwargs: Any) -> str:
            return _named(name, signature, args, kwargs) if signature else name.format()

        def run(*args: Any, **kwargs: Any) -> Any:
            with conf().get(the_name(args, kwargs)).hold(**options):
                result = function(*args, **kwargs)
                _refuse_unfinished(function, result)
                return result

        async def run_async(*args: Any, **kwargs: Any) -> Any:
            async with conf().aio.get(the_name(args, kwargs)).hold(**options):
                result = function(*args, **kwargs)
                if inspect.isawaitable(result):
                    result = await result
                # The caller would await a second awaitable after the release.
                _refuse_unfinished(function, result)
                return result

        def run_either(*args: Any, **kwargs: Any) -> Any:
            if _in_event_loop():
                return run_async(*args, **kwargs)
            module, held = conf(), the_name(args, kwargs)
            with module.get(held).hold(**options):
                result = function(*args, **kwargs)
                if not inspect.iscoroutine(result):
                    _refuse_unfinished(function, result)
                    return result
            # The coroutine has not started; it starts under the lock.
            return finish(module.aio.get(held).hold(**options), result)

        async def finish(hold: Any, coroutine: Coroutine[Any, Any, Any]) -> Any:
            with contextlib.closing(coroutine):
                async with hold:
                    result = await coroutine
                    _refuse_unfinished(function, result)
                    return result

        if _is_coroutine_function(function):
            return functools.wraps(function)(run_async)
        if _may_be_coroutine_function(function):
            return functools.wraps(function)(run_either)
        return functools.wraps(function)(run)

    return decorate
