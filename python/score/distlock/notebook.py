"""A token that is the result of a notebook's cell is not shown.

What a cell shows is saved with the notebook, and is the proof of a hold. A token has to stay a
plain :class:`str`, as score.distlock 0.2.5 had it, so not the token knows this but IPython.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any

__all__ = ("load_ipython_extension", "unload_ipython_extension")

#: What a token looks like, and hardly anything else.
_TOKEN = re.compile("[0-9a-f]{256}")


class _Printer:
    """How IPython shows a str, also one in a list or a dict."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(self, text: str, printer: Any, cycle: bool) -> None:
        if _TOKEN.fullmatch(text):
            printer.text("<token of a hold>")
        elif self.before is not None:
            self.before(text, printer, cycle)
        else:
            printer.text(repr(text))


def load_ipython_extension(shell: Any) -> None:
    """For ``%load_ext score.distlock.notebook``.

    Nobody needs that who imports score.distlock in a notebook: the import does it.
    """
    formatter = shell.display_formatter.formatters["text/plain"]
    before = formatter.type_printers.get(str)
    if not isinstance(before, _Printer):
        formatter.for_type(str, _Printer(before))


def unload_ipython_extension(shell: Any) -> None:
    """For ``%unload_ext score.distlock.notebook``: tokens are shown again."""
    formatter = shell.display_formatter.formatters["text/plain"]
    printer = formatter.type_printers.get(str)
    if isinstance(printer, _Printer):
        formatter.type_printers[str] = printer.before


def attend() -> None:
    """Does so if this is a notebook, or a terminal with IPython, by now."""
    ipython = sys.modules.get("IPython")
    current = getattr(ipython, "get_ipython", None)
    shell = current and current()
    if shell is not None:
        with contextlib.suppress(AttributeError, KeyError):  # it shows things in another way
            load_ipython_extension(shell)
