"""Everything in the table "To change X, open Y" of docs/maintainers/architecture.rst exists."""

from __future__ import annotations

import re

import pytest

from .conftest import PROJECT

PAGE = PROJECT / "docs" / "maintainers" / "architecture.rst"


def table() -> str:
    section = re.search(r"^To change X, open Y\n-+\n(.*?)\n-{4,}\n", PAGE.read_text(), re.M | re.S)
    assert section is not None
    return section[1]


#: ``path``, then after a colon the names it defines.
ENTRIES = re.findall(r"``([\w./-]*/[\w./-]+)``((?:[:,] ``\w+``)*)", table())


def test_the_table_is_found() -> None:
    assert table().count("    * - ") > 15
    assert len(ENTRIES) > 60
    assert sum(bool(names) for _, names in ENTRIES) > 20


@pytest.mark.parametrize(("path", "names"), ENTRIES, ids=[path for path, _ in ENTRIES])
def test_what_the_table_names_exists(path: str, names: str) -> None:
    place = PROJECT / path
    assert place.exists()
    for name in re.findall(r"``(\w+)``", names):
        kinds = r"fn|struct|enum|const|static|trait|def|class"
        defined = rf"^\s*(pub(\([\w:]+\))? )?({kinds}) {name}\b|^{name}\b.* = |pub {name}\b"
        assert re.search(defined, place.read_text(), re.MULTILINE), name


def test_targets_of_make_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = re.findall(r"``make (\w+)``", table())
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
