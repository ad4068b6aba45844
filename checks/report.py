"""Writes docs/proof.txt from the results of the checks in docs/proof/*.json.

Usage: report.py FOLDER OUTPUT. `make proof` runs the checks first.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from checks.chaos.__main__ import by_kind

Data = dict[str, Any]
Cell = str | int | float

#: The counts of a round that the table shows.
WORKLOADS = ("plain", "fenced", "guarded")


def cell(value: Cell) -> str:
    """A number as people read it."""
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else value


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[Cell]]) -> str:
    """A list table."""
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        for number, value in enumerate(row):
            lines.append(f"   {'* -' if number == 0 else '  -'} {cell(value)}")
    return "\n".join(lines) + "\n"


def versions(data: Data) -> str:
    """What was tested, and where."""
    return ", ".join(f"{name} {value}" for name, value in data["versions"].items())


def chaos(data: Data) -> str:
    """Load, faults and violations of one run."""
    rounds = data["rounds"]
    faults: Counter[str] = Counter()
    rows: list[list[Cell]] = []
    for way in dict.fromkeys(one["way"] for one in rounds):
        of = [one for one in rounds if one["way"] == way]
        counts: Counter[str] = Counter()
        for one in of:
            counts.update(one["counts"])
            faults.update(one["faults"])
        rows.append(
            [
                way,
                len(of),
                counts["holds"],
                counts["waits"],
                *(counts[f"writes: {kind}"] for kind in WORKLOADS),
                sum(sum(one["faults"].values()) for one in of),
                sum(one["harm"] for one in of),
                sum(count for one in of for count, _ in one["violations"]),
            ]
        )
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    minutes = sum(one["seconds"] for one in rounds) / 60
    head = [
        "way to the server",
        "rounds",
        "holds",
        "waits",
        *(f"{kind} writes" for kind in WORKLOADS),
        "faults",
        "harm",
        "violations",
    ]
    text = [
        f"{minutes:.0f} minutes, seed ``{data['seed']}``; {versions(data)}.\n",
        table("Load and violations", head, rows),
        table("Faults", ["fault", "how often"], sorted(faults.items())),
    ]
    for way, why in data["skipped"].items():
        text.append(f"Not tried, {way}: {why}.\n")
    return "\n".join(text)


def violations(data: Data) -> str:
    """The violations, by kind."""
    found: dict[str, list[Any]] = {}
    for round_ in data["rounds"]:
        for count, first in round_["violations"]:
            (kind,) = by_kind([first])
            found.setdefault(kind, [0, first])[0] += count
    if not found:
        return "No violation.\n"
    several = sorted(found.values(), key=itemgetter(0), reverse=True)
    # On one line; a trailing backslash or quote would spoil the markup.
    rows: list[list[Cell]] = [
        [count, f"``{' '.join(first.split())[:160].rstrip()}…``"] for count, first in several
    ]
    return table("Violations", ["how many", "the first of them"], rows)


def selftest(data: Data) -> str:
    """Which mutants were detected, and how soon."""
    rows = [
        [
            one["name"],
            one["seconds"],
            f"``{one['found'][:120]}``" if one["found"] else "**nothing**",
        ]
        for one in data["mutants"]
    ]
    return table("Broken versions", ["what is wrong", "seconds", "the first violation"], rows)


def model(data: Data) -> str:
    """The state space."""
    rows = [
        [
            run["name"],
            run["purpose"],
            run["states"],
            run.get("transitions", ""),
            run["seconds"],
            ", ".join(run["violated"]) or "nothing",
        ]
        for run in data["runs"]
    ]
    head = ["run", "kind", "states", "transitions", "seconds", "violated"]
    return table("Explored states", head, rows)


def leaks(data: Data) -> str:
    """The resources a million calls use."""
    samples = data["samples"]
    first, last = samples[1], samples[-1]
    rows = [[key, first[key], last[key]] for key in last]
    return table("What is in use", ["", "after the first tenth", "at the end"], rows)


#: The parts: the file, the title, and the function that shows it.
PARTS = [
    ("chaos", "All faults mixed", [chaos, violations]),
    ("old", "The same for 0.2.5", [chaos, violations]),
    ("selftest", "Whether the checker finds what is wrong", [selftest]),
    ("model", "The model", [model]),
    ("leaks", "A million calls", [leaks]),
]


def main(folder: Path, output: Path) -> None:
    """Writes the report; names the checks that were not run."""
    text = []
    for name, title, parts in PARTS:
        file = folder / f"{name}.json"
        if not file.exists():
            text.append(f"{title}: not run.\n")
            continue
        data = json.loads(file.read_text())
        text += [f"{title}\n{'-' * len(title)}\n", *(part(data) for part in parts)]
    output.write_text("\n".join(text))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
