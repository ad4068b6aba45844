"""Each file depends only on lower layers, and no two files depend on each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
RUST = PROJECT / "src"
PYTHON = PROJECT / "python" / "score" / "distlock"

#: As in `src/lib.rs`, from the top; every layer may use the rest.
LAYERS = ["python", "service", "store", "error", "engine"]

Graph = dict[str, set[str]]


def circle(graph: Graph) -> list[str]:
    """A cycle of dependencies, if there is one."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := walk(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def code(file: Path) -> str:
    """The code of a Rust file without comments and inline tests."""
    text = re.sub(r"//[^\n]*", "", file.read_text())
    return re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", text)[0]


def is_test(file: Path) -> bool:
    """Whether the file is compiled only for tests."""
    names = ("tests", "promises", "memory", "interleavings", "simulated")
    return any(part in names for part in file.with_suffix("").relative_to(RUST).parts)


def module(file: Path) -> tuple[str, ...]:
    """The path of a Rust file's module."""
    parts = file.relative_to(RUST).with_suffix("").parts
    return parts[:-1] if parts[-1] in ("mod", "lib") else parts


def names(tree: str, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths in the tree of a `use`."""
    depth, start, parts = 0, 0, []
    for at, letter in enumerate(tree):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append(tree[start:at])
            start = at + 1
    for part in (part.strip() for part in [*parts, tree[start:]]):
        path, brace, inner = part.partition("{")
        steps = tuple(step for step in path.split(" as ")[0].strip().split("::") if step)
        if brace:
            yield from names(inner[: inner.rindex("}")], prefix + steps)
        elif steps:
            yield prefix + steps


FILES = {module(file): file for file in RUST.rglob("*.rs") if "parking_lot" not in file.parts}
#: Names that a module re-exports from within: `pub use lock::Lock;` in `service/mod.rs`.
EXPORTS = {
    (*parent, path[-1]): (*parent, *path[:-1])
    for parent, file in FILES.items()
    for tree in re.findall(r"(?m)^pub(?:\([^)]*\))? use ([^;]+);", code(file))
    for path in names(tree)
    if (*parent, path[0]) in FILES
}


def resolved(path: tuple[str, ...]) -> tuple[str, ...]:
    """The module that defines a path."""
    for length in range(len(path), 0, -1):
        # A function may have its module's name.
        if path[:length] in FILES:
            return path[:length]
        if path[:length] in EXPORTS:
            return resolved(EXPORTS[path[:length]])
    return ()


def needed(file: Path) -> Iterator[tuple[str, ...]]:
    """The modules of ours that a Rust file names."""
    text, here = code(file), module(file)
    paths = [path for tree in re.findall(r"(?m)^\s*use ([^;]+);", text) for path in names(tree)]
    paths += [tuple(path.split("::")) for path in re.findall(r"\b(?:crate|super)(?:::\w+)+", text)]
    for path in paths:
        ups = sum(step == "super" for step in path)
        if path[0] != "crate" and not ups:
            continue
        start = here[: len(here) - ups] if ups else ()
        target = resolved(start + path[max(ups, 1) :])
        if target and target != here:
            yield target


def rust() -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """The dependencies of each module."""
    return {
        name: {to for to in needed(file) if not is_test(FILES[to])}
        for name, file in FILES.items()
        if not is_test(file)
    }


def test_no_layer_of_the_core_looks_up() -> None:
    up = [
        f"{'::'.join(name)} needs {'::'.join(other)}"
        for name, others in rust().items()
        for other in others
        if name[:1] != other[:1]
        and other[0] in LAYERS
        and (name[0] not in LAYERS or LAYERS.index(name[0]) > LAYERS.index(other[0]))
        and name != ()
    ]
    assert not up


@pytest.mark.parametrize("layer", ["python", "service", "store", "engine"])
def test_no_files_of_a_layer_need_each_other(layer: str) -> None:
    graph = {
        "::".join(name): {"::".join(other) for other in others if other[0] == layer}
        for name, others in rust().items()
        if name[:1] == (layer,) and len(name) > 1
    }
    assert len(graph) > 5
    assert not circle(graph)


def imports(file: Path) -> Iterator[str]:
    """The modules of the package that a Python file imports at load time, or for its types."""
    package = file.relative_to(PYTHON).parent.parts
    for node in ast.parse(file.read_text()).body:
        inner = node.body if isinstance(node, ast.If) else [node]
        for one in inner:
            if isinstance(one, ast.ImportFrom) and one.level:
                base = package[: len(package) - one.level + 1] + tuple(
                    (one.module or "").split(".") if one.module else ()
                )
                for alias in one.names:
                    yield from (".".join([*base, alias.name]), ".".join(base))


def test_no_modules_of_the_package_need_each_other() -> None:
    files = {
        ".".join(file.relative_to(PYTHON).with_suffix("").parts).removesuffix(".__init__"): file
        for file in PYTHON.rglob("*.py")
    }
    graph = {
        name: {other for other in imports(file) if other in files and other != name}
        for name, file in files.items()
        if name != "__init__"
    }
    assert len(graph) > 10
    assert not circle(graph)
