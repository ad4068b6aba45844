"""Checks the options of :meth:`Lock.hold`."""

from __future__ import annotations

from typing import Any

from ._config import timeout
from ._refuse import shown

#: How many characters of a note everybody can be shown.
_MOST = 200


def lease(maxtime: object) -> float | None:
    """The lease of a hold, in seconds, from what a caller gave as ``maxtime``."""
    return timeout(maxtime, "maxtime")


def callback(on_lost: Any) -> Any:
    """Checks what is to be called when a hold is lost."""
    if on_lost is None or callable(on_lost):
        return on_lost
    raise TypeError(f"on_lost must be callable, not {type(on_lost).__name__}")


def note(text: object) -> str | None:
    """Checks what a hold is said to be for: it is shown on terminals, and written each time."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"note must be a str, not {type(text).__name__}")
    text = str.__str__(text)
    if len(text) > _MOST or not text.isprintable():
        raise ValueError(
            f"note must be a line of at most {_MOST} printable characters, not {shown(text)}"
        )
    return text or None
