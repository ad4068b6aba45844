"""Functions that run under a lock of a module configured later."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ._distlock import ConfiguredDistlockModule

if TYPE_CHECKING:
    _Time = float | str | timedelta | None
    _Function = TypeVar("_Function", bound=Callable[..., Any])


def locked(
    name: str,
    *,
    conf: Callable[[], ConfiguredDistlockModule],
    timeout: _Time = "default",
    autoextend: bool | None = None,
    maxtime: _Time = None,
    on_lost: Callable[[Any], object] | None = None,
    on_expiring: Callable[[Any, float], object] | None = None,
    warn_before: _Time = None,
) -> Callable[[_Function], _Function]:
    """Decorates a function whose module is configured later, as by an application factory.

    .. code-block:: python

        @score.distlock.locked('order-{order_id}', conf=lambda: current_app.extensions['locks'])
        def ship(order_id): ...

    The other parameters are those of :meth:`ConfiguredDistlockModule.locked`.

    :param conf: a function without parameters that returns the configuration. It is called
        at each call of the decorated function.
    :raises TypeError: if `conf` is not a function; or, when the decorated function is called, if
        `conf` returns something else.
    """
    if not callable(conf):
        raise TypeError(
            f"conf must be a function that returns the configuration, not "
            f"{type(conf).__name__}; if there is a module already, write @conf.locked('name')"
        )

    def find() -> ConfiguredDistlockModule:
        found = conf()
        if not isinstance(found, ConfiguredDistlockModule):
            raise TypeError(
                f"conf must return a ConfiguredDistlockModule, not {type(found).__name__}"
            )
        return found

    # Imported here: programs that decorate nothing do not need them.
    from ._config import timeout as time
    from ._locked import locked

    wait = "default" if timeout == "default" else time(timeout)
    return locked(find, name, wait, autoextend, maxtime, on_lost, on_expiring, warn_before)
