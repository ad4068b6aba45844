"""Functions that run under a lock."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest import mock

import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock

Conf = score.distlock.ConfiguredDistlockModule


def held(conf: Conf, name: str) -> bool:
    """Whether somebody holds a lock, according to another Lock object."""
    token = score.distlock.Lock(conf, name).try_acquiring()
    if token:
        conf.release(name, token)
    return token is None


def test_functions(conf: Conf) -> None:
    @conf.locked("order-{order_id}")
    def ship(order_id: int, *, express: bool = False) -> tuple[bool, bool]:
        """Ships."""
        return held(conf, "order-17"), held(conf, "order-18")

    assert ship(17) == (True, False)
    assert ship(order_id=18, express=True) == (False, True)
    assert not held(conf, "order-17")
    assert (ship.__name__, ship.__doc__) == ("ship", "Ships.")
    assert list(inspect.signature(ship).parameters) == ["order_id", "express"]


def test_fields(conf: Conf) -> None:
    class Order:
        number = 5

    @conf.locked("{order.number}-{kind}-{rest[0]}-{more}-{{}}")
    def ship(order: Order, kind: str = "a", *rest: str, **options: str) -> bool:
        return held(conf, "5-a-x-y-{}")

    assert ship(Order(), "a", "x", more="y")
    with pytest.raises(TypeError, match="missing a required argument: 'order'"):
        ship()  # type: ignore[call-arg]


def test_methods(conf: Conf) -> None:
    class Shop:
        name = "berlin"

        @conf.locked("{self.name}-{item}")
        def sell(self, item: str) -> bool:
            return held(conf, "berlin-book")

        @classmethod
        @conf.locked("{cls.name}")
        def close(cls) -> bool:
            return held(conf, "berlin")

        @staticmethod
        @conf.locked("static")
        def open() -> bool:
            return held(conf, "static")

    shop = Shop()
    assert shop.sell("book")
    assert Shop.close()
    assert shop.open()


def test_coroutines(conf: Conf) -> None:
    @conf.locked("order-{order_id}", timeout=30)
    async def ship(order_id: int) -> str | None:
        await asyncio.sleep(0)
        running.append(order_id)
        assert running.count(order_id) == 1
        await asyncio.sleep(0)
        running.remove(order_id)
        return conf.aio.get(f"order-{order_id}").token

    async def main() -> list[Any]:
        return await asyncio.gather(*(ship(number % 3) for number in range(12)))

    running: list[int] = []
    assert inspect.iscoroutinefunction(ship)
    tokens = asyncio.run(main())
    assert len(set(tokens)) == 12
    assert None not in tokens


def test_recursion_and_partial(conf: Conf) -> None:
    @conf.locked("fact")
    def factorial(number: int) -> int:
        return number * factorial(number - 1) if number else 1

    assert factorial(5) == 120
    assert conf.locked("partial-{number}")(functools.partial(factorial, number=3))() == 6


def test_options(url: str, conf: Conf) -> None:
    token = conf.acquire("name")

    @conf.locked("name")
    def impatient() -> None: ...

    with pytest.raises(CouldNotAcquireLock):
        impatient()
    conf.release("name", token)

    @conf.locked("name", timeout=None, autoextend=True, maxtime="5s", on_lost=print)
    def patient() -> float:
        return conf.get("name").remaining

    assert patient() <= 5
    configured = score.distlock.init({"sqlalchemy.url": url, "timeout": "20ms"})
    conf.acquire("name")
    with pytest.raises(CouldNotAcquireLock):
        configured.locked("name")(print)()


def test_mistakes(conf: Conf) -> None:
    def function(order: int) -> None: ...
    def generator() -> Any:
        yield

    async def agenerator() -> Any:
        yield

    for name, message in (
        ("{ordre}", "field 'ordre', which is not an argument of the function; allowed are order"),
        ("{}", "field without a name"),
        ("{0}", "field without a name"),
    ):
        with pytest.raises(ValueError, match=message):
            conf.locked(name)(function)
    with pytest.raises(ValueError, match=r"expected '}'|Single"):
        conf.locked("{order")
    for wrong in (generator, agenerator):
        with pytest.raises(TypeError, match="generator function"):
            conf.locked("name")(wrong)
    with pytest.raises(TypeError, match="put @staticmethod above"):
        conf.locked("name")(staticmethod(function))
    with pytest.raises(TypeError, match=r"only functions can be locked, not int"):
        conf.locked("name")(1)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"only functions can be locked, not type"):
        conf.locked("name")(Awaitable)
    with pytest.raises(TypeError, match=r"write @conf.locked\('name'\)"):
        conf.locked(function)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error:coroutine", "error::pytest.PytestUnraisableExceptionWarning")
def test_coroutine_functions_in_disguise(conf: Conf) -> None:
    """Whatever the function looks like, its body runs under the lock."""

    async def plain(number: int = 3) -> bool:
        await asyncio.sleep(0)
        assert number == 3
        return held(conf, "name")

    class Called:
        async def __call__(self) -> bool:
            return await plain()

    @functools.wraps(plain)
    def traced(*args: int) -> Any:
        return plain(*args)

    for function in (
        plain,
        functools.partial(plain, 3),
        Called(),
        functools.partial(Called()),
        traced,
        functools.partial(traced),
    ):
        locked: Any = conf.locked("name")(function)

        async def main(locked: Any = locked) -> Any:
            return await locked()

        assert asyncio.run(main()), function
        assert asyncio.run(locked()), function
        assert not held(conf, "name")


def test_a_wrapper_that_runs_its_coroutine_itself_stays_synchronous(conf: Conf) -> None:
    async def main() -> bool:
        return held(conf, "name")

    @conf.locked("name")
    @functools.wraps(main)
    def command() -> Any:
        return asyncio.run(main())

    assert command() is True


def test_objects_that_pretend(conf: Conf) -> None:
    class Proxy:
        @property
        def __wrapped__(self) -> Any:
            return self

        def __call__(self) -> bool:
            return held(conf, "name")

    for function, result in ((Proxy(), True), (mock.Mock(return_value=7), 7)):
        assert conf.locked("name")(function)() == result
    marked = mock.Mock(side_effect=lambda: asyncio.sleep(0, held(conf, "name")))
    marked._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)
    asynchronous = mock.AsyncMock(side_effect=lambda: held(conf, "name"))
    for coroutine_function in (marked, asynchronous):
        assert asyncio.run(conf.locked("name")(coroutine_function)()) is True


async def acoroutine() -> None:
    pytest.fail("it ran without the lock")


def agenerator() -> Iterator[int]:
    yield pytest.fail("it ran without the lock")


async def aasyncgenerator() -> AsyncIterator[int]:
    yield pytest.fail("it ran without the lock")


class Awaitable:
    def __await__(self) -> Any:
        return acoroutine().__await__()


def disguised(function: Callable[[], Any]) -> Callable[[], Any]:
    """A function that gives no hint of what it returns."""

    def call() -> Any:
        return function()

    return call


UNFINISHED: dict[str, Callable[[], Any]] = {
    "an awaitable": disguised(acoroutine),
    "an awaitable (of a class)": Awaitable,
    "an awaitable (in a partial)": functools.partial(disguised(acoroutine)),
    "a future": disguised(concurrent.futures.Future),
    "a generator": disguised(agenerator),
    "a generator (an expression)": lambda: (pytest.fail("it ran") for _ in "a"),
    "a generator (an asynchronous one)": disguised(aasyncgenerator),
    "a context manager": contextlib.contextmanager(agenerator),
    "a context manager (an asynchronous one)": contextlib.asynccontextmanager(aasyncgenerator),
    "a map object": lambda: map(pytest.fail, "a"),
    "a filter object": lambda: filter(pytest.fail, "a"),
    "a starmap object": lambda: itertools.starmap(pytest.fail, "a"),
    "a zip object": lambda: zip(agenerator(), "a", strict=False),
    "a enumerate object": lambda: enumerate(agenerator()),
    "a chain object": lambda: itertools.chain(agenerator()),
    "a islice object": lambda: itertools.islice(agenerator(), 1),
}


@pytest.mark.filterwarnings("error:coroutine", "error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", UNFINISHED)
def test_unfinished_results_are_refused(conf: Conf, kind: str) -> None:
    """Their work would happen after the release."""
    function = disguised(UNFINISHED[kind])
    message = "returns " + kind.partition(" (")[0]
    with pytest.raises(TypeError, match=message):
        conf.locked("name")(function)()

    async def main() -> None:
        async def indirect() -> Any:
            return function()

        with pytest.raises(TypeError, match=message):
            await conf.locked("name")(indirect)()
        with pytest.raises(TypeError, match=message):
            conf.locked("name")(function)()

    asyncio.run(main())
    gc.collect()
    assert not held(conf, "name")


@pytest.mark.filterwarnings("error:coroutine", "error::pytest.PytestUnraisableExceptionWarning")
def test_a_task_is_cancelled_and_a_finished_future_is_a_result(conf: Conf) -> None:
    async def main() -> None:
        tasks = []

        @conf.locked("name")
        async def start() -> Any:
            tasks.append(asyncio.ensure_future(acoroutine()))
            return tasks[0]

        with pytest.raises(TypeError, match="returns a future"):
            await start()
        await asyncio.sleep(0)
        assert tasks[0].cancelled()

        done = asyncio.get_running_loop().create_future()
        done.set_result(7)
        assert conf.locked("name")(lambda: done)() is done

    asyncio.run(main())


def test_a_signature_is_only_needed_for_fields(conf: Conf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10 knows no signature of print."""

    def unknown(function: object) -> None:
        raise ValueError("no signature found")

    monkeypatch.setattr(inspect, "signature", unknown)
    conf.locked("name")(print)()
    with pytest.raises(ValueError, match="does not know the arguments of print"):
        conf.locked("{sep}")(print)


def test_malformed_names(conf: Conf) -> None:
    def function(order: int, width: int = 3) -> bool:
        return held(conf, "  7")

    assert conf.locked("{order:{width}}")(function)(7)
    for name, message in (
        ("{order:{wdith}}", "field 'wdith', which is not an argument"),
        ("{order:{}}", "field without a name"),
        ("{order!x}", "not well-formed"),
        ("{order.}", "not well-formed"),
        ("{order[}", "not well-formed|expected '}'"),
        ("{order:{width:{order}}}", "not well-formed: Max string recursion"),
    ):
        with pytest.raises(ValueError, match=message):
            conf.locked(name)(function)


def test_partial_generators(conf: Conf) -> None:
    class Called:
        def __call__(self) -> Iterator[int]:
            yield 1

    for function in (functools.partial(agenerator), Called(), functools.partial(Called())):
        kind = type(function).__name__
        with pytest.raises(TypeError, match=f"^this {kind} object is a generator function"):
            conf.locked("name")(function)


def test_a_name_with_too_many_braces(conf: Conf) -> None:
    with pytest.raises(ValueError, match="not well-formed: Max string recursion"):
        conf.locked("{a:" * 5000 + "}" * 5000)


def test_wrappers_without_end(conf: Conf) -> None:
    """An object that has every attribute, such as a method of `xmlrpc.client`."""

    class Method:
        @property
        def __wrapped__(self) -> Any:
            return Method()

        def __call__(self) -> bool:
            return held(conf, "name")

    assert conf.locked("name")(Method())()


@pytest.mark.parametrize("manner", ["function", "coroutine", "wrapper", "wrapper of either"])
def test_arguments_and_options_reach_every_kind_of_function(conf: Conf, manner: str) -> None:
    """The arguments form the name, and the options apply to the hold."""

    def function(*, order_id: int) -> tuple[bool, bool]:
        return held(conf, f"order-{order_id}"), conf.get(f"order-{order_id}").remaining <= 5

    async def coroutine(*, order_id: int) -> tuple[bool, bool]:
        return function(order_id=order_id)

    @functools.wraps(coroutine)
    def wrapper(**arguments: Any) -> Any:
        return coroutine(**arguments)

    @functools.wraps(coroutine)
    def either(**arguments: Any) -> Any:
        return function(**arguments)

    functions: dict[str, Callable[..., Any]] = {
        "function": function,
        "coroutine": coroutine,
        "wrapper": wrapper,
        "wrapper of either": either,
    }
    locked = conf.locked("order-{order_id}", maxtime="5s")(functions[manner])

    async def main() -> Any:
        result = locked(order_id=17)
        return await result if inspect.isawaitable(result) else result

    assert asyncio.run(main()) == (True, True)
    result = locked(order_id=17)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    assert result == (True, True)


def test_a_wrapper_that_has_to_wait_does_not_stop_the_event_loop(conf: Conf) -> None:
    """The holder may be another task of the same loop."""

    async def plain() -> bool:
        return held(conf, "name")

    @conf.locked("name", timeout=None)
    @functools.wraps(plain)
    def traced() -> Any:
        return plain()

    async def other() -> bool:
        return await traced()  # type: ignore[no-any-return]

    async def main() -> bool:
        async with conf.aio.get("name"):
            task = asyncio.create_task(other())
            await asyncio.sleep(0)
        return await task

    assert asyncio.run(main())


def test_what_a_wrapper_returns_has_to_be_finished_too(conf: Conf) -> None:
    async def plain() -> Any:
        return agenerator()

    @conf.locked("name")
    @functools.wraps(plain)
    def at_once() -> Any:
        return agenerator()

    @conf.locked("name")
    @functools.wraps(plain)
    def later() -> Any:
        return plain()

    with pytest.raises(TypeError, match="returns a generator"):
        at_once()
    with pytest.raises(TypeError, match="returns a generator"):
        asyncio.run(later())


def test_a_generator_that_has_begun_is_ended_under_the_lock(conf: Conf) -> None:
    ended: list[bool] = []

    def body() -> Iterator[int]:
        try:
            yield 1
        finally:
            ended.append(held(conf, "name"))

    def start() -> Iterator[int]:
        generator = body()
        next(generator)
        return generator

    with pytest.raises(TypeError, match="returns a generator"):
        conf.locked("name")(start)()
    assert ended == [True]
