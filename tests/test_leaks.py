"""Thousands of calls of the whole API, good and bad, use nothing up.

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
    """How many objects of each class there are, without what `isinstance` keeps.

    An abstract base class remembers each class that it was asked about, by a weak reference with
    a built-in function as its callback: that depends on which tests ran before.
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
        """What there is when all is closed."""
        calls.conf.close()
        found = calls.sample()
        return {key: found[key] for key in ("descriptors", "threads", "sessions")}

    with contextlib.closing(Calls(server_url)) as calls:
        calls.warm_up()
        before, objects = sample(), types()
        calls.until(CALLS)
        grown: Any = True
        # Configurations that were dropped have threads that end by themselves.
        while grown:
            after = sample()
            grown = {key: (before[key], after[key]) for key in before if after[key] > before[key]}
            time.sleep(0.01)
        # What each round leaves would be more.
        found = types() - objects
    assert {kind: n for kind, n in found.items() if n > 40} == {}
