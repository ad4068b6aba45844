"""Garbage cycles with locks in them are collected, which frees their resources."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import score.distlock

Conf = score.distlock.ConfiguredDistlockModule


class Service:
    """Refers to a configuration that refers to it."""

    def __init__(self, url: str) -> None:
        self.conf = score.distlock.connect(url)
        self.lock = self.conf.get("name")

    def lost(self, *_: object) -> None:
        """The callback of a hold."""


def aio(service: Service) -> Any:
    async def main() -> None:
        async with service.conf.aio.get("name"):
            pass

    asyncio.run(main())
    return service.conf.aio


def hold(service: Service) -> Any:
    held = service.lock.hold(on_lost=service.lost, on_expiring=service.lost)
    with held:
        pass
    return held


def async_hold(service: Service) -> Any:
    return service.conf.aio.get("name").hold(on_lost=service.lost)


def several(service: Service) -> Any:
    holds: Any = service.conf.acquire_all(["name"])
    holds.service = service
    return holds


def locked(service: Service) -> Any:
    function = service.conf.locked("name")(service.lost)
    function()
    return function


def attribute(service: Service) -> Any:
    service.conf.service = service  # type: ignore[attr-defined]
    with service.lock:
        return service.lock


def engine(service: Service) -> Any:
    made = service.conf.engine
    made.service = service
    return made


def lost(service: Service) -> Any:
    return service.lock.lost


@pytest.mark.parametrize("use", [aio, hold, async_hold, several, locked, attribute, engine, lost])
def test_a_circle_is_collected(url: str, conf: Conf, use: Callable[[Service], Any]) -> None:
    def make() -> weakref.ref[Conf]:
        service = Service(url)
        service.kept = use(service)  # type: ignore[attr-defined]
        return weakref.ref(service.conf)

    reference = make()
    gc.collect()
    assert reference() is None


def test_what_is_in_use_is_not_collected(conf: Conf) -> None:
    """An open block keeps its callback alive, even if nothing else does."""
    told: list[object] = []

    class Owner:
        def lost(self, *_: object) -> None:
            told.append(self)

    def enter() -> None:
        owner: Any = Owner()
        owner.hold = conf.get("name").hold(on_lost=owner.lost, maxtime=0.3, autoextend=True)
        owner.hold.__enter__()

    enter()
    gc.collect()
    assert conf.revoke("name")
    while not told:
        gc.collect()
