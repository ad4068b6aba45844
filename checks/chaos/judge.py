"""Judges a round from what the processes and the database have recorded.

It does not know how the locks work, and uses none of their code. Times are seconds of the
database's clock; `Round.offset` converts CLOCK_MONOTONIC, which the processes record, to it.
"""

from __future__ import annotations

import bisect
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

#: The maximum difference between two readings of one clock.
CLOSE = 0.01
#: A statement decides by the clock before its trigger records what it did.
STATEMENT = 1.0
#: Without faults, a waiter gets a free lock within a second, or two on a busy machine.
PROMPTLY = 3.0
#: Only a waiter that has missed a notification takes this long.
NOTIFIED = 0.25

Event = dict[str, Any]


@dataclass
class Version:
    """A version of a lock's row, as recorded by a trigger."""

    at: float
    deleted: bool
    name: str
    token: str
    fence: int | None
    expires: float
    #: Whether 0.2.5 has left the row alone since this module wrote it.
    ours: bool


@dataclass
class Span:
    """A hold, as the database knew it."""

    name: str
    token: str
    start: float
    fences: list[int | None]
    expires: float
    ours: bool
    ended: float | None = None

    @property
    def end(self) -> float:
        """When it ended, by release or with its lease."""
        return self.expires if self.ended is None else min(self.ended, self.expires)


@dataclass
class Wait:
    """A call that acquires one lock."""

    process: str
    name: str
    start: float
    end: float | None = None
    got: bool = False
    #: Whether the call wanted other locks too; then the wait ends when it got this one.
    several: bool = False


@dataclass
class Round:
    """Everything known about a round."""

    offset: float
    journal: list[Version]
    logs: dict[str, list[Event]]
    #: Times without any fault, in seconds of the database's clock.
    calm: list[tuple[float, float]]
    #: When the server lost what was not on disk.
    crashes: list[float]
    #: Whether a process was stopped for longer than a lease.
    paused: bool
    #: Processes that were killed.
    killed: set[str]
    #: Processes of 0.2.5 that run alongside and are not judged.
    neighbours: set[str]
    with_old: bool
    #: Whether the server can notify waiters of their turn; otherwise they poll.
    notified: bool
    #: For each resource used: its kind, its name, its value, and the number of writes.
    counters: list[tuple[str, str, int, int]]
    #: Violations found after all processes have left.
    left_behind: list[str] = field(default_factory=list)


@dataclass
class Verdict:
    """The judge's findings."""

    violations: list[str]
    #: The number of lost updates that no lease can prevent.
    harm: int
    counts: Counter[str]
    #: The longest time for which a waiter had to wait for a free lock in calm times.
    slowest: float


def judge(round_: Round) -> Verdict:
    """Runs all checks."""
    judge_ = Judge(round_)
    violations = [violation for check in judge_.checks() for violation in check]
    return Verdict(violations, judge_.harm, judge_.counts, max(judge_.delays, default=0))


class Judge:
    """The checks, each of which yields violations."""

    def __init__(self, round_: Round) -> None:
        self.round = round_
        self.harm = 0
        self.delays: list[float] = []
        self.counts: Counter[str] = Counter()
        self.row_faults: list[str] = []
        #: By name and token; several, if a token has taken a lock more than once.
        self.spans: dict[tuple[str, str], list[Span]] = defaultdict(list)
        self.by_name: dict[str, list[Span]] = defaultdict(list)
        self.fences = {
            (event["name"], event["token"]): event["fence"] for _, event in self.events("got")
        }
        self.read_journal()
        self.stalls = [
            (self.time(event["since"]), self.time(event["at"]))
            for _, event in self.events("stood still")
        ]

    def checks(self) -> Iterator[Iterable[str]]:
        yield self.row_faults
        yield self.told_and_not_there()
        yield self.believed_and_not_there()
        yield self.released_and_not_free()
        yield self.strange()
        yield self.unanswered()
        yield self.waits_in_calm()
        yield self.lost_updates()
        yield self.round.left_behind

    def events(self, *kinds: str) -> Iterator[tuple[str, Event]]:
        for process, log in self.round.logs.items():
            for event in log:
                if event["event"] in kinds:
                    yield process, event

    def time(self, at: float) -> float:
        return at + self.round.offset

    # The database's own history.

    def read_journal(self) -> None:
        """Turns versions into holds. Two holds of a name at once, or a lower fence, are faults."""
        current: dict[str, Span] = {}
        highest: dict[str, int] = defaultdict(int)
        for version in self.round.journal:
            now = current.get(version.name)
            live = now is not None and now.ended is None and now.ours and now.expires > version.at
            if version.deleted:
                if now and live and not self.round.with_old:
                    self.row_faults.append(f"{self.of(now)}: its row was deleted while it was held")
                self.end(current.pop(version.name, None), version.at)
                continue
            if (
                now is not None
                and version.token == now.token
                and not self.taken_again(now, version)
            ):
                self.same(now, version)
            else:
                handed_over = now is not None and version.fence == now.fences[-1]
                if now and live and not handed_over:
                    left = now.expires - version.at
                    self.row_faults.append(
                        f"{self.of(now)}: taken by {version.token[:8]} though its lease had"
                        f" {left:.3f} s left"
                    )
                self.end(now, version.at)
                current[version.name] = now = Span(
                    version.name, version.token, version.at, [version.fence],
                    version.expires, version.ours,
                )  # fmt: skip
                self.spans[version.name, version.token].append(now)
                self.by_name[version.name].append(now)
                self.counts["holds"] += 1
                fence = version.fence if version.ours and not handed_over else None
                if fence is not None and fence <= highest[version.name]:
                    self.row_faults.append(
                        f"{self.of(now)}: its fence {fence} is not above {highest[version.name]}"
                    )
            highest[version.name] = max(highest[version.name], version.fence or 0)

    @staticmethod
    def taken_again(span: Span, version: Version) -> bool:
        """Whether a late statement has taken the lock again with a token that had it before."""
        over = span.ended is not None or span.expires <= version.at
        return over and version.fence != span.fences[-1] and version.expires > version.at

    def same(self, span: Span, version: Version) -> None:
        """The row of a hold has changed."""
        if version.fence != span.fences[-1]:
            span.fences.append(version.fence)
        if not version.ours:
            span.ours = False
        if version.expires <= version.at:
            self.end(span, version.at)
        elif span.ours:
            over = span.ended is not None or span.expires <= version.at - STATEMENT
            if over and version.expires > span.expires:
                self.row_faults.append(f"{self.of(span)}: extended after it was over")
        if span.ended is None:
            span.expires = version.expires

    @staticmethod
    def end(span: Span | None, at: float) -> None:
        if span is not None and span.ended is None:
            span.ended = at

    @staticmethod
    def of(span: Span) -> str:
        return f"{span.name!r}, hold {span.token[:8]}"

    # What processes were told.

    def meant(self, event: Event) -> Span | None:
        """The hold that an event is about."""
        key = event["name"], event["token"]
        spans = self.spans.get(key)
        if not spans:
            return None
        fence = self.fences.get(key)
        return next((span for span in spans if fence in span.fences), spans[0])

    def told_and_not_there(self) -> Iterator[str]:
        for process, event in self.events("got"):
            self.counts["told"] += 1
            span = self.meant(event)
            what = f"{event['name']!r}, hold {event['token'][:8]}"
            if span is None and process in self.round.neighbours:
                pass  # a crash loses what 0.2.5 commits asynchronously
            elif span is None:
                yield f"{what}: {process} was told of a hold that never was"
            elif event["fence"] is not None and event["fence"] not in span.fences:
                yield f"{what}: {process} was told fence {event['fence']}, not {span.fences}"

    def believed_and_not_there(self) -> Iterator[str]:
        for process, event in self.events("believes"):
            self.counts["beliefs"] += 1
            span = self.meant(event)
            if span is None or not span.ours:
                continue
            at = self.time(event["since"])
            if at > span.end + CLOSE:
                yield f"{self.of(span)}: {process} believed in it {at - span.end:.3f} s too long"
            elif at < span.start - STATEMENT:
                yield f"{self.of(span)}: {process} believed in it before it was"

    def released_and_not_free(self) -> Iterator[str]:
        for process, event in self.events("ended"):
            self.counts["released"] += 1
            span = self.meant(event)
            if span is None or not span.ours:
                continue
            at = self.time(event["at"])
            forgotten = any(at - 1 < crash < at + 2 for crash in self.round.crashes)
            # The lease may have ended while the release was in flight.
            if span.end > at + CLOSE and not forgotten:
                late = f"{span.end - at:.3f} s later"
                yield f"{self.of(span)}: {process} has released it, and it was free {late}"

    def strange(self) -> Iterator[str]:
        for process, event in self.events("strange"):
            if process not in self.round.neighbours:
                yield f"{process}: {event['why']}"
        for _, event in self.events("failed"):
            self.counts["failed: " + event["why"].partition(":")[0]] += 1

    # Waiting.

    def waits(self) -> Iterator[Wait]:
        for process, log in self.round.logs.items():
            pending: dict[str, Wait] = {}
            for event in log:
                call = event.get("call", "")
                if event["event"] == "wait":
                    if len(event["names"]) == 1:
                        start = self.time(event["at"])
                        pending[call] = Wait(process, event["names"][0], start)
                elif call in pending:
                    wait = pending.pop(call)
                    wait.end, wait.got = self.time(event["at"]), event["event"] == "got"
                    yield wait
                elif event["event"] == "got" and len(event["names"]) > 1:
                    for span in self.spans.get((event["name"], event["token"]), []):
                        yield Wait(process, span.name, span.start, span.start, True, several=True)
            yield from pending.values()

    def unanswered(self) -> Iterator[str]:
        for process, log in self.round.logs.items():
            if process in self.round.killed | self.round.neighbours:
                continue
            if not log or log[-1]["event"] != "ends":
                yield f"{process}: it came to no end"

    def still(self, start: float, end: float) -> bool:
        """Whether a process stood still in the meantime."""
        return any(since < end and until > start for since, until in self.stalls)

    def waits_in_calm(self) -> Iterator[str]:
        """Waiters get free locks promptly, in order and fairly."""
        by_name: dict[str, list[Wait]] = defaultdict(list)
        for wait in self.waits():
            by_name[wait.name].append(wait)
            self.counts["waits"] += not wait.several
        for start, end in self.round.calm:
            if not any(
                start < span.start < end for spans in self.by_name.values() for span in spans
            ):
                yield f"nobody got any lock for {end - start:.1f} s without a fault"
            for name, waits in by_name.items():
                here = [
                    wait for wait in waits
                    if wait.end is not None and wait.end > start and wait.start < end
                ]  # fmt: skip
                alone = [wait for wait in here if not wait.several]
                yield from self.promptly(name, alone, start, end)
                if not self.round.with_old:
                    yield from self.in_turn(here, start, end)
        told = self.round.notified and not self.round.with_old
        if told and len(self.delays) >= 10 and statistics.median(self.delays) > NOTIFIED:
            yield f"waiters got what was free after {statistics.median(self.delays):.2f} s (median)"

    def promptly(self, name: str, waits: list[Wait], start: float, end: float) -> Iterator[str]:
        spans = self.by_name[name]
        starts = [span.start for span in spans]
        for span in spans:
            if not start <= span.end <= end - PROMPTLY:
                continue
            free = span.end
            waiting = [
                wait for wait in waits
                if wait.start < free - 0.3 and wait.end is not None and wait.end > free + 0.01
            ]  # fmt: skip
            if not waiting:
                continue
            # A waiter that gave up before it was late does not count.
            patient = max(wait.end or 0 for wait in waiting)
            index = bisect.bisect(starts, span.start)
            following = min(starts[index] if index < len(starts) else end, patient)
            self.delays.append(following - free)
            if following - free > PROMPTLY and not self.still(free, following):
                yield f"{name!r} was free for {following - free:.1f} s while somebody waited"

    def in_turn(self, waits: list[Wait], start: float, end: float) -> Iterator[str]:
        got = sorted((wait for wait in waits if wait.got), key=lambda wait: wait.end or 0)
        for first in waits:
            if first.several or first.start < start or (first.end or end) > end:
                continue
            until = first.end or end
            passed: Counter[str] = Counter()
            for second in got:
                assert second.end is not None
                if not first.start + 0.25 < second.end < until - 0.05:
                    continue
                if second.process == first.process:
                    # This process had its turn, and the waiter's place is new.
                    passed.clear()
                    late = not second.several and second.start > first.start + 0.25
                    if late and not self.still(first.start, until):
                        yield (
                            f"{first.name!r}: of {first.process}'s waiters one that came"
                            f" {second.start - first.start:.2f} s later went first"
                        )
                    continue
                # A process that wants several locks may take this one and release it repeatedly.
                passed[second.process] += not second.several
                fair = passed[second.process] <= 3 or not self.round.notified
                if not fair and not self.still(first.start, until):
                    yield (
                        f"{first.name!r}: {second.process} went before {first.process}"
                        f" {passed[second.process]} times"
                    )
                    break

    # The resources.

    def lost_updates(self) -> Iterator[str]:
        excused = self.round.paused or bool(self.stalls)
        for kind, name, value, writes in self.round.counters:
            self.counts[f"writes: {kind}"] += writes
            lost = writes - value
            if not lost:
                continue
            if kind == "plain" and excused:
                self.harm += lost
                continue
            yield f"{name!r}: {lost} of {writes} updates of the {kind} resource were lost"
