"""``score-distlock run``: interactions between the command, its processes and the outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

import score.distlock
from score.distlock.cli import _run

from .support.proxy import Proxy

Db = psycopg.Connection[Any]
Conf = score.distlock.ConfiguredDistlockModule
Process = subprocess.Popen[str]

#: Prints that it is running; ends on SIGTERM.
READY = "import signal, sys, time; print('ready', flush=True); time.sleep(60)"
#: Ignores every signal that can be ignored.
STUBBORN = (
    "import signal, sys, time\n"
    "for number in (1, 2, 3, 15): signal.signal(number, lambda n, f: print(n, flush=True))\n"
    "print('ready', flush=True)\n"
    "while True: time.sleep(60)\n"
)
#: Starts another process, and prints its pid.
FAMILY = (
    "import subprocess, sys, time\n"
    f"command = [sys.executable, '-c', {STUBBORN!r}]\n"
    # Its pipe breaks when its parent ends.
    "child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)\n"
    "child.stdout.readline()\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.fixture
def run(url: str) -> Iterator[Callable[..., Process]]:
    """Starts ``score-distlock run`` with a Python program as its command."""
    started: list[Process] = []

    def start(*options: str, code: str = READY, at: str = url, **more: Any) -> Process:
        words = ["run", "name", *options, "--", sys.executable, "-c", code]
        process = cli(*words, url=at, **more)
        started.append(process)
        return process

    yield start
    for process in started:
        commands = children(process)
        process.kill()
        for pid in commands:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        process.communicate()


def cli(*words: str, url: str, ignored: Collection[int] = (), **more: Any) -> Process:
    """Starts the command line, with a terminal's default signals except those `ignored`.

    A script's background processes, which these tests may be, ignore SIGINT; with nohup also
    SIGHUP.
    """

    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [*foreground(ignored), sys.executable, "-m", "score.distlock", *words],
        env={**os.environ, "DISTLOCK_URL": url, **more.pop("env", {})},
        text=True,
        **(streams | more),
    )


def foreground(ignored: Collection[int] = ()) -> list[str]:
    """A command prefix that sets up the signals that way."""
    code = (
        "import os, signal, sys\n"
        "for number in (1, 2, 3, 15):\n"
        f"    ignored = number in {[int(number) for number in ignored]}\n"
        "    signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-S", "-c", code]


def ended(process: Process) -> tuple[int, str, str]:
    """Its exit status, standard output and standard error."""
    said, complained = process.communicate(timeout=60)
    return process.returncode, said, complained


def first_line(process: Process) -> str:
    """The first line it prints; waits for it."""
    assert process.stdout
    return process.stdout.readline().strip()


def until(happened: Callable[[], Any], process: Process | None = None) -> None:
    while not happened():
        assert process is None or process.poll() is None, process.communicate()


def waiters(conf: Conf) -> int:
    """How many processes wait."""
    info = conf.info("name")
    assert info, "it is held"
    return info.waiters


def children(process: Process) -> list[int]:
    """The pids of the commands it runs."""
    try:
        file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return [int(pid) for pid in file.read_text().split()]
    except FileNotFoundError:
        return []


def state(pid: int) -> str:
    """A process's state, as ps(1) abbreviates it; ``Z`` if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def exists(pid: int) -> bool:
    """Whether the process exists and has not ended."""
    return state(pid) != "Z"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit(75)", 75),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.kill(os.getpid(), 15)", 143),
    ],
)
def test_the_exit_status_is_the_commands(
    run: Callable[..., Process], conf: Conf, code: str, status: int
) -> None:
    assert ended(run(code=code)) == (status, "", "")
    assert conf.info("name") is None


@pytest.mark.parametrize(
    ("command", "status"), [("/nowhere/command", 127), ("/etc/passwd", 126), ("/etc", 126)]
)
def test_what_cannot_be_executed(url: str, conf: Conf, command: str, status: int) -> None:
    found, said, complained = ended(cli("run", "name", "--", command, url=url))
    assert (found, said) == (status, "")
    assert command in complained
    assert conf.info("name") is None, "it is released"


def test_arguments_and_standard_input_are_passed_as_they_are(url: str) -> None:
    code = "import sys; print(sys.argv[1:], sys.stdin.read())"
    words = ["--wait", "a  b", "*", "$HOME", "--", "-h", ""]
    process = cli(
        *("run", "name", "--", sys.executable, "-c", code, *words),
        url=url,
        stdin=subprocess.PIPE,
    )
    said, complained = process.communicate("from outside", timeout=60)
    assert (said.strip(), complained) == (f"{words} from outside", "")


def test_without_dashes_nothing_runs(url: str) -> None:
    status, _, complained = ended(cli("run", "name", "rm", "-rf", "/nowhere", url=url))
    assert status == 2
    assert "--" in complained


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (["--", "-name", "--"], ["a"], "-name ['a']"),
        (["--wait", "1s", "--", "--", "--"], [], "-- []"),
        (["name", "--"], ["--", "a", "--"], "name ['--', 'a', '--']"),
        (["", "--"], ["--wait", "--"], " ['--wait', '--']"),
    ],
)
def test_names_and_arguments_may_look_like_options(
    url: str, before: list[str], after: list[str], said: str
) -> None:
    code = "import os, sys; print(os.environ['DISTLOCK_NAME'], sys.argv[1:])"
    process = cli("run", *before, sys.executable, "-c", code, *after, url=url)
    assert ended(process) == (0, f"{said}\n", "")


@pytest.mark.parametrize("command", ["no\x1b[31m\nsuch", "no\udcffsuch", "no" * 200])
def test_a_command_whose_name_is_no_note(url: str, command: str) -> None:
    """The command's name is the hold's note by default."""
    status, said, complained = ended(cli("run", "name", "--", f"./{command}", url=url))
    assert (status, said) in [(127, ""), (126, "")]
    assert complained.count("\n") == 1
    assert "cannot be executed" in complained


def test_the_command_knows_its_lock(run: Callable[..., Process]) -> None:
    code = "import os; print(os.environ['DISTLOCK_NAME'], int(os.environ['DISTLOCK_FENCE']) > 0)"
    assert ended(run(code=code)) == (0, "name True\n", "")


def test_descriptors_are_passed_on(run: Callable[..., Process]) -> None:
    """A caller may have redirected more than three, as systemd does with sockets."""
    reader, writer = os.pipe()
    code = f"import os; os.write({writer}, b'through')"
    assert ended(run(code=code, pass_fds=[writer]))[0] == 0
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    os.close(writer)


def test_whoever_is_refused_is_told_who_has_it(
    run: Callable[..., Process], url: str, conf: Conf
) -> None:
    first = run("--note", "the [red]first")
    assert first_line(first) == "ready"
    status, said, complained = ended(run())
    assert (status, said) == (75, "")
    assert complained.count("\n") == 1
    for part in (f"process {first.pid} ", "(the [red]first)", "'name'"):
        assert part in complained
    assert ended(run("--exit-code", "0"))[0] == 0


def test_it_waits_if_asked_to(run: Callable[..., Process], conf: Conf) -> None:
    token = conf.acquire("name")
    process = run("--wait", "none", code="print('done')")
    until(lambda: waiters(conf), process)
    conf.release("name", token)
    assert ended(process) == (0, "done\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_waiting(
    run: Callable[..., Process], conf: Conf, number: signal.Signals
) -> None:
    token = conf.acquire("name")
    process = run("--wait", "none")
    until(lambda: waiters(conf), process)
    process.send_signal(number)
    assert ended(process) == (128 + number, "", "")
    until(lambda: not waiters(conf))
    conf.release("name", token)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_what_is_meant_for_the_command_ends_no_waiting(
    run: Callable[..., Process], conf: Conf, number: signal.Signals
) -> None:
    token = conf.acquire("name")
    process = run("--wait", "none", code="print('done')")
    until(lambda: waiters(conf), process)
    process.send_signal(number)
    conf.release("name", token)
    assert ended(process) == (0, "done\n", "")


@pytest.mark.parametrize(("number", "complaint"), [(signal.SIGUSR1, False), (signal.SIGTERM, True)])
def test_a_signal_while_the_lock_is_released(
    run: Callable[..., Process], conf: Conf, db: Db, number: signal.Signals, complaint: bool
) -> None:
    process = run(code="print('ready', flush=True); input(); raise SystemExit(5)", stdin=-1)
    assert first_line(process) == "ready"
    blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    db.execute("BEGIN")
    db.execute("SELECT FROM _score_distlock FOR UPDATE")
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    until(lambda: db.execute(blocked).fetchone(), process)
    process.send_signal(number)
    if complaint:
        assert process.stderr
        assert "before SIGTERM" in process.stderr.readline()
    db.execute("ROLLBACK")
    assert ended(process) == (5, "", "")
    assert conf.info("name") is None


@pytest.mark.parametrize("number", [1, 2, 3, 15])
def test_signals_go_to_the_commands_group(
    run: Callable[..., Process], conf: Conf, number: int
) -> None:
    process = run(code=STUBBORN)
    assert first_line(process) == "ready"
    process.send_signal(number)
    assert first_line(process) == str(number)
    assert conf.info("name"), "it is held as long as the command runs"


def test_a_signal_that_ends_the_command_is_the_exit_status(
    run: Callable[..., Process], conf: Conf
) -> None:
    process = run()
    assert first_line(process) == "ready"
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "", "")
    assert conf.info("name") is None


def test_what_the_caller_ignores_stays_ignored(run: Callable[..., Process]) -> None:
    """As with nohup, or with Ctrl-C for a script's background processes."""
    process = run(code=READY.replace("60", "0.3"), ignored=[signal.SIGHUP])
    assert first_line(process) == "ready"
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 0


@pytest.fixture
def stopped(run: Callable[..., Process]) -> Process:
    """A process whose command has stopped itself."""
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nprint('goes on', flush=True)\n"
    process = run(code=code)
    until(lambda: [pid for pid in children(process) if state(pid) == "T"], process)
    return process


def test_a_command_that_is_stopped_goes_on(stopped: Process) -> None:
    stopped.send_signal(signal.SIGCONT)
    assert ended(stopped) == (0, "goes on\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_stopped_is_ended(stopped: Process, number: signal.Signals) -> None:
    stopped.send_signal(number)
    assert ended(stopped) == (128 + number, "", "")


def test_ctrl_z_stops_nothing(run: Callable[..., Process]) -> None:
    """If it stopped, it would not extend the hold, while the command goes on."""
    process = run(code=STUBBORN)
    assert first_line(process) == "ready"
    process.send_signal(signal.SIGTSTP)
    process.send_signal(signal.SIGHUP)
    assert first_line(process) == "1", "it still forwards"


def test_who_is_revoked_ends_with_all_it_has_started(
    run: Callable[..., Process], conf: Conf
) -> None:
    process = run("--maxtime", "4s", code=FAMILY)
    grandchild = int(first_line(process))
    assert conf.revoke("name")
    status, _, complained = ended(process)
    assert (status, complained.count("\n")) == (76, 1), complained
    assert "is lost" in complained
    assert not exists(grandchild)


@pytest.fixture
def through(proxy: Proxy, database: str) -> str:
    return proxy.url(database)


def test_the_command_is_gone_before_the_lease_ends(
    run: Callable[..., Process], proxy: Proxy, through: str, server_url: str
) -> None:
    process = run("--maxtime", "6s", code=STUBBORN, at=through)
    assert first_line(process) == "ready"
    (command,) = children(process)
    proxy.refuse(True)
    proxy.cut_all()
    assert first_line(process) == "15"
    with psycopg.connect(server_url, autocommit=True) as db:
        query = "SELECT expires > clock_timestamp() FROM _score_distlock WHERE name = 'name'"
        held = True
        while exists(command):
            assert held, "the lease was over while the command was there"
            held = db.execute(query).fetchone() == (True,)
    status, _, complained = ended(process)
    assert status == 76
    assert "could not be extended" in complained


def test_a_short_outage_is_survived(
    run: Callable[..., Process], proxy: Proxy, through: str, server_url: str
) -> None:
    process = run(
        "--maxtime",
        "8s",
        code="print('ready', flush=True); input(); print('done')",
        at=through,
        stdin=-1,
    )
    with psycopg.connect(server_url, autocommit=True) as db:
        left = "SELECT expires FROM _score_distlock WHERE name = 'name'"
        assert first_line(process) == "ready"
        proxy.refuse(True)
        proxy.cut_all()
        db.execute("SELECT pg_sleep(2)")
        before = db.execute(left).fetchone()
        proxy.refuse(False)
        until(lambda: db.execute(left).fetchone() != before)
    said, complained = process.communicate("\n", timeout=60)
    assert (process.returncode, said) == (0, "done\n"), complained


def test_the_command_may_go_on_without_the_lock(run: Callable[..., Process], conf: Conf) -> None:
    process = run(
        *("--maxtime", "4s", "--on-lost", "continue"),
        code="print('ready', flush=True); input(); raise SystemExit(5)",
        stdin=subprocess.PIPE,
    )
    assert first_line(process) == "ready"
    assert conf.revoke("name")
    token = conf.acquire("name")
    assert process.stderr and "is lost" in process.stderr.readline()
    process.communicate("\n", timeout=60)
    assert process.returncode == 5
    conf.release("name", token)


def test_the_hold_lasts_at_least(run: Callable[..., Process], conf: Conf) -> None:
    process = run("--at-least", "1h", code="print('done', flush=True); raise SystemExit(5)")
    assert first_line(process) == "done"
    until(lambda: not children(process), process)
    assert conf.info("name")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 5
    assert conf.info("name") is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_to_end_does_not_stay_for_it(
    run: Callable[..., Process], conf: Conf, number: signal.Signals
) -> None:
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = run("--at-least", "1h", code=code)
    assert first_line(process) == "ready"
    process.send_signal(number)
    assert ended(process) == (5, "", "")
    assert conf.info("name") is None


def test_what_is_lost_is_not_held_at_least(run: Callable[..., Process], conf: Conf) -> None:
    process = run("--at-least", "1h", "--maxtime", "4s", code="print('done', flush=True)")
    assert first_line(process) == "done"
    until(lambda: not children(process), process)
    assert conf.revoke("name")
    status, _, complained = ended(process)
    assert (status, complained.count("\n")) == (76, 1), complained


class Lingering:
    """Never finishes closing, as for half a minute without a database."""

    closed = False

    def close(self) -> None:
        self.closed = True
        while True:
            signal.pause()


def test_the_end_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run, "_FAREWELL", 0)
    conf = Lingering()
    with _run.closing(cast("Conf", conf)):
        assert not conf.closed
    assert conf.closed


def test_a_lock_that_cannot_be_released(
    run: Callable[..., Process], proxy: Proxy, through: str
) -> None:
    """The command has run under the lock, and that is what counts."""
    code = "print('ready', flush=True); input(); raise SystemExit(5)"
    process = run("--maxtime", "4s", code=code, at=through, stdin=-1)
    assert first_line(process) == "ready"
    proxy.refuse(True)
    proxy.cut_all()
    _, complained = process.communicate("\n", timeout=100)
    assert process.returncode == 5
    assert "could not be released" in complained


def test_without_a_database(run: Callable[..., Process]) -> None:
    status, _, complained = ended(run(at="postgresql://u:hush@/nowhere?host=/nowhere"))
    assert status == 69
    assert "hush" not in complained
    assert complained.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--note", "two\tparts"],
        ["--wait", "soon"],
        ["--maxtime", "1s"],
        ["--kill-after", "21s"],
        ["--exit-code", "256"],
        ["--on-lost", "ignore"],
    ],
)
def test_wrong_options(run: Callable[..., Process], options: list[str]) -> None:
    status, said, complained = ended(run(*options))
    assert (status, said) == (2, "")
    assert repr(options[1])[1:-1] in complained or options[0] in complained


def test_only_one_runs_at_a_time(url: str, tmp_path: Path) -> None:
    file = tmp_path / "inside"
    code = (
        "import os, sys, time\n"
        "os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL))\n"
        "time.sleep(0.01)\n"
        "os.unlink(sys.argv[1])\n"
    )
    results: list[tuple[int, str, str]] = []

    def work() -> None:
        words = ["run", "name", "--wait", "none", "--", sys.executable, "-c", code, str(file)]
        results.append(ended(cli(*words, url=url)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(0, "", "")] * 6


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["name", "echo"], "name -- echo"),
        (["name", "mysqldump", "-psecret", "--all"], "name -- mysqldump …"),
        (["name", "--wait", "1s", "echo", "-n"], "name --wait 1s -- echo …"),
        (["--quiet", "two words", "echo"], "--quiet 'two words' -- echo"),
        (["name"], "name -- ./import.py --all"),
        (["name", "--"], "name -- ./import.py --all"),
    ],
)
def test_forgotten_dashes_are_shown_in_their_place(words: list[str], right: str) -> None:
    status, said, complained = ended(cli("run", *words, url="postgresql://u@127.0.0.1:1/d"))
    assert (status, said) == (2, "")
    assert complained.endswith(f"score-distlock run {right}\n")
    assert "secret" not in complained


def test_wrong_options_before_a_forgotten_dash_come_first() -> None:
    process = cli("run", "name", "--odd", "echo", url="postgresql://u@127.0.0.1:1/d")
    assert "--odd" in ended(process)[2]


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["-name"], "-- -name --"),
        (["--wait", "1s", "--name", "--quiet"], "--wait 1s --quiet -- --name --"),
    ],
)
def test_a_name_that_begins_with_a_dash_is_shown_in_its_place(words: list[str], right: str) -> None:
    url = "postgresql://u@127.0.0.1:1/d"
    status, said, complained = ended(cli("run", *words, "--", "true", "secret", url=url))
    assert (status, said) == (2, "")
    assert complained.endswith(f"the NAME, write: score-distlock run {right} COMMAND…\n")
    assert "secret" not in complained
    # It does, and so the database is asked.
    assert ended(cli("run", *right.split(), "true", url=url))[0] == 69


@pytest.mark.parametrize("words", [["name", "--odd"], ["--odd", "name"], ["--odd", "-name"]])
def test_other_unknown_options_are_no_names(words: list[str]) -> None:
    complained = ended(cli("run", *words, "--", "true", url="postgresql://u@127.0.0.1:1/d"))[2]
    assert "--odd" in complained and "NAME, write" not in complained


def test_a_refusal_is_quiet_if_asked_to(run: Callable[..., Process], conf: Conf) -> None:
    token = conf.acquire("name")
    assert ended(run("--quiet")) == (75, "", "")
    assert ended(run("--quiet", "--wait", "10ms", "--exit-code", "3")) == (3, "", "")
    conf.release("name", token)
    code = "import sys; print('said'); print('complained', file=sys.stderr)"
    assert ended(run("--quiet", code=code)) == (0, "said\n", "complained\n")


def test_anything_else_is_told_though_quiet(run: Callable[..., Process], url: str) -> None:
    status, _, complained = ended(run("--quiet", at="postgresql://u@/nowhere?host=/nowhere"))
    assert status == 69
    assert "cannot reach the database" in complained
    wrong = cli("run", "other", "--quiet", "--", "/not/there", url=url)
    assert "cannot be executed" in ended(wrong)[2]
