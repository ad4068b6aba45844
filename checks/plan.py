"""Which tests have to notice a change of which file, and what none can notice."""

#: How long one test may take before the mutant counts as noticed, and all of them before it
#: counts as a survivor: in seconds.
TIMEOUT = 30
LIMIT = 300

#: The statements one by one, against rows in each state.
EACH = ["test_statements.py"]
FENCE = [*EACH, "test_fence.py"]

TESTS = {
    "acquire.sql": FENCE,
    "ahead.sql": EACH,
    "awaited.sql": EACH,
    "busy.sql": EACH,
    "check.sql": ["test_neighbours.py", "test_schema.py"],
    "dead.sql": EACH,
    "drawn.sql": ["test_fence.py"],
    "durable.sql": EACH,
    "extend.sql": EACH,
    "guard.sql": EACH,
    "held.sql": EACH,
    "latest.sql": EACH,
    "leave.sql": EACH,
    "listen.sql": EACH,
    "live.sql": EACH,
    "notified.sql": EACH,
    "number.sql": FENCE,
    "prove.sql": ["test_waiting.py"],
    "released.sql": EACH,
    "release_awaited.sql": EACH,
    "release_calling.sql": EACH,
    "release.sql": EACH,
    "remaining.sql": EACH,
    "renew.sql": EACH,
    "repair.sql": FENCE,
    "retake.sql": EACH,
    "role.sql": EACH,
    "survivors.sql": EACH,
    "sweep.sql": EACH,
    "take.sql": EACH,
    "take_busy.sql": EACH,
    "taking.sql": EACH,
    "transfer.sql": EACH,
    "vacuum.sql": EACH,
    "wait.sql": FENCE,
    "whose.sql": EACH,
    "yielded.sql": EACH,
    "_all.py": ["test_acquire_all.py", "test_renewal.py", "test_interrupts.py"],
    "_guard.py": ["test_guard.py", "test_guard_trust.py"],
    "_locked.py": ["test_locked.py", "test_renewal.py"],
}

#: What is said so that it stays so.
EVALUATED = "PostgreSQL evaluates what it materializes, though nobody looks at it"

#: Mutants that do the same, or nearly so, and why.
EXCUSED = {
    "latest.sql: DESC -> nothing": "the same row is found, only slower beside an old snapshot",
    "take_busy.sql: AND waiters[1] {=} $6 (2) -> nothing": "the row has been locked by then",
    "take_busy.sql: AND limit_ IS NOT NULL -> nothing": EVALUATED,
    "wait.sql: AND NOT EXISTS (SELECT FROM made) -> nothing": (
        "the queue is looked at first, and what is made is then made durable"
    ),
    "leave.sql: AND durability IS NOT NULL -> nothing": EVALUATED,
    "release_awaited.sql: AND durability IS NOT NULL -> nothing": EVALUATED,
    "wait.sql: AND limit_ IS NOT NULL -> nothing": EVALUATED,
    "wait.sql: AND durability IS NOT NULL -> nothing": EVALUATED,
}
