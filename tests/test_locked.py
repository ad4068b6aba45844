"""Functions that run under a lock."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import Any

import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock

Conf = score.distlock.ConfiguredDistlockModule


def held(conf: Conf, name: str) -> bool:
    """Whether somebody holds a lock: asked with another Lock object."""
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
        ("{ordre}", "field 'ordre', which is no argument of the function; allowed are order"),
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
    with pytest.raises(TypeError, match=r"write @conf.locked\('name'\)"):
        conf.locked(function)  # type: ignore[arg-type]
