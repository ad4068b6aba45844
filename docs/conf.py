"""Sphinx's settings."""

from __future__ import annotations

import ast
import re
import zlib
from pathlib import Path
from typing import Any, ClassVar

import score.distlock

project = "score.distlock"
author = "the developers of score.distlock"
project_copyright = f"2026, {author}"
release = version = score.distlock.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
]
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
maximum_signature_line_length = 72
html_theme = "furo"
html_title = f"score.distlock {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]

# The button copies neither the prompt nor what a command prints.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# Python's objects that the pages name. intersphinx would fetch Python's whole inventory over the
# network, and fail with -W where there is none. A new name that is missing here fails the build.
PYTHON = {
    "library/asyncio-task.html#$": ["asyncio.to_thread py:function"],
    "library/collections.abc.html#$": [
        f"collections.abc.{name} py:class" for name in ("Callable", "Iterable", "Mapping")
    ],
    "library/constants.html#$": ["None py:data"],
    "library/datetime.html#$": ["datetime.datetime py:class", "datetime.timedelta py:class"],
    "library/exceptions.html#$": [
        f"{name} py:exception"
        for name in (
            "ConnectionError",
            "Exception",
            "ImportError",
            "KeyboardInterrupt",
            "RuntimeError",
            "TypeError",
            "ValueError",
        )
    ],
    "library/functions.html#$": [f"{name} py:class" for name in ("bool", "float", "int")],
    "library/logging.html#$": ["logging.Logger py:class"],
    "library/stdtypes.html#$": [
        f"{name} py:class" for name in ("bytes", "dict", "list", "str", "tuple")
    ],
    "library/threading.html#$": ["threading.Event py:class"],
    "library/typing.html#$": ["typing.Any py:data"],
}


def inventory(path: Path, objects: dict[str, list[str]]) -> str:
    """Writes an inventory of Sphinx's format, version 2."""
    lines = [f"{name} 1 {page} -\n" for page, names in objects.items() for name in names]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(
        b"# Sphinx inventory version 2\n# Project: Python\n# Version: 3\n"
        b"# The remainder of this file is compressed using zlib.\n"
        + zlib.compress("".join(lines).encode())
    )
    return str(path)


BUILD = Path(__file__).parent.parent / "build"
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", (inventory(BUILD / "python.inv", PYTHON),))
}

# Classes without a page of their own: score.init has no inventory, and the others are only
# returned.
nitpick_ignore = [
    ("py:class", name)
    for name in (
        "AsyncGuard",
        "CollectorRegistry",
        "Guard",
        "Holds",
        "MeterProvider",
        "TracerProvider",
        "timedelta",
    )
] + [("py:exc", "score.init.ConfigurationError")]


class Stubs:
    """The types of the compiled classes: the extension module has none, its stubs do."""

    SHORT: ClassVar = {
        "Any": "typing.Any",
        "Callable": "collections.abc.Callable",
        "Iterable": "collections.abc.Iterable",
        "Logger": "logging.Logger",
        "Mapping": "collections.abc.Mapping",
        "timedelta": "datetime.timedelta",
        "_Function": "collections.abc.Callable",
        "NameAttribute": "str | collections.abc.Iterable | collections.abc.Callable | None",
        "_Time": "float | str | datetime.timedelta | None",
    }

    def __init__(self, path: Path) -> None:
        self.aliases: dict[str, ast.expr] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.aliases[node.targets[0].id] = node.value
            elif isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef):
                        self.functions[f"{node.name}.{member.name}"] = member

    def text(self, annotation: ast.expr | None, owner: str) -> str:
        """An annotation with its aliases resolved and its names complete."""
        stubs = self

        class Full(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:
                if node.id == "_Time":
                    return stubs.aliases[node.id]
                if node.id == "_Function":
                    return ast.Name("Callable")
                return ast.Name(owner) if node.id == "Self" else node

        assert annotation is not None
        tree = ast.parse(ast.unparse(annotation), mode="eval").body
        return self.complete(ast.unparse(Full().visit(tree)))

    def complete(self, text: str) -> str:
        """A text with the modules of the names that other modules have."""
        for short, name in self.SHORT.items():
            text = re.sub(rf"(?<![\w.]){short}\b", name, text)
        return text

    def signature(self, name: str) -> tuple[str, str] | None:
        """The arguments and the result of a function, method or class."""
        function = self.functions.get(name) or self.functions.get(f"{name}.__new__")
        if function is None:
            return None
        owner = name.split(".")[0]
        arguments = function.args
        for argument in (*arguments.args, *arguments.kwonlyargs):
            if argument.annotation is not None:
                argument.annotation = ast.Name(self.text(argument.annotation, owner))
        if arguments.args and arguments.args[0].arg in ("self", "cls"):
            del arguments.args[0]
        result = "" if function.name == "__new__" else self.text(function.returns, owner)
        return f"({ast.unparse(arguments)})", result


def setup(app: Any) -> None:
    """Gives the compiled classes the types of their stubs."""
    path = Path(score.distlock.__file__).with_name("__init__.pyi")
    stubs = Stubs(path)

    def signature(
        _app: Any, what: str, name: str, _object: Any, _options: Any, *found: str | None
    ) -> tuple[str | None, str | None] | None:
        if what in ("class", "function", "method"):
            typed = Stubs(path).signature(name.removeprefix("score.distlock."))
            if typed is not None:
                return typed
        arguments, result = (text and stubs.complete(text) for text in found)
        return arguments, result

    def docstring(
        _app: Any, what: str, name: str, _object: Any, _options: Any, lines: list[str]
    ) -> None:
        found = stubs.functions.get(name.removeprefix("score.distlock."))
        if what in ("attribute", "property") and found is not None:
            shown = ast.unparse(found.returns) if found.returns else ""
            lines[:0] = [f":type: ``{shown}``", ""]

    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring)
