"""A forked child closes its copies of the parent's connections.

While they are open, the server cannot notice that the parent has ended.
"""

from __future__ import annotations

import os

from ._distlock import _inherited


def _forget() -> None:
    descriptors = _inherited()
    if descriptors:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in descriptors:
            # The core still believes that they are its own, and will close them.
            os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)


def attend() -> None:
    """Registers this with the interpreter, to run after each fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)
