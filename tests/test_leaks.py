"""Thousands of calls to the whole API, good and bad, leak nothing.

`make leaks` makes a million of them.
"""

from __future__ import annotations

import contextlib
import gc
import time
import weakref
from collections import Counter
from types import BuiltinFunctionType
from typing import Any

from .support.calls import Calls
from .support.server import Server

CALLS = 2000


def types() -> Counter[str]:
    """The number of objects of each class, without those that `isinstance` keeps.

    An abstract base class remembers each class it was asked about, in a weak reference with a
    built-in function as its callback: which ones depends on the tests that ran before.
    """
    gc.collect()
    return Counter(
        str(type(found))
        for found in gc.get_objects()
        if type(found) is not weakref.ref
        and not (type(found) is BuiltinFunctionType and found.__name__ == "_destroy")
    )


def test_calls_leave_nothing(server: Server, server_url: str) -> None:
    def sample() -> dict[str, int]:
        """What is in use once everything is closed."""
        calls.conf.close()
        found = calls.sample()
        return {key: found[key] for key in ("descriptors", "threads", "sessions")}

    with contextlib.closing(Calls(server_url)) as calls:
        calls.warm_up()
        before, objects = sample(), types()
        calls.until(CALLS)
        grown: Any = True
        # The threads of dropped configurations end by themselves.
        while grown:
            after = sample()
            grown = {key: (before[key], after[key]) for key in before if after[key] > before[key]}
            time.sleep(0.01)
        # A leak in each round would be larger.
        found = types() - objects
    assert {kind: n for kind, n in found.items() if n > 40} == {}
