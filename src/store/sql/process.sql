-- Shows by a session-level lock, in addition to that of listen.sql, which process listens: $1, the
-- prefix of `holder` in that process's holds.
--
-- Guarantees:
-- * The lock ends with the connection, and blocks nobody: all such locks are shared.
SELECT pg_catalog.pg_try_advisory_lock_shared({process $1}) AS shown
