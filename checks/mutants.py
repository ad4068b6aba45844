"""Changes the product in many small ways, and checks whether the tests notice.

Usage: mutants.py [--jobs N] [--list] [PART ...]; PART selects mutants by a part of their name.

The SQL files are compiled into the extension module unchanged. A mutant of one is that
module with the file's bytes replaced, so nothing is rebuilt. The Python files are changed
in a copy too. `plan.py` names the tests to run for each file; it also lists what no test
can notice, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import score.distlock

PROJECT = Path(__file__).parent.parent
SQL = PROJECT / "src" / "store" / "sql"
PYTHON = PROJECT / "python" / "score"
MEMORY = Path("/dev/shm")
PACKAGE = Path(score.distlock.__file__).parent

sys.path.insert(0, str(PROJECT))
from checks.plan import EXCUSED, LIMIT, TESTS, TIMEOUT  # noqa: E402
from tests.support.server import Server  # noqa: E402


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: Path
    old: str
    new: str
    start: int
    number: int = 0  # which of several with the same text

    @property
    def name(self) -> str:
        """Its name, which does not depend on lines added elsewhere."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        which = f" ({self.number + 1})" if self.number else ""
        return f"{self.file.name}: {old}{which} -> {new or 'nothing'}"

    def text(self) -> str:
        """The whole file with the change."""
        text = self.file.read_text()
        assert text[self.start :].startswith(self.old)
        return text[: self.start] + self.new + text[self.start + len(self.old) :]


#: Changes to statements. If the pattern has two groups, the second is replaced.
SQL_RULES = [
    # Drop a condition.
    (r"^( +)(AND (?:[^()\n]|\([^()\n]*\)|\((?:[^()\n]|\([^()\n]*\))*\))+)$", ""),
    # Reverse a comparison.
    (r"()(\{=\})(?! ANY)", "{<>}"),
    (r"()(\{>\})", "{<=}"),
    (r"()(\{<\})", "{>=}"),
    (r"()(\{>=\})", "{<}"),
    (r"()(\{<=\})", "{>}"),
    (r"()(\{-\})", "{+}"),
    (r"()(\bgreatest\b)", "least"),
    (r"()(\bIS NOT TRUE\b)", "IS TRUE"),
    (r"()(\bIS NOT NULL\b)", "IS NULL"),
    (r"()(\bIS NULL\b)", "IS NOT NULL"),
    (r"()(\bNOT )(?=\{|pg|EXISTS)", ""),
    # Do not take a lock, or do not wait for it.
    (r"^( +)(FOR (?:NO KEY UPDATE|UPDATE|KEY SHARE)[A-Za-z ]*)$", ""),
    (r"()( SKIP LOCKED)", ""),
    (r"()(\{durable\})", "true"),
    (r"()(set_config\('synchronous_commit', 'off')", "set_config('synchronous_commit', 'on'"),
    (r"()('200ms')", "'0'"),
    (r"()(, true\) IS NOT NULL)", ", false) IS NOT NULL"),
    # Do not write a column.
    (r"^( +)((?:touched|updated|expires|lease|holder|acquired|token) = [^()\n]*(?:\(.*\))?,)$", ""),
    (r",\n( +)((?:lease|holder) = [a-zA-Z0-9$]+)(?=\n)", None),
    # The queue.
    (r"()(\[2:\])", ""),
    (r"()(waiters\[1\])", "waiters[2]"),
    (r"()(interval '1 second')", "interval '9 second'"),
    (r"()(interval '1 minute')", "interval '0 minute'"),
    (r"()(interval '0\.5 second')", "interval '5.0 second'"),
    (r"()(DISTINCT )", ""),
    (r"()( DESC)", ""),
]


def of_sql(file: Path) -> Iterator[Mutant]:
    """The mutants of a statement or fragment; comments are not mutated."""
    text = file.read_text()
    code = re.sub(r"^ *--.*$", lambda comment: " " * len(comment[0]), text, flags=re.MULTILINE)
    for pattern, new in SQL_RULES:
        for match in re.finditer(pattern, code, re.MULTILINE):
            if new is None:  # including the comma before it
                yield Mutant(file, match[0], "", match.start())
            else:
                yield Mutant(file, match[2], new, match.start(2))


OPPOSITE = {ast.Is: "is not", ast.IsNot: "is", ast.Eq: "!=", ast.NotEq: "=="}


class PythonMutants(ast.NodeVisitor):
    """The mutants of a module."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.text = file.read_text()
        self.lines = [0]
        for line in self.text.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.found: list[Mutant] = []
        self.visit(ast.parse(self.text))

    def add(self, node: ast.expr | ast.stmt | ast.keyword, new: str, after: str = "") -> None:
        """Replaces a node, and also what follows it, if that is `after`."""
        start = self.lines[node.lineno - 1] + node.col_offset
        end = self.lines[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        follows = re.compile(after).match(self.text, end)
        end = follows.end() if follows else end
        self.found.append(Mutant(self.file, self.text[start:end], new, start))

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return
        for value in ("True", "False"):
            self.add(node.test, value)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        for value in ("True", "False"):
            self.add(node.test, value)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for value in node.values:
            self.add(value, str(isinstance(node.op, ast.And)))
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, (ast.Call, ast.Await)):
            self.add(node, "pass")
        self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> None:
        for statement in node.body:
            if isinstance(statement, ast.Assign):  # i.e. keeps the previous value
                self.add(statement, "pass")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add(node, "pass")

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            self.add(keyword, "", after=r",? *")
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for value in node.values:
            if isinstance(value, (ast.Name, ast.Call)):
                self.add(value, "None")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        opposite = OPPOSITE.get(type(node.ops[0]))
        if opposite:
            left, right = (
                ast.get_source_segment(self.text, part) for part in (node.left, node.comparators[0])
            )
            self.add(node, f"{left} {opposite} {right}")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(node, str(not node.value))


def mutants() -> list[Mutant]:
    """All mutants, each with a unique name."""
    found: list[Mutant] = []
    for name in TESTS:
        if name.endswith(".sql"):
            found += of_sql(SQL / name)
        else:
            (file,) = PYTHON.rglob(name)
            found += PythonMutants(file).found
    seen: Counter[str] = Counter()
    numbered = []
    for mutant in sorted(found, key=lambda mutant: (mutant.file.name, mutant.start)):
        numbered.append(
            Mutant(mutant.file, mutant.old, mutant.new, mutant.start, seen[mutant.name])
        )
        seen[mutant.name] += 1
    return numbered


def overlay(mutant: Mutant, folder: Path) -> None:
    """Creates a copy of the package with the change in a folder of its own."""
    package = folder / "mutant" / "score" / "distlock"
    # `score` is a package in several folders, which a .pth file has already combined. The
    # environment of 0.2.5, which tests call, keeps its own.
    (folder / "sitecustomize.py").write_text(
        f"import sys\nif sys.prefix == {sys.prefix!r}:\n"
        f"    import score\n    score.__path__.insert(0, {str(package.parent)!r})\n"
    )
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant.file.suffix == ".py":
        (package.parent / mutant.file.relative_to(PYTHON)).write_text(mutant.text())
        return
    (module,) = package.glob("_distlock*.so")
    old, new = mutant.file.read_bytes(), mutant.text().encode()
    if len(new) > len(old):  # dropping comments and indentation makes room
        new = re.sub(rb"^ *--.*\n|^ +", b"", new, flags=re.MULTILINE)
    new = new.ljust(len(old))
    built = module.read_bytes()
    assert len(new) == len(old), f"{mutant.file.name} is too short"
    assert built.count(old) == 1, f"{mutant.file.name} is not what was built"
    module.write_bytes(built.replace(old, new))


@dataclass(frozen=True)
class Verdict:
    """Which test noticed a mutant, if any did, and after how many seconds."""

    mutant: Mutant
    caught_by: str | None
    seconds: float


def judge(mutant: Mutant, url: str, caches: Path) -> Verdict:
    """Runs the tests of a mutant until one fails, first the one that noticed its neighbour."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="distlock-mutant-") as folder:
        overlay(mutant, Path(folder))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--failed-first"]
        command += ["-o", f"cache_dir={caches / mutant.file.name}"]
        command += ["--timeout", str(TIMEOUT), "--tb", "no"]
        tests = [f"tests/{test}" for test in TESTS[mutant.file.name]]
        environment = {**os.environ, "PYTHONPATH": folder, "DISTLOCK_TEST_URL": url}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        loads = [sys.executable, "-c", "import score.distlock as d; print(d.__file__)"]
        loaded = subprocess.run(loads, env=environment, capture_output=True, text=True, check=False)
        if loaded.returncode:
            return Verdict(mutant, "its import", time.monotonic() - start)
        assert loaded.stdout.startswith(folder), f"it is not what the tests load: {loaded.stdout}"
        process = subprocess.Popen(
            [*command, *tests],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            output = ""
        with contextlib.suppress(ProcessLookupError):  # processes its tests left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", output, re.MULTILINE)
    caught = found[1] if found else None
    # If something else killed the process, or its time limit did, no test noticed the mutant.
    if -process.returncode in (signal.SIGSEGV, signal.SIGABRT):
        caught = "a crash"
    elif process.returncode and not caught:
        print(f"{mutant.name}: no verdict, exit code {process.returncode}", flush=True)
    return Verdict(mutant, caught, time.monotonic() - start)


def main() -> int:
    """Judges the selected mutants; the exit code counts unexplained survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("parts", nargs="*")
    options = parser.parse_args()
    every = mutants()
    for name in set(EXCUSED) - {mutant.name for mutant in every}:
        sys.exit(f"plan.py excuses a mutant that does not exist: {name}")
    parts = options.parts
    chosen = [
        mutant
        for mutant in every
        if (not parts or any(part in mutant.name for part in parts))
        and (mutant.name not in EXCUSED or parts)
    ]
    chosen = chosen[:: options.every]
    if options.list:
        print(*(mutant.name for mutant in chosen), sep="\n")
        return 0
    # Each test creates its own database, which is ten times as fast in memory.
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**32
    server = Server(parent=str(MEMORY) if roomy else None)
    survivors = []
    caches = Path(tempfile.mkdtemp(prefix="distlock-mutants-"))
    judged = functools.partial(judge, url=server.url(), caches=caches)
    try:
        # The tests must pass without a change, or failures would mean nothing.
        for file in {tuple(TESTS[mutant.file.name]): mutant.file for mutant in chosen}.values():
            unchanged = judged(Mutant(file, "", "", 0))
            if unchanged.caught_by:
                sys.exit(f"it fails without any change: {unchanged.caught_by}")
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for verdict in pool.map(judged, chosen):
                what = f"caught by {verdict.caught_by}" if verdict.caught_by else "SURVIVES"
                print(f"{verdict.mutant.name}: {what}, {verdict.seconds:.0f} s", flush=True)
                if not verdict.caught_by:
                    survivors.append(verdict.mutant.name)
    finally:
        server.destroy()
        shutil.rmtree(caches)
    print(f"== {len(chosen)} mutants, {len(survivors)} survive, {len(EXCUSED)} excused")
    print(*survivors, sep="\n")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
