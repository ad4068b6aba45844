"""What score.distlock 0.2.5 does, case by case; runs with it and with this module.

Usage: behaviours.py URL. Prints a JSON object: name of the case → observation.
Uses only the standard library, score.distlock and SQLAlchemy.
"""

import inspect
import json
import pickle
import sys
import time
from datetime import timedelta

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def raised(function, *arguments, **options):
    """The exception's class and its number of arguments, or the result."""
    try:
        return ["returned", repr(function(*arguments, **options))]
    except Exception as error:
        return ["raised", type(error).__name__]


class Application:
    """A configuration and the ways to create another one."""

    def __init__(self, url):
        self.url = url
        import score.distlock

        self.module = score.distlock

    def configure(self, maxtime="1m", **more):
        return self.module.init({"sqlalchemy.url": self.url, "maxtime": maxtime, **more})


def parameters(function):
    """Names, kinds and defaults of the positional parameters."""
    return [
        [parameter.name, repr(parameter.default)]
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


@case
def signatures(app):
    conf, lock = app.module.ConfiguredDistlockModule, app.module.Lock
    return {
        "init": parameters(app.module.init),
        "ConfiguredDistlockModule": parameters(conf),
        "get": parameters(conf.get),
        "conf.acquire": parameters(conf.acquire),
        "conf.try_acquiring": parameters(conf.try_acquiring),
        "conf.extend": parameters(conf.extend),
        "conf.release": parameters(conf.release),
        "conf.vacuum": parameters(conf.vacuum),
        "lock.acquire": parameters(lock.acquire),
        "lock.try_acquiring": parameters(lock.try_acquiring),
        "lock.extend": parameters(lock.extend),
        "lock.release": parameters(lock.release),
    }


@case
def is_a_configured_module(app):
    import score.init

    conf = app.configure()
    return [isinstance(conf, score.init.ConfiguredModule), conf._finalized]


@case
def the_same_object_while_it_lives(app):
    conf = app.configure()
    first = conf.get("a")
    return [conf.get("a") is first, conf.get("b") is first, first.conf is conf, first.name]


@case
def another_object_later(app):
    conf = app.configure()
    conf.acquire("later")
    return conf.get("later").token


@case
def tokens(app):
    token = app.configure().acquire("tokens")
    return [type(token).__name__, len(token), set(token) <= set("0123456789abcdef")]


@case
def the_lock_knows_its_token(app):
    lock = app.configure().get("known")
    before = lock.token
    token = lock.acquire()
    during = lock.token == token
    lock.release()
    return [before, during, lock.token]


@case
def held_by_somebody_else(app):
    token = app.configure().acquire("held")
    other = app.configure()
    try:
        other.acquire("held")
    except app.module.CouldNotAcquireLock as error:
        args = list(error.args)
    return [args, other.try_acquiring("held"), bool(token)]


@case
def try_acquiring_a_free_lock(app):
    return len(app.configure().try_acquiring("free"))


@case
def tokens_cross_objects(app):
    token = app.configure().acquire("crossing")
    other = app.configure()
    other.extend("crossing", token)
    other.get("crossing").extend(token)
    refused = raised(app.configure().acquire, "crossing")
    other.release("crossing", token)
    return [refused, len(app.configure().acquire("crossing"))]


@case
def tokens_may_be_bytes(app):
    conf = app.configure()
    token = conf.acquire("bytes")
    other = app.configure()
    other.extend("bytes", token.encode("ascii"))
    other.release("bytes", token.encode("ascii"))
    return len(conf.acquire("bytes"))


@case
def wrong_token(app):
    conf = app.configure()
    token = conf.acquire("wrong")
    other = app.configure()
    wrong = "0" * 256
    seen = []
    for function in (other.extend, other.release):
        try:
            function("wrong", wrong)
        except app.module.LockExpired as error:
            seen.append([list(error.args) == ["wrong", wrong], len(error.args)])
    return [seen, raised(other.extend, "wrong", token)]


@case
def something_that_is_no_token(app):
    conf = app.configure()
    conf.acquire("no-token")
    other = app.configure()
    return [raised(other.extend, "no-token", "nonsense"), raised(other.release, "no-token", "x")]


@case
def token_of_another_name(app):
    conf = app.configure()
    token = conf.acquire("name one")
    conf.acquire("name two")
    return raised(app.configure().release, "name two", token)


@case
def released_token(app):
    conf = app.configure()
    token = conf.acquire("released")
    conf.release("released", token)
    return [raised(conf.extend, "released", token), raised(conf.release, "released", token)]


@case
def expired_token(app):
    conf = app.configure("200ms")
    token = conf.acquire("expired")
    time.sleep(0.5)
    return [raised(conf.extend, "expired", token), raised(conf.release, "expired", token)]


@case
def expired_hold_is_taken_over(app):
    app.configure("200ms").acquire("taken over")
    time.sleep(0.5)
    return len(app.configure("200ms").acquire("taken over"))


@case
def no_token(app):
    conf = app.configure()
    conf.acquire("none")
    lock = app.configure().get("none")
    return [
        raised(lock.extend),
        raised(lock.release),
        raised(lock.release, ignore_expired=True),
        raised(lock.extend, ""),
    ]


@case
def ignore_expired(app):
    lock = app.configure("100ms").get("ignored")
    lock.acquire()
    time.sleep(0.3)
    return raised(lock.release, ignore_expired=True)


@case
def context_manager(app):
    conf = app.configure()
    with conf.get("with") as lock:
        inside = [lock is conf.get("with"), len(lock.token)]
        lock.extend()
        refused = raised(app.configure().acquire, "with")
    return [inside, refused, lock.token, len(app.configure().acquire("with"))]


@case
def context_manager_of_a_held_lock(app):
    conf = app.configure()
    conf.acquire("busy")
    try:
        with app.configure().get("busy"):
            return "entered"
    except app.module.CouldNotAcquireLock as error:
        return list(error.args)


@case
def block_that_outlives_its_lease(app):
    try:
        with app.configure("100ms").get("outlived"):
            time.sleep(0.3)
    except app.module.LockExpired as error:
        return [error.args[0], error.__context__ is None]


@case
def exception_of_a_block_that_outlives_its_lease(app):
    try:
        with app.configure("100ms").get("outlived too"):
            time.sleep(0.3)
            raise KeyError("the body's own")
    except app.module.LockExpired as error:
        return repr(error.__context__)


@case
def exception_of_a_block(app):
    conf = app.configure()
    try:
        with conf.get("raising"):
            raise KeyError("the body's own")
    except KeyError as error:
        return [repr(error), len(app.configure().acquire("raising"))]


@case
def released_inside_the_block(app):
    conf = app.configure()

    def block():
        with conf.get("inside") as lock:
            lock.release()

    return raised(block)


@case
def extending_keeps_a_hold(app):
    conf = app.configure("600ms")
    token = conf.acquire("kept")
    for _ in range(4):
        time.sleep(0.3)
        conf.extend("kept", token)
    return raised(app.configure("600ms").acquire, "kept")


@case
def maxtimes(app):
    seen = {}
    for value in ("1m", "500ms", "2 hours", "0", "90s", "1d"):
        seen[value] = app.configure(value).maxtime
    seen["default"] = app.module.init({"sqlalchemy.url": app.url}).maxtime
    return seen


@case
def maxtime_of_zero(app):
    conf = app.configure("0")
    token = conf.acquire("zero")
    return [raised(conf.extend, "zero", token), len(conf.acquire("zero"))]


@case
def maxtimes_of_the_constructor(app):
    engine = app.configure().engine
    conf = app.module.ConfiguredDistlockModule(engine, 90)
    return [conf.maxtime, len(conf.acquire("by constructor"))]


@case
def names(app):
    conf = app.configure()
    seen = []
    for name in ("", " ", "ключ 🔑", "%s %(a)s :b", "a'b\"c\\d;--", "x" * 2000):
        token = conf.acquire(name)
        seen.append(raised(app.configure().acquire, name)[1])
        conf.release(name, token)
    return seen


@case
def name_with_nul(app):
    return raised(app.configure().acquire, "a\0b")


@case
def vacuum(app):
    conf = app.configure("100ms")
    for number in range(5):
        conf.acquire("vacuum %d" % number)
    long = app.configure("1h")
    long.acquire("vacuum not me")
    time.sleep(0.4)
    query = "SELECT count(*) FROM _score_distlock WHERE name LIKE 'vacuum _'"
    conf.vacuum()
    return scalar(conf.engine, query)


def scalar(engine, query):
    from sqlalchemy import text

    with engine.connect() as connection:
        return connection.execute(text(query)).scalar()


@case
def vacuum_does_not_commit(app):
    from sqlalchemy.orm import sessionmaker

    conf = app.configure("100ms")
    conf.acquire("in session")
    time.sleep(0.3)
    query = "SELECT count(*) FROM _score_distlock WHERE name = 'in session'"
    session = sessionmaker(bind=conf.engine)()
    conf.vacuum(session)
    from sqlalchemy import text

    inside = session.execute(text(query)).scalar()
    session.rollback()
    session.close()
    return [inside, scalar(conf.engine, query)]


@case
def exceptions(app):
    module = app.module
    return [
        issubclass(module.CouldNotAcquireLock, Exception),
        issubclass(module.LockExpired, Exception),
        list(pickle.loads(pickle.dumps(module.CouldNotAcquireLock("n"))).args),
        list(pickle.loads(pickle.dumps(module.LockExpired("n", "t"))).args),
    ]


@case
def second_acquire_of_the_owner(app):
    conf = app.configure()
    lock = conf.get("twice")
    lock.acquire()
    return raised(lock.acquire)[0]


@case
def bytes_as_name(app):
    return raised(app.configure().acquire, b"bytes")


@case
def integer_as_name(app):
    return raised(app.configure().acquire, 7)


@case
def negative_maxtime(app):
    return raised(app.configure, "-5s")[0]


@case
def missing_url(app):
    return raised(app.module.init, {})


@case
def unknown_key(app):
    return raised(app.module.init, {"sqlalchemy.url": app.url, "maxtim": "1m"})[0]


@case
def maxtime_as_timedelta(app):
    return raised(app.configure, timedelta(seconds=90))[0]


def main(url):
    app = Application(url)
    observed = {}
    for name, function in CASES.items():
        try:
            observed[name] = function(app)
        except Exception as error:
            observed[name] = ["failed", type(error).__name__]
    json.dump(observed, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
