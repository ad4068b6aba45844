"""Other roles of the same database: what they own, create, lock and send."""

from __future__ import annotations

import contextlib
import pickle
import re
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

import score.distlock
from score.distlock import CouldNotAcquireLock
from score.distlock._distlock import _statements
from score.init import ConfigurationError

from .conftest import with_options
from .support.line import Background, wait_until_waiting
from .support.proxy import Proxy
from .support.server import Server
from .test_guard_trust import connected, execute
from .test_schema import ORIGINAL_TABLE
from .test_waiting import SOON, ticket_of_the_last

Conf = score.distlock.ConfiguredDistlockModule
Db = psycopg.Connection[Any]

OPERATOR = r"[-+*/<>=~!@#%^&|?]+"
STATEMENTS = {title: (text, types) for title, text, types in _statements("locks")}
# The types that statements compare and pass on.
TYPES = [
    "text",
    "varchar",
    "name",
    "bool",
    "int2",
    "int4",
    "int8",
    "float8",
    "numeric",
    "oid",
    "regclass",
    "regprocedure",
    "timestamp",
    "timestamptz",
    "interval",
    '"char"',
    "text[]",
    "int8[]",
    "float8[]",
]


def softened(text: str) -> str:
    """The statement as someone would write it who trusts every role."""
    plain = re.sub(rf"OPERATOR\(pg_catalog\.({OPERATOR})\)", r"\1", text)
    return plain.replace("pg_catalog.", "").replace('"locks".', "")


def with_search_path(url: str, path: str) -> str:
    return with_options(url, f"options=-csearch_path%3D{path}")


def words(texts: list[str]) -> set[str]:
    return set(re.findall(r"[a-z_][a-z0-9_]*", " ".join(texts)))


@pytest.fixture
def hostile(url: str, db: Db) -> str:
    """A schema that offers a better match for every name in every statement.

    Each of its objects raises an exception when it runs. Returns a URL whose search path has
    the schema before the system's own.
    """
    texts = [text for text, _ in STATEMENTS.values()]
    texts.append(score.distlock._distlock._schema("locks", "somebody"))
    operators = {match for text in texts for match in re.findall(OPERATOR, softened(text))}
    named = words(texts)
    db.execute("CREATE SCHEMA locks")
    score.distlock.init({"sqlalchemy.url": with_search_path(url, "locks")})
    db.execute("CREATE SCHEMA hostile")
    system = "SELECT {} FROM pg_catalog.{} WHERE {}namespace = 'pg_catalog'::regnamespace"

    def known(column: str, table: str, prefix: str) -> set[str]:
        found = db.execute(system.format(column, table, prefix).encode())
        return {name for (name,) in found} & named

    for relation in known("relname", "pg_class", "rel") | {"_score_distlock"}:
        create = sql.SQL("CREATE TABLE hostile.{} (id int8, name varchar, token varchar)")
        db.execute(create.format(sql.Identifier(relation)))
    db.execute("CREATE SEQUENCE hostile._score_distlock_fence_seq")
    relations = known("relname", "pg_class", "rel")
    for kind in known("typname", "pg_type", "typ") - relations:
        create = sql.SQL("CREATE DOMAIN hostile.{} AS pg_catalog.{}")
        with contextlib.suppress(psycopg.errors.Error):  # pseudo-types have no domains
            db.execute(create.format(sql.Identifier(kind), sql.Identifier(kind)))
    body = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'code of another role has run'; END $$"
    overloads = db.execute("""
        SELECT proname, pg_get_function_result(oid),
               ARRAY(SELECT format_type(kind, NULL) FROM unnest(proargtypes) AS kind)
          FROM pg_proc
         WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f'
    """).fetchall()
    nearer = {"text": "varchar", "bigint": "integer", "real": "float8", "anyarray": "bigint[]"}
    for name, result, types in overloads:
        if name not in named:
            continue
        for arguments in {tuple(types), tuple(nearer.get(kind, kind) for kind in types)}:
            kinds = sql.SQL(", ".join(arguments))
            create = sql.SQL("CREATE FUNCTION hostile.{}({}) RETURNS {} " + body)
            with contextlib.suppress(psycopg.errors.Error):  # "any", internal
                db.execute(create.format(sql.Identifier(name), kinds, sql.SQL(result)))
    for operator in operators:
        for left in TYPES:
            for right in TYPES:
                function = sql.Identifier(f"{operator} {left} {right}")
                kinds = sql.SQL(f"{left}, {right}")
                create = sql.SQL("CREATE FUNCTION hostile.{}({}) RETURNS bool " + body)
                db.execute(create.format(function, kinds))
                create = sql.SQL(
                    f"CREATE OPERATOR hostile.{operator} (FUNCTION = hostile.{{}},"
                    f" LEFTARG = {left}, RIGHTARG = {right})"
                )
                with contextlib.suppress(psycopg.errors.SyntaxError):  # such as =>
                    db.execute(create.format(function))
    return with_search_path(url, "locks,hostile,pg_catalog")


def strangers(db: Db, text: str, types: list[str]) -> set[str]:
    """The objects that a statement refers to outside the system's, according to the server."""
    kinds = ", ".join(f"pg_catalog.{kind}" for kind in types)
    with db.transaction(force_rollback=True):
        db.execute("SET LOCAL search_path TO locks, hostile, pg_catalog")
        body = f"BEGIN ATOMIC {text}; END"
        db.execute(f"CREATE FUNCTION locks.probe({kinds}) RETURNS void {body}".encode())
        found = db.execute("""
            SELECT pg_catalog.pg_describe_object(refclassid, refobjid, 0)
              FROM pg_catalog.pg_depend
             WHERE objid OPERATOR(pg_catalog.=) 'locks.probe'::pg_catalog.regproc
               AND deptype OPERATOR(pg_catalog.=) 'n'
        """).fetchall()
    return {
        what
        for (what,) in found
        if what
        not in {
            "schema locks",
            "table locks._score_distlock",
            "sequence locks._score_distlock_fence_seq",
            "table _score_distlock",
            "sequence _score_distlock_fence_seq",
            "view pg_catalog.pg_roles",
            "view pg_catalog.pg_locks",
            "view pg_catalog.pg_stat_activity",
            "view pg_catalog.pg_stat_ssl",
        }
    }


def test_no_statement_means_anything_of_another_role(hostile: str, db: Db) -> None:
    bitten = set()
    for title, (text, types) in STATEMENTS.items():
        assert strangers(db, text, types) == set(), title
        # Without its precautions, the statement is fooled: so the test can fail.
        try:
            fallen = strangers(db, softened(text), types) != set()
        except psycopg.Error:
            fallen = True  # the statement made no sense with these objects
        if fallen:
            bitten.add(title)
    assert set(STATEMENTS) - bitten == set()


@pytest.mark.parametrize("before", ["", ORIGINAL_TABLE], ids=["fresh", "made by 0.2.5"])
def test_a_whole_life_runs_no_code_of_another_role(
    url: str, hostile: str, db: Db, before: str
) -> None:
    db.execute("DROP TABLE hostile._score_distlock, locks._score_distlock")
    db.execute("DROP SEQUENCE hostile._score_distlock_fence_seq")
    if before:
        db.execute("SET search_path TO locks")
        db.execute(before)
    conf = score.distlock.init({"sqlalchemy.url": hostile, "maxtime": "2s"})
    lock = conf.get("name")
    for _ in range(3):
        with lock:
            lock.extend()
            lock.transfer()
            assert conf.try_acquiring("name") is None
            with psycopg.connect(hostile) as connection, lock.guard(connection):
                pass
    with conf.acquire_all(["a", "b"]):
        pass
    token = conf.acquire("name")
    waiter = threading.Thread(target=lambda: conf.get("name").acquire(timeout=30))
    waiter.start()
    queue = "SELECT waiters FROM locks._score_distlock WHERE name = 'name'"
    while db.execute(queue).fetchone() == (None,):
        pass
    conf.release("name", token)
    waiter.join()
    lost = threading.Event()
    with conf.get("kept").hold(autoextend=True, on_lost=lambda _: lost.set()):
        first = db.execute("SELECT expires FROM locks._score_distlock WHERE name = 'kept'")
        expires = first.fetchone()
        renewed = expires
        while renewed == expires:
            found = db.execute("SELECT expires FROM locks._score_distlock WHERE name = 'kept'")
            renewed = found.fetchone()
    assert not lost.is_set()
    # SQLAlchemy itself would be fooled when it connects.
    with connected(url, "session psycopg") as session:
        execute(session, "SET search_path TO locks, hostile, pg_catalog")
        conf.vacuum(session)
    conf.vacuum()


@pytest.fixture
def roles(url: str, db: Db) -> Iterator[tuple[str, str]]:
    """The names of two roles: the application's, and a stranger's. Both may create tables."""
    names = [f"{db.info.dbname}_{who}" for who in ("app", "stranger")]
    for name in names:
        db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        db.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(name)))
    yield names[0], names[1]
    for name in names:
        db.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
        db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def of_role(url: str, role: str) -> str:
    return url.replace("postgres@", role + "@")


SPY = """
CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO spoils VALUES (NEW.token);
    RETURN NEW;
END $$;
CREATE TABLE spoils (token text);
GRANT ALL ON spoils TO public;
CREATE TRIGGER spy BEFORE INSERT OR UPDATE ON _score_distlock
    FOR EACH ROW EXECUTE FUNCTION spy();
"""


@pytest.mark.parametrize("superuser", [False, True])
def test_a_squatted_table_is_refused(
    url: str, db: Db, roles: tuple[str, str], superuser: bool
) -> None:
    app, stranger = roles
    if superuser:
        db.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(sql.Identifier(app)))
    with psycopg.connect(of_role(url, stranger), autocommit=True) as connection:
        connection.execute(score.distlock._distlock._schema("public", None).encode())
        connection.execute(SPY.encode())
        connection.execute("GRANT ALL ON _score_distlock TO public")
        connection.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO public")
    own = of_role(url, app)
    with pytest.raises(ConfigurationError) as raised:
        score.distlock.init({"sqlalchemy.url": own})
    for part in ("public", stranger, "trigger spy", f"table_owner = {stranger}"):
        assert part in str(raised.value)
    with pytest.raises(ConfigurationError, match="belong to"):
        score.distlock.ConfiguredDistlockModule(own, 60).acquire("name")
    assert db.execute("SELECT count(*) FROM spoils").fetchone() == (0,)
    conf = score.distlock.init({"sqlalchemy.url": own, "table_owner": stranger})
    assert conf.acquire("name")


@pytest.mark.parametrize(
    "squat",
    [
        "CREATE SEQUENCE _score_distlock_fence_seq",
        ORIGINAL_TABLE,
        "CREATE VIEW _score_distlock AS SELECT 1 AS id",
    ],
    ids=["sequence", "incomplete table", "view"],
)
def test_parts_of_a_squatted_table_are_refused(
    url: str, db: Db, roles: tuple[str, str], squat: str
) -> None:
    app, stranger = roles
    with psycopg.connect(of_role(url, stranger), autocommit=True) as connection:
        connection.execute(squat.encode())
    with pytest.raises((ConfigurationError, score.distlock.DatabaseError)) as raised:
        score.distlock.init({"sqlalchemy.url": of_role(url, app)})
    found = db.execute(
        "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname LIKE '_score_distlock%'"
    ).fetchall()
    assert {owner for (owner,) in found} == {stranger}, "nothing was left behind"
    assert "_score_distlock" in str(raised.value)


def test_the_refusal_names_what_is_on_the_table(url: str, db: Db, roles: tuple[str, str]) -> None:
    """And nothing that is on other tables."""
    app, stranger = roles
    db.execute("CREATE VIEW unconcerned AS SELECT 1")
    with psycopg.connect(of_role(url, stranger), autocommit=True) as connection:
        connection.execute(score.distlock._distlock._schema("public", None).encode())
        connection.execute(SPY.encode())
        connection.execute("CREATE RULE look AS ON DELETE TO _score_distlock DO ALSO NOTHING")
        connection.execute("CREATE POLICY see ON _score_distlock USING (true)")
    with pytest.raises(ConfigurationError) as raised:
        score.distlock.init({"sqlalchemy.url": of_role(url, app)})
    assert "On it: trigger spy, rule look, policy see." in str(raised.value)


def test_tables_of_others_do_not_matter(url: str, db: Db, roles: tuple[str, str]) -> None:
    app, stranger = roles
    with psycopg.connect(of_role(url, stranger), autocommit=True) as connection:
        connection.execute("CREATE TABLE theirs (id serial)")
    for _ in range(2):
        score.distlock.init({"sqlalchemy.url": of_role(url, app)})


def test_a_trigger_by_somebody_who_may_add_triggers_is_refused(
    url: str, db: Db, roles: tuple[str, str]
) -> None:
    app, stranger = roles
    score.distlock.init({"sqlalchemy.url": of_role(url, app)})
    grant = sql.SQL("GRANT TRIGGER ON _score_distlock TO {}")
    db.execute(grant.format(sql.Identifier(stranger)))
    with psycopg.connect(of_role(url, stranger), autocommit=True) as connection:
        connection.execute(SPY.encode())
    with pytest.raises(ConfigurationError, match="trigger spy"):
        score.distlock.init({"sqlalchemy.url": of_role(url, app)})


def test_tables_of_those_who_need_no_trust(url: str, db: Db, roles: tuple[str, str]) -> None:
    app, other = roles
    score.distlock.init({"sqlalchemy.url": url})  # as a superuser
    db.execute(sql.SQL("GRANT ALL ON _score_distlock TO {}").format(sql.Identifier(app)))
    grant = sql.SQL("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {}")
    db.execute(grant.format(sql.Identifier(app)))
    score.distlock.init({"sqlalchemy.url": of_role(url, app)}).acquire("of a superuser")
    db.execute(sql.SQL("ALTER TABLE _score_distlock OWNER TO {}").format(sql.Identifier(other)))
    # Another role is a member of it.
    db.execute(sql.SQL("GRANT {} TO postgres").format(sql.Identifier(other)))
    with pytest.raises(ConfigurationError, match="belong to"):
        score.distlock.init({"sqlalchemy.url": of_role(url, app)})
    db.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(other), sql.Identifier(app)))
    score.distlock.init({"sqlalchemy.url": of_role(url, app)}).acquire("of a role we are in")
    db.execute(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(other), sql.Identifier(app)))
    database, owner = sql.Identifier(db.info.dbname), sql.Identifier(other)
    db.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, owner))
    try:
        score.distlock.init({"sqlalchemy.url": of_role(url, app)}).acquire("of the database's")
    finally:
        db.execute(sql.SQL("ALTER DATABASE {} OWNER TO postgres").format(database))


def test_no_advisory_lock_decides_who_holds_a_lock(url: str, conf: Conf, db: Db) -> None:
    """Anyone can take one, as pg_locks shows its key."""
    db.execute("CREATE TABLE seen (key text)")
    db.execute("""
        CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seen SELECT (classid, objid)::text FROM pg_locks
             WHERE locktype = 'advisory' AND pid = pg_backend_pid();
            RETURN NEW;
        END $$
    """)
    db.execute(
        "CREATE TRIGGER look BEFORE INSERT OR UPDATE ON _score_distlock"
        " FOR EACH ROW EXECUTE FUNCTION look()"
    )
    for _ in range(3):
        with conf.get("name") as lock:
            lock.extend()
            lock.transfer()
    assert db.execute("SELECT * FROM seen").fetchall() == []


def test_init_needs_no_lock_that_somebody_keeps(url: str, db: Db) -> None:
    key = int.from_bytes(b"distlock", "big")
    db.execute("SELECT pg_advisory_lock(%s)", (key,))
    assert score.distlock.init({"sqlalchemy.url": url}).acquire("name")


@pytest.mark.parametrize("timeout", [0, 0.3], ids=["at once", "waiting"])
@pytest.mark.parametrize("how", ["row", "inserted", "guarded", "by name", "table"])
def test_busy_is_told_from_held(url: str, conf: Conf, db: Db, how: str, timeout: float) -> None:
    lock = conf.get("name")
    with psycopg.connect(url) as other:
        if how == "inserted":
            other.execute(
                "INSERT INTO _score_distlock (name, acquired, updated, token)"
                " VALUES ('name', now(), now(), 'x')"
            )
        else:
            lock.acquire()
            if how == "guarded":
                with lock.guard(other):
                    pass
                lock.release()
            elif how == "table":
                lock.release()
                other.execute("LOCK TABLE _score_distlock IN ACCESS EXCLUSIVE MODE")
                assert lock.try_acquiring() is None
            else:
                lock.release()
                other.execute("SELECT * FROM _score_distlock FOR UPDATE")
        with pytest.raises(CouldNotAcquireLock) as raised:
            if how == "by name":
                conf.acquire("name", timeout=timeout)
            else:
                lock.acquire(timeout=timeout)
        assert raised.value.args == ("name",)
        assert raised.value.busy == (other.info.backend_pid,)
        assert str(other.info.backend_pid) in str(raised.value)
        assert "held by nobody" in str(raised.value)
        assert pickle.loads(pickle.dumps(raised.value)).busy == raised.value.busy
        other.rollback()
    token = conf.acquire("name")
    with pytest.raises(CouldNotAcquireLock, match="held by somebody else") as held:
        conf.acquire("name", timeout=timeout)
    assert held.value.busy is None
    conf.release("name", token)


def test_forged_notifications_cause_little_work(server: Server, server_url: str) -> None:
    database = server_url.partition("?")[0].rpartition("/")[2]
    proxy = Proxy(f"{server.folder}/.s.PGSQL.{server.port}")
    direct = score.distlock.init({"sqlalchemy.url": server_url})
    through = score.distlock.init({"sqlalchemy.url": proxy.url(database)})
    with contextlib.closing(proxy), psycopg.connect(server_url, autocommit=True) as forger:
        token = direct.acquire("name")
        waiter = Background(through.acquire, "name", timeout=SOON)
        wait_until_waiting(forger, 1)
        ticket = ticket_of_the_last(forger)
        counted = proxy.arm("request", 1_000_000, "before")
        for number in range(6000):
            channel, word = f"score_distlock_{ticket >> 24:x}", ("turn", "next")[number % 2]
            forger.execute("SELECT pg_notify(%s, %s)", (channel, f"{word} {ticket}"))
        requests = 1_000_000 - counted.index
        assert 0 < requests < 300
        direct.release("name", token)
        assert waiter.result()


EVIL = """
CREATE FUNCTION {0}.evil(text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'code of another role has run';
END $$;
GRANT EXECUTE ON FUNCTION {0}.evil(text) TO public;
CREATE OPERATOR {0}.=== (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text);
"""


@pytest.mark.parametrize(
    "trigger",
    [
        "CREATE TRIGGER any_name BEFORE INSERT OR UPDATE ON _score_distlock FOR EACH ROW"
        " WHEN ({0}.evil(NEW.token))",
        "CREATE OR REPLACE TRIGGER score_distlock_one_vacuum_at_a_time BEFORE INSERT OR UPDATE"
        " ON _score_distlock FOR EACH ROW WHEN ({0}.evil(NEW.token))",
        "CREATE OR REPLACE TRIGGER score_distlock_one_vacuum_at_a_time BEFORE DELETE"
        " ON _score_distlock FOR EACH STATEMENT WHEN ({0}.evil('x'))",
        "CREATE TRIGGER any_name BEFORE INSERT OR UPDATE ON _score_distlock FOR EACH ROW"
        " WHEN (pg_notify('spoils', NEW.token) IS NULL)",
        "CREATE OR REPLACE TRIGGER score_distlock_one_vacuum_at_a_time BEFORE DELETE"
        " ON _score_distlock FOR EACH STATEMENT WHEN ('x' OPERATOR({0}.===) 'y')",
    ],
    ids=["any name", "our name", "our trigger", "only the system's functions", "an operator"],
)
def test_code_in_the_condition_of_a_trigger_is_refused(
    url: str, db: Db, roles: tuple[str, str], trigger: str
) -> None:
    app, stranger = roles
    score.distlock.init({"sqlalchemy.url": of_role(url, app)})
    name = sql.Identifier(stranger)
    db.execute(sql.SQL("GRANT TRIGGER ON _score_distlock TO {}").format(name))
    db.execute(sql.SQL("CREATE SCHEMA {0} AUTHORIZATION {0}").format(name))
    db.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO public").format(name))
    function = "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    with psycopg.connect(of_role(url, stranger), autocommit=True) as connection:
        connection.execute(EVIL.format(stranger).encode())
        connection.execute(f"{trigger.format(stranger)} {function}".encode())
    with pytest.raises(ConfigurationError, match=stranger):
        score.distlock.init({"sqlalchemy.url": of_role(url, app)})
