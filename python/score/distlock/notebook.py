"""Hides a token that is the result of a notebook's cell.

A notebook saves what its cells show, and a token is the proof of a hold. A token has to stay a
plain :class:`str`, as in score.distlock 0.2.5, so IPython has to hide it.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any

__all__ = ("load_ipython_extension", "unload_ipython_extension")

#: Matches tokens, and hardly anything else.
_TOKEN = re.compile("[0-9a-f]{256}")


class _Printer:
    """Prints a str for IPython, including one inside a list or a dict."""

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

    Importing score.distlock in a notebook does this by itself.
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
    """Loads the extension if IPython, in a notebook or a terminal, is already running."""
    ipython = sys.modules.get("IPython")
    current = getattr(ipython, "get_ipython", None)
    shell = current and current()
    if shell is not None:
        with contextlib.suppress(AttributeError, KeyError):  # this shell shows results differently
            load_ipython_extension(shell)
