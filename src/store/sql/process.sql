-- Shows by a lock of the session, beside that of listen.sql, which process listens: $1, which is
-- what the holds of that process begin with.
--
-- Guarantees:
-- * It goes with the connection, and keeps nobody from anything: all such locks are shared.
SELECT pg_catalog.pg_try_advisory_lock_shared({process $1}) AS shown
