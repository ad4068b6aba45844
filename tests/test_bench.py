"""The benchmark still fits the statements it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .conftest import PROJECT


def test_the_benchmark_measures(tmp_path: Path) -> None:
    """Ours and pgbench, for a moment; the other contenders are not there."""
    (tmp_path / "ours").symlink_to(sys.prefix)
    limits = {"PARTS": "contest", "ROUNDS": "1", "SECONDS": "1", "OUTPUT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(PROJECT / "bench" / "run.py"), str(tmp_path)],
        env={**os.environ, **{f"BENCH_{name}": value for name, value in limits.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modes = json.loads((tmp_path / "benchmarks.json").read_text())["contest"]["modes"]
    assert modes
    for mode, row in modes.items():
        assert {"pgbench", "score.distlock"} <= row.keys(), f"{mode}\n{done.stderr}"
