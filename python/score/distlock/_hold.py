"""Checks the options of :meth:`Lock.hold`."""

from __future__ import annotations

from typing import Any

from ._config import timeout


def lease(maxtime: object) -> float | None:
    """The lease of a hold, in seconds, from what a caller gave as ``maxtime``."""
    return timeout(maxtime, "maxtime")


def callback(on_lost: Any) -> Any:
    """Checks what is to be called when a hold is lost."""
    if on_lost is None or callable(on_lost):
        return on_lost
    raise TypeError(f"on_lost must be callable, not {type(on_lost).__name__}")
