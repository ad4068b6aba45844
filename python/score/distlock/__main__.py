"""``python -m score.distlock`` and ``score-distlock``: the command line."""

from __future__ import annotations

import argparse
import sys

from . import __version__
from ._distlock import _schema


def main() -> None:
    """Runs the command line, and ends with its exit status."""
    try:
        from .cli import main as commands
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(_without_cli())
    except KeyboardInterrupt:
        sys.exit(130)
    commands(prog_name="score-distlock")


def _without_cli() -> int:
    """Offers only what an administrator may need where nothing else can be installed."""
    parser = argparse.ArgumentParser(
        prog="score-distlock",
        description="Locks in PostgreSQL. All commands but one need the extra 'cli': "
        "pip install 'score.distlock[cli]'",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="schema")
    schema = commands.add_parser("schema", description="Prints the SQL that creates the table.")
    schema.add_argument("--schema", help="the PostgreSQL schema the table is in")
    schema.add_argument("--grant", metavar="ROLE", help="also grant this role what it needs")
    options = parser.parse_args()
    sys.stdout.write(_schema(options.schema, options.grant))
    return 0


if __name__ == "__main__":
    main()
