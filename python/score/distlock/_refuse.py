"""Complaints about what somebody has configured or passed."""

from __future__ import annotations

import re
from typing import NoReturn

from score.init import ConfigurationError

_HALF = re.compile("[\ud800-\udfff]")

#: How much of a value a message shows.
_MOST = 100


def refuse(message: str) -> NoReturn:
    """Raises the exception for a configuration that cannot be used."""
    raise ConfigurationError("score.distlock", message)


def bare(error: ConfigurationError) -> str:
    """What is wrong, without the name of the module before it."""
    return str(error).removeprefix("[score.distlock] ")


def shown(value: object) -> str:
    """A value for a message, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than some thousand digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= _MOST else text[:_MOST] + "…"


def encodable(text: str, what: str) -> str:
    """The text, which is to be a parameter of the server's and may be a secret."""
    if _HALF.search(text):
        refuse(f"{what} contains half of a surrogate pair, which UTF-8 cannot encode")
    return text
