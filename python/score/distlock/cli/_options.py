"""Options that commands share, and how `run` parses its command line."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

from score.init import ConfigurationError

from .. import _config
from .._refuse import bare

_Command = TypeVar("_Command", bound=Callable[..., Any])


def duration(
    _: click.Context, parameter: click.Parameter, value: str | None, endless: str = ""
) -> float | None:
    """An interval, such as ``90s``, ``1h 30m`` or a number of seconds."""
    try:
        return None if value is None else _config.interval(value, parameter.opts[-1], endless)
    except ConfigurationError as error:
        raise click.UsageError(bare(error)) from None


def waiting(ctx: click.Context, parameter: click.Parameter, value: str) -> float | None:
    """The same, or ``none`` for no limit."""
    endless = "; 'none' waits without limit"
    return None if value == "none" else duration(ctx, parameter, value, endless)


wait_option = click.option(
    "--wait",
    metavar="DURATION",
    callback=waiting,
    default="0",
    show_default=True,
    help="How long to wait for the lock; 'none' is for ever.",
)


def maxtime_option(meaning: str) -> Callable[[_Command], _Command]:
    """The option for the length of the lease."""
    help_ = f"{meaning}; by default 1m, or as the application's configuration says."
    return click.option("--maxtime", metavar="DURATION", callback=duration, help=help_)


json_option = click.option("--json", "as_json_", is_flag=True, help="Print JSON.")


class AfterDashes(click.Command):
    """Everything after ``--`` is the command, and is not parsed.

    A name that begins with a dash needs its own ``--``: ``run -- -name -- command``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            if args[place + 2 : place + 3] == ["--"] and not self._has_name(ctx, args[:place]):
                place += 2
            ctx.params["command"] = tuple(args[place + 1 :])
            args = args[:place]
        elif not ctx.resilient_parsing and (command := self._undashed(ctx, args)):
            before = shlex.join(args[: len(args) - len(command)])
            # The command's arguments may be secrets.
            shown = shlex.quote(command[0]) + (" …" if command[1:] else "")
            raise click.UsageError(
                f"-- is missing before the command; write: {ctx.command_path} {before} -- {shown}",
                ctx,
            )
        try:
            rest = super().parse_args(ctx, list(args))
        except click.NoSuchOption as error:
            if hint := self._hint(ctx, args, error.option_name):
                said = error.format_message().rstrip(".")
                raise click.UsageError(f"{said}; {hint}", ctx) from None
            raise
        if not ctx.params.get("command") and not ctx.resilient_parsing:
            name = shlex.quote(ctx.params["name"])
            raise click.UsageError(
                "the command is missing: NAME [OPTIONS] -- COMMAND…, for instance "
                f"{ctx.command_path} {name} -- ./import.py --all",
                ctx,
            )
        return rest

    def _undashed(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The command if the user forgot the ``--``: what follows NAME and our options."""
        parser = self.make_parser(ctx)
        parser.allow_interspersed_args = False
        word = None
        try:
            rest = list(args)
            for _ in ("NAME", "COMMAND"):
                found, rest, _ = parser.parse_args(rest)
                word = found.get("name")
        except click.UsageError:  # a wrong option, which has its own message
            return []
        return [word, *rest] if isinstance(word, str) else []

    def _hint(self, ctx: click.Context, args: list[str], option: str) -> str:
        """What to write if the unknown option may be a name that begins with a dash."""
        names = [word for word in args if word.startswith(option)]
        if not ctx.params.get("command") or option == "--url" or not names:
            return ""
        rest = list(args)
        rest.remove(names[0])
        try:
            if self._has_name(ctx, rest):
                return ""
        except click.UsageError:  # there are other unknown options
            return ""
        line = shlex.join([*rest, "--", names[0], "--"])
        return f"if this is the NAME, write: {ctx.command_path} {line} COMMAND…"

    def _has_name(self, ctx: click.Context, args: list[str]) -> bool:
        return isinstance(self.make_parser(ctx).parse_args(list(args))[0].get("name"), str)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND…"]
