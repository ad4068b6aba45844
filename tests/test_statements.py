"""Each statement keeps the promises in the comment above it, for a row in each of its states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

import score.distlock
from score.distlock._distlock import _statements

from .conftest import fresh_database
from .support.line import Background

Row = dict[str, Any]

STATEMENTS = {title: (text, types) for title, text, types in _statements(None)}
#: The host is an hour east of Greenwich, which exposes anyone who forgets the zone.
ZONE = 3600
LEASE = 90
NOW = "(clock_timestamp() AT TIME ZONE 'UTC' + interval '1 hour')"


class State(NamedTuple):
    """A state of a row: SQL for its columns; whether it is held; whether it is ours."""

    updated: str
    touched: str
    expires: str
    lease: str
    live: bool
    ours: bool


def ago(seconds: int) -> str:
    return f"moment - interval '{seconds} s'"


def end(seconds: int) -> str:
    return f"clock_timestamp() + interval '{seconds} s'"


STATES = {
    "held": State("moment", "moment", end(50), "60", True, True),
    "expired": State(ago(86400), ago(86400), end(-5), "60", False, True),
    "released": State("'0001-01-01'", "'0001-01-01'", end(-5), "NULL", False, True),
    "held by 0.2.5": State(ago(10), "NULL", "NULL", "NULL", True, False),
    "expired by 0.2.5": State(ago(100), "NULL", "NULL", "NULL", False, False),
    "extended by 0.2.5": State(ago(10), ago(200), end(-140), "60", True, False),
    "extended by 0.2.5, long ago": State(ago(100), ago(200), end(-140), "60", False, False),
    "extended by 0.2.5, with our lease": State(ago(100), ago(200), end(-140), "900", True, False),
}
LIVE = [name for name, state in STATES.items() if state.live]
NOT_LIVE = [name for name, state in STATES.items() if not state.live]

#: The statements that take a lock.
TAKING = ("Acquire", "Retake", "Take", "Wait")

#: Tickets of processes: the listener's number, and one of their own.
ALIVE, ALSO_ALIVE, GONE = 7, 8, 9


def ticket(listener: int, number: int = 1) -> int:
    return (listener << 24) + number


FIRST, SECOND, DEAD = ticket(ALIVE), ticket(ALSO_ALIVE), ticket(GONE)


class Session:
    """A session that executes the statements directly."""

    def __init__(self, url: str) -> None:
        self.db: psycopg.Connection[Row] = psycopg.connect(
            url, autocommit=True, row_factory=dict_row
        )
        # Catches a statement that would wait for ever.
        self.db.execute("SET statement_timeout = '10s'")

    def run(self, title: str, *arguments: Any) -> list[Row]:
        """Executes a statement; returns its rows, or an empty one for each row it changed."""
        text, types = STATEMENTS[title]
        if title == "Guard":
            arguments = (arguments[0].encode().hex(), *arguments[1:])
        if title in TAKING and len(arguments) < len(types):
            arguments += ("infinity",)  # the time limit of the request
        name = sql.Identifier(title)
        if not self.one(
            "SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE name = %s)", title
        ):
            kinds = ", ".join(f"pg_catalog.{kind}" for kind in types)
            head = f'PREPARE "{title}"' + (f" ({kinds})" if kinds else "")
            self.db.execute(f"{head} AS {text}".encode())
        values = sql.SQL(", ").join(map(sql.Literal, arguments))
        execute = "EXECUTE {} ({})" if arguments else "EXECUTE {}"
        done = self.db.execute(sql.SQL(execute).format(name, values))
        return done.fetchall() if done.description else [{}] * done.rowcount

    def one(self, query: str, *parameters: Any) -> Any:
        """The first column of the only row."""
        row = self.db.execute(query.encode(), parameters or None).fetchone()
        assert row is not None
        return next(iter(row.values()))

    def put(self, state: str, name: str = "name", waiters: Any = None, fence: int = 5) -> None:
        """Inserts a row with the token `T`."""
        row = STATES[state]
        self.db.execute(
            f"""
            INSERT INTO _score_distlock
                   (name, token, acquired, updated, touched, expires, lease, fence, holder, waiters)
            SELECT %s, 'T', moment, {row.updated}, {row.touched}, {row.expires}, {row.lease}, %s,
                   'somebody', %s::int8[]
              FROM (SELECT {NOW} AS moment) AS clock
            """.encode(),
            (name, fence, waiters),
        )

    def rows(self) -> dict[str, Row]:
        """The table, by name."""
        query = (
            "SELECT *, extract(epoch FROM expires - clock_timestamp()) AS left FROM _score_distlock"
        )
        return {row["name"]: row for row in self.db.execute(query.encode())}

    def setting(self, name: str = "synchronous_commit") -> str:
        return str(self.one("SELECT current_setting(%s)", name))


@pytest.fixture(scope="module")
def database(admin_url: str) -> Iterator[str]:
    """One database for all of these tests, which look only at the table."""
    with fresh_database(admin_url) as url:
        score.distlock.init({"sqlalchemy.url": url})
        yield url


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    """A session, with an empty table."""
    session = Session(database)
    session.db.execute("TRUNCATE _score_distlock RESTART IDENTITY")
    with session.db:
        yield session


@pytest.fixture
def other(database: str, session: Session) -> Iterator[Session]:
    """Another session. Together with the first, two processes listen."""
    other = Session(database)
    with other.db:
        assert other.run("ListenKey", ALIVE) == other.run("ListenKey", ALSO_ALIVE)
        yield other


def changed(before: Row, after: Row) -> set[str]:
    """The columns that have changed."""
    return {name for name in before if name != "left" and before[name] != after[name]}


WAIT: tuple[Any, ...] = (FIRST, 0, [], False)
#: The arguments after the name.
TAKERS: dict[str, tuple[Any, ...]] = {
    "Acquire": (),
    "Retake": (),
    "Take": (FIRST, False),
    "Wait": WAIT,
}


def take(session: Session, title: str, *more: Any) -> list[Row]:
    """Executes a statement that takes a lock; returns what it took."""
    arguments = more or TAKERS[title]
    rows = session.run(title, "name", "new", LEASE, ZONE, "me", *arguments)
    return [row for row in rows if row["fence"] is not None]


def queue_for(title: str) -> Any:
    """A queue headed by the taker."""
    return [FIRST] if title == "Take" else None


@pytest.mark.parametrize("title", TAKERS)
@pytest.mark.parametrize("state", STATES)
def test_what_nobody_holds_is_taken(session: Session, title: str, state: str) -> None:
    session.put(state, waiters=queue_for(title))
    session.put(state, "bystander", waiters=queue_for(title))
    before = session.rows()
    taken = take(session, title)
    after = session.rows()
    assert not changed(before["bystander"], after["bystander"])
    short = title in ("Retake", "Take")  # these leave rows of 0.2.5 to the others
    if STATES[state].live or (short and not STATES[state].ours):
        assert not taken
        assert changed(before["name"], after["name"]) <= {"waiters"}
        return
    row = after["name"]
    assert (row["token"], row["lease"], row["holder"]) == ("new", LEASE, "me")
    assert [row["fence"]] == [found["fence"] for found in taken]
    assert row["fence"] > 5
    assert row["acquired"] == row["updated"] == row["touched"]
    assert row["waiters"] is None
    assert LEASE - 10 < row["left"] <= LEASE
    assert session.one(
        f"SELECT updated - {NOW} BETWEEN '-10 s' AND '0' FROM _score_distlock WHERE token = 'new'"
    )


@pytest.mark.parametrize("title", TAKERS)
def test_a_fence_is_above_that_of_the_row_and_all_others(session: Session, title: str) -> None:
    session.put("released", waiters=queue_for(title), fence=1000)
    assert [row["fence"] for row in take(session, title)] == [1001]
    session.db.execute("SELECT setval('_score_distlock_fence_seq', 5000)")
    session.db.execute("DELETE FROM _score_distlock")
    session.put("released", waiters=queue_for(title), fence=1000)
    assert [row["fence"] for row in take(session, title)] == [5001]


@pytest.mark.parametrize("title", TAKERS)
def test_a_guard_is_not_waited_for(session: Session, other: Session, title: str) -> None:
    session.put("released", waiters=queue_for(title))
    with other.db.transaction():
        other.db.execute("SELECT FROM _score_distlock FOR KEY SHARE")
        assert not take(session, title)
    if title != "Wait":
        assert take(session, title)


@pytest.mark.parametrize("title", ["Acquire", "Retake", "Take", "Vacuum", "Sweep"])
@pytest.mark.parametrize("strength", ["NO KEY UPDATE", "UPDATE"])
def test_a_locked_row_is_skipped(
    session: Session, other: Session, title: str, strength: str
) -> None:
    session.put("expired", waiters=queue_for(title))
    before = session.rows()["name"]
    with other.db.transaction():
        other.db.execute(f"SELECT FROM _score_distlock FOR {strength}".encode())
        if title in TAKERS:
            assert not take(session, title)
        else:
            session.run(title, LEASE, ZONE, *([0, 100, 1] if title == "Sweep" else []))
    assert not changed(before, session.rows()["name"])


def test_a_locked_row_is_waited_for_but_not_for_long(session: Session, other: Session) -> None:
    """By the statement that enters the queue, and by others."""
    session.put("released")
    with other.db.transaction():
        other.db.execute("SELECT FROM _score_distlock FOR NO KEY UPDATE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            take(session, "Wait")
    assert session.setting("lock_timeout") == "0"


@pytest.mark.parametrize("title", ["Acquire", "Wait"])
def test_a_row_that_is_being_inserted_is_waited_for_but_not_for_long(
    session: Session, other: Session, title: str
) -> None:
    with other.db.transaction():
        other.put("held")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            take(session, title)


@pytest.mark.parametrize("title", ["Acquire", "Wait"])
def test_a_missing_row_is_made(session: Session, title: str) -> None:
    session.put("held", "bystander")
    (taken,) = take(session, title)
    row = session.rows()["name"]
    assert taken["newest"]
    assert (row["token"], row["lease"], row["holder"]) == ("new", LEASE, "me")
    assert row["fence"] == taken["fence"]
    assert row["acquired"] == row["updated"] == row["touched"]
    assert LEASE - 10 < row["left"] <= LEASE
    assert row["waiters"] is None
    assert not session.run("Probe", "nothing", ZONE, LEASE)


@pytest.mark.parametrize("title", ["Acquire", "Wait"])
def test_an_acquisition_that_is_repeated_finds_its_token(session: Session, title: str) -> None:
    assert take(session, title)
    before = session.rows()["name"]
    arguments = ("name", "new", LEASE, ZONE, "me", *TAKERS[title])
    (row,) = session.run(title, *arguments)
    assert row["mine"]
    assert row["fence"] is None
    assert row["seen_fence"] == before["fence"]
    assert LEASE - 10 < row["remaining"] <= LEASE
    assert not changed(before, session.rows()["name"]), "it does not queue up behind itself"
    (row,) = session.run(title, "name", "another", *arguments[2:])
    assert not row["mine"]


#: The arguments of the holder's statements after the name and the token.
HOLDERS: dict[str, tuple[Any, ...]] = {
    "Extend": (LEASE, ZONE),
    "Transfer": ("new", LEASE, ZONE, "me"),
    "Release": (),
    "ReleaseAwaited": (LEASE, ZONE),
    "Held": (LEASE, ZONE),
    "Guard": (LEASE, ZONE),
    "Number": (LEASE, ZONE, 5),
}
WRITTEN = {
    "Extend": {"updated", "touched", "expires", "lease"},
    "Transfer": {"token", "holder"},
    "Held": set(),
    "Guard": set(),
    "Number": {"fence"},
}
RELEASED = {"updated", "touched", "expires", "lease", "holder"}


@pytest.mark.parametrize("title", HOLDERS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("token", ["T", "another"])
def test_only_the_holders_own_live_hold_counts(
    session: Session, title: str, state: str, token: str
) -> None:
    session.put(state)
    session.put(state, "bystander")
    before = session.rows()
    found = session.run(title, "name", token, *HOLDERS[title])
    after = session.rows()
    assert not changed(before["bystander"], after["bystander"])
    short = title == "Release"
    there = STATES[state].live and token == "T" and not (short and not STATES[state].ours)
    assert len(found) == there
    expected = WRITTEN.get(title, RELEASED) if there else set()
    if state == "held by 0.2.5":
        expected = expected - {"lease"} if title.startswith("Release") else expected
    longer = title == "Extend" and STATES[state].lease == "900"
    if longer:
        expected = expected - {"lease"}
    row = after["name"]
    assert changed(before["name"], row) == expected
    if there and title.startswith("Release"):
        assert str(row["updated"]) == str(row["touched"]) == "0001-01-01 00:00:00"
        assert row["lease"] is row["holder"] is None
        assert -10 < row["left"] <= 0
        assert found[0].get("notified") is None
        assert session.run("Released", "name", "T")
    elif there and title == "Extend":
        assert row["lease"] == (900 if longer else LEASE)
        assert row["updated"] == row["touched"]
        assert LEASE - 10 < row["left"] <= LEASE
        assert session.one(
            f"SELECT max(updated) - {NOW} BETWEEN '-10 s' AND '0' FROM _score_distlock"
        )
    elif there and title == "Number":
        assert row["fence"] == found[0]["fence"] > 5
    if token == "another":
        assert not session.run("Released", "name", token)


def test_a_number_that_was_drawn_stays(session: Session) -> None:
    """A late request with the previous number gets the current one."""
    session.put("held")
    (drawn,) = session.run("Number", "name", "T", LEASE, ZONE, 5)
    for before in (5, 4, 0):
        assert session.run("Number", "name", "T", LEASE, ZONE, before) == [drawn]
    assert session.rows()["name"]["fence"] == drawn["fence"]
    session.db.execute("UPDATE _score_distlock SET fence = NULL")
    (drawn,) = session.run("Number", "name", "T", LEASE, ZONE, 0)
    assert drawn["fence"] == session.rows()["name"]["fence"] > 0


@pytest.mark.parametrize("state", STATES)
def test_who_holds_it(session: Session, state: str) -> None:
    session.put(state)
    session.put(state, "bystander", fence=6)
    before = session.rows()["name"]
    held = [{"token": "T", "fence": 5}] if STATES[state].live else []
    assert session.run("Holder", "name", LEASE, ZONE) == held
    assert session.run("Holder", "missing", LEASE, ZONE) == []
    assert not changed(before, session.rows()["name"])


#: How long the hold of a row still lasts, in seconds.
LEFT = {
    "held": 50,
    "held by 0.2.5": LEASE - 10,
    "extended by 0.2.5": LEASE - 10,
    "extended by 0.2.5, with our lease": 900 - 100,
}


@pytest.mark.parametrize("state", STATES)
def test_what_is_known_of_a_hold(session: Session, state: str) -> None:
    session.put(state)
    session.put(state, "bystander", fence=6)
    before = session.rows()
    row = next(iter(session.run("Info", "name", LEASE, ZONE)), None)
    revocable = session.run("Revocable", "name", LEASE, ZONE)
    assert revocable == ([{"token": "T", **row}] if row else [])
    assert session.run("Revocable", "missing", LEASE, ZONE) == []
    every = {row["name"]: row for row in session.run("Holders", LEASE, ZONE)}
    assert session.run("Info", "missing", LEASE, ZONE) == []
    after = session.rows()
    assert not any(changed(before[name], after[name]) for name in before)
    if not STATES[state].live:
        assert row is None
        assert not every
        return
    assert row is not None
    assert set(every) == {"name", "bystander"}
    assert every["bystander"]["fence"] == 6
    assert row == every["name"]
    assert (row["fence"], row["holder"], row["waiting"]) == (5, "somebody", 0)
    now = float(session.one("SELECT extract(epoch FROM clock_timestamp())"))
    assert now - 10 < row["acquired"] - ZONE <= now
    assert LEFT[state] - 10 < row["ends"] - now <= LEFT[state]
    # The row seems to be written ten seconds later, as its lease is a minute.
    shown = ZONE + 10 if STATES[state].ours else ZONE
    assert abs(row["shown"] - shown) < 0.1
    if not STATES[state].ours:
        assert row["shown"] == ZONE


def test_what_is_known_of_an_exact_lease(session: Session) -> None:
    """The writer's zone, whoever asks; and the end, to the microsecond."""
    session.run("Acquire", "name", "T", 77.5, -5 * 3600, "me")
    for title in ("Info", "Holders"):
        names = ["name"] if title == "Info" else []
        (row,) = session.run(title, *names, LEASE, ZONE)
        assert abs(row["shown"] + 5 * 3600) < 1e-5
        assert abs(row["acquired"] + 5 * 3600 + 77.5 - row["ends"]) < 1e-5


def test_only_processes_that_wait_are_counted(session: Session, other: Session) -> None:
    session.put("held")
    for queue, count in (
        (None, 0),
        ([], 0),
        ([DEAD], 0),
        ([DEAD, FIRST], 1),
        ([FIRST, ticket(ALIVE, 2), DEAD, SECOND, None, ticket(ALSO_ALIVE, 9)], 2),
    ):
        session.db.execute("UPDATE _score_distlock SET waiters = %s::int8[]", (queue,))
        for title in ("Info", "Holders"):
            names = ["name"] if title == "Info" else []
            (row,) = session.run(title, *names, LEASE, ZONE)
            assert row["waiting"] == count
    assert (
        session.one(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        )
        == 0
    )


def test_why_a_hold_is_over(session: Session) -> None:
    """By a release or by its lease; unknown if it is held, or was a hold of 0.2.5."""
    told = {"released": [{"released": True}], "expired": [{"released": False}]}
    for state in STATES:
        session.put(state, state)
        assert session.run("Released", state, "T") == told.get(state, []), state
        assert not session.run("Released", state, "another")
        assert not session.run("Released", "missing", "T")


@pytest.mark.parametrize("state", STATES)
def test_what_is_seen_of_a_row(session: Session, other: Session, state: str) -> None:
    session.put(state)
    live = STATES[state].live
    assert session.run("Probe", "name", ZONE, LEASE) == [{"held": live}]
    left = {
        "held": 50,
        "expired": -5,
        "released": -5,
        "held by 0.2.5": LEASE - 10,
        "expired by 0.2.5": LEASE - 100,
        "extended by 0.2.5": LEASE - 10,
        "extended by 0.2.5, long ago": LEASE - 100,
        "extended by 0.2.5, with our lease": 900 - 100,
    }[state]
    with session.db.transaction():
        session.db.execute("SELECT FROM _score_distlock FOR UPDATE")  # so that it is not taken
        (seen,) = other.run("Acquire", "name", "T", LEASE, ZONE, "me")
    assert (seen["fence"], seen["seen_fence"], seen["held"], seen["mine"]) == (None, 5, live, live)
    assert left - 10 < seen["remaining"] <= left


@pytest.mark.parametrize("state", STATES)
def test_many_are_renewed(session: Session, other: Session, state: str) -> None:
    """Existing holds are returned, locked rows are skipped, and no lease gets shorter."""
    for name in ("a", "b", "locked"):
        session.put(state, name)
    before = session.rows()
    names = ["missing", "a", "b", "locked"]
    with other.db.transaction():
        other.db.execute("SELECT FROM _score_distlock WHERE name = 'locked' FOR UPDATE")
        # `b` is requested with another token.
        tokens = ["T", "T", "another", "T"]
        found = session.run("Renew", names, tokens, [float(LEASE)] * 4, ZONE)
    after = session.rows()
    if not STATES[state].live:
        assert not found
        assert before["a"]["updated"] == after["a"]["updated"]
        return
    extended = {row["position"]: row["extended"] for row in found}
    assert extended == {2: True, 4: False}
    assert not changed(before["b"], after["b"])
    assert not changed(before["locked"], after["locked"])
    row = after["a"]
    assert row["updated"] == row["touched"] > before["a"]["updated"]
    assert LEASE - 10 < row["left"] <= LEASE
    assert row["lease"] == max(LEASE, before["a"]["lease"] or 0)
    session.run("Renew", ["a"], ["T"], [1.0], ZONE)
    row = session.rows()["a"]
    assert LEASE - 20 < row["left"] <= LEASE
    assert row["lease"] >= LEASE


def test_a_guarded_hold_is_extended_and_renewed(session: Session, other: Session) -> None:
    session.put("held")
    with other.db.transaction():
        assert other.run("Guard", "name", "T", LEASE, ZONE) == [{"fence": 5}]
        assert session.run("Extend", "name", "T", LEASE, ZONE)
        assert session.run("Renew", ["name"], ["T"], [float(LEASE)], ZONE)[0]["extended"]
        assert session.run("Transfer", "name", "T", "new", LEASE, ZONE, "me")
        assert session.run("Release", "name", "new")
        assert not take(session, "Acquire")
    assert take(session, "Acquire")


DURABLE = [*TAKERS, "Extend", "Transfer", "Number", "Renew"]
ASYNCHRONOUS = ["Release", "ReleaseAwaited", "Leave", "Wait"]


def act(session: Session, title: str) -> Any:
    """Makes a statement do its work."""
    if title in TAKERS:
        return take(session, title)
    if title == "Renew":
        return session.run(title, ["name"], ["T"], [float(LEASE)], ZONE)
    if title == "Leave":
        session.run(title, "name", FIRST, LEASE, ZONE)
        return session.rows()["name"]["waiters"] is None
    return session.run(title, "name", "T", *HOLDERS[title])


@pytest.mark.parametrize("title", DURABLE)
@pytest.mark.parametrize("setting", ["off", "local"])
def test_what_must_not_be_forgotten_is_on_disk(session: Session, title: str, setting: str) -> None:
    session.put("released" if title in TAKERS else "held", waiters=queue_for(title))
    session.db.execute(f"SET synchronous_commit = {setting}".encode())
    with session.db.transaction():
        assert act(session, title)
        assert session.setting() == ("on" if setting == "off" else setting)
    assert session.setting() == setting


@pytest.mark.parametrize("title", ["Acquire", "Wait"])
def test_a_row_that_is_made_is_on_disk(session: Session, title: str) -> None:
    session.db.execute("SET synchronous_commit = off")
    with session.db.transaction():
        assert take(session, title)
        assert session.setting() == "on"
    assert session.setting() == "off"


@pytest.mark.parametrize("title", ASYNCHRONOUS)
def test_what_may_be_forgotten_is_not_waited_for(session: Session, title: str) -> None:
    session.put("held", waiters=[FIRST] if title == "Leave" else None)
    with session.db.transaction():
        if title == "Wait":
            assert not take(session, title)
            assert session.rows()["name"]["waiters"] == [FIRST]
        else:
            assert act(session, title)
        assert session.setting() == "off"
    assert session.setting() == "on"


# The queue.


def heard(session: Session) -> set[tuple[str, str]]:
    """The notifications to listening processes."""
    return {(note.channel, note.payload) for note in session.db.notifies(timeout=0.1)}


@pytest.fixture
def listening(other: Session) -> Session:
    for listener in (ALIVE, ALSO_ALIVE, GONE):
        other.db.execute(f"LISTEN score_distlock_{listener:x}".encode())
    return other


def turn(one: int) -> tuple[str, str]:
    return f"score_distlock_{one >> 24:x}", f"turn {one}"


def following(one: int) -> tuple[str, str]:
    return f"score_distlock_{one >> 24:x}", f"next {one}"


MATE = ticket(ALIVE, 2)
QUEUES: list[tuple[list[int], list[int] | None, set[tuple[str, str]]]] = [
    ([FIRST], [FIRST], {turn(FIRST)}),
    ([FIRST, SECOND], [FIRST, SECOND], {turn(FIRST), following(SECOND)}),
    ([FIRST, MATE, SECOND], [FIRST, MATE, SECOND], {turn(FIRST), following(SECOND)}),
    ([FIRST, MATE], [FIRST, MATE], {turn(FIRST)}),
    ([FIRST, DEAD, SECOND], [FIRST, DEAD, SECOND], {turn(FIRST), following(SECOND)}),
    ([DEAD, SECOND, DEAD, FIRST], [SECOND, DEAD, FIRST], {turn(SECOND), following(FIRST)}),
    ([DEAD], None, set()),
]


@pytest.mark.parametrize("title", ["ReleaseAwaited", "Release"])
@pytest.mark.parametrize(("queue", "left", "sent"), QUEUES)
def test_a_release_calls_the_first_who_lives_and_the_next(
    session: Session,
    listening: Session,
    title: str,
    queue: list[int],
    left: list[int] | None,
    sent: set[tuple[str, str]],
) -> None:
    session.put("held", waiters=queue)
    before = session.rows()["name"]
    found = session.run(title, "name", "T", *HOLDERS[title])
    row = session.rows()["name"]
    if title == "Release":
        assert not found
        assert not changed(before, row)
        assert not heard(listening)
        return
    assert row["waiters"] == left
    assert heard(listening) == sent
    assert -10 < row["left"] <= 0
    if left:  # for 0.2.5 it stays held for half a second
        assert row["updated"] == row["touched"]
        assert session.one(
            f"SELECT updated + interval '60 s' - {NOW} BETWEEN '-9 s' AND '0.5 s'"
            " FROM _score_distlock"
        )
        assert session.run("Probe", "name", ZONE, LEASE) == [{"held": True}], "it is awaited"
        assert not take(session, "Acquire")


@pytest.mark.parametrize("title", ["Acquire", "Retake"])
def test_a_newcomer_leaves_those_who_wait_a_second(session: Session, title: str) -> None:
    for seconds, awaited in ((0.0, True), (3.0, False)):
        session.put("released", waiters=[FIRST])
        query = "UPDATE _score_distlock SET expires = clock_timestamp() - %s * interval '1 s'"
        session.db.execute(query, (seconds,))
        assert session.run("Probe", "name", ZONE, LEASE) == [{"held": awaited}]
        assert bool(take(session, title)) == (title == "Acquire" and not awaited)
        session.db.execute("DELETE FROM _score_distlock")


@pytest.mark.parametrize("again", [False, True])
def test_the_first_takes_its_turn(session: Session, again: bool) -> None:
    session.put("released", waiters=[SECOND, FIRST])
    assert not take(session, "Take", FIRST, again), "it is not the first"
    session.db.execute("DELETE FROM _score_distlock")
    session.put("released", waiters=[FIRST, SECOND, DEAD])
    assert take(session, "Take", FIRST, again)
    assert session.rows()["name"]["waiters"] == [SECOND, DEAD, *([FIRST] if again else [])]


@pytest.mark.parametrize(("place", "ahead"), [(0, 0), (1, 1), (3, 2), (4, 2)])
def test_a_waiter_may_take_it_when_those_before_it_have_had_their_time(
    session: Session, other: Session, place: int, ahead: int
) -> None:
    """Half a second each; dead ones get none, and a process gets only one."""
    queue = [FIRST, SECOND, ticket(ALSO_ALIVE, 2), DEAD]
    tickets = [FIRST, SECOND, DEAD, DEAD, ticket(GONE, 7)]
    own = tickets[place]
    for seconds in (0.0, 0.5 * ahead + 3.0):
        session.put("held", waiters=queue)
        query = "UPDATE _score_distlock SET expires = clock_timestamp() - %s * interval '1 s'"
        session.db.execute(query, (seconds,))
        (row,) = session.run("Wait", "name", "new", LEASE, ZONE, "me", own, 0, [], False)
        assert (row["fence"] is not None) == (seconds > 0 or ahead == 0)
        if seconds == 0 and ahead:
            assert row["ahead"] == ahead
            assert row["waiters"] == (queue if own in queue else [*queue, own])
        else:
            assert session.rows()["name"]["waiters"] == [one for one in queue if one != own]
        session.db.execute("DELETE FROM _score_distlock")


def test_entering_the_queue(session: Session, other: Session) -> None:
    session.put("held", waiters=[SECOND])
    session.put("held", "bystander", waiters=[SECOND])
    before = session.rows()
    (row,) = session.run("Wait", "name", "new", LEASE, ZONE, "me", FIRST, 0, [], False)
    after = session.rows()
    assert not changed(before["bystander"], after["bystander"])
    assert changed(before["name"], after["name"]) == {"waiters"}
    assert row["waiters"] == after["name"]["waiters"] == [SECOND, FIRST]
    assert (row["live"], row["mine"], row["foreign_hold"], row["ahead"]) == (True, False, False, 1)
    assert row["seen_fence"] == 5
    assert 40 < row["remaining"] <= 50
    # Again: it finds its ticket.
    (row,) = session.run("Wait", "name", "new", LEASE, ZONE, "me", FIRST, 0, [], False)
    assert row["waiters"] == [SECOND, FIRST]
    # With a new listening connection it keeps its place.
    third = ticket(10)
    (row,) = session.run("Wait", "name", "new", LEASE, ZONE, "me", third, SECOND, [], False)
    assert row["waiters"] == [third, FIRST]


@pytest.mark.parametrize("state", LIVE)
def test_a_waiter_is_told_whose_hold_it_is(session: Session, state: str) -> None:
    session.put(state)
    for _ in range(2):  # when it enters the queue, and when it is already in it
        (row,) = session.run("Wait", "name", "new", LEASE, ZONE, "me", *WAIT)
        assert row["foreign_hold"] == (not STATES[state].ours)
        assert row["live"]


@pytest.mark.parametrize("again", [False, True])
def test_who_takes_it_leaves_the_queue_or_goes_to_its_end(session: Session, again: bool) -> None:
    session.put("released", waiters=[FIRST, SECOND])
    session.db.execute("UPDATE _score_distlock SET expires = '2000-01-01'")
    assert take(session, "Wait", FIRST, 0, [], again)
    assert session.rows()["name"]["waiters"] == [SECOND, *([FIRST] if again else [])]
    session.db.execute("DELETE FROM _score_distlock")
    earlier = ticket(10)
    session.put("released", waiters=[earlier, SECOND])
    session.db.execute("UPDATE _score_distlock SET expires = '2000-01-01'")
    assert take(session, "Wait", FIRST, earlier, [], again)
    assert session.rows()["name"]["waiters"] == [SECOND, *([FIRST] if again else [])]
    # The row and its queue were deleted, and the waiter has noticed.
    session.db.execute("DELETE FROM _score_distlock")
    assert take(session, "Wait", FIRST, 0, [SECOND], again)
    assert session.rows()["name"]["waiters"] == [SECOND, *([FIRST] if again else [])]


@pytest.mark.parametrize("state", ["held", "released", "expired by 0.2.5"])
def test_who_leaves_a_free_lock_calls_the_next(
    session: Session, listening: Session, state: str
) -> None:
    session.put(state, waiters=[FIRST, SECOND])
    session.put(state, "bystander", waiters=[FIRST, SECOND])
    session.run("Leave", "name", FIRST, LEASE, ZONE)
    rows = session.rows()
    assert rows["name"]["waiters"] == [SECOND]
    assert rows["bystander"]["waiters"] == [FIRST, SECOND]
    assert heard(listening) == (set() if state == "held" else {turn(SECOND)})
    session.run("Leave", "name", FIRST, LEASE, ZONE)
    assert heard(listening) == set(), "it was not there any more"
    session.run("Leave", "name", SECOND, LEASE, ZONE)
    assert session.rows()["name"]["waiters"] is None
    assert heard(listening) == set()


# Tidying up.


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("title", ["Vacuum", "Sweep"])
def test_only_what_nobody_holds_is_deleted(session: Session, title: str, state: str) -> None:
    session.put(state, "a")
    session.put(state, "b")
    arguments = [0, 100, 1] if title == "Sweep" else []
    session.run(title, LEASE, ZONE, *arguments)
    assert len(session.rows()) == (2 if STATES[state].live else 0)


@pytest.mark.parametrize("title", ["Vacuum", "Sweep"])
@pytest.mark.parametrize(("seconds", "stays"), [(30, True), (90, False)])
def test_who_waits_is_left_a_minute(
    session: Session, title: str, seconds: int, stays: bool
) -> None:
    session.put("released", waiters=[FIRST])
    query = "UPDATE _score_distlock SET expires = clock_timestamp() - %s * interval '1 s'"
    session.db.execute(query, (seconds,))
    session.run(title, LEASE, ZONE, *([0, 100, 1] if title == "Sweep" else []))
    assert bool(session.rows()) == stays


def test_a_sweep_is_bounded(session: Session) -> None:
    for number in range(5):
        session.put("released", str(number))
    assert session.run("Sweep", LEASE, ZONE, 1, 2, 1) == [{"last": 3, "seen": 2}]
    assert set(session.rows()) == {"0", "3", "4"}
    assert session.run("Sweep", LEASE, ZONE, 0, 100, 3600) == [{"last": 5, "seen": 3}]
    assert set(session.rows()) == {"0", "3", "4"}, "they are not free for long enough"
    assert session.run("Sweep", LEASE, ZONE, 5, 2, 1) == [{"last": None, "seen": 0}]


def test_who_is_in_the_way(session: Session, other: Session) -> None:
    session.put("released")
    assert session.run("Busy") == []
    own = other.one("SELECT pg_backend_pid()")
    with other.db.transaction():
        other.db.execute("SELECT FROM _score_distlock")  # readers block nobody
        assert session.run("Busy") == []
        other.db.execute("SELECT FROM _score_distlock FOR KEY SHARE")
        assert session.run("Busy") == [{"pid": own}]
        assert other.run("Busy") == []
        other.put("released", "another")
        assert session.run("Busy") == [{"pid": own}]


def test_whose_session_it_is(session: Session) -> None:
    own = session.one("SELECT pg_backend_pid()")
    before = session.one("SELECT extract(epoch FROM clock_timestamp())::float8")
    (told,) = session.run("Whose", own + 1)
    assert told["alone"] is False
    assert before <= told["instant"] < before + 60
    session.db.execute("SET jit = on")
    assert session.setting("enable_seqscan") == "on"
    assert session.setting("lock_timeout") == "0"
    session.db.execute("SET lock_timeout = '5s'")
    (told,) = session.run("Whose", own)
    assert told["alone"] is True
    assert session.setting("enable_seqscan") == "off"
    assert session.setting("jit") == "off"
    assert session.setting("lock_timeout") == "5s", "somebody wants it so"
    session.db.execute("SET lock_timeout = 0")
    session.db.execute("SET enable_seqscan = on")
    (told,) = session.run("Whose", own)
    assert told["alone"] is True
    assert session.setting("enable_seqscan") == "off"
    assert session.setting("lock_timeout") == "200ms"


@pytest.mark.parametrize("title", TAKING)
def test_who_takes_a_row_is_told_whether_its_fence_is_beyond_the_sequence(
    session: Session, title: str
) -> None:
    last = session.one("SELECT nextval('_score_distlock_fence_seq')")
    for fence, beyond in ((last, False), (last + 1000, True)):
        session.db.execute("DELETE FROM _score_distlock")
        session.put("released", waiters=queue_for(title), fence=fence)
        (row,) = take(session, title)
        assert row["fence"] > fence
        assert row["beyond"] is beyond


@pytest.mark.parametrize("title", ["Acquire", "Wait"])
@pytest.mark.parametrize("state", ["held", "released", None])
def test_a_limit_is_for_the_statement_alone(
    session: Session, title: str, state: str | None
) -> None:
    if state:
        session.put(state, waiters=queue_for(title))
    take(session, title)
    assert session.setting("lock_timeout") == "0"
    assert session.setting() == "on"


def test_a_row_that_a_waiter_makes_is_on_disk_where_all_is(session: Session) -> None:
    with session.db.transaction():
        assert take(session, "Wait")
        assert session.setting() == "on"


def test_who_is_not_the_first_does_not_wait_for_the_row(session: Session, other: Session) -> None:
    session.put("released", waiters=[SECOND, FIRST])
    with other.db.transaction():
        other.db.execute("SELECT FROM _score_distlock FOR NO KEY UPDATE")
        assert not take(session, "Take", FIRST, False)


def test_who_entered_meanwhile_does_not_enter_twice(session: Session, other: Session) -> None:
    """The statement checks the queue again once it has the row."""
    session.put("held")
    blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    while True:
        with other.db.transaction():
            other.db.execute("UPDATE _score_distlock SET waiters = %s", ([FIRST],))
            waiter = Background(take, session, "Wait")
            while waiter.thread.is_alive() and not other.one(blocked):
                pass
        try:
            assert not waiter.result()
        except psycopg.errors.LockNotAvailable:
            continue  # the machine was too slow for the 200 ms
        break
    assert session.rows()["name"]["waiters"] == [FIRST]


@pytest.mark.parametrize("title", TAKING)
@pytest.mark.parametrize("state", [*NOT_LIVE, None])
def test_nothing_is_taken_when_nobody_wants_it_any_more(
    session: Session, title: str, state: str | None
) -> None:
    """Not even a place in the queue."""
    if state:
        session.put(state, waiters=queue_for(title))
    before = session.rows()
    arguments = [TAKERS[title][0], 0, [], False] if title == "Wait" else TAKERS[title]
    just_over = session.one("SELECT extract(epoch FROM clock_timestamp())::float8")
    assert not take(session, title, *arguments, just_over)
    after = session.rows()
    assert after.keys() == before.keys()
    for name, row in before.items():
        assert not changed(row, after[name])
    # There was no other reason, except that some leave the rows of 0.2.5 to the others.
    short = title in ("Retake", "Take")
    if state and not (short and not STATES[state].ours):
        assert take(session, title, *arguments, just_over + 60)


def test_a_token_holds_the_lock_of_its_name(session: Session) -> None:
    session.put("held")
    assert session.run("Held", "name", "T", LEASE, ZONE)
    assert not session.run("Held", "another", "T", LEASE, ZONE)


def test_an_extension_shortens_nothing(session: Session) -> None:
    session.put("held")
    assert session.run("Extend", "name", "T", 10.0, ZONE)
    row = session.rows()["name"]
    assert row["lease"] == 60
    assert 40 < row["left"] <= 50


def test_nobody_listens_twice_under_a_number(session: Session, other: Session) -> None:
    assert session.run("ListenKey", ALIVE) == [{"alone": False}]
    assert session.run("ListenKey", GONE) == [{"alone": True}]


def test_who_locks_another_table_is_in_nobodys_way(session: Session, other: Session) -> None:
    with other.db.transaction():
        other.db.execute("CREATE TEMPORARY TABLE elsewhere (number int) ON COMMIT DROP")
        other.db.execute("LOCK TABLE elsewhere IN EXCLUSIVE MODE")
        assert session.run("Busy") == []
        other.db.execute("LOCK TABLE _score_distlock IN EXCLUSIVE MODE")
        assert session.run("Busy") == [{"pid": other.one("SELECT pg_backend_pid()")}]


def test_who_only_waits_for_the_table_is_in_nobodys_way(session: Session, other: Session) -> None:
    with session.db.transaction():
        session.db.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
        waiter = Background(other.put, "released")
        waits = (
            "SELECT count(*) FROM pg_locks"
            " WHERE NOT granted AND relation = '_score_distlock'::regclass"
        )
        while session.one(waits) == 0:
            pass
        assert session.run("Busy") == []
    waiter.result()


def test_what_kind_of_server_it_is(session: Session) -> None:
    assert session.run("Role") == [{"standby": False, "read_only": False}]
    session.db.execute("SET default_transaction_read_only = on")
    assert session.run("Role") == [{"standby": False, "read_only": True}]


def test_sequences_are_advanced_past_the_table(session: Session) -> None:
    for number in range(6):
        session.put("held", str(number), fence=6)
    session.db.execute("SELECT setval('_score_distlock_id_seq', 1, false)")
    assert session.run("Repair", 4) == [{"done": False, "fence_done": False}]
    assert session.run("Repair", 4) == [{"done": True, "fence_done": True}]
