"""pytest fixtures for the tests of applications that use locks; see "Testing" in the docs.

Nothing is started, or even imported, until a test requests one of them. That is why this module
is beside the package: pytest imports it for every suite, and score.init does not suit all of them
(with ``-W error``, for instance, it may not compile).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from threading import Lock as Mutex
from time import monotonic, sleep  # a test may patch the module's functions
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pytest

if TYPE_CHECKING:
    from score.distlock import ConfiguredDistlockModule, Lock
    from score.distlock.aio import AsyncLock

    _Any = Lock | AsyncLock | str

#: How long to wait for the other process, unless the test says otherwise.
_PATIENCE = 5.0

#: Matches a token, which is no lock's name and must not be shown.
_TOKEN = re.compile("[0-9a-f]{256}")

#: How long a test marked "contended" waits for its locks, unless its options say otherwise.
_CONTENDED_TIMEOUT = "30s"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--distlock-url`` and the option ``distlock_url`` of the ini file."""
    group = parser.getgroup("distlock", "distributed locks (score.distlock)")
    group.addoption(
        "--distlock-url",
        metavar="URL",
        help="the PostgreSQL that the fixtures of score.distlock use; by default, and for "
        "embedded: or embedded:/folder, one that they start themselves",
    )
    parser.addini("distlock_url", "as --distlock-url, which overrides it")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker."""
    config.addinivalue_line(
        "markers",
        "contended(*names, rivals=2): other owners take the locks that the test's fixture "
        "`distlock` gives, or only those named, in turn with the test for as long as it runs.",
    )


class _Url(str):
    """A URL whose repr, which pytest shows, hides the password."""

    __slots__ = ()

    def __repr__(self) -> str:
        from score.distlock._distlock import _understood

        return repr(_understood(str(self))["shown"])


class _OtherError(RuntimeError):
    """The other process could not do what the test run asked for."""


class _Pipe:
    """The pipe to the other process, which starts at the first request."""

    def __init__(self, server: str, url: str) -> None:
        self.server = server
        self._failure: str | None = None
        #: Each process has its own: it drops what its predecessors have left.
        self._session = ""
        self._url = url
        self._mutex = Mutex()
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

    def session(self) -> str:
        """The number of the process; starts the process if necessary."""
        __tracebackhide__ = True
        with self._mutex:
            self._started()
            return self._session

    def ask(self, do: str, *arguments: object) -> Any:
        """Makes the other process do something; returns the result."""
        __tracebackhide__ = True
        with self._mutex:
            return self._call(self._started(), do, *arguments)

    def _started(self) -> subprocess.Popen[bytes]:
        __tracebackhide__ = True
        if self._failure is not None:
            raise _OtherError(self._failure)
        if self._process is None:
            code = (
                f"import sys; sys.path[:] = {sys.path!r}\n"
                "from score.distlock._pytest_other import main; main()"
            )
            process = self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the test run, which then tidies up
            )
            self._session = f"{secrets.randbits(64):016x}"
            try:
                # Not as an argument, which every user can read.
                self._call(process, "", self._url, self._session)
            except BaseException as error:
                self._end()
                if isinstance(error, _OtherError):
                    # Do not try again for every test.
                    self._failure = str(error)
                raise
        return self._process

    def _call(self, process: subprocess.Popen[bytes], do: str, *arguments: object) -> Any:
        __tracebackhide__ = True
        assert process.stdin is not None
        assert process.stdout is not None
        number = next(self._numbers)
        request = {"number": number, "do": do, "arguments": arguments}
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        while line := process.stdout.readline():
            answer = json.loads(line)
            if answer["number"] == number:  # else it answers a call that was interrupted
                if "error" in answer:
                    raise _OtherError(f"the other process of the tests: {answer['error']}")
                return answer.get("value")
        self._end()  # the next test starts another
        raise _OtherError("the other process of the tests has ended; stderr may tell why")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # the next run drops what is left
                process.kill()
                process.wait()

    def end(self) -> None:
        """Ends the process, which drops what is left."""
        with self._mutex:
            self._end()


class Elsewhere:
    """A hold of another process; leaving it as a context manager ends it."""

    def __init__(self, pipe: _Pipe, key: int, name: str) -> None:
        self._pipe, self._key, self._name = pipe, key, name

    def __repr__(self) -> str:
        return f"<Elsewhere {self._name!r}>"

    def _wait(self) -> None:
        try:
            while (state := self._pipe.ask("state", self._key)) == "waiting":
                sleep(0.005)
            if state != "held":
                from score.distlock import CouldNotAcquireLock

                if state == "refused":
                    raise CouldNotAcquireLock(self._name)
                raise _OtherError(f"the other process of the tests: {state}")
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Releases the lock there; a second call does nothing."""
        self._pipe.ask("end", self._key)

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()


def _in_schema(url: str, schema: str) -> str:
    """The URL with a search path added to its options."""
    from score.distlock._distlock import _understood

    options = f"{_understood(url)['options']} -csearch_path={schema}".strip()
    base, _, query = url.partition("?")
    kept = [part for part in query.split("&") if part and unquote(part).split("=")[0] != "options"]
    return _Url(f"{base}?{'&'.join([*kept, 'options=' + quote(options, safe='')])}")


class _Place:
    """The locks of one test: a schema of their own."""

    def __init__(self, pipe: _Pipe, schema: str) -> None:
        self.pipe = pipe
        self.schema = schema
        self.url = _in_schema(pipe.server, schema)
        self.modules: list[ConfiguredDistlockModule] = []

    def ask(self, do: str, *arguments: object) -> Any:
        __tracebackhide__ = True
        return self.pipe.ask(do, self.schema, *arguments)

    def expire(self, lock: _Any) -> tuple[str, str]:
        """Expires the lease of a hold; returns its name and token."""
        if not isinstance(lock, str) and not (hasattr(lock, "name") and hasattr(lock, "token")):
            raise TypeError(f"pass the Lock, or the name of the lock, not a {type(lock).__name__}")
        name, token = (lock, None) if isinstance(lock, str) else (lock.name, lock.token)
        if not isinstance(lock, str) and token is None:
            raise ValueError(
                f"the lock {name!r} is not held through this object; "
                "to end the hold of another, pass the name"
            )
        expired = self.ask("expire", name, token)
        if expired is None and _TOKEN.fullmatch(name):
            raise ValueError("this is a token: pass the Lock, or the name of the lock")
        if expired is None:
            raise ValueError(
                f"nobody holds the lock {name!r} any more"
                if token
                else f"nobody holds the lock {name!r}, or not in the schema of this test: "
                "configurations of the application have to be made with the fixture `distlock_url`"
            )
        return name, expired

    def tell(self, name: str, token: str) -> None:
        """Makes this process's Lock objects learn from the database that a hold is gone."""
        from score.distlock import ConfiguredDistlockModule, LockExpired

        with ConfiguredDistlockModule(self.url, 60) as conf, contextlib.suppress(LockExpired):
            conf.extend(name, token)
            raise RuntimeError(f"the lock {name!r} is still held")

    def leave(self) -> None:
        """Ends everything the test has left, and drops the schema."""
        from score.distlock import ConfiguredDistlockModule, DistlockError
        from score.distlock._distlock import _waiting

        try:
            self.ask("quiet")
            until = monotonic() + _PATIENCE
            while monotonic() < until:
                holds = self.ask("holds")
                with ConfiguredDistlockModule(self.url, 60) as conf:
                    for name, token in holds:
                        with contextlib.suppress(DistlockError):
                            conf.release(name, token)
                # A waiter in a thread that the test left behind holds the lock next, and so on.
                if not holds and not any(_waiting(name)[0] for name in self.ask("names")):
                    break
                sleep(0.005 if not holds else 0)
        finally:
            for module in self.modules:
                with contextlib.suppress(DistlockError):
                    module.close()
            self.ask("close")


def _server(config: pytest.Config) -> str:
    url = config.getoption("distlock_url") or config.getini("distlock_url")
    return _Url(url or "embedded:")


#: The embedded servers we have started: from their actual URL to the configured one.
_EMBEDDED = pytest.StashKey[dict[str, str]]()


def _running(config: pytest.Config, url: str) -> str:
    """The URL of the server; starts it if it is embedded."""
    from score.distlock import embedded

    if not embedded.is_embedded(url):
        return _Url(url)
    started = embedded.start(url)
    config.stash.setdefault(_EMBEDDED, {})[started] = url
    return _Url(started)


@pytest.fixture(scope="session")
def distlock_server(pytestconfig: pytest.Config) -> str:
    """The URL of the server: from ``--distlock-url``, or of an embedded server."""
    return _running(pytestconfig, _server(pytestconfig))


@pytest.fixture(scope="session")
def _distlock_pipe(distlock_server: str, pytestconfig: pytest.Config) -> Iterator[_Pipe]:
    # The suite may override the fixture distlock_server.
    server = _running(pytestconfig, distlock_server)
    # The other process needs the embedded server until the schemas are dropped.
    pipe = _Pipe(server, pytestconfig.stash.get(_EMBEDDED, {}).get(server, server))
    yield pipe
    pipe.end()


_numbers = itertools.count()


def _contended(*names: str, rivals: int = 2) -> tuple[list[str], int]:
    """Checks the arguments of the marker."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"contended: the name of a lock must be a str, not {name!r}")
    if not isinstance(rivals, int) or not 1 <= rivals <= 50:
        raise ValueError(f"contended: rivals must be a number from 1 to 50, not {rivals!r}")
    return list(names), rivals


@pytest.fixture
def _distlock_place(request: pytest.FixtureRequest, _distlock_pipe: _Pipe) -> Iterator[_Place]:
    from score.distlock._pytest_other import PREFIX

    schema = f"{PREFIX}{_distlock_pipe.session()}_{next(_numbers)}"
    place = _Place(_distlock_pipe, schema)
    try:
        place.ask("open", place.url)
    except BaseException as error:
        if not isinstance(error, Exception):  # Ctrl-C: the schema may already exist
            place.ask("close")
        raise
    try:
        mark = request.node.get_closest_marker("contended")
        if mark is not None:
            place.ask("compete", *_contended(*mark.args, **mark.kwargs))
        yield place
    finally:
        place.leave()


@pytest.fixture
def distlock_url(_distlock_place: _Place) -> str:
    """The URL of this test's locks, for an application or a process that makes its own module."""
    return _distlock_place.url


@pytest.fixture
def distlock_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The configuration of ``distlock`` besides its URL; override it."""
    if request.node.get_closest_marker("contended") is not None:
        return {"timeout": _CONTENDED_TIMEOUT}
    return {}


@pytest.fixture
def distlock(
    _distlock_place: _Place, distlock_url: str, distlock_options: dict[str, Any]
) -> ConfiguredDistlockModule:
    """A configuration whose locks only this test knows."""
    from score.distlock import init

    conf = init({"sqlalchemy.url": distlock_url, **distlock_options})
    _distlock_place.modules.append(conf)
    return conf


@pytest.fixture
def distlock_expire(_distlock_place: _Place) -> Callable[[_Any], None]:
    """``distlock_expire(lock)`` ends its lease now; nobody else has taken it yet."""

    def distlock_expire(lock: _Any) -> None:
        _distlock_place.tell(*_distlock_place.expire(lock))

    return distlock_expire


@pytest.fixture
def distlock_lose(_distlock_place: _Place) -> Callable[..., Elsewhere]:
    """``distlock_lose(lock)`` ends its lease and has another process take the lock."""
    place = _distlock_place

    def distlock_lose(lock: _Any, timeout: float = _PATIENCE) -> Elsewhere:
        name, token = place.expire(lock)
        taken = Elsewhere(place.pipe, place.ask("take", name, token, timeout), name)
        try:
            taken._wait()
        finally:
            place.tell(name, token)
        return taken

    return distlock_lose


@pytest.fixture
def distlock_held_elsewhere(_distlock_place: _Place) -> Callable[..., Elsewhere]:
    """``distlock_held_elsewhere(name)``: another process holds the lock until the hold is left."""
    place = _distlock_place

    def distlock_held_elsewhere(name: str, timeout: float = _PATIENCE) -> Elsewhere:
        if not isinstance(name, str):
            raise TypeError(f"pass the name of the lock as a str, not a {type(name).__name__}")
        held = Elsewhere(place.pipe, place.ask("hold", name, timeout), name)
        held._wait()
        return held

    return distlock_held_elsewhere
