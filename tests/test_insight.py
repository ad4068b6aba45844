"""Anyone who may read the table sees who holds what; and can end a hold by force."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pickle
import socket
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg import sql

import score.distlock
from score.distlock import HoldInfo, LockExpired

from .conftest import python, run
from .support.line import until, wait_until_waiting
from .test_neighbours import of_role, roles

__all__ = ("roles",)

Db = psycopg.Connection[Any]
Conf = score.distlock.ConfiguredDistlockModule

#: A hold of another process, until it reads a line. It prints how the hold ended.
ELSEWHERE = """
import sys, threading
import score.distlock

lost = threading.Event()
conf = score.distlock.connect(sys.argv[1], maxtime=float(sys.argv[2]))
try:
    with conf.get('name').hold(autoextend=True, on_lost=lambda lock: lost.set()) as lock:
        print(lock.fence, flush=True)
        sys.stdin.readline() if sys.argv[3] == 'line' else lost.wait()
except score.distlock.LockExpired as error:
    print(error.reason, flush=True)
"""


def elsewhere(url: str, maxtime: float, until: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, url, str(maxtime), until],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def old_row(db: Db, name: str, age: str = "10 s") -> None:
    """A hold as 0.2.5 writes it on a host in this zone."""
    zone = datetime.now().astimezone().utcoffset()
    db.execute(
        "INSERT INTO _score_distlock (name, token, acquired, updated) SELECT %s, repeat('ab', 128),"
        " moment, moment FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC' + %s - %s::interval"
        " AS moment) AS clock",
        (name, zone, age),
    )


def test_a_hold_is_described(conf: Conf) -> None:
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    with conf.get("name") as lock:
        info = conf.info("name")
        after = datetime.now(timezone.utc) + timedelta(seconds=1)
        assert info is not None
        assert conf.holders() == [info]
        assert (info.name, info.fence, info.waiters) == ("name", lock.fence, 0)
        assert (info.host, info.pid) == (socket.gethostname(), os.getpid())
        assert before < info.acquired < after
        assert info.expires - info.acquired == timedelta(seconds=60)
        assert lock.token is not None
        for text in (repr(info), str(info), str(dataclasses.asdict(info))):
            assert lock.token[:8] not in text
        lock.extend()
        extended = conf.info("name")
        assert extended is not None
        assert extended.acquired == info.acquired
        assert extended.expires > info.expires
    assert conf.info("name") is None
    assert conf.holders() == []


def test_a_record_is_a_value(conf: Conf) -> None:
    conf.acquire("name")
    info = conf.info("name")
    assert info is not None
    assert pickle.loads(pickle.dumps(info)) == info
    assert len({info, conf.info("name")}) == 1
    assert not hasattr(info, "__dict__")
    assert type(info).__module__ == "score.distlock"
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.name = "other"  # type: ignore[misc]


def test_the_thread_that_holds_it(conf: Conf) -> None:
    """The operating system's thread id; a hold known only by its token has no thread."""

    def check() -> None:
        with conf.get("name"):
            seen.append(conf.info("name"))

    seen: list[HoldInfo | None] = []
    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert [info and info.thread for info in seen] == [thread.native_id]
    with conf.acquire_all(["a", "b"]):
        assert {info.thread for info in conf.holders()} == {threading.get_native_id()}
        conf.acquire("token")
        info = conf.info("token")
        assert info is not None
        assert (info.pid, info.thread) == (os.getpid(), None)

    async def main() -> None:
        async with conf.aio.get("name"):
            info = await conf.aio.info("name")
            assert info is not None
            assert info.thread == threading.get_native_id()

    asyncio.run(main())


NOTES = ["import of: 5 orders", "a:1:2 b", " ключ 🔑 ", "'; --", "%s{}\\", "x" * 200]


@pytest.mark.parametrize("note", NOTES)
def test_a_note(conf: Conf, note: str) -> None:
    with conf.get("name").hold(note=note):
        info = conf.info("name")
        assert info is not None
        assert (info.note, info.pid) == (note, os.getpid())
        assert info.thread == threading.get_native_id()

    async def main() -> None:
        async with conf.aio.get("name").hold(note=note):
            info = await conf.aio.info("name")
            assert info is not None
            assert info.note == note

    asyncio.run(main())
    with conf.get("name").hold(note=""):
        info = conf.info("name")
        assert info is not None
        assert info.note is None


def test_the_note_of_one_who_has_waited(conf: Conf, db: Db) -> None:
    lock = conf.get("name")
    lock.acquire()
    seen = []

    def work() -> None:
        with conf.get("name").hold(timeout=60, note="waited"):
            seen.append(conf.info("name"))

    thread = threading.Thread(target=work)
    thread.start()
    wait_until_waiting(db, 1)
    lock.release()
    thread.join()
    assert [info and (info.note, info.thread) for info in seen] == [("waited", thread.native_id)]


def test_a_transfer_tells_who_has_it_now(conf: Conf, url: str) -> None:
    token = conf.acquire("name")
    code = "import sys, score.distlock as d; d.connect(sys.argv[1]).transfer('name', sys.argv[2])"
    first = conf.info("name")
    python(code, url, token)
    second = conf.info("name")
    assert first is not None
    assert second is not None
    assert second.pid not in (None, os.getpid())
    assert dataclasses.replace(second, pid=first.pid) == first


@pytest.mark.parametrize("note", ["a\nb", "\0", "\x1b[2J", "\ud800", "x" * 201, "\u202eabc"])
def test_a_note_is_a_short_line(conf: Conf, note: str) -> None:
    for lock in (conf.get("name"), conf.aio.get("name")):
        with pytest.raises(ValueError, match="note must be a line"):
            lock.hold(note=note)
        with pytest.raises(TypeError, match="note must be a str, not bytes"):
            lock.hold(note=b"x")  # type: ignore[arg-type]


def test_holds_are_in_the_order_of_their_names(conf: Conf, brief: Conf, db: Db) -> None:
    names = ["b", "", "a'; DROP TABLE _score_distlock --", "ä", "a\n", "{name}", "B", "%s"]
    tokens = {name: conf.acquire(name) for name in names}
    conf.release("b", tokens["b"])
    brief.acquire("gone")
    db.execute("SELECT pg_sleep_until(expires) FROM _score_distlock WHERE name = 'gone'")
    assert [info.name for info in conf.holders()] == sorted(set(names) - {"b"})
    for name in names:
        info = conf.info(name)
        assert (info and info.name) == (None if name == "b" else name)
    assert conf.info("gone") is None
    assert conf.info("never") is None


def test_a_hold_of_0_2_5_says_little(conf: Conf, db: Db) -> None:
    old_row(db, "name")
    old_row(db, "gone", "61 s")
    (info,) = conf.holders()
    assert info == conf.info("name")
    nothing = (info.fence, info.host, info.pid, info.thread, info.note)
    assert nothing == (None,) * 5
    assert info.expires - info.acquired == timedelta(seconds=60)
    age = datetime.now(timezone.utc) - info.acquired
    assert timedelta(seconds=9) < age < timedelta(seconds=30)


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/Los_Angeles", "XXX-9:10"])
def test_holds_of_hosts_in_other_zones(url: str, zone: str) -> None:
    """The column shows the local time there; the record does not."""
    conf = score.distlock.connect(url)
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    code = "import sys, score.distlock as d; d.connect(sys.argv[1], maxtime=77).acquire('name')"
    python(code, url, TZ=zone)
    info = conf.info("name")
    assert info is not None
    assert before < info.acquired < datetime.now(timezone.utc)
    assert info.expires - info.acquired == timedelta(seconds=77)


@pytest.mark.parametrize("holder", [None, "", "somebody", "host:", "host:1:2:3", ":1", "h:1\n"])
def test_what_others_write_into_the_table_is_survived(
    conf: Conf, db: Db, holder: str | None
) -> None:
    conf.acquire("name")
    db.execute(
        "UPDATE _score_distlock SET holder = %s, fence = NULL, acquired = '0001-01-01 BC', "
        "expires = 'infinity', lease = NULL, waiters = '{NULL, 5}'",
        (holder,),
    )
    (info,) = conf.holders()
    assert (info.host, info.pid, info.thread, info.note, info.fence) == (None,) * 5
    assert info.acquired == datetime.min.replace(tzinfo=timezone.utc)
    assert info.expires == datetime.max.replace(tzinfo=timezone.utc)
    assert info.waiters == 0
    assert conf.revoke("name") == info
    assert conf.try_acquiring("name")


def test_those_who_wait_are_counted(conf: Conf, url: str, db: Db) -> None:
    """Processes rather than threads; dead ones do not count."""
    lock = conf.get("name")
    code = "import sys, score.distlock as d; d.connect(sys.argv[1]).acquire('name', timeout=None)"
    lock.acquire()
    threads = [threading.Thread(target=wait, args=(conf,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until_waiting(db, 3)
    other = subprocess.Popen([sys.executable, "-c", code, url])
    wait_until_waiting(db, 4)
    assert [info.waiters for info in conf.holders()] == [2]
    other.kill()
    other.wait()

    def waiters() -> int:
        info = conf.info("name")
        assert info is not None
        return info.waiters

    until(lambda: waiters() == 1)
    lock.release()
    for thread in threads:
        thread.join()


def wait(conf: Conf) -> None:
    with conf.get("name").hold(timeout=60):
        pass


def test_looking_disturbs_nobody(conf: Conf, db: Db) -> None:
    """It neither locks the row, nor waits for a lock on it, nor writes."""
    with conf.get("name") as lock:
        before = db.execute("SELECT ctid, xmin::text, * FROM _score_distlock").fetchall()
        with db.transaction():
            db.execute("SELECT FROM _score_distlock FOR UPDATE")
            assert conf.holders() == [conf.info("name")]
        assert db.execute("SELECT ctid, xmin::text, * FROM _score_distlock").fetchall() == before
        lock.extend()


def test_a_role_that_may_only_read_can_look(url: str, db: Db, roles: tuple[str, str]) -> None:
    """But not revoke; and a role without rights can do neither."""
    reader, stranger = roles
    conf = score.distlock.connect(url)
    conf.acquire("name")
    db.execute(sql.SQL("GRANT SELECT ON _score_distlock TO {}").format(sql.Identifier(reader)))
    looking = Conf(of_role(url, reader), "1m")
    assert looking.holders() == conf.holders()
    assert looking.info("name") == conf.info("name")
    with pytest.raises(score.distlock.DatabaseError, match="--grant") as raised:
        looking.revoke("name")
    assert raised.value.sqlstate == "42501"
    assert conf.info("name")
    nobody = Conf(of_role(url, stranger), "1m")
    for call in (nobody.holders, lambda: nobody.info("name"), lambda: nobody.revoke("name")):
        with pytest.raises(score.distlock.DatabaseError):
            call()


def test_a_role_that_may_not_read_tokens_can_look(url: str, db: Db, roles: tuple[str, str]) -> None:
    conf = score.distlock.connect(url)
    conf.acquire("name")
    grant = (
        "GRANT SELECT (name, acquired, updated, touched, expires, lease, fence, holder, waiters) "
        "ON _score_distlock TO {}"
    )
    db.execute(sql.SQL(grant).format(sql.Identifier(roles[0])))
    looking = Conf(of_role(url, roles[0]), "1m")
    assert looking.holders() == conf.holders()
    assert looking.info("name") == conf.info("name")
    with pytest.raises(score.distlock.DatabaseError):
        looking.revoke("name")
    assert conf.info("name")


def test_a_role_with_the_rights_of_a_release_can_revoke(
    url: str, db: Db, roles: tuple[str, str]
) -> None:
    conf = score.distlock.connect(url)
    conf.acquire("name")
    grant = "GRANT SELECT, UPDATE ON _score_distlock TO {}"
    db.execute(sql.SQL(grant).format(sql.Identifier(roles[0])))
    assert Conf(of_role(url, roles[0]), "1m").revoke("name")
    assert conf.holders() == []


def test_a_hold_that_cannot_be_ended(url: str, db: Db, roles: tuple[str, str]) -> None:
    """A policy hides the row from updates: that is reported, instead of retrying for ever."""
    conf = score.distlock.connect(url)
    conf.acquire("name")
    db.execute("ALTER TABLE _score_distlock ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY look ON _score_distlock FOR SELECT USING (true)")
    grant = "GRANT SELECT, UPDATE ON _score_distlock TO {}"
    db.execute(sql.SQL(grant).format(sql.Identifier(roles[0])))
    with pytest.raises(score.distlock.DatabaseError, match="policy or a trigger"):
        Conf(of_role(url, roles[0]), "1m").revoke("name")
    assert conf.info("name")


def test_a_revocation_tells_what_it_ended(conf: Conf) -> None:
    token = conf.acquire("name")
    conf.acquire("bystander")
    info = conf.info("name")
    assert conf.revoke("name") == info
    assert [info.name for info in conf.holders()] == ["bystander"]
    assert conf.revoke("name") is None
    assert conf.revoke("never") is None
    with pytest.raises(LockExpired) as raised:
        conf.extend("name", token)
    assert raised.value.reason == "released"
    with pytest.raises(LockExpired):
        conf.release("name", token)
    assert conf.try_acquiring("name")


def test_only_the_hold_with_the_fence_is_ended(conf: Conf, db: Db) -> None:
    lock = conf.get("name")
    with lock:
        first = lock.fence
    with pytest.raises(LockExpired), lock:
        assert lock.fence is not None
        assert conf.revoke("name", first) is None
        assert conf.revoke("name", lock.fence + 1) is None
        lock.transfer()
        lock.extend()
        info = conf.info("name")
        assert info is not None
        assert conf.revoke("name", fence=info.fence) == info
        assert lock.expired
        with conf.get("other"), pytest.raises(LockExpired) as raised:
            lock.extend()
        assert raised.value.reason == "released"
    old_row(db, "old")
    assert conf.revoke("old", 1) is None


@pytest.mark.parametrize("fence", ["1", 1.0, True, b"1"])
def test_a_fence_is_an_integer(conf: Conf, fence: Any) -> None:
    conf.acquire("name")
    with pytest.raises(TypeError, match="fence must be an int or None"):
        conf.revoke("name", fence)
    with pytest.raises(ValueError, match="64 bits"):
        conf.revoke("name", 1 << 63)
    assert conf.info("name")


def test_bad_names(conf: Conf) -> None:
    for call in (conf.info, conf.revoke):
        with pytest.raises(TypeError, match="must be a str"):
            call(17)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="NUL"):
            call("a\0b")
    assert conf.revoke("x" * 100_000) is None
    assert conf.info("x" * 100_000) is None


def test_the_holder_in_this_process_learns_of_it_at_once(conf: Conf, url: str) -> None:
    """Even if another configuration revokes."""
    lost = threading.Event()
    hold = conf.get("name").hold(on_lost=lambda _: lost.set())
    with pytest.raises(LockExpired) as raised, hold as lock:
        assert score.distlock.connect(url).revoke("name", lock.fence)
        assert lock.expired
        assert lock.remaining == 0
        assert lost.wait(30)
        assert conf.try_acquiring("name")
    assert raised.value.reason == "released"


def test_the_holder_in_another_process_learns_of_it(conf: Conf, url: str) -> None:
    process = elsewhere(url, 0.9, "lost")
    fence = int(said(process))
    info = conf.revoke("name", fence)
    assert info is not None
    assert info.pid == process.pid
    assert said(process) == "released"
    assert process.wait() == 0


def test_the_holder_that_was_replaced_learns_of_it(conf: Conf, url: str) -> None:
    process = elsewhere(url, 60, "line")
    fence = int(said(process))
    assert conf.revoke("name", fence)
    with conf.get("name") as lock:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        assert said(process) in ("released", "unknown")
        lock.extend()
        assert lock.fence is not None
        assert lock.fence > fence
    process.wait()


def test_the_next_waiter_is_called(conf: Conf, db: Db) -> None:
    """Immediately: otherwise it would not look before the lease ends, in a minute."""
    lock = conf.get("name")
    lock.acquire()
    first = lock.fence
    fences = []

    def work() -> None:
        with conf.get("name").hold(timeout=None) as mine:
            fences.append(mine.fence)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until_waiting(db, 2)
    assert conf.revoke("name", first)
    for thread in threads:
        thread.join(30)
    assert len(fences) == 2
    assert first not in fences


def test_a_revocation_and_a_guard(conf: Conf, db: Db) -> None:
    """Guarded work is committed before anybody else gets the lock."""
    lock = conf.get("name")
    with pytest.raises(LockExpired), lock.hold() as held:
        with pytest.raises(LockExpired), db.transaction(), held.guard(db):
            db.execute("CREATE TABLE work (done bool)")
            assert conf.revoke("name", held.fence)
            assert conf.try_acquiring("name") is None
        assert db.execute("SELECT count(*) FROM work").fetchone() == (0,)
        assert conf.try_acquiring("name")
        held.extend()


def test_a_hold_of_0_2_5_is_revoked(conf: Conf, url: str, db: Db, original: str) -> None:
    token = run(original, "original_hold.py", url, "name").strip()
    info = conf.info("name")
    assert info is not None
    assert info.fence is None
    waiter = threading.Thread(target=wait, args=(conf,))
    waiter.start()
    wait_until_waiting(db, 1)
    revoked = conf.revoke("name")
    assert revoked == dataclasses.replace(info, waiters=1)
    waiter.join(30)
    assert not waiter.is_alive()
    with pytest.raises(LockExpired):
        conf.release("name", token)


def test_a_token_that_is_none_of_ours(conf: Conf, db: Db) -> None:
    """Somebody has written the row by hand: that is what revoking is for."""
    db.execute(
        "INSERT INTO _score_distlock (name, token, acquired, updated)"
        " VALUES ('name', 'by hand', localtimestamp, localtimestamp + interval '1 day')"
    )
    assert conf.revoke("name")
    assert conf.try_acquiring("name")


def test_a_lost_answer(through: Any, proxy: Any, own_url: str) -> None:
    """Whether or not the statement was executed, the result names the hold, and it has ended."""
    observer = score.distlock.connect(own_url)
    conf = through()
    conf.acquire("warm-up")
    for side in ("request", "answer"):
        for how in ("before", "half", "after"):
            for index in range(4):
                conf.revoke("warm-up")
                conf.acquire("warm-up")
                conf.info("warm-up")
                observer.acquire("name")
                info = observer.info("name")
                cut = proxy.arm(side, index, how)
                assert conf.revoke("name") == info
                if not cut.done.is_set():
                    proxy.cut = None
                assert observer.info("name") is None


def test_somebody_else_takes_it_meanwhile(through: Any, own_url: str) -> None:
    """Two revoke the same hold at once: each hold is ended by only one of them."""
    confs = [score.distlock.connect(own_url) for _ in range(3)]
    ended: list[HoldInfo] = []
    fences = []
    start = threading.Barrier(4)

    def work(conf: Conf, fence: int) -> None:
        start.wait()
        info = conf.revoke("name", fence)
        if info is not None:
            ended.append(info)

    for _ in range(20):
        confs[0].acquire("name")
        info = confs[0].info("name")
        assert info is not None
        assert info.fence is not None
        fences.append(info.fence)
        threads = [threading.Thread(target=work, args=(conf, info.fence)) for conf in confs]
        for thread in threads:
            thread.start()
        start.wait()
        for thread in threads:
            thread.join()
    assert [info.fence for info in ended] == fences


def test_after_a_fork(conf: Conf) -> None:
    """The child uses its own connections."""
    with pytest.raises(LockExpired), conf.get("name") as lock:
        info = conf.info("name")
        child = os.fork()
        if not child:
            try:
                good = conf.info("name") == info and conf.revoke("name", lock.fence) == info
            except BaseException:
                good = False
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert conf.info("name") is None
        lock.extend()


def test_coroutines(conf: Conf) -> None:
    async def main() -> None:
        aio = conf.aio
        assert await aio.info("name") is None
        async with aio.get("name").hold() as lock:
            info = await aio.info("name")
            assert info is not None
            assert info == conf.info("name")
            assert await aio.holders() == [info]
            assert await aio.revoke("name", (lock.fence or 0) + 1) is None
            assert await aio.revoke("name", fence=lock.fence) == info
            assert lock.expired
            assert await aio.holders() == []
            with pytest.raises(TypeError, match="fence must be"):
                await aio.revoke("name", "1")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="NUL"):
                await aio.info("\0")

    with pytest.raises(LockExpired) as raised:
        asyncio.run(main())
    assert raised.value.reason == "released"


def test_a_revocation_goes_on_when_its_task_is_cancelled(conf: Conf, db: Db) -> None:
    conf.acquire("name")

    async def main() -> None:
        task = asyncio.ensure_future(conf.aio.revoke("name"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: conf.info("name") is None)
