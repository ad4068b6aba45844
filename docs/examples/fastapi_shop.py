"""FastAPI. Run it with `uvicorn fastapi_shop:app --timeout-graceful-shutdown 10`."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

import score.distlock
from score.distlock import ConfiguredDistlockModule, CouldNotAcquireLock, DatabaseUnavailable


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Each worker process runs this once, after it was forked or spawned.
    locks = await asyncio.to_thread(score.distlock.connect, os.environ["DISTLOCK_URL"])
    app.state.locks = locks
    yield
    await locks.aio.close()


app = FastAPI(lifespan=lifespan)


def the_locks(request: Request) -> ConfiguredDistlockModule:
    locks: ConfiguredDistlockModule = request.app.state.locks
    return locks


Locks = Annotated[ConfiguredDistlockModule, Depends(the_locks)]


@app.exception_handler(CouldNotAcquireLock)
async def busy(request: Request, error: CouldNotAcquireLock) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 409, {"Retry-After": "1"})


@app.exception_handler(DatabaseUnavailable)
async def unavailable(request: Request, error: DatabaseUnavailable) -> JSONResponse:
    return JSONResponse({"detail": "try again later"}, 503, {"Retry-After": "5"})


@app.post("/orders/{order}/ship")
async def ship(order: int, locks: Locks) -> dict[str, int | None]:
    # A wait costs no thread here.
    async with locks.aio.get(f"order-{order}").hold(timeout=5, autoextend=True) as lock:
        await call_the_carrier(order)
        return {"order": order, "fence": lock.fence}


@app.post("/orders/{order}/bill")
def bill(order: int, locks: Locks) -> dict[str, int | None]:
    # Here it keeps one of the forty threads busy that all `def` endpoints share.
    with locks.get(f"order-{order}").hold(timeout=1, autoextend=True) as lock:
        print_the_bill(order)
        return {"order": order, "fence": lock.fence}


async def call_the_carrier(order: int) -> None:
    await asyncio.sleep(0.01)


def print_the_bill(order: int) -> None: ...
