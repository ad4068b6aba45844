"""Draws the benchmarks. Usage: plot.py benchmarks.json FOLDER.

Writes benchmarks-light.svg and benchmarks-dark.svg, which differ only in their colours.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

TITLES = {
    "cycle": "acquire + release, 1 thread",
    "threads": "acquire + release, 8 threads",
    "processes": "acquire + release, 8 processes",
    "refuse": "refused attempts",
}

#: Text and axes; this module, pgbench, locks that are not durable, and the others.
COLOURS = {
    "light": ("black", "tab:orange", "tab:gray", "lightsteelblue", "tab:blue"),
    "dark": ("#cfd0d0", "tab:orange", "tab:gray", "#3d5573", "#5b9bd5"),
}


def draw(modes, scheme, target):
    """Draws the four modes in the colours of one scheme."""
    text, ours, pgbench, volatile, other = COLOURS[scheme]
    for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
        plt.rcParams[key] = text
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
            ours
            if name == "score.distlock"
            else pgbench
            if name == "pgbench"
            else volatile
            if "not durable" in name
            else other
            for name in names
        ]
        axis.barh(names, medians, xerr=errors, color=colours, ecolor=text)
        axis.set_title(title)
        axis.set_xlabel("per second")
        axis.xaxis.set_major_locator(MaxNLocator(5))
    figure.savefig(target, metadata={"Date": None}, transparent=True)


source, folder = sys.argv[1:]
plt.rcParams["svg.hashsalt"] = "score.distlock"
contest = json.loads(Path(source).read_text())["contest"]["modes"]
for name in COLOURS:
    draw(contest, name, Path(folder) / f"benchmarks-{name}.svg")
