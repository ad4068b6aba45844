"""Which tests must notice changes to which file, and which changes no test can notice."""

#: In seconds: how long one test may take before the mutant counts as noticed, and all of them
#: together before it counts as a survivor.
TIMEOUT = 30
LIMIT = 300

#: The statements one by one, against rows in each state.
EACH = ["test_statements.py"]
FENCE = [*EACH, "test_fence.py"]


def cases(test: str, *kinds: str) -> list[str]:
    """Representative cases of a test; the others would add nothing."""
    return [f"{test}[{kind}]" for kind in kinds]


ACQUIRE_ALL = [
    "test_acquire_all.py",
    "test_renewal.py::test_autoextend_need_not_be_configured[acquire_all]",
]

LOCKED = [
    "test_locked.py",
    "test_renewal.py::test_autoextend_need_not_be_configured[locked]",
    "test_renewal.py::test_a_lease_that_ends_without_renewal_is_told[locked]",
]

#: One connection for each code path of the guard.
GUARD = [
    *cases(
        "test_guard.py::test_a_late_holder_cannot_commit",
        "Psycopg2",
        "SqlalchemyConnection",
    ),
    "test_guard.py::test_guarded_work_is_committed[DjangoWithDictRows]",
    *cases(
        "test_guard_trust.py::test_unusual_asynchronous_connections",
        "asyncpg",
        "class_row",
        "sqlalchemy",
    ),
    *cases(
        "test_guard_trust.py::test_an_unusual_connection_is_guarded",
        "psycopg class_row",
        "psycopg Refusing",
        "psycopg2 Refusing2",
    ),
    "test_guard.py::test_several_guards_at_once",
    "test_guard.py::test_a_hold_of_0_2_5_is_guarded_and_has_no_fence",
    "test_guard.py::test_a_guard_needs_no_other_driver_than_the_callers",
    "test_guard.py::test_an_error_of_the_callers_transaction_arrives",
    "test_guard.py::test_autocommit_is_no_transaction",
    "test_guard.py::test_something_else_is_no_connection",
    "test_guard_trust.py::test_a_guard_refuses_connections_of_the_other_kind",
    "test_guard_trust.py::test_pipelines",
    "test_guard_trust.py::test_another_database",
    "test_guard_trust.py::test_autocommit_of_sqlalchemy_is_no_transaction",
    "test_guard_trust.py::test_autocommit_is_no_transaction_for_a_coroutine_either",
    "test_guard_trust.py::test_no_table",
    "test_guard_trust.py::test_an_error_of_a_coroutines_transaction_arrives",
    "test_guard_trust.py::test_what_is_not_known_is_not_committed",
    "test_guard_trust.py::test_what_a_coroutine_does_not_know_is_not_committed",
]

CHECK = [
    "test_schema.py::test_whatever_is_missing_is_made_again",
    "test_schema.py::test_an_existing_table_is_upgraded_with_its_rows[hand]",
    "test_schema.py::test_the_search_path_is_honoured",
    "test_schema.py::test_without_a_schema_the_error_says_so",
    "test_neighbours.py::test_a_squatted_table_is_refused",
    "test_neighbours.py::test_parts_of_a_squatted_table_are_refused",
    "test_neighbours.py::test_the_refusal_names_what_is_on_the_table",
    "test_neighbours.py::test_tables_of_others_do_not_matter",
    "test_neighbours.py::test_a_trigger_by_somebody_who_may_add_triggers_is_refused",
    "test_neighbours.py::test_tables_of_those_who_need_no_trust",
    "test_neighbours.py::test_code_in_the_condition_of_a_trigger_is_refused",
]

#: Several mutants share one server: a test that looks beyond its own database, for instance at
#: the newest transaction, would fail because of the others' work.
TESTS = {
    "acquire.sql": FENCE,
    "ahead.sql": EACH,
    "awaited.sql": EACH,
    "busy.sql": EACH,
    "check.sql": CHECK,
    "dead.sql": EACH,
    "drawn.sql": ["test_fence.py"],
    "durable.sql": EACH,
    "extend.sql": EACH,
    "facts.sql": ["test_cli_doctor.py"],
    "guard.sql": EACH,
    "held.sql": EACH,
    "holder.sql": EACH,
    "latest.sql": EACH,
    "holders.sql": EACH,
    "info.sql": EACH,
    "leave.sql": EACH,
    "listen.sql": EACH,
    "live.sql": EACH,
    "notified.sql": EACH,
    "number.sql": FENCE,
    "process.sql": ["test_cli_doctor.py"],
    "prove.sql": ["test_waiting.py"],
    "released.sql": EACH,
    "release_awaited.sql": EACH,
    "release.sql": EACH,
    "record.sql": EACH,
    "remaining.sql": EACH,
    "renew.sql": EACH,
    "repair.sql": FENCE,
    "retake.sql": EACH,
    "revocable.sql": EACH,
    "role.sql": EACH,
    "survivors.sql": EACH,
    "sweep.sql": EACH,
    "take.sql": EACH,
    "taking.sql": EACH,
    "transfer.sql": EACH,
    "vacuum.sql": EACH,
    "wait.sql": FENCE,
    "waits.sql": ["test_cli_doctor.py"],
    "whose.sql": EACH,
    "yielded.sql": EACH,
    "_all.py": ACQUIRE_ALL,
    "_async_all.py": [
        "test_acquire_all.py",
        "test_renewal.py::test_autoextend_need_not_be_configured[acquire_all_in_loop]",
        "test_entering.py::test_holds_that_were_awaited_before_their_block",
        "test_entering.py::test_holds_that_were_awaited_and_released",
        "test_abandoned_coroutines.py::test_a_signal_handler_may_raise_at_each_call[once_several]",
    ],
    "_async_lost.py": [
        "test_lost_event.py::test_a_coroutine_awaits_it",
        "test_lost_event.py::test_a_lease_that_ends_without_renewal",
        "test_lost_event.py::test_numbers_that_are_no_time",
        "test_lost_event.py::test_it_is_no_truth",
        "test_lost_event.py::test_a_coroutine_that_is_cancelled_waits_no_more",
        "test_lost_event.py::test_a_worker_of_coroutines",
        "test_lost_event.py::test_a_coroutine_sleeps_until_its_lease_ends_or_something_happens",
        "test_lost_event.py::test_a_coroutine_that_holds_nothing_looks_every_second",
    ],
    "_cancel.py": [
        "test_cancel_on_loss.py",
        "test_abandoned_coroutines.py::test_a_block_whose_loop_is_gone_sees_its_own_exception",
        "test_abandoned_coroutines.py::test_a_block_whose_loop_is_gone_is_over"
        "[cancelled_on_loss-None]",
    ],
    "_config.py": ["test_bad_input.py", "test_configuration_errors.py"],
    "_hold.py": ["test_bad_input.py", "test_expiring.py"],
    "_measuring.py": ["test_telemetry.py"],
    "_opentelemetry.py": ["test_telemetry.py"],
    "_prometheus.py": ["test_telemetry.py"],
    "_connect.py": ["test_connect.py"],
    "_errors.py": ["test_errors.py"],
    "_guard.py": GUARD,
    "_insight.py": ["test_insight.py"],
    "_locked.py": LOCKED,
}

#: Reasons that recur.
EVALUATED = "PostgreSQL evaluates what it materializes, though nobody looks at it"
NO_PIPELINE = "a pipeline of the guard's own does no harm, but libpq before 14 has none"
SAME_NUMBER = "it would take an object of another catalogue that has the same number"
PIPELINE = "_guard.py: connection.pgconn.pipeline_status != psycopg.pq.PipelineStatus.OFF"

#: Equivalent or nearly equivalent mutants, and why.
EXCUSED = {
    "_measuring.py: atexit.unregister(tell_seen) -> pass": "a second call does nothing",
    "_async_lost.py: raise AssertionError -> pass": "the line before raises; type checkers ask",
    "_cancel.py: task is not None -> True": "a task that is gone has left its block",
    "latest.sql: DESC -> nothing": "the same row is found, only slower beside an old snapshot",
    "wait.sql: AND NOT EXISTS (SELECT FROM made) -> nothing": (
        "the queue is looked at first, and what is made is then made durable"
    ),
    "leave.sql: AND durability IS NOT NULL -> nothing": EVALUATED,
    "release_awaited.sql: AND durability IS NOT NULL -> nothing": EVALUATED,
    "wait.sql: AND limit_ IS NOT NULL -> nothing": EVALUATED,
    "wait.sql: AND durability IS NOT NULL -> nothing": EVALUATED,
    "check.sql: {=} (26) -> {<>}": "what belongs to a table, sequence or not, has its owner",
    "check.sql: AND dependency.refclassid {=} "
    "'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid -> nothing": SAME_NUMBER,
    "check.sql: AND dependency.refclassid {=} "
    "'pg_catalog.pg_operator'::pg_catalog.regclass::pg_catalog.oid -> nothing": SAME_NUMBER,
    f"{PIPELINE} -> True": NO_PIPELINE,
    f"{PIPELINE} (2) -> True": NO_PIPELINE,
}
