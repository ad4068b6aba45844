"""Functions that run under a lock: :meth:`ConfiguredDistlockModule.locked`."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._hold import callback, lease

if TYPE_CHECKING:
    from . import ConfiguredDistlockModule


def _fields(name: str) -> set[str]:
    """The arguments that a name with fields needs: ``order`` for ``'{order.id}'``."""
    found = set()
    for _, field, _, _ in string.Formatter().parse(name):
        if field is None:
            continue
        argument = field.partition(".")[0].partition("[")[0]
        if not argument or argument.isdigit():
            raise ValueError(
                f"the name {name!r} has a field without a name; "
                "name the argument it stands for, as in 'order-{order_id}'"
            )
        found.add(argument)
    return found


def _check(name: str, signature: inspect.Signature) -> None:
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    for field in sorted(_fields(name)):
        if field not in signature.parameters:
            raise ValueError(
                f"the name {name!r} has the field {field!r}, which is no argument of the "
                f"function; allowed are {', '.join(signature.parameters) or 'none'}"
            )


def _named(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> str:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments = {**arguments.get(parameter.name, {}), **arguments}
    return name.format(**arguments)


def locked(
    conf: ConfiguredDistlockModule,
    name: str,
    timeout: float | None,
    autoextend: bool,
    maxtime: object,
    on_lost: Any,
) -> Callable[[Any], Any]:
    """Makes the decorator."""
    if not isinstance(name, str):
        raise TypeError(
            f"the name of a lock must be a str, not {type(name).__name__}; "
            "write @conf.locked('name')"
        )
    fields = _fields(name)
    options = {
        "timeout": timeout,
        "autoextend": autoextend,
        "maxtime": lease(maxtime),
        "on_lost": callback(on_lost),
    }

    def decorate(function: Any) -> Any:
        if isinstance(function, (classmethod, staticmethod)):
            raise TypeError(f"put @{type(function).__name__} above @conf.locked, not below")
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"only functions can be locked, not {type(function).__name__}")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__qualname__} is a generator function, whose body runs after its call "
                "has returned; use `with conf.get(name)` inside it"
            )
        signature = inspect.signature(function)
        _check(name, signature)

        def the_name(args: Any, kwargs: Any) -> str:
            if not fields:
                return name.format()
            return _named(name, signature, args, kwargs)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                async with conf.aio.get(the_name(args, kwargs)).hold(**options):
                    return await function(*args, **kwargs)

        else:

            @functools.wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                with conf.get(the_name(args, kwargs)).hold(**options):
                    return function(*args, **kwargs)

        return run

    return decorate
