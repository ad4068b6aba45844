"""Installs wheels and a source distribution as users do, and takes a lock with each.

Usage: wheels.py FILE…. Wheels for another processor or C library are only listed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

SMOKE = """
import score.distlock, sys
with score.distlock.connect("embedded:") as conf, conf.get("smoke") as lock:
    print("  works:", score.distlock.__version__, "on", sys.version.split()[0], "fence", lock.fence)
"""


def fits(file: Path) -> bool:
    """Whether this interpreter can install the file."""
    if file.suffix != ".whl":
        return True
    tags = parse_wheel_filename(file.name)[3]
    return not tags.isdisjoint(sys_tags())


def try_out(file: Path) -> None:
    """Installs the file and its dependencies in a new environment, and uses it."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, f"{file.resolve()}[embedded]"], check=True)
        # In another folder: the package in the working directory is not the installed one.
        subprocess.run([python, "-c", SMOKE], check=True, cwd=folder)


def main(files: list[Path]) -> int:
    if not any(fits(file) for file in files):
        print("none of them can be installed here")
        return 1
    for file in files:
        print(file.name, "" if fits(file) else "  is for another machine, and was not tried")
        if fits(file):
            try_out(file)
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(file) for file in sys.argv[1:]]))
