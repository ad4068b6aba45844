"""Runs the core tests with each Python and each PostgreSQL on this machine.

Usage: matrix.py WHEEL. One wheel fits every CPython.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))
from tests.support.server import EMBEDDED  # noqa: E402

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
SERVERS = ["15", "16", "17", "18"]
CORE = "acquire_all aio autoextend clock drop_in durability errors fence guard locked owners"
CORE += " events_thread interpreter_end reentrancy schema small_ones taken_again transfer waiting"


def says(program: str | Path, *arguments: str) -> str:
    """What a program prints, or nothing if it is missing or fails."""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def interpreter(version: str) -> Path | None:
    """A CPython of this version that can create environments."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [folder / "bin" / f"python{version}" for folder in sorted(pyenv.glob(f"{version}.*"))]
    for python in [*found, Path(shutil.which(f"python{version}") or "nowhere")]:
        if "CPython" in says(
            python, "-c", "import ensurepip, platform as p; print(p.python_implementation())"
        ):
            return python
    return None


def programs() -> Iterator[Path]:
    """The folders that may hold a PostgreSQL."""
    yield from EMBEDDED.glob("pginstall*/bin")
    yield from Path("/usr/lib/postgresql").glob("*/bin")
    if shutil.which("postgres"):
        yield Path(shutil.which("postgres") or "").parent


def server(version: str) -> Path | None:
    """The folder with the programs of a PostgreSQL of this version."""
    for folder in programs():
        if re.search(rf"\b{version}\.", says(folder / "postgres", "--version")):
            return folder
    return None


def environment(python: Path, version: str, wheel: str) -> Path:
    """An environment with the wheel and its tests' requirements; returns its Python."""
    made = PROJECT / "build" / "matrix" / version
    if not (made / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", "--clear", made], check=True)
    own = made / "bin" / "python"
    install: list[str | Path] = [
        own,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--quiet",
        "install",
    ]
    requirements = PROJECT / "requirements" / "tests.txt"
    subprocess.run([*install, "-r", requirements, f"{wheel}[sqlalchemy,embedded,cli]"], check=True)
    subprocess.run([*install, "--force-reinstall", "--no-deps", wheel], check=True)
    return own


def passes(python: str | Path, **variables: str) -> str:
    """Runs the tests; returns what to report."""
    tests = [f"tests/test_{name}.py" for name in CORE.split()]
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *tests],
        cwd=PROJECT,
        env={**os.environ, **variables},
        check=False,
    )
    return "failed" if done.returncode else "passed"


def main(wheel: str) -> int:
    """Prints a line for each version; the exit code tells whether all passed."""
    report = {}
    for version in PYTHONS:
        name = f"Python {version}"
        print(f"== {name}", flush=True)
        python = interpreter(version)
        if python is None:
            report[name] = "skipped: not on this machine"
            continue
        report[name] = passes(environment(python, version, wheel))
    for version in SERVERS:
        name = f"PostgreSQL {version}"
        print(f"== {name}", flush=True)
        folder = server(version)
        if folder is None:
            report[name] = "skipped: not on this machine"
            continue
        report[name] = passes(sys.executable, DISTLOCK_TEST_POSTGRESQL=str(folder))
    print("== the matrix")
    for name, result in report.items():
        print(f"{name}: {result}")
    return "failed" in report.values()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
