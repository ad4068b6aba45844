"""The extension module; its public names are described in ``__init__.pyi``."""

from . import ConfiguredDistlockModule as ConfiguredDistlockModule
from . import Lock as Lock
from . import __version__ as __version__
from . import init as init

def _schema(schema: str | None = None, role: str | None = None) -> str: ...

__all__ = ["ConfiguredDistlockModule", "Lock", "__version__", "_schema", "init"]
