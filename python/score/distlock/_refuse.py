"""Complaints about what a user has configured or passed."""

from __future__ import annotations

import re
from typing import NoReturn

from score.init import ConfigurationError

_HALF = re.compile("[\ud800-\udfff]")

#: How much of a value a message shows.
_MOST = 100


def refuse(message: str) -> NoReturn:
    """Raises the exception for an unusable configuration."""
    raise ConfigurationError("score.distlock", message)


def bare(error: ConfigurationError) -> str:
    """The message without the module's name in front."""
    return str(error).removeprefix("[score.distlock] ")


def shown(value: object) -> str:
    """A value for a message, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than some thousand digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= _MOST else text[:_MOST] + "…"


def encodable(text: str, what: str) -> str:
    """Checks a text for use as a server parameter; it may be a secret."""
    if _HALF.search(text):
        refuse(f"{what} contains half of a surrogate pair, which UTF-8 cannot encode")
    return text
