"""The crontab and the script of docs/how-to/cron.rst run as cron would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import score.distlock

from .conftest import PROJECT

EXAMPLES = PROJECT / "docs" / "examples"
Conf = score.distlock.ConfiguredDistlockModule


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The folder that the examples call /srv/shop."""
    pytest.importorskip("click")
    for name in ("import.py", "export.py"):
        (tmp_path / name).write_text(
            f"#!{sys.executable}\nimport sys\nprint('did', sys.argv[1:])\n"
        )
    script = here((EXAMPLES / "hourly-export").read_text(), tmp_path)
    (tmp_path / "hourly-export").write_text(script)
    for file in tmp_path.iterdir():
        file.chmod(0o755)
    return tmp_path


def here(text: str, shop: Path) -> str:
    scripts = Path(sys.executable).parent
    text = text.replace("/opt/shop/venv/bin/", f"{scripts}/").replace("/srv/shop/", f"{shop}/")
    return text.replace("--at-least 1m", "--at-least 0s")


def cron(line: str, shop: Path, url: str) -> subprocess.CompletedProcess[str]:
    """Executes the command of the crontab line that contains `line`, with cron's environment."""
    lines = (EXAMPLES / "crontab_url").read_text().splitlines()
    (assigned,) = (text for text in lines if text.startswith("DISTLOCK_URL="))
    assert re.fullmatch(r"DISTLOCK_URL=postgresql://\S+", assigned)
    (job,) = (text for text in lines if line in text and not text.startswith("#"))
    *_, command = job.split(maxsplit=5)
    assert command.startswith("/")
    return subprocess.run(
        ["/bin/sh", "-c", here(command, shop)],
        env={"HOME": str(shop), "PATH": "/usr/bin:/bin", "DISTLOCK_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_line_with_a_url(shop: Path, url: str, conf: Conf) -> None:
    ended = cron("nightly-import", shop, url)
    assert (ended.returncode, ended.stdout) == (0, "did ['--all']\n"), ended.stderr
    conf.acquire("nightly-import")
    ended = cron("nightly-import", shop, url)
    assert (ended.returncode, ended.stdout) == (75, "")
    assert len(ended.stderr.splitlines()) == 1


def test_the_line_for_the_journal_keeps_the_exit_status(shop: Path, url: str, conf: Conf) -> None:
    (job,) = (
        text for text in (EXAMPLES / "crontab").read_text().splitlines() if text.startswith("0 ")
    )
    *_, user, command = job.split(maxsplit=6)
    assert user == "app"
    # Like systemd's, it becomes the command.
    journal = shop / "systemd-cat"
    journal.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    journal.chmod(0o755)
    conf.acquire("nightly-import")
    ended = subprocess.run(
        ["/bin/sh", "-c", here(command, shop)],
        env={"HOME": str(shop), "PATH": f"{shop}:/usr/bin:/bin", "DISTLOCK_URL": url},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 75


def test_the_script_that_silences_a_refusal(shop: Path, url: str, conf: Conf) -> None:
    ended = cron("hourly-export", shop, url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "did []\n", "")
    token = conf.acquire("hourly-export")
    ended = cron("hourly-export", shop, url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    conf.release("hourly-export", token)
    # Errors are reported.
    ended = cron("hourly-export", shop, url.replace("/distlock_", "/none_"))
    assert ended.returncode == 69
    assert "none_" in ended.stdout
    (shop / "export.py").write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    ended = cron("hourly-export", shop, url)
    assert (ended.returncode, ended.stdout) == (3, "broken\n")
