"""``python -m score.distlock``: what administrators need from the command line."""

from __future__ import annotations

import argparse
import sys

from . import __version__
from ._distlock import _schema


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m score.distlock", description="Locks in PostgreSQL."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    schema = commands.add_parser(
        "schema",
        help="print the SQL that creates or upgrades the table",
        description="Prints the SQL that creates the table _score_distlock or adds what is "
        "missing. It can be run any number of times, for instance: "
        "python -m score.distlock schema | psql mydatabase",
    )
    schema.add_argument("--schema", help="the PostgreSQL schema the table is in")
    schema.add_argument("--grant", metavar="ROLE", help="also grant this role what it needs")
    options = parser.parse_args(arguments)
    sys.stdout.write(_schema(options.schema, options.grant))
    return 0


if __name__ == "__main__":
    sys.exit(main())
