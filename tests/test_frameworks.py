"""The examples of docs/examples run, with their framework, under adverse conditions."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import marshal
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import xmlrpc.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

import score.distlock

from .conftest import PROJECT, with_options
from .server_free import free_port
from .support.line import until

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]

EXAMPLES = PROJECT / "docs" / "examples"
JUDGED = PROJECT / "tests" / "support" / "frameworks"


class Processes:
    """The processes a test has started, in groups of their own, with logs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.logs: dict[subprocess.Popen[bytes], Path] = {}

    def start(self, *command: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        path = self.folder / f"log {len(self.logs)}"
        with path.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=cwd or self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.logs[process] = path
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return self.logs[process].read_text()

    def run(self, *command: str, cwd: Path | None = None, status: int = 0) -> str:
        process = self.start(*command, cwd=cwd)
        assert process.wait(60) == status, self.log(process)
        return self.log(process)

    def end(self) -> None:
        for process in self.logs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def processes(tmp_path: Path, url: str) -> Iterator[Processes]:
    paths = (EXAMPLES, EXAMPLES / "django_shop", JUDGED)
    environment = {
        **os.environ,
        "DISTLOCK_URL": with_options(url, "application_name=example"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JUDGE": str(tmp_path / "somebody is inside"),
    }
    processes = Processes(tmp_path, environment)
    yield processes
    processes.end()


def no_sessions(db: Db) -> bool:
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'example'"
    return db.execute(sessions).fetchone() == (0,)


def waiters(conf: Conf, name: str) -> int | None:
    info = conf.info(name)
    return info.waiters if info else None


# FastAPI


@pytest.fixture
def shop(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    for key in ("DISTLOCK_URL", "JUDGE"):
        monkeypatch.setenv(key, processes.environment[key])
    for folder in (EXAMPLES, JUDGED):
        monkeypatch.syspath_prepend(str(folder))
    for module in ("fastapi_shop", "judged_fastapi", "judge"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    import judged_fastapi

    return judged_fastapi.fastapi_shop


@contextlib.asynccontextmanager
async def client_of(app: Any) -> Any:
    import httpx

    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=60)
    async with app.router.lifespan_context(app), client:
        yield client


@contextlib.contextmanager
def uvicorn(processes: Processes, *options: str) -> Iterator[tuple[Any, str]]:
    pytest.importorskip("uvicorn")
    port = free_port()
    program = [sys.executable, "-m", "uvicorn", "--port", str(port), *options]
    server = processes.start(*program, "judged_fastapi:app")
    until(lambda: server.poll() is not None or "running on" in processes.log(server))
    assert server.poll() is None, processes.log(server)
    yield server, f"http://127.0.0.1:{port}"


def judge(answers: list[Any]) -> None:
    """No two were inside at once, and the numbers rise."""
    assert {answer.status_code for answer in answers} <= {200, 409}
    fences = [answer.json()["fence"] for answer in answers if answer.status_code == 200]
    assert len(fences) == len(set(fences)) > 0


def test_fastapi_requests_never_overlap(shop: Any, processes: Processes, db: Db) -> None:
    """Coroutines, `def` endpoints and dependencies, in two processes."""
    import httpx

    async def main() -> None:
        async with client_of(shop.app) as ours, httpx.AsyncClient(timeout=60) as others:
            kinds = ["ship", "bill", "pack"] * 7
            answers = await asyncio.gather(
                *(ours.post(f"/orders/1/{kind}") for kind in kinds),
                *(others.post(f"{address}/orders/1/{kind}") for kind in kinds),
            )
            judge(answers)
            assert {answer.json()["order"] for answer in answers if answer.is_success} == {1}

    with uvicorn(processes) as (server, address):
        asyncio.run(main())
        server.terminate()
        server.wait(30)
    until(lambda: no_sessions(db))


def test_fastapi_says_that_it_is_busy(shop: Any, conf: Conf) -> None:
    async def main() -> None:
        async with client_of(shop.app) as client:
            conf.acquire("order-1")
            answer = await client.post("/orders/1/bill")
            assert answer.status_code == 409 and answer.headers["Retry-After"] == "1"
            assert "order-1" in answer.json()["detail"]

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["ship", "bill", "pack"])
def test_fastapi_requests_that_are_cancelled_leave_nothing(
    shop: Any, conf: Conf, kind: str
) -> None:
    """Both while they wait and while they hold the lock."""

    async def until_async(reached: Callable[[], object]) -> None:
        while not reached():
            await asyncio.sleep(0.005)

    async def cancel(request: asyncio.Task[Any]) -> None:
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request

    async def main() -> None:
        async with client_of(shop.app) as client:
            token = conf.acquire("order-1")
            request = asyncio.create_task(client.post(f"/orders/1/{kind}"))
            await until_async(lambda: waiters(conf, "order-1"))
            await cancel(request)
            await until_async(lambda: waiters(conf, "order-1") == 0)
            conf.release("order-1", token)

            async def forever(order: int) -> None:
                await asyncio.sleep(0.2)

            shop.call_the_carrier = forever
            request = asyncio.create_task(client.post(f"/orders/1/{kind}"))
            await until_async(lambda: conf.info("order-1") or request.done())
            await cancel(request)
            conf.release("order-1", await conf.aio.acquire("order-1", timeout=30))
        await conf.aio.close()

    asyncio.run(main())


def test_fastapi_clients_that_go_away_in_the_middle(
    shop: Any, processes: Processes, conf: Conf
) -> None:
    """In the middle of an answer produced under the lock, by a coroutine or on threads."""
    import httpx

    with uvicorn(processes) as (_, address):
        for round_ in range(3):
            for kind in ("follow", "watch"):
                url = f"{address}/orders/1/{kind}"
                with httpx.stream("GET", url, timeout=60) as answer:
                    lines = answer.iter_lines()
                    assert next(lines) == "still here", (round_, kind)
                    assert conf.try_acquiring("order-1") is None
                if kind == "watch":
                    # Starlette leaves a plain generator to the garbage collector.
                    until(lambda: httpx.get(f"{address}/collect") and not conf.info("order-1"))
                conf.release("order-1", conf.acquire("order-1", timeout=30))


def test_the_lifespan_ends_while_somebody_waits(shop: Any, conf: Conf, db: Db) -> None:
    """As with servers that exit without waiting for their requests."""

    async def main() -> None:
        token = conf.acquire("order-1")
        async with client_of(shop.app) as client:
            request = asyncio.create_task(client.post("/orders/1/ship"))
            while not waiters(conf, "order-1"):
                await asyncio.sleep(0.005)
        # The waiter goes on, on its own connections, until its timeout or its turn.
        conf.release("order-1", token)
        assert (await request).status_code == 200
        await shop.app.state.locks.aio.close()

    asyncio.run(main())
    until(lambda: no_sessions(db))


def test_uvicorn_ends_while_somebody_waits(shop: Any, processes: Processes, db: Db) -> None:
    import httpx

    conf = score.distlock.connect(processes.environment["DISTLOCK_URL"].replace("example", "test"))
    conf.acquire("order-1")
    with (
        uvicorn(processes, "--timeout-graceful-shutdown", "1") as (server, address),
        ThreadPoolExecutor() as clients,
    ):
        request = clients.submit(httpx.post, f"{address}/orders/1/ship", timeout=60)
        until(lambda: waiters(conf, "order-1"))
        server.terminate()
        server.wait(30)
        with contextlib.suppress(httpx.HTTPError):
            assert request.result().status_code in (409, 500)
    until(lambda: waiters(conf, "order-1") == 0)
    until(lambda: no_sessions(db))


# Flask and gunicorn


@contextlib.contextmanager
def gunicorn(processes: Processes, application: str) -> Iterator[Any]:
    """A client of gunicorn."""
    pytest.importorskip("gunicorn")
    httpx = pytest.importorskip("httpx")
    socket = processes.folder / "socket"
    options = ["-c", str(EXAMPLES / "gunicorn.conf.py"), "--bind", f"unix:{socket}"]
    server = processes.start(sys.executable, "-m", "gunicorn", *options, application)
    until(lambda: server.poll() is not None or processes.log(server).count("Booting worker") == 2)
    assert server.poll() is None, processes.log(server)
    # A new connection for each request: a kept one would stay with its worker.
    limits = httpx.Limits(max_keepalive_connections=0)
    transport = httpx.HTTPTransport(uds=str(socket), limits=limits)
    with httpx.Client(transport=transport, base_url="http://shop", timeout=60) as client:
        yield client
    server.terminate()
    server.wait(60)


def test_flask_requests_never_overlap(processes: Processes, conf: Conf) -> None:
    """With two workers forked from a master that has already used the locks."""
    pytest.importorskip("flask")
    with gunicorn(processes, "judged_flask:app") as client, ThreadPoolExecutor(20) as clients:
        workers: set[int] = set()
        while len(workers) < 2:
            answers = list(clients.map(lambda _: client.post("/orders/1/ship"), range(20)))
            judge(answers)
            workers |= {answer.json()["worker"] for answer in answers if answer.is_success}
        assert client.get("/masters").json() == {"token": False, "had": False}

        conf.acquire("order-2")
        answer = client.post("/orders/2/ship")
        assert answer.status_code == 409 and "order-2" in answer.json()["detail"]


def test_a_worker_is_killed_that_holds(processes: Processes, conf: Conf) -> None:
    """Its hold stays until the lease ends or somebody revokes it. Others are not disturbed."""
    pytest.importorskip("flask")
    import httpx

    with gunicorn(processes, "judged_flask:app") as client:
        with pytest.raises(httpx.HTTPError):
            client.post("/orders/666/ship")
        info = conf.info("order-666")
        assert info and info.fence and conf.try_acquiring("order-666") is None
        judge([client.post("/orders/1/ship") for _ in range(5)])
        assert conf.revoke("order-666", info.fence)
        conf.release("order-666", conf.acquire("order-666"))


# Django

BREAK_IT = """
import django, psycopg, sys
django.setup()
from django.db import DatabaseError, connection, transaction
from shop.locks import locks
from shop.models import Order
from score.distlock import LockExpired

lock = locks().get("order-1")

def attempt(what, inside):
    raised = "nothing"
    try:
        with lock, transaction.atomic():
            Order.objects.update(shipped=7)
            inside()
    except Exception as error:
        raised = type(error).__name__
    print(f"{what}: {raised}")
    assert lock.token is None and not lock.expired and locks().info("order-1") is None
    connection.close()
    assert Order.objects.get().shipped == 0

def guarded(before=lambda: None, after=lambda: None):
    before()
    with lock.guard(connection):
        Order.objects.update(shipped=8)
        after()

def fail():
    try:
        connection.cursor().execute("SELECT 1 / 0")
    except DatabaseError:
        pass

def kill():
    with psycopg.connect(sys.argv[1], autocommit=True) as other:
        pid = connection.connection.info.backend_pid
        other.execute("SELECT pg_terminate_backend(%s, 9999)", [pid])

def roll_back():
    transaction.set_rollback(True)

def revoke():
    locks().revoke("order-1")

for step in (fail, kill, connection.close, roll_back, revoke):
    attempt(f"{step.__name__}, guard", lambda: guarded(before=step))
for step in (fail, kill, connection.close, roll_back):
    attempt(f"guard, {step.__name__}", lambda: guarded(after=step))
try:
    with lock, lock.guard(connection):
        pass
except Exception as error:
    print(f"no transaction: {type(error).__name__}")
"""

#: The lock inside the transaction, as with ATOMIC_REQUESTS: the release precedes the commit.
INSIDE_OUT = """
import django, sys
django.setup()
from django.db import connection, transaction
from shop.locks import locks
from shop.models import Order

guarded = sys.argv[1] == "guarded"
with transaction.atomic():
    with locks().get("order-1") as lock:
        if guarded:
            with lock.guard(connection):
                Order.objects.update(shipped=1)
        else:
            Order.objects.update(shipped=1)
    print("released, not committed;", locks().try_acquiring("order-1") is not None)
token = locks().try_acquiring("order-1")
print(token is not None)
locks().revoke("order-1")
"""


@pytest.fixture
def project(processes: Processes, db: Db) -> Processes:
    """Processes for a Django project whose database has an order."""
    pytest.importorskip("django")
    processes.environment["DJANGO_SETTINGS_MODULE"] = "settings"
    # What `migrate --run-syncdb` would create, but that takes a second in each test.
    db.execute("CREATE TABLE shop_order (id bigserial PRIMARY KEY, shipped integer NOT NULL)")
    db.execute("INSERT INTO shop_order (shipped) VALUES (0)")
    return processes


def manage(processes: Processes, *command: str, status: int = 0) -> str:
    program = [sys.executable, "-W", "error::RuntimeWarning", "manage.py", *command]
    return processes.run(*program, cwd=EXAMPLES / "django_shop", status=status)


SHIP = """
import django; django.setup()
from concurrent.futures import ThreadPoolExecutor
from shop.shipping import ship
with ThreadPoolExecutor(10) as threads:
    print(sum(threads.map(lambda _: ship(1), range(10))))
"""


def test_django_ships_an_order_once(project: Processes, db: Db) -> None:
    """Twenty threads in two processes try to."""
    started = [project.start(sys.executable, "-c", SHIP) for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0], list(map(project.log, started))
    assert sorted(map(project.log, started)) == ["0\n", "1\n"]
    assert db.execute("SELECT shipped FROM shop_order").fetchone() == (1,)


def test_djangos_command(project: Processes, conf: Conf, db: Db) -> None:
    lock = conf.get("ship-all")
    with lock:
        assert "is held by somebody else" in manage(project, "ship_all", status=75)
        assert db.execute("SELECT shipped FROM shop_order").fetchone() == (0,)
    manage(project, "ship_all")
    assert db.execute("SELECT shipped FROM shop_order").fetchone() == (1,)


def test_djangos_own_tests(project: Processes) -> None:
    """Django can drop the test database although the locks have sessions in it."""
    manage(project, "test", "--noinput", "shop")


def test_djangos_own_tests_without_the_runner(project: Processes, db: Db) -> None:
    """The consequence that docs/how-to/django.rst names if nobody closes the locks."""
    plain = "--testrunner=django.test.runner.DiscoverRunner"
    name = f"test_{db.info.dbname}"
    try:
        output = manage(project, "test", "--noinput", plain, "shop", status=1)
        assert f'database "{name}" is being accessed by other users' in output
    finally:
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        db.execute(drop.format(sql.Identifier(name)))


def test_a_connection_of_django_breaks(project: Processes, url: str, db: Db) -> None:
    """Before the guard and inside it; the lock is released, and nothing is committed."""
    output = project.run(sys.executable, "-W", "ignore", "-c", BREAK_IT, url)
    assert output == (
        "fail, guard: InternalError\n"
        "kill, guard: OperationalError\n"
        "close, guard: OperationalError\n"
        "roll_back, guard: TransactionManagementError\n"
        "the hold of lock 'order-1' (fence 5) is lost: released\n"
        "revoke, guard: LockExpired\n"
        # This is Django's own behaviour: it rolls back silently.
        "guard, fail: nothing\n"
        "guard, kill: OperationalError\n"
        "guard, close: nothing\n"
        "guard, roll_back: nothing\n"
        "no transaction: RuntimeError\n"
    )


def test_the_lock_within_the_transaction(project: Processes) -> None:
    """A guard keeps others out until the commit; without it they get in earlier."""
    for how, let_in in (("plain", True), ("guarded", False)):
        output = project.run(sys.executable, "-c", INSIDE_OUT, how)
        assert output == f"released, not committed; {let_in}\n{not let_in}\n"


# Workers


@pytest.fixture
def orders(db: Db) -> None:
    db.execute("CREATE TABLE orders (number int, charged int DEFAULT 0)")
    db.execute("INSERT INTO orders SELECT generate_series(1, 3) UNION SELECT 666")
    db.execute("CREATE TABLE exported (name text, part int)")


@contextlib.contextmanager
def celery(processes: Processes) -> Iterator[tuple[Any, Callable[[str], object]]]:
    """A worker with two processes, and a function that runs code as the web process would."""
    pytest.importorskip("celery")
    queue = processes.folder / "queue"
    queue.mkdir()
    processes.environment["BROKER_FOLDER"] = str(queue)
    program = [sys.executable, "-m", "celery", "-A", "judged_tasks", "worker", "--pool", "prefork"]
    program += ["--without-gossip", "--without-mingle", "--without-heartbeat", "-c", "2"]
    worker = processes.start(*program, "-l", "INFO")
    until(lambda: worker.poll() is not None or " ready." in processes.log(worker))
    assert worker.poll() is None, processes.log(worker)
    start = "import judged_tasks\nfrom worker_tasks import *\n"
    yield worker, lambda code: processes.run(sys.executable, "-c", start + code)
    print(processes.log(worker))


@pytest.mark.usefixtures("orders")
def test_celery_charges_once(processes: Processes, db: Db, conf: Conf) -> None:
    """Tasks delivered ten times, and a worker killed in the middle."""
    with celery(processes) as (worker, web):
        web(
            "charge.delay(666)\n"
            "for _ in range(5): charge.delay(1); charge.delay(2)\n"
            "start_export('me')\n"
            "try: start_export('me')\n"
            "except CouldNotAcquireLock: pass\n"
            "else: raise AssertionError\n"
            "token = locks.acquire('export-twice')\n"
            "for _ in range(2): export.delay('twice', token)\n"
            "from unittest.mock import patch\n"
            "with patch.object(app.amqp, 'send_task_message') as send: start_export('seen')\n"
            "locks.revoke('export-seen')\n"
            "headers = send.call_args.args[2].headers\n"
            "assert headers['argsrepr'] == \"('seen', '…')\", headers\n"
        )
        charged = "SELECT charged FROM orders WHERE charged > 0"
        until(lambda: len(db.execute(charged).fetchall()) == 3)
        until(lambda: db.execute("SELECT count(*) FROM exported").fetchone() == (6,))
        until(lambda: not list((processes.folder / "queue").glob("*.msg")))
        until(lambda: "LockExpired" in processes.log(worker))
    assert set(db.execute(charged).fetchall()) == {(1,)}
    exported = "SELECT name, count(*) FROM exported GROUP BY name ORDER BY name"
    assert db.execute(exported).fetchall() == [("me", 3), ("twice", 3)]
    until(lambda: conf.info("export-me") is None and conf.info("export-twice") is None)


def test_one_worker_works_and_the_next_takes_over(processes: Processes, conf: Conf) -> None:
    """The first is killed; the second ends when told to, and leaves nothing behind."""
    program = [sys.executable, str(EXAMPLES / "own_worker.py")]
    workers = [processes.start(*program) for _ in range(2)]

    def working() -> list[int]:
        return [number for number in (0, 1) if "working" in processes.log(workers[number])]

    until(working)
    until(lambda: waiters(conf, "the-worker"))
    (first,) = working()
    workers[first].kill()
    workers[first].wait()
    info = conf.info("the-worker")
    assert info and conf.revoke("the-worker", info.fence)  # otherwise its lease would have to end
    until(lambda: len(working()) == 2)
    second = workers[1 - first]
    last = max(map(int, re.findall(r"working (\d+)", processes.log(workers[first]))))
    assert min(map(int, re.findall(r"working (\d+)", processes.log(second)))) > last
    second.terminate()
    assert second.wait(30) == 0, processes.log(second)
    assert conf.info("the-worker") is None


# cron and systemd


@pytest.fixture
def machine(processes: Processes) -> Path:
    """A folder with what the examples start: an import, and a `systemd-cat`."""
    folder = processes.folder
    for name, code in {
        "import.py": "import os, sys; print('imports', sys.argv[1:], os.environ['DISTLOCK_FENCE'])",
        "worker.py": "import time; print('works', flush=True); time.sleep(600)",
        "systemd-cat": "import os, sys; print('logged:', flush=True);"
        " os.execvp(sys.argv[3], sys.argv[3:])",
    }.items():
        (folder / name).write_text(f"#!{sys.executable}\n{code}\n")
        (folder / name).chmod(0o755)
    scripts = Path(sys.executable).parent
    processes.environment["PATH"] = f"{folder}:{scripts}:{processes.environment['PATH']}"
    return folder


def started(line: str, machine: Path) -> str:
    """What a line of an example starts, with paths on this machine."""
    program = str(Path(sys.executable).parent / "score-distlock")
    line = line.replace("/srv/shop/", f"{machine}/")
    for path in ("/usr/bin/score-distlock", "/opt/shop/venv/bin/score-distlock"):
        line = line.replace(path, program)
    return line.replace("--at-least 1m", "--at-least 0s")


def test_the_line_of_cron(processes: Processes, machine: Path, conf: Conf) -> None:
    pytest.importorskip("click")
    line = (EXAMPLES / "crontab").read_text().splitlines()[-1]
    *_, command = line.split(maxsplit=6)
    command = started(command, machine)
    assert "logged:\nimports ['--all']" in processes.run("/bin/sh", "-c", command)
    conf.acquire("nightly-import")
    output = processes.run("/bin/sh", "-c", command, status=75)
    assert "is held by" in output and "imports" not in output


def unit(name: str) -> dict[str, str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(EXAMPLES / "systemd" / name)
    return dict(parser["Service"])


def test_the_services_of_systemd(processes: Processes, machine: Path, conf: Conf) -> None:
    pytest.importorskip("click")
    service = unit("nightly-import.service")
    command = shlex.split(started(service["ExecStart"], machine))
    assert "imports ['--all']" in processes.run(*command)
    conf.acquire("nightly-import")
    assert "75" in service["SuccessExitStatus"].split()
    processes.run(*command, status=75)

    # It waits for its turn, works, and is stopped: KillMode=mixed signals only `run`.
    service = unit("the-worker.service")
    token = conf.acquire("the-worker")
    worker = processes.start(*shlex.split(started(service["ExecStart"], machine)))
    until(lambda: waiters(conf, "the-worker"))
    conf.release("the-worker", token)
    until(lambda: "works" in processes.log(worker))
    worker.terminate()
    assert str(worker.wait(30)) in service["SuccessExitStatus"].split()
    assert conf.info("the-worker") is None


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_systemd_understands_the_units(processes: Processes, machine: Path) -> None:
    names = []
    for source in sorted((EXAMPLES / "systemd").iterdir()):
        text = started(source.read_text(), machine).replace("User=app", "User=root")
        (machine / source.name).write_text(text)
        names.append(str(machine / source.name))
    assert len(names) == 3
    output = processes.run("systemd-analyze", "verify", "--man=no", *names)
    assert str(machine) not in output and ".service" not in output and ".timer" not in output


# Notebooks

NOTEBOOK = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor")
for cell in sys.stdin.read().split("# %%"):
    shell.run_cell(cell, store_history=True).raise_error()
"""


def cells(url: str, *more: str) -> tuple[str, str]:
    """What the cells of the notebook, and additional ones, show, and a token."""
    pytest.importorskip("IPython")
    code = (EXAMPLES / "notebook.py").read_text().replace("connect(", f"connect({url!r}, ")
    program = "\n# %%\n".join([code, *more, "print('the token:', token)"])
    result = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        input=program,
        env={**os.environ, "IPYTHONDIR": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    shown, _, token = result.stdout.rpartition("the token: ")
    assert re.fullmatch("[0-9a-f]{256}", token.strip())
    return shown, token.strip()


def test_a_notebook_shows_no_token(url: str) -> None:
    """Not even inside a container; print() still shows it, and other texts are unchanged."""
    shown, token = cells(
        url,
        "[token], {'token': token}, (token,)",
        "class Text(str): pass",
        "'it\\'s', 'a' * 255, Text('text')",
    )
    assert token[:8] not in shown
    assert shown.count("<token of a hold>") == 4
    assert "mine, with number" in shown
    assert f"(\"it's\", '{'a' * 255}', 'text')" in shown.replace("\n ", " ")


def test_a_notebook_may_show_it_again(url: str) -> None:
    shown, token = cells(
        url,
        "%load_ext score.distlock.notebook",
        "%unload_ext score.distlock.notebook",
        "token",
        "%reload_ext score.distlock.notebook",
        "token",
    )
    assert shown.count(token) == 1
    assert shown.count("<token of a hold>") == 2


def test_a_token_is_a_plain_str(conf: Conf) -> None:
    """As in 0.2.5. All of these would refuse a subclass with another repr()."""
    token = conf.acquire("name")
    assert type(token) is str
    assert marshal.loads(marshal.dumps(token)) == token
    assert token in xmlrpc.client.dumps((token,))
    assert repr(token) == f"'{token}'"
    lock = conf.get("other")
    tokens = [lock.acquire(), lock.token, lock.transfer(), conf.try_acquiring("another")]
    with conf.acquire_all(["a", "b"]) as holds:
        assert {type(token) for token in [*tokens, *holds.values()]} == {str}

    async def main() -> list[type]:
        async with conf.aio.get("c") as mine:
            return [type(await conf.aio.acquire("d")), type(await mine.transfer())]

    assert asyncio.run(main()) == [str, str]
