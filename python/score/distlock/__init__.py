"""Named, reentrant mutexes that hold across processes and servers, in PostgreSQL.

>>> with conf.get('mylock') as lock:        # doctest: +SKIP
...     do_part_of_something()
...     lock.extend()
...     do_more_things()
"""

import atexit
import sys

from . import _fork, notebook
from ._configured_later import locked
from ._connect import connect, from_django
from ._distlock import (
    ConfiguredDistlockModule,
    Hold,
    Lock,
    Lost,
    __version__,
    _finalizing,
    init,
)
from ._errors import (
    CouldNotAcquireLock,
    DatabaseError,
    DatabaseUnavailable,
    DistlockError,
    LockExpired,
)
from ._insight import HoldInfo

if sys.version_info < (3, 14):
    # atexit runs handlers in reverse order of registration.
    atexit.register(_finalizing)
_fork.attend()
notebook.attend()

__all__ = (
    "ConfiguredDistlockModule",
    "CouldNotAcquireLock",
    "DatabaseError",
    "DatabaseUnavailable",
    "DistlockError",
    "Hold",
    "HoldInfo",
    "Lock",
    "LockExpired",
    "Lost",
    "__version__",
    "connect",
    "from_django",
    "init",
    "locked",
)
