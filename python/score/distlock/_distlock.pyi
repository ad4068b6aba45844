"""The extension module; its public names are described in ``__init__.pyi``."""

from typing import Any, final

from typing_extensions import Self

from . import ConfiguredDistlockModule as ConfiguredDistlockModule
from . import Lock as Lock
from . import __version__ as __version__
from . import init as init

def _schema(schema: str | None = None, role: str | None = None) -> str: ...
def _statements() -> tuple[str, str]: ...

@final
class _Inbox:
    def __new__(cls) -> Self: ...
    def fileno(self) -> int: ...
    def empty(self) -> list[tuple[int, bool, BaseException | None, Any]]: ...

@final
class _Acquisition:
    def step(self, inbox: _Inbox, number: int) -> None: ...
    def give_up(self) -> None: ...

__all__ = [
    "ConfiguredDistlockModule",
    "Lock",
    "_Acquisition",
    "_Inbox",
    "__version__",
    "_schema",
    "_statements",
    "init",
]
