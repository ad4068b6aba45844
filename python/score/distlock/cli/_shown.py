"""Shows holds: to people as a table, to programs as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from score.distlock import HoldInfo

_COLUMNS = ("NAME", "HOLDER", "HELD FOR", "LEFT", "WAITING", "FENCE", "NOTE")
#: The maximum width of a table's column. JSON is never cut.
_LONGEST = 200
_RIGHT = ("HELD FOR", "LEFT", "WAITING", "FENCE")


def printable(text: str) -> str:
    """Removes what would move a terminal's cursor or change its colours."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def shortened(text: str) -> str:
    """Printable, and short enough to read: a name may have thousands of characters."""
    text = printable(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def duration(seconds: float) -> str:
    """The two largest units, such as ``1 h 5 min``."""
    sign, left = "-" if seconds < 0 else "", abs(seconds)
    if left < 60:
        return f"{sign}{left:.1f} s" if left < 10 else f"{sign}{int(left)} s"
    found: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(int(left), size)
        if count or found:
            found.append(f"{count} {unit}")
    return sign + " ".join(part for part in found[:2] if not part.startswith("0 "))


def console() -> Console:
    """For standard output; unlimited in width if that is not a terminal."""
    return Console(width=None if is_terminal() else 1_000_000, soft_wrap=False)


def is_terminal() -> bool:
    """Whether standard output is a terminal; it may also be closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def cells(info: HoldInfo) -> Sequence[str]:
    """The cells of a table's row."""
    now = datetime.now(timezone.utc)
    where = (info.host, info.pid, info.thread)
    return (
        shortened(info.name),
        shortened("/".join(str(part) for part in where if part is not None)) or "?",
        duration((now - info.acquired).total_seconds()),
        duration((info.expires - now).total_seconds()),
        str(info.waiters or ""),
        "" if info.fence is None else str(info.fence),
        shortened(info.note or ""),
    )


def table(holds: Sequence[HoldInfo]) -> Table:
    """A table of all holds, by name."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in _COLUMNS:
        right = title in _RIGHT
        shown.add_column(title, justify="right" if right else "left", no_wrap=True)
    for info in sorted(holds, key=lambda info: info.name):
        # As Text: names are not markup.
        shown.add_row(*(Text(cell) for cell in cells(info)))
    return shown


def record(info: HoldInfo) -> dict[str, Any]:
    """The JSON record of a hold."""
    return {
        key: value.isoformat() if isinstance(value, datetime) else value
        for key, value in dataclasses.asdict(info).items()
    }


def as_json(value: object) -> str:
    """JSON for programs, and still readable."""
    return json.dumps(value, indent=2, ensure_ascii=True)
