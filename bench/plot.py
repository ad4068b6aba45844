"""Draws the benchmarks. Usage: plot.py benchmarks.json benchmarks.svg."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

TITLES = {
    "cycle": "acquire + release, 1 thread",
    "threads": "acquire + release, 8 threads",
    "processes": "acquire + release, 8 processes",
    "refuse": "refused attempts",
}

source, target = sys.argv[1:]
modes = json.loads(Path(source).read_text())["contest"]["modes"]
plt.rcParams["svg.hashsalt"] = "score.distlock"
figure, axes = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
for axis, (mode, title) in zip(axes.flat, TITLES.items(), strict=True):
    row = modes[mode]
    names = sorted(row, key=lambda name: row[name]["median"])
    medians = [row[name]["median"] for name in names]
    errors = [
        [row[name]["median"] - row[name]["least"] for name in names],
        [row[name]["most"] - row[name]["median"] for name in names],
    ]
    colours = [
        "tab:orange"
        if name == "score.distlock"
        else "tab:gray"
        if name == "pgbench"
        else "lightsteelblue"
        if "not durable" in name
        else "tab:blue"
        for name in names
    ]
    axis.barh(names, medians, xerr=errors, color=colours)
    axis.set_title(title)
    axis.set_xlabel("a second")
figure.savefig(target, metadata={"Date": None})
