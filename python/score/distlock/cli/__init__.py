"""The command line ``score-distlock``, which is also ``score distlock …`` of score.cli."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time

import click
from rich.live import Live

from score.distlock import ConfiguredDistlockModule, CouldNotAcquireLock, DatabaseError, HoldInfo

from .._distlock import _schema
from ._demo import demonstrate
from ._doctor import examine
from ._group import Database, failed, main
from ._options import AfterDashes, duration, json_option, maxtime_option, wait_option
from ._run import NOT_ACQUIRED, Run, Signals, closing, holder, refusal
from ._shown import as_json, console, is_terminal, printable, record, table

__all__ = ("main",)


@main.command(cls=AfterDashes)
@click.argument("name")
@wait_option
@maxtime_option("The lease: how long the hold lasts after it was last extended")
@click.option(
    "--at-least",
    metavar="DURATION",
    callback=duration,
    default="0",
    help="Hold the lock at least this long, even if the command ends sooner.",
)
@click.option(
    "--on-lost",
    type=click.Choice(["terminate", "continue"]),
    default="terminate",
    show_default=True,
    help="What to do with the command when the hold is lost.",
)
@click.option(
    "--kill-after",
    metavar="DURATION",
    callback=duration,
    help="Time between SIGTERM and SIGKILL when the lock is lost or about to be; by default a"
    " quarter of the lease, at most 10 s.",
)
@click.option(
    "--exit-code",
    type=click.IntRange(0, 255),
    default=NOT_ACQUIRED,
    show_default=True,
    help="The exit status if the lock is not acquired.",
)
@click.option("--quiet", is_flag=True, help="Say nothing if the lock is not acquired.")
@click.option("--note", help="A note shown with the holder; by default the command's name.")
@click.pass_obj
def run(
    database: Database,
    name: str,
    command: tuple[str, ...],
    wait: float | None,
    maxtime: float | None,
    at_least: float,
    on_lost: str,
    kill_after: float | None,
    exit_code: int,
    quiet: bool,
    note: str | None,
) -> None:
    """Runs COMMAND under the lock NAME, and extends the hold while it runs.

    The command runs without a shell, with DISTLOCK_NAME and DISTLOCK_FENCE in its
    environment, and receives the signals that this process receives.

    Exit status: the command's, 128 + N if signal N ended it, 126 or 127 if it cannot be
    executed; 75 if the lock was not acquired, 76 if it was lost, 69 without a database.
    """
    conf = database.open()
    lease = conf.maxtime if maxtime is None else maxtime
    if kill_after is None:
        kill_after = min(10.0, lease / 4)
    if lease < 4:
        raise click.UsageError(
            f"--maxtime: {lease:g} s is too short to end a command; use at least 4 s"
        )
    if kill_after > lease / 3:  # normally at least two thirds are left
        raise click.UsageError(
            f"--kill-after: {kill_after:g} s is more than a third of --maxtime, {lease:g} s"
        )
    with closing(conf):
        status = Run(
            name,
            command,
            wait,
            lease,
            kill_after,
            at_least,
            on_lost == "terminate",
            exit_code,
            quiet,
            note,
        )(conf)
    sys.exit(status)


@main.command("list")
@json_option
@click.option("--watch", is_flag=True, help="Keep showing it, like top.")
@click.pass_obj
def list_(database: Database, as_json_: bool, watch: bool) -> None:
    """Shows who holds what."""
    if as_json_ and watch:
        raise click.UsageError("--json and --watch exclude each other")
    with database.opened() as conf:
        if as_json_:
            click.echo(as_json([record(info) for info in conf.holders()]))
        elif watch:
            follow(conf, 2)
        else:
            console().print(table(conf.holders()))


@main.command()
@click.option("--interval", metavar="DURATION", callback=duration, default="2s", show_default=True)
@click.pass_obj
def top(database: Database, interval: float) -> None:
    """Shows who holds what, refreshed until Ctrl-C."""
    with database.opened() as conf:
        follow(conf, interval)


def follow(conf: ConfiguredDistlockModule, interval: float) -> None:
    """Shows the holds until interrupted; an outage does not end it."""
    with Live(console=console(), auto_refresh=False, screen=is_terminal()) as live:
        while True:
            try:
                live.update(table(conf.holders()), refresh=True)
            except DatabaseError as error:
                live.update(printable(str(error)), refresh=True)
            time.sleep(interval)


@main.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(database: Database, name: str, as_json_: bool) -> None:
    """Shows who holds NAME; exit status 1 if it is free."""
    with database.opened() as conf:
        info = conf.info(name)
    if as_json_:
        click.echo(as_json(info and record(info)))
    elif info is None:
        click.echo(f"{printable(name)}: held by nobody")
    else:
        for key, value in record(info).items():
            if value is not None:
                click.echo(f"{key:9} {printable(str(value))}")
    sys.exit(info is None)


@main.command()
@click.argument("name")
@wait_option
@maxtime_option("How long the hold lasts unless it is extended")
@click.pass_obj
def acquire(database: Database, name: str, wait: float | None, maxtime: float | None) -> None:
    """Acquires NAME and prints the token that extend and release need."""
    if sys.stdout is None:
        raise click.UsageError("the token would be lost, as standard output is closed")
    with database.opened(maxtime) as conf:
        lock = conf.get(name)
        try:
            with Signals():
                print(lock.acquire(timeout=wait), flush=True)
        except CouldNotAcquireLock as error:
            failed(refusal(conf, error), NOT_ACQUIRED)
        except BaseException:
            if lock.token is not None:
                lock.release()  # nobody knows the token
            raise


def given_token(ctx: click.Context) -> str:
    """Reads the token, which must not be an argument: every user can see those."""
    token = os.environ.get("DISTLOCK_TOKEN")
    if token is None and sys.stdin is not None:
        if sys.stdin.isatty():
            token = click.prompt("Token", hide_input=True, err=True)
        else:
            token = sys.stdin.readline()
    token = str(token or "").strip()
    if not token:
        name = shlex.quote(ctx.params["name"])
        raise click.UsageError(
            "no token is in DISTLOCK_TOKEN or on standard input; with the one that acquire printed,"
            f" write: DISTLOCK_TOKEN=… {ctx.command_path} {name}"
        )
    return token


@main.command()
@click.argument("name")
@maxtime_option("How long the hold lasts from now on")
@click.pass_context
def extend(ctx: click.Context, name: str, maxtime: float | None) -> None:
    """Extends the hold of NAME. Its token comes from DISTLOCK_TOKEN or standard input."""
    with ctx.obj.opened(maxtime) as conf:
        conf.extend(name, given_token(ctx))


@main.command()
@click.argument("name")
@click.pass_context
def release(ctx: click.Context, name: str) -> None:
    """Releases the hold of NAME. Its token comes from DISTLOCK_TOKEN or standard input."""
    with ctx.obj.opened() as conf:
        conf.release(name, given_token(ctx))


@main.command()
@click.argument("name")
@click.option("--fence", type=int, help="End only the hold with this fence.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def revoke(database: Database, name: str, fence: int | None, yes: bool) -> None:
    """Ends the hold of NAME by force and wakes the next waiter. The holder is not stopped."""
    with database.opened() as conf:
        info = conf.info(name)
        if info is None or fence not in (None, info.fence):
            failed(f"{name!r} is not held" + ("" if fence is None else f" with fence {fence}"), 1)
            return
        if not yes:
            if sys.stdin is None:
                raise click.UsageError("nobody can be asked; --yes ends it without a question")
            click.confirm(f"End the hold of {name!r} by {holder(info)}?", abort=True, err=True)
        ended: HoldInfo | None = conf.revoke(name, info.fence)
        if ended is None:
            failed(f"the hold of {name!r} has ended meanwhile", 1)


@main.command()
@json_option
@click.pass_obj
def doctor(database: Database, as_json_: bool) -> None:
    """Checks the database and says what to fix; exit status 1 if there is anything."""
    with database.opened() as conf:
        facts, findings = examine(conf)
    if as_json_:
        found = [dataclasses.asdict(finding) for finding in findings]
        click.echo(as_json({"facts": facts, "findings": found}))
    else:
        for finding in findings:
            click.echo(f"{finding.level}: {finding.what}\n  {finding.remedy}")
        if not findings:
            click.echo(f"nothing is wrong with PostgreSQL {facts['server_version']} and the locks")
    sys.exit(bool(findings))


@main.command()
@click.pass_obj
def demo(database: Database) -> None:
    """Lets three processes take turns, and kills one of them while it holds the lock.

    The demo uses its own lock. Without --url it runs on an embedded server.
    """
    url = database.url
    if url is None:
        click.echo("no --url: this is an embedded server")
    sys.exit(demonstrate("embedded:" if url is None else url))


@main.command()
@click.pass_obj
def vacuum(database: Database) -> None:
    """Deletes the rows of holds that have ended."""
    with database.opened() as conf:
        conf.vacuum()


@main.command()
@click.option("--schema", "schema_", help="The PostgreSQL schema the table is in.")
@click.option("--grant", metavar="ROLE", help="Also grant this role what it needs.")
def schema(schema_: str | None, grant: str | None) -> None:
    """Prints the SQL that creates the table or adds what is missing.

    You can run that SQL any number of times: score-distlock schema | psql mydatabase
    """
    click.echo(_schema(schema_, grant), nl=False)
