pg_catalog.pg_try_advisory_xact_lock_shared({listener ticket})
