"""``score.distlock.locked``: the module is configured after the functions were decorated."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

import score.distlock
from score.distlock import CouldNotAcquireLock

from .conftest import python
from .test_locked import held

Conf = score.distlock.ConfiguredDistlockModule


class App:
    """An application, as from a factory."""

    conf: Any = None

    def __call__(self) -> Any:
        return self.conf


def test_functions_methods_and_coroutines(conf: Conf) -> None:
    app = App()

    @score.distlock.locked("order-{order_id}", conf=app)
    def ship(order_id: int) -> bool:
        """Ships."""
        return held(conf, "order-17")

    @score.distlock.locked("order-{order_id}", conf=lambda: app.conf)
    async def ship_later(order_id: int) -> bool:
        await asyncio.sleep(0)
        return held(conf, "order-17")

    @functools.wraps(ship_later)
    def wrapper(order_id: int) -> Any:
        return ship_later(order_id)

    class Shop:
        name = "berlin"

        @score.distlock.locked("{self.name}", conf=app, maxtime="5s")
        def sell(self) -> bool:
            return held(conf, "berlin")

    either = score.distlock.locked("other", conf=app)(wrapper)
    assert ship.__doc__ == "Ships."
    app.conf = conf
    assert ship(17)
    assert Shop().sell()
    assert asyncio.run(ship_later(17))
    assert asyncio.run(either(17))

    async def main() -> None:
        assert await either(17)

    asyncio.run(main())
    assert not held(conf, "order-17")


def test_it_is_asked_at_each_call(conf: Conf, url: str) -> None:
    """Each test, or tenant, has its own application."""
    asked = []
    other = score.distlock.ConfiguredDistlockModule(url, "1h")

    def find() -> Conf:
        asked.append(1)
        return [conf, other][len(asked) % 2]

    @score.distlock.locked("name", conf=find)
    def remaining() -> float:
        return max(conf.get("name").remaining, other.get("name").remaining)

    assert asked == []
    assert remaining() > 60
    assert remaining() <= 60
    assert len(asked) == 2


def test_options_and_recursion(conf: Conf) -> None:
    @score.distlock.locked("name", conf=lambda: conf, timeout="10ms", on_lost=print)
    def count(number: int) -> int:
        return number and 1 + count(number - 1)

    assert count(3) == 3
    token = conf.acquire("name")
    with pytest.raises(CouldNotAcquireLock):
        count(1)
    conf.release("name", token)


def test_mistakes(conf: Conf) -> None:
    locked: Any = score.distlock.locked

    def work() -> None: ...

    with pytest.raises(TypeError, match="conf must be a function"):
        locked("name", conf=conf)
    with pytest.raises(TypeError, match="conf"):
        locked("name")
    with pytest.raises(TypeError, match="must be a str, not function"):
        locked(work, conf=lambda: conf)
    with pytest.raises(ValueError, match="not an argument of the function"):
        locked("{order}", conf=lambda: conf)(work)
    for bad in ({"timeout": "soon"}, {"maxtime": "soon"}):
        with pytest.raises(ValueError, match="soon"):
            locked("name", conf=lambda: conf, **bad)
    with pytest.raises(TypeError, match="on_lost must be callable"):
        locked("name", conf=lambda: conf, on_lost=1)
    with pytest.raises(TypeError, match="must return a ConfiguredDistlockModule, not NoneType"):
        locked("name", conf=lambda: None)(work)()
    with pytest.raises(LookupError, match="no application"):
        locked("name", conf=no_application)(work)()
    assert not held(conf, "name")


def no_application() -> Any:
    raise LookupError("no application")


def test_it_costs_no_import(url: str) -> None:
    code = (
        "import sys, score.distlock\n"
        "assert callable(score.distlock.locked)\n"
        "unwanted = {'asyncio', 'score.distlock._locked', 'score.distlock._config'}\n"
        "assert not unwanted & set(sys.modules)\n"
        "print('kept')\n"
    )
    assert python(code, url) == "kept\n"
