"""Every Python example in the README and the documentation runs as printed."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import score.distlock

from .conftest import PROJECT

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.rst"))]


def examples(page: Path) -> list[str]:
    """The Python examples of a page, in order.

    Those after ``.. hidden:``, a comment to Sphinx, run too.
    """
    text = page.read_text()
    if page.suffix == ".md":
        return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    blocks = re.findall(
        r"^\.\. (?:code-block:: python|hidden:)\n\n((?:    .*\n|\n)+)", text, re.MULTILINE
    )
    return [textwrap.dedent(block) for block in blocks]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if examples(page)],
    ids=lambda page: str(page.relative_to(PROJECT)),
)
def test_the_examples_of_a_page_run(
    page: Path, url: str, conf: score.distlock.ConfiguredDistlockModule
) -> None:
    namespace = {"url": url, "conf": conf, "__name__": "example"}
    for number, example in enumerate(examples(page), 1):
        # Use the tests' server instead of the one in this user's default folder.
        source = example.replace('"embedded:"', repr(url))
        exec(compile(source, f"{page.name}, example {number}", "exec"), namespace)


def test_there_are_examples() -> None:
    with_examples = {page.name for page in PAGES if examples(page)}
    assert {"README.md", "quickstart.rst", "tokens.rst", "timeouts.rst"} <= with_examples
    # At least one page of each kind that teaches by example.
    kinds = {page.parent.name for page in PAGES if examples(page)}
    assert {"tutorial", "how-to", "reference", "explanation"} <= kinds


def literals(source: Path) -> Iterator[str]:
    """The constant parts of the strings of a source file."""
    text = source.read_text()
    if source.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
        return
    for literal in re.findall(r'"((?:[^"\\]|\\.)*)"', text, re.DOTALL):
        yield re.sub(r"\\\n\s*", "", literal)


def test_troubleshooting_quotes_messages_that_exist() -> None:
    sources = [*(PROJECT / "python").rglob("*.py"), *(PROJECT / "src").rglob("*.rs")]
    known = "\n".join(literal for source in sources for literal in literals(source))
    page = (PROJECT / "docs" / "how-to" / "troubleshooting.rst").read_text()
    quoted = re.findall(r"^``(.+)``(?: \[[A-Z]+\]| followed by .*)?$", page, re.MULTILINE)
    assert len(quoted) > 40
    # A … stands for a variable part, or is part of the message.
    parts = {
        part.strip(" .;:")
        for message in quoted
        for part in ([message] if message in known else message.split("…"))
    }
    assert not {part for part in parts if part not in known}


def test_the_help_shows_signatures_and_descriptions() -> None:
    import inspect

    for owner in (score.distlock.Lock, score.distlock.ConfiguredDistlockModule):
        for name, member in vars(owner).items():
            if name.startswith("_"):
                continue
            assert inspect.getdoc(member), (owner, name)
            if callable(member):
                assert inspect.signature(member)
    assert inspect.getdoc(score.distlock.init)
