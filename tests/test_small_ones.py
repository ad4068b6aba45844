"""Regression tests for small bugs."""

from __future__ import annotations

import asyncio
import gc
import io
import pydoc

import score.distlock
from score.distlock import _distlock

Conf = score.distlock.ConfiguredDistlockModule


def test_the_coroutines_of_a_temporary_module(url: str) -> None:
    """A pending call keeps its module alive."""

    async def main() -> None:
        lock = score.distlock.init({"sqlalchemy.url": url}).aio.get("name")
        aio = score.distlock.init({"sqlalchemy.url": url}).aio
        gc.collect()
        async with lock:
            assert await aio.try_acquiring("name") is None
        assert lock.conf.maxtime == aio.conf.maxtime == 60
        token = await score.distlock.init({"sqlalchemy.url": url}).aio.acquire("name")
        await aio.release("name", token)
        async with score.distlock.init({"sqlalchemy.url": url}).aio.acquire_all(["name"]):
            gc.collect()

    asyncio.run(main())


def test_help_names_no_ellipsis() -> None:
    for what in (score.distlock, score.distlock.Lock.hold, score.distlock.aio, Conf):
        output = io.StringIO()
        pydoc.Helper(output=output).help(what)
        text = output.getvalue()
        assert "Ellipsis" not in text
        assert "=..." not in text


def test_the_extension_module_exports_the_exceptions() -> None:
    for name in ("CouldNotAcquireLock", "LockExpired"):
        assert getattr(_distlock, name) is getattr(score.distlock, name)
        assert name in _distlock.__all__
