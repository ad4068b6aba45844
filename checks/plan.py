"""Which tests have to notice a change of which file, and what none can notice."""

#: How long one test, and all tests of a mutant, may take before it counts as noticed: in seconds.
TIMEOUT = 30
LIMIT = 120

#: Everything that a hold's life touches, in some ten seconds.
LIFE = [
    "test_taken_again.py",
    "test_clock.py",
    "test_reentrancy.py",
    "test_guard.py",
    "test_lost_answers.py",
]
FENCE = ["test_fence.py"]
QUEUE = ["test_waiting.py", "test_queue.py"]
DISK = ["test_durability.py"]
OLD = ["test_rolling_upgrade.py", "test_drop_in.py"]
TABLE = ["test_schema.py", "test_neighbours.py"]

TESTS = {
    "acquire.sql": [*LIFE, *FENCE, *DISK, *QUEUE, *OLD, *TABLE],
    "ahead.sql": QUEUE,
    "awaited.sql": [*LIFE, *QUEUE, *OLD],
    "busy.sql": ["test_neighbours.py"],
    "check.sql": TABLE,
    "dead.sql": QUEUE,
    "drawn.sql": FENCE,
    "durable.sql": DISK,
    "extend.sql": [*LIFE, *DISK, *OLD],
    "guard.sql": ["test_guard.py", "test_guard_trust.py", *OLD],
    "held.sql": [*LIFE, "test_guard_trust.py", "test_hold_states.py"],
    "latest.sql": LIFE,
    "leave.sql": [*QUEUE, *DISK],
    "listen.sql": QUEUE,
    "live.sql": [*LIFE, *OLD],
    "notified.sql": QUEUE,
    "number.sql": [*FENCE, *DISK],
    "prove.sql": QUEUE,
    "released.sql": [*LIFE, "test_hold_states.py"],
    "release_awaited.sql": [*LIFE, *QUEUE, *OLD],
    "release_calling.sql": [*LIFE, *QUEUE, *OLD],
    "release.sql": [*LIFE, *QUEUE, *OLD],
    "remaining.sql": [*LIFE, *QUEUE, *OLD],
    "renew.sql": ["test_renewal.py", "test_autoextend.py", *DISK],
    "repair.sql": FENCE,
    "retake.sql": [*LIFE, *FENCE, *DISK, *QUEUE],
    "role.sql": ["test_configuration_like_libpq.py"],
    "survivors.sql": QUEUE,
    "sweep.sql": ["test_server_settings.py", *TABLE, *QUEUE],
    "take.sql": [*QUEUE, *FENCE, *DISK],
    "take_busy.sql": [*QUEUE, *FENCE, *DISK],
    "taking.sql": [*LIFE, *FENCE, *QUEUE, *OLD],
    "transfer.sql": [*LIFE, *DISK],
    "vacuum.sql": [*LIFE, *QUEUE, "test_server_settings.py", "test_guard_trust.py"],
    "wait.sql": [*QUEUE, *FENCE, *DISK, *OLD],
    "whose.sql": ["test_neighbours.py"],
    "yielded.sql": [*QUEUE, *OLD],
    "_all.py": ["test_acquire_all.py", "test_renewal.py", "test_interrupts.py"],
    "_guard.py": ["test_guard.py", "test_guard_trust.py"],
    "_locked.py": ["test_locked.py", "test_renewal.py"],
}

#: Mutants that do the same, or nearly so, and why.
EXCUSED: dict[str, str] = {}
