"""The group of all commands: which database they use, and how they fail."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from score.distlock import ConfiguredDistlockModule, DatabaseError, LockExpired, __version__
from score.init import ConfigurationError

from .._connect import opened
from .._refuse import bare
from ._run import LOST, NO_DATABASE, Interrupted, closing, say


class Commands(click.Group):
    """Reports failures in one line and by the exit status."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with told():  # click executes --help and --version here
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with told():
            return super().invoke(ctx)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Reports what went wrong, and ends with the matching exit status."""
    try:
        yield
    except click.NoSuchOption as error:
        ctx = error.ctx
        if ctx is None or ctx.parent is None or error.option_name != "--url":
            raise
        program = ctx.parent.command_path
        raise click.UsageError(
            f"--url comes before the command; write: {program} --url URL {ctx.info_name} …", ctx
        ) from None
    except ConfigurationError as error:
        # On the command line the configuration's key is an option.
        raise click.UsageError(bare(error).replace("sqlalchemy.url", "--url")) from None
    except ImportError as error:  # the extra 'embedded'
        raise click.UsageError(str(error).replace("sqlalchemy.url = ", "--url ")) from None
    except ValueError as error:  # a name or a note that the library refuses
        raise click.UsageError(str(error)) from None
    except LockExpired as error:
        failed(str(error), LOST)
    except DatabaseError as error:
        failed(str(error), NO_DATABASE)
    except BrokenPipeError:  # the reader has seen enough
        raise
    except OSError as error:
        failed(f"cannot write: {error.strerror}", 1)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.number)
    except KeyboardInterrupt:
        sys.exit(130)


def failed(message: str, status: int) -> None:
    """Prints why, and exits."""
    say(message)
    sys.exit(status)


class Database:
    """Where the locks are: at a URL, or where the score application's configuration says."""

    def __init__(self, url: str | None, application: Any) -> None:
        self.url, self._application = url, application

    def open(self, maxtime: float | None = None) -> ConfiguredDistlockModule:
        """The configuration."""
        if maxtime == 0:
            raise click.UsageError("--maxtime: a hold of 0 s holds nothing")
        if self.url is None and self._application is not None:
            found: ConfiguredDistlockModule = self._application.load("distlock")
            if maxtime is not None and maxtime != found.maxtime:
                raise click.UsageError("--maxtime: the application's configuration says that")
            return found
        pass_one = "pass one: --url or DISTLOCK_URL"
        return opened(self.url, pass_one, maxtime="1m" if maxtime is None else maxtime)

    @contextlib.contextmanager
    def opened(self, maxtime: float | None = None) -> Iterator[ConfiguredDistlockModule]:
        """The configuration, for the duration of a command."""
        with closing(self.open(maxtime)) as conf:
            yield conf


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url",
    envvar="DISTLOCK_URL",
    help="The database, postgresql://…; every user can see the arguments of a process, so a"
    " password is better in DISTLOCK_URL, PGPASSWORD or ~/.pgpass. Without it: as for psql.",
)
@click.version_option(__version__)
@click.pass_context
def main(ctx: click.Context, url: str | None) -> None:
    """Locks in PostgreSQL.

    Exit status: 0; 1 nothing found, a finding, or output that cannot be written; 2 wrong usage;
    69 no database; 75 not acquired; 76 lost; 128 + N signal N. Of run: see run --help.
    """
    prepare_streams()
    # The commands report in their own words what the library logs.
    logging.getLogger("score.distlock").addHandler(logging.NullHandler())
    application = ctx.find_object(dict)
    ctx.obj = Database(url, application and application.get("conf"))


def prepare_streams() -> None:
    """A standard stream may be closed, or unable to encode most characters."""
    while (free := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # so that no connection gets the descriptor of a standard stream
    os.close(free)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
