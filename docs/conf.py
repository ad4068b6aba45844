"""Sphinx's settings."""

from __future__ import annotations

import score.distlock

project = "score.distlock"
author = "the developers of score.distlock"
release = version = score.distlock.__version__

extensions = ["sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"score.distlock {version}"

# Other projects' objects, which are not looked up over the network.
nitpick_ignore = [
    ("py:class", name)
    for name in (
        "str",
        "bytes",
        "float",
        "int",
        "bool",
        "None",
        "datetime.timedelta",
        "timedelta",
        "Exception",
        "ConnectionError",
        "score.distlock.Lock",
        "AsyncGuard",
        "dict",
        "collections.abc.Callable",
        "collections.abc.Iterable",
    )
] + [
    ("py:exc", name)
    for name in (
        "TypeError",
        "ValueError",
        "ImportError",
        "RuntimeError",
        "score.init.ConfigurationError",
    )
]
