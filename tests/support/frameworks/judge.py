"""Notices if two are inside at once, in any processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

MARK = os.environ["JUDGE"]


@contextlib.contextmanager
def alone(order: int) -> Iterator[None]:
    """Raises FileExistsError if another one is inside with the same order."""
    mark = f"{MARK} {order}"
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    try:
        yield
    finally:
        Path(mark).unlink()
