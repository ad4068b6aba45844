"""The Python interface against a model, with several processes and leases that end on command."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from .conftest import SUPPORT

PROCESSES = range(3)
NAMES = range(2)


class Actor:
    """Our end of a process that uses locks."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "actor.py"), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *command: Any) -> tuple[Any, str | None, int | None, bool]:
        """Calls a method of a lock; returns the outcome, and what the lock then knows."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        outcome, token, fence, expired = json.loads(self.process.stdout.readline())
        return tuple(outcome), token, fence, expired


@dataclass
class Held:
    """What a process believes it holds."""

    token: str
    fence: int
    count: int = 1
    lost: bool = False
    told: bool = False


EXPIRED = ("raised", "LockExpired")
NO_TOKEN = ("raised", "ValueError")

runs = itertools.count()


class Model(RuleBasedStateMachine):
    """Each name has at most one live token in the database; each process has its own beliefs."""

    actors: list[Actor]
    db: psycopg.Connection[Any]

    def __init__(self) -> None:
        super().__init__()
        self.run = next(runs)
        self.live: dict[int, str | None] = dict.fromkeys(NAMES)
        self.held: dict[tuple[int, int], Held] = {}
        self.fences: dict[int, int] = dict.fromkeys(NAMES, 0)

    def name(self, number: int) -> str:
        return f"run {self.run} name {number}"

    def ask(self, process: int, name: int, *command: Any) -> Any:
        outcome, token, fence, expired = self.actors[process].ask(self.name(name), *command)
        self.knows = (token, expired)
        self.fence = fence
        return outcome

    def agree(self, process: int, name: int) -> None:
        """Afterwards the process knows exactly what the model says."""
        held = self.held.get((process, name))
        assert self.knows == ((held.token, held.lost) if held else (None, False))

    @rule(process=st.sampled_from(PROCESSES), name=st.sampled_from(NAMES))
    def acquire(self, process: int, name: int) -> None:
        outcome = self.ask(process, name, "try_acquiring")
        held = self.held.get((process, name))
        if held is not None and not held.told:
            if self.live[name] == held.token:
                assert outcome == ("returned", held.token)
                assert self.fence == held.fence
                held.count += 1
            else:
                assert outcome == EXPIRED
                held.lost = held.told = True
        elif self.live[name] is None:
            kind, token = outcome
            assert kind == "returned"
            assert self.fence is not None
            assert self.fence > self.fences[name]
            self.fences[name] = self.fence
            self.live[name] = token
            self.held[process, name] = Held(token, self.fence)
        else:
            assert outcome == ("returned", None)
        self.agree(process, name)

    @rule(process=st.sampled_from(PROCESSES), name=st.sampled_from(NAMES))
    def release(self, process: int, name: int) -> None:
        outcome = self.ask(process, name, "release")
        held = self.held.get((process, name))
        if held is None:
            assert outcome == NO_TOKEN
        elif held.count > 1:
            held.count -= 1
            # A process asks the database only if it suspects a loss.
            assert outcome == (EXPIRED if held.lost else ("returned", None))
        else:
            del self.held[process, name]
            if self.live[name] == held.token:
                assert outcome == ("returned", None)
                self.live[name] = None
            else:
                assert outcome == EXPIRED
        self.agree(process, name)

    @rule(process=st.sampled_from(PROCESSES), name=st.sampled_from(NAMES))
    def extend(self, process: int, name: int) -> None:
        outcome = self.ask(process, name, "extend")
        held = self.held.get((process, name))
        if held is None:
            assert outcome == NO_TOKEN
        elif self.live[name] == held.token:
            assert outcome == ("returned", None)
        else:
            assert outcome == EXPIRED
            held.lost = True
        self.agree(process, name)

    @rule(process=st.sampled_from(PROCESSES), name=st.sampled_from(NAMES))
    def transfer(self, process: int, name: int) -> None:
        outcome = self.ask(process, name, "transfer")
        held = self.held.get((process, name))
        if held is None:
            assert outcome == NO_TOKEN
        elif self.live[name] == held.token:
            kind, token = outcome
            assert kind == "returned"
            assert token != held.token
            self.live[name] = held.token = token
        else:
            assert outcome == EXPIRED
            held.lost = True
        self.agree(process, name)

    @rule(
        process=st.sampled_from(PROCESSES),
        other=st.sampled_from(PROCESSES),
        name=st.sampled_from(NAMES),
        method=st.sampled_from(["extend", "release"]),
    )
    def use_the_token_of_another(self, process: int, other: int, name: int, method: str) -> None:
        foreign = self.held.get((other, name))
        if foreign is None or process == other:
            return
        outcome = self.ask(process, name, method, foreign.token)
        if self.live[name] == foreign.token:
            assert outcome == ("returned", None)
            if method == "release":
                self.live[name] = None
        else:
            assert outcome == EXPIRED
        self.agree(process, name)

    @rule(name=st.sampled_from(NAMES))
    def lease_ends(self, name: int) -> None:
        self.db.execute(
            "UPDATE _score_distlock SET expires = clock_timestamp() WHERE name = %s",
            (self.name(name),),
        )
        self.live[name] = None

    @rule(name=st.sampled_from(NAMES))
    def row_disappears(self, name: int) -> None:
        """As 0.2.5 deletes free and expired rows."""
        if self.live[name] is None:
            self.db.execute("DELETE FROM _score_distlock WHERE name = %s", (self.name(name),))

    @invariant()
    def the_database_agrees(self) -> None:
        for name in NAMES:
            row = self.db.execute(
                "SELECT token FROM _score_distlock WHERE name = %s AND expires > clock_timestamp()",
                (self.name(name),),
            ).fetchone()
            assert (row and row[0]) == self.live[name]


@pytest.fixture
def actors(url: str) -> Iterator[list[Actor]]:
    actors = [Actor(url) for _ in PROCESSES]
    actors[0].ask("first", "try_acquiring")
    yield actors
    for actor in actors:
        actor.process.communicate()


def test_the_interface_follows_the_model(actors: list[Actor], db: psycopg.Connection[Any]) -> None:
    Model.actors, Model.db = actors, db
    run_state_machine_as_test(
        Model, settings=settings(max_examples=200, stateful_step_count=40, deadline=None)
    )
