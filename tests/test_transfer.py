"""A hand-over leaves one valid token, whatever happens beside it, and one that somebody knows."""

from __future__ import annotations

import contextlib
import random
import signal
import threading

import pytest

import score.distlock
from score.distlock import LockExpired

from .support.line import Background

Conf = score.distlock.ConfiguredDistlockModule


def test_the_old_token_is_void_although_others_extend_by_it(conf: Conf) -> None:
    for number in range(40):
        name, over = f"name {number}", threading.Event()
        old = conf.acquire(name)

        def extend(name: str = name, old: str = old, over: threading.Event = over) -> None:
            while not over.is_set():
                with contextlib.suppress(LockExpired):
                    conf.extend(name, old)

        threads = [Background(extend) for _ in range(2)]
        over.wait(0.001)
        new = conf.transfer(name, old)
        with pytest.raises(LockExpired):
            conf.extend(name, old)
        over.set()
        for thread in threads:
            thread.result()
        for use in (conf.extend, conf.transfer, conf.release):
            with pytest.raises(LockExpired):
                use(name, old)
        conf.release(name, new)


def test_of_two_that_transfer_the_same_token_one_succeeds(conf: Conf) -> None:
    def transfer(old: str) -> str | None:
        try:
            return conf.transfer("name", old)
        except LockExpired:
            return None

    for _ in range(40):
        old = conf.acquire("name")
        threads = [Background(transfer, old) for _ in range(3)]
        (new,) = {thread.result() for thread in threads} - {None}
        with pytest.raises(LockExpired):
            conf.release("name", old)
        conf.release("name", new)


def test_an_interrupted_transfer_leaves_the_old_token_valid(conf: Conf) -> None:
    """Whether the new one is in the database or not."""

    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    dice, interrupted = random.Random(1), 0
    try:
        while interrupted < 100:
            token = conf.acquire("name")
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-5, 1e-3))
                token = conf.transfer("name", token)
            except Interrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            use = dice.choice(["extend", "transfer", "nothing"])
            if use == "extend":
                conf.extend("name", token)
            if use == "transfer":
                token = conf.transfer("name", token)
            conf.release("name", token)
    finally:
        signal.signal(signal.SIGALRM, before)
