"""docs/examples/fastapi_shop.py, with work that notices if two run it at once."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import fastapi_shop
from fastapi import Depends
from fastapi.responses import StreamingResponse
from fastapi_shop import Locks, app
from judge import alone

from score.distlock import Lock

__all__ = ("app",)


async def call_the_carrier(order: int) -> None:
    with alone(order):
        await asyncio.sleep(0.005)


def print_the_bill(order: int) -> None:
    with alone(order):
        time.sleep(0.005)


fastapi_shop.call_the_carrier = call_the_carrier
fastapi_shop.print_the_bill = print_the_bill


def locked(order: int, locks: Locks) -> Iterator[Lock]:
    # FastAPI enters and leaves it on different threads of the pool.
    with locks.get(f"order-{order}").hold(timeout=1) as lock:
        yield lock


@app.post("/orders/{order}/pack")
async def pack(order: int, lock: Annotated[Lock, Depends(locked)]) -> dict[str, int | None]:
    with alone(order):
        await asyncio.sleep(0.005)
    return {"order": order, "fence": lock.fence}


@app.get("/orders/{order}/follow")
async def follow(order: int, locks: Locks) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async with locks.aio.get(f"order-{order}").hold(timeout=5, autoextend=True) as lock:
            with alone(order):
                while not lock.expired:
                    yield "still here\n"
                    await asyncio.sleep(0.005)

    return StreamingResponse(lines())


@app.get("/collect")
def collect() -> int:
    return gc.collect()


@app.get("/orders/{order}/watch")
def watch(order: int, locks: Locks) -> StreamingResponse:
    def lines() -> Iterator[str]:
        # Each step runs on another thread, and in another context.
        with locks.get(f"order-{order}").hold(timeout=5, autoextend=True) as lock, alone(order):
            while not lock.expired:
                yield "still here\n"
                time.sleep(0.005)

    return StreamingResponse(lines())
